"""The action-dependent baseline: it changes the noise of the policy gradient, and not its expectation.

The policy is a table with probabilities of 3/4 and 1/4. Every step is an episode. T time steps, B environments.
"""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from agent_cases import P, Q, Table, make_rollout, make_trainer, train_until_learned
from test_agent_impala import make_impala
from test_agent_ppo import make_ppo

from expire_span_rl import agents
from expire_span_rl.agents.action_baseline import action_baseline
from expire_span_rl.agents.learner import Learner
from expire_span_rl.agents.returns import gae, td_errors
from expire_span_rl.agents.settings import LearnerConfig
from expire_span_rl.saved_settings import complete
from expire_span_rl.settings import resolve

REWARDS = (0.7, -0.4)
"""Of the two actions."""
MEAN = P * REWARDS[0] + Q * REWARDS[1]
"""Of the policy."""
AGENTS = {"ppo": make_ppo, "impala": make_impala}


def gradient(agent: str, actions: list[int], predicted: tuple[float, float], **settings) -> list[float]:
    """The gradient of the policy's logits after an update from one step for each of `actions`. predicted: rewards of
    both actions, when acting and when learning. The value is right, and advantages are divided by 10."""
    policy = Table(predicted=predicted, value=MEAN)
    defaults = {"ent_coef": 0.0, "final_ent_coef": 0.0, "advantage_std_floor": 10.0, "vf_coef": 0.0}
    settings = {**defaults, "action_baseline": True, **settings}
    learner = AGENTS[agent](policy, len(actions), **settings)
    probabilities = [P if action == 0 else Q for action in actions]
    rollout = make_rollout([[REWARDS[action] for action in actions]], [actions], [probabilities])
    outputs = policy.predicted.expand(1, len(actions), 2)
    learner.update(replace(rollout, reward_outputs=outputs, values=rollout.values + MEAN), 0.0, 0.0)
    return policy.logits.grad.tolist()


EXPECTED = -P * Q * (REWARDS[0] - REWARDS[1]) / 10
"""The derivative by logit 0 of minus the mean reward, P r0 + Q r1, over 10. That by logit 1 is the negative."""


@pytest.mark.parametrize("agent", AGENTS)
@pytest.mark.parametrize("predicted", [(0.0, 0.0), (0.5, 0.2), (5.0, 5.5), (-1.0, 2.0), REWARDS])
def test_the_expected_gradient_is_the_same(agent, predicted):
    """With actions in proportion to their probabilities, whatever is predicted."""
    actions = [0, 0, 0, 1]
    for baseline in (True, False):
        found = gradient(agent, actions, predicted, action_baseline=baseline)
        assert found == pytest.approx([EXPECTED, -EXPECTED], abs=1e-6)


@pytest.mark.parametrize("agent", AGENTS)
def test_what_is_predicted_need_not_be_drawn(agent):
    """With right predictions, every draw gives the expected gradient, although PPO's and IMPALA's own is 0 where all
    advantages are the same."""
    for actions in ([0, 0, 0, 0], [1, 1], [0, 1], [1, 0, 0]):
        found = gradient(agent, actions, REWARDS)
        assert found == pytest.approx([EXPECTED, -EXPECTED], abs=1e-6), actions
    assert gradient(agent, [0, 0, 0], REWARDS, action_baseline=False) == pytest.approx([0, 0], abs=1e-6)
    assert gradient(agent, [0, 0, 0], REWARDS, reward_prediction_coef=0.0) == pytest.approx([0, 0], abs=1e-6)


def make_baseline(outputs: torch.Tensor, rewards: torch.Tensor, errors: torch.Tensor, actions: torch.Tensor, weights):
    logits = torch.tensor([P, Q], dtype=torch.float64).log().expand(*rewards.shape, 2)
    return action_baseline(Table(), outputs, logits, actions, rewards, errors, weights)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_share_leaves_least_of_the_errors(weighted):
    """Against a search over shares. Predictions that are right up to noise are used in part, and wrong ones not at
    all."""
    generator = torch.Generator().manual_seed(0)
    actions = torch.randint(2, (7, 5), generator=generator)
    weights = torch.rand(7, 5, generator=generator, dtype=torch.float64) if weighted else None
    outputs = torch.randn(7, 5, 2, generator=generator, dtype=torch.float64)
    surprise = outputs.gather(-1, actions[..., None])[..., 0] - P * outputs[..., 0] - Q * outputs[..., 1]
    noise = torch.randn(7, 5, generator=generator, dtype=torch.float64)
    one = torch.ones_like(noise) if weights is None else weights
    for errors, least, most in ((0.6 * surprise + 0.1 * noise, 0.4, 0.8), (-surprise, 0, 0), (3 * surprise, 1, 1)):
        baseline = make_baseline(outputs, errors, errors, actions, weights)
        assert least <= float(baseline.share) <= most
        left = [float((one * (errors - share * surprise)).square().sum()) for share in torch.linspace(0, 1, 101)]
        used = (one * (errors - baseline.share * surprise)).square().sum()
        assert float(used) <= min(left) + 1e-9
        assert float(baseline.explained) == pytest.approx(1 - float(used) / left[0])
        torch.testing.assert_close(baseline.rewards, errors - baseline.share * surprise)


def test_where_nothing_is_predicted_nothing_changes():
    rewards = torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    baseline = make_baseline(torch.zeros(1, 2, 2).double(), rewards, rewards, torch.tensor([[0, 1]]), None)
    assert torch.equal(baseline.rewards, rewards) and float(baseline.share) == float(baseline.explained) == 0
    assert float(make_baseline(torch.ones(1, 2, 2), 0 * rewards, 0 * rewards, torch.tensor([[0, 1]]), None).share) == 0


def test_later_rewards_are_less_noise_in_earlier_advantages():
    """Rewards of later actions are part of an advantage. Where they were predicted, nothing is left of them."""
    outputs = torch.tensor(REWARDS, dtype=torch.float64).expand(6, 4, 2)
    actions = torch.tensor([[0, 1, 0, 1], [1, 1, 0, 0]] * 3)
    rewards = torch.tensor(REWARDS, dtype=torch.float64)[actions]
    never = torch.zeros(6, 4, dtype=torch.bool)
    values = torch.tensor([MEAN], dtype=torch.float64).expand(6, 4)
    errors = td_errors(rewards, values, 0 * values, never, 0.99)
    baseline = make_baseline(outputs, rewards, errors, actions, None)
    ends = {"terminated": never, "truncated": never, "gamma": 0.99, "gae_lambda": 0.9}
    with_noise, _ = gae(rewards, values, 0 * values, **ends)
    without, returns = gae(baseline.rewards, values, 0 * values, **ends)
    assert float(baseline.explained) == pytest.approx(1) and with_noise.abs().max() > 0.5
    torch.testing.assert_close(without, torch.zeros_like(without))
    torch.testing.assert_close(returns, values.clone())


@pytest.mark.parametrize(
    "settings, size",
    [
        ({}, 0),
        ({"action_baseline": True}, 2),
        ({"action_baseline": True, "reward_prediction_coef": 0}, 0),
    ],
)
def test_rollouts_have_the_reward_heads_outputs_where_they_are_used(settings, size):
    """They are those of the unroll under the weights that acted."""
    trainer = make_trainer("ProbeRecall-v0", "expire_span", 2, **settings)
    trainer.policy.reward_head.weight.data.normal_()
    rollout, _ = trainer.collector.collect()
    assert rollout.reward_outputs.shape == (*rollout.rewards.shape, size)
    unrolled = trainer.policy.unroll(rollout.observation, rollout.memory, rollout.episode_start)
    torch.testing.assert_close(rollout.reward_outputs, unrolled.rewards[..., :size], atol=1e-4, rtol=0)
    assert ("train/action_baseline_explained" in trainer.update()) is (size > 0)


@pytest.mark.parametrize("agent", AGENTS)
def test_a_memory_task_is_learned_with_it(agent):
    trainer = make_trainer("ProbeRecall-v0", "expire_span", 200, agent=agent, action_baseline=True)
    explained = [trainer.update()["train/action_baseline_explained"] for _ in range(40)]
    assert train_until_learned(trainer, "ProbeRecall-v0") > 0.95 and max(explained) > 0.1


class A2C(Learner):
    """An agent of a user's own, as in docs/your_agent.md."""

    Config = LearnerConfig
    supports_action_baseline = True

    def _learn(self, rollout, weights):
        outputs = rollout.reward_outputs
        baseline = self._action_baseline(rollout, outputs, rollout.logits, rollout.values, rollout.next_values)
        assert (baseline is None) != self.config.action_baseline
        return {"train/explained": math.nan if baseline is None else float(baseline.explained)}


class Without(A2C):
    supports_action_baseline = False


def test_an_agent_of_the_users_own_learns_with_it_or_refuses_it(monkeypatch):
    monkeypatch.setitem(agents.AGENTS, "a2c", A2C)
    monkeypatch.setitem(agents.AGENTS, "without", Without)
    for is_used in (False, True):
        trainer = make_trainer("ProbeRecall-v0", "none", 2, agent="a2c", action_baseline=is_used)
        assert math.isfinite(trainer.update()["train/explained"]) == is_used
    assert make_trainer("ProbeRecall-v0", "none", 2, agent="without").update()
    with pytest.raises(ValueError, match="^--action-baseline: expected an agent that uses it .+, got Without$"):
        make_trainer("ProbeRecall-v0", "none", 2, agent="without", action_baseline=True)


def test_a_saved_run_of_an_agent_that_ignored_it_goes_on_without(monkeypatch, capsys):
    """It is refused in a new run. One line says so."""
    for name, agent in (("a2c", A2C), ("without", Without)):
        monkeypatch.setitem(agents.AGENTS, name, agent)
        saved = resolve(agent=name, action_baseline=True).flat()
        assert complete(saved, "x/config.json")["action_baseline"] == agent.supports_action_baseline
    line = "x/config.json: --action-baseline is ignored, since Without has no supports_action_baseline = True\n"
    assert capsys.readouterr().err == line


@pytest.mark.parametrize("agent, is_asked", [("a2c", True), ("ppo", True), ("impala", False)])
def test_actors_are_asked_for_the_reward_heads_outputs_where_they_are_used(agent, is_asked, monkeypatch):
    monkeypatch.setitem(agents.AGENTS, "a2c", A2C)
    learner = make_trainer("ProbeRecall-v0", "none", 2, agent=agent, action_baseline=True).agent
    learner.config = SimpleNamespace(**vars(learner.config), distributed=True, uses_action_baseline=True)
    inputs = SimpleNamespace(make_actors=lambda policy, reward_outputs: reward_outputs)
    assert learner.make_source(inputs) is is_asked
