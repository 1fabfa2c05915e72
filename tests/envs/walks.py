"""Long walks for the tests of rules, since independent random actions hardly ever reach the end of an episode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from expire_span_rl.envs.tiles import EAST, NORTH, SOUTH, WEST

WRONG_DOOR_PROBABILITY = np.array([0, 0.08, 0.5])
"""The probability of the wrong door, for each of three agents."""
RANDOM_ACTION_PROBABILITY = np.array([0, 0.1, 0.1])
"""The probability of a random action, for each of three agents."""


def sample_walk(rng: np.random.Generator, at_doors: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Actions [3] of three agents. at_doors: bool [3], whether they are between their doors; right: y of the right door
    [3]."""
    takes_wrong_door = rng.random(3) < WRONG_DOOR_PROBABILITY
    action = np.where(at_doors, np.where((right < 0) != takes_wrong_door, NORTH, SOUTH), EAST)
    return np.where(rng.random(3) < RANDOM_ACTION_PROBABILITY, rng.choice([NORTH, EAST, SOUTH, WEST], 3), action)


def reset_with_reference(env: Any, seed: int, make_reference: Callable[[Any, int], Any]) -> list[Any]:
    """Resets a vector environment. Returns the references `make_reference(core, row)` of its rows' episodes, after a
    check of their first observations."""
    observation, infos = env.reset(seed=seed)
    references = [make_reference(env.core, row) for row in range(env.num_envs)]
    assert infos == {}
    for row, reference in enumerate(references):
        np.testing.assert_array_equal(observation[row], reference.observation())
    return references
