"""Attention to old memories costs: how much, when, and that heads then look at what is recent."""

from __future__ import annotations

import pytest
import torch
from policy_cases import experience, make_policy

from expire_span_rl.policies import KINDS

RAMP = 3
SETTINGS = {"initial_limit": 24, "ramp": RAMP, "time_skips": 0.0, "time_gaps": 0.0}


def make_costly(cost=0.5):
    policy = make_policy("expire_span", {**SETTINGS, "attention_cost": cost})
    policy.release_spans()
    for layer in policy.core.layers:
        torch.nn.init.constant_(layer.kind.span.bias, -9.0)  # nothing is known to become useless: all is kept
    return policy


def test_each_memory_beyond_the_ramp_costs_its_largest_share_of_attention():
    """Two rows, two heads, two queries, three memories aged 2 to 4 and 3 to 5. The mean is over rows and queries."""
    weights = torch.zeros(2, 2, 2, 3)
    weights[0] = torch.tensor([[[0.1, 0.2, 0.7], [0.5, 0.5, 0.0]], [[0.9, 0.1, 0.0], [0.0, 0.0, 1.0]]])
    weights[1] = torch.tensor([[[0.0, 0.0, 1.0], [0.2, 0.3, 0.5]], [[0.0, 0.0, 1.0], [0.2, 0.4, 0.4]]])
    age = torch.tensor([[[4.0, 3.0, 2.0], [5.0, 4.0, 3.0]]]).expand(2, -1, -1)
    kind = make_costly().core.layers[0].kind
    largest = (0.9 + 0.5) + (0.2 + 0.4)  # of ages 4 and 5
    assert float(kind.attention_cost(weights, age, 0.4)) == pytest.approx(0.5 * 0.4 * largest / 4)


def test_heads_and_queries_that_look_at_one_memory_cost_less_than_at_several():
    weights, age = torch.eye(4).expand(1, 2, -1, -1), torch.full((1, 4, 4), 9.0)
    kind = make_costly().core.layers[0].kind
    together = torch.zeros(1, 2, 4, 4)
    together[..., 1] = 1
    assert float(kind.attention_cost(weights, age, 1.0)) == 4 * float(kind.attention_cost(together, age, 1.0)) > 0


def test_nothing_costs_without_pressure_before_spans_follow_needs_or_by_default():
    weights, age = torch.full((1, 2, 1, 4), 0.25), torch.full((1, 1, 4), 9.0)
    kind = make_costly().core.layers[0].kind
    assert kind.attention_cost(weights, age, 1.0) > 0
    assert kind.attention_cost(weights, age, 0.0) is None and kind.attention_cost(weights, age, -1.0) is None
    assert make_costly(0.0).core.layers[0].kind.attention_cost(weights, age, 1.0) is None
    bound = make_costly()
    bound.bind_spans()
    assert bound.core.layers[0].kind.attention_cost(weights, age, 1.0) is None
    assert make_policy("transformer_xl").core.layers[0].kind.attention_cost(weights, age, 1.0) is None


def test_heads_learn_to_look_at_what_is_recent():
    """By the cost alone."""
    policy = make_costly()
    generator = torch.Generator().manual_seed(3)
    parts = [experience(generator, 12, 4, start_probability=0, final_probability=0) for _ in range(2)]
    memory = policy.initial_memory(4)
    memory = policy.unroll(parts[0].observation, memory, parts[0].start, keep=True).memory

    def share_of_old() -> list[float]:
        _, _, layers = policy.inspect(parts[1].observation, memory, parts[1].start)
        steps = torch.arange(12.0)
        shares = []
        for layer in layers:
            is_old = steps[None, :, None] - layer.coordinate[:, None] > RAMP
            shares.append(float((layer.attention * is_old[:, None]).sum(-1).mean()))
        return shares

    before = share_of_old()
    optimizer = torch.optim.Adam([p for name, p in policy.core.named_parameters() if ".span." not in name], 0.03)
    for _ in range(40):
        loss = policy.unroll(parts[1].observation, memory, parts[1].start, pressure=1.0).memory_loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = share_of_old()
    assert before[1] > 0.25 and after[1] < 0.02
    assert after[0] < before[0]  # little, since its inputs, random observations, do not say when they were made


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attention_cost": -0.1}, "attention-cost"),
        ({"attention_cost": 0.1, "span_model": "sigmoid"}, "--attention-cost: expected --span-model survival with it"),
    ],
)
def test_a_bad_cost_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        KINDS["expire_span"].Config(**settings)
