"""Long walks for the tests of rules: hardly any sequence of unrelated draws ever comes to the end of an episode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from expire_span_rl.envs.tiles import EAST, NORTH, SOUTH, WEST

MISTAKEN = np.array([0, 0.08, 0.5])
"""How often the three agents take the wrong door."""
WANDER = np.array([0, 0.1, 0.1])
"""How often they do anything."""


def wandering(
    rng: np.random.Generator, at_doors: np.ndarray, right: np.ndarray, wander: np.ndarray = WANDER
) -> np.ndarray:
    """Actions [3] of three agents of whom some are between their doors (bool [3]), where `right` [3] is the y of the
    right one."""
    mistaken = rng.random(3) < MISTAKEN
    action = np.where(at_doors, np.where((right < 0) != mistaken, NORTH, SOUTH), EAST)
    return np.where(rng.random(3) < WANDER, rng.choice([NORTH, EAST, SOUTH, WEST], 3), action)


def begun(env: Any, seed: int, plain: Callable[[Any, int], Any]) -> list[Any]:
    """Resets a vector environment, and tells its rows' episodes in plain, `plain(core, row)` each, which begin with
    what it sees."""
    observation, infos = env.reset(seed=seed)
    rows = [plain(env.core, row) for row in range(env.num_envs)]
    assert infos == {}
    for row, episode in enumerate(rows):
        np.testing.assert_array_equal(observation[row], episode.observation())
    return rows
