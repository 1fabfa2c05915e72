"""IMPALA's learner: its targets against GAE and against V-trace by hand, its gradient by hand, and learning on probes.
T time steps, B environments."""

from __future__ import annotations

import math
import subprocess
import sys
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from agent_cases import P, Q, Table, make_policy, make_rollout, make_trainer, played

from expire_span_rl import envs
from expire_span_rl.agents import Impala, ImpalaConfig
from expire_span_rl.agents.impala import by_age, following
from expire_span_rl.agents.returns import gae
from expire_span_rl.agents.rollout import Collector
from expire_span_rl.policies import KINDS

ROOT = Path(__file__).resolve().parents[2]
SHORT = {"min_length": 3, "max_length": 4, "max_steps": 8}


def make_impala(policy, num_envs: int, **settings) -> Impala:
    """One optimiser step per update, not clipped by norm; `settings`: of ImpalaConfig."""
    plain = {"num_minibatches": 1, "max_grad_norm": 1e9}
    return Impala(policy, ImpalaConfig(**{**plain, **settings}), num_envs, seed=0)


def collected(kind: str, rollouts: int = 2):
    """A policy of random heads and the last of some rollouts, with truncations inside and rows that go on at its
    end."""
    env = envs.make_vec_env("Corridor-v0", 6, **SHORT)
    policy = make_policy(env, kind, heads=0.1)
    policy.policy_head.bias.data[1] = 1.5
    collector = Collector(env, policy, 12, 5)
    for _ in range(rollouts):
        rollout, _ = collector.collect()
    assert rollout.truncated[:-1].any() and not rollout.truncated[-1].all() and rollout.terminated.any()
    return policy, rollout


def targets_of(agent: Impala, rollout, monkeypatch):
    """(the minibatch, the targets) that an update descends with."""
    seen = []
    descend = agent._descend

    def spy(part, out, policy_loss, targets, weights):
        seen.append((part, targets))
        return descend(part, out, policy_loss, targets, weights)

    monkeypatch.setattr(agent, "_descend", spy)
    agent.update(rollout, 0.0, 0.0)
    (found,) = seen
    return found


def test_the_value_that_follows():
    """The next step's, but where the trace was cut that of the final observation; after the last step 0 or a
    final's."""
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    at = torch.tensor([0, 2]), torch.tensor([1, 0])
    expected = [[3.0, 70.0], [5.0, 6.0], [80.0, 0.0]]
    assert following(values, torch.tensor([70.0, 80.0]), at).tolist() == expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("trace_lambda", [0.9, 1.0])
def test_on_policy_the_targets_are_those_of_gae(kind, trace_lambda, monkeypatch):
    """Under the weights that acted V-trace is the lambda-return, with episodes that end inside the rollout, truncations
    too, and rows that go on after it: what the learner's unroll says of all these is what the actors stored."""
    policy, rollout = collected(kind)
    agent = make_impala(policy, 6, trace_lambda=trace_lambda)
    part, targets = targets_of(agent, rollout, monkeypatch)
    facts = part.rewards, part.values, part.next_values, part.terminated, part.truncated
    _, returns = gae(*facts, agent.config.gamma, trace_lambda)
    torch.testing.assert_close(targets, returns, atol=1e-5, rtol=0)


def test_the_rollouts_end_is_bootstrapped_with_the_learners_value(monkeypatch):
    """Once the value head's bias is 10 higher, so is what follows the last step, of which the target has gamma
    times."""
    policy, rollout = collected("expire_span")
    part, before = targets_of(make_impala(policy, 6, trace_lambda=0.0, learning_rate=0.0), rollout, monkeypatch)
    policy.value_head.bias.data += 10
    _, after = targets_of(make_impala(policy, 6, trace_lambda=0.0, learning_rate=0.0), rollout, monkeypatch)
    last = torch.where(part.terminated[-1], 0.0, 0.99 * 10)
    torch.testing.assert_close((after - before)[-1], last, atol=1e-4, rtol=0)


def test_loss_and_gradient_by_hand():
    """Action 0 throughout, of probability P = 3/4 now. It was 3/8 and 9/10 when acting: ratios 2, clipped to 1, and
    5/6. Each step is an episode, the value is 1/2, rewards are 1: advantages 1/2 and 5/12, targets 1 and 11/12."""
    policy = Table()
    agent = make_impala(policy, 2, ent_coef=0.04, final_ent_coef=0.04, advantage_std_floor=1.0)
    figures = agent.update(make_rollout([[1, 1]], [[0, 0]], [[3 / 8, 9 / 10]]), 0.0, pressure=0.7)
    advantages = [1 / 2, 5 / 12]
    mean = sum(advantages) / 2
    entropy = -(P * math.log(P) + Q * math.log(Q))
    assert figures["train/policy_gradient_loss"] == pytest.approx(
        0, abs=1e-6
    )  # one log-probability, advantages around 0
    expected = {
        "train/value_loss": ((1 / 2) ** 2 + (5 / 12) ** 2) / 4,
        "train/entropy_loss": -entropy,
        "train/memory_loss": 1.4,
        "train/clipped_share": 1 / 2,
        "train/importance_weight": (1 + 5 / 6) / 2,
        "train/advantage_std": 1,
    }
    assert {name: figures[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    slope = 0.04 * P * (math.log(P) + entropy)  # of the entropy bonus; that of the policy loss cancels
    assert policy.logits.grad.tolist() == pytest.approx([slope, -slope], abs=1e-6)
    assert float(policy.value.grad) == pytest.approx(-0.5 * mean)
    assert float(policy.span.grad) == pytest.approx(0.7)


def test_the_policy_gradient_weighs_log_probabilities():
    """Two actions with advantages +1 and -1 under even odds: the slope of the loss by logit 0 is -1/2, whatever the
    mean reward. Acting probabilities of 1/2 too, so that nothing is clipped."""
    policy = Table(logits=(0.0, 0.0))
    agent = make_impala(policy, 2, ent_coef=0.0, final_ent_coef=0.0)
    figures = agent.update(make_rollout([[8, 6]], [[0, 1]], [[0.5, 0.5]]), 0.0, 0.0)
    assert policy.logits.grad.tolist() == pytest.approx([-0.5, 0.5])
    assert (figures["train/advantage_std"], figures["train/clipped_share"]) == (1, 0)


def test_what_the_learner_would_hardly_do_is_not_pushed_further():
    """Action 1, of probability 1e-9 now and 1/2 when acting, and action 0, certain now: the first has weight 0 whatever
    the mean advantage is, so that no gradient comes from it; and what is left of the second lies around 0 itself."""
    policy = Table(logits=(20.7, 0.0))
    agent = make_impala(policy, 2, ent_coef=0.0, final_ent_coef=0.0)
    agent.update(make_rollout([[8, 8]], [[0, 1]], [[0.5, 0.5]]), 0.0, 0.0)
    assert policy.logits.grad.tolist() == pytest.approx([0, 0], abs=1e-6)


def test_clipped_weights_are_told_by_the_age_of_what_is_remembered():
    """Three steps of four rows that began with memories of age 0, 64, 65 and 300; the last begins an episode at step 1.
    All of age 65 are clipped, one of three of age 64, and of the oldest the only one that counts is not."""
    start = torch.zeros(3, 4, dtype=torch.bool)
    start[1, 3] = True
    part = SimpleNamespace(memory=SimpleNamespace(oldest=lambda: torch.tensor([0, 64, 65, 300])), episode_start=start)
    clipped = torch.tensor([[0.0, 1, 1, 0], [0, 0, 1, 1], [0, 0, 1, 1]])
    shares = {name.removeprefix("train/clipped_share/memory_age_"): x for name, x in by_age(clipped, part).items()}
    assert shares == pytest.approx({"0": 2 / 5, "1_to_64": 1 / 3, "65_to_256": 1, "above_256": 0})


def test_each_environment_is_used_once():
    policy = Table()
    rollout = make_rollout([[float(b % 3) for b in range(7)]], [[0] * 7], [[P] * 7])
    make_impala(policy, 7, num_minibatches=3).update(rollout, 0.0, 0.0)
    assert [len(rows) for rows in policy.seen] == [3, 2, 2] and sorted(chain(*policy.seen)) == list(range(7))


@pytest.mark.parametrize("kind", ["expire_span", "gru"])
def test_a_cue_is_remembered(kind):
    """Above 95% where without memory nothing is above 50% (test_agent_learning)."""
    trainer = make_trainer("ProbeRecall-v0", kind, 200, agent="impala")
    while not trainer.done:
        trainer.update()
    assert played(trainer.policy, "ProbeRecall-v0", 200).mean() > 0.95


def test_the_same_seed_gives_the_same_weights_and_another_does_not():
    def weights(seed: int) -> torch.Tensor:
        trainer = make_trainer("ProbeRecall-v0", "expire_span", 3, agent="impala", seed=seed)
        while not trainer.done:
            trainer.update()
        return torch.cat([p.detach().flatten() for p in trainer.policy.parameters()])

    first = weights(1)
    assert torch.equal(first, weights(1)) and not torch.equal(first, weights(2))


def test_without_actors_ray_is_not_imported(tmp_path):
    """A whole run in one process."""
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
