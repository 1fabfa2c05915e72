"""Settings that change linearly during a training. A resumed training with other settings begins new schedules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NOISELESS_PART = 10
"""The last part, one in so many, of the rollouts of a training, or of what it is continued by, has no training noise
(`LearningPolicy.draw`). It trains the policy as it will be used, and the log shows what that policy can do."""
_SETTING_NAMES = {
    "learning_rate": "the learning rate",
    "ent_coef": "the entropy bonus",
    "log_barrier_coef": "the log barrier",
    "novelty_coef": "the novelty bonus",
}


class Schedules:
    """Values that change linearly from a start to an end. They begin at `start_step`, which is 0 unless a resumed
    training began new schedules, and end at the training's last step."""

    def __init__(self, starts: Mapping[str, float], ends: Mapping[str, float]):
        """starts, ends: values by the setting's name. `learning_rate` must be among them."""
        self.starts = dict(starts)
        self.ends = dict(ends)
        self.learning_rate = starts["learning_rate"]
        """The setting. New schedules may begin with another value."""
        self.start_step = 0

    def progress(self, timesteps: int, total: int) -> float:
        """The fraction of the schedules that is over after `timesteps` of `total` steps."""
        return (timesteps - self.start_step) / max(total - self.start_step, 1)

    def values(self, progress: float) -> dict[str, float]:
        """Every value at `progress`, by name."""
        return {name: between(start, self.ends[name], progress) for name, start in self.starts.items()}

    def noisy_rollouts(self, begun: int, timesteps: int, total: int, rollout_size: int) -> float:
        """How many of the rollouts that are left have training noise (`noisy_rollouts`)."""
        return noisy_rollouts(begun, timesteps, total, rollout_size)

    def state(self, total: int) -> dict[str, Any]:
        """The schedules' state, JSON-able. total: steps of the training."""
        return {"begun": self.start_step, "starts": self.starts, "total": total, "learning_rate": self.learning_rate}

    def load_state(self, state: Mapping[str, Any], timesteps: int, last_update: int, total: int) -> str:
        """Continues from `state` after `timesteps` steps. last_update: the step of the last update; total: steps of the
        training.

        If the total or the learning rate has changed, new schedules begin. They start from the present values, and the
        learning rate from its new setting if that has changed. Returns a sentence that says so, else an empty text.
        """
        total_changed = state["total"] != total
        rate_changed = state["learning_rate"] != self.learning_rate
        if timesteps == 0:  # nothing has been learned with the old settings
            return ""
        self.start_step = state["begun"]
        self.starts = {name: state["starts"].get(name, start) for name, start in self.starts.items()}
        if not (total_changed or rate_changed) or total <= timesteps:
            return ""
        # With a new total, the last update's values: the present ones may have reached an end, at which nothing is
        # learned.
        starts = self.values(self.progress(last_update if total_changed else timesteps, state["total"]))
        if rate_changed:
            starts["learning_rate"] = self.learning_rate
        self.starts = starts
        self.start_step = timesteps
        ranges = [
            f"{_SETTING_NAMES[name]} goes from {start:.3g} to {self.ends[name]:.3g}"
            for name, start in starts.items()
            if start != self.ends[name]
        ]
        hint = "" if rate_changed else " (--learning-rate sets another)"
        changes = f", over which {', '.join(ranges)}{hint}" if ranges else ""
        return f"{total - timesteps:,} steps remain{changes}"


def whole_rollouts(steps: int, rollout_size: int) -> int:
    """The steps, rounded up to whole rollouts."""
    return -(-steps // rollout_size) * rollout_size


def noisy_rollouts(begun: int, timesteps: int, total: int, rollout_size: int) -> int:
    """How many of the rollouts that are left after `timesteps` of `total` steps have training noise: all but the last
    part of those from step `begun` on, and but the last one."""
    num_rollouts, num_left = (-(-(total - since) // rollout_size) for since in (begun, timesteps))
    return max(0, num_left - max(1, num_rollouts // NOISELESS_PART))


def between(start: float, end: float, progress: float) -> float:
    """Linear interpolation. The start before progress 0, and the end after 1."""
    return start + (end - start) * min(max(progress, 0.0), 1.0)
