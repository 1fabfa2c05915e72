"""Environments that are stepped one after the other and in processes: equal trajectories, and failures of processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time

import cloudpickle
import numpy as np
import pytest
from env_cases import ACTIONS, LEAVES, Counter, Dying, Maker, Once, Patched, Stranger, assert_same
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit

from expire_span_rl import envs
from expire_span_rl.envs.gym_adapter import EnvironmentWarning, episode_seed
from expire_span_rl.envs.registration import VECTORIZATIONS
from expire_span_rl.envs.sb3_adapter import SB3VecEnv
from expire_span_rl.spaces import EPISODE_LOST

NESTED = spaces.Dict({"a": spaces.Tuple((LEAVES["vector"], LEAVES["text"])), "b": LEAVES["picture"]})


@pytest.fixture
def own_process(monkeypatch):
    """Marks this process for `Dying` environments, which do not fail in it."""
    monkeypatch.setenv("PARENT_OF_WORKERS", str(os.getpid()))


@pytest.mark.parametrize("id", ["CartPole-v1", "Taxi-v4", "MiniGrid-MemoryS7-v0", "Switch-v0", "nested"])
def test_both_vectorisations_give_identical_trajectories(id):
    """Observations, rewards, ends of episodes, final observations and infos, over two resets."""
    env = id
    kwargs = {"Switch-v0": {"max_steps": 30}, "CartPole-v1": {}}.get(id, {"max_episode_steps": 9})
    if id == "nested":
        env = Maker(Stranger, observation_space=NESTED, action_space=ACTIONS["multi_discrete_matrix"])
        kwargs = {}
    sync, processes = (
        envs.make_vec_env(env, 2, vectorization=vectorization, **kwargs) for vectorization in ("sync", "async")
    )
    assert sync.single_observation_space == processes.single_observation_space
    sync.action_space.seed(0)
    endings = 0
    for seed in (2**35, None):
        for left, right in zip(sync.reset(seed=seed), processes.reset(seed=seed), strict=True):
            assert_same(left, right)
        for _ in range(60):
            actions = sync.action_space.sample()
            *outcome, infos = sync.step(actions)
            *process_outcome, process_infos = processes.step(actions)
            for left, right in zip(outcome, process_outcome, strict=True):
                assert_same(left, right)
            done = outcome[2] | outcome[3]
            endings += done.sum()
            assert infos.keys() == process_infos.keys()
            for key in infos.keys() - {"final_obs"}:
                assert_same(infos[key], process_infos[key])
            for name, values in infos.get("final_obs", {}).items():
                assert_same(values[done], process_infos["final_obs"][name][done])
    processes.close()
    assert endings > 2


def test_later_steps_of_processes_do_not_change_returned_observations():
    vector = envs.make_vec_env(Maker(Counter, length=3), 2, vectorization="async")
    observations = [vector.reset(seed=0)[0]["observation"]]
    observations += [vector.step(np.zeros(2, int))[0]["observation"] for _ in range(4)]
    vector.close()
    assert [batch[0, 0] for batch in observations] == [0, 1, 2, 0, 1]


@pytest.mark.parametrize("failure", ["KeyError", "SystemExit", "kill"])
def test_a_process_that_fails_gives_a_warning_and_its_episode_ends_truncated(failure, own_process):
    """The last observation becomes the final one. The other environment continues. The failed environment's next
    episode is the next one of its seed."""
    vector = envs.make_vec_env(Maker(Dying, failure=failure, failing_seeds=(1,)), 2, vectorization="async")
    vector.reset(seed=0)
    for _ in range(2):
        vector.step(np.zeros(2, int))
    with pytest.warns(EnvironmentWarning) as warned:
        observation, reward, terminated, truncated, infos = vector.step(np.ones(2, int))
    message, _, trace = str(warned[0].message).partition("\n")
    problem = {
        "KeyError": "KeyError: 'the simulator",
        "SystemExit": "SystemExit",
        "kill": "its process ended with exit code -9",
    }[failure]
    assert message.startswith("Dying, environment 1") and problem in message
    assert message.endswith("its process is restarted (1 of at most 3 times)")
    assert ("Traceback" in trace) == (failure != "kill")
    assert (reward.tolist(), terminated.tolist(), truncated.tolist()) == ([4, 0], [False] * 2, [False, True])
    assert infos["final_obs"]["observation"][1].tolist() == [2, 2]
    assert infos["final_obs"]["previous_action"][1] == 1
    assert infos["final_info"][EPISODE_LOST].tolist() == [False, True]
    assert observation["observation"].tolist() == [[3, 3], [0, 0]]
    assert observation["previous_action"].tolist() == [1, 3]
    assert vector.unwrapped.call("get_wrapper_attr", "seeds")[1] == [episode_seed(1, 1)]
    for _ in range(2):
        observation, *_ = vector.step(np.ones(2, int))
    assert observation["observation"].tolist() == [[0, 0], [2, 2]]
    vector.close()


def test_an_episode_that_is_lost_counts_nowhere_for_stable_baselines3(own_process):
    vector = SB3VecEnv(envs.make_vec_env(Maker(Dying, failing_seeds=(1,)), 2, vectorization="async"))
    vector.seed(0)
    vector.reset()
    for _ in range(2):
        vector.step(np.zeros(2, int))
    with pytest.warns(EnvironmentWarning):
        *_, dones, infos = vector.step(np.zeros(2, int))
    assert dones.tolist() == [False, True]
    assert infos[1].keys() == {"terminal_observation", "TimeLimit.truncated"}
    for _ in range(5):
        *_, infos = vector.step(np.zeros(2, int))
    assert infos[1]["episode"]["l"] == 5  # the next one counts from its own start
    vector.close()


def test_a_process_killed_from_outside_between_steps_and_at_a_reset(own_process):
    vector = envs.make_vec_env(Maker(Counter), 2, vectorization="async")
    vector.reset(seed=0)
    processes = vector.unwrapped.processes
    os.kill(processes[0].pid, signal.SIGKILL)
    time.sleep(0.2)
    with pytest.warns(EnvironmentWarning, match="environment 0: its process ended with exit code -9"):
        *_, truncated, infos = vector.step(np.zeros(2, int))
    assert truncated.tolist() == [True, False]
    assert infos["_final_obs"].tolist() == [True, False]
    os.kill(processes[1].pid, signal.SIGKILL)
    with pytest.warns(EnvironmentWarning, match="2 of at most 3 times"):
        observation, _ = vector.reset(seed=5)
    assert observation["observation"].tolist() == [[0, 0], [0, 0]]
    assert vector.unwrapped.call("get_wrapper_attr", "seeds")[1] == [6]
    vector.close()


def test_a_failure_after_three_restarts_is_an_error(own_process):
    all_seeds = tuple(episode_seed(1, k) for k in range(9))
    vector = envs.make_vec_env(Maker(Dying, step_number=1, failing_seeds=all_seeds), 2, vectorization="async")
    vector.reset(seed=0)
    for _ in range(3):
        with pytest.warns(EnvironmentWarning):
            outcome = vector.step(np.zeros(2, int))
        assert outcome[3].tolist() == [False, True]
    with pytest.raises(envs.EnvironmentFailed) as caught:
        vector.step(np.zeros(2, int))
    message = str(caught.value)
    where = f"Dying, environment 1, episode 3 (seed {all_seeds[3]}), step 1"
    assert message.startswith(f"{where}: KeyError: 'the simulator went away'")
    assert message.endswith("(after 3 restarts of processes)") and "\n" not in message
    vector.close()


def test_close_ends_the_processes_even_if_one_has_died(own_process):
    vector = envs.make_vec_env(Maker(Counter), 2, vectorization="async")
    processes = list(vector.unwrapped.processes)
    os.kill(processes[0].pid, signal.SIGKILL)
    vector.close()
    assert [process.is_alive() for process in processes] == [False, False]


def test_processes_end_if_one_cannot_make_its_environment(own_process, tmp_path):
    before = multiprocessing.active_children()
    with pytest.raises(envs.EnvError, match="^Once: FileExistsError") as caught:
        envs.make_vec_env(Maker(Once, path=str(tmp_path / "made")), 3, vectorization="async")
    assert multiprocessing.active_children() == before and caught  # also while somebody holds the error


def test_attributes_and_pictures_of_processes():
    vector = envs.make_vec_env(Maker(Counter, render_mode="rgb_array"), 2, vectorization="async")
    vector.reset(seed=0)
    vector.step(np.zeros(2, int))
    assert [picture.mean() for picture in vector.render()] == [1, 1]
    assert vector.unwrapped.get_attr("length") == (5, 5)
    vector.unwrapped.set_attr("length", [7, 9])
    assert vector.unwrapped.get_attr("length") == (7, 9)
    vector.close()


def test_a_call_that_fails_ends_no_process():
    vector = envs.make_vec_env(Maker(Patched, method="render", replacement=lambda env: 1 / 0), 2, vectorization="async")
    vector.reset(seed=0)
    vector.step(np.zeros(2, int))
    inner = vector.unwrapped
    with pytest.raises(AttributeError, match="^Patched, environment 0: AttributeError: .*nothing"):
        inner.get_attr("nothing")
    with pytest.raises(AttributeError, match="^Patched, environment 0: AttributeError: "):
        inner.set_attr("unwrapped", 3)
    with pytest.raises(envs.EnvironmentFailed, match="^Patched, environment 0: ZeroDivisionError: division by zero$"):
        inner.call("render")
    with pytest.raises(envs.EnvironmentFailed, match="environment 0: .*pickle"):
        inner.call("get_wrapper_attr", "render")  # what cannot be sent
    with pytest.raises(envs.EnvError, match="^values: expected 2, one per environment, got 3$"):
        inner.set_attr("length", [1, 2, 3])
    assert not SB3VecEnv(vector).has_attr("action_masks") and SB3VecEnv(vector).has_attr("length")
    assert vector.step(np.zeros(2, int))[0]["observation"].tolist() == [[2, 2]] * 2
    vector.close()


@pytest.mark.parametrize("error", [BrokenPipeError, ConnectionResetError, EOFError, SystemExit])
def test_a_call_whose_own_error_looks_like_the_end_of_the_parent_ends_no_process(error, recwarn):
    """As that of a simulator's client whose connection is gone."""

    def fail(env):
        raise error("the simulator hung up")

    vector = envs.make_vec_env(Maker(Patched, method="render", replacement=fail), 2, vectorization="async")
    vector.reset(seed=0)
    message = f"^Patched, environment 0: {error.__name__}: the simulator hung up$"
    with pytest.raises(envs.EnvironmentFailed, match=message):
        vector.unwrapped.call("render")
    assert vector.step(np.zeros(2, int))[0]["observation"].tolist() == [[1, 1]] * 2
    assert not [warned for warned in recwarn if issubclass(warned.category, EnvironmentWarning)]
    vector.close()


@pytest.mark.parametrize("timeout", [0, 60])
def test_answers_that_an_interrupt_left_behind_are_not_taken_for_others(timeout):
    vector = envs.make_vec_env(Maker(Counter, length=3), 2, vectorization="async", env_timeout=timeout)
    inner = vector.unwrapped
    vector.reset(seed=0)
    for _ in range(4):
        inner.step_async(np.zeros(2, int))
    observation, infos = vector.reset(seed=5)
    assert observation["observation"].tolist() == [[0, 0]] * 2 and infos["t"].tolist() == [0, 0]
    inner.step_async(np.zeros(2, int))
    assert inner.get_attr("length") == (3, 3)
    inner.call_async("render")
    inner.set_attr("length", 2)
    observation, reward, terminated, _, infos = vector.step(np.zeros(2, int))
    assert (reward.tolist(), terminated.tolist()) == ([2, 2], [True, True])
    inner.step_async(np.zeros(2, int))
    assert inner.begin_next(np.array([1]))["observation"].tolist() == [[0, 0]]
    vector.close()


def test_an_unpickled_maker_makes_the_same_environments():
    maker = cloudpickle.loads(cloudpickle.dumps(envs.vec_env_maker("CartPole-v1", 2, vectorization="sync")))
    assert_same(envs.make_vec_env("CartPole-v1", 2).reset(seed=3)[0], maker().reset(seed=3)[0])


def test_an_unknown_vectorisation_is_refused():
    with pytest.raises(envs.EnvError, match="^vectorization: expected one of 'auto', 'sync', 'async', got 'asinc'$"):
        envs.make_vec_env("CartPole-v1", 2, vectorization="asinc")


def test_wrapped_environments_are_stepped_in_one_process():
    for vectorization in ("auto", "sync"):
        envs.make_vec_env("CartPole-v1", 2, ["hide=1"], vectorization=vectorization).close()
    with pytest.raises(envs.EnvError, match="^vectorization with wraps: expected one of 'auto', 'sync', got 'async'$"):
        envs.make_vec_env("CartPole-v1", 2, ["hide=1"], vectorization="async")
    assert VECTORIZATIONS == ("auto", "sync", "async")


@pytest.mark.parametrize("wraps", [[], ["stretch=2"]])
def test_a_function_that_makes_the_same_environment_again_is_refused(wraps):
    """In whatever wrappers: its rows would share one state. It stays open, for it is the user's."""
    closed = []
    same = Patched("close", lambda env: closed.append(env))
    message = "^Patched: expected a new environment from each call, got the same one again$"
    for make in (lambda: same, lambda: TimeLimit(same, 5)):
        with pytest.raises(envs.EnvError, match=message):
            envs.make_vec_env(make, 2, wraps)
        assert not closed
        assert envs.make_vec_env(make, 1, wraps).num_envs == 1
