"""Quotients of sums over episodes."""

from __future__ import annotations

import numpy as np
import pytest

from expire_span_rl.agents.episodes import finished_episodes, quotients, ratio_parts
from expire_span_rl.agents.guard import TrainingEnded

RATIOS = {
    "efficiency": ("oracle", "steps"),
    "share": {"1": ("right_1", "all_1"), "2": ("right_2", "all_2")},
    "none": None,
}


def test_quotients_are_of_sums_and_not_means_of_quotients():
    episodes = [
        {"oracle": 10, "steps": 10, "right_1": 1, "all_1": 1, "right_2": 0, "all_2": 0},
        {"oracle": 10, "steps": 90, "right_1": 1, "all_1": 4, "right_2": 0, "all_2": 0},
    ]
    assert ratio_parts(RATIOS) == ["oracle", "steps", "right_1", "all_1", "right_2", "all_2"]
    assert quotients(episodes, RATIOS) == {"efficiency": 0.2, "share": {"1": 0.4, "2": None}, "none": None}


@pytest.mark.parametrize("value", ["yes", -1, 3.0, float("nan")])
def test_a_success_that_is_none_is_refused(value):
    infos = {"_final_obs": np.array([False, True]), "final_info": {"is_success": np.array([None, value], object)}}
    with pytest.raises(
        TrainingEnded, match=r"^environment 1, is_success: expected a flag or a number from 0 to 1, got"
    ):
        finished_episodes(infos, np.zeros(2), np.ones(2, np.int64))


@pytest.mark.parametrize("value", [True, 0.25, np.float32(1), None])
def test_a_success_may_be_a_flag_or_a_share(value):
    infos = {"_final_obs": np.array([True]), "final_info": {"is_success": np.array([value], object)}}
    (episode,) = finished_episodes(infos, np.zeros(1), np.ones(1, np.int64))
    assert episode.get("is_success") == value
