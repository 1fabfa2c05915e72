"""Interquartile mean and probability of improvement, with stratified bootstrap intervals.

The method is that of Agarwal et al., "Deep reinforcement learning at the edge of the statistical precipice" (NeurIPS
2021, arXiv 2108.13264). Their package rliable computes the same, but depends on arch, scipy and seaborn. Its
`metrics.aggregate_iqm` "Computes the interquartile mean across runs and tasks", an "IQM (25% trimmed mean) of scores".
That is `scipy.stats.trim_mean(scores, proportiontocut=0.25, axis=None)`. Its stratified bootstrap resamples the runs of
each task with replacement. The intervals are percentile intervals of 95%. Of three runs none is trimmed, here and in
rliable, so that the interval is that of their mean.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

CUT = 0.25
"""Share of the scores that is trimmed at each end."""
RESAMPLES = 5_000
"""With so many, the ends of an interval vary by about 1% of its width from one seed to another."""


def iqm(scores: np.ndarray) -> np.ndarray:
    """Interquartile mean over the last axis: [..., N] -> [...]. int(N / 4) values are trimmed at each end, as in
    scipy.stats.trim_mean(scores, 0.25)."""
    sorted_scores = np.sort(scores, -1)
    count = sorted_scores.shape[-1]
    cut = int(CUT * count)
    return sorted_scores[..., cut : count - cut].mean(-1)


def iqm_interval(strata: Sequence[Sequence[float]], seed: int = 0) -> tuple[float, float, float]:
    """(interquartile mean of all scores, low, high). Low and high are the ends of the 95% percentile interval. For it,
    the runs of each stratum are resampled with replacement. A stratum has a task's scores [N_m]. seed: of the
    resampling. Raises ValueError for a stratum without a run."""
    score_arrays = _as_arrays(strata)
    resamples = _resample(score_arrays, np.random.default_rng(seed))
    low, high = _interval(iqm(np.concatenate(resamples, -1)))
    return float(iqm(np.concatenate(score_arrays))), low, high


def probability_of_improvement(
    scores_x: Sequence[Sequence[float]], scores_y: Sequence[Sequence[float]], seed: int = 0
) -> tuple[float, float, float]:
    """(P, low, high): the probability that a run of algorithm X beats one of algorithm Y on a random task (Agarwal et
    al., section 4.3).

    For a task it is the share of all pairs of runs in which X scores higher, where a tie counts half (the Mann-Whitney
    statistic). P is the mean over tasks. The interval is as in `iqm_interval`, with the runs of both algorithms
    resampled. scores_x, scores_y: scores [N_m] and [K_m] of the same tasks in the same order. Raises ValueError for a
    task without a run, and for lists of different lengths.
    """
    if len(scores_x) != len(scores_y):
        raise ValueError(f"strata: expected the same number of tasks, got {len(scores_x)} and {len(scores_y)}")
    generator = np.random.default_rng(seed)
    arrays_x = _as_arrays(scores_x)
    arrays_y = _as_arrays(scores_y)
    resamples = zip(_resample(arrays_x, generator), _resample(arrays_y, generator), strict=True)
    low, high = _interval(np.mean([_win_share(x, y) for x, y in resamples], 0))
    return float(np.mean([_win_share(x, y) for x, y in zip(arrays_x, arrays_y, strict=True)])), low, high


def _win_share(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Share of pairs in which x is higher, where a tie counts half: [..., N], [..., K] -> [...]."""
    difference = np.sign(x[..., :, None] - y[..., None, :])
    return (difference.mean((-2, -1)) + 1) / 2


def _as_arrays(strata: Sequence[Sequence[float]]) -> list[np.ndarray]:
    """The scores of each task as an array [N_m]. Raises ValueError unless there is a task and each has a score."""
    score_arrays = [np.asarray(scores, float) for scores in strata]
    if not score_arrays or any(scores.ndim != 1 or not len(scores) for scores in score_arrays):
        raise ValueError(f"strata: expected at least one, each a list of at least one score, got {strata}")
    return score_arrays


def _resample(score_arrays: Sequence[np.ndarray], generator: np.random.Generator) -> list[np.ndarray]:
    """The scores of each task [N_m], resampled with replacement: [RESAMPLES,N_m] each."""
    return [scores[generator.integers(len(scores), size=(RESAMPLES, len(scores)))] for scores in score_arrays]


def _interval(statistics: np.ndarray) -> tuple[float, float]:
    """The 95% percentile interval of a statistic's resamples [RESAMPLES]."""
    low, high = np.percentile(statistics, [2.5, 97.5])
    return float(low), float(high)
