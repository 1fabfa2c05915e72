"""Interquartile means and their intervals, against values by hand."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.statistics import iqm, iqm_interval, probability_of_improvement


@pytest.mark.parametrize(
    "scores, mean",
    [
        ([3.0], 3),
        ([1, 2, 6], 3),  # int(0.75) = 0: nothing is trimmed
        ([0, 1, 3, 100], 2),
        ([9, 1, 5, 3, 1000, 7, -50, 2], 4.25),  # 2, 3, 5, 7 stay
        ([0, 0, 1, 2, 3], 1),  # one of five at either end
    ],
)
def test_interquartile_mean_is_a_trimmed_mean(scores, mean):
    """Values by hand; scipy.stats.trim_mean(scores, 0.25) gives the same."""
    assert iqm(np.array(scores, float)) == pytest.approx(mean)


def test_the_interval_of_scores_that_agree_is_a_point():
    assert iqm_interval([[0.5, 0.5, 0.5]]) == (0.5, 0.5, 0.5)


def test_the_interval_of_two_runs_is_all_that_can_be_drawn():
    """0 and 1: the means 0, 1/2, 1 come with probabilities 1/4, 1/2, 1/4."""
    assert iqm_interval([[0, 1]]) == (0.5, 0, 1)


def test_each_stratum_is_resampled_separately():
    """Two tasks, each without variance. If they were drawn together, the mean of the mixture would vary."""
    assert iqm_interval([[0, 0], [1, 1]]) == (0.5, 0.5, 0.5)
    assert iqm_interval([[0, 0, 1, 1]])[1:] != (0.5, 0.5)


def test_the_interval_is_near_the_theory():
    """For many normal scores, the standard error of the 25% trimmed mean is about 1.09 / sqrt(N)."""
    scores = np.random.default_rng(0).normal(size=400)
    mean, low, high = iqm_interval([list(scores)])
    assert (mean - low, high - mean) == (pytest.approx(1.96 * 1.09 / 20, rel=0.15),) * 2


def test_a_stratum_without_runs_is_refused():
    with pytest.raises(ValueError, match="at least one score"):
        iqm_interval([[1.0], []])


@pytest.mark.parametrize(
    "scores_x, scores_y, probability",
    [
        ([[3, 4]], [[1, 2]], 1),
        ([[1, 2]], [[3, 4, 5]], 0),
        ([[1, 1]], [[1]], 0.5),  # ties
        ([[1, 4]], [[2, 3, 4]], 2.5 / 6),  # 4 beats 2 and 3 and ties with 4
        ([[3], [0, 2]], [[1], [1]], 0.75),  # tasks have equal weights: 1 and 0.5
    ],
)
def test_probability_of_improvement_counts_pairs(scores_x, scores_y, probability):
    """Values by hand. With the algorithms exchanged, the probability is 1 - P."""
    p, low, high = probability_of_improvement(scores_x, scores_y)
    assert p == pytest.approx(probability) and low <= p <= high
    assert probability_of_improvement(scores_y, scores_x)[0] == pytest.approx(1 - probability)


def test_the_interval_of_improvement_is_all_that_can_be_drawn():
    """One run of Y lies between two of X. Resamples of X have both runs above it with probability 1/4, one with 1/2,
    and none with 1/4. Without variance the interval is a point."""
    assert probability_of_improvement([[0, 2]], [[1]]) == (0.5, 0, 1)
    assert probability_of_improvement([[2, 2], [5]], [[1, 1], [0]]) == (1, 1, 1)


def test_improvement_on_other_tasks_is_refused():
    with pytest.raises(ValueError, match="expected the same number of tasks, got 1 and 2"):
        probability_of_improvement([[1.0]], [[1.0], [2.0]])
    with pytest.raises(ValueError, match="at least one score"):
        probability_of_improvement([[1.0], []], [[1.0], [2.0]])
