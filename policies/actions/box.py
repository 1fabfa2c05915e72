"""Actions of real numbers: independent normal distributions, cut off at the bounds.

What falls beyond a bound becomes the bound, which therefore has a probability of its own: the mass beyond it (the
clipped action of Fujita and Maeda, ICML 2018, arXiv 1802.07564). Log-probabilities are right inside and at the bounds.
N numbers; P = 2 N parameters, the means and then the logarithms of the standard deviations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from expire_span_rl.policies.actions.base import Actions
from expire_span_rl.spaces import box_scale

INITIAL_LOG_STD = -0.5  # 0.6 of the half width of a bounded number
LOG_STD_RANGE = (-5.0, 2.0)
FAR = 30.0  # standard deviations to a bound that is not there: no mass is beyond it, and no gradient comes from it


class BoxActions(Actions):
    """Canonical numbers with two bounds lie in [-1, 1], others are the environment's own. The standard deviations are
    learned and do not depend on the observation."""

    continuous: ClassVar[bool] = True
    low: Tensor
    high: Tensor

    def __init__(self, spec: Mapping[str, Any]):
        super().__init__(spec)
        low, high = (
            np.array([sign * math.inf if bound is None else bound for bound in spec[name]], np.float64)
            for name, sign in (("low", -1), ("high", 1))
        )
        self.middle, self.half_width = box_scale(low, high)
        self.size = len(low)
        self.num_outputs, self.num_features = self.size, 1 + 2 * self.size
        self.bounds = low, high
        for name, bound in (("low", low), ("high", high)):
            canonical = (bound - self.middle) / self.half_width
            self.register_buffer(name, torch.tensor(canonical, dtype=torch.float32), persistent=False)
        self.log_std = nn.Parameter(torch.full((self.size,), INITIAL_LOG_STD))

    @staticmethod
    def spec_of(space: spaces.Box) -> dict[str, Any]:
        low, high = (
            [float(bound) if math.isfinite(bound) else None for bound in bounds.ravel().tolist()]
            for bounds in (space.low, space.high)
        )
        return {"kind": "box", "shape": list(space.shape), "low": low, "high": high, "dtype": space.dtype.name}

    def params(self, outputs: Tensor) -> Tensor:
        log_std = self.log_std.clamp(*LOG_STD_RANGE)
        return torch.cat([outputs, log_std.expand_as(outputs)], -1)

    def masked(self, params: Tensor, mask: Tensor) -> Tensor:
        raise ValueError("action mask: expected a space of whole numbers, a Box has no mask")

    def _normal(self, params: Tensor) -> tuple[Tensor, Tensor]:
        """Means and standard deviations [..., N]."""
        mean, log_std = params.chunk(2, -1)
        return mean, log_std.exp()

    def _to_bounds(self, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        """How many standard deviations the lower bound is above the mean, and the upper: [..., N] each."""
        low, high = self.low.nan_to_num(neginf=0), self.high.nan_to_num(posinf=0)  # infinity has no gradient
        below = torch.where(torch.isinf(self.low), -FAR, (low - mean) / std)
        return below, torch.where(torch.isinf(self.high), FAR, (high - mean) / std)

    def sample(self, params: Tensor, generator: torch.Generator | None = None) -> Tensor:
        mean, std = self._normal(params)
        noise = torch.empty_like(mean).normal_(generator=generator)
        return torch.clamp(mean + std * noise, self.low, self.high)

    def mode(self, params: Tensor) -> Tensor:
        return torch.clamp(self._normal(params)[0], self.low, self.high)

    def log_prob(self, params: Tensor, actions: Tensor) -> Tensor:
        mean, std = self._normal(params)
        inside = -((actions - mean) / std).square() / 2 - std.log() - math.log(2 * math.pi) / 2
        low, high = self._to_bounds(mean, std)
        below, above = torch.special.log_ndtr(low), torch.special.log_ndtr(-high)
        by_number = torch.where(actions <= self.low, below, torch.where(actions >= self.high, above, inside))
        return by_number.sum(-1)

    def entropy(self, params: Tensor) -> Tensor:
        """Of the mixed distribution: -P log P at both bounds, and minus the integral of f log f between them."""
        mean, std = self._normal(params)
        low, high = self._to_bounds(mean, std)
        log_below, log_above = torch.special.log_ndtr(low), torch.special.log_ndtr(-high)
        below, above = log_below.exp(), log_above.exp()
        inside = 1 - below - above
        second_moment = inside - (high * _density(high) - low * _density(low))  # of z between the bounds
        between = inside * (std.log() + math.log(2 * math.pi) / 2) + second_moment / 2
        return (between - below * log_below - above * log_above).sum(-1)

    def encode(self, actions: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """1, the numbers and their squares."""
        actions = actions.to(dtype)
        return torch.cat([torch.ones_like(actions[..., :1]), actions, actions.square()], -1)

    def distance(self, params: Tensor, others: Tensor) -> Tensor:
        """Of the normal distributions before they are cut off, whose standard deviations are those of `params`: at most
        what the cut ones have."""
        (mean, std), (other, _) = self._normal(params), self._normal(others)
        by_number = torch.erf((mean - other).abs() / (2 * math.sqrt(2) * std))
        return 1 - (1 - by_number).prod(-1)

    def marginals(self, params: Tensor) -> Tensor:
        mean = torch.clamp(self._normal(params)[0], self.low, self.high)
        return mean * torch.as_tensor(self.half_width).to(mean) + torch.as_tensor(self.middle).to(mean)

    def labels(self) -> list[str]:
        return [f"number {i}" for i in range(self.size)]

    def none(self, batch_size: int) -> np.ndarray:
        return np.zeros((batch_size, self.size), np.float32)

    def to_env(self, actions: Tensor) -> np.ndarray:
        numbers = np.clip(self.middle + self.half_width * actions.detach().double().cpu().numpy(), *self.bounds)
        return numbers.reshape(len(numbers), *self.spec["shape"]).astype(self.spec["dtype"])


def _density(z: Tensor) -> Tensor:
    """The standard normal density."""
    return torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
