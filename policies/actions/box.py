"""Actions of real numbers: independent normal distributions, clipped at the bounds.

A number beyond a bound becomes the bound. The bound therefore has a probability of its own, the mass beyond it (the
clipped action of Fujita and Maeda, ICML 2018, arXiv 1802.07564). Log-probabilities are exact inside and at the bounds.
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

from expire_span_rl.checks import is_number
from expire_span_rl.policies.actions.base import Actions
from expire_span_rl.spaces import LARGEST_BOUND, box_scale, real_bounds

INITIAL_LOG_STD = -0.5  # 0.6 of the half width of a bounded number
LOG_STD_RANGE = (-5.0, 2.0)
FAR = 30.0  # distance to a missing bound, in standard deviations: it has no mass and gives no gradient
LARGEST_CANONICAL = 1e15  # the square of a farther bound, in standard deviations, would be infinite in float32
FAR_BOUNDS = (
    f"expected bounds up to {LARGEST_BOUND:g}, got farther ones, by which actions were scaled until 30 November 2026"
)


class BoxActions(Actions):
    """Canonical numbers with two bounds lie in [-1, 1]. Other numbers are the environment's own.

    The standard deviations are learned and do not depend on the observation.
    """

    continuous: ClassVar[bool] = True
    low: Tensor
    high: Tensor

    def __init__(self, spec: Mapping[str, Any]):
        super().__init__(spec)
        if has_far_bounds(spec):
            raise ValueError(f"actions: {FAR_BOUNDS}")
        low = np.array([-math.inf if bound is None else bound for bound in spec["low"]], np.float64)
        high = np.array([math.inf if bound is None else bound for bound in spec["high"]], np.float64)
        low, high = real_bounds(low, high)
        self.middle, self.half_width = box_scale(low, high)
        self.size = len(low)
        self.num_outputs = self.size
        self.num_features = 1 + 2 * self.size
        self.bounds = low, high
        canonical_low, canonical_high = ((bound - self.middle) / self.half_width for bound in (low, high))
        canonical_bounds = real_bounds(canonical_low, canonical_high, LARGEST_CANONICAL)
        for name, canonical in zip(("low", "high"), canonical_bounds, strict=True):
            self.register_buffer(name, torch.tensor(canonical, dtype=torch.float32), persistent=False)
        self.log_std = nn.Parameter(torch.full((self.size,), INITIAL_LOG_STD))

    @staticmethod
    def spec_of(space: spaces.Box) -> dict[str, Any]:
        low, high = real_bounds(space.low, space.high)
        return {
            "kind": "box",
            "shape": list(space.shape),
            "low": _finite_or_none(low),
            "high": _finite_or_none(high),
            "dtype": space.dtype.name,
        }

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
        """Distances of the lower and the upper bound from the mean, in standard deviations: [..., N] each."""
        low, high = self.low.nan_to_num(neginf=0), self.high.nan_to_num(posinf=0)  # infinity has no gradient
        to_low = torch.where(torch.isinf(self.low), -FAR, (low - mean) / std)
        to_high = torch.where(torch.isinf(self.high), FAR, (high - mean) / std)
        return to_low, to_high

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
        at_low, at_high = torch.special.log_ndtr(low), torch.special.log_ndtr(-high)
        log_p = torch.where(actions >= self.high, at_high, inside)  # [..., N]
        return torch.where(actions <= self.low, at_low, log_p).sum(-1)

    def entropy(self, params: Tensor) -> Tensor:
        """The entropy of the mixed distribution: -P log P at both bounds, and minus the integral of f log f between
        them."""
        mean, std = self._normal(params)
        low, high = self._to_bounds(mean, std)
        log_mass_low, log_mass_high = torch.special.log_ndtr(low), torch.special.log_ndtr(-high)
        mass_low, mass_high = log_mass_low.exp(), log_mass_high.exp()
        inside = 1 - mass_low - mass_high
        _, second_moment = _moments(inside, low, high)
        between = inside * (std.log() + math.log(2 * math.pi) / 2) + second_moment / 2
        return (between - mass_low * log_mass_low - mass_high * log_mass_high).sum(-1)

    def encode(self, actions: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """[..., 1 + 2 N]: one, the numbers and their squares."""
        actions = actions.to(dtype)
        return torch.cat([torch.ones_like(actions[..., :1]), actions, actions.square()], -1)

    def mean_encoding(self, params: Tensor) -> Tensor:
        mean, std = self._normal(params)
        to_low, to_high = self._to_bounds(mean, std)
        mass_low, mass_high = torch.special.ndtr(to_low), torch.special.ndtr(-to_high)
        inside = 1 - mass_low - mass_high
        first, second = _moments(inside, to_low, to_high)
        low, high = self.low.nan_to_num(neginf=0), self.high.nan_to_num(posinf=0)  # a missing bound has no mass
        numbers = mass_low * low + mass_high * high + inside * mean + first * std
        squares = mass_low * low.square() + mass_high * high.square()
        squares = squares + inside * mean.square() + 2 * first * mean * std + second * std.square()
        return torch.cat([torch.ones_like(numbers[..., :1]), numbers, squares], -1)

    def distance(self, params: Tensor, other_params: Tensor) -> Tensor:
        """The distance of the normal distributions before clipping, both with the standard deviations of `params`. The
        clipped distributions have at most this distance."""
        mean, std = self._normal(params)
        other_mean, _ = self._normal(other_params)
        by_number = torch.erf((mean - other_mean).abs() / (2 * math.sqrt(2) * std))
        return 1 - (1 - by_number).prod(-1)

    def marginals(self, params: Tensor) -> Tensor:
        mean = torch.clamp(self._normal(params)[0], self.low, self.high)
        return mean * torch.as_tensor(self.half_width).to(mean) + torch.as_tensor(self.middle).to(mean)

    def labels(self) -> list[str]:
        return [f"number {i}" for i in range(self.size)]

    def no_action(self, batch_size: int) -> np.ndarray:
        return np.zeros((batch_size, self.size), np.float32)

    def to_env(self, actions: Tensor) -> np.ndarray:
        numbers = np.clip(self.middle + self.half_width * actions.detach().double().cpu().numpy(), *self.bounds)
        return numbers.reshape(len(numbers), *self.spec["shape"]).astype(self.spec["dtype"])


def has_far_bounds(spec: Any) -> bool:
    """Whether a saved spec, unchecked, has a number between two bounds of which one counts as none now: the unit of
    that number has changed, so that a policy would act otherwise than it was trained."""
    if not isinstance(spec, Mapping) or not all(isinstance(spec.get(name), list) for name in ("low", "high")):
        return False
    pairs = zip(spec["low"], spec["high"], strict=False)
    return any(is_number(a) and is_number(b) and max(abs(a), abs(b)) > LARGEST_BOUND for a, b in pairs)


def _finite_or_none(bounds: np.ndarray) -> list[float | None]:
    """The bounds for JSON, which has no infinity."""
    return [float(bound) if math.isfinite(bound) else None for bound in bounds.ravel().tolist()]


def _moments(inside: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The integrals of z and z^2 under the standard normal density between two bounds. inside: the mass there."""
    return _density(low) - _density(high), inside - (high * _density(high) - low * _density(low))


def _density(z: Tensor) -> Tensor:
    """The standard normal density."""
    return torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
