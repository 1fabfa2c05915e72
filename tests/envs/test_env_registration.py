"""Names and settings of environments: valid ones make environments, invalid ones give an error of one line."""

from __future__ import annotations

import gymnasium as gym
import pytest

from expire_span_rl import envs
from expire_span_rl.envs.corridor import Corridor

CORRIDOR_KEYWORDS = "min_length, max_length, length_distribution, view_size, max_steps, render_mode"

BAD = [
    ("Coridor-v0", {}, "unknown environment 'Coridor-v0': expected one of Corridor-v0, ", "mean 'Corridor-v0'?"),
    ("corridor-V0", {}, "unknown environment 'corridor-V0': ", "mean 'Corridor-v0'?"),
    ("MiniGrid-MemoryS7-v1", {}, "unknown environment 'MiniGrid-MemoryS7-v1': ", "mean 'MiniGrid-MemoryS7-v0'?"),
    ("mine.py", {}, "'mine.py': expected an id or a class of the file too, such as mine.py:", "Recall-v0"),
    ("", {}, "unknown environment '': ", "Gymnasium knows"),
    ("antigravity:Corridor-v0", {}, "environment 'antigravity:Corridor-v0': nothing is imported unless ",
     "given to envs.load_environment"),
    ("Corridor-v0", {"max_len": 9}, f"unknown Corridor-v0 keyword 'max_len': expected one of {CORRIDOR_KEYWORDS}; ",
     "mean 'max_length'?"),
    ("Corridor-v0", {"num_envs": 9}, "unknown Corridor-v0 keyword 'num_envs': ", ""),
    ("Corridor-v0", {"id": 9}, "unknown Corridor-v0 keyword 'id': ", ""),
    ("Corridor-v0", {"min_length": 2}, "min_length: expected a whole number from 3 to ", ", got 2"),
    ("Corridor-v0", {"min_length": True}, "min_length: ", ", got True"),
    ("Corridor-v0", {"max_length": "200"}, "max_length: ", ", got '200'"),
    ("Corridor-v0", {"max_length": 20.0}, "max_length: ", ", got 20.0"),
    ("Corridor-v0", {"max_length": 10**30}, "max_length: ", f", got {10**30}"),
    ("Corridor-v0", {"max_length": None}, "max_length: ", ", got None"),
    ("Corridor-v0", {"min_length": 9, "max_length": 8}, "min_length: expected at most max_length (8), got 9", ""),
    ("Corridor-v0", {"view_size": 4}, "view_size: expected an odd number", ", got 4"),
    ("Corridor-v0", {"view_size": 1}, "view_size: expected a whole number from 3 to 31, got 1", ""),
    ("Corridor-v0", {"view_size": 33}, "view_size: expected a whole number from 3 to 31, got 33", ""),
    ("Corridor-v0", {"max_steps": 0}, "max_steps: expected a whole number from 1 to 1000000000, got 0", ""),
    ("Portal-v0", {"max_steps": 10**30}, "max_steps: expected a whole number from 1 to 1000000000, got 1000", ""),
    ("Switch-v0", {"max_steps": 10**30}, "max_steps: expected a whole number from 1 to 1000000000, got 1000", ""),
    ("Corridor-v0", {"length_distribution": "log"}, "length_distribution: expected one of 'uniform', 'log_uniform', ",
     "got 'log'"),
    ("Corridor-v0", {"length_distribution": ["uniform"]}, "length_distribution: ", "got ['uniform']"),
    ("Corridor-v0", {"render_mode": "ansi"}, "render_mode: expected one of None, 'human', 'rgb_array', got 'ansi'", ""),
    ("CartPole-v1", {"foo": 1}, "unknown CartPole-v1 keyword 'foo': expected one of ", "sutton_barto_reward"),
    ("MiniGrid-MemoryS7-v0", {"foo": 1}, "MiniGrid-MemoryS7-v0: ", ""),
]  # fmt: skip


@pytest.mark.parametrize("make", [envs.make_env, lambda id, /, **kwargs: envs.make_vec_env(id, 2, **kwargs)])
@pytest.mark.parametrize(("name", "kwargs", "beginning", "ending"), BAD)
@pytest.mark.filterwarnings("error")
def test_invalid_input_gives_an_error_of_one_line(make, name, kwargs, beginning, ending):
    with pytest.raises(envs.EnvError) as caught:
        make(name, **kwargs)
    message = str(caught.value)
    assert message.startswith(beginning)
    assert message.endswith(ending)
    assert "\n" not in message


def _make_cart_pole(**kwargs):
    return gym.make("CartPole-v1", **kwargs).unwrapped


@pytest.mark.parametrize("wraps", [[], ["stretch=2"]])
def test_an_environment_that_a_function_makes_has_render_modes(wraps):
    gym.register("Made-v0", _make_cart_pole)
    try:
        env = envs.make_env("Made-v0", wraps, render_mode="rgb_array")
        env.reset(seed=0)
        assert env.render().shape == (400, 600, 3)
    finally:
        del gym.registry["Made-v0"]


@pytest.mark.parametrize("num_envs", [0, -1, 2.0, None])
def test_the_number_of_environments_is_checked(num_envs):
    with pytest.raises(envs.EnvError, match="^num_envs: expected a whole number of at least 1, got "):
        envs.make_vec_env("Corridor-v0", num_envs)


def test_a_vector_has_no_human_mode():
    with pytest.raises(envs.EnvError, match="^render_mode: expected one of None, 'rgb_array', got 'human'$"):
        envs.make_vec_env("Corridor-v0", 2, render_mode="human")


def test_settings_reach_the_core():
    kwargs = {"min_length": 5, "max_length": 7, "length_distribution": "log_uniform", "view_size": 5, "max_steps": 9}
    for env in (envs.make_env("Corridor-v0", **kwargs), envs.make_vec_env("Corridor-v0", 2, **kwargs)):
        core = env.unwrapped.core
        assert isinstance(core, Corridor)
        assert {name: getattr(core, name) for name in kwargs} == kwargs
        assert env.unwrapped.memory_horizon == 7


def test_training_kwargs_are_those_of_the_registry():
    assert envs.training_kwargs("Corridor-v0") == {"length_distribution": "log_uniform"}
    assert envs.training_kwargs("Portal-v0") == {"progress_reward": 0.1, "landmark_objects": 3}
    assert envs.training_kwargs("CartPole-v1") == {}
    envs.training_kwargs("Corridor-v0")["length_distribution"] = "changed"
    assert envs.training_kwargs("Corridor-v0") == {"length_distribution": "log_uniform"}


@pytest.mark.parametrize("id", envs.env_ids())
def test_every_task_can_be_made_with_its_training_settings(id):
    env = envs.make_vec_env(id, 2, **envs.training_kwargs(id))
    assert env.observation_space.contains(env.reset(seed=0)[0])
    assert gym.spec(id).vector_entry_point is not None
    assert gym.spec(id).to_json()  # entry points are names, so that a spec can be written down


def test_other_packages_environments_are_stepped_one_by_one_in_same_step_mode():
    env = envs.make_vec_env("MiniGrid-MemoryS7-v0", 2, max_episode_steps=5)
    env.reset(seed=0)
    for step in range(1, 11):
        *_, truncated, infos = env.step([2, 2])
        assert truncated.tolist() == [step % 5 == 0] * 2
        assert ("final_obs" in infos) == (step % 5 == 0)
