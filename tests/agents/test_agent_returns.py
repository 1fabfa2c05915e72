"""GAE against a slow transcription of its definition, and values known by hand. T time steps, B environments."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from expire_span_rl.agents.returns import gae


@dataclass(frozen=True)
class Steps:
    """What gae gets, [T,B] each."""

    rewards: Tensor
    values: Tensor
    next_values: Tensor
    terminated: Tensor
    truncated: Tensor

    def gae(self, gamma: float, gae_lambda: float) -> tuple[Tensor, Tensor]:
        return gae(self.rewards, self.values, self.next_values, self.terminated, self.truncated, gamma, gae_lambda)


def one_row(
    rewards: list[float], values: list[float], next_values: list[float], terminated: int = -1, truncated: int = -1
) -> Steps:
    """One environment; `terminated` and `truncated`: the step at which its episode ends so, if any."""
    ends = [torch.tensor([[t == end] for t in range(len(rewards))]) for end in (terminated, truncated)]
    numbers = [torch.tensor(x, dtype=torch.float64)[:, None] for x in (rewards, values, next_values)]
    return Steps(*numbers, *ends)


def advantage(steps: Steps, t: int, b: int, gamma: float, gae_lambda: float) -> float:
    """Equation 16: the sum over l of (gamma * lambda)^l delta_{t+l}, up to the end of the episode or of the rollout."""
    total = 0.0
    for l in range(len(steps.rewards) - t):
        now = (t + l, b)
        following = 0.0 if steps.terminated[now] else float(steps.next_values[now])
        delta = float(steps.rewards[now]) + gamma * following - float(steps.values[now])
        total += (gamma * gae_lambda) ** l * delta
        if steps.terminated[now] or steps.truncated[now]:
            break
    return total


@st.composite
def some_steps(draw: st.DrawFn) -> Steps:
    """Any rewards, values and ends; values and next values need not fit together."""
    shape = draw(st.integers(1, 9)), draw(st.integers(1, 3))

    def table(elements: st.SearchStrategy, dtype: torch.dtype) -> Tensor:
        count = shape[0] * shape[1]
        return torch.tensor(draw(st.lists(elements, min_size=count, max_size=count)), dtype=dtype).reshape(shape)

    numbers = [table(st.floats(-10, 10), torch.float64) for _ in range(3)]
    end = table(st.sampled_from((0, 0, 0, 1, 2, 3)), torch.int64)  # goes on, terminated, truncated, both
    return Steps(*numbers, (end == 1) | (end == 3), end >= 2)


FRACTION = st.sampled_from((0.0, 0.5, 0.9, 1.0))


@settings(deadline=None, max_examples=150)
@given(some_steps(), FRACTION, FRACTION)
def test_gae_is_its_definition(steps, gamma, gae_lambda):
    advantages, returns = steps.gae(gamma, gae_lambda)
    expected = [
        [advantage(steps, t, b, gamma, gae_lambda) for b in range(steps.rewards.shape[1])]
        for t in range(len(steps.rewards))
    ]
    torch.testing.assert_close(advantages, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-9)
    torch.testing.assert_close(returns, advantages + steps.values, rtol=0, atol=0)


def test_lambda_0_is_the_one_step_difference():
    """r + gamma V' - V, with gamma 1/2; nothing after the termination at the second step."""
    steps = one_row([1, 2, 3], [0.5, 1, 4], [1, 7, 2], terminated=1)
    advantages, returns = steps.gae(0.5, 0)
    assert advantages[:, 0].tolist() == [1 + 0.5 - 0.5, 2 - 1, 3 + 1 - 4]
    assert returns[:, 0].tolist() == [1.5, 2, 4]


def test_lambda_1_is_the_discounted_return_minus_the_value():
    """Rewards 1, 2, 4 and then a value of 16, with gamma 1/2: returns 6, 10, 12, whatever the values in between."""
    steps = one_row([1, 2, 4], [5, -3, 1], [-3, 1, 16])
    advantages, returns = steps.gae(0.5, 1)
    assert returns[:, 0].tolist() == [1 + 1 + 1 + 2, 2 + 2 + 4, 4 + 8]
    assert advantages[:, 0].tolist() == [0, 11, 11]


@pytest.mark.parametrize("end", ["terminated", "truncated"])
def test_truncation_bootstraps_and_termination_does_not(end):
    """Two steps of reward 1 end the episode; what was seen last is worth 8. A termination does not ask for it, even if
    it is no number, and neither does the first episode learn of the second, whose reward is 100."""
    last = 8 if end == "truncated" else float("nan")
    steps = one_row([1, 1, 100], [0, 0, 0], [0, last, 0], **{end: 1})
    advantages, _ = steps.gae(0.5, 1)
    assert advantages[:, 0].tolist() == ([1 + 2.5, 1 + 4, 100] if end == "truncated" else [1.5, 1, 100])


def test_a_termination_at_the_time_limit_is_a_termination():
    """Both flags at once: the episode's end was reached, nothing follows."""
    steps = one_row([1], [0], [8], terminated=0, truncated=0)
    assert steps.gae(0.5, 1)[0].tolist() == [[1]]


def test_environments_do_not_mix():
    """Each column is what it is alone."""
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn(3, 6, 4, generator=generator, dtype=torch.float64)
    ends = torch.rand(2, 6, 4, generator=generator) < 0.2
    together = gae(*numbers, *ends, 0.9, 0.8)
    for b in range(4):
        alone = gae(*numbers[:, :, b : b + 1], *ends[:, :, b : b + 1], 0.9, 0.8)
        for ours, theirs in zip(alone, together):
            assert torch.equal(ours[:, 0], theirs[:, b])


def test_shapes_that_differ_are_refused():
    """Broadcasting would go through and be wrong."""
    good, wrong, flag = torch.zeros(3, 2), torch.zeros(3, 1), torch.zeros(3, 2, dtype=torch.bool)
    with pytest.raises(
        ValueError, match=r"^gae: expected five tensors \[T,B\] of one shape, got \[\(3, 1\), \(3, 2\)\]$"
    ):
        gae(good, good, wrong, flag, flag, 0.9, 0.9)
    with pytest.raises(ValueError, match=r"got \[\(3,\)\]$"):
        gae(good[:, 0], good[:, 0], good[:, 0], flag[:, 0], flag[:, 0], 0.9, 0.9)
