"""What a policy makes of an observation. N observations, V view size, D model width.

An observation is a dict (see `envs.wrappers`). Its spec, JSON-able, travels with the policy:
`{"image": {"kind": "cells", "shape": [3, 3, 3]}, "previous_action": {"kind": "discrete", "n": 5}, ...}`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from gymnasium import spaces
from minigrid.core.constants import COLOR_TO_IDX, OBJECT_TO_IDX
from torch import Tensor, nn

CELL_VALUES = (len(OBJECT_TO_IDX), len(COLOR_TO_IDX), 4)
"""How many objects, colours and states a MiniGrid cell can have (agent directions are states 0..3)."""
LARGEST_VIEW = 31  # a larger image of three channels is a picture, not MiniGrid's encoding


def observation_spec(space: spaces.Dict) -> dict[str, dict[str, Any]]:
    """The spec of an observation space. Raises ValueError, one line, for a space that no policy can read."""
    return {key: _entry(key, sub) for key, sub in space.items()}


def _entry(key: str, space: spaces.Space) -> dict[str, Any]:
    if isinstance(space, spaces.Discrete) and space.start == 0:
        return {"kind": "discrete", "n": int(space.n)}
    if isinstance(space, spaces.Box):
        shape = list(space.shape)
        if space.dtype == np.uint8 and len(shape) == 3 and shape[2] == 3 and max(shape) <= LARGEST_VIEW:
            return {"kind": "cells", "shape": shape}
        if space.dtype.kind == "f" and len(shape) <= 1:
            return {"kind": "vector", "shape": shape}
    raise ValueError(
        f"observation {key!r}: expected MiniGrid's image (uint8 [V,V,3], V <= {LARGEST_VIEW}), Discrete, "
        f"or a float Box of rank 0 or 1, got {space}"
    )


class Encoder(nn.Module):
    """Observation -> [N,D]. Image cells are embedded by place, object, colour and state, Discrete entries by number;
    the sum of all embeddings (a one-hot vector times a matrix, the faster way on a CPU) passes one more layer."""

    def __init__(self, spec: Mapping[str, Mapping[str, Any]], width: int, action_gain: float = 1.0):
        """action_gain: as `EncoderConfig` has it."""
        super().__init__()
        self.spec = {key: dict(entry) for key, entry in spec.items()}
        self.project = nn.Linear(sum(entry_size(entry) for entry in self.spec.values()), width)
        self.mix = nn.Linear(width, width)
        for linear in (self.project, self.mix):  # PyTorch's default biases would drown what tells observations apart
            nn.init.orthogonal_(linear.weight, 2**0.5)
            nn.init.zeros_(linear.bias)
        parts = self.project.weight.detach().split([entry_size(entry) for entry in self.spec.values()], 1)
        for key, weight in zip(self.spec, parts, strict=True):
            if key == "previous_action":
                weight.mul_(action_gain)

    def forward(self, observation: Mapping[str, Tensor]) -> Tensor:
        """observation: tensors [N, ...] -> [N,D]."""
        dtype = self.project.weight.dtype
        parts = [_encoded(entry, observation[key], dtype) for key, entry in self.spec.items()]
        return self.mix(F.relu(self.project(torch.cat(parts, -1))))


def entry_size(entry: Mapping[str, Any]) -> int:
    """How many numbers an entry of the spec becomes, one-hot."""
    if entry["kind"] == "cells":
        return entry["shape"][0] * entry["shape"][1] * sum(CELL_VALUES)
    if entry["kind"] == "discrete":
        return entry["n"]
    return int(np.prod(entry["shape"]))


def _encoded(entry: Mapping[str, Any], value: Tensor, dtype: torch.dtype) -> Tensor:
    """value: [N, ...] -> [N, features]."""
    value = value[:, None] if value.ndim == 1 else value.flatten(1)  # [N, columns]
    if entry["kind"] == "vector":
        return value.to(dtype)
    if entry["kind"] == "discrete":
        sizes, columns = (entry["n"],), value
    else:
        sizes, columns = CELL_VALUES * (entry["shape"][0] * entry["shape"][1]), value
    size = torch.tensor(sizes, device=value.device)
    hot = torch.minimum(columns.long(), size - 1) + (size.cumsum(0) - size)  # [N, columns]
    return torch.zeros(len(value), sum(sizes), dtype=dtype, device=value.device).scatter_(1, hot, 1)


def as_tensors(observation: Mapping[str, Any], device: torch.device | str) -> dict[str, Tensor]:
    """Arrays or tensors of an observation as tensors on `device`; uint8 stays uint8."""
    return {key: torch.as_tensor(value, device=device) for key, value in observation.items()}
