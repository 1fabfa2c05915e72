"""use_coef falls to --min-use-coef while the target is met: which memories are kept then, and what is saved."""

from __future__ import annotations

import math

import pytest
import torch
from policy_cases import make_policy

from expire_span_rl.policies import load_policy, save_policy
from expire_span_rl.policies.memory.survival_spans import SurvivalSpans
from expire_span_rl.policies.settings import ExpireSpanConfig

SETTINGS = {"initial_limit": 24, "use_coef": 64.0, "min_use_coef": 4.0}
NEEDS = [0.5, 0.2, 0.1, 0.01]
"""Chances that four memories are needed after their first step."""


def make_spans(**settings) -> SurvivalSpans:
    """A predictor of NEEDS for unit vectors."""
    spans = SurvivalSpans(len(NEEDS), ExpireSpanConfig(**{**SETTINGS, **settings}))
    hazards = 1 - torch.tensor(NEEDS)
    with torch.no_grad():
        spans.bias.fill_(-50.0)
        spans.bias[0] = 0.0
        spans.weight[0] = torch.logit(hazards)
    return spans


def kept(spans: SurvivalSpans) -> list[bool]:
    """Which of the memories are kept for good."""
    return torch.isinf(spans(torch.eye(len(NEEDS))[None]))[0].tolist()


def test_memories_expire_from_the_least_needed_on_as_use_coef_falls_and_come_back_as_it_rises():
    spans = make_spans()
    spans.release()
    assert kept(spans) == [True, True, True, False]  # 0.01 is less than 1 in 64
    spans.tighten(0.5)  # 16, half of the way to 4 in logarithms
    assert spans.metrics()["use_coef"] == pytest.approx(16) and kept(spans) == [True, True, True, False]
    spans.tighten(0.25)  # 8
    assert kept(spans) == [True, True, False, False]
    spans.tighten(0.5)  # at most 4
    assert spans.metrics()["use_coef"] == pytest.approx(4) and kept(spans) == [True, False, False, False]
    spans.tighten(-0.5)
    assert kept(spans) == [True, True, True, False]
    spans.tighten(-2.0)
    assert spans.metrics()["use_coef"] == pytest.approx(64)


def test_a_memory_that_was_used_is_measured_by_the_chance_of_another_use():
    """It is needed at age 4 with the same chance as at age 1, so that from age 1 on it is kept whatever use_coef is."""
    spans = make_spans()
    spans.release()
    spans.tighten(1.0)
    assert torch.isinf(spans(torch.eye(len(NEEDS))[None], torch.full((1, len(NEEDS)), 9.0))).all()


def test_use_coef_moves_only_while_spans_follow_needs():
    spans = make_spans()
    for begin in (lambda: None, spans.observe_needs, spans.bind):
        begin()
        spans.tighten(1.0)
        assert spans.metrics()["use_coef"] == pytest.approx(64)
    spans.release()
    spans.tighten(1.0)
    spans.bind()  # what was learned while memories were short harmed
    assert spans.metrics()["use_coef"] == pytest.approx(64)


def test_without_the_setting_it_stays_and_a_policy_file_has_no_trace_of_it():
    spans = make_spans(min_use_coef=0.0)
    spans.release()
    spans.tighten(1.0)
    assert kept(spans) == [True, True, True, False] and spans.metrics() == {}
    assert set(spans.state_dict()) == {"released", "weight", "bias"}


def test_a_saved_policy_keeps_the_spans_that_it_had(tmp_path):
    policy = make_policy("expire_span", SETTINGS)
    policy.release_spans()
    policy.tighten_spans(0.5)
    save_policy(policy, tmp_path / "policy.safetensors", {})
    loaded, _ = load_policy(tmp_path / "policy.safetensors")
    for layer in loaded.core.layers:
        assert float(layer.kind.span.log_use_coef) == pytest.approx(math.log(16))


@pytest.mark.parametrize("value", [1.0, -2.0, 65.0, math.nan])
def test_a_bad_value_is_refused(value):
    with pytest.raises(ValueError, match="--min-use-coef: expected 0, or more than 1 and at most --use-coef"):
        ExpireSpanConfig(**{**SETTINGS, "min_use_coef": value})


def test_bounded_spans_have_none():
    with pytest.raises(ValueError, match="--min-use-coef: expected --span-model survival with it"):
        ExpireSpanConfig(span_model="sigmoid", min_use_coef=2.0)
