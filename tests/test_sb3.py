"""Stable-Baselines3 meets ours: its `evaluate_policy` plays a policy in our environments, and the adapter tells the
truth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import EvalCallback, StopTrainingOnRewardThreshold
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecMonitor, VecNormalize

from expire_span_rl import envs
from expire_span_rl.envs.sb3_adapter import SB3VecEnv
from expire_span_rl.evaluation import evaluate
from expire_span_rl.policies import load_policy

PRETRAINED = Path(__file__).parents[1] / "pretrained"


def test_evaluate_policy_carries_the_memory_through():
    """A shipped policy, which needs its memory in every corridor, gets what evaluate.py says it gets; the memoryless
    control, through the same call, is right half of the time."""
    policy, _ = load_policy(PRETRAINED / "corridor-expire_span.safetensors")
    env = SB3VecEnv(envs.make_vec_env("Corridor-v0", 20, min_length=20, max_length=60))
    env.seed(5)
    returns, lengths = evaluate_policy(
        policy, env, n_eval_episodes=100, deterministic=True, return_episode_rewards=True
    )
    assert np.mean(returns) >= 0.98
    assert min(lengths) >= 20 and max(lengths) <= 62
    ours = evaluate(policy, "Corridor-v0", {"min_length": 20, "max_length": 60}, 100)
    assert np.mean(returns) == pytest.approx(ours["success_rate"], abs=0.03)
    control, _ = load_policy(PRETRAINED / "corridor-none.safetensors")
    returns, _ = evaluate_policy(control, env, n_eval_episodes=200, deterministic=True, return_episode_rewards=True)
    assert 0.35 < np.mean(returns) < 0.65


def test_the_adapter_tells_what_the_vector_environment_does():
    """Observations, rewards, dones, final observations, time limits and episode sums, step by step."""
    ours = envs.make_vec_env("Corridor-v0", 6, max_length=5, max_steps=7)
    theirs = VecMonitor(SB3VecEnv(envs.make_vec_env("Corridor-v0", 6, max_length=5, max_steps=7)))
    theirs.seed(11)
    observation, _ = ours.reset(seed=11)
    shown = theirs.reset()
    generator, sums, steps, endings = np.random.default_rng(0), np.zeros(6), np.zeros(6, int), [0, 0]
    for _ in range(400):
        for key, value in observation.items():
            assert (shown[key].reshape(value.shape) == value).all()
        actions = generator.integers(4, size=6)
        observation, reward, terminated, truncated, infos = ours.step(actions)
        shown, their_reward, dones, their_infos = theirs.step(actions)
        sums, steps = sums + reward, steps + 1
        assert (their_reward == reward).all() and (dones == (terminated | truncated)).all()
        for b in np.flatnonzero(dones):
            info = their_infos[b]
            assert info["is_success"] == infos["final_info"]["is_success"][b]
            assert (info["terminal_observation"]["image"] == infos["final_obs"]["image"][b]).all()
            assert info["TimeLimit.truncated"] == truncated[b]
            assert (info["episode"]["r"], info["episode"]["l"]) == (sums[b], steps[b])
            endings[int(truncated[b])] += 1
        sums[dones], steps[dones] = 0, 0
    assert min(endings) > 5  # both ways of ending were seen


EPISODE = 200  # steps of Pendulum-v1


def small_ppo(env, **kwargs) -> PPO:
    return PPO("MultiInputPolicy", env, n_steps=16, batch_size=32, n_epochs=1, seed=0, device="cpu", **kwargs)


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_their_callbacks_and_normalisation_work_through_the_adapter(vectorization, tmp_path):
    """EvalCallback with a reward threshold stops their PPO, on normalised continuous control of ours; what it logged is
    what evaluating the model gives."""

    def made(**kwargs):
        env = SB3VecEnv(envs.make_vec_env("Pendulum-v1", 2, vectorization=vectorization))
        return VecNormalize(env, norm_obs_keys=["observation"], **kwargs)

    train, test = made(), made(training=False, norm_reward=False)
    stop = StopTrainingOnRewardThreshold(reward_threshold=-1e6)
    callback = EvalCallback(
        test, callback_on_new_best=stop, n_eval_episodes=2, eval_freq=16, log_path=str(tmp_path), verbose=0
    )
    model = small_ppo(train)
    model.learn(10_000, callback=callback)
    assert model.num_timesteps == 32  # stopped at the first evaluation
    logged = np.load(tmp_path / "evaluations.npz")
    assert logged["ep_lengths"].tolist() == [[EPISODE, EPISODE]]
    assert callback.last_mean_reward == pytest.approx(logged["results"].mean()) and logged["results"].max() < 0
    assert test.obs_rms["observation"].count == pytest.approx(train.obs_rms["observation"].count)  # synchronised
    assert train.obs_rms["observation"].mean.shape == (3,)
    train.close()
    test.close()


@pytest.mark.parametrize("id", ["Taxi-v4", "MiniGrid-MemoryS7-v0", "Blackjack-v1", "Pendulum-v1"])
def test_spaces_of_all_kinds_reach_their_networks(id):
    env = SB3VecEnv(envs.make_vec_env(id, 2))
    assert env.observation_space["previous_reward"].shape == (1,)
    model = small_ppo(env)
    model.learn(32)
    env.seed(3)
    observation = env.reset()
    for _ in range(3):
        assert env.observation_space.contains({key: value[0] for key, value in observation.items()})
        actions, _ = model.predict(observation)
        observation, reward, dones, infos = env.step(actions)
        assert (reward.shape, dones.shape, len(infos)) == ((2,), (2,), 2)


def test_monitor_goes_around_a_single_environment(tmp_path):
    """Their `evaluate_policy` over `Monitor` over one of ours: the returns that the file holds are those that it
    tells."""
    policy, _ = load_policy(PRETRAINED / "corridor-expire_span.safetensors")
    env = Monitor(envs.make_env("Corridor-v0", max_length=20), str(tmp_path / "log"))
    returns, lengths = evaluate_policy(policy, env, n_eval_episodes=10, return_episode_rewards=True)
    assert np.mean(returns) == 1.0
    assert env.get_episode_rewards()[:10] == returns and env.get_episode_lengths()[:10] == lengths


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_attributes_of_environments_that_are_stepped_one_by_one(vectorization):
    env = SB3VecEnv(envs.make_vec_env("CartPole-v1", 3, vectorization=vectorization))
    env.reset()
    assert env.get_attr("gravity", [0, 2]) == [9.8, 9.8]
    env.set_attr("gravity", 5.0)
    assert env.get_attr("gravity") == [5.0] * 3
    assert env.env_method("get_wrapper_attr", "gravity") == [5.0] * 3
    assert env.env_is_wrapped(Monitor) == [True] * 3
    env.close()
