"""The T-maze's batched rules against a plain transcription of the paper's, one step and environment at a time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expire_span_rl import envs
from expire_span_rl.envs.tmaze import TMaze

EAST, NORTH, WEST, SOUTH = range(4)


class PlainTMaze:
    """Ni et al. (2023): penalised while behind time, paid at the last step only."""

    def __init__(self, length: int, goal: int):
        self.length, self.goal = length, goal
        self.tiles = {(x, 0) for x in range(length + 1)} | {(length, 1), (length, -1)}
        self.at, self.time = (0, 0), 0

    def observation(self) -> list[float]:
        x, y = self.at
        if x == self.length:
            return [1, y]
        return [0, self.goal if self.time == 0 else 0]

    def step(self, action: int) -> tuple[float, bool]:
        dx, dy = {EAST: (1, 0), NORTH: (0, 1), WEST: (-1, 0), SOUTH: (0, -1)}[action]
        target = (self.at[0] + dx, self.at[1] + dy)
        self.at = target if target in self.tiles else self.at
        self.time += 1
        if self.time == self.length + 1:
            return float(self.at[1] == self.goal), True
        return (-1 / self.length if self.at[0] < self.time else 0.0), False


@settings(deadline=None, max_examples=60)
@given(length=st.integers(1, 6), actions=st.lists(st.sampled_from([EAST, EAST, EAST, NORTH, WEST, SOUTH]), min_size=30))
def test_the_core_is_the_plain_maze(length, actions):
    core, rows = TMaze(2, length=length), np.arange(2)
    core.reset(rows, np.array([3, 8]))
    plain = [PlainTMaze(length, int(goal)) for goal in core.goal]
    for turn in range(0, len(actions) - 1, 2):
        chosen = np.array(actions[turn : turn + 2])
        np.testing.assert_array_equal(core.observe(), np.float32([maze.observation() for maze in plain]))
        reward, terminated, truncated = core.step(chosen)
        expected = [maze.step(int(action)) for maze, action in zip(plain, chosen, strict=True)]
        np.testing.assert_allclose(reward, [pay for pay, _ in expected], rtol=0, atol=1e-12)
        assert terminated.tolist() == [end for _, end in expected] and not truncated.any()
        if terminated.all():
            np.testing.assert_array_equal(core.final_info()["is_success"], [m.at[1] == m.goal for m in plain])
            core.reset(rows)
            plain = [PlainTMaze(length, int(goal)) for goal in core.goal]


@pytest.mark.parametrize("length", [1, 50, 1500])
def test_who_remembers_the_side_gets_1_and_who_is_late_once_pays_until_the_end(length):
    core, rows = TMaze(64, length=length), np.arange(64)
    core.reset(rows, rows)
    side = core.observe()[:, 1].copy()
    assert set(side) == {-1.0, 1.0}
    turn, total = np.where(side > 0, NORTH, SOUTH), np.zeros(64)
    late = rows % 2 == 1
    for t in range(length):
        actions = np.where(late & (t == 0), WEST, EAST)
        total += core.step(actions)[0]
        assert (core.observe()[:, 1] == 0).all()  # the side is never shown again
    reward, terminated, _ = core.step(turn)
    assert terminated.all()
    total += reward
    np.testing.assert_allclose(total[~late], 1.0)
    np.testing.assert_allclose(total[late], -1.0)  # and the last step comes too early for an arm


def test_what_the_viewer_is_told():
    env = envs.make_env("TMaze-v0", length=3)
    env.reset(seed=1)
    core = env.unwrapped.core
    shown = core.observe()
    assert core.facts().tolist() == [0] and not core.decisions()[0]
    assert core.swap_observation(shown).tolist() == (shown * [1, -1]).tolist()
    for _ in range(3):
        env.step(EAST)
    assert core.facts().tolist() == [-1] and core.decisions()[0]
    assert core.swap_observation(core.observe()).tolist() == core.observe().tolist() == [[1.0, 0.0]]
    assert core.render(0).shape == (96, 6 * 32, 3)
    with pytest.raises(envs.EnvError, match="^length: expected a whole number from 1 to 1000000000, got 0$"):
        envs.make_env("TMaze-v0", length=0)
