"""The value function's clock: how many steps ago the episode began (Pardo et al., 2018, arXiv 1712.00378).

Where every step costs something and the episode ends at a fixed time, a value depends on how much time is left. A value
function without a clock is wrong by up to the whole cost, at random times, and what an action was worth drowns in that.
The policy itself gets no clock, so that it acts in episodes of any length as in those of training.

D width, K features of the clock.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

LEAST_PERIOD = 64
PERIODS = 11  # up to 65,536 steps


class ElapsedValue(nn.Module):
    """A correction of the value by a small network that reads features and clock. It is 0 before learning."""

    periods: Tensor

    def __init__(self, width: int):
        """width: D, also the size of the hidden layer."""
        super().__init__()
        self.register_buffer("periods", LEAST_PERIOD * 2.0 ** torch.arange(PERIODS), persistent=False)
        self.features = nn.Linear(width, width)
        self.clock = nn.Linear(2 * PERIODS, width, bias=False)
        self.out = nn.Linear(width, 1, bias=False)
        nn.init.zeros_(self.out.weight)

    def forward(self, features: Tensor, elapsed: Tensor) -> Tensor:
        """features [..., D], elapsed [...] steps -> [...]. The clock is read as sines and cosines of all periods."""
        angle = 2 * math.pi * elapsed[..., None].to(features.dtype) / self.periods.to(features.dtype)
        clock = torch.cat([angle.sin(), angle.cos()], -1)  # [...,K]
        return self.out(torch.relu(self.features(features) + self.clock(clock))).squeeze(-1)
