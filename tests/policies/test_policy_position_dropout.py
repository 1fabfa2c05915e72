"""Ages that attention does not know in a training rollout: which, that learning knows of it, and nowhere else."""

from __future__ import annotations

from dataclasses import replace

import policy_cases
import pytest
import torch
from policy_cases import CASES, act, check_acting_equals_learning, experience, make_policy

from expire_span_rl.policies import core_config
from expire_span_rl.policies.settings import TransformerConfig

CORE = replace(policy_cases.CORE, head_dropout=0.0, position_dropout=0.7)


@pytest.mark.parametrize(("kind", "settings"), CASES)
def test_acting_equals_learning_where_ages_are_hidden(kind, settings):
    if core_config(kind) is not TransformerConfig:
        pytest.skip("a kind without positions")
    check_acting_equals_learning(make_policy(kind, settings, core=CORE))


def test_the_reach_is_drawn_by_chance_from_1_to_all_positions():
    policy = make_policy("transformer_xl", core=CORE)
    noise = policy.draw(policy.initial_memory(20000), torch.Generator().manual_seed(2)).noise
    assert noise.shape == (20000, 1)
    count = torch.bincount(noise[:, 0].long(), minlength=CORE.num_positions + 1) / len(noise)
    expected = torch.full((CORE.num_positions + 1,), 0.7 / CORE.num_positions)
    expected[0] = 0
    expected[-1] += 0.3
    torch.testing.assert_close(count, expected, rtol=0, atol=0.015)
    again = policy.draw(policy.initial_memory(20000), torch.Generator().manual_seed(2)).noise
    assert torch.equal(again, noise)


@pytest.mark.parametrize("reach", [1, 3, 5])
@pytest.mark.parametrize("shift", ["positions", "age_bias", "age_values"])
def test_what_positions_say_of_hidden_ages_changes_nothing(reach, shift):
    """Acting and learning, in both rows: in the first the ages from `reach` on are hidden, in the second none is."""
    policy = make_policy("transformer_xl", {"window": 9}, core=CORE)
    rollout = experience(torch.Generator().manual_seed(3), 12, 2, final_probability=0)
    start = torch.zeros_like(rollout.start)
    noise = torch.tensor([[reach], [CORE.num_positions]], dtype=torch.float64)
    memory = replace(policy.initial_memory(2), noise=noise)
    rollout = replace(rollout, start=start)

    def outputs() -> list[torch.Tensor]:
        learned = policy.unroll(rollout.observation, memory, start).logits
        return [learned, act(policy, memory, rollout, horizon=5).logits]

    before = outputs()
    for layer in policy.core.layers:
        with torch.no_grad():
            by_age = {
                "positions": layer.positions,
                "age_bias": layer.age_bias.T,
                "age_values": layer.age_values.transpose(0, 1),
            }
            by_age[shift][reach:] += 1
    for now, then in zip(outputs(), before, strict=True):
        assert torch.equal(now[:, 0], then[:, 0])
        assert not torch.allclose(now[:, 1], then[:, 1])


def test_nothing_is_hidden_elsewhere():
    policy = make_policy("expire_span", core=CORE)
    assert policy.initial_memory(3).noise.shape == (3, 0)
    rollout = experience(torch.Generator().manual_seed(4), 5, 3)
    assert act(policy, policy.initial_memory(3), rollout, in_rollout=False).memory.noise.shape == (3, 0)


@pytest.mark.parametrize("chance", [1.0, -0.1])
def test_a_chance_outside_is_one_line(chance):
    with pytest.raises(ValueError, match=rf"^--position-dropout: expected a chance from 0 to below 1, got {chance}$"):
        TransformerConfig(position_dropout=chance)
