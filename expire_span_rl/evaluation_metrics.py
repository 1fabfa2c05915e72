"""What an evaluation reports of its episodes: means, rates with intervals, and the same by difficulty."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from expire_span_rl.agents.episodes import ACCURACY, quotients

BUCKETS = 4  # episodes are also reported by quarters of the largest difficulty


def buckets_of(
    episodes: Sequence[Mapping[str, Any]], stores: bool, ratios: Mapping[str, Any], by: str
) -> list[dict[str, Any]]:
    """Metrics of the episodes by quarters of the largest difficulty, without the quarters that have no episode. `low`
    and `high` are the smallest and the largest difficulty that occurred in a quarter."""
    largest = max(episode["difficulty"] for episode in episodes)
    buckets = []
    bounds = [-math.inf, *(largest * i / BUCKETS for i in range(1, BUCKETS + 1))]
    for low, high in itertools.pairwise(bounds):
        inside = [episode for episode in episodes if low < episode["difficulty"] <= high]
        if inside:
            difficulties = [episode["difficulty"] for episode in inside]
            occurred = {"by": by, "low": min(difficulties), "high": max(difficulties)}
            buckets.append({**occurred, **metrics_of(inside, stores, ratios)})
    return buckets


def metrics_of(episodes: Sequence[Mapping[str, Any]], stores: bool, ratios: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics of some episodes. success_rate: of those with a success that is not None; episodes_with_success: their
    number, only if it is neither 0 nor all; live_memories_at_end: mean over layers at the last step of an episode;
    held_at_end: by layer, those live at the last step, its own not counted, per step of the episode."""
    metrics: dict[str, Any] = {"episodes": len(episodes), "success_rate": None, "success_rate_ci95": None}
    successes = [episode["success"] for episode in episodes if episode["success"] is not None]
    if successes:
        metrics["success_rate"] = sum(successes) / len(successes)
        metrics["success_rate_ci95"] = list(wilson(sum(successes), len(successes)))
        if len(successes) < len(episodes):
            metrics["episodes_with_success"] = len(successes)
    metrics["mean_return"] = _mean(episodes, "return")
    metrics["mean_episode_length"] = _mean(episodes, "steps")
    metrics |= quotients([episode["ratio_parts"] for episode in episodes], ratios)
    if "asked" in episodes[0]:
        asked = sum(episode["asked"] for episode in episodes)
        metrics["bits"] = sum(episode["surprise"] for episode in episodes) / asked / math.log(2) if asked else None
    if stores:
        metrics["live_memories_per_episode"] = _mean(episodes, "live")
        metrics["live_memories_at_end"] = _mean(episodes, "live_last")
        metrics["held_at_end"] = np.mean([episode["held"] for episode in episodes], 0).tolist()
    return metrics


def _mean(episodes: Sequence[Mapping[str, Any]], name: str) -> float:
    return float(np.mean([episode[name] for episode in episodes]))


def fill_missing_success(results: Iterable[dict[str, Any]]) -> None:
    """Where an environment reports success for some policies only, the others' success rate becomes 0, in place. That
    of episodes in which nothing was asked (`ACCURACY` is None) stays None."""
    parts = [part for result in results for part in (result, *result["buckets"])]
    metrics = [part for part in parts if part.get(ACCURACY, 0.0) is not None]
    if any(part["success_rate"] is not None for part in metrics):
        for part in metrics:
            if part["success_rate"] is None:
                part |= {"success_rate": 0.0, "success_rate_ci95": list(wilson(0, part["episodes"]))}


def wilson(successes: float, trials: int, z: float = 1.96) -> tuple[float, float]:
    """The Wilson score interval (Wilson, 1927) of a proportion; 95% for z = 1.96. Of shares from 0 to 1 it is at least
    as wide as need be, since flags with the same mean vary most."""
    p = successes / trials
    centre = (p + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(p * (1 - p) / trials + z * z / (4 * trials * trials))
    # Where all or none succeeded, one end is exactly the rate itself, without rounding.
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == trials else centre + half)
