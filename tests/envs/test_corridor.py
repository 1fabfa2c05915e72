"""Corridor's batched rules against a slow reference, one step and environment at a time, on MiniGrid's grid."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from minigrid.core.constants import COLOR_TO_IDX, OBJECT_TO_IDX
from minigrid.core.grid import Grid
from minigrid.core.world_object import Ball, Door, Wall
from walks import reset_with_reference, sample_walk

from expire_span_rl.envs.corridor import Corridor, CorridorEnv, CorridorVectorEnv
from expire_span_rl.envs.tiles import EAST, NORTH, SOUTH, WEST

B = 3


class PlainCorridor:
    """The task's rules with MiniGrid's own objects on MiniGrid's own grid."""

    def __init__(self, length: int, colour: str, right_side: str, view_size: int, max_steps: int | None) -> None:
        self.length = length
        self.colour = colour
        self.right_side = right_side
        self.view_size = view_size
        self.limit = 4 * length + 20 if max_steps is None else max_steps
        self.margin = view_size + 1
        self.grid = Grid(length + 2 * self.margin, 2 * self.margin + 1)
        for i in range(self.grid.width):
            for j in range(self.grid.height):
                self.grid.set(i, j, Wall())
        for i in range(length):
            self.put(i, 0, None)
        other_colour = {"red": "blue", "blue": "red"}[colour]
        self.put(-1, 0, Ball(colour))
        self.put(length - 1, -1, Door(colour if right_side == "north" else other_colour))
        self.put(length - 1, +1, Door(colour if right_side == "south" else other_colour))
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
            self.x += dx
            self.y += dy
        terminated = target is not None and target.type == "door"
        success = terminated and target.color == self.colour
        truncated = not terminated and self.steps >= self.limit
        info = {"is_success": success, "length": self.length, "ball": self.colour, "door_side": self.right_side}
        return float(success), terminated, truncated, info if terminated or truncated else {}


def make_reference(core: Corridor, row: int) -> PlainCorridor:
    """The reference for the episode that environment `row` has just begun."""
    colour = ["red", "blue"][core.ball[row]]
    side = {-1: "north", 1: "south"}[int(core.door[row])]
    return PlainCorridor(int(core.length[row]), colour, side, core.view_size, core.max_steps)


ENDINGS: Counter[str] = Counter()


def test_batched_rules_agree_with_the_reference():
    """Over whole episodes, one after the other."""
    ENDINGS.clear()
    check_rules()
    assert all(ENDINGS[ending] >= 20 for ending in ("door", "max_steps", "default limit"))


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
    references = reset_with_reference(env, seed, make_reference)
    rng = np.random.default_rng(seed)
    for _ in range(150):
        actions = sample_walk(rng, env.core.x == env.core.length - 1, env.core.door)
        actions[2] = WEST if rng.random() < 0.9 else actions[2]  # the third agent reaches the step limit
        observation, reward, terminated, truncated, infos = env.step(actions)
        done = terminated | truncated
        for row in range(B):
            *outcome, info = references[row].step(actions[row])
            assert [reward[row], terminated[row], truncated[row]] == outcome
            if done[row]:
                np.testing.assert_array_equal(infos["final_obs"][row], references[row].observation())
                assert {key: infos["final_info"][key][row] for key in info} == info
                ENDINGS["door" if terminated[row] else "max_steps" if max_steps else "default limit"] += 1
                references[row] = make_reference(env.core, row)
            np.testing.assert_array_equal(observation[row], references[row].observation())
        np.testing.assert_array_equal(infos.get("_final_obs", np.zeros(B, bool)), done)


@pytest.mark.parametrize("takes_wrong_door", [False, True])
def test_an_efficient_walk_takes_length_steps_and_only_the_right_door_pays(takes_wrong_door):
    env = CorridorEnv()
    for seed in range(8):
        env.reset(seed=seed)
        length = int(env.core.length[0])
        right = int(env.core.door[0])
        for _ in range(length - 1):
            assert env.step(EAST)[1:] == (0.0, False, False, {})
        _, reward, terminated, truncated, info = env.step(NORTH if (right < 0) != takes_wrong_door else SOUTH)
        assert (reward, terminated, truncated) == (0.0 if takes_wrong_door else 1.0, True, False)
        assert info["is_success"] is not takes_wrong_door
        assert info["length"] == length == env.core.steps[0]


def test_the_ball_is_visible_only_at_the_start_and_the_doors_only_at_the_end():
    env = CorridorEnv(min_length=6, max_length=6)
    observation, _ = env.reset(seed=0)
    visible = []
    for _ in range(6):
        visible.append({name for name in ("ball", "door") if (observation[..., 0] == OBJECT_TO_IDX[name]).any()})
        observation, *_ = env.step(EAST)
    assert visible == [{"ball"}, set(), set(), set(), {"door"}, {"door"}]


def test_the_default_step_limit_is_four_lengths_plus_twenty():
    for max_steps, expected in ((None, 4 * 5 + 20), (13, 13)):
        env = CorridorEnv(min_length=5, max_length=5, max_steps=max_steps)
        env.reset(seed=0)
        outcomes = [env.step(WEST)[3:] for _ in range(expected)]
        assert [truncated for truncated, _ in outcomes] == [False] * (expected - 1) + [True]
        assert outcomes[-1][1]["is_success"] is False


def test_leaving_at_the_last_allowed_step_terminates_and_does_not_truncate():
    env = CorridorEnv(min_length=5, max_length=5, max_steps=5)
    env.reset(seed=0)
    assert [env.step(action)[2:4] for action in [EAST] * 4 + [NORTH]] == [(False, False)] * 4 + [(True, False)]


def start_core(num_envs: int, seed: int, **kwargs) -> Corridor:
    """A core in which each of `num_envs` environments has begun its first episode."""
    core = Corridor(num_envs, **kwargs)
    core.reset(np.arange(num_envs), np.arange(num_envs) + seed)
    return core


def chi_square(values: np.ndarray, support: np.ndarray, probability: np.ndarray) -> float:
    """Pearson's statistic as a z-score: its distance from the expectation in standard deviations."""
    counts = np.array([(values == value).sum() for value in support])
    assert counts.sum() == len(values), "a value outside the support"
    expected = probability * len(values)
    freedom = len(support) - 1
    return (((counts - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom)


@pytest.mark.parametrize(("low", "high"), [(3, 200), (3, 3), (10, 12), (50, 200)])
@pytest.mark.parametrize("distribution", ["uniform", "log_uniform"])
def test_lengths_have_their_bounds_and_distribution(distribution, low, high):
    lengths = start_core(40_000, 1, min_length=low, max_length=high, length_distribution=distribution).length
    support = np.arange(low, high + 1)
    if low == high:
        assert (lengths == low).all()
        return
    weights = np.ones(len(support)) if distribution == "uniform" else np.log((support + 1) / support)
    assert abs(chi_square(lengths, support, weights / weights.sum())) < 4
    assert lengths.min() == low and lengths.max() == high


def test_colour_side_and_length_are_drawn_independently():
    core = start_core(40_000, 7)
    cell = core.ball * 4 + (core.door > 0) * 2 + (core.length > 101)  # 99 lengths on either side of 101.5
    assert abs(chi_square(cell, np.array([0, 1, 2, 3, 4, 5, 6, 7]), np.full(8, 1 / 8))) < 4


def test_episodes_and_neighbouring_seeds_are_uncorrelated():
    core = start_core(20_000, 0)
    length = core.length.copy()
    core.reset(np.arange(20_000))
    for other_length in (np.roll(length, 1), core.length):
        assert abs(np.corrcoef(length, other_length)[0, 1]) < 4 / np.sqrt(20_000)


def test_length_distribution_defaults_to_the_papers():
    np.testing.assert_array_equal(start_core(500, 3).length, start_core(500, 3, length_distribution="uniform").length)


def test_swap_observation_changes_the_ball_and_nothing_else():
    core = start_core(16, 0)
    image = core.observe()
    swapped = Corridor.swap_observation(image)
    other_colour = np.where(image[:, 0, 1, 1] == COLOR_TO_IDX["red"], COLOR_TO_IDX["blue"], COLOR_TO_IDX["red"])
    np.testing.assert_array_equal(swapped[:, 0, 1, 1], other_colour)
    swapped[:, 0, 1, 1] = image[:, 0, 1, 1]
    np.testing.assert_array_equal(swapped, image)
    core.x[:] = core.length - 1  # the doors do not change
    np.testing.assert_array_equal(Corridor.swap_observation(core.observe()), core.observe())


def test_the_ball_is_a_fact_while_it_is_visible_and_the_decision_is_at_the_doors():
    """For all view sizes: an observation shows a fact exactly if swapping the ball changes it."""
    for view_size in (3, 5, 7):
        core = start_core(64, 0, view_size=view_size, max_length=9)
        for _ in range(9):
            image = core.observe()
            is_visible = (Corridor.swap_observation(image) != image).any((1, 2, 3))
            np.testing.assert_array_equal(core.facts(), np.where(is_visible, 0, -1))
            np.testing.assert_array_equal(core.decisions(), core.x == core.length - 1)
            core.x = np.minimum(core.x + 1, core.length - 1)
