"""V-trace against a slow transcription of the paper (Espeholt et al., 2018). T time steps, B environments."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from expire_span_rl.agents.returns import gae, vtrace


@dataclass(frozen=True)
class Trace:
    """The tensors that `vtrace` takes, [T,B] each."""

    rewards: Tensor
    values: Tensor
    next_values: Tensor
    terminated: Tensor
    truncated: Tensor
    log_ratios: Tensor

    def vtrace(self, **config: float) -> tuple[Tensor, Tensor]:
        return vtrace(**{f.name: getattr(self, f.name) for f in fields(self)}, **config)

    def part(self, steps: slice) -> Trace:
        return Trace(**{f.name: getattr(self, f.name)[steps] for f in fields(self)})


@dataclass(frozen=True)
class Config:
    """The numbers that `vtrace` takes."""

    gamma: float
    trace_lambda: float
    rho_clip: float
    c_clip: float


FRACTION = st.sampled_from((0.0, 0.5, 0.9, 1.0))
CLIP = st.sampled_from((0.5, 1.0, 2.0, 1e9))
CONFIGS = st.builds(Config, gamma=FRACTION, trace_lambda=FRACTION, rho_clip=CLIP, c_clip=CLIP)
CLOSE = {"rtol": 1e-9, "atol": 1e-8}


@st.composite
def traces(draw: st.DrawFn, on_policy: bool = False) -> Trace:
    """Any rewards and ends. Where the episode goes on, the next value is the value of the next step."""
    shape = draw(st.integers(2, 8)), draw(st.integers(1, 3))

    def table(elements: st.SearchStrategy, dtype: torch.dtype = torch.float64) -> Tensor:
        count = shape[0] * shape[1]
        return torch.tensor(draw(st.lists(elements, min_size=count, max_size=count)), dtype=dtype).reshape(shape)

    rewards, values, next_values = (table(st.floats(-10, 10)) for _ in range(3))
    end = table(st.sampled_from((0, 0, 0, 1, 2, 3)), torch.int64)  # 0 none, 1 terminated, 2 truncated, 3 both
    next_values[:-1] = torch.where(end[:-1] == 0, values[1:], next_values[:-1])
    return Trace(
        rewards=rewards,
        values=values,
        next_values=next_values,
        terminated=(end == 1) | (end == 3),
        truncated=end >= 2,
        log_ratios=torch.zeros(shape, dtype=torch.float64) if on_policy else table(st.floats(-2, 2)),
    )


def corrected_value(trace: Trace, s: int, b: int, config: Config) -> float:
    """Equation 1: V(x_s) + the sum over t of gamma^(t-s) (the product of c_i, s <= i < t) rho_t (r_t + gamma V(x_{t+1})
    - V(x_t)), up to the end of the episode or of the rollout."""
    total = float(trace.values[s, b])
    product = 1.0
    for t in range(s, len(trace.rewards)):
        ratio = float(trace.log_ratios[t, b].exp())
        next_value = 0.0 if trace.terminated[t, b] else float(trace.next_values[t, b])
        difference = float(trace.rewards[t, b]) + config.gamma * next_value - float(trace.values[t, b])
        total += config.gamma ** (t - s) * product * min(config.rho_clip, ratio) * difference
        if trace.terminated[t, b] or trace.truncated[t, b]:
            break
        product *= config.trace_lambda * min(config.c_clip, ratio)
    return total


def advantage(trace: Trace, s: int, b: int, config: Config) -> float:
    """Section 4.2: rho_s (r_s + gamma v_{s+1} - V(x_s))."""
    if trace.terminated[s, b]:
        next_value = 0.0
    elif trace.truncated[s, b] or s + 1 == len(trace.rewards):
        next_value = float(trace.next_values[s, b])
    else:
        next_value = corrected_value(trace, s + 1, b, config)
    rho = min(config.rho_clip, float(trace.log_ratios[s, b].exp()))
    return rho * (float(trace.rewards[s, b]) + config.gamma * next_value - float(trace.values[s, b]))


@settings(deadline=None, max_examples=150)
@given(traces(), CONFIGS)
def test_vtrace_is_the_papers(trace, config):
    results = trace.vtrace(**vars(config))
    for result, definition in zip(results, (advantage, corrected_value), strict=True):
        steps, batch = trace.rewards.shape
        expected = [[definition(trace, s, b, config) for b in range(batch)] for s in range(steps)]
        torch.testing.assert_close(result, torch.tensor(expected, dtype=torch.float64), **CLOSE)


@settings(deadline=None, max_examples=100)
@given(traces(on_policy=True), FRACTION)
def test_on_policy_it_is_the_n_step_return(trace, gamma):
    """The discounted rewards up to the end of the episode or the rollout, plus the discounted next value there. The
    values in between do not matter."""
    advantages, returns = trace.vtrace(gamma=gamma)
    is_end = trace.terminated | trace.truncated
    following = trace.next_values[-1]
    for t in range(len(is_end) - 1, -1, -1):
        following = torch.where(is_end[t], trace.next_values[t], following).masked_fill(trace.terminated[t], 0)
        following = trace.rewards[t] + gamma * following
        torch.testing.assert_close(returns[t], following, **CLOSE)
        torch.testing.assert_close(advantages[t], following - trace.values[t], **CLOSE)


@settings(deadline=None, max_examples=50)
@given(traces(on_policy=True), FRACTION, FRACTION)
def test_on_policy_with_lambda_its_values_are_those_of_gae(trace, gamma, trace_lambda):
    _, values = trace.vtrace(gamma=gamma, trace_lambda=trace_lambda)
    _, returns = gae(
        trace.rewards,
        trace.values,
        trace.next_values,
        trace.terminated,
        trace.truncated,
        gamma=gamma,
        gae_lambda=trace_lambda,
    )
    torch.testing.assert_close(values, returns, **CLOSE)


def joined(left: Trace, right: Trace, config: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """The results of two parts that are computed separately, one after the other."""
    left_results = left.vtrace(**config)
    right_results = right.vtrace(**config)
    return torch.cat([left_results[0], right_results[0]]), torch.cat([left_results[1], right_results[1]])


def assert_close(left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor]) -> None:
    for left_result, right_result in zip(left, right, strict=True):
        torch.testing.assert_close(left_result, right_result, **CLOSE)


@settings(deadline=None, max_examples=100)
@given(traces(), st.data(), CONFIGS, st.booleans())
def test_split_at_an_episodes_end_the_parts_are_the_whole(trace, data, config, is_termination):
    k = data.draw(st.integers(1, len(trace.rewards) - 1))
    (trace.terminated if is_termination else trace.truncated)[k - 1] = True
    parts = joined(trace.part(slice(k)), trace.part(slice(k, None)), vars(config))
    assert_close(parts, trace.vtrace(**vars(config)))


@settings(deadline=None, max_examples=100)
@given(traces(), st.data(), FRACTION, CLIP)
def test_split_elsewhere_they_are_the_whole_with_the_corrected_value_and_equal_clips(trace, data, gamma, clip):
    """The last next value of the first part is v_k, not V(x_k)."""
    k = data.draw(st.integers(1, len(trace.rewards) - 1))
    config = {"gamma": gamma, "trace_lambda": 1.0, "rho_clip": clip, "c_clip": clip}
    whole = trace.vtrace(**config)
    head = trace.part(slice(k))
    is_continuing = ~(head.terminated[-1] | head.truncated[-1])
    bootstrap = head.next_values.clone()
    bootstrap[-1] = torch.where(is_continuing, whole[1][k], bootstrap[-1])
    assert_close(joined(replace(head, next_values=bootstrap), trace.part(slice(k, None)), config), whole)


def test_the_clips_are_separate():
    """Two steps of ratio 4, reward 1, values 0, gamma 1: v_0 = rho + c rho, v_1 = rho."""
    zero = torch.zeros(2, 1)
    no_end = torch.zeros(2, 1, dtype=torch.bool)
    trace = Trace(torch.ones(2, 1), zero, zero, no_end, no_end, log_ratios=torch.full((2, 1), 4.0).log())
    advantages, values = trace.vtrace(gamma=1.0, trace_lambda=1.0, rho_clip=2.0, c_clip=3.0)
    assert values[:, 0].tolist() == pytest.approx([2 + 3 * 2, 2])
    assert advantages[:, 0].tolist() == pytest.approx([2 * (1 + 2), 2])


@pytest.mark.parametrize("truncated", [False, True])
def test_the_next_value_after_a_termination_is_ignored(truncated):
    """Even if it is NaN, with or without a truncation at the same step."""
    advantages, values = vtrace(
        torch.ones(1, 1),
        torch.zeros(1, 1),
        torch.full((1, 1), float("nan")),
        torch.ones(1, 1, dtype=torch.bool),
        torch.full((1, 1), truncated),
        log_ratios=torch.zeros(1, 1),
        gamma=0.5,
    )
    assert advantages.item() == values.item() == 1


def test_shapes_that_differ_are_refused():
    """Broadcasting would give wrong results."""
    good = torch.zeros(3, 2)
    flag = torch.zeros(3, 2, dtype=torch.bool)
    message = r"^vtrace: expected six tensors \[T,B\] of one shape, got \[\(3, 1\), \(3, 2\)\]$"
    with pytest.raises(ValueError, match=message):
        vtrace(good, good, good, flag, flag, log_ratios=torch.zeros(3, 1), gamma=0.9)
