"""Learn first, forget afterwards: the controller of the pressure on spans.

Success on the hard episodes is the constraint, live memories are the cost. The controller gives one number per update,
the pressure in [-1, 1]: above 0 the memory kind's loss makes memories shorter, below 0 longer, and how far from 0 it is
says how fast the kind's own parameters learn (`agents.learner`).
docs/forgetting.md explains it with a plot.
"""

from __future__ import annotations

import math
from typing import Any

from expire_span_rl.agents.settings import ForgettingConfig
from expire_span_rl.checks import number_or_none

AVERAGED = 50  # blocks over which the loss is averaged
BETWEEN = 100  # blocks after which it is compared with what it was
FALLEN = 0.9  # fraction of the first loss below which something was learned
DRIFT = 1e-5  # by which the best loss rises per block, so that what cannot be reached again is given up


class LossConstraint:
    """Supervised learning without success: the moving average of the bits per answer, against its moving best.

    The task counts as learned when the average has come below `FALLEN` of the first one and fell by less than
    `loss_tolerance` in the last `BETWEEN` blocks. The constraint is that it stays within that fraction of its best.
    """

    def __init__(self, tolerance: float):
        self.tolerance = tolerance
        self.blocks = 0
        self.bits: float | None = None  # the average now,
        self.first: float | None = None  # over the first `AVERAGED` blocks,
        self.earlier: float | None = None  # at the last comparison,
        self.best: float | None = None  # and the least of all
        self.learned = False

    def observe(self, bits: float) -> None:
        """Takes in the mean bits per answer of a block."""
        self.blocks += 1
        before = bits if self.bits is None else self.bits
        self.bits = before + (bits - before) / min(self.blocks, AVERAGED)
        if self.blocks < AVERAGED:
            return
        if self.first is None or self.earlier is None or self.best is None:
            self.first = self.earlier = self.best = self.bits
        self.best = min(self.best * (1 + DRIFT), self.bits)
        if self.blocks % BETWEEN == 0:
            slow = self.bits > (1 - self.tolerance) * self.earlier
            self.learned |= slow and self.bits < FALLEN * self.first
            self.earlier = self.bits

    @property
    def limit(self) -> float:
        """The bits that the average must not exceed."""
        return math.inf if self.best is None else self.best * (1 + self.tolerance)

    @property
    def violation(self) -> float:
        """By how much it does, as a fraction of what is tolerated; at most 0 where the constraint holds."""
        if self.bits is None or self.best is None:
            return 0.0
        return (self.bits / max(self.best, 1e-12) - 1 - self.tolerance) / self.tolerance

    def state_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return dict(self.__dict__)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises TypeError, one line, for what is no number."""
        for name in self.__dict__:
            value = state[name]
            setattr(self, name, bool(value) if name == "learned" else number_or_none(name, value))


class ForgettingController:
    """Pressure from success on hard episodes and live memories; or with `loss_tolerance` from the loss
    (`LossConstraint`), which the learner tells by `observe_bits`.

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
        self.loss = LossConstraint(config.loss_tolerance) if config.loss_tolerance else None

    def observe_bits(self, bits: float | None) -> None:
        """Takes in the bits per answer of a block; None where nothing was asked."""
        if self.loss is not None and bits is not None:
            self.loss.observe(bits)

    def target(self, is_success: bool) -> float:
        """The score that must hold: success, the return, or minus the bits per answer."""
        if self.loss is not None:
            return -self.loss.limit
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
        if self.loss is not None:
            return self._from_loss(self.loss, live)
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

    def _from_loss(self, loss: LossConstraint, live: float | None) -> float:
        """The pressure where the loss is the constraint."""
        config = self.config
        self.learned |= loss.learned and config.forgetting
        if not self.learned:
            self.pressure = 0.0
        elif loss.violation > 0:
            self.pressure = -min(1.0, loss.violation)
        elif live is not None and live <= config.memory_budget:
            self.pressure = 0.0
        else:
            self.pressure = min(1.0, max(self.pressure, 0.0) + config.pressure_rise)
        return self.pressure

    def holds(self, score: float, episodes: int, is_success: bool) -> bool:
        """Does the constraint hold? Without success, where the target is relative, not before the return has risen."""
        if self.loss is not None:
            return self.learned and self.loss.violation <= 0
        if not is_success and not self.learned:
            return False
        return episodes >= self.config.min_hard_episodes and score >= self.target(is_success)

    def state_dict(self) -> dict[str, Any]:
        """JSON-able."""
        state = {name: getattr(self, name) for name in ("pressure", "learned", "first", "best")}
        return state if self.loss is None else {**state, "loss": self.loss.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises TypeError, one line, for a score that is no number."""
        self.pressure, self.learned = state["pressure"], state["learned"]
        self.first, self.best = (number_or_none(name, state[name]) for name in ("first", "best"))
        if self.loss is not None:
            self.loss.load_state_dict(state["loss"])
