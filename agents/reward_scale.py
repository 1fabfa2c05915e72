"""Rewards divided by the size of returns, so that no setting of a learner depends on the scale of rewards.

T time steps, B environments.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from expire_span_rl.agents.returns import backward_trace
from expire_span_rl.agents.rollout import Rollout

LARGEST_REWARD = 10.0
"""Scaled rewards are clipped to this size, so that one outlier cannot decide an update."""


class RewardScale:
    """The root mean square of the discounted returns to go within a rollout, over all steps that precede a reward.

    Values are then about 1, whether rewards come at every step or once in an episode. Steps without a later reward are
    left out. If they counted, rare rewards would be scaled up, and the value loss would exceed the policy loss by far.
    """

    def __init__(self, gamma: float):
        self.gamma = gamma
        self.count = 0
        self.mean_square = 0.0

    def apply(self, rollout: Rollout) -> Rollout:
        """The rollout with scaled rewards. Its returns are added to the scale before."""
        self.observe(rollout)
        rewards = (rollout.rewards / self.value).clamp(-LARGEST_REWARD, LARGEST_REWARD)
        return replace(rollout, rewards=rewards)

    @property
    def value(self) -> float:
        """The divisor of rewards. It is 1 before the first reward."""
        return self.mean_square**0.5 or 1.0

    def observe(self, rollout: Rollout) -> None:
        """Adds the returns of a rollout to the scale."""
        is_continuing = (~(rollout.terminated | rollout.truncated)).double()
        squares = backward_trace(rollout.rewards.double(), self.gamma * is_continuing).square()
        has_reward = squares > 0
        count = int(has_reward.sum())
        if count:
            self.count += count
            self.mean_square += (float(squares[has_reward].mean()) - self.mean_square) * count / self.count

    def state_dict(self) -> dict[str, Tensor]:
        """The scale's state, for `load_state_dict`."""
        return {"statistics": torch.tensor([self.count, self.mean_square], dtype=torch.float64)}

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Continues from `state_dict`."""
        count, self.mean_square = tensors["statistics"].tolist()
        self.count = int(count)
