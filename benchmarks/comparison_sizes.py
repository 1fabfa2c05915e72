"""The settings with which each memory kind keeps within a budget of live memories per layer. A kind with slots needs a
line in SIZES."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from expire_span_rl.policies.memory.expire_span import ExpireSpanConfig

MIN_BUDGET = 8
MAX_RAMP = 8  # steps, the default of the kinds with a ramp
COMPRESSION = 4  # Compressive's default rate
SPAN_SHARE = 0.7
"""The span penalty aims at this share of the budget, since training counts live memories in its own episodes, of which
many are short. In corridors of 3 to 200 tiles where nothing is forgotten, training has about 51 live memories and
evaluation 69. With a share of 0.8, a budget of 64 was missed."""


def _spans(budget: int) -> dict[str, Any]:
    """Live memories cannot fall below the ramp, so the ramp takes at most a quarter of the budget."""
    return {"memory_budget": SPAN_SHARE * budget, "ramp": min(MAX_RAMP, budget // 4)}


def _expire_span(budget: int) -> dict[str, Any]:
    """The defaults of the margin and of span dropout, not those that an environment sets for a training without a
    budget. Memories that the margin keeps beyond need would count. Span dropout would take memories away in some
    rollouts, which the other kinds keep."""
    defaults = {"use_margin": ExpireSpanConfig.use_margin, "span_dropout": ExpireSpanConfig.span_dropout}
    return {**_spans(budget), **defaults}


def _window(budget: int) -> dict[str, Any]:
    """A query sees the steps of its window and its own step."""
    return {"window": budget - 1}


def _compressive(budget: int) -> dict[str, Any]:
    """At its peak such a memory has its window, an incomplete block of the largest age, and the compressed memories.
    Window and compressed memories share what is left of the budget in halves."""
    compressed = (budget - COMPRESSION) // 2
    return {
        "window": budget - COMPRESSION - compressed,
        "compression_rate": COMPRESSION,
        "compressed_window": compressed,
    }


SIZES: dict[str, Callable[[int], dict[str, Any]]] = {
    "expire_span": _expire_span,
    "adaptive_span": _spans,
    "transformer_xl": _window,
    "compressive": _compressive,
}
"""The settings with which a kind keeps within a budget. A kind that is not listed has no size: one cell per seed."""

SIZE_SETTINGS = {name for size in SIZES.values() for name in size(MIN_BUDGET)}
"""The names of all these settings."""
