"""Long trajectories: each wrap against the task it wraps, stepped by hand; compositions; single against vector form."""

from __future__ import annotations

import warnings

import gymnasium as gym
import numpy as np
import pytest
from env_cases import assert_same
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st
from minigrid.core.constants import OBJECT_TO_IDX
from safetensors.numpy import load, save

from expire_span_rl import envs
from expire_span_rl.envs.long import DISTRACTIONS
from expire_span_rl.envs.tiles import EAST, NORTH, SOUTH

B = 3
SETTINGS = {  # so that episodes end soon
    "Corridor-v0": {"max_length": 6, "max_steps": 12},
    "Portal-v0": {"max_rooms": 3, "progress_reward": 0.25},
    "Switch-v0": {"passage_length": 2, "max_steps": 20},
    "TMaze-v0": {"length": 4},
    "Copy-v0": {"delay": 2, "length": 2},
    "Collision-v0": {"grid": 4, "stream_length": 9},
    "Text-v0": {"stream_length": 5},
    "MiniGrid-MemoryS7-v0": {"max_episode_steps": 12},
    "CartPole-v1": {},
}
WRAPS = [
    ["stretch=2"],
    ["episodes=3"],
    ["fresh_episodes=2"],
    ["occlude=0,3-4/5"],
    ["stretch=2", "episodes=2"],
    ["episodes=2", "occlude=1-2/4", "stretch=1"],
    ["stretch=1", "stretch=2"],
]
SHOWN = {"TMaze-v0": "observation", "Copy-v0": "observation", "Collision-v0": "observation", "Text-v0": "observation"}
"""The entry that a task shows, if it is not an image."""
OWN = sorted(SETTINGS.keys() & set(envs.env_ids()))
every_wrap = pytest.mark.parametrize("wraps", WRAPS, ids="+".join)
every_task = pytest.mark.parametrize("id", SETTINGS)
every_own_task = pytest.mark.parametrize("id", OWN)


def test_every_task_of_ours_is_tried():
    assert OWN == sorted(envs.env_ids())


def moves(env, steps: int, seed: int = 0) -> np.ndarray:
    """Actions [steps, B] that get somewhere: east is likely."""
    n = int(env.single_action_space.n)
    weights = np.where(np.arange(n) == EAST, 2.0, 1.0)
    return np.random.default_rng(seed).choice(n, size=(steps, env.num_envs), p=weights / weights.sum())


def row_of(batch: dict, row: int) -> dict:
    return {key: value[row] for key, value in batch.items()}


@every_wrap
@every_task
def test_vector_form_is_the_single_form(id, wraps):
    vector = envs.make_vec_env(id, B, wraps=wraps, **SETTINGS[id])
    singles = [envs.make_env(id, wraps=wraps, **SETTINGS[id]) for _ in range(B)]
    assert vector.single_observation_space == singles[0].observation_space
    assert vector.memory_horizon == singles[0].get_wrapper_attr("memory_horizon")
    observation, _ = vector.reset(seed=4)
    for row, env in enumerate(singles):
        assert_same(row_of(observation, row), env.reset(seed=4 + row)[0])
    endings = 0
    for actions in moves(vector, 400):
        observation, reward, terminated, truncated, infos = vector.step(actions)
        assert vector.observation_space.contains(observation)
        for row, env in enumerate(singles):
            expected, *outcome, info = env.step(actions[row])
            assert [reward[row], terminated[row], truncated[row]] == outcome
            if terminated[row] or truncated[row]:
                endings += 1
                assert infos["_final_obs"][row]
                assert_same(row_of(infos["final_obs"], row), expected)
                assert {key: infos["final_info"][key][row] for key in info} == info
                expected, _ = env.reset()
            elif "shaping" in info:
                assert infos["shaping"][row] == info["shaping"]
            assert_same(row_of(observation, row), expected)
    assert endings > 0


@every_wrap
@every_own_task
def test_passes_gymnasiums_checker(id, wraps):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = envs.make_env(id, wraps=wraps, render_mode="rgb_array", **SETTINGS[id]).unwrapped
        check_env(env, skip_render_check=True)  # which needs a spec, to make another one
        vector = envs.make_vec_env(id, B, wraps=wraps, render_mode="rgb_array", **SETTINGS[id])
    env.reset(seed=0)
    vector.reset(seed=0)
    np.testing.assert_array_equal(env.render(), vector.render()[0])
    assert env.render().shape == env.core.render(0).shape and len(vector.render()) == B


@every_wrap
@every_own_task
@pytest.mark.parametrize("steps", [0, 17])
def test_a_saved_state_continues_identically_and_what_was_returned_stays(id, wraps, steps):
    env, other = (envs.make_vec_env(id, B, wraps=wraps, **SETTINGS[id]) for _ in range(2))
    env.reset(seed=3)
    other.reset(seed=99)
    actions = moves(env, steps + 200)
    for action in actions[:steps]:
        env.step(action)
    state = save(env.state_dict())
    expected = [env.step(action) for action in actions[steps:]]
    copies = [{key: value.copy() for key, value in outcome[0].items()} for outcome in expected]
    other.load_state_dict(load(state))
    for outcome, copy, action in zip(expected, copies, actions[steps:], strict=True):
        for left, right in zip(outcome, other.step(action), strict=True):
            assert_same(left, right)
        # (the previous action and reward are no part of the state, but told by the step)
        assert_same(outcome[0], copy)
    assert any(outcome[-1] for outcome in expected)
    with pytest.raises(envs.EnvError, match="^environment state: expected the fields "):
        env.load_state_dict(envs.make_vec_env(id, B, **SETTINGS[id]).state_dict())


def test_standing_still_is_the_same_state_and_no_shaping():
    """`step_some` of a plain core: the chosen step as they would in company, the others do not."""
    for id in OWN:
        env, other = (gym.make_vec(id, num_envs=8, vectorization_mode="vector_entry_point") for _ in range(2))
        env.reset(seed=0)
        other.reset(seed=0)
        rng = np.random.default_rng(0)
        for action in moves(env, 100):
            mask = rng.random(8) < 0.5
            before = env.core.state_dict()
            reward, terminated, truncated = env.core.step_some(action, mask)
            alone = other.core.step(action)
            after = env.core.state_dict()
            for name, array in other.core.state_dict().items():
                assert_same(after[name][mask], array[mask])
                assert_same(after[name][~mask], before[name][~mask])
            assert_same(reward, alone[0] * mask)
            assert_same(terminated | truncated, (alone[1] | alone[2]) & mask)
            env.core.reset(np.flatnonzero(env.core.over))
            other.load_state_dict(env.core.state_dict())


@settings(max_examples=30, deadline=None)
@given(id=st.sampled_from(OWN), n=st.integers(0, 4), seed=st.integers(0, 10**6))
def test_stretching_puts_distraction_between_the_steps_of_the_same_episode(id, n, seed):
    long = envs.make_env(id, wraps=[f"stretch={n}"], **SETTINGS[id])
    task = envs.make_env(id, **SETTINGS[id])
    shown = SHOWN.get(id, "image")
    rng = np.random.default_rng(seed)
    got, expected = long.reset(seed=seed)[0], task.reset(seed=seed)[0]
    horizons = [env.unwrapped.memory_horizon for env in (long, task)]
    assert horizons[0] == horizons[1] * (n + 1)
    over = False
    while not over:
        assert_same(got[shown], expected[shown])
        action = int(rng.choice([NORTH, EAST, EAST, SOUTH]))
        got, *outcome, info = long.step(action)
        expected, *wanted, task_info = task.step(action)
        assert (outcome, info) == (wanted, task_info)
        assert (got["previous_action"], got["previous_reward"]) == (action, expected["previous_reward"])
        over = wanted[1] or wanted[2]
        for k in range(0 if over else n):
            nothing = 0 if id in SHOWN else OBJECT_TO_IDX["floor"]
            assert (got[shown][..., 0] == nothing).all()
            action = k % 4
            got, *outcome, info = long.step(action)
            assert outcome == [0.0, False, False] and not any(info.values())
            assert (got["previous_action"], got["previous_reward"]) == (action, 0)
    assert_same(got[shown], expected[shown])


def test_distraction_differs_from_step_to_step_and_from_row_to_row():
    env = envs.make_vec_env("Corridor-v0", 16, wraps=["stretch=30"])
    env.reset(seed=0)
    shown = np.array([env.step(np.full(16, EAST))[0]["image"].reshape(16, -1) for _ in range(30)])
    assert len(np.unique(shown.reshape(-1, 27), axis=0)) > 0.7 * DISTRACTIONS
    assert len(np.unique(shown[..., 1::3])) == 6


@settings(max_examples=30, deadline=None)
@given(id=st.sampled_from(OWN), n=st.integers(1, 4), fresh=st.booleans(), seed=st.integers(0, 10**6))
def test_episodes_in_a_row_are_those_of_the_task(id, n, fresh, seed):
    """Two trajectories: of one draw each, or of the task's episodes one after the other."""
    long = envs.make_env(id, wraps=[f"{'fresh_' if fresh else ''}episodes={n}"], **SETTINGS[id])
    task = envs.make_env(id, **SETTINGS[id])
    shown = SHOWN.get(id, "image")
    rng = np.random.default_rng(seed)
    assert long.unwrapped.memory_horizon == task.unwrapped.memory_horizon * (1 if fresh else n)
    task.reset(seed=seed)
    core = task.unwrapped.core
    for trajectory in range(2):
        got, _ = long.reset(seed=seed) if trajectory == 0 else long.reset()
        successes = []
        for k in range(n):
            number = trajectory * n + k if fresh else trajectory
            core.start(np.arange(1), np.array([seed]), np.array([number]))
            expected = core.observe()[0]
            while not core.over[0]:
                assert_same(got[shown], expected)
                action = int(rng.choice([NORTH, EAST, EAST, SOUTH]))
                got, _, terminated, truncated, info = long.step(action)
                wanted, *_, task_info = task.step(action)
                expected = wanted[shown]
                assert_same(got["previous_reward"], wanted["previous_reward"])
                assert (terminated or truncated) == (core.over[0] and k == n - 1)
            successes.append(task_info["is_success"])
        assert_same(got[shown], expected)
        assert info == {
            **task_info, "is_success": all(successes), "trajectories": 1,
            **{f"success_{k + 1}": success for k, success in enumerate(successes)},
        }  # fmt: skip
    by_episode = long.unwrapped.metadata["ratios"]["success_by_episode"]
    assert by_episode == {str(k + 1): (f"success_{k + 1}", "trajectories") for k in range(n)}


def test_what_was_found_out_in_the_first_episode_serves_in_the_next():
    """Portal, four episodes of one draw: an agent that remembers makes its mistakes in the first only."""
    env = envs.make_vec_env("Portal-v0", 200, wraps=["episodes=4"], min_rooms=6, max_rooms=6)
    env.reset(seed=0)
    core = env.unwrapped.core.inner
    known, here = np.zeros((200, 6), int), np.arange(200)
    rng = np.random.default_rng(0)
    over = np.zeros(200, bool)
    steps, efficiency = np.zeros(200), np.zeros(200)
    while not over.all():
        at_doors, room = core.x == 2, core.room.copy()
        door = np.where(known[here, room], known[here, room], rng.choice([-1, 1], 200))
        known[here[at_doors], room[at_doors]] = core.right[here[at_doors], room[at_doors]]
        *_, terminated, _, infos = env.step(np.where(at_doors, np.where(door < 0, NORTH, SOUTH), EAST))
        steps += ~over
        if "final_info" in infos:
            told = infos["final_info"]
            now = terminated & ~over
            assert (told["agent_steps"][now] == 18).all() and told["is_success"][now].all()
            efficiency[now] = told["oracle_steps"][now] / told["agent_steps"][now]
            known[terminated] = 0
        over |= terminated
    assert efficiency.mean() == 1 + 7 / 4
    assert abs(steps.mean() - (3 * (6 + 6 * 7 / 4) + 3 * 18)) < 4 * steps.std() / np.sqrt(200)


@settings(max_examples=30, deadline=None)
@given(id=st.sampled_from(OWN), seed=st.integers(0, 10**6), steps=st.integers(1, 60))
def test_occlusion_hides_the_chosen_steps_and_nothing_else(id, seed, steps):
    env = envs.make_vec_env(id, B, wraps=["occlude=0,3-4/5,7-11"], **SETTINGS[id])
    task = envs.make_vec_env(id, B, **SETTINGS[id])
    got, expected = env.reset(seed=seed)[0], task.reset(seed=seed)[0]
    shown, clock = SHOWN.get(id, "image"), np.zeros(B, int)

    def check(got, expected, clock, rows):
        hidden = (clock == 0) | (clock % 5 >= 3) | ((clock >= 7) & (clock <= 11))
        assert not got[shown][hidden & rows].any()
        np.testing.assert_array_equal(got[shown][~hidden & rows], expected[shown][~hidden & rows])
        for key in ("previous_action", "previous_reward"):
            np.testing.assert_array_equal(got[key][rows], expected[key][rows])

    check(got, expected, clock, np.ones(B, bool))
    for actions in moves(env, steps, seed):
        got, *outcome, infos = env.step(actions)
        expected, *wanted, task_infos = task.step(actions)
        assert_same(tuple(outcome), tuple(wanted))
        clock += 1
        ended = outcome[1] | outcome[2]
        if ended.any():
            check(infos["final_obs"], task_infos["final_obs"], clock, ended)
        clock[ended] = 0
        check(got, expected, clock, np.ones(B, bool))


def test_other_packages_environments_are_wrapped_too():
    env = envs.make_vec_env("MiniGrid-MemoryS7-v0", 2, wraps=["episodes=2", "stretch=1"], max_episode_steps=3)
    first, _ = env.reset(seed=0)
    assert first["image"].shape == (2, 7, 7, 3) and first["mission"].any()
    seen = [first["image"]]
    for step in range(1, 12):
        observation, _, _, truncated, infos = env.step(np.array([2, 2]))
        seen.append(observation["image"])
        assert truncated.tolist() == [step == 11] * 2
    assert_same(seen[6], seen[0])  # the second episode of the same draw, after 3 real steps and 3 of distraction
    assert (seen[11] != seen[0]).any()  # the next trajectory
    assert infos["final_obs"]["previous_action"].tolist() == [2, 2]
    assert env.state_dict() == {} and env.memory_horizon is None
    picture = envs.make_env("MiniGrid-MemoryS7-v0", wraps=["stretch=1"], render_mode="rgb_array")
    picture.reset(seed=0)
    light = picture.render()
    picture.step(2)
    assert picture.render().mean() < 0.5 * light.mean()


CHOICES = "expected one of stretch, episodes, fresh_episodes, occlude"
STRETCH = "wrap stretch: expected a whole number of steps from 0 to 1000000, as in stretch=10, got "
EPISODES = "wrap episodes: expected a whole number from 1 to 1000, as in episodes=4, got "
OCCLUDE = "wrap occlude: expected steps as in occlude=5-9 or, of every 20, occlude=5-9/20, several with commas, got "
LIST = "wraps: expected a list such as ['stretch=10', 'episodes=4'], got "
BAD = [
    (["strech=3"], f"unknown wrap 'strech': {CHOICES}; did you mean 'stretch'?"),
    (["none", "stretch=1"], f"unknown wrap 'none': {CHOICES}"),
    (["stretch"], f"{STRETCH}'stretch'"),
    (["stretch=-1"], f"{STRETCH}'stretch=-1'"),
    (["stretch=1", "episodes=0"], f"{EPISODES}'episodes=0'"),
    (["episodes=1.5"], f"{EPISODES}'episodes=1.5'"),
    ("stretch=1", f"{LIST}'stretch=1'"),
    (5, f"{LIST}5"),
    ([5], f"{LIST}[5]"),
    *(([f"occlude={v}"], f"{OCCLUDE}'occlude={v}'") for v in ("", "9-5", "5-9/9", "1,,2", "-3", "a-b", "1-2/0")),
]


@pytest.mark.parametrize(("wraps", "message"), BAD)
def test_a_bad_wrap_is_told_in_one_line(wraps, message):
    for make in (
        lambda: envs.parse_wraps(wraps),
        lambda: envs.make_env("Corridor-v0", wraps=wraps),
        lambda: envs.make_vec_env("Corridor-v0", 2, wraps=wraps),
    ):
        with pytest.raises(envs.EnvError) as caught:
            make()
        assert str(caught.value) == message


def test_none_is_no_wrap():
    assert envs.parse_wraps([]) == envs.parse_wraps(["none"]) == []
    assert type(envs.make_env("Corridor-v0", wraps=["none"]).unwrapped).__name__ == "CorridorEnv"
