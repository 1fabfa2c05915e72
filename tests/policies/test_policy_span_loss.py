"""The loss of sigmoid spans in plain loops, from what `inspect` shows. B environments, C slots, H heads, T queries."""

from __future__ import annotations

import math

import pytest
import torch
from policy_cases import act, experience, make_policy

from expire_span_rl.policies.memory.kind import Lives


def lift(layer, b: int, h: int, t: int, c: int) -> float:
    """The attention of slot c as a multiple of the average attention of the other visible slots; 0 without others."""
    num_others = int(layer.visible[b, t].sum()) - 1
    weight = float(layer.attention[b, h, t, c])
    return weight / ((1 - weight) / num_others) if num_others and weight else 0.0


def loss_fraction(steps: float) -> float:
    """A span as the loss sees it: its fraction of the longest span, 24 steps, and beyond one half linear along the
    steepest slope."""
    fraction = steps / 24
    return fraction if fraction <= 0.5 else 0.5 + math.log(fraction / (1 - fraction)) / 4


@pytest.mark.parametrize("pressure", [0.7, -0.4])
def test_span_penalty_and_retention_hinge(pressure):
    """A penalty on the spans of new memories, and a hinge for every used memory, up to a margin beyond its age of last
    use. Averages over new memories and over layers."""
    settings = {
        "span_model": "sigmoid",
        "max_span": 24,
        "ramp": 5,
        "use_lift": 1.5,
        "use_share": 0.0,
        "use_margin": 0.25,
        "use_coef": 9.0,
        "span_coef": 0.6,
    }
    policy = make_policy("expire_span", settings)
    generator = torch.Generator().manual_seed(0)
    memory = act(policy, policy.initial_memory(3), experience(generator, 12, 3)).memory
    rollout = experience(generator, 9, 3)
    steps, batch = rollout.start.shape
    _, _, layers = policy.inspect(rollout.observation, memory, rollout.start)
    expected, num_hinges = 0.0, 0
    for layer in layers:
        slots = layer.coordinate.shape[1]
        penalty = hinge = 0.0
        for b in range(batch):
            for c in range(slots):
                span = float(layer.slot_features[b, c])
                if c >= slots - steps:
                    penalty += (
                        loss_fraction(max(span, 24 / 25)) if pressure > 0 else -loss_fraction(min(span, 0.99 * 24))
                    )
                ages = [t - float(layer.coordinate[b, c]) for t in range(steps)
                        if any(lift(layer, b, h, t, c) > 1.5 for h in range(2))]  # fmt: skip
                if max(ages, default=0) > 0:
                    need = min(1.25 * max(ages) + 1, 0.99 * 24)
                    hinge += 9.0 * max(0.0, loss_fraction(need) - loss_fraction(span))
                    num_hinges += need > span
        expected += 0.6 * (penalty + hinge) / (steps * batch) / len(layers)
    assert num_hinges > 5
    loss = policy.unroll(rollout.observation, memory, rollout.start, pressure=pressure).memory_loss
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-6)


def test_without_pressure_there_is_no_loss():
    """An untrained policy uses memories of all ages: the hinge alone would lengthen all spans."""
    policy = make_policy(
        "expire_span", {"span_model": "sigmoid", "max_span": 24, "ramp": 5, "use_lift": 1.5, "use_share": 0.0}
    )
    rollout = experience(torch.Generator().manual_seed(0), 9, 3)
    out = policy.unroll(rollout.observation, policy.initial_memory(3), rollout.start, pressure=0.0)
    assert float(out.memory_loss) == 0


def test_a_span_near_the_longest_can_come_down():
    """The sigmoid is flat there, but the loss is not: the level has the same gradient at one half and far above."""
    policy = make_policy("expire_span", {"span_model": "sigmoid", "max_span": 24, "ramp": 5, "use_coef": 0.0})
    kind = policy.core.layers[0].kind
    normed, is_new = torch.zeros(1, 4, 16, dtype=torch.float64), torch.ones(1, 4, dtype=torch.bool)
    for level in (0.0, 12.0):
        torch.nn.init.constant_(kind.span.bias, level)
        kind.zero_grad()
        kind.loss(normed, is_new, None, torch.zeros(1, 0), 1.0).backward()
        assert float(kind.span.bias.grad) == pytest.approx(0.25)


def test_spans_turn_round_and_do_not_run_away():
    """500 optimiser steps in which old uses lengthen the span, then 500 of negative pressure, take it at most near
    L_max. 500 steps of pressure take it down to one step, and no further."""
    kind = make_policy("expire_span", {"span_model": "sigmoid", "max_span": 24, "ramp": 5}).core.layers[0].kind
    normed, is_new = torch.zeros(1, 4, 16, dtype=torch.float64), torch.ones(1, 4, dtype=torch.bool)
    optimizer = torch.optim.Adam(kind.parameters(), lr=0.05, betas=(0.9, 0.99))

    def level(last_use: float, pressure: float) -> float:
        for _ in range(500):
            optimizer.zero_grad()
            use_ages = torch.full((1, 4), last_use, dtype=torch.float64)
            lives = Lives(use_ages, use_ages, use_ages * 0, use_ages, is_new, is_new, None)
            kind.loss(normed, is_new, lives, torch.zeros(1, 0), pressure).backward()
            optimizer.step()
        return float(kind.span.bias.detach())

    longest = math.log(0.99 / 0.01)
    assert level(1000.0, 1.0) == pytest.approx(longest, abs=0.3)  # a use beyond L_max asks for no more
    assert level(-1.0, -1.0) == pytest.approx(longest, abs=0.3)
    assert level(-1.0, 1.0) == pytest.approx(math.log(1 / 24), abs=0.3)


def test_only_the_span_predictor_learns_from_it():
    """Hidden vectors are detached in the loss, so that forgetting does not change them."""
    policy = make_policy("expire_span")
    generator = torch.Generator().manual_seed(1)
    rollout = experience(generator, 9, 3)
    policy.unroll(rollout.observation, policy.initial_memory(3), rollout.start, pressure=0.5).memory_loss.backward()
    learned_names = {name for name, p in policy.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert learned_names == {f"core.layers.{i}.kind.span.{name}" for i in range(2) for name in ("weight", "bias")}


def test_the_bias_learns_what_all_memories_share():
    """Equal memories give the weights no gradient. One that differs gives one, along its difference."""
    policy = make_policy("expire_span", {"span_model": "sigmoid", "max_span": 24, "ramp": 5, "use_coef": 0.0})
    kind = policy.core.layers[0].kind
    torch.nn.init.constant_(kind.span.bias, -1.0)  # below one half, where the penalty rises more steeply with the span
    torch.nn.init.constant_(kind.span.weight, 0.05)
    same_memory = torch.randn(16, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    normed, is_new, noise = same_memory.repeat(2, 8, 1), torch.ones(2, 8, dtype=torch.bool), torch.zeros(2, 0)
    kind.loss(normed, is_new, None, noise, 1.0).backward()
    assert kind.span.weight.grad.abs().max() < 1e-12
    assert float(kind.span.bias.grad) > 0
    kind.zero_grad()
    odd = normed.clone()
    odd[0, 0, 3] += 2.0
    kind.loss(odd, is_new, None, noise, 1.0).backward()
    is_learned = kind.span.weight.grad[0].abs() > 1e-12
    assert is_learned.tolist() == [i == 3 for i in range(16)]
