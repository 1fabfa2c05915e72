"""Stable-Baselines3 meets ours: its `evaluate_policy` plays a policy in our environments, and the adapter tells the truth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecMonitor

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
    assert 20 <= min(lengths) and max(lengths) <= 62
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
