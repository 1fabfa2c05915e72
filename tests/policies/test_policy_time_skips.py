"""Time that is skipped before training rollouts: what ages, and what spans learn from it.

B environments, C slots.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from policy_cases import act, act_as_learned, experience, make_policy

from expire_span_rl.policies.memory.survival_spans import SKIPPED_RAMPS
from expire_span_rl.policies.settings import ExpireSpanConfig
from expire_span_rl.protocols import CONTROL_EVERY, is_control

RAMP = 5
SETTINGS = {"initial_limit": 24, "ramp": RAMP, "use_lift": 1.5, "use_share": 0.05, "use_coef": 5.0}


@pytest.mark.parametrize("num_envs, skipping", [(1, 0), (2, 1), (7, 6), (8, 7), (12, 11), (16, 14)])
def test_the_last_of_eight_environments_and_of_fewer_is_a_control(num_envs, skipping):
    policy = make_policy("expire_span", {**SETTINGS, "time_skips": 1.0})
    memory = policy.initial_memory(num_envs)
    is_skipped = policy.draw(memory, torch.Generator().manual_seed(0)).time > memory.time
    assert is_skipped.tolist() == [not is_control(row, num_envs) for row in range(num_envs)]
    assert is_skipped.sum() == skipping


@pytest.mark.parametrize("ramp, most", [(RAMP, SKIPPED_RAMPS * RAMP), (0, SKIPPED_RAMPS)])
def test_time_is_skipped_by_chance_up_to_some_ramps_and_only_once_spans_are_released(ramp, most):
    policy = make_policy("expire_span", {**SETTINGS, "ramp": ramp, "time_skips": 0.25})
    rollout = experience(torch.Generator().manual_seed(1), 12, 4000, start_probability=0, final_probability=0)
    memory = act(policy, policy.initial_memory(4000), rollout).memory
    drawn = policy.draw(memory, torch.Generator().manual_seed(2))
    skipped = drawn.time - memory.time
    assert drawn.time.dtype == memory.time.dtype
    assert set(skipped.tolist()) == set(range(most + 1))
    *others, controls = skipped.unflatten(0, (-1, CONTROL_EVERY)).unbind(1)
    assert 0.22 < (torch.cat(others) > 0).double().mean() < 0.28 and not controls.any()
    assert torch.equal(drawn.noise[:, -2].to(skipped.dtype), skipped)
    for before, after in zip(memory.layers, drawn.layers, strict=True):
        assert torch.equal(before.birth, after.birth)
    again = policy.draw(memory, torch.Generator().manual_seed(2))
    assert torch.equal(again.time, drawn.time)
    for layer in policy.core.layers:
        layer.kind.span.released.fill_(0.5)
    assert torch.equal(policy.draw(memory).time, memory.time)
    never = make_policy("expire_span", {**SETTINGS, "time_skips": 0.0, "time_gaps": 1.0})
    assert torch.equal(never.draw(memory).time, memory.time)


def test_acting_equals_learning_after_a_skip_and_what_was_just_seen_is_gone():
    policy = make_policy("expire_span", {**SETTINGS, "time_skips": 1.0})
    generator = torch.Generator().manual_seed(3)
    memory = policy.initial_memory(6)
    expired = 0
    for _ in range(4):
        rollout = experience(generator, 9, 6, start_probability=0.05)
        rollout.start[0] = False
        without_skip = act(policy, replace(policy.draw(memory, generator), time=memory.time), rollout)
        memory = policy.draw(memory, generator)
        out = act_as_learned(policy, memory, rollout)
        expired += int((without_skip.live[0] - out.live[0]).sum())
        memory = out.memory
    assert expired > 20


def test_skipped_time_is_no_part_of_an_episode_that_ended_before_it():
    """Its memories teach their spans the same as without the skip."""
    policy = make_policy("expire_span", {**SETTINGS, "time_skips": 1.0})
    generator = torch.Generator().manual_seed(4)
    first = experience(generator, 12, 5, start_probability=0)
    memory = act(policy, policy.draw(policy.initial_memory(5)), first).memory
    rollout = experience(generator, 9, 5, start_probability=0)
    rollout.start[0] = True
    skipped = policy.draw(memory, generator)
    plain = replace(skipped, time=memory.time, noise=torch.zeros_like(skipped.noise))
    assert (skipped.time > plain.time)[:-1].all()  # the last one is a control
    losses = [
        policy.unroll(rollout.observation, start, rollout.start, pressure=1.0).memory_loss for start in (skipped, plain)
    ]
    with_skip, without = (float(loss.detach()) for loss in losses)
    assert with_skip == pytest.approx(without, rel=1e-9) and with_skip > 0


def test_a_chance_above_1_is_one_line():
    for name in ("time_skips", "time_gaps"):
        with pytest.raises(ValueError, match=f"^--{name.replace('_', '-')}: expected a chance from 0 to 1, got 1.5$"):
            ExpireSpanConfig(**{name: 1.5})
