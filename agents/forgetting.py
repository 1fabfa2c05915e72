"""Learn first, forget afterwards: the controller of the pressure on spans.

Success on the hard episodes is the constraint, and live memories are the cost. The controller gives one number per
update, the pressure in [-1, 1]. Above 0 the memory kind's loss shortens memories, below 0 it lengthens them. The
pressure's size sets how fast the kind's own parameters learn (`agents.learner`). docs/forgetting.md explains it with a
plot.
"""

from __future__ import annotations

from typing import Any

from expire_span_rl.agents.settings import ForgettingConfig
from expire_span_rl.checks import number_or_none


class ForgettingController:
    """Computes the pressure from success on hard episodes and from live memories.

    There is no pressure until the target was met once. Afterwards:

    - At each update that meets the target, the pressure rises by a little.
    - Below the target it falls in proportion to the violation, down to -1. Spans then become longer again.
    - Within the memory budget it is 0.

    The controller counts hard episodes, not updates. An update with few new hard episodes moves the pressure little.
    """

    def __init__(self, config: ForgettingConfig):
        self.config = config
        self.pressure = 0.0
        self.learned = False
        self.first_score: float | None = None
        """The first score. Without success, the target lies between it and the best score."""
        self.best_score: float | None = None

    def target(self, is_success: bool) -> float:
        """The score that must be reached. is_success: scores are success rates, not returns."""
        if is_success or self.first_score is None or self.best_score is None:
            return self.config.success_target
        return self.first_score + self.config.success_target * (self.best_score - self.first_score)

    def update(self, score: float, episodes: int, is_success: bool, live: float | None, fresh: int) -> float:
        """Returns the pressure for the next update. score: mean over `episodes` hard episodes; live: mean live memories
        per layer, None for a memory without slots; fresh: hard episodes that ended in this update."""
        config = self.config
        if config.fixed_pressure and config.forgetting:
            self.pressure = config.fixed_pressure
            return self.pressure
        if not config.forgetting or episodes < config.min_hard_episodes:
            return self.pressure
        if self.first_score is None or self.best_score is None:
            self.first_score = score
            self.best_score = score
        self.best_score = max(self.best_score, score)
        gain = self.best_score - self.first_score
        evidence = min(1.0, fresh / config.full_evidence)
        shortfall = self.target(is_success) - score
        self.learned |= shortfall <= 0 and (is_success or gain > 0)
        if not self.learned:
            self.pressure = 0.0
        elif shortfall > 0:
            slack = config.success_slack if is_success else config.success_slack * max(gain, 1e-8)
            self.pressure = -min(1.0, shortfall / slack) * evidence
        elif live is not None and live <= config.memory_budget:
            self.pressure = 0.0
        else:
            self.pressure = min(1.0, max(self.pressure, 0.0) + config.pressure_rise * evidence)
        return self.pressure

    def holds(self, score: float, episodes: int, is_success: bool) -> bool:
        """Whether the constraint holds. Without success the target is relative, so that it does not hold before the
        return has risen."""
        if not is_success and not self.learned:
            return False
        return episodes >= self.config.min_hard_episodes and score >= self.target(is_success)

    def state_dict(self) -> dict[str, Any]:
        """The controller's state, JSON-able."""
        return {
            "pressure": self.pressure,
            "learned": self.learned,
            "first": self.first_score,
            "best": self.best_score,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from `state_dict`. Raises TypeError, one line, for a score that is no number."""
        self.pressure = state["pressure"]
        self.learned = state["learned"]
        self.first_score = number_or_none("first", state["first"])
        self.best_score = number_or_none("best", state["best"])
