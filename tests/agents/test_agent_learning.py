"""Learning on probe tasks whose right answer is known, one for each thing that can break: values, discounting, the
policy, its reading of observations, and its memory. Then a short corridor, a small version of the real task."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from agent_cases import make_trainer, play, train_until_learned

from expire_span_rl import envs
from expire_span_rl.agents import PPO, ForgettingConfig, PPOConfig, Trainer
from expire_span_rl.policies import KINDS, ActorCritic

MEMORIES = ("expire_span", "transformer_xl", "adaptive_span", "compressive", "gru")


def first_values(policy, id: str, steps: int) -> list[float]:
    """The values of the first `steps` observations of an episode in which every action is 0."""
    env = envs.make_vec_env(id, 1)
    observation, _ = env.reset(seed=0)
    acting = policy.begin(policy.initial_memory(1), steps)
    start = torch.tensor([True])
    values = []
    for _ in range(steps):
        tensors = {key: torch.as_tensor(value) for key, value in observation.items()}
        values.append(float(policy.step(tensors, acting, start)[1]))
        observation, *_ = env.step(np.array([0]))
        start = torch.tensor([False])
    return values


def train(id: str, kind: str, updates: int, **settings):
    """The trainer after all its updates, and the metrics of the last one."""
    trainer = make_trainer(id, kind, updates, **settings)
    while not trainer.done:
        metrics = trainer.update()
    return trainer, metrics


def test_the_value_of_a_constant_reward():
    """Every episode has reward 1, so that the value of its only observation is 1."""
    trainer, metrics = train("ProbeConstantReward-v0", "none", 25)
    assert first_values(trainer.policy, "ProbeConstantReward-v0", 1) == [pytest.approx(1, abs=0.05)]
    assert metrics["rollout/ep_rew_mean"] == 1 and metrics["rollout/ep_len_mean"] == 1


def test_the_value_of_a_delayed_reward_is_discounted():
    """A reward one step away is worth gamma, here 0.5."""
    trainer, _ = train("ProbeDelayedReward-v0", "none", 40, gamma=0.5)
    values = first_values(trainer.policy, "ProbeDelayedReward-v0", 2)
    assert values == [pytest.approx(0.5, abs=0.07), pytest.approx(1, abs=0.07)]


def test_the_policy_learns_which_action_is_right():
    trainer, metrics = train("ProbeRightAction-v0", "none", 25)
    assert metrics["rollout/success_rate"] > 0.8
    assert play(trainer.policy, "ProbeRightAction-v0", 50).mean() == 1


def test_the_policy_learns_what_the_observation_asks_for():
    trainer, _ = train("ProbeActionByObservation-v0", "none", 30)
    assert play(trainer.policy, "ProbeActionByObservation-v0", 50).mean() == 1


@pytest.mark.parametrize("agent", ["ppo", "impala"])
@pytest.mark.parametrize("probe", ["RightNumbers", "RightSwitches", "RightReals"])
def test_actions_of_other_spaces_are_learned(probe, agent):
    """Several whole numbers that count from 0 and 1, switches, and two real numbers. The right real numbers are in the
    middle of the range and at its bound."""
    trainer = make_trainer(f"Probe{probe}-v0", "none", 200 if probe == "RightReals" else 60, agent=agent)
    assert train_until_learned(trainer, f"Probe{probe}-v0") == 1


def test_an_action_that_a_mask_forbids_is_never_taken():
    """Every other action would end the episode at once. None does, from the first update on."""
    _, metrics = train("ProbeForbidden-v0", "transformer_xl", 3)
    assert metrics["rollout/ep_len_mean"] == 2 and metrics["rollout/ep_rew_mean"] == 2


@pytest.mark.parametrize("kind", MEMORIES)
def test_a_cue_is_remembered(kind):
    """Above 95%. Without memory no policy is above 50% (the test below)."""
    assert train_until_learned(make_trainer("ProbeRecall-v0", kind, 60), "ProbeRecall-v0") > 0.95


def test_without_memory_no_cue_is_remembered():
    """The memoryless control, trained in the same way on the same task, ends near chance."""
    trainer, _ = train("ProbeRecall-v0", "none", 60)
    assert 0.35 < play(trainer.policy, "ProbeRecall-v0", 400).mean() < 0.65


def test_a_short_corridor_is_learned():
    """Corridors of 3 to 8 steps, with Expire-Span and the default sizes, through the trainer: at least 95% success.
    (Four seeds took 28,672 to 36,864 steps.)"""
    env = envs.make_vec_env("Corridor-v0", 64, max_length=8)
    torch.manual_seed(0)
    policy = ActorCritic.for_spaces(
        env.single_observation_space,
        env.single_action_space,
        memory="expire_span",
        memory_config=KINDS["expire_span"].Config(max_span=32),
    )
    agent = PPO(policy, PPOConfig(num_steps=32, num_minibatches=4), num_envs=64, seed=0)
    trainer = Trainer(env, policy, agent, ForgettingConfig(forgetting=False), total=200_000, seed=0)
    while not trainer.done:
        metrics = trainer.update()
        if len(trainer.window.recent) == 1000 and metrics["rollout/success_rate"] > 0.98:
            break
    assert play(policy, "Corridor-v0", 400, max_length=8).mean() >= 0.95
