"""Rewards over the size of returns, so that no setting of a learner depends on the scale of rewards. T time steps, B
environments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from expire_span_rl.agents.returns import backward_trace
from expire_span_rl.agents.rollout import Rollout

LARGEST_REWARD = 10.0  # scaled rewards are cut off here: one outlier must not decide an update


class RewardScale:
    """The root mean square of the discounted returns to go, within a rollout, over all steps that any reward followed.

    Values are then about 1, whether rewards come at every step or once in an episode. Steps without a reward after them
    are left out: with them, the rarer rewards are, the larger they would be made, and the value loss would drown the
    policy's.
    """

    def __init__(self, gamma: float):
        self.gamma = gamma
        self.count = 0
        self.mean_square = 0.0

    def scaled(self, rollout: Rollout) -> Rollout:
        """The rollout with scaled rewards, its own returns taken into the scale before."""
        self.observe(rollout)
        rewards = (rollout.rewards / self.value).clamp(-LARGEST_REWARD, LARGEST_REWARD)
        return replace(rollout, rewards=rewards)

    @property
    def value(self) -> float:
        """What rewards are divided by: 1 before any reward came."""
        return self.mean_square**0.5 or 1.0

    def observe(self, rollout: Rollout) -> None:
        """Takes the returns of a rollout into the scale."""
        goes_on = (~(rollout.terminated | rollout.truncated)).double()
        squares = backward_trace(rollout.rewards.double(), self.gamma * goes_on).square()
        rewarded = squares > 0
        number = int(rewarded.sum())
        if number:
            self.count += number
            self.mean_square += (float(squares[rewarded].mean()) - self.mean_square) * number / self.count

    def state(self) -> dict[str, Tensor]:
        """Tensors from which `load_state` goes on."""
        return {"statistics": torch.tensor([self.count, self.mean_square], dtype=torch.float64)}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Continues from `state`."""
        count, self.mean_square = tensors["statistics"].tolist()
        self.count = int(count)
