"""Which actions are allowed, as environments say it: in the observation, in the info, or by a method.

B environments, N numbers of an action. A mask is int8 [spaces.mask_size]: for Discrete one entry per action; for
MultiDiscrete and MultiBinary the values of each number one after the other, as sb3-contrib has it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces

from expire_span_rl.spaces import ACTION_MASK, Mask, SpaceError, action_size, mask_size

METHOD = "action_masks"
"""The method that sb3-contrib asks an environment for."""
IN_OBSERVATION, IN_INFO, BY_METHOD = "observation", "info", "method"


class ActionMasks:
    """Reads the masks of an action space. Raises SpaceError for a Box, whose actions cannot be masked."""

    def __init__(self, space: spaces.Space):
        self._action_space = space
        size = mask_size(space)
        if size == 0:
            raise SpaceError(f"action mask: expected an action space of whole numbers, got a mask for {space}")
        self.space = Mask(size)
        sizes = _sizes(space)
        self._starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])  # [N]: where the values of each number begin
        self._ones = np.ones(size, np.int8)

    def __call__(self, given: Any, over: bool = False) -> np.ndarray:
        """A mask as an environment gives it -> int8 [size]; new. Raises SpaceError if it is none, or allows no action.

        over: the episode has ended, where no mask and one that allows nothing are as good as one that allows all."""
        if given is None:
            if over:
                return self._ones.copy()
            raise SpaceError(f"{ACTION_MASK}: expected one after every step, got none")
        if isinstance(given, (tuple, list)):
            given = np.concatenate([np.ravel(part) for part in given]) if given else np.zeros(0)
        mask = np.asarray(given).ravel()
        if mask.shape != self._ones.shape or mask.dtype.kind not in "biuf":
            raise SpaceError(
                f"{ACTION_MASK}: expected {len(self._ones)} numbers, got {np.asarray(given).dtype}{list(np.shape(given))}"
            )
        allowed = (mask != 0).astype(np.int8)
        if (allowed != mask).any():
            raise SpaceError(f"{ACTION_MASK}: expected zeros and ones, got {mask[allowed != mask][0]}")
        counts = np.add.reduceat(allowed, self._starts, dtype=np.int64)
        if not counts.all():
            if over:
                return self._ones.copy()
            of = "" if len(counts) == 1 else f" for number {int(np.flatnonzero(counts == 0)[0])} of the action"
            raise SpaceError(f"{ACTION_MASK}: expected at least one action that is allowed{of}, got none")
        return allowed

    def allowed_action(self, mask: np.ndarray) -> Any:
        """The first action that a mask allows, as the environment takes it."""
        parts = np.split(mask, self._starts[1:])
        first = np.array([int(part.argmax()) for part in parts], np.int64)  # [N]
        space = self._action_space
        if isinstance(space, spaces.Discrete):
            return np.int64(first[0] + space.start)
        start = space.start if isinstance(space, spaces.MultiDiscrete) else 0
        return (first.reshape(space.shape) + start).astype(space.dtype)


def _sizes(space: spaces.Space) -> list[int]:
    """How many values each number of an action has."""
    if isinstance(space, spaces.Discrete):
        return [int(space.n)]
    if isinstance(space, spaces.MultiDiscrete):
        return space.nvec.ravel().tolist()
    return [2] * action_size(space)


def without_mask(space: spaces.Space) -> tuple[spaces.Space, bool]:
    """(an observation space without the key "action_mask", whether it had one)."""
    if not isinstance(space, spaces.Dict) or ACTION_MASK not in space.spaces:
        return space, False
    return spaces.Dict({key: part for key, part in space.items() if key != ACTION_MASK}), True
