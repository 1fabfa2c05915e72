"""Heads that are left out of a training rollout: which, how others are weighed, and that learning knows of it."""

from __future__ import annotations

from dataclasses import replace

import policy_cases
import pytest
import torch
from policy_cases import SMALL, act, check_acting_equals_learning, experience, make_policy

from expire_span_rl.policies.settings import TransformerConfig

CORE = replace(policy_cases.CORE, num_layers=3, head_dropout=0.3)


@pytest.mark.parametrize("kind", ["expire_span", "transformer_xl", "compressive", "none"])
def test_acting_equals_learning_with_heads_left_out(kind):
    """For kinds that draw numbers of their own and others."""
    for settings in SMALL.get(kind, ({},)):
        check_acting_equals_learning(make_policy(kind, settings, core=CORE))


def test_heads_above_the_first_layer_are_left_out_by_chance_and_the_mean_stays():
    policy = make_policy("transformer_xl", core=CORE)
    noise = policy.draw(policy.initial_memory(4000), torch.Generator().manual_seed(2)).noise
    assert noise.shape == (4000, 2 * CORE.num_heads)
    assert noise.unique().tolist() == pytest.approx([0.0, 1 / 0.7])
    assert noise.mean(0).sub(1).abs().max() < 0.05
    first, second, third = policy.core.layers
    assert first.head_weights(noise) is None
    weights = torch.cat([layer.head_weights(noise) for layer in (second, third)], 1)
    assert torch.equal(weights.flatten(1), noise)
    again = policy.draw(policy.initial_memory(4000), torch.Generator().manual_seed(2)).noise
    assert torch.equal(again, noise)


def test_a_head_that_is_left_out_changes_nothing_whatever_it_would_have_given():
    policy = make_policy("transformer_xl", core=replace(CORE, num_layers=2))
    rollout = experience(torch.Generator().manual_seed(3), 6, 2, final_probability=0)
    memory = replace(policy.initial_memory(2), noise=torch.tensor([[0.0, 1.0]], dtype=torch.float64).expand(2, -1))
    before = policy.unroll(rollout.observation, memory, rollout.start).logits
    layer = policy.core.layers[1]
    with torch.no_grad():
        width, size = CORE.width, CORE.width // CORE.num_heads
        layer.key_value.weight[width : width + size] += 1  # the values of head 0
    assert torch.equal(policy.unroll(rollout.observation, memory, rollout.start).logits, before)
    everything = replace(memory, noise=torch.zeros(2, 0, dtype=torch.float64))
    assert not torch.allclose(policy.unroll(rollout.observation, everything, rollout.start).logits, before)


def test_no_head_is_left_out_elsewhere():
    policy = make_policy("expire_span", core=CORE)
    assert policy.initial_memory(3).noise.shape == (3, 0)
    rollout = experience(torch.Generator().manual_seed(4), 5, 3)
    assert act(policy, policy.initial_memory(3), rollout, in_rollout=False).memory.noise.shape == (3, 0)


def test_a_chance_of_1_is_one_line():
    with pytest.raises(ValueError, match=r"^--head-dropout: expected a chance from 0 to below 1, got 1.0$"):
        TransformerConfig(head_dropout=1.0)
