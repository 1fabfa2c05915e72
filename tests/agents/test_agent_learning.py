"""Learning is proved on probe tasks whose right answer is known, one per thing that can break: values, discounting, the
policy, what it reads, what it remembers. Then a short corridor, the real task in small."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from agent_cases import make_trainer, played

from expire_span_rl import envs
from expire_span_rl.agents import PPO, ForgettingConfig, PPOConfig, Trainer
from expire_span_rl.policies import KINDS, ActorCritic

MEMORIES = ("expire_span", "transformer_xl", "adaptive_span", "compressive", "gru")


def first_values(policy, id: str, steps: int) -> list[float]:
    """The value of the first `steps` observations of an episode, taking action 0."""
    env = envs.make_vec_env(id, 1)
    observation, _ = env.reset(seed=0)
    acting, start, values = policy.begin(policy.initial_memory(1), steps), torch.tensor([True]), []
    for _ in range(steps):
        now = {key: torch.as_tensor(value) for key, value in observation.items()}
        values.append(float(policy.step(now, acting, start)[1]))
        observation, *_ = env.step(np.array([0]))
        start = torch.tensor([False])
    return values


def trained(id: str, kind: str, updates: int, **settings):
    trainer = make_trainer(id, kind, updates, **settings)
    while not trainer.done:
        figures = trainer.update()
    return trainer, figures


def test_the_value_of_a_constant_reward():
    """Every episode gives 1: the value of its only observation is 1."""
    trainer, figures = trained("ProbeConstantReward-v0", "none", 25)
    assert first_values(trainer.policy, "ProbeConstantReward-v0", 1) == [pytest.approx(1, abs=0.05)]
    assert figures["rollout/ep_rew_mean"] == 1 and figures["rollout/ep_len_mean"] == 1


def test_the_value_of_a_delayed_reward_is_discounted():
    """A reward one step away is worth gamma, here 0.5."""
    trainer, _ = trained("ProbeDelayedReward-v0", "none", 40, gamma=0.5)
    first, second = first_values(trainer.policy, "ProbeDelayedReward-v0", 2)
    assert (first, second) == (pytest.approx(0.5, abs=0.07), pytest.approx(1, abs=0.07))


def test_the_policy_learns_which_action_is_right():
    trainer, figures = trained("ProbeRightAction-v0", "none", 25)
    assert figures["rollout/success_rate"] > 0.8
    assert played(trainer.policy, "ProbeRightAction-v0", 50).mean() == 1


def test_the_policy_learns_what_the_observation_asks_for():
    trainer, _ = trained("ProbeActionByObservation-v0", "none", 30)
    assert played(trainer.policy, "ProbeActionByObservation-v0", 50).mean() == 1


@pytest.mark.parametrize("agent", ["ppo", "impala"])
@pytest.mark.parametrize("probe", ["RightNumbers", "RightSwitches", "RightReals"])
def test_actions_of_other_spaces_are_learned(probe, agent):
    """Several whole numbers that count from 1, switches, and reals of which one is right in the middle and one at its
    bound."""
    trainer, _ = trained(f"Probe{probe}-v0", "none", 200 if probe == "RightReals" else 60, agent=agent)
    assert played(trainer.policy, f"Probe{probe}-v0", 100).mean() == 1


def test_what_a_mask_forbids_is_never_done():
    """Every other action would end the episode at once: not one does, from the first update on."""
    _, figures = trained("ProbeForbidden-v0", "transformer_xl", 3)
    assert figures["rollout/ep_len_mean"] == 2 and figures["rollout/ep_rew_mean"] == 2


@pytest.mark.parametrize("kind", MEMORIES)
def test_a_cue_is_remembered(kind):
    """Above 95% where without memory nothing is above 50% (the test below)."""
    trainer, _ = trained("ProbeRecall-v0", kind, 60)
    assert played(trainer.policy, "ProbeRecall-v0", 200).mean() > 0.95


def test_without_memory_no_cue_is_remembered():
    """The same learning of the same task by the memoryless control ends near chance."""
    trainer, _ = trained("ProbeRecall-v0", "none", 60)
    assert 0.35 < played(trainer.policy, "ProbeRecall-v0", 400).mean() < 0.65


def test_a_short_corridor_is_learned():
    """Corridors of 3 to 8 steps with Expire-Span and the default sizes, end to end through the trainer: 95% success and
    more. (Four seeds took 28,672 to 36,864 steps.)"""
    env = envs.make_vec_env("Corridor-v0", 64, max_length=8)
    torch.manual_seed(0)
    spaces = env.single_observation_space, env.single_action_space
    policy = ActorCritic.for_spaces(
        *spaces, memory="expire_span", memory_config=KINDS["expire_span"].Config(max_span=32)
    )
    agent = PPO(policy, PPOConfig(num_steps=32, num_minibatches=4), 64, 0)
    trainer = Trainer(env, policy, agent, ForgettingConfig(forgetting=False), 200_000, 0)
    while not trainer.done:
        figures = trainer.update()
        if len(trainer.window.recent) == 1000 and figures["rollout/success_rate"] > 0.98:
            break
    assert played(policy, "Corridor-v0", 400, max_length=8).mean() >= 0.95
