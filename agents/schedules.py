"""Settings that change linearly over a training, and how they go on when a resumed training gets other settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Schedules:
    """Values that go linearly from a start to an end: from step `begun`, 0 unless they began anew, to the training's
    last."""

    def __init__(self, starts: Mapping[str, float], ends: Mapping[str, float]):
        """starts, ends: values by the setting's name; `learning_rate` is among them."""
        self.starts, self.ends = dict(starts), dict(ends)
        self.learning_rate = starts["learning_rate"]  # as it is set, whatever the schedule began anew with
        self.begun = 0

    def progress(self, timesteps: int, total: int) -> float:
        """The fraction of the schedules that is over after so many of `total` steps."""
        return (timesteps - self.begun) / max(total - self.begun, 1)

    def values(self, progress: float) -> dict[str, float]:
        """Every value at `progress`, by name."""
        return {name: between(start, self.ends[name], progress) for name, start in self.starts.items()}

    def state(self, total: int) -> dict[str, Any]:
        """JSON-able; total: the training's steps."""
        return {"begun": self.begun, "starts": self.starts, "total": total, "learning_rate": self.learning_rate}

    def load_state(self, state: Mapping[str, Any], timesteps: int, last: int, total: int) -> str:
        """Goes on from `state` after `timesteps` steps, the last update at step `last`. If the total or the learning
        rate has changed, the schedules begin anew there, from the values that they had, the learning rate from a
        changed one: a sentence that says so, else an empty one."""
        longer, other_rate = state["total"] != total, state["learning_rate"] != self.learning_rate
        if timesteps == 0:  # nothing has been learned with the old ones
            return ""
        self.begun, self.starts = state["begun"], {name: state["starts"][name] for name in self.starts}
        if not (longer or other_rate) or total <= timesteps:
            return ""
        # The last update's, since those of now may have reached an end at which nothing is learned.
        starts = self.values(self.progress(last if longer else timesteps, state["total"]))
        if other_rate:
            starts["learning_rate"] = self.learning_rate
        self.starts, self.begun = starts, timesteps
        spans = [f"{_WORDS[name]} goes from {start:.3g} to {self.ends[name]:.3g}" for name, start in starts.items()]
        hint = "" if other_rate else " (--learning-rate sets another)"
        return f"{total - timesteps:,} steps remain, over which {' and '.join(spans)}{hint}"


_WORDS = {"learning_rate": "the learning rate", "ent_coef": "the entropy bonus"}


def between(start: float, end: float, progress: float) -> float:
    """Linear interpolation; before 0 and after 1 the ends."""
    return start + (end - start) * min(max(progress, 0.0), 1.0)
