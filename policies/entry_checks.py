"""What `predict` is given, read as arrays and checked: values of an observation's entries, masks, starts and rewards.

Every error is a ValueError of one line. `predict` is called in control loops, so that a check takes microseconds.
B environments, N numbers of an action, A entries of a mask.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from expire_span_rl.policies.encoders import ENCODERS

LARGEST_REWARD = float(np.finfo(np.float32).max)


class EntryCheck:
    """Reads values of one entry of an observation. Its bounds are derived from the spec once."""

    def __init__(self, name: str, entry: Mapping[str, Any]):
        self.name = name
        self.shape = tuple(entry.get("shape", ()))
        self.bounds = ENCODERS[entry["kind"]].bounds_of(entry)
        self._takes_every_byte = False
        if self.bounds is not None:
            low, high = self.bounds
            self._takes_every_byte = bool(np.all(low <= 0) and np.all(high >= 255))

    def __call__(self, value: Any) -> np.ndarray:
        """The value of the entry, with or without a batch axis, as an array. Raises ValueError."""
        array = np.asarray(value) if not isinstance(value, Tensor) else value.cpu().numpy()
        shape = self.shape
        if any(stride < 0 for stride in array.strides):  # such as a picture turned round, which PyTorch does not take
            array = array.copy()
        if not shape and array.ndim == 2 and array.shape[1] == 1:  # Stable-Baselines3 has no spaces of a bare number
            array = array[:, 0]
        own_shape = array.shape[array.ndim - len(shape) :]
        if array.dtype.kind not in "biuf" or array.ndim - len(shape) not in (0, 1) or own_shape != shape:
            got = f"an array of shape {array.shape}" if array.dtype.kind in "biuf" else type(value).__name__
            expected = f"an array of shape {shape}" if shape else "a number"
            raise ValueError(f"observation {self.name!r}: expected {expected}, or a batch of them, got {got}")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            bad = array[~np.isfinite(array)].flat[0]
            raise ValueError(f"observation {self.name!r}: expected finite numbers, got {bad}")
        if self.bounds is not None and not (self._takes_every_byte and array.dtype == np.uint8):
            self._check_whole(array, *self.bounds)
        return array

    def _check_whole(self, array: np.ndarray, low: Any, high: Any) -> None:
        """Raises ValueError for numbers that are not whole or not between the bounds."""
        if array.dtype.kind == "f" and (array != np.floor(array)).any():
            bad = array[array != np.floor(array)].flat[0]
            raise ValueError(f"observation {self.name!r}: expected whole numbers, got {bad}")
        if not ((array < low).any() or (array > high).any()):
            return
        is_outside = (array < low) | (array > high)
        first, last = (np.broadcast_to(bound, array.shape)[is_outside][0] for bound in (low, high))
        bad = array[is_outside].flat[0]
        raise ValueError(f"observation {self.name!r}: expected a number from {first} to {last}, got {bad}")


def check_masks(masks: np.ndarray, sizes: Sequence[int]) -> None:
    """Raises ValueError for masks [B,A] that allow no value of a number of the action. sizes: how many values each
    number has."""
    starts = np.cumsum([0, *sizes[:-1]])
    has_choice = np.logical_or.reduceat(masks, starts, axis=-1)  # [B,N]
    if has_choice.all():
        return
    b, i = np.argwhere(~has_choice)[0]
    number = f" for number {i} of the action" if len(sizes) > 1 else ""
    env = f" in environment {b}" if len(masks) > 1 else ""
    raise ValueError(f"action_masks: expected at least one allowed action{number}{env}, got none")


def read_starts(episode_start: Any, batch: int) -> np.ndarray:
    """bool [B] of what `predict` is given. Raises ValueError."""
    starts = np.atleast_1d(_numbers(episode_start))
    if starts.shape != (batch,) or starts.dtype.kind not in "biuf":
        raise ValueError(
            f"episode_start: expected {_values(batch, 'truth value')}, got {_shown(episode_start, starts)}"
        )
    return starts.astype(bool)


def read_rewards(reward: Any, batch: int) -> np.ndarray:
    """float32 [B] of what `predict` is given, a number for all environments or one for each. Raises ValueError."""
    rewards = _numbers(reward)
    if rewards.shape not in ((), (batch,)) or rewards.dtype.kind not in "biuf":
        raise ValueError(f"reward: expected a number or {_values(batch, 'number')}, got {_shown(reward, rewards)}")
    if not (abs(rewards) <= LARGEST_REWARD).all():  # nor is NaN
        bad = rewards[~(abs(rewards) <= LARGEST_REWARD)].flat[0]
        raise ValueError(f"reward: expected finite numbers of float32, got {bad}")
    return np.broadcast_to(rewards.astype(np.float32), (batch,))


def _numbers(value: Any) -> np.ndarray:
    """A value as an array; one of objects for what is none, such as lists of unlike lengths."""
    if isinstance(value, Tensor):
        return value.cpu().numpy()
    try:
        return np.asarray(value)
    except ValueError:
        return np.asarray(None)


def _values(batch: int, name: str) -> str:
    return f"{batch} {name}{'s' if batch > 1 else ''}, one for each environment"


def _shown(value: Any, array: np.ndarray) -> str:
    return f"an array of shape {array.shape}" if array.dtype.kind in "biuf" else type(value).__name__
