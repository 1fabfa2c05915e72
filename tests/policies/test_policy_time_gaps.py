"""Memories that look older in some training rollouts: which rollouts, what is then out of sight, and what stays."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from policy_cases import act_as_learned, experience, make_policy, observations

from expire_span_rl.policies.memory.survival_spans import SKIPPED_RAMPS
from expire_span_rl.protocols import CONTROL_EVERY

RAMP = 3
SETTINGS = {"initial_limit": 24, "ramp": RAMP, "use_lift": 1.5, "use_share": 0.05, "use_coef": 5.0, "time_skips": 0.0}


def gaps_of(policy, memory):
    layer = policy.core.layers[0]
    return layer.kind.time_gaps(layer.kind_noise(memory.noise))


def test_gaps_are_drawn_by_chance_up_to_some_ramps_and_only_once_spans_are_released():
    policy = make_policy("expire_span", {**SETTINGS, "time_gaps": 0.25})
    memory = policy.draw(policy.initial_memory(4000), torch.Generator().manual_seed(2))
    gaps = gaps_of(policy, memory)
    assert set(gaps.tolist()) == set(range(SKIPPED_RAMPS * RAMP + 1))
    *others, controls = gaps.unflatten(0, (-1, CONTROL_EVERY)).unbind(1)
    assert 0.22 < (torch.cat(others) > 0).double().mean() < 0.28 and not controls.any()
    assert not memory.time.any()  # no clock is moved
    for layer in policy.core.layers:
        layer.kind.span.released.fill_(0.5)
    assert gaps_of(policy, policy.draw(memory)) is None
    assert gaps_of(policy, policy.initial_memory(3)) is None
    never = make_policy("expire_span", {**SETTINGS, "time_gaps": 0.0})
    assert gaps_of(never, never.draw(never.initial_memory(3))) is None


def test_acting_equals_learning_with_gaps():
    """With final observations and several rollouts, whose memories are the same too."""
    policy = make_policy("expire_span", {**SETTINGS, "time_gaps": 0.7, "time_skips": 0.5})
    generator = torch.Generator().manual_seed(3)
    memory = policy.initial_memory(6)
    for _ in range(4):
        rollout = experience(generator, 9, 6, start_probability=0.05)
        memory = policy.draw(memory, generator)
        memory = act_as_learned(policy, memory, rollout).memory


def test_only_what_outlives_the_gap_is_seen():
    """A memory is seen if its span covers its age and the gap. The ramp counts as a part of the span."""
    policy = make_policy("expire_span", {**SETTINGS, "time_gaps": 1.0})
    rollout = experience(torch.Generator().manual_seed(4), 12, 2, start_probability=0, final_probability=0)
    memory = policy.draw(policy.initial_memory(2))
    memory.noise[:, -1] = torch.tensor([0, 7])
    span = policy.core.layers[0].kind.span
    lengths = torch.linspace(0, 20, 12, dtype=torch.float64)
    lengths[3] = math.inf
    span.forward = lambda normed, known_need=None: F.pad(lengths, (normed.shape[1] - 12, 0)).expand(normed.shape[:-1])
    _, _, (first, *_) = policy.inspect(rollout.observation, memory, rollout.start)
    slots = torch.isfinite(first.coordinate[0])
    age = torch.arange(12)[:, None] - torch.arange(12)[None]  # steps by slots
    for row, gap in enumerate((0, 7)):
        seen = (age == 0) | ((age > 0) & (lengths + RAMP > age + gap))
        assert torch.equal(first.visible[row][:, slots], seen)
    assert first.visible[1].sum() < first.visible[0].sum()


def test_static_buffers_act_the_same_with_gaps():
    """As on a GPU, where a step looks at all slots of its buffers."""
    settings = {**SETTINGS, "time_gaps": 0.7}
    plain, static = (make_policy("expire_span", settings) for _ in range(2))
    static.load_state_dict(plain.state_dict())
    static.core.static = True
    memory = plain.draw(plain.initial_memory(6), torch.Generator().manual_seed(5))
    assert gaps_of(plain, memory).any()
    left, right = (policy.begin(memory, 9, in_rollout=True) for policy in (plain, static))
    generator = torch.Generator().manual_seed(6)
    for _ in range(9):
        observation, start = observations(generator, 6), torch.rand(6, generator=generator) < 0.1
        torch.testing.assert_close(
            static.step(observation, right, start), plain.step(observation, left, start), rtol=0, atol=1e-9
        )
        assert torch.equal(left.live, right.live)
