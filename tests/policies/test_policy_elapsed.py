"""The value function's clock: steps since the episode began, which the policy itself does not know."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from policy_cases import CASES, experience, make_policy

from expire_span_rl.policies import PolicyConfig
from expire_span_rl.policies.elapsed import ElapsedValue
from expire_span_rl.policies.memory.state import elapsed_steps


def test_elapsed_steps_are_counted_from_each_start():
    start = torch.tensor([[0, 1, 0], [0, 0, 0], [1, 0, 0], [0, 1, 0]]).bool()
    time = torch.tensor([7, 7, 0], dtype=torch.int32)
    assert elapsed_steps(time, start).tolist() == [[7, 0, 0], [8, 1, 1], [0, 2, 2], [1, 0, 3]]


@torch.no_grad()
@pytest.mark.parametrize("kind, settings", [case for case in CASES if case.id.endswith("-0")])
def test_only_values_depend_on_the_clock(kind, settings):
    """The same memory, empty, with a later clock."""
    policy = make_policy(kind, settings)
    rollout = experience(torch.Generator().manual_seed(0), 6, 3, 0.0)
    start = torch.zeros_like(rollout.start)
    memory = policy.initial_memory(3)
    outs = []
    for time in (0, 1000):
        later = replace(memory, time=memory.time + time)
        outs.append(policy.unroll(rollout.observation, later, start))
    torch.testing.assert_close(outs[0].logits, outs[1].logits, rtol=0, atol=1e-12)
    assert (outs[0].values - outs[1].values).abs().min() > 1e-6


def test_a_new_policy_values_nothing_and_older_files_have_no_clock():
    assert not ElapsedValue(8)(torch.randn(5, 8), torch.arange(5)).any()
    config = make_policy("none").config.to_json()
    del config["time_aware_value"]
    assert not PolicyConfig.from_json(config).time_aware_value
    assert PolicyConfig.from_json({**config, "time_aware_value": True}).time_aware_value


def test_a_value_can_fall_to_a_fixed_end():
    """The discounted cost of the remaining steps of an episode of 500, from the clock alone."""
    torch.manual_seed(0)
    time = torch.arange(500)
    target = -(1 - 0.99 ** (500 - time.float())) / 2
    value = ElapsedValue(64)
    optimizer = torch.optim.Adam(value.parameters(), 1e-3)
    for _ in range(500):
        loss = (value(torch.zeros(500, 64), time) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.02 * float(target.var())
