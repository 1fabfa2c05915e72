"""The settings with which each memory kind keeps to a budget of live memories per layer. A kind with slots needs a line
in SIZES."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from expire_span_rl.policies.memory.expire_span import ExpireSpanConfig

SMALLEST_BUDGET = 8
LARGEST_RAMP = 8  # steps: the default of the kinds with a ramp
COMPRESSION = 4  # Compressive's default rate
SPAN_SHARE = 0.7
"""Spans are pressed to this share of the budget: training counts live memories in its own episodes, of which many are
short. In corridors of 3 to 200 where nothing is forgotten it has some 51 where evaluation has 69; with 0.8 a budget of
64 was missed."""


def _spans(budget: int) -> dict[str, Any]:
    """The ramp, below which live memory cannot fall, takes at most a quarter."""
    return {"memory_budget": SPAN_SHARE * budget, "ramp": min(LARGEST_RAMP, budget // 4)}


def _expiring(budget: int) -> dict[str, Any]:
    """As it is usual, whatever an environment needs where there is no budget: what is kept beyond need would count, and
    what span dropout takes from some rollouts the other kinds may keep."""
    usual = {"use_margin": ExpireSpanConfig.use_margin, "span_dropout": ExpireSpanConfig.span_dropout}
    return {**_spans(budget), **usual}


def _window(budget: int) -> dict[str, Any]:
    """A query sees as many steps as the window has, and its own."""
    return {"window": budget - 1}


def _recent_and_compressed(budget: int) -> dict[str, Any]:
    """At its peak: the window, an incomplete block as old as a block can get, and the compressed ones, halves of the
    rest."""
    compressed = (budget - COMPRESSION) // 2
    return {
        "window": budget - COMPRESSION - compressed,
        "compression_rate": COMPRESSION,
        "compressed_window": compressed,
    }


SIZES: dict[str, Callable[[int], dict[str, Any]]] = {
    "expire_span": _expiring,
    "adaptive_span": _spans,
    "transformer_xl": _window,
    "compressive": _recent_and_compressed,
}
"""The settings with which a kind keeps to a budget. A kind that is not here has no size: one cell per seed."""

SIZED = {name for size in SIZES.values() for name in size(SMALLEST_BUDGET)}
"""The names of all these settings."""
