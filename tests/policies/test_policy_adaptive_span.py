"""Adaptive-Span against a transcription of the paper in plain loops, its loss, and what its spans keep.

B environments, H heads.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from policy_cases import CORE, act, experience, make_policy
from test_policy_references import Reference, compare

from expire_span_rl.policies import ActorCritic

SETTINGS = {"max_span": 14, "ramp": 4}


class AdaptiveSpanReference(Reference):
    """One span per head and layer: z = S_max * sigmoid(its logit); m = clip((R + z - age) / R, 0, 1)."""

    def __init__(self, policy: ActorCritic):
        super().__init__(policy, None)

    def span_of(self, i: int, head: int) -> float:
        return self.config.max_span / (1 + math.exp(-self.weights[f"core.layers.{i}.kind.logit"][head]))

    def _mask(self, i, slot, clock, head):
        z, ramp = self.span_of(i, head), self.config.ramp
        return min(max((ramp + z - (clock - slot.clock)) / ramp, 0.0), 1.0)


def with_spans(policy: ActorCritic, *spans: float) -> ActorCritic:
    """The heads' spans, the same in both layers."""
    fractions = torch.tensor(spans, dtype=torch.float64) / policy.config.memory_config.max_span
    with torch.no_grad():
        for layer in policy.core.layers:
            layer.kind.logit.copy_(torch.logit(fractions))
    return policy


def test_unroll_is_the_reference():
    """Two rollouts with memory carried over, resets and final observations: logits, values, values of final
    observations, per layer which memories every query sees with what attention of each head, and what survives."""
    policy = with_spans(make_policy("adaptive_span", SETTINGS), 2.3, 9.6)
    expired = one_head_only = 0
    for reference, _, _, look in compare(policy, [AdaptiveSpanReference(policy) for _ in range(2)], (14, 17)):
        expired += reference.clock - len(look.attention)
        one_head_only += sum(min(weights) == 0 for weights in look.attention.values())
    assert expired > 50 and one_head_only > 50


@pytest.mark.parametrize("spans, ramp, oldest", [((6.5, 2.0), 3, 9), ((0.5, 3.2), 8, 11), ((4.0, 5.0), 1, 5)])
def test_a_memory_lives_for_the_longest_span_and_the_ramp(spans, ramp, oldest):
    """It is visible at every age below max z + R, to some head. A query also sees itself."""
    policy = with_spans(make_policy("adaptive_span", {"max_span": 24, "ramp": ramp}), *spans)
    rollout = experience(torch.Generator().manual_seed(0), 20, 2, start_probability=0)
    out = act(policy, policy.initial_memory(2), rollout)
    assert [live.tolist() for live in out.live] == [[[min(t, oldest) + 1] * 2] * 2 for t in range(20)]
    assert out.memory.live().tolist() == [[oldest] * 2] * 2


@pytest.mark.parametrize("pressure", [0.7, -0.4, 0.0])
def test_the_loss_is_the_mean_span(pressure):
    """alpha * pressure * mean of z_h over heads and layers, as a fraction of the longest span; it moves spans only."""
    policy = make_policy("adaptive_span", {**SETTINGS, "span_coef": 0.6})
    rollout = experience(torch.Generator().manual_seed(0), 9, 3)
    loss = policy.unroll(rollout.observation, policy.initial_memory(3), rollout.start, pressure=pressure).memory_loss
    reference = AdaptiveSpanReference(policy)
    spans = [reference.span_of(i, head) for i in range(CORE.num_layers) for head in range(CORE.num_heads)]
    assert float(loss.detach()) == pytest.approx(0.6 * pressure * sum(spans) / len(spans) / 14, rel=1e-6)
    loss.backward()
    for name, parameter in policy.named_parameters():
        if parameter.grad is not None:
            assert name.endswith("kind.logit") and (parameter.grad.sign() == np.sign(pressure)).all()


def test_the_task_teaches_spans_through_the_ramp():
    """The outputs' gradient with respect to a span agrees with finite differences, and is not 0."""
    policy = with_spans(make_policy("adaptive_span", SETTINGS), 2.3, 9.6)
    rollout = experience(torch.Generator().manual_seed(0), 16, 2, start_probability=0)
    memory = policy.initial_memory(2)

    def loss() -> torch.Tensor:
        return policy.unroll(rollout.observation, memory, rollout.start).logits.square().sum()

    for layer in policy.core.layers:
        (gradient,) = torch.autograd.grad(loss(), [layer.kind.logit])
        for head in range(CORE.num_heads):
            ends = []
            for shift in (1e-6, -1e-6):
                with torch.no_grad():
                    layer.kind.logit[head] += shift
                    ends.append(float(loss()))
                    layer.kind.logit[head] -= shift
            assert abs(float(gradient[head])) > 1e-4
            assert float(gradient[head]) == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-4)


def test_spans_begin_where_the_config_says_and_are_logged():
    """A fraction of the longest span, every head; mean and longest are metrics of every layer."""
    config = type(make_policy("adaptive_span").config.memory_config)(max_span=100, initial_span=0.3)
    fresh = ActorCritic.for_spaces(*_spaces(), memory="adaptive_span", memory_config=config)
    for layer in fresh.core.layers:
        assert layer.kind.spans().tolist() == pytest.approx([30.0] * 4)
        assert layer.kind.metrics(torch.zeros(0, 64)) == {"span_mean": pytest.approx(30), "span_max": pytest.approx(30)}


def _spaces():
    from expire_span_rl import envs

    env = envs.make_vec_env("Corridor-v0", 1)
    return env.single_observation_space, env.single_action_space
