"""Action masks: an environment gives them in the observation, in the info, or by a method.

B environments, N numbers of an action. A mask is int8 [spaces.mask_size]. For Discrete it has one entry per action. For
MultiDiscrete and MultiBinary it has the values of each number, one number after the other, as in sb3-contrib.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

from expire_span_rl.spaces import ACTION_MASK, Mask, SpaceError, action_size, mask_size

METHOD = "action_masks"
"""The environment's method that gives a mask; the name is sb3-contrib's."""

IN_OBSERVATION = "observation"
IN_INFO = "info"
BY_METHOD = "method"


class ActionMasks:
    """Reads the masks of an action space. Raises SpaceError for a Box, whose actions cannot be masked."""

    def __init__(self, space: spaces.Space):
        self._action_space = space
        size = mask_size(space)
        if size == 0:
            raise SpaceError(f"action mask: expected an action space of whole numbers, got a mask for {space}")
        self.space = Mask(size)
        value_counts = _value_counts(space)
        self._starts = np.concatenate([[0], np.cumsum(value_counts)[:-1]])  # [N]: the first entry of each number
        self._ones = np.ones(size, np.int8)

    def __call__(self, mask: Any, is_final: bool = False) -> np.ndarray:
        """Reads an environment's mask: a new array, int8 [size]. Raises SpaceError if it is invalid or allows nothing.

        is_final: the episode has ended and no action follows. A missing mask, or one that allows nothing, then counts
        as one that allows everything."""
        if mask is None:
            if is_final:
                return self._ones.copy()
            raise SpaceError(f"{ACTION_MASK}: expected one after every step, got none")
        if isinstance(mask, (tuple, list)):
            mask = np.concatenate([np.ravel(part) for part in mask]) if mask else np.zeros(0)
        shape = np.shape(mask)
        mask = np.asarray(mask).ravel()
        if mask.shape != self._ones.shape or mask.dtype.kind not in "biuf":
            raise SpaceError(f"{ACTION_MASK}: expected {len(self._ones)} numbers, got {mask.dtype}{list(shape)}")
        allowed = (mask != 0).astype(np.int8)
        if (allowed != mask).any():
            raise SpaceError(f"{ACTION_MASK}: expected zeros and ones, got {mask[allowed != mask][0]}")
        counts = np.add.reduceat(allowed, self._starts, dtype=np.int64)
        if not counts.all():
            if is_final:
                return self._ones.copy()
            number = "" if len(counts) == 1 else f" for number {int(np.flatnonzero(counts == 0)[0])} of the action"
            raise SpaceError(f"{ACTION_MASK}: expected at least one action that is allowed{number}, got none")
        return allowed

    def allowed_action(self, mask: np.ndarray) -> Any:
        """The first action that a mask allows, in the environment's own numbering."""
        parts = np.split(mask, self._starts[1:])
        action = np.array([int(part.argmax()) for part in parts], np.int64)  # [N]
        space = self._action_space
        if isinstance(space, spaces.Discrete):
            return np.int64(action[0] + space.start)
        start = space.start if isinstance(space, spaces.MultiDiscrete) else 0
        return (action.reshape(space.shape) + start).astype(space.dtype)


def _value_counts(space: spaces.Space) -> list[int]:
    """The number of values of each number of an action: [N]."""
    if isinstance(space, spaces.Discrete):
        return [int(space.n)]
    if isinstance(space, spaces.MultiDiscrete):
        return space.nvec.ravel().tolist()
    return [2] * action_size(space)


def late_mask_problem(info: Mapping[str, Any], action_space: spaces.Space) -> str | None:
    """What is wrong with an environment that gave no mask at its reset, by the info of a step; None if nothing is. A
    mask in it would come too late for the first action. In that of a Box the entry means something else."""
    if ACTION_MASK in info and mask_size(action_space):
        return f"info: expected {ACTION_MASK!r} in that of a reset too, got it only in that of a step"
    return None


def remove_mask(space: spaces.Space) -> tuple[spaces.Space, bool]:
    """(the observation space without the key "action_mask", whether it had that key)."""
    if not isinstance(space, spaces.Dict) or ACTION_MASK not in space.spaces:
        return space, False
    return spaces.Dict({key: part for key, part in space.items() if key != ACTION_MASK}), True
