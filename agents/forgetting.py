"""Learn first, forget afterwards: the controller of the pressure on spans.

Success on the hard episodes is the constraint, live memories are the cost. The controller gives one number per update,
the pressure in [-1, 1]: above 0 the memory kind's loss makes memories shorter, below 0 longer, and how far from 0 it is
says how fast the kind's own parameters learn (`agents.learner`).
docs/forgetting.md explains it with a plot.
"""

from __future__ import annotations

from typing import Any

from expire_span_rl.agents.settings import ForgettingConfig
from expire_span_rl.checks import number_or_none


class ForgettingController:
    """Pressure from success on hard episodes and live memories.

    No pressure until the target was met once. Then it rises by a little at each update at which the target is met,
    falls in proportion to the violation below it (down to -1, which lengthens spans: the way back), and is 0 within the
    budget. Its clock is evidence: an update with few fresh hard episodes moves it little.
    """

    def __init__(self, config: ForgettingConfig):
        self.config = config
        self.pressure = 0.0
        self.learned = False
        self.first: float | None = None  # without success: the first and the best score, between which the target lies
        self.best: float | None = None

    def target(self, is_success: bool) -> float:
        """The score that must hold."""
        if is_success or self.first is None or self.best is None:
            return self.config.success_target
        return self.first + self.config.success_target * (self.best - self.first)

    def update(self, score: float, episodes: int, is_success: bool, live: float | None, fresh: int) -> float:
        """The pressure for the next update. score: mean over `episodes` hard episodes, `fresh` of which ended in this
        update; live: mean live memories per layer."""
        config = self.config
        if config.fixed_pressure and config.forgetting:
            self.pressure = config.fixed_pressure
            return self.pressure
        if not config.forgetting or episodes < config.min_hard_episodes:
            return self.pressure
        if self.first is None or self.best is None:
            self.first = self.best = score
        self.best = max(self.best, score)
        evidence = min(1.0, fresh / config.full_evidence)
        short = self.target(is_success) - score
        self.learned |= short <= 0 and (is_success or self.best > self.first)
        if not self.learned:
            self.pressure = 0.0
        elif short > 0:
            scale = config.success_slack if is_success else config.success_slack * max(self.best - self.first, 1e-8)
            self.pressure = -min(1.0, short / scale) * evidence
        elif live is not None and live <= config.memory_budget:
            self.pressure = 0.0
        else:
            self.pressure = min(1.0, max(self.pressure, 0.0) + config.pressure_rise * evidence)
        return self.pressure

    def holds(self, score: float, episodes: int, is_success: bool) -> bool:
        """Does the constraint hold? Without success, where the target is relative, not before the return has risen."""
        if not is_success and not self.learned:
            return False
        return episodes >= self.config.min_hard_episodes and score >= self.target(is_success)

    def state_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {name: getattr(self, name) for name in ("pressure", "learned", "first", "best")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises TypeError, one line, for a score that is no number."""
        self.pressure, self.learned = state["pressure"], state["learned"]
        self.first, self.best = (number_or_none(name, state[name]) for name in ("first", "best"))
