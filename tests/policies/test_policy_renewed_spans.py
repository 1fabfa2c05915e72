"""Spans that count from the last use: the formula, and when uses are taken into account.

B environments, C slots.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from policy_cases import CORE, act, experience, make_policy

from expire_span_rl.policies.memory.survival_spans import SurvivalSpans
from expire_span_rl.policies.settings import ExpireSpanConfig

EVERY = 7
SETTINGS = {
    "initial_limit": 24,
    "ramp": 3,
    "use_lift": 1.5,
    "use_share": 0.05,
    "use_coef": 5.0,
    "renew_every": EVERY,
    "time_gaps": 0.0,
}


def still_needed(hazards: list[float], edges: list[float], age: float) -> float:
    """S(age) of the hazards [K] of bins that `edges` [K+1] bound."""
    log_survival = 0.0
    for hazard, lower, upper in zip(hazards, edges, edges[1:], strict=False):
        part = min(max((age - lower) / (upper - lower), 0.0), 1.0)
        log_survival += part * math.log(1 - hazard)
    return math.exp(log_survival)


def test_the_span_is_where_the_chance_given_the_last_use_falls_below_one_in_use_coef():
    """Against bisection of S(a) / S(u), for many curves and ages u of the last use."""
    generator = torch.Generator().manual_seed(0)
    spans = SurvivalSpans(25, ExpireSpanConfig(ramp=3, use_coef=5.0)).double()
    spans.release()
    with torch.no_grad():
        spans.weight.copy_(torch.eye(25))
        spans.bias.zero_()
    logits = torch.randn(1, 300, 25, generator=generator, dtype=torch.float64) * 2 - 3
    need = (2 ** (torch.rand(1, 300, generator=generator) * 16)).long()
    need[:, ::7] = 0
    edges = spans.edges.tolist()
    finite = short = 0
    for curve, used, span in zip(logits[0], need[0].tolist(), spans(logits, need)[0].tolist(), strict=True):
        hazards = torch.sigmoid(curve).tolist()
        known = used if used > 3 else 0  # uses within the ramp do not count
        limit = still_needed(hazards, edges, known) / 5
        if still_needed(hazards, edges, edges[-1]) > limit:
            assert span == math.inf
            continue
        low, high = 0.0, edges[-1]
        while high - low > 1e-9 * high:
            middle = (low + high) / 2
            low, high = (middle, high) if still_needed(hazards, edges, middle) > limit else (low, middle)
        assert span == pytest.approx(high, rel=1e-6)
        finite, short = finite + 1, short + (known == 0)
    assert finite > 100 and short > 20
    torch.testing.assert_close(spans(logits, torch.zeros_like(need)), spans(logits))
    assert (spans(logits, 2 * need) >= spans(logits, need) - 1e-6).all()


@pytest.mark.parametrize("horizon", [1, 5, 60])
def test_spans_are_renewed_by_the_clock_of_each_environment(horizon):
    """Acting against unrolls that end where a clock is a multiple of `renew_every`. After each of them spans count from
    the last uses. Each environment by itself, so that the others have no part in it."""
    core = replace(CORE, head_dropout=0.0)
    policy = make_policy("expire_span", SETTINGS, core=core)
    rollout = experience(torch.Generator().manual_seed(3), 60, 4, start_probability=0.04, final_probability=0)
    rollout.start[0] = True
    out = act(policy, policy.initial_memory(4), rollout, horizon, in_rollout=False)
    never_renewed = make_policy("expire_span", {**SETTINGS, "renew_every": 0}, core=core)
    unrenewed = act(never_renewed, policy.initial_memory(4), rollout)
    assert not torch.allclose(out.logits, unrenewed.logits)
    for b in range(4):
        row = rollout.columns(torch.tensor([b]))
        memory = policy.draw(policy.initial_memory(1))
        logits, begin, clock = [], 0, 0
        for t in range(60):
            clock = 1 if row.start[t, 0] else clock + 1
            if clock % EVERY == 0 or t == 59:
                part = {name: entry[begin : t + 1] for name, entry in row.observation.items()}
                unrolled = policy.unroll(part, memory, row.start[begin : t + 1], keep=True)
                memory = unrolled.memory
                memory = replace(memory, layers=tuple(layer.renewed() for layer in memory.layers))
                logits.append(unrolled.logits)
                begin = t + 1
        torch.testing.assert_close(out.logits[:, [b]], torch.cat(logits), rtol=0, atol=1e-9)


def test_memories_that_are_used_outlive_their_first_span():
    policy = make_policy("expire_span", SETTINGS, seed=1)
    rollout = experience(torch.Generator().manual_seed(1), 120, 8, start_probability=0)
    memory = act(policy, policy.initial_memory(8), rollout, in_rollout=False).memory
    outlived = 0
    for layer, slots in zip(policy.core.layers, memory.layers, strict=True):
        first_span = layer.kind.describe(layer.norm(slots.hidden), memory.noise)
        age = memory.time[:, None] - slots.birth
        outlived += int((slots.alive & (age >= first_span + SETTINGS["ramp"])).sum())
        assert (slots.known_need >= 0).all() and (slots.known_need < age)[slots.alive].all()
    assert outlived > 0


def test_rollouts_renew_spans_at_their_start_if_the_settings_ask_for_it():
    generator = torch.Generator().manual_seed(2)
    rollout = experience(generator, 20, 3)
    for settings, released in ((SETTINGS, True), ({**SETTINGS, "renew_every": 0}, True), (SETTINGS, False)):
        policy = make_policy("expire_span", settings)
        if not released:
            for layer in policy.core.layers:
                layer.kind.span.released.zero_()
        assert policy.renew_every == (settings["renew_every"] if released else 0)
        memory = act(policy, policy.draw(policy.initial_memory(3)), rollout).memory
        for before, after in zip(memory.layers, policy.draw(memory).layers, strict=True):
            if not policy.renew_every:
                assert after.known_need is None
                continue
            assert (before.known_need == 0).all()  # nothing was used before the rollout
            assert torch.equal(after.known_need, (after.last_use - after.birth).clamp(min=0))
            assert (after.known_need > 0).any()


def test_uses_from_before_they_were_tracked_count_as_none():
    policy = make_policy("expire_span", {**SETTINGS, "renew_every": 0})
    memory = act(policy, policy.initial_memory(3), experience(torch.Generator().manual_seed(4), 12, 3)).memory
    assert all(layer.last_use is None for layer in memory.layers)
    for layer in make_policy("expire_span", SETTINGS).draw(memory).layers:
        assert (layer.last_use == -1).all() and (layer.known_need == 0).all()
