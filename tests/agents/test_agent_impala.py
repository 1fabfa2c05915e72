"""IMPALA's learner: its targets against GAE, its loss and gradient by hand, and learning on probe tasks.

T time steps, B environments.
"""

from __future__ import annotations

import math
import subprocess
import sys
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from agent_cases import P, Q, Table, make_policy, make_rollout, make_trainer, train_until_learned

from expire_span_rl import envs
from expire_span_rl.agents import Impala, ImpalaConfig
from expire_span_rl.agents.collector import Collector
from expire_span_rl.agents.impala import clipped_share_by_age, next_values
from expire_span_rl.agents.returns import gae
from expire_span_rl.policies import KINDS

ROOT = Path(__file__).resolve().parents[2]
SHORT = {"min_length": 3, "max_length": 4, "max_steps": 8}


def make_impala(policy, num_envs: int, **settings) -> Impala:
    """A learner with one optimiser step per update, from rewards as they are, without clipping of gradients. settings:
    of ImpalaConfig."""
    defaults = {"num_minibatches": 1, "max_grad_norm": 1e9, "normalize_rewards": False}
    defaults |= {"log_barrier_coef": 0.0, "novelty_coef": 0.0}
    return Impala(policy, ImpalaConfig(**{**defaults, **settings}), num_envs, seed=0)


def collect(kind: str, rollouts: int = 2):
    """A policy with random heads, and the last of some rollouts. In the rollout episodes are truncated, and some go on
    at its end."""
    env = envs.make_vec_env("Corridor-v0", 6, **SHORT)
    policy = make_policy(env, kind, heads=0.1)
    policy.policy_head.bias.data[1] = 1.5
    collector = Collector(env, policy, 12, 5)
    for _ in range(rollouts):
        rollout, _ = collector.collect()
    assert rollout.truncated[:-1].any() and not rollout.truncated[-1].all() and rollout.terminated.any()
    return policy, rollout


def record_targets(agent: Impala, rollout, monkeypatch):
    """(the minibatch, its value targets) of an update."""
    calls = []
    descend = agent._descend

    def spy(part, out, policy_loss, targets, weights):
        calls.append((part, targets))
        return descend(part, out, policy_loss, targets, weights)

    monkeypatch.setattr(agent, "_descend", spy)
    agent.update(rollout, 0.0, 0.0)
    (call,) = calls
    return call


def test_next_values():
    """The next step's value, or the final observation's where the trace was cut. After the last step it is 0 or a final
    observation's."""
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    at = torch.tensor([0, 2]), torch.tensor([1, 0])
    expected = [[3.0, 70.0], [5.0, 6.0], [80.0, 0.0]]
    assert next_values(values, torch.tensor([70.0, 80.0]), at).tolist() == expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("trace_lambda", [0.9, 1.0])
def test_on_policy_the_targets_are_those_of_gae(kind, trace_lambda, monkeypatch):
    """Under the weights that acted, V-trace is the lambda-return. The learner's values then equal the stored ones, at
    terminations, truncations, and where an episode goes on after the rollout."""
    policy, rollout = collect(kind)
    agent = make_impala(policy, 6, trace_lambda=trace_lambda)
    part, targets = record_targets(agent, rollout, monkeypatch)
    _, returns = gae(
        part.rewards,
        part.values,
        part.next_values,
        part.terminated,
        part.truncated,
        gamma=agent.config.gamma,
        gae_lambda=trace_lambda,
    )
    torch.testing.assert_close(targets, returns, atol=1e-5, rtol=0)


def test_the_rollouts_end_is_bootstrapped_with_the_learners_value(monkeypatch):
    """With a bias of the value head that is 10 higher, the targets of the last step are gamma * 10 higher."""
    policy, rollout = collect("expire_span")
    part, before = record_targets(make_impala(policy, 6, trace_lambda=0.0, learning_rate=0.0), rollout, monkeypatch)
    policy.value_head.bias.data += 10
    _, after = record_targets(make_impala(policy, 6, trace_lambda=0.0, learning_rate=0.0), rollout, monkeypatch)
    expected = torch.where(part.terminated[-1], 0.0, 0.99 * 10)
    torch.testing.assert_close((after - before)[-1], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("log_barrier", [0.0, 0.02])
def test_loss_and_gradient_by_hand(log_barrier):
    """All actions are 0, with probability P = 3/4 now, and 3/8 and 9/10 when acting. The ratios are 2, clipped to 1,
    and 5/6. Each step is an episode with value 1/2 and reward 1. Advantages are 1/2 and 5/12, and targets 1 and
    11/12."""
    policy = Table()
    weights = {"ent_coef": 0.04, "final_ent_coef": 0.04, "log_barrier_coef": log_barrier}
    agent = make_impala(policy, 2, **weights, advantage_std_floor=1.0)
    metrics = agent.update(make_rollout([[1, 1]], [[0, 0]], [[3 / 8, 9 / 10]]), 0.0, pressure=0.7)
    advantages = [1 / 2, 5 / 12]
    mean = sum(advantages) / 2
    entropy = -(P * math.log(P) + Q * math.log(Q))
    # All log-probabilities are equal, and the advantages have mean 0.
    assert metrics["train/policy_gradient_loss"] == pytest.approx(0, abs=1e-6)
    expected = {
        "train/value_loss": ((1 / 2) ** 2 + (5 / 12) ** 2) / 4,
        "train/entropy_loss": -entropy,
        "train/memory_loss": 1.4,
        "train/clipped_share": 1 / 2,
        "train/importance_weight": (1 + 5 / 6) / 2,
        "train/advantage_std": 1,
    }
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    slope = 0.04 * P * (math.log(P) + entropy) + log_barrier * (P - 1 / 2)  # of the bonuses; the policy loss has none
    assert policy.logits.grad.tolist() == pytest.approx([slope, -slope], abs=1e-6)
    assert float(policy.value.grad) == pytest.approx(-0.5 * mean)
    assert float(policy.span.grad) == pytest.approx(0.7)


def test_the_policy_gradient_weighs_log_probabilities():
    """Two actions of probability 1/2 with advantages +1 and -1. The derivative of the loss by logit 0 is -1/2, whatever
    the mean reward is. The probabilities when acting are 1/2 too, so that nothing is clipped."""
    policy = Table(logits=(0.0, 0.0))
    agent = make_impala(policy, 2, ent_coef=0.0, final_ent_coef=0.0)
    metrics = agent.update(make_rollout([[8, 6]], [[0, 1]], [[0.5, 0.5]]), 0.0, 0.0)
    assert policy.logits.grad.tolist() == pytest.approx([-0.5, 0.5])
    assert (metrics["train/advantage_std"], metrics["train/clipped_share"]) == (1, 0)


def test_an_action_that_the_learner_would_hardly_take_has_no_gradient():
    """Action 1 has probability 1e-9 now and 1/2 when acting. Its weight is 0, whatever the mean advantage is. Action 0
    is certain now, and its own advantage is 0 after the weighted mean is subtracted."""
    policy = Table(logits=(20.7, 0.0))
    agent = make_impala(policy, 2, ent_coef=0.0, final_ent_coef=0.0)
    agent.update(make_rollout([[8, 8]], [[0, 1]], [[0.5, 0.5]]), 0.0, 0.0)
    assert policy.logits.grad.tolist() == pytest.approx([0, 0], abs=1e-6)


def test_the_clipped_share_is_reported_by_the_age_of_the_oldest_memory():
    """Three steps of four rows that began with memories of age 0, 64, 65 and 300. The last row begins an episode at
    step 1. Clipped are all weights of age 65, one of three of age 64, and none of age 300, where only one step
    counts."""
    start = torch.zeros(3, 4, dtype=torch.bool)
    start[1, 3] = True
    part = SimpleNamespace(memory=SimpleNamespace(oldest=lambda: torch.tensor([0, 64, 65, 300])), episode_start=start)
    clipped = torch.tensor([[0.0, 1, 1, 0], [0, 0, 1, 1], [0, 0, 1, 1]])
    shares = {
        name.removeprefix("train/clipped_share/memory_age_"): x
        for name, x in clipped_share_by_age(clipped, part).items()
    }
    assert shares == pytest.approx({"0": 2 / 5, "1_to_64": 1 / 3, "65_to_256": 1, "above_256": 0})


def test_each_environment_is_used_once():
    policy = Table()
    rollout = make_rollout([[float(b % 3) for b in range(7)]], [[0] * 7], [[P] * 7])
    make_impala(policy, 7, num_minibatches=3).update(rollout, 0.0, 0.0)
    assert [len(rows) for rows in policy.minibatches] == [3, 2, 2] and sorted(chain(*policy.minibatches)) == list(
        range(7)
    )


@pytest.mark.parametrize("kind", ["expire_span", "gru"])
def test_a_cue_is_remembered(kind):
    """Above 95%. Without memory no policy is above 50% (test_agent_learning)."""
    assert train_until_learned(make_trainer("ProbeRecall-v0", kind, 200, agent="impala"), "ProbeRecall-v0") > 0.95


def test_the_same_seed_gives_the_same_weights_and_another_does_not():
    def weights(seed: int) -> torch.Tensor:
        trainer = make_trainer("ProbeRecall-v0", "expire_span", 3, agent="impala", seed=seed)
        while not trainer.done:
            trainer.update()
        return torch.cat([p.detach().flatten() for p in trainer.policy.parameters()])

    expected = weights(1)
    assert torch.equal(expected, weights(1)) and not torch.equal(expected, weights(2))


def test_without_actors_ray_is_not_imported(tmp_path):
    """A whole run in one process does not import it."""
    small = "--num-envs 4 --num-steps 8 --total-timesteps 64 --torch-threads 1 --no-progress-bar --width 16"
    code = "import sys, train_rl; train_rl.main(); assert 'ray' not in sys.modules"
    arguments = ["--agent", "impala", *small.split(), "--run-dir", str(tmp_path / "run")]
    subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, check=True, capture_output=True)
    assert (tmp_path / "run" / "policy.safetensors").is_file()


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"num_minibatches": 0}, "--num-minibatches: expected at least 1, got 0"),
        ({"trace_lambda": 1.5}, "--trace-lambda: expected 0 to 1, got 1.5"),
        ({"c_clip": 0.0}, "--c-clip: expected more than 0, got 0.0"),
        ({"rho_clip": 0.5}, "--rho-clip: expected at least --c-clip (1.0), got 0.5"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError) as error:
        ImpalaConfig(**settings)
    assert str(error.value) == message
