"""Rollouts without training noise: a policy then computes what it does outside of training."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from policy_cases import CORE, CORES, KINDS, experience, make_policy

from expire_span_rl.policies import core_config
from expire_span_rl.policies.transformer.layer import TransformerConfig

NOISY_CORE = replace(CORE, head_dropout=0.5, position_dropout=0.7)
SETTINGS = {
    "sigmoid": {"span_model": "sigmoid", "max_span": 6, "ramp": 3},
    "survival": {"initial_limit": 24, "ramp": 3, "time_skips": 1.0, "time_gaps": 1.0},
}
CASES = [pytest.param(kind, {}, id=kind) for kind in KINDS] + [
    pytest.param("expire_span", settings, id=f"expire_span-{name}") for name, settings in SETTINGS.items()
]


def make_noisy(kind, settings):
    is_transformer = core_config(kind) is TransformerConfig
    return make_policy(kind, settings, core=NOISY_CORE if is_transformer else CORES[kind]), is_transformer


@pytest.mark.parametrize(("kind", "settings"), CASES)
def test_without_training_noise_a_policy_computes_what_it_does_outside_of_training(kind, settings):
    policy, is_transformer = make_noisy(kind, settings)
    rollout = experience(torch.Generator().manual_seed(4), 9, 6, start_probability=0.1)
    memory = policy.initial_memory(6)
    drawn = {
        noiseless: policy.draw(memory, torch.Generator().manual_seed(5), noiseless=noiseless)
        for noiseless in (True, False)
    }
    outputs = {key: policy.unroll(rollout.observation, start, rollout.start) for key, start in drawn.items()}
    plain = policy.unroll(rollout.observation, memory, rollout.start)
    assert torch.equal(drawn[True].time, memory.time)
    torch.testing.assert_close(outputs[True].logits, plain.logits)
    if is_transformer and kind != "none":  # which attends to nothing
        assert not torch.allclose(outputs[False].logits, plain.logits)


@pytest.mark.parametrize(("kind", "settings"), CASES)
def test_rollouts_with_and_without_noise_have_equally_many_numbers(kind, settings):
    """A captured step keeps its buffers, and a minibatch its columns."""
    policy, _ = make_noisy(kind, settings)
    with_noise, without = (
        policy.draw(policy.initial_memory(9), torch.Generator().manual_seed(5), noiseless=value).noise
        for value in (False, True)
    )
    assert with_noise.shape == without.shape and with_noise.dtype == without.dtype


def test_no_time_is_skipped_without_noise():
    """Neither before the rollout nor before its queries."""
    policy = make_policy("expire_span", SETTINGS["survival"])
    noisy, noiseless = (
        policy.draw(policy.initial_memory(64), torch.Generator().manual_seed(2), noiseless=value)
        for value in (False, True)
    )
    assert (noisy.noise[:, -2:] > 0).any(0).all() and noisy.time.any()
    assert not noiseless.noise[:, -2:].any() and not noiseless.time.any()
