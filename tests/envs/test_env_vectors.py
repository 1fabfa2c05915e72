"""Environments one after the other and in processes: the same trajectories, and what happens when a process fails."""

from __future__ import annotations

import os
import signal
import time

import cloudpickle
import numpy as np
import pytest
from env_cases import ACTIONS, LEAVES, Counter, Dying, Maker, Stranger, assert_same
from gymnasium import spaces

from expire_span_rl import envs
from expire_span_rl.envs.gym_adapter import EnvironmentWarning, episode_seed
from expire_span_rl.envs.registration import VECTORIZATIONS

NESTED = spaces.Dict({"a": spaces.Tuple((LEAVES["vector"], LEAVES["text"])), "b": LEAVES["picture"]})


@pytest.fixture
def own_process(monkeypatch):
    """`Dying` environments live in this process."""
    monkeypatch.setenv("PARENT_OF_WORKERS", str(os.getpid()))


@pytest.mark.parametrize("id", ["CartPole-v1", "Taxi-v4", "MiniGrid-MemoryS7-v0", "Switch-v0", "nested"])
def test_both_vectorisations_give_identical_trajectories(id):
    """Observations, rewards, ends, final observations and infos, over two resets."""
    made, kwargs = id, {"Switch-v0": {"max_steps": 30}, "CartPole-v1": {}}.get(id, {"max_episode_steps": 9})
    if id == "nested":
        made, kwargs = Maker(Stranger, observation_space=NESTED, action_space=ACTIONS["multi_discrete_matrix"]), {}
    sync, processes = (envs.make_vec_env(made, 2, vectorization=way, **kwargs) for way in ("sync", "async"))
    assert sync.single_observation_space == processes.single_observation_space
    sync.action_space.seed(0)
    endings = 0
    for seed in (2**35, None):
        for left, right in zip(sync.reset(seed=seed), processes.reset(seed=seed), strict=True):
            assert_same(left, right)
        for _ in range(60):
            actions = sync.action_space.sample()
            *outcome, infos = sync.step(actions)
            *others, other_infos = processes.step(actions)
            for left, right in zip(outcome, others, strict=True):
                assert_same(left, right)
            ended = outcome[2] | outcome[3]
            endings += ended.sum()
            assert infos.keys() == other_infos.keys()
            for key in infos.keys() - {"final_obs"}:
                assert_same(infos[key], other_infos[key])
            for name, values in infos.get("final_obs", {}).items():
                assert_same(values[ended], other_infos["final_obs"][name][ended])
    processes.close()
    assert endings > 2


def test_what_was_returned_by_processes_stays():
    vector = envs.make_vec_env(Maker(Counter, length=3), 2, vectorization="async")
    shown = [vector.reset(seed=0)[0]["observation"]]
    shown += [vector.step(np.zeros(2, int))[0]["observation"] for _ in range(4)]
    vector.close()
    assert [batch[0, 0] for batch in shown] == [0, 1, 2, 0, 1]


@pytest.mark.parametrize("how", ["KeyError", "SystemExit", "kill"])
def test_a_process_that_fails_is_told_and_its_episode_ends_truncated(how, own_process):
    """With its last observation as the final one; its neighbour goes on, and its next episode is the next of its
    seed."""
    vector = envs.make_vec_env(Maker(Dying, how=how, when=(1,)), 2, vectorization="async")
    vector.reset(seed=0)
    for _ in range(2):
        vector.step(np.zeros(2, int))
    with pytest.warns(EnvironmentWarning) as warned:
        observation, reward, terminated, truncated, infos = vector.step(np.ones(2, int))
    message, _, trace = str(warned[0].message).partition("\n")
    said = {"kill": "its process ended with exit code -9"}.get(
        how, f"{how}: 'the simulator" if how == "KeyError" else how
    )
    assert message.startswith("Dying, environment 1") and said in message
    assert message.endswith("its process is restarted (1 of at most 3 times)")
    assert ("Traceback" in trace) == (how != "kill")
    assert (reward.tolist(), terminated.tolist(), truncated.tolist()) == ([4, 0], [False] * 2, [False, True])
    assert infos["final_obs"]["observation"][1].tolist() == [2, 2]
    assert infos["final_obs"]["previous_action"][1] == 1
    assert observation["observation"].tolist() == [[3, 3], [0, 0]]
    assert observation["previous_action"].tolist() == [1, 3]
    assert vector.unwrapped.call("get_wrapper_attr", "seeds")[1] == [episode_seed(1, 1)]
    for _ in range(2):
        observation, *_ = vector.step(np.ones(2, int))
    assert observation["observation"].tolist() == [[0, 0], [2, 2]]
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


def test_after_three_restarts_the_training_is_told(own_process):
    every = tuple(episode_seed(1, k) for k in range(9))
    vector = envs.make_vec_env(Maker(Dying, at=1, when=every), 2, vectorization="async")
    vector.reset(seed=0)
    for _ in range(3):
        with pytest.warns(EnvironmentWarning):
            outcome = vector.step(np.zeros(2, int))
        assert outcome[3].tolist() == [False, True]
    with pytest.raises(envs.EnvironmentFailed) as caught:
        vector.step(np.zeros(2, int))
    told = str(caught.value)
    assert told.startswith("Dying, environment 1, episode 3 (seed 1), step 1: KeyError: 'the simulator went away'")
    assert told.endswith("(after 3 restarts of processes)") and "\n" not in told
    vector.close()


def test_closing_ends_the_processes_even_if_one_is_gone(own_process):
    vector = envs.make_vec_env(Maker(Counter), 2, vectorization="async")
    processes = list(vector.unwrapped.processes)
    os.kill(processes[0].pid, signal.SIGKILL)
    vector.close()
    assert [process.is_alive() for process in processes] == [False, False]


def test_attributes_and_pictures_of_processes():
    vector = envs.make_vec_env(Maker(Counter, render_mode="rgb_array"), 2, vectorization="async")
    vector.reset(seed=0)
    vector.step(np.zeros(2, int))
    assert [picture.mean() for picture in vector.render()] == [1, 1]
    assert vector.unwrapped.get_attr("length") == (5, 5)
    vector.unwrapped.set_attr("length", [7, 9])
    assert vector.unwrapped.get_attr("length") == (7, 9)
    with pytest.raises(envs.EnvironmentFailed, match="no attribute|has no|AttributeError"):
        vector.unwrapped.get_attr("nothing")
    vector.close()


def test_a_maker_is_what_it_was_made_for_in_another_process():
    maker = cloudpickle.loads(cloudpickle.dumps(envs.vec_env_maker("CartPole-v1", 2, vectorization="sync")))
    here, there = envs.make_vec_env("CartPole-v1", 2), maker()
    assert_same(here.reset(seed=3)[0], there.reset(seed=3)[0])


def test_an_unknown_vectorisation_is_refused():
    with pytest.raises(envs.EnvError, match="^vectorization: expected one of 'auto', 'sync', 'async', got 'asinc'$"):
        envs.make_vec_env("CartPole-v1", 2, vectorization="asinc")
    assert VECTORIZATIONS == ("auto", "sync", "async")
