"""Interquartile mean and probability of improvement, with stratified bootstrap intervals. rliable computes the same,
but depends on arch, scipy and seaborn.

The method is that of Agarwal et al., "Deep reinforcement learning at the edge of the statistical precipice" (NeurIPS
2021, arXiv 2108.13264). rliable's `metrics.aggregate_iqm`: "Computes the interquartile mean across runs and tasks",
"IQM (25% trimmed mean) of scores", which is `scipy.stats.trim_mean(scores, proportiontocut=0.25, axis=None)`. Its
stratified bootstrap draws the runs of each task again, with replacement. The intervals are percentiles, 95% wide. With
three runs nothing is trimmed, in rliable as here, so the interval is that of a mean of three.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

CUT = 0.25  # share of the runs that is trimmed at either end
RESAMPLES = 5_000  # between seeds, the ends then differ by about a hundredth of the interval


def iqm(scores: np.ndarray) -> np.ndarray:
    """Interquartile mean over the last axis: [..., N] -> [...]. int(N / 4) values are trimmed at either end, as in
    scipy.stats.trim_mean(scores, 0.25)."""
    sorted_scores = np.sort(scores, -1)
    count = sorted_scores.shape[-1]
    cut = int(CUT * count)
    return sorted_scores[..., cut : count - cut].mean(-1)


def iqm_interval(strata: Sequence[Sequence[float]], seed: int = 0) -> tuple[float, float, float]:
    """(interquartile mean of all scores, low, high). Low and high are the 95% percentile interval when the runs of each
    stratum, a task's scores [N_m], are drawn again with replacement. Raises ValueError for a stratum without a run."""
    tasks = _as_arrays(strata)
    low, high = _interval(iqm(np.concatenate(_resample(tasks, np.random.default_rng(seed)), -1)))
    return float(iqm(np.concatenate(tasks))), low, high


def probability_of_improvement(
    scores_x: Sequence[Sequence[float]], scores_y: Sequence[Sequence[float]], seed: int = 0
) -> tuple[float, float, float]:
    """(P, low, high): the probability that a run of algorithm X beats one of algorithm Y on a random task (Agarwal et
    al., section 4.3).

    For a task it is the share of all pairs of runs in which X scores higher, where a tie counts half (the Mann-Whitney
    statistic). P is the mean over tasks. The interval is as in `iqm_interval`; the runs of both are drawn again.
    scores_x, scores_y: scores [N_m] and [K_m] of the same tasks in the same order. Raises ValueError for a task without
    a run, or lists of different lengths.
    """
    if len(scores_x) != len(scores_y):
        raise ValueError(f"strata: expected the same number of tasks, got {len(scores_x)} and {len(scores_y)}")
    generator = np.random.default_rng(seed)
    tasks_x = _as_arrays(scores_x)
    tasks_y = _as_arrays(scores_y)
    resamples = zip(_resample(tasks_x, generator), _resample(tasks_y, generator), strict=True)
    low, high = _interval(np.mean([_wins(x, y) for x, y in resamples], 0))
    return float(np.mean([_wins(x, y) for x, y in zip(tasks_x, tasks_y, strict=True)])), low, high


def _wins(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Share of pairs in which x is higher, where a tie counts half: [..., N], [..., K] -> [...]."""
    difference = np.sign(x[..., :, None] - y[..., None, :])
    return (difference.mean((-2, -1)) + 1) / 2


def _as_arrays(strata: Sequence[Sequence[float]]) -> list[np.ndarray]:
    tasks = [np.asarray(runs, float) for runs in strata]
    if not tasks or any(runs.ndim != 1 or not len(runs) for runs in tasks):
        raise ValueError(f"strata: expected at least one, each a list of at least one score, got {strata}")
    return tasks


def _resample(tasks: Sequence[np.ndarray], generator: np.random.Generator) -> list[np.ndarray]:
    """The runs of each task [N_m], drawn again with replacement: [RESAMPLES,N_m] each."""
    return [runs[generator.integers(len(runs), size=(RESAMPLES, len(runs)))] for runs in tasks]


def _interval(statistics: np.ndarray) -> tuple[float, float]:
    """The 95% percentile interval of a statistic's resamples [RESAMPLES]."""
    low, high = np.percentile(statistics, [2.5, 97.5])
    return float(low), float(high)
