"""Corridor's batched rules against a plain transcription, one step and environment at a time, on MiniGrid's grid."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from minigrid.core.constants import COLOR_TO_IDX, OBJECT_TO_IDX
from minigrid.core.grid import Grid
from minigrid.core.world_object import Ball, Door, Wall
from walks import begun, wandering

from expire_span_rl.envs.corridor import Corridor, CorridorEnv, CorridorVectorEnv
from expire_span_rl.envs.tiles import EAST, NORTH, SOUTH, WEST

B = 3


class PlainCorridor:
    """The rules as the issue tells them, with MiniGrid's own objects on MiniGrid's own grid."""

    def __init__(self, length: int, colour: str, right_side: str, view_size: int, max_steps: int | None) -> None:
        self.length, self.colour, self.right_side, self.view_size = length, colour, right_side, view_size
        self.limit = 4 * length + 20 if max_steps is None else max_steps
        self.margin = view_size + 1
        self.grid = Grid(length + 2 * self.margin, 2 * self.margin + 1)
        for i in range(self.grid.width):
            for j in range(self.grid.height):
                self.grid.set(i, j, Wall())
        for i in range(length):
            self.put(i, 0, None)
        other = {"red": "blue", "blue": "red"}
        self.put(-1, 0, Ball(colour))
        self.put(length - 1, -1, Door(colour if right_side == "north" else other[colour]))
        self.put(length - 1, +1, Door(colour if right_side == "south" else other[colour]))
        self.x = self.y = self.steps = 0

    def put(self, x: int, y: int, thing: object) -> None:
        self.grid.set(x + self.margin, y + self.margin, thing)

    def get(self, x: int, y: int) -> object:
        return self.grid.get(x + self.margin, y + self.margin)

    def observation(self) -> np.ndarray:
        reach = self.view_size // 2
        corner = self.x + self.margin - reach, self.y + self.margin - reach
        view = self.grid.slice(*corner, self.view_size, self.view_size)
        view.set(reach, reach, None)  # as MiniGrid does with the tile the agent stands on
        return view.encode()

    def step(self, action: int) -> tuple[float, bool, bool, dict]:
        self.steps += 1
        dx, dy = {NORTH: (0, -1), EAST: (1, 0), SOUTH: (0, 1), WEST: (-1, 0)}[action]
        target = self.get(self.x + dx, self.y + dy)
        if target is None or target.type == "door":
            self.x, self.y = self.x + dx, self.y + dy
        terminated = target is not None and target.type == "door"
        success = terminated and target.color == self.colour
        truncated = not terminated and self.steps >= self.limit
        info = {"is_success": success, "length": self.length, "ball": self.colour, "door_side": self.right_side}
        return float(success), terminated, truncated, info if terminated or truncated else {}


def plain_of(core: Corridor, row: int) -> PlainCorridor:
    """The plain corridor of the episode that environment `row` has just begun."""
    colour, side = ["red", "blue"][core.ball[row]], {-1: "north", 1: "south"}[int(core.door[row])]
    return PlainCorridor(int(core.length[row]), colour, side, core.view_size, core.max_steps)


ENDS: Counter[str] = Counter()


def test_batched_rules_are_the_plain_rules():
    """Over whole episodes, one after the other."""
    ENDS.clear()
    check_rules()
    assert all(ENDS[end] >= 20 for end in ("door", "own limit", "default limit"))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**64),
    lengths=st.tuples(st.integers(3, 9), st.integers(0, 6)),
    view_size=st.sampled_from([3, 5, 7, 9]),
    max_steps=st.sampled_from([None, None, 1, 7]),
)
def check_rules(seed, lengths, view_size, max_steps):
    kwargs = {"min_length": lengths[0], "max_length": sum(lengths), "view_size": view_size, "max_steps": max_steps}
    env = CorridorVectorEnv(B, **kwargs)
    plain = begun(env, seed, plain_of)
    rng = np.random.default_rng(seed)
    for _ in range(150):
        step = wandering(rng, env.core.x == env.core.length - 1, env.core.door)
        step[2] = WEST if rng.random() < 0.9 else step[2]  # the third agent comes to the time limit
        observation, reward, terminated, truncated, infos = env.step(step)
        ended = np.zeros(B, bool)
        for row in range(B):
            expected = plain[row].step(step[row])
            assert (reward[row], terminated[row], truncated[row]) == expected[:3]
            ended[row] = terminated[row] or truncated[row]
            if ended[row]:
                np.testing.assert_array_equal(infos["final_obs"][row], plain[row].observation())
                assert {key: infos["final_info"][key][row] for key in expected[3]} == expected[3]
                ENDS["door" if terminated[row] else "own limit" if max_steps else "default limit"] += 1
                plain[row] = plain_of(env.core, row)
            np.testing.assert_array_equal(observation[row], plain[row].observation())
        np.testing.assert_array_equal(infos.get("_final_obs", np.zeros(B, bool)), ended)


@pytest.mark.parametrize("wrong", [False, True])
def test_an_efficient_walk_takes_length_steps_and_pays_by_the_right_door_only(wrong):
    env = CorridorEnv()
    for seed in range(8):
        env.reset(seed=seed)
        length, right = int(env.core.length[0]), int(env.core.door[0])
        for _ in range(length - 1):
            assert env.step(EAST)[1:] == (0.0, False, False, {})
        _, reward, terminated, truncated, info = env.step(NORTH if (right < 0) != wrong else SOUTH)
        assert (reward, terminated, truncated) == (0.0 if wrong else 1.0, True, False)
        assert info["is_success"] is not wrong
        assert info["length"] == length == env.core.steps[0]


def test_the_ball_is_seen_at_the_start_only_and_the_doors_at_the_end_only():
    env = CorridorEnv(min_length=6, max_length=6)
    observation, _ = env.reset(seed=0)
    seen = []
    for _ in range(6):
        seen.append({name for name in ("ball", "door") if (observation[..., 0] == OBJECT_TO_IDX[name]).any()})
        observation, *_ = env.step(EAST)
    assert seen == [{"ball"}, set(), set(), set(), {"door"}, {"door"}]


def test_the_step_limit_is_four_lengths_and_twenty_unless_given():
    for max_steps, expected in ((None, 4 * 5 + 20), (13, 13)):
        env = CorridorEnv(min_length=5, max_length=5, max_steps=max_steps)
        env.reset(seed=0)
        outcomes = [env.step(WEST)[3:] for _ in range(expected)]
        assert [truncated for truncated, _ in outcomes] == [False] * (expected - 1) + [True]
        assert outcomes[-1][1]["is_success"] is False


def test_leaving_at_the_last_allowed_step_is_an_ending_and_no_truncation():
    env = CorridorEnv(min_length=5, max_length=5, max_steps=5)
    env.reset(seed=0)
    assert [env.step(action)[2:4] for action in [EAST] * 4 + [NORTH]] == [(False, False)] * 4 + [(True, False)]


def drawn(num_envs: int, seed: int, **kwargs) -> Corridor:
    """A core in which each of `num_envs` environments has begun its first episode."""
    core = Corridor(num_envs, **kwargs)
    core.reset(np.arange(num_envs), np.arange(num_envs) + seed)
    return core


def chi_square(values: np.ndarray, support: np.ndarray, probability: np.ndarray) -> float:
    """Pearson's statistic as a z-score: how many standard deviations from what chance gives."""
    counts = np.array([(values == value).sum() for value in support])
    assert counts.sum() == len(values), "a value outside the support"
    expected = probability * len(values)
    freedom = len(support) - 1
    return (((counts - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom)


@pytest.mark.parametrize(("low", "high"), [(3, 200), (3, 3), (10, 12), (50, 200)])
@pytest.mark.parametrize("distribution", ["uniform", "log_uniform"])
def test_lengths_have_their_bounds_and_shape(distribution, low, high):
    lengths = drawn(40_000, 1, min_length=low, max_length=high, length_distribution=distribution).length
    support = np.arange(low, high + 1)
    if low == high:
        assert (lengths == low).all()
        return
    weights = np.ones(len(support)) if distribution == "uniform" else np.log((support + 1) / support)
    assert abs(chi_square(lengths, support, weights / weights.sum())) < 4
    assert lengths.min() == low and lengths.max() == high


def test_colour_side_and_length_are_drawn_independently():
    core = drawn(40_000, 7)
    cell = core.ball * 4 + (core.door > 0) * 2 + (core.length > 101)  # 99 lengths on either side of 101.5
    assert abs(chi_square(cell, np.array([0, 1, 2, 3, 4, 5, 6, 7]), np.full(8, 1 / 8))) < 4


def test_episodes_and_neighbouring_seeds_are_uncorrelated():
    core = drawn(20_000, 0)
    first = core.length.copy()
    core.reset(np.arange(20_000))
    for other in (np.roll(first, 1), core.length):
        assert abs(np.corrcoef(first, other)[0, 1]) < 4 / np.sqrt(20_000)


def test_length_distribution_defaults_to_the_papers():
    np.testing.assert_array_equal(drawn(500, 3).length, drawn(500, 3, length_distribution="uniform").length)


def test_swap_observation_turns_the_ball_and_nothing_else():
    core = drawn(16, 0)
    image = core.observe()
    swapped = Corridor.swap_observation(image)
    other = np.where(image[:, 0, 1, 1] == COLOR_TO_IDX["red"], COLOR_TO_IDX["blue"], COLOR_TO_IDX["red"])
    np.testing.assert_array_equal(swapped[:, 0, 1, 1], other)
    swapped[:, 0, 1, 1] = image[:, 0, 1, 1]
    np.testing.assert_array_equal(swapped, image)
    core.x[:] = core.length - 1  # doors are no balls
    np.testing.assert_array_equal(Corridor.swap_observation(core.observe()), core.observe())


def test_the_ball_is_a_fact_while_it_is_seen_and_the_doors_decide():
    """Whatever the view: a fact is told exactly where swapping the ball changes the observation."""
    for view_size in (3, 5, 7):
        core = drawn(64, 0, view_size=view_size, max_length=9)
        for _ in range(9):
            image = core.observe()
            seen = (Corridor.swap_observation(image) != image).any((1, 2, 3))
            np.testing.assert_array_equal(core.facts(), np.where(seen, 0, -1))
            np.testing.assert_array_equal(core.decisions(), core.x == core.length - 1)
            core.x = np.minimum(core.x + 1, core.length - 1)
