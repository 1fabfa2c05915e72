"""The constraint on forgetting where neither success nor a return is known: the loss stays close to its best."""

from __future__ import annotations

import math
from typing import Any

from expire_span_rl.checks import number_or_none

AVERAGED_BLOCKS = 50
"""Number of blocks over which the moving average of the loss goes."""
COMPARED_BLOCKS = 100
"""Number of blocks between two comparisons of the average with its earlier value."""
LEARNED_FRACTION = 0.9
"""The task counts as learned only when the average is below this fraction of the first average."""
SOLVED_FRACTION = 0.01
"""The task also counts as learned below this fraction of the first average, and lower averages count as this one. The
bits of perfect answers fall without end, by a factor in each so many blocks."""
BEST_DRIFT = 1e-5
"""Relative increase of the best loss per block. With it, a best value that cannot be reached again is forgotten in
time."""


class LossConstraint:
    """A constraint for supervised learning without success: the moving average of the bits per answer stays close to
    its best.

    The task counts as learned when the average is below `LEARNED_FRACTION` of the first one and has fallen by less than
    `loss_tolerance` in the last `COMPARED_BLOCKS` blocks, or is below `SOLVED_FRACTION` of the first one. The
    constraint is that the average stays within `loss_tolerance` of its best.
    """

    def __init__(self, tolerance: float):
        self.tolerance = tolerance
        self.blocks = 0  # blocks so far
        self.bits: float | None = None  # the moving average
        self.first: float | None = None  # the average over the first `AVERAGED_BLOCKS` blocks
        self.earlier: float | None = None  # the average at the last comparison
        self.best: float | None = None  # the smallest average
        self.learned = False

    def observe(self, bits: float) -> None:
        """Updates the average and the constraint. bits: mean bits per answer of a block."""
        self.blocks += 1
        previous = bits if self.bits is None else self.bits
        self.bits = previous + (bits - previous) / min(self.blocks, AVERAGED_BLOCKS)
        if self.blocks < AVERAGED_BLOCKS:
            return
        if self.first is None or self.earlier is None or self.best is None:
            self.first = self.earlier = self.best = self.bits
        self.best = min(self.best * (1 + BEST_DRIFT), self.bits)
        if self.blocks % COMPARED_BLOCKS == 0:
            is_slow = self.bits > (1 - self.tolerance) * self.earlier
            self.learned |= is_slow and self.bits < LEARNED_FRACTION * self.first
            self.learned |= self.bits < SOLVED_FRACTION * self.first
            self.earlier = self.bits

    @property
    def gain(self) -> float:
        """The bits by which the best average is below the first one. 0 before there are both."""
        return 0.0 if self.first is None or self.best is None else max(self.first - self.best, 0.0)

    @property
    def limit(self) -> float:
        """The bits that the average must not exceed."""
        return math.inf if self.best is None else self._best_that_counts * (1 + self.tolerance)

    @property
    def _best_that_counts(self) -> float:
        """The best average, at least SOLVED_FRACTION of the first one."""
        return max(self.best or 0.0, SOLVED_FRACTION * (self.first or 0.0), 1e-12)

    @property
    def violation(self) -> float:
        """How far the average exceeds its limit, as a fraction of the tolerance. At most 0 while the constraint
        holds."""
        if self.bits is None or self.best is None:
            return 0.0
        return (self.bits / self._best_that_counts - 1 - self.tolerance) / self.tolerance

    def state_dict(self) -> dict[str, Any]:
        """The constraint's state, JSON-able."""
        return dict(self.__dict__)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from `state_dict`. Raises TypeError, one line, for a value that is no number."""
        for name in self.__dict__:
            value = state[name]
            setattr(self, name, bool(value) if name == "learned" else number_or_none(name, value))
