"""PPO on a policy that is a table: losses and gradients are computed by hand.

T time steps, B environments, A actions.
"""

from __future__ import annotations

import copy
import itertools
import math
from itertools import chain

import pytest
import torch
from agent_cases import P, Q, Table, make_rollout, make_trainer, through_a_file

from expire_span_rl.agents import PPO, PPOConfig
from expire_span_rl.agents.learner import with_default_entropy
from expire_span_rl.agents.ppo import MOST_KL, KLLimit
from expire_span_rl.agents.rollout import Rollout


def make_ppo(policy: Table, num_envs: int, **settings) -> PPO:
    """A learner with one optimiser step per update, from rewards as they are, without early end and without clipping of
    gradients. settings: of PPOConfig."""
    defaults = {"num_minibatches": 1, "update_epochs": 1, "max_grad_norm": 1e9, "clip_coef": 0.1, "target_kl": 1e9}
    defaults |= {"normalize_rewards": False, "log_barrier_coef": 0.0, "novelty_coef": 0.0, "adaptive_lambda": False}
    return PPO(policy, PPOConfig(**{**defaults, **settings}), num_envs, seed=0)


@pytest.mark.parametrize("log_barrier", [0.0, 0.02])
def test_loss_and_gradient_by_hand(log_barrier):
    """All actions are 0, with probability 3/4 now, and 3/8, 9/10 and 3/4 when acting. In two steps of three
    environments there are the ratios 2, 5/6 and 1, each with advantages +1 and -1. They are clipped to 0.9..1.1.

        ratio   advantage +1               advantage -1
        2       1.1, clipped, no gradient  -2
        5/6     5/6                        -0.9, clipped, no gradient
        1       1                          -1
    """
    policy = Table()
    ppo = make_ppo(policy, 3, vf_coef=0.5, ent_coef=0.04, final_ent_coef=0.04, log_barrier_coef=log_barrier)
    probabilities = [3 / 8, 9 / 10, 3 / 4]
    rollout = make_rollout([[1, 1, 1], [-1, -1, -1]], [[0] * 3] * 2, [probabilities, probabilities])
    metrics = ppo.update(rollout, 0.0, pressure=0.7)

    entropy = -(P * math.log(P) + Q * math.log(Q))
    expected = {
        "train/policy_gradient_loss": -(1.1 - 2 + 5 / 6 - 0.9 + 1 - 1) / 6,
        "train/value_loss": (0.5**2 + 1.5**2) / 2 / 2,
        "train/entropy_loss": -entropy,
        "train/memory_loss": 0.7 * 2.0,
        "train/clip_fraction": 4 / 6,
        "train/approx_kl": (2 - 1 - math.log(2) + 5 / 6 - 1 - math.log(5 / 6)) / 3,
        "train/advantage_std": 1,
        "train/explained_variance": 0,
    }
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, abs=1e-6)

    # Derivatives by logit 0 (those by logit 1 are the negative): of log p(0) it is 1 - P = Q, and of the ratio it is
    # ratio * Q.
    policy_slope = -(-2 + 5 / 6 + 1 - 1) / 6 * Q
    entropy_slope = -P * (math.log(P) + entropy)
    slope = policy_slope - 0.04 * entropy_slope - log_barrier * (1 / 2 - P)
    assert policy.logits.grad.tolist() == pytest.approx([slope, -slope], abs=1e-6)
    assert float(policy.value.grad) == pytest.approx(0.5 * (0.5 - 0))  # vf_coef * (value - mean return)
    assert float(policy.span.grad) == pytest.approx(0.7)


@pytest.mark.parametrize("ent_coef, rises", [(0.1, True), (0.0, False)])
def test_the_entropy_bonus_raises_entropy(ent_coef, rises):
    """Without rewards, probabilities of 3/4 and 1/4 become more even. Without a bonus they stay as they are."""
    policy = Table()
    ppo = make_ppo(
        policy, 2, ent_coef=ent_coef, final_ent_coef=ent_coef, learning_rate=0.01, vf_coef=0, reward_prediction_coef=0
    )
    losses = [ppo.update(make_rollout([[0, 0]], [[0, 1]], [[P, Q]]), 0.0, 0.0)["train/entropy_loss"] for _ in range(2)]
    assert (-losses[1] > -losses[0]) is rises


@pytest.mark.parametrize("reward, std, advantage", [(0.03, 0.15, 0.2), (3.0, 3.0, 1.0)])
def test_advantages_are_not_scaled_up_below_the_floor(reward, std, advantage):
    """Rewards of +r and -r have a standard deviation of r: 0.03 is divided by the floor, 0.15, and 3 by itself. The
    mean is subtracted. With probabilities of 1/2 and ratio 1, the derivative of the loss is -advantage / 2."""
    for mean in (0.0, 10.0):
        policy = Table(logits=(0.0, 0.0))
        ppo = make_ppo(policy, 2, ent_coef=0.0, final_ent_coef=0.0, advantage_std_floor=0.15)
        rollout = make_rollout([[mean + reward, mean - reward]], [[0, 1]], [[0.5, 0.5]])
        metrics = ppo.update(rollout, 0.0, 0.0)
        assert metrics["train/advantage_std"] == pytest.approx(std)
        assert metrics["train/policy_gradient_loss"] == pytest.approx(0, abs=1e-6)  # minus the mean advantage
        assert policy.logits.grad.tolist() == pytest.approx([-advantage / 2, advantage / 2])


def test_gradients_are_clipped_group_by_group():
    """A value that is wrong by 100 makes the policy's gradient large, and it is clipped. The memory kind's gradient is
    0.3 and stays."""
    policy = Table(value=100.0)
    metrics = make_ppo(policy, 2, max_grad_norm=0.5).update(make_rollout([[1, -1]], [[0, 1]], [[P, Q]]), 0.0, 0.3)
    assert float(torch.cat([policy.logits.grad, policy.value.grad[None]]).norm()) == pytest.approx(0.5, rel=1e-4)
    assert float(policy.span.grad) == pytest.approx(0.3) and metrics["train/grad_norm"] > 49


def experience(num_envs: int) -> Rollout:
    """Two steps, one of each action, with the probabilities that a new policy gives them."""
    rewards = [[float(b % 3) for b in range(num_envs)], [0.0] * num_envs]
    return make_rollout(rewards, [[0] * num_envs, [1] * num_envs], [[P] * num_envs, [Q] * num_envs])


def test_minibatches_are_all_environments_once_per_epoch():
    """Seven environments in three minibatches, each with its own memory. The order is new in every epoch. On the first
    environments of the last epoch the last step is checked."""
    policy = Table()
    metrics = make_ppo(policy, 7, num_minibatches=3, update_epochs=4).update(experience(7), 0.0, 0.0)
    assert metrics["train/epochs"] == 4 and [len(rows) for rows in policy.minibatches] == [3, 2, 2] * 4 + [3]
    assert policy.minibatches[-1] == policy.minibatches[9]
    epochs = [list(chain(*policy.minibatches[i : i + 3])) for i in range(0, 12, 3)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def approximate_kl(drift: float) -> float:
    """The approximate KL divergence, mean of ratio - 1 - log ratio, in `experience` after logit 0 changed by
    `drift`."""
    p = P * math.exp(drift) / (P * math.exp(drift) + Q)
    return sum(r - 1 - math.log(r) for r in (p / P, (1 - p) / Q)) / 2


@pytest.mark.parametrize("epochs", [2, 3, 4])
def test_an_update_ends_early_when_the_policy_has_moved_too_far(epochs, monkeypatch):
    """An epoch has two minibatches. In one of them the policy has moved, further in each epoch, and in the other it has
    not. The limit is 0.75 of the larger KL of an epoch. The mean, 0.5 of that KL, is below the limit. The mean of the
    next epoch exceeds it, so that that epoch is the last."""
    monkeypatch.setattr("expire_span_rl.agents.ppo.MOST_KL", 1e9)  # nothing is taken back
    drifts = [0.2, 0.5, 1.2, 3.0]
    policy = Table(drift=[x for drift in drifts for x in (drift, 0.0)] + [0.0])
    limit = 0.75 * approximate_kl(drifts[epochs - 2])
    ppo = make_ppo(
        policy,
        8,
        num_minibatches=2,
        update_epochs=5,
        target_kl=limit,
        learning_rate=0.0,
        final_learning_rate=0.0,
    )
    metrics = ppo.update(experience(8), 0.0, 0.0)
    assert metrics["train/epochs"] == epochs and len(policy.minibatches) == 2 * epochs + 1
    assert metrics["train/approx_kl"] == pytest.approx(sum(map(approximate_kl, drifts[:epochs])) / (2 * epochs))


@pytest.mark.parametrize("far_step", [0, 1, 2])
def test_a_step_that_leads_too_far_is_taken_back(far_step):
    """Three minibatches, one epoch, with a drift of logit 0 before one of them, or before the check after the last. The
    step before the drift is taken back, that minibatch teaches nothing, and later steps are half as long."""
    drifts = [0.0] * 4
    drifts[far_step + 1] = 3.0
    policy = Table(drift=drifts)
    limit = approximate_kl(3.0) / MOST_KL * 0.99
    ppo = make_ppo(policy, 9, num_minibatches=3, target_kl=limit, learning_rate=0.1, vf_coef=1.0)
    values = [policy.value.item()]
    accepts = KLLimit.accepts

    def watch(self, kl):
        result = accepts(self, kl)
        values.append(policy.value.item())
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KLLimit, "accepts", watch)
        metrics = ppo.update(experience(9), 0.0, 0.0)
    assert metrics["train/undone_steps"] == 1 and len(policy.minibatches) == 4
    before_check = values[1:]  # at each of the four checks, after what it took back
    assert before_check[far_step + 1] == before_check[far_step]
    steps = [abs(b - a) for a, b in itertools.pairwise(before_check)]
    assert steps[far_step] == 0 and all(step > 0 for i, step in enumerate(steps) if i not in (far_step, far_step + 1))
    policy_rate, _ = (group["lr"] for group in ppo.optimizer.param_groups)
    assert policy_rate == pytest.approx(0.05)


def test_the_limit_accepts_what_it_cannot_judge():
    """The first parameters, and a divergence that is not finite, which the check of the loss reports."""
    weight = torch.nn.Parameter(torch.tensor(1.0))
    optimizer = torch.optim.Adam([weight], lr=0.4)
    limit = KLLimit(optimizer, 0.1, lambda: None)
    assert limit.accepts(torch.tensor(9.0))
    weight.data.fill_(2.0)
    assert limit.accepts(torch.tensor(math.inf)) and limit.accepts(torch.tensor(math.nan)) and limit.undone == 0
    weight.data.fill_(3.0)
    assert not limit.accepts(torch.tensor(0.11)) and (limit.undone, weight.item()) == (1, 2.0)
    assert limit.accepts(torch.tensor(9.0))  # nothing is left to take back: no step was taken since
    assert (limit.undone, weight.item(), optimizer.param_groups[0]["lr"]) == (1, 2.0, 0.2)


@pytest.mark.parametrize(
    "progress, rate, entropy", [(0.0, 0.1, 0.02), (0.25, 0.08, 0.015), (1.0, 0.02, 0.0), (1.5, 0.02, 0.0)]
)
def test_schedules_are_linear(progress, rate, entropy):
    """Values go from the start to the end and no further. The span parameters have no schedule. At full pressure their
    rate is a tenth of the first learning rate, the scale of their group."""
    settings = {"learning_rate": 0.1, "final_learning_rate": 0.02, "ent_coef": 0.02, "final_ent_coef": 0.0}
    policy = Table()
    ppo = make_ppo(policy, 7, vf_coef=0.0, **settings)
    metrics = ppo.update(experience(7), progress, 1.0)
    assert metrics["train/learning_rate"] == pytest.approx(rate)
    assert metrics["train/ent_coef"] == pytest.approx(entropy)
    assert [group["lr"] for group in ppo.optimizer.param_groups] == pytest.approx([rate, 0.01])
    assert policy.span.item() == pytest.approx(2 - 0.01)  # Adam's first step is as long as the rate


@pytest.mark.parametrize("progress, failure_rate, weight", [(0.0, 1.0, 0.2), (0.25, 0.5, 0.0375), (1.0, 1.0, 0.0)])
def test_the_log_barrier_falls_with_progress_and_with_failures(progress, failure_rate, weight, monkeypatch):
    ppo = make_ppo(Table(), 7, log_barrier_coef=0.2)
    weights = []
    monkeypatch.setattr(ppo, "_learn", lambda rollout, loss_weights: weights.append(loss_weights) or {})
    ppo.failure_rate = failure_rate
    ppo.update(experience(7), progress, 0.0)
    assert weights[0].log_barrier == pytest.approx(weight)


@pytest.mark.parametrize("pressure, share", [(0.0, 0.05), (0.02, 0.05), (0.4, 0.4), (-0.3, 0.3), (1.0, 1.0)])
def test_span_parameters_learn_in_proportion_to_the_pressure(pressure, share):
    """Without pressure they learn slowly. They learn by Adam, everything else here by AMSGrad at the scheduled rate."""
    ppo = make_ppo(Table(), 7, learning_rate=0.1, amsgrad=True)
    ppo.update(experience(7), 0.0, pressure)
    assert [group["lr"] for group in ppo.optimizer.param_groups] == pytest.approx([0.1, 0.01 * share])
    assert [group["amsgrad"] for group in ppo.optimizer.param_groups] == [True, False]


@pytest.mark.parametrize("horizon, scale", [(None, 1.0), (5, 1.0), (200, 1.0), (1000, 0.2), (50_000, 0.004)])
def test_the_default_entropy_bonus_depends_on_the_memory_horizon(horizon, scale):
    """Weights that are set stay as they are."""
    config = with_default_entropy(PPOConfig(), horizon)
    assert (config.ent_coef, config.final_ent_coef) == pytest.approx((0.01 * scale, 0.003 * scale))
    config = with_default_entropy(PPOConfig(ent_coef=0.5, final_ent_coef=0.0), horizon)
    assert (config.ent_coef, config.final_ent_coef) == (0.5, 0.0)


def test_a_state_continues_identically(tmp_path):
    """Through a file into an agent of another seed. Minibatches and steps are the same, to the bit."""
    settings = {"num_minibatches": 3, "update_epochs": 2, "learning_rate": 0.05, "final_learning_rate": 0.05}
    policy = Table()
    ppo = make_ppo(policy, 7, **settings)
    for _ in range(3):
        ppo.update(experience(7), 0.0, 0.5)
    tensors, metadata = through_a_file(ppo.state(), tmp_path)
    twin = copy.deepcopy(policy)
    loaded = PPO(twin, ppo.config, 7, seed=9)
    loaded.update(experience(7), 0.0, -0.5)  # loading replaces the state after this
    twin.load_state_dict(policy.state_dict())
    loaded.load_state(tensors, metadata)
    for _ in range(3):
        policy.minibatches = []
        twin.minibatches = []
        assert ppo.update(experience(7), 0.5, 0.5) == loaded.update(experience(7), 0.5, 0.5)
        assert policy.minibatches == twin.minibatches
    for parameter, twin_parameter in zip(policy.parameters(), twin.parameters(), strict=True):
        assert torch.equal(parameter, twin_parameter)


def test_more_minibatches_than_environments_are_refused():
    message = (
        "^--num-minibatches: expected at most --num-envs \\(7\\), since a minibatch is a set of environments, got 8$"
    )
    with pytest.raises(ValueError, match=message):
        make_ppo(Table(), 7, num_minibatches=8)
    make_ppo(Table(), 7, num_minibatches=7)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"num_steps": 0}, "--num-steps: expected at least 1, got 0"),
        ({"update_epochs": 0}, "--update-epochs: expected at least 1, got 0"),
        ({"gamma": 1.01}, "--gamma: expected 0 to 1, got 1.01"),
        ({"gae_lambda": -0.1}, "--gae-lambda: expected 0 to 1, got -0.1"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError) as error:
        PPOConfig(**settings)
    assert str(error.value) == message


def test_the_next_observation_within_an_episode_is_predicted(tmp_path):
    """The predictor learns Recall's next observations. All of them are certain except the cue after a reset, which is
    not predicted. The predictor's weights are saved and loaded. Without the loss there is no predictor."""
    trainer = make_trainer("ProbeRecall-v0", "transformer_xl", 30, observation_prediction_coef=0.3)
    losses = [trainer.update()["train/observation_prediction_loss"] for _ in range(30)]
    assert losses[-1] < 0.3 * losses[0]
    state = through_a_file(trainer.state(), tmp_path)
    loaded = make_trainer("ProbeRecall-v0", "transformer_xl", 30, observation_prediction_coef=0.3, seed=1)
    loaded.load_state(*state)
    weights = trainer.agent.predictor.state_dict()
    loaded_weights = loaded.agent.predictor.state_dict()
    assert weights.keys() == loaded_weights.keys()
    assert all(torch.equal(weights[name], loaded_weights[name]) for name in weights)

    rollout, _ = trainer.collector.collect()
    out = trainer.policy.unroll(rollout.observation, rollout.memory, rollout.episode_start)
    loss = trainer.agent._observation_loss(trainer.agent.predictor, rollout, out)
    for entry in rollout.observation.values():  # the first observation of an episode is not predicted
        entry[rollout.episode_start] = 0
    assert rollout.episode_start[1:].any()
    assert torch.equal(trainer.agent._observation_loss(trainer.agent.predictor, rollout, out), loss)

    plain = make_trainer("ProbeRecall-v0", "transformer_xl", 1)
    assert plain.agent.predictor is None and "train/observation_prediction_loss" not in plain.update()
