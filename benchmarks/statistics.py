"""Interquartile mean with a stratified bootstrap interval: what rliable computes, without its dependencies (arch,
scipy, seaborn).

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
    tasks = [np.asarray(runs, float) for runs in strata]
    if not tasks or any(runs.ndim != 1 or not len(runs) for runs in tasks):
        raise ValueError(f"strata: expected at least one, each a list of at least one score, got {strata}")
    generator = np.random.default_rng(seed)
    drawn = [runs[generator.integers(len(runs), size=(RESAMPLES, len(runs)))] for runs in tasks]
    low, high = np.percentile(iqm(np.concatenate(drawn, -1)), [2.5, 97.5])
    return float(iqm(np.concatenate(tasks))), float(low), float(high)
