"""The T-maze's batched rules against a slow transcription of the paper's, one step and environment at a time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expire_span_rl import envs
from expire_span_rl.envs.tmaze import TMaze

EAST, NORTH, WEST, SOUTH = range(4)


class PlainTMaze:
    """Ni et al. (2023): a penalty for each step behind time, a reward at the last step only."""

    def __init__(self, length: int, goal: int):
        self.length = length
        self.goal = goal
        self.tiles = {(x, 0) for x in range(length + 1)} | {(length, 1), (length, -1)}
        self.position = (0, 0)
        self.time = 0

    def observation(self) -> list[float]:
        x, y = self.position
        if x == self.length:
            return [1, y]
        return [0, self.goal if self.time == 0 else 0]

    def step(self, action: int) -> tuple[float, bool]:
        dx, dy = {EAST: (1, 0), NORTH: (0, 1), WEST: (-1, 0), SOUTH: (0, -1)}[action]
        target = (self.position[0] + dx, self.position[1] + dy)
        if target in self.tiles:
            self.position = target
        x, y = self.position
        self.time += 1
        if self.time == self.length + 1:
            return float(y == self.goal), True
        return (-1 / self.length if x < self.time else 0.0), False


@settings(deadline=None, max_examples=60)
@given(length=st.integers(1, 6), actions=st.lists(st.sampled_from([EAST, EAST, EAST, NORTH, WEST, SOUTH]), min_size=30))
def test_the_core_agrees_with_the_reference(length, actions):
    core = TMaze(2, length=length)
    rows = np.arange(2)
    core.reset(rows, np.array([3, 8]))
    mazes = [PlainTMaze(length, int(goal)) for goal in core.goal]
    for i in range(0, len(actions) - 1, 2):
        step_actions = np.array(actions[i : i + 2])
        np.testing.assert_array_equal(core.observe(), np.float32([maze.observation() for maze in mazes]))
        reward, terminated, truncated = core.step(step_actions)
        outcomes = [maze.step(int(action)) for maze, action in zip(mazes, step_actions, strict=True)]
        np.testing.assert_allclose(reward, [maze_reward for maze_reward, _ in outcomes], rtol=0, atol=1e-12)
        assert terminated.tolist() == [ended for _, ended in outcomes] and not truncated.any()
        if terminated.all():
            successes = [maze.position[1] == maze.goal for maze in mazes]
            np.testing.assert_array_equal(core.final_info()["is_success"], successes)
            core.reset(rows)
            mazes = [PlainTMaze(length, int(goal)) for goal in core.goal]


@pytest.mark.parametrize("length", [1, 50, 1500])
def test_remembering_the_side_returns_1_and_one_delay_costs_until_the_end(length):
    core = TMaze(64, length=length)
    rows = np.arange(64)
    core.reset(rows, rows)
    side = core.observe()[:, 1].copy()
    assert set(side) == {-1.0, 1.0}
    turn = np.where(side > 0, NORTH, SOUTH)
    total = np.zeros(64)
    is_delayed = rows % 2 == 1
    for t in range(length):
        actions = np.where(is_delayed & (t == 0), WEST, EAST)
        total += core.step(actions)[0]
        assert (core.observe()[:, 1] == 0).all()  # the side is never shown again
    reward, terminated, _ = core.step(turn)
    assert terminated.all()
    total += reward
    np.testing.assert_allclose(total[~is_delayed], 1.0)
    np.testing.assert_allclose(total[is_delayed], -1.0)  # the last step does not reach an arm any more


def test_the_answers_to_the_viewer():
    env = envs.make_env("TMaze-v0", length=3)
    env.reset(seed=1)
    core = env.unwrapped.core
    observation = core.observe()
    assert core.facts().tolist() == [0] and not core.decisions()[0]
    assert core.swap_observation(observation).tolist() == (observation * [1, -1]).tolist()
    for _ in range(3):
        env.step(EAST)
    assert core.facts().tolist() == [-1] and core.decisions()[0]
    assert core.swap_observation(core.observe()).tolist() == core.observe().tolist() == [[1.0, 0.0]]
    assert core.render(0).shape == (96, 6 * 32, 3)
    with pytest.raises(envs.EnvError, match="^length: expected a whole number from 1 to 1000000000, got 0$"):
        envs.make_env("TMaze-v0", length=0)
