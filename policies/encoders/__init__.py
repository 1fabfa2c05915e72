"""How a policy reads an observation: each entry is read by the encoder of its space.

An observation is a dict (see `envs.env_wrappers`). Its spec is a dict for JSON in the policy file:
`{"image": {"kind": "cells", "shape": [3, 3, 3]}, "previous_action": {"kind": "discrete", "n": 5}, ...}`.
A new encoder is one file beside this one and one line here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor

from expire_span_rl.policies.encoders.base import EntryEncoder
from expire_span_rl.policies.encoders.cells import CELL_VALUES, CellsEncoder
from expire_span_rl.policies.encoders.integers import DiscreteEncoder, MultiDiscreteEncoder
from expire_span_rl.policies.encoders.mask import MaskEncoder
from expire_span_rl.policies.encoders.picture import PictureEncoder
from expire_span_rl.policies.encoders.vector import VectorEncoder
from expire_span_rl.policies.encoders.words import WordsEncoder
from expire_span_rl.spaces import PREVIOUS_ACTION, PREVIOUS_REWARD

ENCODERS: dict[str, type[EntryEncoder]] = {
    "cells": CellsEncoder,
    "words": WordsEncoder,
    "mask": MaskEncoder,
    "discrete": DiscreteEncoder,
    "picture": PictureEncoder,
    "integers": MultiDiscreteEncoder,
    "vector": VectorEncoder,
}
"""By the name in a policy file. A space is read by the first encoder that can read it."""
OPTIONS = ("normalize", "impute", "brightest", "hidden")
"""What an entry of a spec says besides the space that it reads."""

__all__ = [
    "CELL_VALUES",
    "ENCODERS",
    "EntryEncoder",
    "as_tensors",
    "make_entry",
    "observation_spec",
    "same_observation",
]


def observation_spec(
    space: spaces.Dict,
    normalize: bool = True,
    normalize_reward: bool = False,
    normalize_cells: bool = False,
    impute_cells: bool = False,
) -> dict[str, dict[str, Any]]:
    """The spec of an observation space. The previous action is marked as `hidden` if the environment hides it.

    normalize: normalise floats by their running mean and standard deviation, except the previous action and reward;
    normalize_reward: the previous reward, too; normalize_cells: the contents of MiniGrid's cells, too; impute_cells:
    read contents of cells that training never showed as the usual ones (`CellsEncoder`). Raises ValueError, one line,
    for a space that no policy can read.
    """
    spec = {key: _entry(key, sub, normalize) for key, sub in space.items()}
    if normalize_reward and PREVIOUS_REWARD in spec:
        spec[PREVIOUS_REWARD]["normalize"] = True
    for entry in spec.values():
        if entry["kind"] == "cells":
            options = {"normalize": normalize_cells, "impute": impute_cells}
            entry.update({name: True for name, value in options.items() if value})
    return spec


def _entry(key: str, space: spaces.Space, normalize: bool) -> dict[str, Any]:
    for kind, encoder in ENCODERS.items():
        entry = encoder.spec_of(space)
        if entry is not None:
            is_float = isinstance(space, spaces.Box) and space.dtype.kind == "f"
            if (is_float and not normalize) or key in (PREVIOUS_ACTION, PREVIOUS_REWARD):
                entry.pop("normalize", None)
            if getattr(space, "is_hidden", False):
                entry["hidden"] = True
            return {"kind": kind, **entry}
    raise ValueError(
        f"observation {key!r}: expected a Box, Discrete, MultiDiscrete, MultiBinary or Text of moderate size, "
        f"got {space}"
    )


def same_observation(entry: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two entries of a spec read the same space. They may differ in how numbers are scaled, and earlier
    policy files do not say that the previous action is hidden."""

    def space_of(entry: Mapping[str, Any]) -> str:
        return json.dumps({name: value for name, value in entry.items() if name not in OPTIONS}, sort_keys=True)

    return space_of(entry) == space_of(other)


def make_entry(entry: Mapping[str, Any]) -> EntryEncoder:
    """The encoder of an entry of a spec. Raises ValueError for an unknown kind."""
    if entry["kind"] not in ENCODERS:
        raise ValueError(f"encoder: expected one of {', '.join(ENCODERS)}, got {entry['kind']!r}")
    return ENCODERS[entry["kind"]](entry)


def as_tensors(observation: Mapping[str, Any], device: torch.device | str) -> dict[str, Tensor]:
    """The arrays or tensors of an observation as tensors on `device`. uint8 stays uint8."""
    return {key: torch.as_tensor(value, device=device) for key, value in observation.items()}
