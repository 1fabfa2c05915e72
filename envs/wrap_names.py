"""The wraps of `envs.core_wrappers` by name, as a command line gives them: `--wrap stretch=10 --wrap episodes=4`."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from expire_span_rl.checks import quoted, shown
from expire_span_rl.envs.core import EnvCore
from expire_span_rl.envs.core_wrappers import CoreWrapper, Episodes, Occlude, Stretch
from expire_span_rl.envs.errors import NAME, EnvError, unknown_name

MOST_STEPS = 10**6
MOST_EPISODES = 1000
MOST_TIMES = MOST_STEPS + 1  # as long an episode may become as it was
MOST_WRAPS = 8


@dataclass(frozen=True)
class _Kind:
    """One line of the table of wraps."""

    expected: str
    """What its value must be, and an example."""
    build: Callable[[str], Callable[[EnvCore], CoreWrapper] | None]
    """What a value asks for; None for a value it cannot read."""
    times: Callable[[str], int] = lambda value: 1
    """How many times as long a value that it can read makes an episode."""


def _whole(text: str, low: int, high: int) -> int | None:
    return int(text) if re.fullmatch(r"\d{1,9}", text) and low <= int(text) <= high else None


def _stretch(text: str) -> Callable[[EnvCore], CoreWrapper] | None:
    steps = _whole(text, 0, MOST_STEPS)
    return None if steps is None else lambda core: Stretch(core, steps)


def _episodes(fresh: bool) -> Callable[[str], Callable[[EnvCore], CoreWrapper] | None]:
    def build(text: str) -> Callable[[EnvCore], CoreWrapper] | None:
        count = _whole(text, 1, MOST_EPISODES)
        return None if count is None else lambda core: Episodes(core, count, fresh)

    return build


def _occlude(text: str) -> Callable[[EnvCore], CoreWrapper] | None:
    intervals = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?(?:/(\d{1,9}))?", part)
        if match is None:
            return None
        first = int(match[1])
        last = first if match[2] is None else int(match[2])
        period = None if match[3] is None else int(match[3])
        if last < first or (period is not None and last >= period):
            return None
        intervals.append((first, last, period))
    return lambda core: Occlude(core, intervals)


WRAPS: dict[str, _Kind] = {
    "stretch": _Kind(
        f"a whole number of steps from 0 to {MOST_STEPS}, as in stretch=10", _stretch, lambda value: int(value) + 1
    ),
    "episodes": _Kind(f"a whole number from 1 to {MOST_EPISODES}, as in episodes=4", _episodes(fresh=False), int),
    "fresh_episodes": _Kind(
        f"a whole number from 1 to {MOST_EPISODES}, as in fresh_episodes=4", _episodes(fresh=True), int
    ),
    "occlude": _Kind("steps as in occlude=5-9 or, of every 20, occlude=5-9/20, several with commas", _occlude),
}


def parse_wraps(texts: Sequence[str]) -> list[Callable[[EnvCore], CoreWrapper]]:
    """What `["stretch=10", "episodes=4"]` asks for: functions from a core to the wrapped one, in the order given.
    `["none"]` is no wraps. Raises EnvError, one line, for an unknown wrap, a value it cannot take, or too much of it
    together."""
    if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
        raise EnvError(f"wraps: expected a list such as ['stretch=10', 'episodes=4'], got {shown(repr(texts), NAME)}")
    if len(texts) > MOST_WRAPS:
        raise EnvError(f"wraps: expected at most {MOST_WRAPS}, got {len(texts)}")
    builders, times = [], 1
    for text in [] if list(texts) == ["none"] else texts:
        name, equals, value = text.partition("=")
        if name not in WRAPS:
            raise unknown_name("wrap", name, WRAPS)
        built = WRAPS[name].build(value) if equals else None
        if built is None:
            raise EnvError(f"wrap {name}: expected {WRAPS[name].expected}, got {quoted(text, NAME)}")
        builders.append(built)
        times *= WRAPS[name].times(value)
    if times > MOST_TIMES:
        raise EnvError(f"wraps: expected episodes of at most {MOST_TIMES:,} times their length, got {times:,} times")
    return builders
