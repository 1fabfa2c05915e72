"""Linear recurrent units: the scan against a loop, and the range of their eigenvalues.

T time steps, B environments, N channels.
"""

from __future__ import annotations

import pytest
import torch
from policy_cases import SPEC, make_policy
from torch import Tensor

from expire_span_rl.policies import ActorCritic, PolicyConfig
from expire_span_rl.policies.recurrent import scan
from expire_span_rl.policies.recurrent.scan import linear_scan
from expire_span_rl.policies.settings import LRUConfig


def loop(decay: Tensor, keep: Tensor, inputs: Tensor, initial: Tensor) -> Tensor:
    """The recurrence as it is written."""
    states, state = [], initial
    for x_t, keep_t in zip(inputs, keep, strict=True):
        state = decay * (state * keep_t[:, None]) + x_t
        states.append(state)
    return torch.stack(states)


def case(steps: int, batch: int, channels: int, seed: int, starts: float = 0.1) -> tuple[Tensor, ...]:
    """Decays of sizes 0.01 to 0.9999 with any phase; episodes that start anywhere, at the first step and twice in a row
    too. In float64."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.complex(*torch.randn(2, *shape, generator=generator, dtype=torch.float64))

    size = torch.linspace(0.01, 0.9999, channels, dtype=torch.float64)
    decay = torch.polar(size, 6 * torch.rand(channels, generator=generator, dtype=torch.float64))
    keep = (torch.rand(steps, batch, generator=generator) >= starts).double()
    return decay, keep, noise(steps, batch, channels), noise(batch, channels)


@pytest.mark.parametrize("steps", [1, 7, 8, 9, 64, 100])
def test_the_scan_is_the_loop(steps):
    """Rollouts shorter and longer than a block, and no multiple of it."""
    arguments = case(steps, 5, 6, steps)
    torch.testing.assert_close(linear_scan(*arguments), loop(*arguments), rtol=0, atol=1e-11)


@pytest.mark.parametrize("steps", [3, 8, 19])
def test_gradients_of_the_scan_are_those_of_the_loop(steps):
    decay, keep, inputs, initial = case(steps, 3, 4, steps)
    inputs_with_gradient = [tensor.requires_grad_() for tensor in (decay, inputs, initial)]
    weight = torch.randn(steps, 3, 4, 2, dtype=torch.float64)
    grads = [
        torch.autograd.grad(
            (torch.view_as_real(run(decay, keep, inputs, initial)) * weight).sum(), inputs_with_gradient
        )
        for run in (linear_scan, loop)
    ]
    for actual, reference in zip(*grads, strict=True):
        torch.testing.assert_close(actual, reference, rtol=1e-11, atol=1e-11)
    assert torch.autograd.gradcheck(lambda *rollout: linear_scan(rollout[0], keep, *rollout[1:]), inputs_with_gradient)


def test_float32_is_safe_over_long_rollouts():
    """4,096 steps, many without an episode start, decays from 0.01 to 0.9999: within rounding of the loop in float64.
    Dividing by powers of a decay, as a scan by cumulative sums does, would end in infinities."""
    rollout = case(4096, 2, 8, 0, starts=0.0005)
    exact = loop(*rollout)
    single = linear_scan(
        rollout[0].to(torch.complex64), rollout[1].float(), *(part.to(torch.complex64) for part in rollout[2:])
    )
    error = (single.to(torch.complex128) - exact).abs().amax((0, 1)) / exact.abs().amax((0, 1))
    assert float(error.max()) < 1e-5  # fails for NaN too


def test_the_block_changes_nothing(monkeypatch):
    rollout = case(33, 4, 5, 3)
    expected = linear_scan(*rollout)
    for block in (1, 2, 16, 64):
        monkeypatch.setattr(scan, "BLOCK", block)
        torch.testing.assert_close(linear_scan(*rollout), expected, rtol=0, atol=1e-11)


def test_eigenvalues_begin_on_the_ring_and_stay_inside_the_circle():
    """Between the radii and below the largest phase; below 1 whatever the optimiser does."""
    config = LRUConfig(min_radius=0.8, max_radius=0.99, max_phase=1.5)
    policy = ActorCritic(PolicyConfig(SPEC, 4, "lru", config))
    for unit in policy.core.units:
        size, phase = unit.eigenvalues().abs(), unit.eigenvalues().angle()
        assert 0.8 <= size.min() < 0.87 and 0.93 < size.max() <= 0.99 + 1e-6
        assert phase.min() > 0 and 1 < phase.max() <= 1.5
        torch.testing.assert_close(torch.exp(unit.gamma_log), torch.sqrt(1 - size**2), rtol=1e-4, atol=0)
    wild = make_policy("lru")
    with torch.no_grad():
        for unit in wild.core.units:
            unit.nu_log.uniform_(-12, 5)
            assert unit.eigenvalues().abs().max() < 1


def test_the_state_keeps_the_size_of_its_input():
    """gamma: after many steps of independent inputs of size 1 every channel is of size 1, long memory or short."""
    torch.manual_seed(0)
    unit = ActorCritic(PolicyConfig(SPEC, 4, "lru", LRUConfig(max_radius=0.99))).core.units[0]
    noise = torch.complex(*torch.randn(2, 2000, 50, 64)) / 2**0.5
    states = linear_scan(unit.eigenvalues(), torch.ones(2000, 50), unit.gamma_log.exp() * noise, noise[0])
    size = states[500:].abs().square().mean((0, 1)).detach()
    assert size.min() > 0.8 and size.max() < 1.2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_radius": 0}, "--min-radius: expected 0 < --min-radius < --max-radius < 1, got 0 and 0.999"),
        ({"max_radius": 1}, "--min-radius: expected 0 < --min-radius < --max-radius < 1, got 0.9 and 1"),
        ({"max_phase": 7}, "--max-phase: expected more than 0 and at most 2 pi, got 7"),
        ({"max_phase": float("nan")}, "--max-phase: expected more than 0 and at most 2 pi, got nan"),
    ],
)
def test_eigenvalues_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        LRUConfig(**settings)
