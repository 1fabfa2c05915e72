"""Rewards divided by the size of returns, so that settings do not depend on the scale of rewards."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from agent_cases import make_trainer, play

from expire_span_rl.agents.checkpoint import checkpoint_bytes, load_checkpoint
from expire_span_rl.agents.reward_scale import LARGEST_REWARD, RewardScale

GAMMA = 0.9


def steps(seed: int, size: float = 1.0, rate: float = 1.0) -> SimpleNamespace:
    """The parts of a rollout that a scale reads, of 20 steps of 3 environments. rate: the share of steps with a
    reward."""
    rng = np.random.default_rng(seed)
    rewards = size * rng.normal(1, 2, (20, 3)) * (rng.random((20, 3)) < rate)
    ends = rng.random((20, 3)) < 0.2
    truncated = ends & (rng.random((20, 3)) < 0.5)
    return SimpleNamespace(
        rewards=torch.tensor(rewards), terminated=torch.tensor(ends & ~truncated), truncated=torch.tensor(truncated)
    )


def make_scale(*rollouts: SimpleNamespace) -> RewardScale:
    """A scale that has observed these rollouts."""
    scale = RewardScale(GAMMA)
    for rollout in rollouts:
        scale.observe(rollout)
    return scale


def test_the_scale_is_that_of_a_slow_transcription():
    """The root mean square of the returns to go that are not 0, each within its episode and its rollout."""
    rollouts = [steps(0), steps(1, rate=0.2)]
    returns = []
    for rollout in rollouts:
        ends = rollout.terminated | rollout.truncated
        for b in range(3):
            for t in range(20):
                total = 0.0
                discount = 1.0
                for s in range(t, 20):
                    total += discount * float(rollout.rewards[s, b])
                    discount *= GAMMA
                    if ends[s, b]:
                        break
                returns.append(total)
    returns = [total for total in returns if total]
    assert len(returns) < 120
    assert make_scale(*rollouts).value == pytest.approx(np.sqrt(np.mean(np.square(returns))), rel=1e-9)


@pytest.mark.parametrize("size", [1e-4, 100.0, 1e6])
def test_scaled_rewards_do_not_depend_on_the_scale(size):
    unit_scale = make_scale(steps(2), steps(3)).value
    scale = make_scale(steps(2, size), steps(3, size)).value
    assert scale == pytest.approx(size * unit_scale, rel=1e-9)


def test_without_rewards_the_scale_is_one():
    assert make_scale().value == make_scale(steps(4, rate=0.0)).value == 1


def test_a_reward_at_the_end_of_long_episodes_is_not_made_large():
    """With one reward in 60 steps, the scale is about the size of that reward, not of the average over all steps."""
    rollout = steps(5)
    for name in ("rewards", "terminated", "truncated"):
        getattr(rollout, name).zero_()
    rollout.rewards[-1, 0] = 1
    rollout.terminated[-1] = 1
    value = make_scale(rollout).value
    assert 0.4 < value < 1 and value > 3 * float(rollout.rewards.std())


def test_it_goes_on_from_its_state():
    parts = steps(6), steps(7), steps(8)
    loaded = RewardScale(GAMMA)
    loaded.load_state_dict(make_scale(*parts[:2]).state_dict())
    loaded.observe(parts[2])
    assert loaded.value == make_scale(*parts).value


@pytest.mark.parametrize("size", [0.01, 100.0])
def test_learning_does_not_depend_on_the_scale_of_rewards(size):
    """The probe of the right action is solved with a reward of `size` as with a reward of 1."""
    trainer = make_trainer(
        "ProbeScaled-v0", "none", 25, env_kwargs={"size": size}, normalize_rewards=True, amsgrad=False
    )
    while not trainer.done:
        metrics = trainer.update()
    assert play(trainer.policy, "ProbeScaled-v0", 50, size=size).mean() == 1
    assert metrics["train/reward_scale"] == pytest.approx(size, rel=1e-5)


def test_an_outlier_is_clipped():
    trainer = make_trainer("ProbeScaled-v0", "none", 1, env_kwargs={"size": 1.0}, normalize_rewards=True)
    rollout, _ = trainer.collector.collect()
    for _ in range(100):
        trainer.agent.reward_scale.observe(rollout)
    rollout.rewards[0, 0] = 1000.0
    assert float(trainer.agent.reward_scale.apply(rollout).rewards.max()) == LARGEST_REWARD


def test_a_trainer_saves_and_restores_its_scale(tmp_path):
    trainer, loaded = (
        make_trainer("ProbeScaled-v0", "none", 6, env_kwargs={"size": 3.0}, normalize_rewards=True) for _ in range(2)
    )
    for _ in range(3):
        trainer.update()
    (tmp_path / "x").write_bytes(checkpoint_bytes(*trainer.state()))
    loaded.load_state(*load_checkpoint(tmp_path / "x"))
    assert loaded.agent.reward_scale.value == trainer.agent.reward_scale.value == pytest.approx(3)
