"""Tests of every task in the registry. A new task is covered as soon as it is registered."""

from __future__ import annotations

import warnings

import gymnasium as gym
import numpy as np
import pytest
from env_cases import assert_same
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from safetensors.numpy import load, save

from expire_span_rl import envs
from expire_span_rl.envs.core import counter_uniform

B = 4
WITHOUT_SUCCESS = ("Text-v0",)
every_task = pytest.mark.parametrize("id", envs.env_ids())


def make_batched(id: str, num_envs: int = B, **kwargs):
    return gym.make_vec(id, num_envs=num_envs, vectorization_mode="vector_entry_point", **kwargs)


def random_actions(env, steps: int, seed: int = 0) -> np.ndarray:
    """Actions [steps, B], the same for the same seed."""
    n = int(env.single_action_space.n)
    return np.random.default_rng(seed).integers(n, size=(steps, env.num_envs))


@every_task
def test_gymnasiums_checker_gives_no_warning(id):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gym.make(id, render_mode="rgb_array").unwrapped)


@every_task
def test_make_and_make_vec_agree(id):
    """The vector form against Gymnasium's SyncVectorEnv over the single form: observations, ends of episodes, infos."""
    batched = make_batched(id)
    singles = SyncVectorEnv([lambda: gym.make(id)] * B, autoreset_mode=AutoresetMode.SAME_STEP)
    assert batched.single_observation_space == singles.single_observation_space
    assert batched.observation_space == singles.observation_space
    assert batched.action_space == singles.action_space
    assert batched.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert_same(batched.reset(seed=11)[0], singles.reset(seed=11)[0])
    endings = 0
    for action in random_actions(batched, 2100):
        *outcome, infos = batched.step(action)
        *expected, expected_infos = singles.step(action)
        for left, right in zip(outcome, expected, strict=True):
            assert_same(left, right)
        assert infos.keys() == expected_infos.keys()
        if not infos:
            continue
        np.testing.assert_array_equal(infos["_final_obs"], expected_infos["_final_obs"])
        np.testing.assert_array_equal(infos["_final_info"], expected_infos["_final_info"])
        assert infos["final_info"].keys() == expected_infos["final_info"].keys()
        for row in np.flatnonzero(infos["_final_obs"]):
            endings += 1
            assert_same(infos["final_obs"][row], expected_infos["final_obs"][row])
            for key, array in infos["final_info"].items():
                assert array[row] == expected_infos["final_info"][key][row]
    assert endings > B


@every_task
def test_seeds_reproduce_and_differ(id):
    def run(seed: int | None) -> list:
        env = make_batched(id, 16)
        return [env.reset(seed=seed)[0], *(env.step(action)[:4] for action in random_actions(env, 300))]

    for left, right in zip(run(5), run(5), strict=True):
        for left_array, right_array in zip(left, right, strict=True):
            assert_same(left_array, right_array)
    observations = [b"".join(step[0].tobytes() for step in run(seed)[1:]) for seed in (5, 500, None, None)]
    assert len(set(observations)) == 4


@every_task
def test_environment_i_equals_a_single_one_with_its_seed_for_all_batch_sizes(id):
    def episodes(env, row: int) -> list:
        """The states of environment `row` at the starts of its next five episodes."""
        states = []
        for _ in range(5):
            states.append({name: value[row].tolist() for name, value in env.state_dict().items() if name != "seed"})
            env.reset()
        return states

    batched = make_batched(id, 8)
    single = gym.make(id).unwrapped
    batched.reset(seed=20)
    single.reset(seed=23)
    expected = episodes(batched, 3)
    assert episodes(single, 0) == expected
    batched.reset(seed=list(range(9, 9 + 8)))
    single.reset(seed=12)
    assert episodes(single, 0) == episodes(batched, 3) != expected


@every_task
def test_a_reset_without_a_seed_begins_the_next_episode(id):
    env = make_batched(id)
    env.reset(seed=1)
    env.reset()
    assert env.core.episode.tolist() == [1] * B
    mask = np.array([True, False, True, False])
    env.step(np.ones(B, int))
    state = env.state_dict()
    observation, _ = env.reset(options={"reset_mask": mask})
    assert env.core.episode.tolist() == [2, 1, 2, 1]
    for name, array in env.state_dict().items():
        assert_same(array[~mask], state[name][~mask])
    assert env.core.steps.tolist() == [0, 1, 0, 1]
    assert_same(observation, env.core.observe())


@every_task
@pytest.mark.parametrize("steps", [0, 7, 250])
def test_a_saved_state_continues_identically(id, steps):
    """Through safetensors, into an environment in another state."""
    env = make_batched(id)
    restored = make_batched(id)
    env.reset(seed=3)
    restored.reset(seed=99)
    actions = random_actions(env, steps + 1100)
    for action in actions[:steps]:
        env.step(action)
    state = env.state_dict()
    saved = save(state)
    expected = [env.step(action) for action in actions[steps:]]
    restored.load_state_dict(load(saved))
    for outcome, action in zip(expected, actions[steps:], strict=True):
        for left, right in zip(outcome, restored.step(action), strict=True):
            assert_same(left, right)
    assert_same(state, load(saved))  # the state is a copy: later steps do not change it
    assert any(outcome[-1] for outcome in expected)


@every_task
def test_a_single_environment_saves_its_state_too(id):
    env = gym.make(id).unwrapped
    restored = gym.make(id).unwrapped
    env.reset(seed=3)
    env.step(1)
    restored.load_state_dict(env.state_dict())
    for action in random_actions(make_batched(id, 1), 30)[:, 0]:
        for left, right in zip(env.step(action), restored.step(action), strict=True):
            assert_same(left, right)
    env.reset()
    restored.reset()
    assert_same(env.state_dict(), restored.state_dict())


@every_task
def test_a_state_of_another_shape_is_refused_and_changes_nothing(id):
    env = make_batched(id)
    env.reset(seed=3)
    state = env.state_dict()
    with pytest.raises(envs.EnvError, match=r"^environment state '\w+': expected \w+\[4.*\], got \w+\[5.*\]$"):
        env.load_state_dict(make_batched(id, 5).state_dict())
    with pytest.raises(envs.EnvError, match="^environment state: expected the fields "):
        env.load_state_dict({"steps": np.zeros(B, np.int64)})
    assert_same(env.state_dict(), state)


@every_task
def test_later_steps_do_not_write_to_returned_arrays(id):
    env = make_batched(id)
    outcomes = [(env.reset(seed=0)[0],)]
    copies = [(outcomes[0][0].copy(),)]
    for action in random_actions(env, 1100):
        *outcome, infos = env.step(action)
        if infos:
            outcome += [infos["final_obs"], infos["_final_obs"], *infos["final_info"].values()]
        outcomes.append(outcome)
        copies.append([array.copy() for array in outcome])
    for outcome, copy in zip(outcomes, copies, strict=True):
        for array, array_copy in zip(outcome, copy, strict=True):
            assert_same(array, array_copy)


@every_task
def test_reports_success_difficulty_and_horizon(id):
    env = make_batched(id)
    assert isinstance(env.memory_horizon, int) and env.memory_horizon > 0
    assert env.memory_horizon == gym.make(id).unwrapped.memory_horizon
    env.reset(seed=0)
    for action in random_actions(env, 2000):
        *_, infos = env.step(action)
        if infos:
            break
    info = infos["final_info"]
    if id in WITHOUT_SUCCESS:
        assert "is_success" not in info
        info |= {"is_success": np.zeros(B, bool), "_is_success": infos["_final_info"]}
    assert info["is_success"].dtype == bool
    assert np.issubdtype(info[env.metadata["difficulty_key"]].dtype, np.integer)
    assert all(info[f"_{key}"].shape == (B,) for key in ("is_success", env.metadata["difficulty_key"]))


@every_task
@pytest.mark.parametrize("wraps", [[], ["stretch=2"], ["episodes=2"], ["stretch=1", "episodes=2"]])
def test_no_episode_is_longer_than_the_task_says(id, wraps):
    """And with some action one is as long, but for the steps of distraction after its end."""
    short = {"Corridor-v0": {"max_length": 5}, "Portal-v0": {"max_rooms": 2}, "Switch-v0": {"max_steps": 30}}
    short |= {"TMaze-v0": {"length": 9}, "Copy-v0": {"delay": 5, "length": 3}}
    streams = {"stream_length": 20}
    env = envs.make_vec_env(id, B, wraps=wraps, **short.get(id, streams))
    env.reset(seed=0)
    longest = envs.longest_episode(env)
    found = 0
    steps = np.zeros(B, int)
    for _ in range(3 * longest):
        *_, terminated, truncated, _ = env.step(np.zeros(B, int))
        steps += 1
        found = max(found, steps.max())
        steps[terminated | truncated] = 0
    assert 0.9 * longest - 4 <= found <= longest


@pytest.mark.parametrize(
    "kwargs, longest",
    [({}, 500), ({"max_episode_steps": 77}, 77), ({"max_episode_steps": -1}, None), ({"wraps": ["stretch=1"]}, 1000)],
)
def test_gymnasiums_time_limit_is_the_longest_episode(kwargs, longest):
    env = envs.make_vec_env("CartPole-v1", 2, vectorization="sync", **kwargs)
    assert envs.longest_episode(env) == longest


@every_task
def test_renders_frames_of_one_size(id):
    single = gym.make(id, render_mode="rgb_array")
    batched = make_batched(id, 2, render_mode="rgb_array")
    sizes = set()
    for seed in range(3):
        single.reset(seed=seed)
        batched.reset(seed=seed)
        frames = [single.render(), *batched.render()]
        assert len(frames) == 3
        np.testing.assert_array_equal(frames[0], frames[1])
        sizes |= {(frame.shape, frame.dtype) for frame in frames}
    assert len(sizes) == 1
    shape, dtype = sizes.pop()
    assert dtype == np.uint8 and len(shape) == 3 and shape[2] == 3
    without_render_mode = make_batched(id, 2)
    without_render_mode.reset(seed=0)
    assert without_render_mode.render() is None


@every_task
def test_human_mode_shows_the_picture_in_a_window(id, monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    import pygame

    env = gym.make(id, render_mode="human", disable_env_checker=True).unwrapped
    env.reset(seed=0)
    env.step(1)
    picture = pygame.surfarray.array3d(pygame.display.get_surface()).swapaxes(0, 1)
    np.testing.assert_array_equal(picture, env.core.render(0))
    env.close()
    assert not pygame.display.get_init()


@every_task
def test_misuse_gives_an_error_of_one_line(id):
    env = make_batched(id)
    single = gym.make(id).unwrapped
    for step_before_reset in (lambda: env.step(np.zeros(B, int)), lambda: single.step(0)):
        with pytest.raises(ResetNeeded, match="expected reset"):
            step_before_reset()
    n = int(env.single_action_space.n)
    env.reset(seed=0)
    for actions, message in (
        (np.zeros(B + 1, int), rf"^actions: expected int\[{B}\], got int64\[{B + 1}\]$"),
        (np.zeros(B), rf"^actions: expected int\[{B}\], got float64\[{B}\]$"),
        (np.full(B, n), rf"^actions: expected numbers from 0 to {n - 1}, got {n} to {n}$"),
        (np.full(B, -1), rf"^actions: expected numbers from 0 to {n - 1}, got -1 to -1$"),
    ):
        with pytest.raises(envs.EnvError, match=message):
            env.step(actions)
    for seed, message in (
        (-1, "^seed: expected a whole number of at least 0, got -1$"),
        ([1, 2], f"^seed: expected {B} seeds, one per environment, got 2$"),
        ([1, 2, None, 3], "^seed: expected a whole number of at least 0, got None$"),
    ):
        with pytest.raises(envs.EnvError, match=message):
            env.reset(seed=seed)
    with pytest.raises(envs.EnvError, match="^seed: expected a whole number of at least 0, got -1$"):
        single.reset(seed=-1)
    with pytest.raises(envs.EnvError, match=r"^reset_mask: expected bool\[4\], got int64\[4\]$"):
        env.reset(options={"reset_mask": np.ones(B, int)})


@every_task
def test_an_episode_that_is_over_needs_a_reset(id):
    env = gym.make(id).unwrapped
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    while not env.core.over[0]:
        env.step(int(rng.integers(env.action_space.n)))
    with pytest.raises(ResetNeeded):
        env.step(0)
    env.reset()
    assert env.core.episode[0] == 1 and env.core.steps[0] == 0


def test_counter_uniform_is_splitmix64_of_the_three_numbers():
    """Against arithmetic with Python's integers."""
    mask = 2**64 - 1
    golden = 0x9E3779B97F4A7C15

    def mix(z: int) -> int:
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & mask
        z = (z ^ z >> 27) * 0x94D049BB133111EB & mask
        return z ^ z >> 31

    def reference(seed: int, episode: int, draw: int) -> float:
        bits = mix(seed + (episode + 1) * golden & mask)
        return (mix(mix(bits + (draw + 1) * golden & mask)) >> 11) / 2**53

    seeds = np.array([0, 1, 2**63 - 1])
    episodes = np.array([0, 7, 10**12])
    draws = np.array([0, 1, 5])
    grid = counter_uniform(seeds[:, None, None], episodes[:, None], draws)
    for (i, j, k), value in np.ndenumerate(grid):
        assert value == reference(int(seeds[i]), int(episodes[j]), int(draws[k]))
