"""Decides whether an image is a grid of MiniGrid's cells: by the environment and its wrappers, never by shape alone."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from expire_span_rl.envs.errors import EnvError, expect_choice, warn_once
from expire_span_rl.spaces import CELL_BOUNDS, Cells

ENCODERS = ("auto", "cells", "plain")
IMAGE = "image"
_KEEP_CELLS = {
    "ReseedWrapper", "ActionBonus", "PositionBonus", "ImgObsWrapper", "FullyObsWrapper", "DictObservationSpaceWrapper",
    "ViewSizeWrapper", "DirectionObsWrapper", "StochasticActionWrapper", "NoDeath",
}  # fmt: skip
"""The wrappers of `minigrid.wrappers` whose image, if they have one, is in MiniGrid's encoding."""


def cells_space(env: gym.Env, encoder: str = "auto") -> dict[str, spaces.Space]:
    """{"image": Cells} if the image of `env` holds cells, else {}. `spaces.Flattener` takes it as `replaced`.

    encoder: "auto", "cells" if the user says that an unknown environment has cells, or "plain": it has none.
    Raises EnvError for an encoder that does not fit the observation."""
    expect_choice("encoder", encoder, ENCODERS)
    if encoder == "cells":
        return forced_cells(env.observation_space)
    if encoder == "plain":
        return {}
    image = image_space(env.observation_space)
    return {IMAGE: Cells(*image.shape[:2])} if image is not None and _has_cells(env) else {}


def forced_cells(space: spaces.Space) -> dict[str, spaces.Space]:
    """{"image": Cells} for an observation space whose user says that its image holds cells. Raises EnvError if it
    cannot."""
    image = image_space(space)
    if image is None:
        raise EnvError(f"encoder: 'cells' needs an entry 'image' of uint8 [columns, lines, 3], got {space}")
    return {IMAGE: Cells(*image.shape[:2])}


def fits_cells(observation: Any) -> bool:
    """Whether all values of an observation's image are objects, colours and states that MiniGrid knows."""
    image = np.asarray(observation[IMAGE] if isinstance(observation, Mapping) else observation)
    return image.ndim > 0 and bool((image <= np.array(CELL_BOUNDS)).all())


def image_space(space: spaces.Space) -> spaces.Box | None:
    """The space of the entry "image" if it may hold cells."""
    part = space.spaces.get(IMAGE) if isinstance(space, spaces.Dict) else space
    if not isinstance(part, spaces.Box):
        return None
    return part if part.dtype == np.uint8 and len(part.shape) == 3 and part.shape[2] == 3 else None


def minigrid_class(env: gym.Env) -> type | None:
    """`MiniGridEnv` if `env` is one in any wrappers, else None."""
    minigrid = sys.modules.get("minigrid.minigrid_env")  # whoever made such an environment has imported it
    return minigrid.MiniGridEnv if minigrid is not None and isinstance(env.unwrapped, minigrid.MiniGridEnv) else None


def _has_cells(env: gym.Env) -> bool:
    """Whether `env` is a MiniGridEnv, none of its wrappers may have changed the encoding, and its objects are among
    those that cells can hold."""
    if minigrid_class(env) is None:
        return False
    if excess := _excess(env):
        warn_once(f"{type(env.unwrapped).__name__}: {excess}; its image is read as encoder 'plain' does, not as cells")
        return False
    while isinstance(env, gym.Wrapper):
        if not _keeps_cells(env):
            return False
        env = env.env
    return True


def _excess(env: gym.Env) -> str:
    """Which numbers of objects, colours or states are registered that cells cannot hold; "" if there are none. Only
    environments of other packages than MiniGrid may use them."""
    if type(env.unwrapped).__module__.split(".")[0] == "minigrid":
        return ""
    constants = sys.modules["minigrid.core.constants"]
    tables = (constants.OBJECT_TO_IDX, constants.COLOR_TO_IDX, constants.STATE_TO_IDX)
    for kind, table, largest in zip(("object", "colour", "state"), tables, CELL_BOUNDS, strict=True):
        if too_large := {name: number for name, number in table.items() if number > largest}:
            name, number = next(iter(too_large.items()))
            return f"MiniGrid's {kind} {name!r} has number {number}, cells hold up to {largest}"
    return ""


def _keeps_cells(wrapper: gym.Wrapper) -> bool:
    """Whether a wrapper leaves the encoding of the image as it is."""
    kind = type(wrapper)
    if kind.__module__ == "minigrid.wrappers":
        return kind.__name__ in _KEEP_CELLS
    image = image_space(wrapper.observation_space)
    if image is None or image != image_space(wrapper.env.observation_space):
        return False
    return not isinstance(wrapper, gym.ObservationWrapper) or _passes_image_on(wrapper)


def _passes_image_on(wrapper: gym.ObservationWrapper) -> bool:
    """Whether an unknown wrapper leaves the image of an observation as it is. Tested on one random observation."""
    try:
        sample = wrapper.env.observation_space.sample()
        image = np.array(sample[IMAGE] if isinstance(sample, Mapping) else sample)
        result = wrapper.observation(sample)
        return bool(np.array_equal(image, result[IMAGE] if isinstance(result, Mapping) else result))
    except Exception:  # noqa: BLE001, the wrapper needs more of its environment than a sample, so it cannot be tested
        return False
