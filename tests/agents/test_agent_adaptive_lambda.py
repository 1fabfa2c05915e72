"""Lambdas compared by the policy's gradient: against plain loops, and on credit that is early or late."""

from __future__ import annotations

import pytest
import torch
from agent_cases import make_policy, through_a_file

from expire_span_rl import envs
from expire_span_rl.agents.adaptive_lambda import FEWEST, REFERENCE, AdaptiveLambda, Comparison, log_prob_gradient
from expire_span_rl.agents.collector import Collector
from expire_span_rl.agents.ppo import PPO
from expire_span_rl.agents.returns import gae
from expire_span_rl.agents.settings import PPOConfig

T, B = 12, 64


def test_products_are_those_of_different_environments():
    generator = torch.Generator().manual_seed(0)
    features, scores = torch.randn(2, 5, 4, 3, generator=generator)
    advantages = torch.randn(3, 5, 4, generator=generator)
    comparison = Comparison(advantages, scores)
    for rows in ([2, 0], [1, 3]):
        comparison.add(features[:, rows], torch.tensor(rows))
    inputs = torch.cat([features, torch.ones(5, 4, 1)], -1).double()
    gradients = torch.einsum("ltb,tbp,tbd->lbpd", advantages.double(), scores.double(), inputs)
    noise = gradients[-1].square().sum()
    among = [
        sum((gradients[k, a] * gradients[-1, b]).sum() for a in range(4) for b in range(4) if a != b) for k in range(3)
    ]
    products, squares = torch.stack(among) * 4 / 3 / noise, gradients.sum(1).square().sum((1, 2)) / noise
    expected = torch.stack([products, squares, products**2])
    torch.testing.assert_close(comparison.products(), expected[:, :2], rtol=1e-5, atol=1e-5)
    alone = Comparison(advantages[:, :, :1], scores[:, :1])
    alone.add(features[:, :1], torch.tensor([0]))
    assert alone.products() is None


def test_the_gradient_of_a_log_probability():
    policy = make_policy(envs.make_vec_env("Corridor-v0", 2), "none")
    logits = torch.randn(3, 2, 4)
    taken = torch.tensor([[0, 1], [2, 3], [1, 1]])
    expected = torch.nn.functional.one_hot(taken, 4) - logits.softmax(-1)
    torch.testing.assert_close(log_prob_gradient(policy.actions, logits, taken), expected)


@pytest.mark.parametrize("id", ["Corridor-v0", "Pendulum-v1"])
def test_the_gradient_is_that_of_the_policy_heads_weights(id):
    policy = make_policy(envs.make_vec_env(id, 2), "none", heads=0.3)
    features = torch.randn(3, 2, policy.policy_head.in_features)
    parameters = policy.actions.params(policy.policy_head(features))
    taken = policy.actions.sample(parameters.detach())
    expected = torch.autograd.grad(policy.actions.log_prob(parameters, taken).sum(), policy.policy_head.weight)[0]
    scores = log_prob_gradient(policy.actions, parameters, taken)
    torch.testing.assert_close(torch.einsum("tbp,tbd->pd", scores, features), expected)


def updates(adaptive: AdaptiveLambda, delay: int, count: int, seed: int = 0) -> list[float]:
    """The lambdas used in updates in which a reward depends on the action so many steps before it, and on chance. With
    a delay of `T` it depends on chance alone."""
    generator = torch.Generator().manual_seed(seed)
    used = []
    for _ in range(count):
        actions = torch.randint(0, 2, (T, B), generator=generator)
        rewards = 20 * torch.randn(T, B, generator=generator)
        rewards[delay:] += (2.0 * actions - 1)[: T - delay]
        nothing = torch.zeros(T, B)
        never = torch.zeros(T, B, dtype=torch.bool)
        all_advantages = [
            gae(rewards, nothing, nothing, never, never, gamma=1.0, gae_lambda=x)[0]
            for x in (*adaptive.lambdas, REFERENCE)
        ]
        scores = torch.nn.functional.one_hot(actions, 2) - 0.5
        comparison = adaptive.begin(torch.stack(all_advantages), scores)
        comparison.add(torch.ones(T, B, 1), torch.arange(B))
        used.append(adaptive.end(comparison)["train/gae_lambda"])
    return used


def test_early_credit_gets_a_small_lambda_and_late_credit_the_largest():
    """The values are 0: nothing but rewards carries credit."""
    used = updates(AdaptiveLambda(0.9), 0, 60)
    assert used[:FEWEST] == [0.9] * FEWEST and used[-1] <= 0.25
    assert updates(AdaptiveLambda(0.9), 3, 60)[-1] == 0.9


def test_without_any_signal_the_largest_stays():
    adaptive = AdaptiveLambda(0.9)
    for _ in range(2 * FEWEST):
        comparison = adaptive.begin(torch.zeros(6, T, B), torch.zeros(T, B, 2))
        comparison.add(torch.ones(T, B, 1), torch.arange(B))
        assert adaptive.end(comparison) == {"train/gae_lambda": 0.9}


def test_noise_does_not_choose_a_smaller_lambda():
    used = [lam for seed in range(6) for lam in updates(AdaptiveLambda(0.9), T, 130, seed)]
    assert sum(lam < 0.9 for lam in used) <= 0.03 * len(used)


@pytest.mark.parametrize("largest, lambdas", [(0.9, (0, 0.25, 0.5, 0.75, 0.9)), (0.5, (0, 0.25, 0.5)), (0.0, (0,))])
def test_smaller_lambdas_are_compared_with_the_given_one(largest, lambdas):
    assert AdaptiveLambda(largest).lambdas == lambdas


def make_agent(env, **settings) -> tuple[Collector, PPO]:
    torch.manual_seed(0)
    policy = make_policy(env, "gru", heads=0.1)
    agent = PPO(policy, PPOConfig(num_minibatches=2, **settings), env.num_envs, 0)
    return Collector(env, policy, 16, 5, novelty=True), agent


@pytest.mark.parametrize("id, kwargs", [("Corridor-v0", {"max_length": 5}), ("Pendulum-v1", {})])
def test_ppo_learns_as_without_until_one_is_chosen_and_differs_then(id, kwargs):
    (left, plain), (right, adaptive) = (
        make_agent(envs.make_vec_env(id, 8, **kwargs), adaptive_lambda=flag) for flag in (False, True)
    )
    for update in range(3):
        if update == 2:
            adaptive.adaptive_lambda.value = 0.0
        metrics = adaptive.update(right.collect()[0], 0.0, 0.0)
        assert metrics.pop("train/gae_lambda") == (0.0 if update == 2 else 0.9)
        expected = plain.update(left.collect()[0], 0.0, 0.0)
        assert (metrics == pytest.approx(expected, nan_ok=True)) == (update < 2)
        if update == 2:  # the values learn as before
            assert metrics["train/explained_variance"] == pytest.approx(expected["train/explained_variance"])


def test_a_continued_training_goes_on_with_its_averages(tmp_path):
    adaptive = AdaptiveLambda(0.9)
    updates(adaptive, 0, 80)
    tensors, _ = through_a_file((adaptive.state_dict(), {}), tmp_path)
    other = AdaptiveLambda(0.9)
    other.load_state_dict(tensors)
    assert other.value == adaptive.value < 0.9
    assert updates(other, 3, 30, seed=1) == updates(adaptive, 3, 30, seed=1)
    assert torch.isfinite(other.averages).all()
    with pytest.raises(ValueError, match=r"^adaptive lambda: expected averages \[3, 3\], got \[3, 5\]$"):
        AdaptiveLambda(0.5).load_state_dict(tensors)


def test_a_state_without_squared_products_gives_only_the_next_lambda():
    """As versions before squared products wrote it."""
    adaptive = AdaptiveLambda(0.9)
    updates(adaptive, 0, 80)
    tensors = adaptive.state_dict()
    del tensors["squared_weights"]
    other = AdaptiveLambda(0.9)
    other.load_state_dict({**tensors, "averages": tensors["averages"][:2]})
    assert other.value == adaptive.value < 0.9
    assert updates(other, 0, 40, seed=1)[1:FEWEST] == [0.9] * (FEWEST - 1)


def test_it_is_part_of_an_agents_state(tmp_path):
    env = envs.make_vec_env("Corridor-v0", 8, max_length=5)
    collector, agent = make_agent(env, adaptive_lambda=True)
    agent.update(collector.collect()[0], 0.0, 0.0)
    tensors, metadata = through_a_file(agent.state(), tmp_path)
    _, other = make_agent(env, adaptive_lambda=True)
    other.load_state(tensors, metadata)
    assert torch.equal(other.adaptive_lambda.averages, agent.adaptive_lambda.averages)
    _, without = make_agent(env)
    tensors, metadata = without.state()
    other.load_state(tensors, metadata)  # a run from before the setting


def test_a_state_of_another_largest_lambda_is_refused():
    state = AdaptiveLambda(0.9).state_dict()
    with pytest.raises(ValueError, match=r"^adaptive lambda: expected one of \(0.0, 0.25, 0.5, 0.75, 0.95\), got 0.9$"):
        AdaptiveLambda(0.95).load_state_dict(state)
