"""GAE against a slow transcription of its definition, and against values computed by hand.

T time steps, B environments.
"""

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
    """The arguments of `gae`, [T,B] each."""

    rewards: Tensor
    values: Tensor
    next_values: Tensor
    terminated: Tensor
    truncated: Tensor

    def gae(self, gamma: float, gae_lambda: float) -> tuple[Tensor, Tensor]:
        return gae(
            self.rewards,
            self.values,
            self.next_values,
            self.terminated,
            self.truncated,
            gamma=gamma,
            gae_lambda=gae_lambda,
        )


def one_row(
    rewards: list[float], values: list[float], next_values: list[float], terminated: int = -1, truncated: int = -1
) -> Steps:
    """The steps of one environment. terminated, truncated: the step at which its episode ends so, if any."""

    def column(numbers: list[float]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.float64)[:, None]

    def flag(step: int) -> Tensor:
        return torch.tensor([[t == step] for t in range(len(rewards))])

    return Steps(
        rewards=column(rewards),
        values=column(values),
        next_values=column(next_values),
        terminated=flag(terminated),
        truncated=flag(truncated),
    )


def advantage(steps: Steps, t: int, b: int, gamma: float, gae_lambda: float) -> float:
    """Equation 16: the sum over l of (gamma * lambda)^l delta_{t+l}, up to the end of the episode or of the rollout."""
    total = 0.0
    for l in range(len(steps.rewards) - t):
        index = (t + l, b)
        next_value = 0.0 if steps.terminated[index] else float(steps.next_values[index])
        delta = float(steps.rewards[index]) + gamma * next_value - float(steps.values[index])
        total += (gamma * gae_lambda) ** l * delta
        if steps.terminated[index] or steps.truncated[index]:
            break
    return total


@st.composite
def random_steps(draw: st.DrawFn) -> Steps:
    """Any rewards, values and ends. Values and next values need not fit together."""
    shape = draw(st.integers(1, 9)), draw(st.integers(1, 3))

    def table(elements: st.SearchStrategy, dtype: torch.dtype) -> Tensor:
        count = shape[0] * shape[1]
        return torch.tensor(draw(st.lists(elements, min_size=count, max_size=count)), dtype=dtype).reshape(shape)

    rewards, values, next_values = (table(st.floats(-10, 10), torch.float64) for _ in range(3))
    end = table(st.sampled_from((0, 0, 0, 1, 2, 3)), torch.int64)  # 0 none, 1 terminated, 2 truncated, 3 both
    return Steps(rewards, values, next_values, terminated=(end == 1) | (end == 3), truncated=end >= 2)


FRACTION = st.sampled_from((0.0, 0.5, 0.9, 1.0))


@settings(deadline=None, max_examples=150)
@given(random_steps(), FRACTION, FRACTION)
def test_gae_is_its_definition(steps, gamma, gae_lambda):
    advantages, returns = steps.gae(gamma, gae_lambda)
    expected = [
        [advantage(steps, t, b, gamma, gae_lambda) for b in range(steps.rewards.shape[1])]
        for t in range(len(steps.rewards))
    ]
    torch.testing.assert_close(advantages, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-9)
    torch.testing.assert_close(returns, advantages + steps.values, rtol=0, atol=0)


def test_lambda_0_is_the_one_step_difference():
    """r + gamma V' - V, with gamma 1/2. After the termination at the second step there is no next value."""
    steps = one_row([1, 2, 3], [0.5, 1, 4], [1, 7, 2], terminated=1)
    advantages, returns = steps.gae(0.5, 0)
    assert advantages[:, 0].tolist() == [1 + 0.5 - 0.5, 2 - 1, 3 + 1 - 4]
    assert returns[:, 0].tolist() == [1.5, 2, 4]


def test_lambda_1_is_the_discounted_return_minus_the_value():
    """Rewards 1, 2, 4 and then a value of 16, with gamma 1/2. The values in between do not matter."""
    steps = one_row([1, 2, 4], [5, -3, 1], [-3, 1, 16])
    advantages, returns = steps.gae(0.5, 1)
    assert returns[:, 0].tolist() == [1 + 1 + 1 + 2, 2 + 2 + 4, 4 + 8]
    assert advantages[:, 0].tolist() == [0, 11, 11]


@pytest.mark.parametrize("end", ["terminated", "truncated"])
def test_truncation_bootstraps_and_termination_does_not(end):
    """Two steps of reward 1 end the episode. Its final observation has a value of 8. A termination ignores that value,
    even if it is NaN. The reward of 100 in the second episode does not reach the first."""
    final_value = 8 if end == "truncated" else float("nan")
    steps = one_row([1, 1, 100], [0, 0, 0], [0, final_value, 0], **{end: 1})
    advantages, _ = steps.gae(0.5, 1)
    assert advantages[:, 0].tolist() == ([1 + 2.5, 1 + 4, 100] if end == "truncated" else [1.5, 1, 100])


def test_a_termination_at_the_time_limit_is_a_termination():
    """With both flags the episode is terminated, and has no next value."""
    steps = one_row([1], [0], [8], terminated=0, truncated=0)
    assert steps.gae(0.5, 1)[0].tolist() == [[1]]


def test_environments_do_not_mix():
    """Each column of a batch is as if it were computed alone."""
    generator = torch.Generator().manual_seed(0)
    rewards, values, next_values = torch.randn(3, 6, 4, generator=generator, dtype=torch.float64)
    terminated, truncated = torch.rand(2, 6, 4, generator=generator) < 0.2
    batch = gae(rewards, values, next_values, terminated, truncated, gamma=0.9, gae_lambda=0.8)
    for b in range(4):
        column = [x[:, b : b + 1] for x in (rewards, values, next_values, terminated, truncated)]
        single = gae(*column, gamma=0.9, gae_lambda=0.8)
        for single_result, batch_result in zip(single, batch, strict=True):
            assert torch.equal(single_result[:, 0], batch_result[:, b])


def test_shapes_that_differ_are_refused():
    """Broadcasting would give wrong results."""
    good = torch.zeros(3, 2)
    wrong = torch.zeros(3, 1)
    flag = torch.zeros(3, 2, dtype=torch.bool)
    with pytest.raises(
        ValueError, match=r"^gae: expected five tensors \[T,B\] of one shape, got \[\(3, 1\), \(3, 2\)\]$"
    ):
        gae(good, good, wrong, flag, flag, gamma=0.9, gae_lambda=0.9)
    with pytest.raises(ValueError, match=r"got \[\(3,\)\]$"):
        gae(good[:, 0], good[:, 0], good[:, 0], flag[:, 0], flag[:, 0], gamma=0.9, gae_lambda=0.9)
