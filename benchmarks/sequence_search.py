"""The same small search for every memory kind of benchmarks.sequence: random choices of the learning rate and initial
attention, which all kinds share trial by trial, and of the kind's own spans.

The first trial has the settings' own values. All trials are on a seed that no reported run has.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

Options = Sequence[Mapping[str, Any]]

SEARCH_SEED = 1001
SHARED: Sequence[Options] = (
    ({"learning_rate": 1e-3}, {"learning_rate": 2e-3}, {"learning_rate": 5e-4}),
    ({"sharpness": 2.0}, {"sharpness": 1.0}, {"sharpness": 4.0}),
)
OWN: Mapping[str, Sequence[Options]] = {
    "expire_span": (({"use_lift": 8.0}, {"use_lift": 32.0}), ({"use_coef": 5.0}, {"use_coef": 100.0})),
    "adaptive_span": (
        ({"span_coef": 1.0}, {"span_coef": 0.1}, {"span_coef": 0.01}),
        ({"initial_span": 0.95}, {"initial_span": 0.5}),
    ),
    "compressive": (
        ({"compression_rate": 4, "compressed_window": 48}, {"compression_rate": 2, "compressed_window": 96}),
    ),
}
"""What a kind chooses beside the shared settings; Transformer-XL has nothing of its own but its window, which says how
much it holds."""


def trial_settings(kind: str, number: int) -> dict[str, Any]:
    """The settings of trial `number`, from 1 on, over those of the flags. The first has none. Of one number all kinds
    get the same shared ones."""
    if number == 1:
        return {}
    shared, own = random.Random(number), random.Random(f"{kind} {number}")
    settings: dict[str, Any] = {}
    for options in SHARED:
        settings |= shared.choice(options)
    for options in OWN.get(kind, ()):
        settings |= own.choice(options)
    return settings


def best_trial(trials: Sequence[Mapping[str, Any]], lower_is_better: bool) -> Mapping[str, Any]:
    """The trial with the best score in its last evaluation: accuracy, or bits where lower is better. Of equal ones the
    one with the fewest live memories, then the first."""

    def rank(trial: Mapping[str, Any]) -> tuple[float, float]:
        last = trial["evaluations"][-1]
        score = last["bits"] if lower_is_better else -last["accuracy"]
        return round(score, 3), sum(last["live_mean"])

    return min(trials, key=rank)
