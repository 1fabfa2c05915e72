"""Quotients of sums over episodes."""

from __future__ import annotations

from expire_span_rl.agents.episodes import quotients, ratio_parts

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
