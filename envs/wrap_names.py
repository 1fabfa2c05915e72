"""Parses the wraps of `envs.core_wrappers` from texts, as in `--wrap stretch=10 --wrap episodes=4`."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from expire_span_rl.checks import quoted, shown
from expire_span_rl.envs.core import EnvCore
from expire_span_rl.envs.core_wrappers import CoreWrapper, Episodes, Hide, Occlude, Stretch
from expire_span_rl.envs.errors import NAME, EnvError, unknown_name

MOST_STEPS = 10**6
MOST_EPISODES = 1000
MAX_LENGTH_FACTOR = MOST_STEPS + 1  # by which all wraps together may lengthen an episode
MOST_WRAPS = 8

BuildWrap = Callable[[EnvCore], CoreWrapper]


@dataclass(frozen=True)
class _WrapKind:
    """One line of the table of wraps."""

    expected: str
    """The values that the wrap takes, and an example, for messages."""
    parse: Callable[[str], BuildWrap | None]
    """Reads the value after the equals sign; None if it is invalid."""
    length_factor: Callable[[str], int] = lambda value: 1
    """The factor by which a valid value lengthens an episode."""


def _parse_whole_number(text: str, low: int, high: int) -> int | None:
    return int(text) if re.fullmatch(r"\d{1,9}", text) and low <= int(text) <= high else None


def _parse_stretch(text: str) -> BuildWrap | None:
    steps = _parse_whole_number(text, 0, MOST_STEPS)
    return None if steps is None else lambda core: Stretch(core, steps)


def _parse_episodes(text: str) -> BuildWrap | None:
    count = _parse_whole_number(text, 1, MOST_EPISODES)
    return None if count is None else lambda core: Episodes(core, count, fresh=False)


def _parse_fresh_episodes(text: str) -> BuildWrap | None:
    count = _parse_whole_number(text, 1, MOST_EPISODES)
    return None if count is None else lambda core: Episodes(core, count, fresh=True)


def _parse_occlude(text: str) -> BuildWrap | None:
    intervals = []
    for interval in text.split(","):
        match = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?(?:/(\d{1,9}))?", interval)
        if match is None:
            return None
        start = int(match[1])
        end = start if match[2] is None else int(match[2])
        period = None if match[3] is None else int(match[3])
        if end < start or (period is not None and end >= period):
            return None
        intervals.append((start, end, period))
    return lambda core: Occlude(core, intervals)


def _parse_hide(text: str) -> BuildWrap | None:
    if not re.fullmatch(r"\d{1,9}(,\d{1,9})*", text):
        return None
    indices = sorted({int(index) for index in text.split(",")})
    return lambda core: Hide(core, indices)


WRAPS: dict[str, _WrapKind] = {
    "stretch": _WrapKind(
        f"a whole number of steps from 0 to {MOST_STEPS}, as in stretch=10",
        _parse_stretch,
        lambda value: int(value) + 1,
    ),
    "episodes": _WrapKind(f"a whole number from 1 to {MOST_EPISODES}, as in episodes=4", _parse_episodes, int),
    "fresh_episodes": _WrapKind(
        f"a whole number from 1 to {MOST_EPISODES}, as in fresh_episodes=4", _parse_fresh_episodes, int
    ),
    "occlude": _WrapKind(
        "steps as in occlude=5-9 or, of every 20, occlude=5-9/20, several with commas", _parse_occlude
    ),
    "hide": _WrapKind("indices of numbers in vectors, from 0 on, as in hide=1,3", _parse_hide),
}


def parse_wraps(texts: Sequence[str]) -> list[BuildWrap]:
    """Parses `["stretch=10", "episodes=4"]` to functions from a core to the wrapped core, in the same order.

    `["none"]` gives no wraps. Raises EnvError, one line, for an unknown wrap, an invalid value, too many wraps, or
    wraps that together make episodes too long."""
    if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
        raise EnvError(f"wraps: expected a list such as ['stretch=10', 'episodes=4'], got {shown(repr(texts), NAME)}")
    if len(texts) > MOST_WRAPS:
        raise EnvError(f"wraps: expected at most {MOST_WRAPS}, got {len(texts)}")
    builders = []
    length_factor = 1
    for text in [] if list(texts) == ["none"] else texts:
        name, equals, value = text.partition("=")
        if text == "none":
            raise EnvError(f"wraps: expected none alone, got it with {len(texts) - 1} more")
        if name not in WRAPS:
            raise unknown_name("wrap", name, WRAPS)
        builder = WRAPS[name].parse(value) if equals else None
        if builder is None:
            raise EnvError(f"wrap {name}: expected {WRAPS[name].expected}, got {quoted(text, NAME)}")
        builders.append(builder)
        length_factor *= WRAPS[name].length_factor(value)
    if length_factor > MAX_LENGTH_FACTOR:
        raise EnvError(
            f"wraps: expected episodes of at most {MAX_LENGTH_FACTOR:,} times their length, got {length_factor:,} times"
        )
    return builders
