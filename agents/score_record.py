"""Scores of hard episodes, and what a training has reached of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple

from expire_span_rl.checks import is_number, number_or_none, shown

NOISE = 2.5
"""A mean return may be off by so many standard errors. It is lower than another one only if it is by more."""
SUSTAINED_UPDATES = 10
"""Without success, the pressure is judged by the best mean score of so many updates. A policy is better after some
updates than after others, and few would be as good as the best one of hundreds was."""


class Score(NamedTuple):
    """The score of the latest hard episodes, which the constraint is on."""

    value: float
    """Mean success or return, or minus the bits per answer."""
    episodes: int
    """Number of episodes."""
    is_success: bool
    """Whether it is a success rate."""
    error: float = 0.0
    """Standard error of a mean return. 0 where the target says what a score must be."""
    has_difficulty: bool = True
    """Whether the environment says how hard an episode is. Else all count as hard."""

    @property
    def counted(self) -> str:
        """What is counted, for a message."""
        return "hard episodes" if self.has_difficulty else "episodes"

    @property
    def lowest(self) -> float:
        """The score at its lowest that is plausible."""
        return self.value - NOISE * self.error

    @property
    def highest(self) -> float:
        """The score at its highest that is plausible."""
        return self.value + NOISE * self.error


class ScoreRecord:
    """The first score, the best one, and the best mean of some in a row."""

    def __init__(self) -> None:
        self.first: float | None = None
        """The first score at its highest."""
        self.best: float | None = None
        """The best score. Where many are noisy, the best one is high by chance, so each counts at its lowest."""
        self.sustained: float | None = None
        """The best mean of `latest` at its lowest."""
        self.latest: deque[tuple[float, float, float]] = deque(maxlen=SUSTAINED_UPDATES)
        """The latest scores: value, error, and which part of their episodes was new."""
        self.is_success: bool | None = None
        """Whether they are success rates, not returns."""

    @property
    def gain(self) -> float:
        """By how much the best score certainly exceeds the first. 0 before there are both."""
        if self.first is None or self.best is None:
            return 0.0
        return max(self.best - self.first, 0.0)

    @property
    def sustained_gain(self) -> float:
        """By how much the best mean does, at most `gain`. `gain` where no mean is known, as in older checkpoints."""
        if self.first is None or self.sustained is None:
            return self.gain
        return min(max(self.sustained - self.first, 0.0), self.gain)

    def begins_with(self, score: Score) -> bool:
        """Whether no earlier score can be compared with this one: it is the first, or the first success rate."""
        return self.first is None or self.best is None or self.is_success not in (None, score.is_success)

    def observe(self, score: Score, new_episodes: int) -> None:
        """Adds the score of an update. new_episodes: how many of its episodes ended in the update."""
        if self.begins_with(score):
            self.go_back_to(None)
        self.is_success = score.is_success
        self.first = score.highest if self.first is None else self.first
        self.best = score.lowest if self.best is None else max(self.best, score.lowest)
        self.latest.append((score.value, score.error, min(new_episodes / score.episodes, 1.0)))
        mean, error, new = (sum(column) / len(self.latest) for column in zip(*self.latest, strict=True))
        lowest = mean - NOISE * error / max(new * len(self.latest), 1.0) ** 0.5
        self.sustained = lowest if self.sustained is None else max(self.sustained, lowest)

    def go_back_to(self, best: float | None) -> None:
        """Forgets what was reached beyond an earlier best score. None: there was none, and the next is the first."""
        self.latest.clear()
        self.best = best
        if best is None:
            self.first = self.sustained = None
        elif self.sustained is not None:
            self.sustained = min(self.sustained, best)

    def state_dict(self) -> dict[str, Any]:
        """The state, JSON-able, under the names that it has in a controller's."""
        return {
            "first": self.first,
            "best": self.best,
            "sustained": self.sustained,
            "latest": [list(score) for score in self.latest],
            "is_success": self.is_success,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from `state_dict`. Raises TypeError, one line, for an entry of another type."""
        self.first = number_or_none("first", state["first"])
        self.best = number_or_none("best", state["best"])
        self.sustained = number_or_none("sustained", state.get("sustained"))  # `get`: not in older checkpoints
        self.latest.clear()
        for score in state.get("latest", ()):
            if not (isinstance(score, list) and len(score) == 3 and all(map(is_number, score))):
                raise TypeError(f"latest: expected three numbers of each score, got {shown(repr(score), 60)}")
            self.latest.append((score[0], score[1], score[2]))
        self.is_success = state.get("is_success")
        if not (self.is_success is None or isinstance(self.is_success, bool)):
            raise TypeError(f"is_success: expected true, false or nothing, got {shown(repr(self.is_success), 60)}")
