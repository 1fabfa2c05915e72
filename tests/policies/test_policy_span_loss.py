"""The loss of sigmoid spans in plain loops, from what `inspect` shows. B environments, C slots, H heads, T queries."""

from __future__ import annotations

import math

import pytest
import torch
from policy_cases import act, experience, make_policy

from expire_span_rl.policies.memory.kind import Lives


def lift(layer, b: int, h: int, t: int, c: int) -> float:
    """How many times the attention that the other visible slots get on average slot c gets; 0 if there are no
    others."""
    others = int(layer.visible[b, t].sum()) - 1
    weight = float(layer.attention[b, h, t, c])
    return weight / ((1 - weight) / others) if others and weight else 0.0


def counted(steps: float) -> float:
    """A span of 24 steps at most as the loss counts it: its fraction up to one half, beyond on along the steepest
    slope."""
    fraction = steps / 24
    return fraction if fraction <= 0.5 else 0.5 + math.log(fraction / (1 - fraction)) / 4


@pytest.mark.parametrize("pressure", [0.7, -0.4])
def test_charge_and_defence(pressure):
    """Charge on the spans of new memories, defence of every memory that attention used up to a margin beyond its age of
    last use; averaged over new memories and over layers."""
    settings = {
        "span_model": "sigmoid",
        "max_span": 24,
        "ramp": 5,
        "use_lift": 1.5,
        "use_margin": 0.25,
        "use_coef": 9.0,
        "span_coef": 0.6,
    }
    policy = make_policy("expire_span", settings)
    generator = torch.Generator().manual_seed(0)
    memory = act(policy, policy.initial_memory(3), experience(generator, 12, 3)).memory
    given = experience(generator, 9, 3)
    steps, batch = given.start.shape
    _, _, layers = policy.inspect(given.observation, memory, given.start)
    expected, defended = 0.0, 0
    for layer in layers:
        slots = layer.coordinate.shape[1]
        charge = defence = 0.0
        for b in range(batch):
            for c in range(slots):
                span = float(layer.slot_features[b, c])
                if c >= slots - steps:
                    charge += counted(max(span, 24 / 25)) if pressure > 0 else -counted(min(span, 0.99 * 24))
                ages = [t - float(layer.coordinate[b, c]) for t in range(steps)
                        if any(lift(layer, b, h, t, c) > 1.5 for h in range(2))]  # fmt: skip
                if max(ages, default=0) > 0:
                    needed = min(1.25 * max(ages) + 1, 0.99 * 24)
                    defence += 9.0 * max(0.0, counted(needed) - counted(span))
                    defended += needed > span
        expected += 0.6 * (charge + defence) / (steps * batch) / len(layers)
    assert defended > 5
    loss = policy.unroll(given.observation, memory, given.start, pressure=pressure).memory_loss
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-6)


def test_without_pressure_nothing_is_charged_or_defended():
    """Nothing is lost then, and an untrained policy uses memories of all ages."""
    policy = make_policy("expire_span", {"span_model": "sigmoid", "max_span": 24, "ramp": 5, "use_lift": 1.5})
    given = experience(torch.Generator().manual_seed(0), 9, 3)
    assert float(policy.unroll(given.observation, policy.initial_memory(3), given.start, pressure=0.0).memory_loss) == 0


def test_a_span_near_the_longest_can_come_down():
    """The sigmoid is flat there, the loss is not: the gradient of the level is the same at one half and far above."""
    kind = (
        make_policy("expire_span", {"span_model": "sigmoid", "max_span": 24, "ramp": 5, "use_coef": 0.0})
        .core.layers[0]
        .kind
    )
    normed, new = torch.zeros(1, 4, 16, dtype=torch.float64), torch.ones(1, 4, dtype=torch.bool)
    for level in (0.0, 12.0):
        torch.nn.init.constant_(kind.span.bias, level)
        kind.zero_grad()
        kind.loss(normed, new, None, torch.zeros(1, 0), 1.0).backward()
        assert float(kind.span.bias.grad) == pytest.approx(0.25)


def test_spans_turn_round_and_do_not_run_away():
    """500 steps of the learner's optimiser in which old uses drive the span up, then 500 of lengthening, leave it at
    most near L_max; as many of pressure bring it down to a step, and no further."""
    kind = make_policy("expire_span", {"span_model": "sigmoid", "max_span": 24, "ramp": 5}).core.layers[0].kind
    normed, new = torch.zeros(1, 4, 16, dtype=torch.float64), torch.ones(1, 4, dtype=torch.bool)
    optimizer = torch.optim.Adam(kind.parameters(), lr=0.05, betas=(0.9, 0.99))

    def level(last_use: float, pressure: float) -> float:
        for _ in range(500):
            optimizer.zero_grad()
            used = torch.full((1, 4), last_use, dtype=torch.float64)
            lives = Lives(used, used, used, new, new, None)
            kind.loss(normed, new, lives, torch.zeros(1, 0), pressure).backward()
            optimizer.step()
        return float(kind.span.bias.detach())

    longest = math.log(0.99 / 0.01)
    assert level(1000.0, 1.0) == pytest.approx(longest, abs=0.3)  # a use beyond L_max asks for no more
    assert level(-1.0, -1.0) == pytest.approx(longest, abs=0.3)
    assert level(-1.0, 1.0) == pytest.approx(math.log(1 / 24), abs=0.3)


def test_only_the_span_predictor_learns_from_it():
    """Hidden vectors are detached in the loss, so that forgetting does not bend what the policy reads."""
    policy = make_policy("expire_span")
    generator = torch.Generator().manual_seed(1)
    given = experience(generator, 9, 3)
    policy.unroll(given.observation, policy.initial_memory(3), given.start, pressure=0.5).memory_loss.backward()
    touched = {name for name, p in policy.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert touched == {f"core.layers.{i}.kind.span.{name}" for i in range(2) for name in ("weight", "bias")}


def test_what_all_memories_share_is_the_business_of_the_bias():
    """Memories that look alike give the weights no gradient; one that differs does, along its difference."""
    policy = make_policy("expire_span", {"span_model": "sigmoid", "max_span": 24, "ramp": 5, "use_coef": 0.0})
    kind = policy.core.layers[0].kind
    torch.nn.init.constant_(kind.span.bias, -1.0)  # below one half, where a longer span is charged more steeply
    torch.nn.init.constant_(kind.span.weight, 0.05)
    alike = torch.randn(16, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    normed, new, span_limit = alike.repeat(2, 8, 1), torch.ones(2, 8, dtype=torch.bool), torch.zeros(2, 0)
    kind.loss(normed, new, None, span_limit, 1.0).backward()
    assert kind.span.weight.grad.abs().max() < 1e-12
    assert float(kind.span.bias.grad) > 0
    kind.zero_grad()
    odd = normed.clone()
    odd[0, 0, 3] += 2.0
    kind.loss(odd, new, None, span_limit, 1.0).backward()
    touched = kind.span.weight.grad[0].abs() > 1e-12
    assert touched.tolist() == [i == 3 for i in range(16)]
