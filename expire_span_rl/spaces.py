"""Observations and actions of any environment as flat entries of arrays, which is what policies read.

An observation of any nesting of Dict and Tuple becomes a dict of arrays by path, such as "cards/colour" or "0/1". A
space that is neither is one entry: "image" if it is a uint8 Box of rank 3, else "observation". Text becomes numbers of
words. What a policy reads beside the observation: the previous action, the previous reward, and which actions are
allowed.

B environments, N numbers of an action.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces

PREVIOUS_ACTION = "previous_action"
PREVIOUS_REWARD = "previous_reward"
ACTION_MASK = "action_mask"
ADDED = (PREVIOUS_ACTION, PREVIOUS_REWARD, ACTION_MASK)
"""Entries that are not part of the environment's own observation."""
EPISODE_LOST = "\0episode_lost"  # no environment's own entry has such a name
"""The entry of an episode's last info that is true if the episode ended because its process died. Such an episode is
truncated, and counts nowhere."""
LARGEST_BOUND = 1e30
"""Bounds of a Box beyond it, such as the largest float32, count as none: scaled by them, numbers overflow or are all
alike."""
MOST_WORDS = 48
"""Words of a text that are read; the rest is not read."""
CELL_BOUNDS = (10, 5, 3)
"""The largest object, colour and state of a cell in MiniGrid's encoding."""


class SpaceError(ValueError):
    """A space that is not supported, or an observation or action outside its space. One line that names the part."""


class Cells(spaces.Box):
    """MiniGrid's cells: uint8 [columns, lines, 3] of objects, colours and states."""

    encoder: ClassVar[str] = "cells"

    def __init__(self, columns: int, lines: int):
        high = np.broadcast_to(np.array(CELL_BOUNDS, np.uint8), (columns, lines, 3))
        super().__init__(np.zeros_like(high), high, dtype=np.uint8)


class Words(spaces.Box):
    """A text as numbers of its words: int64 [length] below 2^32; 0 behind its end."""

    encoder: ClassVar[str] = "words"

    def __init__(self, length: int):
        super().__init__(0, 2**32, (length,), np.int64)


class Mask(spaces.Box):
    """Which actions are allowed: int8 [size], 1 for those that are. In the order of `policies.actions`."""

    encoder: ClassVar[str] = "mask"

    def __init__(self, size: int):
        super().__init__(0, 1, (size,), np.int8)


@functools.lru_cache(4096)
def word_numbers(text: str, length: int) -> np.ndarray:
    """Text -> int64 [length]: a number from 1 to 2^32 for each word or sign, capitals aside, and zeros behind. Two
    words have the same number with a chance of one in 2^32. The array is shared: do not write to it."""
    words = re.findall(r"\w+|[^\w\s]", text.lower())[:length]
    numbers = np.zeros(length, np.int64)
    for i, word in enumerate(words):
        numbers[i] = 1 + int.from_bytes(hashlib.blake2b(word.encode(), digest_size=4).digest(), "little")
    numbers.flags.writeable = False
    return numbers


def leaves(
    space: spaces.Space, path: tuple[str | int, ...] = ()
) -> Iterator[tuple[tuple[str | int, ...], spaces.Space]]:
    """(path, space) of the parts of a space that are no Dict and no Tuple, in order."""
    if isinstance(space, spaces.Dict):
        for key, part in space.items():
            yield from leaves(part, (*path, key))
    elif isinstance(space, spaces.Tuple):
        for i, part in enumerate(space.spaces):
            yield from leaves(part, (*path, i))
    else:
        yield path, space


def entry_name(path: Sequence[str | int], space: spaces.Space) -> str:
    """The name of an entry: its path, or what it is where the observation has no parts."""
    if path:
        return "/".join(map(str, path))
    is_image = isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) == 3
    return "image" if is_image else "observation"


def is_text(space: spaces.Space) -> bool:
    """Whether its samples are strings: Text, or MiniGrid's MissionSpace."""
    return isinstance(space, spaces.Text) or hasattr(space, "mission_func")


def entry_space(space: spaces.Space) -> spaces.Space | str:
    """The space of an entry made of a part `space`; or, in a few words, why no policy can read it."""
    if isinstance(space, spaces.Text):
        return Words(min(MOST_WORDS, space.max_length))
    if is_text(space):
        return Words(MOST_WORDS)
    if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)):
        return space
    if isinstance(space, spaces.Box):
        if space.dtype.kind not in "iufb":
            return f"a Box of {space.dtype}"
        return space if np.prod(space.shape) > 0 else "an empty Box"
    return f"a {type(space).__name__}"


class Flattener:
    """Turns observations of a space into entries, and checks that they are in it.

    `space`: the Dict of the entries' spaces; `left_out`: by name, why a part is not among them; `outside`: the names of
    float entries that were seen outside their bounds, which is allowed.
    """

    def __init__(self, space: spaces.Space, replaced: Mapping[str, spaces.Space] | None = None):
        """replaced: by name, the space that an entry really has, where its part's space says less (MiniGrid's cells).
        Raises SpaceError if nothing can be read, or if two parts have one name."""
        self.left_out: dict[str, str] = {}
        self.outside: set[str] = set()
        self._paths: dict[str, tuple[str | int, ...]] = {}
        entries: dict[str, spaces.Space] = {}
        for path, part in leaves(space):
            name, entry = entry_name(path, part), entry_space(part)
            if isinstance(entry, str):
                self.left_out[name] = entry
                continue
            if name in (PREVIOUS_ACTION, PREVIOUS_REWARD):
                raise SpaceError(
                    f"observation space: expected no part called {name!r}, since the policy adds one of that name"
                )
            if name in entries:
                raise SpaceError(f"observation space: expected one part of the name {name!r}, got two")
            entries[name] = (replaced or {}).get(name, entry)
            self._paths[name] = path
        if not entries:
            parts = ", ".join(f"{name!r} ({why})" for name, why in self.left_out.items()) or "no parts"
            raise SpaceError(
                "observation space: expected Box, Discrete, MultiDiscrete, MultiBinary, Text, or Tuple or Dict of "
                f"them, got {parts}"
            )
        self.space = spaces.Dict(entries)
        self._entries = [_Entry(name, path, entries[name]) for name, path in self._paths.items()]

    def __call__(self, observation: Any) -> dict[str, np.ndarray]:
        """One observation -> its entries, new arrays. Raises SpaceError for a part that is missing or not in its
        space."""
        return {entry.name: entry.read(_part(observation, entry), self.outside) for entry in self._entries}

    def batched(self, observation: Any, num_envs: int) -> dict[str, np.ndarray]:
        """The same for observations of B environments, batch first."""
        parts = ((entry, _part(observation, entry)) for entry in self._entries)
        return {entry.name: entry.check(part, (num_envs,), self.outside) for entry, part in parts}


class _Entry:
    """Reads one part of observations. Its checks are derived from its space once."""

    _shape: tuple[int, ...]

    def __init__(self, name: str, path: tuple[str | int, ...], space: Any):
        self.name = name
        self.path = path
        self.space = space
        self._is_words = isinstance(space, Words)
        self._is_number = isinstance(space, spaces.Discrete)
        self._shape = space.shape or ()
        self._dtype = space.dtype
        self._is_float = self._dtype.kind == "f"
        low, high = (space.low, space.high) if self._is_float else _whole_bounds(space)
        # Bounds that the type itself keeps, or that are infinite, need no check.
        limits = np.finfo(self._dtype) if self._is_float else None if self._dtype.kind == "b" else np.iinfo(self._dtype)
        least, most = (-np.inf, np.inf) if self._is_float else (0, 1) if limits is None else (limits.min, limits.max)
        self._low = None if np.all(np.asarray(low) <= least) else low
        self._high = None if np.all(np.asarray(high) >= most) else high

    def read(self, value: Any, outside: set[str]) -> np.ndarray:
        """One part -> a new array [...]. Raises SpaceError."""
        if type(value) is np.ndarray and value.dtype == self._dtype and value.shape == self._shape:
            array = value.copy()  # some environments write to the same array again
            self._check_values(array, outside)
            return array
        if (
            self._is_number
            and (type(value) is int or type(value) is np.int64)
            and (self._low is None or self._low <= value)
            and (self._high is None or value <= self._high)
        ):
            return np.array(value, self._dtype)
        return self.check(value, (), outside)

    def check(self, value: Any, batch: tuple[int, ...], outside: set[str]) -> np.ndarray:
        """The part of one observation or of a batch -> a new array [*batch, ...]. Raises SpaceError."""
        if self._is_words:
            return self._words(value, batch)
        try:
            array = np.array(value)
        except ValueError:
            array = np.array(None)
        shape = (*batch, *self._shape)
        if array.shape != shape or not _fits(array.dtype, self._dtype):
            got = f"{array.dtype}{list(array.shape)}" if array.dtype != object else _shown(value)
            raise SpaceError(f"observation {self.name!r}: expected {self._dtype}{list(shape)}, got {got}")
        if self._is_float:
            with np.errstate(over="ignore"):  # what the type cannot hold becomes infinite, which is an error below
                array = array.astype(self._dtype, copy=False)
        self._check_values(array, outside)
        return array.astype(self._dtype, copy=False)

    def _words(self, value: Any, batch: tuple[int, ...]) -> np.ndarray:
        if not batch and isinstance(value, str):
            return word_numbers(value, self._shape[0]).copy()
        texts = value if batch else [value]
        is_batch = isinstance(texts, (tuple, list)) or (isinstance(texts, np.ndarray) and texts.ndim == 1)
        is_batch = is_batch and len(texts) == (*batch, 1)[0]
        if not (is_batch and all(isinstance(text, str) for text in texts)):
            raise SpaceError(f"observation {self.name!r}: expected text, got {_shown(value)}")
        return np.stack([word_numbers(text, self._shape[0]) for text in texts])

    def _check_values(self, array: np.ndarray, outside: set[str]) -> None:
        """Raises SpaceError for what is not finite, and for whole numbers outside the space."""
        if self._is_float and not np.isfinite(array).all():
            bad = array[~np.isfinite(array)].flat[0]
            raise SpaceError(f"observation {self.name!r}: expected finite numbers, got {bad}")
        if self._is_float and self.name in outside:
            return
        low, high = (self._low, self._high) if array.dtype == self._dtype else _all_bounds(self.space)
        wrong = (low is not None and (array < low).any()) or (high is not None and (array > high).any())
        if not wrong:
            return
        if self._is_float:
            outside.add(self.name)
        else:
            low, high = _all_bounds(self.space)
            bad = array[(array < low) | (array > high)].flat[0]
            raise SpaceError(
                f"observation {self.name!r}: expected numbers in its space {_brief(self.space)}, got {bad}"
            )


def _part(observation: Any, entry: _Entry) -> Any:
    try:
        for step in entry.path:
            observation = observation[step]
    except (KeyError, IndexError, TypeError):
        raise SpaceError(f"observation {entry.name!r}: expected such a part, the observation has none") from None
    return observation


def find_entry(observation: Any, name: str) -> Any:
    """The part of an observation whose entry has this name. Raises KeyError if there is none."""
    if isinstance(observation, Mapping):
        if name in observation:
            return observation[name]
        for key, part in observation.items():
            if name.startswith(f"{key}/"):
                return find_entry(part, name[len(f"{key}/") :])
    elif isinstance(observation, (tuple, list)):
        head, _, rest = name.partition("/")
        if head.isdigit() and int(head) < len(observation):
            part = observation[int(head)]
            return find_entry(part, rest) if rest else part
    raise KeyError(name)


def _fits(dtype: np.dtype, expected: np.dtype) -> bool:
    """Whether numbers of one type may stand for the other: whole numbers for whole or real ones, reals for reals."""
    return dtype.kind in {"f": "fiub", "b": "biu"}.get(expected.kind, "iub")


def _all_bounds(space: spaces.Space) -> tuple[Any, Any]:
    return (space.low, space.high) if isinstance(space, spaces.Box) else _whole_bounds(space)


def _whole_bounds(space: spaces.Space) -> tuple[Any, Any]:
    """The least and the largest whole number of a space, or arrays of them."""
    if isinstance(space, spaces.Discrete):
        return int(space.start), int(space.start + space.n - 1)
    if isinstance(space, spaces.MultiDiscrete):
        return space.start, space.start + space.nvec - 1
    if isinstance(space, spaces.Box):
        return space.low, space.high
    return 0, 1


def _brief(space: spaces.Space) -> str:
    return str(space) if len(str(space)) < 80 else type(space).__name__


def _shown(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) < 80 else f"{text[:77]}..."


# Actions


def action_size(space: spaces.Space) -> int:
    """N: how many numbers an action has. Raises SpaceError for a space that no policy can act in."""
    if isinstance(space, spaces.Discrete):
        return 1
    if isinstance(space, (spaces.MultiDiscrete, spaces.MultiBinary)) or (
        isinstance(space, spaces.Box) and space.dtype.kind == "f"
    ):
        size = int(np.prod(space.shape))
        if size:
            return size
    raise SpaceError(f"action space: expected Discrete, MultiDiscrete, MultiBinary or a Box of floats, got {space}")


def mask_size(space: spaces.Space) -> int:
    """How many entries the mask of an action space has: an action each, or for each number of an action its values one
    after the other; 0 for a Box, which has none."""
    if isinstance(space, spaces.Discrete):
        return int(space.n)
    if isinstance(space, spaces.MultiDiscrete):
        return int(space.nvec.sum())
    return 2 * action_size(space) if isinstance(space, spaces.MultiBinary) else 0


def previous_action_space(space: spaces.Space) -> spaces.Space:
    """The space of the entry "previous_action": an action counted from 0, or one more than the last for none; of a Box,
    its numbers with bounded ones scaled to [-1, 1], and zeros for none."""
    size = action_size(space)
    if isinstance(space, spaces.Discrete):
        return spaces.Discrete(int(space.n) + 1)
    if isinstance(space, spaces.MultiDiscrete):
        return spaces.MultiDiscrete(space.nvec.ravel() + 1)
    if isinstance(space, spaces.MultiBinary):
        return spaces.MultiDiscrete(np.full(size, 3))
    return spaces.Box(-np.inf, np.inf, (size,), np.float32)


def no_action(space: spaces.Space) -> np.ndarray:
    """The entry "previous_action" at the start of an episode: [] or [N]."""
    if isinstance(space, spaces.Discrete):
        return np.array(space.n, np.int64)
    if isinstance(space, spaces.MultiDiscrete):
        return space.nvec.ravel().astype(np.int64)
    size = action_size(space)
    return np.full(size, 2, np.int64) if isinstance(space, spaces.MultiBinary) else np.zeros(size, np.float32)


def previous_action(space: spaces.Space, action: Any) -> np.ndarray:
    """The entry "previous_action" after an action of the space, [] or [N]; or after actions of B environments, [B] or
    [B,N]."""
    action = np.asarray(action)
    if isinstance(space, spaces.Discrete):
        return action.astype(np.int64) - int(space.start)
    batch = action.shape[: action.ndim - len(space.shape or ())]
    if isinstance(space, spaces.MultiDiscrete):
        return (action - space.start).reshape(*batch, -1).astype(np.int64)
    if isinstance(space, spaces.Box):
        middle, half = box_scale(space.low, space.high)
        return ((action - middle) / half).reshape(*batch, -1).astype(np.float32)
    return action.reshape(*batch, -1).astype(np.int64)


def real_bounds(low: Any, high: Any, largest: float = LARGEST_BOUND) -> tuple[np.ndarray, np.ndarray]:
    """The bounds of each number of a Box in float64, infinite where they are beyond `largest`."""
    low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
    return np.where(low < -largest, -np.inf, low), np.where(high > largest, np.inf, high)


def box_scale(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(middle, half the width) of each number of a Box: (0, 1) where a side is unbounded."""
    low, high = real_bounds(low, high)
    bounded = np.isfinite(low) & np.isfinite(high) & (high > low)
    low, high = np.where(bounded, low, -1), np.where(bounded, high, 1)
    return (low + high) / 2, (high - low) / 2
