"""Switch's batched rules against a slow reference, one step and environment at a time, on MiniGrid's grid. Only the
latest signal counts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from minigrid.core.grid import Grid
from minigrid.core.world_object import Ball, Door, Wall
from walks import reset_with_reference, sample_walk

from expire_span_rl import envs
from expire_span_rl.envs.switch import GROUPS, Switch, SwitchEnv, SwitchVectorEnv
from expire_span_rl.envs.tiles import EAST, NORTH, SOUTH, WEST

B = 3
COLOURS = ["red", "blue"]


def group_of(signals: int) -> str:
    """The label of the group of the junctions after this number of signals."""
    for label in GROUPS:
        low, _, high = label.rstrip("+").partition("-")
        if label.endswith("+") or int(low) <= signals <= int(high or low):
            return label
    raise AssertionError


class PlainSwitch:
    """The task's rules with MiniGrid's own objects on MiniGrid's own grid, one passage at a time."""

    def __init__(self, core: Switch, row: int) -> None:
        """The episode that environment `row` of a core has just begun."""
        self.length = core.passage_length
        self.view_size = core.view_size
        self.limit = core.max_steps
        self.hold_bounds = core.min_hold, core.max_hold
        self.margin = core.view_size + 1
        self.steps = self.signals = self.hold = 0
        self.colour = ""
        self.correct = dict.fromkeys(GROUPS, 0)
        self.junctions = dict.fromkeys(GROUPS, 0)
        self.enter(core, row)

    def enter(self, core: Switch, row: int) -> None:
        """Begins a passage. The draws (sides, colours, holds) are the core's; everything else is computed here."""
        self.x = 0
        has_new_signal = self.hold == 0
        if has_new_signal:
            self.colour = COLOURS[core.signal[row]]
            self.hold = int(core.hold[row])
            self.signals += 1
            assert self.hold_bounds[0] <= self.hold <= self.hold_bounds[1]
        north = COLOURS[core.north[row]]
        self.doors = {-1: north, 1: COLOURS[1 - COLOURS.index(north)]}
        self.grid = Grid(self.length + 2 * self.margin, 2 * self.margin + 1)
        for i in range(self.grid.width):
            for j in range(self.grid.height):
                self.grid.set(i, j, Wall())
        tiles = {(x, 0): None for x in range(self.length)}
        tiles |= {(self.length - 1, y): Door(colour) for y, colour in self.doors.items()}
        if has_new_signal:
            tiles[-1, 0] = Ball(self.colour)
        for (x, y), thing in tiles.items():
            self.grid.set(x + self.margin, y + self.margin, thing)

    def observation(self) -> np.ndarray:
        corner = self.x + self.margin - self.view_size // 2, self.margin - self.view_size // 2
        return self.grid.slice(*corner, self.view_size, self.view_size).encode()

    def step(self, action: int, core: Switch, row: int) -> tuple[float, bool, dict]:
        """Reward, truncated, info. `core` has already taken the step, so it has the draws of the next passage."""
        self.steps += 1
        dx, dy = {NORTH: (0, -1), EAST: (1, 0), SOUTH: (0, 1), WEST: (-1, 0)}[action]
        target = self.grid.get(self.x + dx + self.margin, dy + self.margin)
        reward = 0.0
        if target is None:
            self.x += dx
        elif target.type == "door":
            reward = float(target.color == self.colour)
            group = group_of(self.signals)
            self.correct[group] += int(reward)
            self.junctions[group] += 1
            self.hold -= 1
        correct = sum(self.correct.values())
        junctions = sum(self.junctions.values())
        has_enough_junctions = junctions >= max(1, min(20, self.limit // self.length))
        info = {
            "is_success": has_enough_junctions and correct >= 0.95 * junctions,
            "correct": correct,
            "junctions": junctions,
            "correct_share": correct / junctions if junctions else 0,
            **{f"correct_{group}": count for group, count in self.correct.items()},
            **{f"junctions_{group}": count for group, count in self.junctions.items()},
        }
        truncated = self.steps >= self.limit
        if target is None or target.type != "door":
            info["signals"] = self.signals
        elif not truncated:
            self.enter(core, row)
        return reward, truncated, info


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**64),
    holds=st.tuples(st.integers(1, 3), st.integers(0, 3)),
    passage_length=st.sampled_from([2, 2, 3, 5]),
    view_size=st.sampled_from([3, 3, 5, 9]),
    max_steps=st.sampled_from([150, 100, 1, 7, 20]),
)
def test_batched_rules_agree_with_the_reference(seed, holds, passage_length, view_size, max_steps):
    """Over whole episodes, one after the other."""
    env = SwitchVectorEnv(
        B,
        min_hold=holds[0],
        max_hold=sum(holds),
        passage_length=passage_length,
        view_size=view_size,
        max_steps=max_steps,
    )
    references = reset_with_reference(env, seed, PlainSwitch)
    rng = np.random.default_rng(seed)
    for _ in range(200):
        right = np.where(env.core.north == env.core.signal, -1, 1)
        actions = sample_walk(rng, env.core.x == passage_length - 1, right)
        observation, reward, terminated, truncated, infos = env.step(actions)
        assert not terminated.any()
        for row in range(B):
            expected_reward, expected_truncated, info = references[row].step(actions[row], env.core, row)
            assert (reward[row], truncated[row]) == (expected_reward, expected_truncated)
            if truncated[row]:
                assert {key: infos["final_info"][key][row] for key in info} == info
                if "signals" in info:  # else the last step led into a passage whose draws the core has discarded
                    np.testing.assert_array_equal(infos["final_obs"][row], references[row].observation())
                references[row] = PlainSwitch(env.core, row)
            np.testing.assert_array_equal(observation[row], references[row].observation())


def play(core: Switch, choose) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Final info and returns of one whole episode of efficient walks. choose: (core) -> the door's colour [B]."""
    core.reset(np.arange(core.num_envs), np.arange(core.num_envs))
    returns = np.zeros(core.num_envs)
    while not core.over.any():
        door = np.where(core.north == choose(core), NORTH, SOUTH)
        reward, *_ = core.step(np.where(core.x == core.passage_length - 1, door, EAST))
        returns += reward
    return core.final_info(), returns


class LatestSignal:
    """An agent that remembers the latest signal."""

    def __init__(self) -> None:
        self.colour: np.ndarray | int = 0

    def __call__(self, core: Switch) -> np.ndarray:
        self.colour = np.where(core.shown & (core.x == 0), core.signal, self.colour)
        return self.colour


def test_an_agent_that_remembers_the_latest_signal_is_always_right():
    info, returns = play(Switch(50), LatestSignal())
    assert info["is_success"].all() and (info["correct_share"] == 1).all()
    assert (info["junctions"] == 200).all() and (returns == 200).all()
    for group in GROUPS:
        np.testing.assert_array_equal(info[f"correct_{group}"], info[f"junctions_{group}"])
    assert info["signals"].mean() == pytest.approx(200 / 4.5, rel=0.1)


@pytest.mark.parametrize(
    ("wrong_doors", "junctions", "success"), [(10, 200, True), (11, 200, False), (0, 20, True), (0, 19, False)]
)
def test_success_is_19_of_20_doors_and_at_least_20_of_them(wrong_doors, junctions, success):
    core = Switch(4)
    core.reset(np.arange(4), np.arange(4))
    while not core.over.any():
        num_passed = core.passage[0]
        right = np.where(core.north == core.signal, NORTH, SOUTH)
        door = np.where(num_passed < wrong_doors, NORTH + SOUTH - right, right)
        core.step(np.where(num_passed >= junctions, WEST, np.where(core.x == core.passage_length - 1, door, EAST)))
    info = core.final_info()
    assert (info["junctions"] == junctions).all() and (info["correct"] == junctions - wrong_doors).all()
    assert (info["is_success"] == success).all()


def test_junctions_are_counted_by_the_signals_so_far():
    info, _ = play(Switch(4, min_hold=1, max_hold=1), LatestSignal())
    counts = {group: set(info[f"junctions_{group}"]) for group in GROUPS}
    assert counts == {
        "1": {1},
        "2": {1},
        "3-4": {2},
        "5-8": {4},
        "9-16": {8},
        "17-32": {16},
        "33-64": {32},
        "65+": {136},
    }


def test_an_agent_that_follows_the_first_signal_is_right_half_of_the_time_after_it():
    first_signals: list[np.ndarray] = []

    def choose(core: Switch) -> np.ndarray:
        first_signals[:] = first_signals or [core.signal.copy()]
        return first_signals[0]

    info, _ = play(Switch(400), choose)
    share = {
        g: info[f"correct_{g}"].sum() / info[f"junctions_{g}"].sum() for g in GROUPS if info[f"junctions_{g}"].any()
    }
    assert share.pop("1") == 1
    assert all(abs(value - 0.5) < 0.1 for value in share.values()) and set(share) >= {"2", "3-4", "5-8", "33-64"}
    assert not info["is_success"].any()
    assert np.mean(info["correct_share"]) == pytest.approx(0.5, abs=0.05)


def test_random_doors_and_standing_still_are_no_success():
    rng = np.random.default_rng(0)
    info, _ = play(Switch(200), lambda core: rng.integers(2, size=core.num_envs))
    assert not info["is_success"].any() and abs(info["correct_share"].mean() - 0.5) < 0.02
    core = Switch(200)
    core.reset(np.arange(200), np.arange(200))
    for step in range(1000):  # each agent passes one junction only; half of the agents take the right door
        core.step(np.full(200, EAST if step < 4 else NORTH if step == 4 else WEST))
    info = core.final_info()
    assert set(info["correct_share"]) == {0, 1} and (info["junctions"] == 1).all() and not info["is_success"].any()


def test_signals_and_sides_are_fair_and_independent_and_signals_hold_as_drawn():
    core = Switch(2000, min_hold=2, max_hold=5)
    core.reset(np.arange(2000), np.arange(2000))
    passages = []
    for passage in range(40):
        assert (core.passage == passage).all()
        passages.append([core.signal.copy(), core.north.copy(), core.shown.copy(), core.hold.copy()])
        for action in [EAST] * 4 + [NORTH]:
            core.step(np.full(2000, action))
    signals, sides, is_new, holds = np.array(passages).transpose(1, 0, 2)  # [passages, B] each
    is_new = is_new.astype(bool)
    assert is_new[0].all()
    has_changed = signals[1:] != signals[:-1]
    assert not has_changed[~is_new[1:]].any()
    n = is_new[1:].sum()
    assert abs(has_changed[is_new[1:]].mean() - 0.5) < 4 * 0.5 / np.sqrt(n)
    counts = np.bincount(holds[is_new], minlength=6)[2:]
    assert counts.sum() == is_new.sum() and abs(counts / counts.sum() - 0.25).max() < 4 * 0.5 / np.sqrt(counts.sum())
    assert abs(sides.mean() - 0.5) < 4 * 0.5 / np.sqrt(sides.size)
    for left, right in ((sides, signals), (sides[1:], sides[:-1]), (sides, is_new)):
        assert abs(np.corrcoef(left.ravel(), right.ravel())[0, 1]) < 4 / np.sqrt(left.size)
    # The distance between the starts of two signals is the hold of the first one.
    for row in range(20):
        starts = np.flatnonzero(is_new[:, row])
        np.testing.assert_array_equal(np.diff(starts), holds[starts[:-1], row])


def test_the_colour_of_a_signal_shows_only_at_the_signal():
    core = Switch(100)
    core.reset(np.arange(100), np.arange(100))
    core.shown[50:] = False
    for x in range(5):
        core.x[:] = x
        image = core.observe()
        core.signal ^= 1
        is_equal = (core.observe() == image).all((1, 2, 3))
        assert is_equal.tolist() == [x > 0] * 50 + [True] * 50


def test_the_memory_horizon_is_the_longest_hold_in_steps():
    assert Switch(1).memory_horizon == 5 * 8
    assert Switch(1, passage_length=7, max_hold=20).memory_horizon == 140
    assert Switch(1, max_hold=10**6).memory_horizon == 1000


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"min_hold": 9}, "min_hold: expected at most max_hold (8), got 9"),
        ({"max_hold": 0}, "max_hold: expected a whole number from 1 to 1000000, got 0"),
        ({"passage_length": 1}, "passage_length: expected a whole number from 2 to 100, got 1"),
        ({"max_steps": None}, "max_steps: expected a whole number from 1 to 1000000000, got None"),
        ({"view_size": 6}, "view_size: expected an odd number, so that the agent is in the middle, got 6"),
    ],
)
def test_invalid_settings_give_an_error_of_one_line(kwargs, message):
    for make in (lambda: envs.make_env("Switch-v0", **kwargs), lambda: envs.make_vec_env("Switch-v0", 2, **kwargs)):
        with pytest.raises(envs.EnvError) as caught:
            make()
        assert str(caught.value) == message


def test_the_picture_shows_the_signal_and_both_doors():
    env = SwitchEnv(render_mode="rgb_array")
    env.reset(seed=0)
    picture = env.render()
    assert picture.shape == (3 * 32, 7 * 32, 3)
    tiles = picture.reshape(3, 32, 7, 32, 3).transpose(2, 0, 1, 3, 4)  # [column, line, ...]
    core = env.core
    expected = {(0, 1): (Ball(COLOURS[core.signal[0]]), True), (5, 0): (Door(COLOURS[core.north[0]]), False)}
    for place, (thing, lit) in expected.items():
        np.testing.assert_array_equal(tiles[place], Grid.render_tile(thing, highlight=lit).astype(np.uint8))


@pytest.mark.parametrize("view_size", [3, 5])
def test_each_signal_is_a_separate_fact_while_it_is_visible(view_size):
    core = Switch(8, view_size=view_size, passage_length=5, min_hold=1, max_hold=2)
    core.reset(np.arange(8), np.arange(8))
    rng = np.random.default_rng(0)
    facts = set()
    for _ in range(120):
        image = core.observe()
        is_visible = (Switch.swap_observation(image) != image).any((1, 2, 3))
        np.testing.assert_array_equal(core.facts(), np.where(is_visible, core.signals, -1))
        facts |= {*core.facts().tolist()}
        passage = core.passage.copy()
        at_doors = core.decisions()
        core.step(rng.choice(4, 8, p=[0.15, 0.7, 0.1, 0.05]))
        assert (at_doors | (core.passage == passage)).all()  # only an agent between the doors leaves a passage
    assert len(facts) > 5
