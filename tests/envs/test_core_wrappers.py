"""Long trajectories: each wrap against the task it wraps, compositions of wraps, and single against vector form."""

from __future__ import annotations

import warnings
from typing import ClassVar

import gymnasium as gym
import numpy as np
import pytest
from env_cases import Stranger, assert_same
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st
from minigrid.core.constants import OBJECT_TO_IDX
from safetensors.numpy import load, save

from expire_span_rl import envs
from expire_span_rl.envs.core_wrappers import DISTRACTIONS
from expire_span_rl.envs.tiles import EAST, NORTH, SOUTH

B = 3
SETTINGS = {  # for short episodes
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
ENTRIES = {"TMaze-v0": "observation", "Copy-v0": "observation", "Collision-v0": "observation", "Text-v0": "observation"}
"""The entry of a task's observation, if it is not "image"."""
TOOLKIT_TASKS = sorted(SETTINGS.keys() & set(envs.env_ids()))
every_wrap = pytest.mark.parametrize("wraps", WRAPS, ids="+".join)
every_task = pytest.mark.parametrize("id", SETTINGS)
every_toolkit_task = pytest.mark.parametrize("id", TOOLKIT_TASKS)


def test_every_task_of_the_toolkit_is_covered():
    assert sorted(envs.env_ids()) == TOOLKIT_TASKS


def random_moves(env, steps: int, seed: int = 0) -> np.ndarray:
    """Random actions [steps, B] that make progress: east is likely."""
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
    for actions in random_moves(vector, 160):
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
@every_toolkit_task
def test_gymnasiums_checker_gives_no_warning(id, wraps):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = envs.make_env(id, wraps=wraps, render_mode="rgb_array", **SETTINGS[id]).unwrapped
        check_env(env, skip_render_check=True)  # the check of rendering needs a spec
        vector = envs.make_vec_env(id, B, wraps=wraps, render_mode="rgb_array", **SETTINGS[id])
    env.reset(seed=0)
    vector.reset(seed=0)
    np.testing.assert_array_equal(env.render(), vector.render()[0])
    assert env.render().shape == env.core.render(0).shape and len(vector.render()) == B


@every_wrap
@every_toolkit_task
@pytest.mark.parametrize("steps", [0, 17])
def test_a_saved_state_continues_identically_and_returned_arrays_do_not_change(id, wraps, steps):
    env, restored = (envs.make_vec_env(id, B, wraps=wraps, **SETTINGS[id]) for _ in range(2))
    env.reset(seed=3)
    restored.reset(seed=99)
    actions = random_moves(env, steps + 150)
    for action in actions[:steps]:
        env.step(action)
    state = save(env.state_dict())
    expected = [env.step(action) for action in actions[steps:]]
    copies = [{key: value.copy() for key, value in outcome[0].items()} for outcome in expected]
    restored.load_state_dict(load(state))
    for outcome, copy, action in zip(expected, copies, actions[steps:], strict=True):
        for left, right in zip(outcome, restored.step(action), strict=True):
            assert_same(left, right)
        assert_same(outcome[0], copy)
    assert any(outcome[-1] for outcome in expected)
    with pytest.raises(envs.EnvError, match="^environment state: expected the fields "):
        env.load_state_dict(envs.make_vec_env(id, B, **SETTINGS[id]).state_dict())


def test_step_some_steps_the_selected_environments_only():
    """They step as in a step of all. The others keep their state and get no reward."""
    for id in TOOLKIT_TASKS:
        env, reference = (gym.make_vec(id, num_envs=8, vectorization_mode="vector_entry_point") for _ in range(2))
        env.reset(seed=0)
        reference.reset(seed=0)
        rng = np.random.default_rng(0)
        for action in random_moves(env, 100):
            mask = rng.random(8) < 0.5
            old_state = env.core.state_dict()
            reward, terminated, truncated = env.core.step_some(action, mask)
            full_reward, full_terminated, full_truncated = reference.core.step(action)
            state = env.core.state_dict()
            for name, array in reference.core.state_dict().items():
                assert_same(state[name][mask], array[mask])
                assert_same(state[name][~mask], old_state[name][~mask])
            assert_same(reward, full_reward * mask)
            assert_same(terminated | truncated, (full_terminated | full_truncated) & mask)
            env.core.reset(np.flatnonzero(env.core.over))
            reference.load_state_dict(env.core.state_dict())


@settings(max_examples=30, deadline=None)
@given(id=st.sampled_from(TOOLKIT_TASKS), n=st.integers(0, 4), seed=st.integers(0, 10**6))
def test_stretching_puts_distraction_between_the_steps_of_the_same_episode(id, n, seed):
    long = envs.make_env(id, wraps=[f"stretch={n}"], **SETTINGS[id])
    task = envs.make_env(id, **SETTINGS[id])
    entry = ENTRIES.get(id, "image")
    rng = np.random.default_rng(seed)
    observation, _ = long.reset(seed=seed)
    expected, _ = task.reset(seed=seed)
    assert long.unwrapped.memory_horizon == task.unwrapped.memory_horizon * (n + 1)
    hides_action = task.metadata.get("hides_previous_action", False)
    no_action = expected["previous_action"]
    done = False
    while not done:
        assert_same(observation[entry], expected[entry])
        action = int(rng.choice([NORTH, EAST, EAST, SOUTH]))
        observation, *outcome, info = long.step(action)
        expected, *task_outcome, task_info = task.step(action)
        assert (outcome, info) == (task_outcome, task_info)
        previous = (observation["previous_action"], observation["previous_reward"])
        assert previous == (no_action if hides_action else action, expected["previous_reward"])
        done = task_outcome[1] or task_outcome[2]
        for k in range(0 if done else n):
            blank = 0 if id in ENTRIES else OBJECT_TO_IDX["floor"]
            assert (np.atleast_1d(observation[entry])[..., 0] == blank).all()
            action = k % 4
            observation, *outcome, info = long.step(action)
            assert outcome == [0.0, False, False] and not any(info.values())
            previous = (observation["previous_action"], observation["previous_reward"])
            assert previous == (no_action if hides_action else action, 0)
    assert_same(observation[entry], expected[entry])


def test_distraction_differs_from_step_to_step_and_from_row_to_row():
    env = envs.make_vec_env("Corridor-v0", 16, wraps=["stretch=30"])
    env.reset(seed=0)
    images = np.array([env.step(np.full(16, EAST))[0]["image"].reshape(16, -1) for _ in range(30)])
    assert len(np.unique(images.reshape(-1, 27), axis=0)) > 0.7 * DISTRACTIONS
    assert len(np.unique(images[..., 1::3])) == 6


@settings(max_examples=30, deadline=None)
@given(id=st.sampled_from(TOOLKIT_TASKS), n=st.integers(1, 4), fresh=st.booleans(), seed=st.integers(0, 10**6))
def test_episodes_in_a_row_are_those_of_the_task(id, n, fresh, seed):
    """Two trajectories. Each repeats one draw, or plays the task's episodes one after the other."""
    long = envs.make_env(id, wraps=[f"{'fresh_' if fresh else ''}episodes={n}"], **SETTINGS[id])
    task = envs.make_env(id, **SETTINGS[id])
    entry = ENTRIES.get(id, "image")
    rng = np.random.default_rng(seed)
    assert long.unwrapped.memory_horizon == task.unwrapped.memory_horizon * (1 if fresh else n)
    task.reset(seed=seed)
    core = task.unwrapped.core
    for trajectory in range(2):
        observation, _ = long.reset(seed=seed) if trajectory == 0 else long.reset()
        successes = []
        for k in range(n):
            number = trajectory * n + k if fresh else trajectory
            core.start(np.arange(1), np.array([seed]), np.array([number]))
            expected = core.observe()[0]
            while not core.over[0]:
                assert_same(observation[entry], expected)
                action = int(rng.choice([NORTH, EAST, EAST, SOUTH]))
                observation, _, terminated, truncated, info = long.step(action)
                task_observation, *_, task_info = task.step(action)
                expected = task_observation[entry]
                assert_same(observation["previous_reward"], task_observation["previous_reward"])
                assert (terminated or truncated) == (core.over[0] and k == n - 1)
            if id != "Text-v0":  # a stream that asked nothing says nothing of success, and does not fail
                successes.append(task_info.pop("is_success", None))
        assert_same(observation[entry], expected)
        summary = {f"success_{k + 1}": bool(success) for k, success in enumerate(successes)}
        summary |= {f"trajectories_{k + 1}": int(success is not None) for k, success in enumerate(successes)}
        said = [success for success in successes if success is not None]
        if said:
            summary["is_success"] = all(said)
        assert info == {**task_info, **summary}
    if not successes:  # a text has no success
        assert id == "Text-v0"
        return
    by_episode = long.unwrapped.metadata["ratios"]["success_by_episode"]
    assert by_episode == {str(k + 1): (f"success_{k + 1}", f"trajectories_{k + 1}") for k in range(n)}


def test_an_agent_that_remembers_the_first_episode_makes_no_mistake_in_the_next():
    """Portal, four episodes of one draw: a perfect memory makes its mistakes in the first episode only."""
    env = envs.make_vec_env("Portal-v0", 200, wraps=["episodes=4"], min_rooms=6, max_rooms=6)
    env.reset(seed=0)
    core = env.unwrapped.core.inner
    known_doors = np.zeros((200, 6), int)  # y of the right door, 0 if unknown
    rng = np.random.default_rng(0)
    is_complete = np.zeros(200, bool)
    steps = np.zeros(200)
    efficiency = np.zeros(200)
    while not is_complete.all():
        at_doors = core.x == 2
        known_door = known_doors[np.arange(200), core.room]
        door = np.where(known_door, known_door, rng.choice([-1, 1], 200))
        rows = np.flatnonzero(at_doors)
        known_doors[rows, core.room[rows]] = core.right[rows, core.room[rows]]
        *_, terminated, _, infos = env.step(np.where(at_doors, np.where(door < 0, NORTH, SOUTH), EAST))
        steps += ~is_complete
        if "final_info" in infos:
            info = infos["final_info"]
            is_new = terminated & ~is_complete
            assert (info["agent_steps"][is_new] == 18).all() and info["is_success"][is_new].all()
            efficiency[is_new] = info["oracle_steps"][is_new] / info["agent_steps"][is_new]
            known_doors[terminated] = 0
        is_complete |= terminated
    assert efficiency.mean() == 1 + 7 / 4
    assert abs(steps.mean() - (3 * (6 + 6 * 7 / 4) + 3 * 18)) < 4 * steps.std() / np.sqrt(200)


@settings(max_examples=30, deadline=None)
@given(id=st.sampled_from(TOOLKIT_TASKS), seed=st.integers(0, 10**6), steps=st.integers(1, 60))
def test_occlusion_hides_the_given_steps_and_nothing_else(id, seed, steps):
    env = envs.make_vec_env(id, B, wraps=["occlude=0,3-4/5,7-11"], **SETTINGS[id])
    task = envs.make_vec_env(id, B, **SETTINGS[id])
    observation, _ = env.reset(seed=seed)
    expected, _ = task.reset(seed=seed)
    entry = ENTRIES.get(id, "image")
    clock = np.zeros(B, int)

    def check(observation, expected, clock, rows):
        is_hidden = (clock == 0) | (clock % 5 >= 3) | ((clock >= 7) & (clock <= 11))
        assert not observation[entry][is_hidden & rows].any()
        np.testing.assert_array_equal(observation[entry][~is_hidden & rows], expected[entry][~is_hidden & rows])
        for key in ("previous_action", "previous_reward"):
            np.testing.assert_array_equal(observation[key][rows], expected[key][rows])

    check(observation, expected, clock, np.ones(B, bool))
    for actions in random_moves(env, steps, seed):
        observation, *outcome, infos = env.step(actions)
        expected, *task_outcome, task_infos = task.step(actions)
        assert_same(tuple(outcome), tuple(task_outcome))
        clock += 1
        done = outcome[1] | outcome[2]
        if done.any():
            check(infos["final_obs"], task_infos["final_obs"], clock, done)
        clock[done] = 0
        check(observation, expected, clock, np.ones(B, bool))


@pytest.mark.parametrize(("id", "hidden"), [("CartPole-v1", [1, 3]), ("TMaze-v0", [1])])
def test_numbers_of_vectors_are_hidden(id, hidden):
    """In all observations, the last one of an episode included. The rest is what it is without the wrap."""
    wraps = ["hide=" + ",".join(map(str, hidden))]
    env, task = (envs.make_vec_env(id, B, wraps=chosen, **SETTINGS[id]) for chosen in (wraps, []))
    (observation, _), (expected, _) = env.reset(seed=3), task.reset(seed=3)
    ended = 0
    for actions in random_moves(env, 60):
        pairs = [(observation["observation"], expected["observation"])]
        observation, *outcome, infos = env.step(actions)
        expected, *task_outcome, task_infos = task.step(actions)
        assert_same(tuple(outcome), tuple(task_outcome))
        if "final_obs" in infos:
            done = outcome[1] | outcome[2]
            ended += done.sum()
            pairs.append(tuple(entry["final_obs"]["observation"][done] for entry in (infos, task_infos)))
        for seen, true in pairs:
            assert not seen[:, hidden].any()
            np.testing.assert_array_equal(np.delete(seen, hidden, 1), np.delete(true, hidden, 1))
    assert ended > 0


def test_only_numbers_that_a_vector_has_are_hidden():
    with pytest.raises(envs.EnvError, match=r"^wrap hide: expected numbers from 0 to 3 of the vector, got 4$"):
        envs.make_env("CartPole-v1", wraps=["hide=4"])
    with pytest.raises(
        envs.EnvError, match=r"^wrap hide: expected an observation with one vector, got observation \[3, 3, 3\]$"
    ):
        envs.make_vec_env("Corridor-v0", 2, wraps=["hide=1"])
    space = spaces.Dict({"mission": spaces.Text(20), "pose": spaces.Box(-1, 1, (2,), np.float32)})
    env = envs.make_env(lambda: Stranger(space), wraps=["hide=1"])  # a text is none, though it has numbers
    assert env.reset(seed=0)[0]["pose"][1] == 0
    with pytest.raises(envs.EnvError, match="^wrap hide: expected an observation with one vector, got no Box$"):
        envs.make_env(lambda: Stranger(spaces.Text(20)), wraps=["hide=1"])
    env = envs.make_env("CartPole-v1", wraps=["hide=0,2"])
    observation, _ = env.reset(seed=1)
    assert not observation["observation"][[0, 2]].any() and observation["observation"][[1, 3]].all()


def test_other_packages_environments_are_wrapped_too():
    env = envs.make_vec_env("MiniGrid-MemoryS7-v0", 2, wraps=["episodes=2", "stretch=1"], max_episode_steps=3)
    observation, _ = env.reset(seed=0)
    assert observation["image"].shape == (2, 7, 7, 3) and observation["mission"].any()
    images = [observation["image"]]
    for step in range(1, 12):
        observation, _, _, truncated, infos = env.step(np.array([2, 2]))
        images.append(observation["image"])
        assert truncated.tolist() == [step == 11] * 2
    assert_same(images[6], images[0])  # the second episode of the same draw, after 3 real and 3 distracting steps
    assert (images[11] != images[0]).any()  # the next trajectory
    assert infos["final_obs"]["previous_action"].tolist() == [2, 2]
    assert env.state_dict() == {} and env.memory_horizon is None
    single = envs.make_env("MiniGrid-MemoryS7-v0", wraps=["stretch=1"], render_mode="rgb_array")
    single.reset(seed=0)
    picture = single.render()
    single.step(2)
    assert single.render().mean() < 0.5 * picture.mean()


class Graded(gym.Env):
    """Names entries of its infos, which wraps do not pass on."""

    metadata: ClassVar = {"render_modes": [], "difficulty_key": "level", "ratios": {"share": ("a", "b")}}
    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return np.zeros(2, np.float32), 0.0, True, False, {"level": 1, "a": 1, "b": 2}


def test_wraps_claim_no_infos_that_they_leave_out():
    """Whoever reads the metadata would look for the entries."""
    names = {"difficulty_key", "ratios"}
    assert names <= envs.make_vec_env(Graded, 2, vectorization="sync").metadata.keys()
    assert not names & envs.make_vec_env(Graded, 2, wraps=["hide=0"]).metadata.keys()


CHOICES = "expected one of stretch, episodes, fresh_episodes, occlude, hide"
STRETCH = "wrap stretch: expected a whole number of steps from 0 to 1000000, as in stretch=10, got "
EPISODES = "wrap episodes: expected a whole number from 1 to 1000, as in episodes=4, got "
OCCLUDE = "wrap occlude: expected steps as in occlude=5-9 or, of every 20, occlude=5-9/20, several with commas, got "
HIDE = "wrap hide: expected indices of numbers in vectors, from 0 on, as in hide=1,3, got "
LIST = "wraps: expected a list such as ['stretch=10', 'episodes=4'], got "
BAD = [
    (["strech=3"], f"unknown wrap 'strech': {CHOICES}; did you mean 'stretch'?"),
    (["none", "stretch=1"], "wraps: expected none alone, got it with 1 more"),
    (["stretch=1", "none"], "wraps: expected none alone, got it with 1 more"),
    (["stretch"], f"{STRETCH}'stretch'"),
    (["stretch=-1"], f"{STRETCH}'stretch=-1'"),
    (["stretch=1", "episodes=0"], f"{EPISODES}'episodes=0'"),
    (["episodes=1.5"], f"{EPISODES}'episodes=1.5'"),
    ("stretch=1", f"{LIST}'stretch=1'"),
    (5, f"{LIST}5"),
    ([5], f"{LIST}[5]"),
    *(([f"occlude={v}"], f"{OCCLUDE}'occlude={v}'") for v in ("", "9-5", "5-9/9", "1,,2", "-3", "a-b", "1-2/0")),
    *(([f"hide={v}"], f"{HIDE}'hide={v}'") for v in ("", "-1", "1,", "x", "1-2")),
]


@pytest.mark.parametrize(("wraps", "message"), BAD)
def test_an_invalid_wrap_gives_an_error_of_one_line(wraps, message):
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


@pytest.mark.parametrize("of_a_trajectory", [True, False])
def test_a_state_of_trajectories_from_before_their_episodes_counted_reports_continues(of_a_trajectory):
    """It has one flag for all episodes of a trajectory, or none. Later trajectories end alike."""
    env, other = (envs.make_vec_env("Collision-v0", 4, stream_length=5, grid=4, wraps=["episodes=2"]) for _ in range(2))
    env.reset(seed=0)
    for _ in range(7):
        env.step(np.zeros(4, int))
    older = {name: array for name, array in env.state_dict().items() if name != "reported"}
    if of_a_trajectory:
        older["reported"] = env.state_dict()["reported"].any(1)
    other.load_state_dict(older)
    for _ in range(13):
        outcome, other_outcome = env.step(np.zeros(4, int)), other.step(np.zeros(4, int))
        assert_same(outcome[0], other_outcome[0])
    assert_same(outcome[-1]["final_info"], other_outcome[-1]["final_info"])


def test_episodes_of_trajectories_count_where_something_was_asked():
    env = envs.make_vec_env("Collision-v0", 64, stream_length=6, grid=4, wraps=["fresh_episodes=2"])
    env.reset(seed=0)
    core = env.unwrapped.core.inner
    for step in range(12):
        *_, infos = env.step(core.target() if step < 6 else np.full(64, 4))  # silence, which is wrong, in the second
        if step == 4:
            before_last = core.asked + (core.target() != 4)
    info = infos["final_info"]
    first, second = before_last > 0, info["asked"] > 0
    assert len(set(zip(first.tolist(), second.tolist(), strict=True))) == 4
    np.testing.assert_array_equal(info["trajectories_1"], first)
    np.testing.assert_array_equal(info["success_1"], first)
    np.testing.assert_array_equal(info["trajectories_2"], second)
    assert not info["success_2"].any()
    np.testing.assert_array_equal(info["_is_success"], first | second)
    np.testing.assert_array_equal(info["is_success"], first & ~second)


def test_episodes_that_were_not_played_since_a_time_limit_ended_the_trajectory_count():
    env = envs.make_env("TMaze-v0", wraps=["episodes=2"], length=4)
    env.reset(seed=0)
    env.step(0)
    assert env.unwrapped.cut_info().items() >= {f"trajectories_{k}": 1 for k in (1, 2)}.items()
    assert env.unwrapped.cut_info().items() >= {f"success_{k}": False for k in (1, 2)}.items()
