"""Interquartile mean and probability of improvement with stratified bootstrap intervals: what rliable computes, without
its dependencies (arch, scipy, seaborn).

The method is that of Agarwal et al., "Deep reinforcement learning at the edge of the statistical precipice" (NeurIPS
2021, arXiv 2108.13264). rliable's `metrics.aggregate_iqm`: "Computes the interquartile mean across runs and tasks",
"IQM (25% trimmed mean) of scores", which is `scipy.stats.trim_mean(scores, proportiontocut=0.25, axis=None)`. Its
stratified bootstrap draws the runs of each task again, with replacement; the intervals are percentiles, 95% wide. With
three runs nothing is trimmed, there as here, and an interval can only be that of a mean of three.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

CUT = 0.25  # of the runs, at either end
RESAMPLES = 5_000  # an end moves by about a hundredth of the interval from one seed to another


def iqm(scores: np.ndarray) -> np.ndarray:
    """Interquartile mean over the last axis: [..., N] -> [...]. int(N / 4) values go at either end, as in
    scipy.stats.trim_mean(scores, 0.25)."""
    ordered = np.sort(scores, -1)
    cut = int(CUT * ordered.shape[-1])
    return ordered[..., cut : ordered.shape[-1] - cut].mean(-1)


def iqm_interval(strata: Sequence[Sequence[float]], seed: int = 0) -> tuple[float, float, float]:
    """(interquartile mean of all scores, low, high): the 95% percentile interval when the runs of each stratum, a
    task's scores [N_m], are drawn again with replacement. Raises ValueError for a stratum without a run."""
    tasks = _as_arrays(strata)
    low, high = _interval(iqm(np.concatenate(_redrawn(tasks, np.random.default_rng(seed)), -1)))
    return float(iqm(np.concatenate(tasks))), low, high


def probability_of_improvement(
    ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]], seed: int = 0
) -> tuple[float, float, float]:
    """(P, low, high): how probable it is that a run of ours beats one of theirs on a task drawn at random (Agarwal et
    al., section 4.3). Per task that is the share of all pairs of runs in which ours scores higher, a tie counting half (the
    Mann-Whitney statistic); P is the mean over tasks. The interval is as in `iqm_interval`, the runs of both drawn
    again. ours, theirs: scores [N_m] and [K_m] of the same tasks in the same order. Raises ValueError for a task without a
    run, or lists of unlike length."""
    if len(ours) != len(theirs):
        raise ValueError(f"strata: expected as many of ours as of theirs, got {len(ours)} and {len(theirs)}")
    generator = np.random.default_rng(seed)
    mine, its = _as_arrays(ours), _as_arrays(theirs)
    drawn = zip(_redrawn(mine, generator), _redrawn(its, generator))
    low, high = _interval(np.mean([_wins(x, y) for x, y in drawn], 0))
    return float(np.mean([_wins(x, y) for x, y in zip(mine, its)])), low, high


def _wins(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Share of pairs in which ours is higher, a tie counting half: [..., N], [..., K] -> [...]."""
    difference = np.sign(ours[..., :, None] - theirs[..., None, :])
    return (difference.mean((-2, -1)) + 1) / 2


def _as_arrays(strata: Sequence[Sequence[float]]) -> list[np.ndarray]:
    tasks = [np.asarray(runs, float) for runs in strata]
    if not tasks or any(runs.ndim != 1 or not len(runs) for runs in tasks):
        raise ValueError(f"strata: expected at least one, each a list of at least one score, got {strata}")
    return tasks


def _redrawn(tasks: Sequence[np.ndarray], generator: np.random.Generator) -> list[np.ndarray]:
    """The runs of each task [N_m], drawn again with replacement: [RESAMPLES,N_m] each."""
    return [runs[generator.integers(len(runs), size=(RESAMPLES, len(runs)))] for runs in tasks]


def _interval(statistics: np.ndarray) -> tuple[float, float]:
    """The 95% percentile interval of a statistic's resamples [RESAMPLES]."""
    low, high = np.percentile(statistics, [2.5, 97.5])
    return float(low), float(high)
