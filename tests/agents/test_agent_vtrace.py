"""V-trace against a slow transcription of the paper (Espeholt et al., 2018). T time steps, B environments."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from expire_span_rl.agents.returns import gae, vtrace


@dataclass(frozen=True)
class Trace:
    """What vtrace gets, [T,B] each."""

    rewards: Tensor
    values: Tensor
    next_values: Tensor
    terminated: Tensor
    truncated: Tensor
    log_ratios: Tensor

    def vtrace(self, *settings: float) -> tuple[Tensor, Tensor]:
        return vtrace(*(getattr(self, f.name) for f in fields(self)), *settings)

    def part(self, steps: slice) -> Trace:
        return Trace(*(getattr(self, f.name)[steps] for f in fields(self)))


@st.composite
def traces(draw: st.DrawFn, on_policy: bool = False) -> Trace:
    """Any rewards and ends; where the episode goes on, the next value is the value of the next step."""
    shape = draw(st.integers(2, 8)), draw(st.integers(1, 3))

    def table(elements: st.SearchStrategy, dtype: torch.dtype = torch.float64) -> Tensor:
        count = shape[0] * shape[1]
        return torch.tensor(draw(st.lists(elements, min_size=count, max_size=count)), dtype=dtype).reshape(shape)

    rewards, values, after = (table(st.floats(-10, 10)) for _ in range(3))
    end = table(st.sampled_from((0, 0, 0, 1, 2, 3)), torch.int64)  # goes on, terminated, truncated, both
    after[:-1] = torch.where(end[:-1] == 0, values[1:], after[:-1])
    log_ratios = torch.zeros(shape, dtype=torch.float64) if on_policy else table(st.floats(-2, 2))
    return Trace(rewards, values, after, (end == 1) | (end == 3), end >= 2, log_ratios)


def corrected(trace: Trace, s: int, b: int, gamma: float, trace_lambda: float, rho_clip: float, c_clip: float) -> float:
    """Equation 1: V(x_s) + the sum over t of gamma^(t-s) (the product of c_i, s <= i < t) rho_t (r_t + gamma V(x_{t+1})
    - V(x_t)), up to the end of the episode or of the rollout."""
    total, product = float(trace.values[s, b]), 1.0
    for t in range(s, len(trace.rewards)):
        ratio = float(trace.log_ratios[t, b].exp())
        following = 0.0 if trace.terminated[t, b] else float(trace.next_values[t, b])
        difference = float(trace.rewards[t, b]) + gamma * following - float(trace.values[t, b])
        total += gamma ** (t - s) * product * min(rho_clip, ratio) * difference
        if trace.terminated[t, b] or trace.truncated[t, b]:
            break
        product *= trace_lambda * min(c_clip, ratio)
    return total


def advantage(trace: Trace, s: int, b: int, gamma: float, *clips: float) -> float:
    """Section 4.2: rho_s (r_s + gamma v_{s+1} - V(x_s))."""
    ended = bool(trace.terminated[s, b] or trace.truncated[s, b])
    if trace.terminated[s, b]:
        following = 0.0
    elif ended or s + 1 == len(trace.rewards):
        following = float(trace.next_values[s, b])
    else:
        following = corrected(trace, s + 1, b, gamma, *clips)
    rho = min(clips[1], float(trace.log_ratios[s, b].exp()))
    return rho * (float(trace.rewards[s, b]) + gamma * following - float(trace.values[s, b]))


FRACTION = st.sampled_from((0.0, 0.5, 0.9, 1.0))
CLIP = st.sampled_from((0.5, 1.0, 2.0, 1e9))
CLOSE = {"rtol": 1e-9, "atol": 1e-8}


@settings(deadline=None, max_examples=150)
@given(traces(), FRACTION, FRACTION, CLIP, CLIP)
def test_vtrace_is_the_papers(trace, gamma, trace_lambda, rho_clip, c_clip):
    given = (gamma, trace_lambda, rho_clip, c_clip)
    for ours, theirs in zip(trace.vtrace(*given), (advantage, corrected)):
        steps, batch = trace.rewards.shape
        expected = [[theirs(trace, s, b, *given) for b in range(batch)] for s in range(steps)]
        torch.testing.assert_close(ours, torch.tensor(expected, dtype=torch.float64), **CLOSE)


@settings(deadline=None, max_examples=100)
@given(traces(on_policy=True), FRACTION)
def test_on_policy_it_is_the_n_step_return(trace, gamma):
    """The rewards up to the end of episode or rollout, discounted, and what followed there, whatever the values
    between."""
    advantages, returns = trace.vtrace(gamma)
    ended = trace.terminated | trace.truncated
    following = trace.next_values[-1]
    for t in range(len(ended) - 1, -1, -1):
        following = torch.where(ended[t], trace.next_values[t], following).masked_fill(trace.terminated[t], 0)
        following = trace.rewards[t] + gamma * following
        torch.testing.assert_close(returns[t], following, **CLOSE)
        torch.testing.assert_close(advantages[t], following - trace.values[t], **CLOSE)


@settings(deadline=None, max_examples=50)
@given(traces(on_policy=True), FRACTION, FRACTION)
def test_on_policy_with_lambda_its_values_are_those_of_gae(trace, gamma, trace_lambda):
    args = trace.rewards, trace.values, trace.next_values, trace.terminated, trace.truncated
    torch.testing.assert_close(trace.vtrace(gamma, trace_lambda)[1], gae(*args, gamma, trace_lambda)[1], **CLOSE)


def joined(first: Trace, second: Trace, *settings: float) -> tuple[Tensor, Tensor]:
    """The two parts, each alone."""
    return tuple(torch.cat(pair) for pair in zip(first.vtrace(*settings), second.vtrace(*settings)))


@settings(deadline=None, max_examples=100)
@given(traces(), st.data(), FRACTION, FRACTION, CLIP, CLIP, st.booleans())
def test_split_at_an_episodes_end_the_parts_are_the_whole(
    trace, data, gamma, trace_lambda, rho_clip, c_clip, terminated
):
    k = data.draw(st.integers(1, len(trace.rewards) - 1))
    (trace.terminated if terminated else trace.truncated)[k - 1] = True
    given = (gamma, trace_lambda, rho_clip, c_clip)
    for ours, theirs in zip(joined(trace.part(slice(k)), trace.part(slice(k, None)), *given), trace.vtrace(*given)):
        torch.testing.assert_close(ours, theirs, **CLOSE)


@settings(deadline=None, max_examples=100)
@given(traces(), st.data(), FRACTION, CLIP)
def test_split_elsewhere_they_are_the_whole_with_the_corrected_value_and_equal_clips(trace, data, gamma, clip):
    """The first part's last next value is v_k, not V(x_k)."""
    k = data.draw(st.integers(1, len(trace.rewards) - 1))
    given = (gamma, 1.0, clip, clip)
    whole = trace.vtrace(*given)
    first = trace.part(slice(k))
    goes_on = ~(first.terminated[-1] | first.truncated[-1])
    bootstrap = first.next_values.clone()
    bootstrap[-1] = torch.where(goes_on, whole[1][k], bootstrap[-1])
    for ours, theirs in zip(joined(replace(first, next_values=bootstrap), trace.part(slice(k, None)), *given), whole):
        torch.testing.assert_close(ours, theirs, **CLOSE)


def test_the_clips_are_separate():
    """Two steps of ratio 4, reward 1, values 0, gamma 1: v_0 = rho + c rho, v_1 = rho."""
    one, zero, no = torch.ones(2, 1), torch.zeros(2, 1), torch.zeros(2, 1, dtype=torch.bool)
    trace = Trace(one, zero, zero, no, no, torch.full((2, 1), 4.0).log())
    advantages, corrected = trace.vtrace(1.0, 1.0, 2.0, 3.0)
    assert corrected[:, 0].tolist() == pytest.approx([2 + 3 * 2, 2])
    assert advantages[:, 0].tolist() == pytest.approx([2 * (1 + 2), 2])


def test_what_follows_a_termination_is_not_asked_for():
    """Even if it is no number, alone or with a truncation."""
    for truncated in (False, True):
        flags = torch.ones(1, 1, dtype=torch.bool), torch.full((1, 1), truncated)
        nothing = torch.full((1, 1), float("nan"))
        advantages, corrected = vtrace(torch.ones(1, 1), torch.zeros(1, 1), nothing, *flags, torch.zeros(1, 1), 0.5)
        assert advantages.item() == corrected.item() == 1


def test_shapes_that_differ_are_refused():
    """Broadcasting would go through and be wrong."""
    good, flag = torch.zeros(3, 2), torch.zeros(3, 2, dtype=torch.bool)
    told = r"^vtrace: expected six tensors \[T,B\] of one shape, got \[\(3, 1\), \(3, 2\)\]$"
    with pytest.raises(ValueError, match=told):
        vtrace(good, good, good, flag, flag, torch.zeros(3, 1), 0.9)
