"""What `predict` is given, read as arrays and checked: values of an observation's entries, masks, starts and rewards.

Every error is a ValueError of one line. `predict` is called in control loops, so that a check takes microseconds.
B environments, N numbers of an action, A entries of a mask.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from expire_span_rl.checks import shown
from expire_span_rl.policies.encoders import ENCODERS

LARGEST_REWARD = float(np.finfo(np.float32).max)
LONGEST_SHOWN = 60  # characters of a value in a message


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


def read_masks(masks: np.ndarray, sizes: Sequence[int], *, is_single: bool) -> np.ndarray:
    """Masks [B,A] of which each allows an action. sizes: how many values each number of the action has.

    In a batch, a mask of zeros alone is of an environment whose episode has ended, and which ignores the action: it
    counts as one that allows everything. Raises ValueError for any other mask that allows no value of a number, and
    for a single mask of zeros alone."""
    is_empty = ~np.any(masks, axis=-1, keepdims=True)[:, 0]  # [B]
    if is_empty.any() and not is_single:
        masks = np.where(is_empty[:, None], np.ones_like(masks), masks)
    starts = np.cumsum([0, *sizes[:-1]])
    has_choice = np.logical_or.reduceat(masks, starts, axis=-1)  # [B,N]
    if has_choice.all():
        return masks
    b, i = np.argwhere(~has_choice)[0]
    number = f" for number {i} of the action" if len(sizes) > 1 and not is_empty[b] else ""
    env = "" if is_single else f" in environment {b}"
    raise ValueError(f"action_masks: expected at least one allowed action{number}{env}, got none")


def read_starts(episode_start: Any, batch: int) -> np.ndarray:
    """bool [B] of what `predict` is given, a value for all environments or one for each. Raises ValueError."""
    starts = _numbers(episode_start)
    if starts.shape not in ((), (1,), (batch,)) or starts.dtype.kind not in "biuf":
        raise ValueError(f"episode_start: expected {_values('a truth value', batch)}, got {_shown(episode_start)}")
    return np.broadcast_to(starts, (batch,)).astype(bool)


def read_rewards(reward: Any, batch: int) -> np.ndarray:
    """float32 [B] of what `predict` is given, a number for all environments or one for each. Raises ValueError."""
    rewards = _numbers(reward)
    if rewards.shape not in ((), (1,), (batch,)) or rewards.dtype.kind not in "biuf":
        raise ValueError(f"reward: expected {_values('a number', batch)}, got {_shown(reward)}")
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


def _values(name: str, batch: int) -> str:
    return name if batch == 1 else f"{name}, or {batch}, one for each environment"


def _shown(value: Any) -> str:
    """What a message shows of a value: of arrays the shape alone, unless they have no numbers."""
    if isinstance(value, (np.ndarray, Tensor)) and _numbers(value).dtype.kind in "biuf":
        return f"an array of shape {tuple(value.shape)}"
    return shown(repr(value), LONGEST_SHOWN)
