"""Prediction of the next observation, and the heads that attend to the previous step. N time steps, T steps of a
rollout."""

from __future__ import annotations

import math

import pytest
import torch
from policy_cases import SPEC, observations

from expire_span_rl.policies import KINDS, ActorCritic, PolicyConfig, core_config
from expire_span_rl.policies.actions import make_actions
from expire_span_rl.policies.encoders import make_entry
from expire_span_rl.policies.encoders.base import MIN_VARIANCE
from expire_span_rl.policies.encoders.encoder import Encoder
from expire_span_rl.policies.prediction import NextObservation
from expire_span_rl.policies.transformer.layer import TransformerConfig

SIZES = (11, 6, 4)  # values of a cell's object, colour and state


def predictor_of(spec: dict, width: int = 8, actions: int = 4) -> NextObservation:
    """A predictor of observations of a spec. actions: their number."""
    action_space = make_actions({"kind": "discrete", "n": actions})
    return NextObservation(Encoder(spec, width), action_space, width)


def test_the_loss_is_what_it_says():
    """Cross entropies of every cell and discrete entry, squared errors of numbers over twice their variance, one by
    one."""
    generator = torch.Generator().manual_seed(0)
    spec = {**SPEC, "speed": {"kind": "vector", "shape": [2]}}
    predictor = predictor_of(spec).double()
    with torch.no_grad():
        for parameter in predictor.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    features, actions = torch.randn(5, 8, dtype=torch.float64, generator=generator), torch.tensor([0, 3, 1, 1, 2])
    following = {**observations(generator, 5), "speed": torch.randn(5, 2, dtype=torch.float64, generator=generator)}
    following["speed"][:, 1] = 0.25  # what never varies is not divided by zero
    expected = 0.0
    columns = torch.cat([following["previous_reward"][:, None], following["speed"]], 1)
    variance = ((columns - columns.mean(0)) ** 2).mean(0).clamp(min=MIN_VARIANCE)
    for n in range(5):
        hidden = predictor.features.weight @ features[n] + predictor.features.bias + predictor.action.weight[actions[n]]
        numbers = (predictor.out.weight @ hidden.clamp(min=0) + predictor.out.bias).tolist()

        def surprise(logits: list[float], target: int) -> float:
            return math.log(sum(math.exp(x - logits[target]) for x in logits))

        for y in range(3):
            for x in range(3):
                for i, size in enumerate(SIZES):
                    expected += surprise(numbers[:size], int(following["image"][n, y, x, i]))
                    numbers = numbers[size:]
        expected += surprise(numbers[:5], int(following["previous_action"][n]))
        for value, spread, guess in zip(columns[n].tolist(), variance.tolist(), numbers[5:], strict=True):
            expected += (value - guess) ** 2 / (2 * spread)
    assert float(predictor.loss(features, actions, following).detach()) == pytest.approx(expected / 5, rel=1e-12)


def test_before_learning_nothing_is_expected():
    generator = torch.Generator().manual_seed(1)
    spec = {name: SPEC[name] for name in ("image", "previous_action")}
    predictor = predictor_of(spec)
    observation = observations(generator, 7)
    loss = predictor.loss(torch.randn(7, 8, generator=generator), torch.zeros(7, dtype=torch.int64), observation)
    assert float(loss.detach()) == pytest.approx(9 * sum(map(math.log, SIZES)) + math.log(5), rel=1e-6)


def test_nothing_to_predict_is_no_loss():
    """A rollout in which every step ends an episode: zero, not NaN, and a gradient of zero."""
    predictor = predictor_of(SPEC)
    features = torch.zeros(0, 8, requires_grad=True)
    loss = predictor.loss(features, torch.zeros(0, dtype=torch.int64), observations(torch.Generator(), 0))
    loss.backward()
    assert float(loss.detach()) == 0 and features.grad.shape == (0, 8)


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if core_config(kind) is TransformerConfig and KINDS[kind].stores]
)
@pytest.mark.parametrize("age_gain", [0.0, 10.0])
def test_shifted_heads_look_at_the_step_before_for_good(kind, age_gain):
    """They are in the first layer, give it all their attention, and get no gradient. No other head does so."""
    torch.manual_seed(0)
    policy = ActorCritic(PolicyConfig(SPEC, 4, kind, None, TransformerConfig(shifted_heads=1, age_gain=age_gain)))
    plain = ActorCritic(PolicyConfig(SPEC, 4, kind, None, TransformerConfig(age_gain=0)))
    assert not any("age_bias" in name for name in plain.state_dict())
    observation = observations(torch.Generator().manual_seed(2), 20, 3, dtype=torch.float32)
    start = torch.zeros(20, 3, dtype=torch.bool)
    start[0] = start[11, 1] = True
    goes_on = ~start[1:].T
    for i, layer in enumerate(policy.inspect(observation, policy.initial_memory(3), start)[2]):
        previous_step = layer.attention[:, :, :, -20:].diagonal(-1, 2, 3)  # [B,H,T-1]
        for head in range(4):
            share = previous_step[:, head][goes_on]
            assert (share > 0.9999).all() if i == head == 0 else share.mean() < 0.5
        assert (previous_step[:, 0][~goes_on] == 0).all()  # there is no step before an episode

    out = policy.unroll(observation, policy.initial_memory(3), start)
    (out.features.square().sum() + out.values.sum()).backward()
    for i, layer in enumerate(policy.core.layers):
        size = layer.query.in_features // layer.heads
        heads = layer.query.weight.grad.unflatten(0, (layer.heads, size)).abs().amax((1, 2))  # [H]
        assert (heads > 0).tolist() == [i > 0, True, True, True]
        assert (layer.age_bias.grad.abs().amax(1) > 0).tolist() == [i > 0, True, True, True]


@pytest.mark.parametrize("kind", ["expire_span", "gru", "none"])
def test_the_action_gain_is_of_the_previous_actions_weights_alone(kind):
    """Of the initial weights: with the same seed all others are equal."""

    def weight(**core):
        torch.manual_seed(0)
        return ActorCritic(PolicyConfig(SPEC, 4, kind, core=core_config(kind)(**core))).encoder.project.weight.detach()

    sizes = [make_entry(entry).size for entry in SPEC.values()]
    parts = zip(SPEC, weight().split(sizes, 1), weight(action_gain=3.0).split(sizes, 1), strict=True)
    for key, usual, gained in parts:
        torch.testing.assert_close(gained, usual * 3 if key == "previous_action" else usual)
    assert "previous_action" in SPEC


def test_the_heads_above_begin_by_looking_for_what_followed():
    """When observations come a second time, the step after their first occurrence gets more attention than the average
    memory."""
    shares = []
    for seed in range(5):
        torch.manual_seed(seed)
        policy = ActorCritic(PolicyConfig(SPEC, 4, "transformer_xl", core=TransformerConfig(shifted_heads=2)))
        single = observations(torch.Generator().manual_seed(seed), 20, 3)
        observation = {key: torch.cat([value, value]) for key, value in single.items()}
        start = torch.zeros(40, 3, dtype=torch.bool)
        _, _, layers = policy.inspect(observation, policy.initial_memory(3), start)
        attention = layers[1].attention[:, :, :, -40:]  # [B,2,T,T]
        steps = torch.arange(20, 39)
        shares.append(attention[:, :, steps, steps - 19].mean())
    assert torch.stack(shares).mean() > 2 / 30  # uniform attention would be 1 / 30
