"""Numbers as they are, or normalised by their running mean and standard deviation: Boxes of floats of any rank, and of
whole numbers with many values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from expire_span_rl.policies.encoders.base import EntryEncoder, squared_error
from expire_span_rl.spaces import box_scale, real_bounds

MAX_NORMALIZED = 10.0  # normalised numbers are clipped here
MIN_VARIANCE = 1e-8
HUGE_VARIANCE = 1e30  # normalised by it, every number is 0


class VectorEncoder(EntryEncoder):
    """With `normalize`, each number minus its mean, over its standard deviation. Both are those of all observations of
    training so far. The statistics are part of the policy's weights and change only when `observe` is called."""

    learns_statistics: ClassVar[bool] = True
    mean: Tensor
    variance: Tensor
    count: Tensor

    def __init__(self, entry: Mapping[str, Any]):
        super().__init__(entry)
        self.size = self.outputs = int(np.prod(entry["shape"]))
        self.normalize = bool(entry.get("normalize", False))
        if self.normalize:
            self.register_buffer("mean", torch.zeros(self.size))
            self.register_buffer("variance", torch.ones(self.size))
            self.register_buffer("count", torch.zeros(()))

    @classmethod
    def spec_of(cls, space: spaces.Space) -> dict[str, Any] | None:
        numbers = isinstance(space, (spaces.Box, spaces.MultiDiscrete, spaces.MultiBinary))
        if not numbers or hasattr(space, "encoder"):
            return None
        return {"shape": list(space.shape or ()), "normalize": True}

    @torch.no_grad()
    def set_initial_statistics(self, space: spaces.Box) -> None:
        """Until there are observations, numbers with two bounds are normalised as if uniform between them."""
        if self.normalize and isinstance(space, spaces.Box):
            low, high = real_bounds(space.low.ravel(), space.high.ravel())
            middle, half = box_scale(low, high)
            self.mean.copy_(torch.as_tensor(middle))
            bounded = np.isfinite(low) & np.isfinite(high) & (high > low)
            variance = np.minimum(half**2 / 3, HUGE_VARIANCE)
            self.variance.copy_(torch.as_tensor(np.where(bounded, variance, 1.0)))

    def ignore_until_observed(self) -> None:
        """Until there are observations, numbers read as 0, since their size is unknown."""
        self.variance.fill_(HUGE_VARIANCE)

    def _columns(self, value: Tensor) -> Tensor:
        return value[:, None] if value.ndim == 1 else value.flatten(1)

    def _normalize(self, columns: Tensor) -> Tensor:
        if not self.normalize:
            return columns
        scaled = (columns - self.mean) * torch.rsqrt(self.variance + MIN_VARIANCE)
        return scaled.clamp(-MAX_NORMALIZED, MAX_NORMALIZED)

    def forward(self, value: Tensor, dtype: torch.dtype) -> Tensor:
        return self._normalize(self._columns(value).to(dtype))

    def usual(self) -> Tensor | None:
        """The mean [C] of the values so far, None if it is not known."""
        return self.mean if self.normalize else None

    def surprise(self, outputs: Tensor, value: Tensor) -> Tensor:
        return squared_error(outputs, self._normalize(self._columns(value).to(outputs.dtype)))

    @torch.no_grad()
    def observe(self, value: Tensor) -> None:
        """Merges mean and variance of the values [N, ...] into the statistics (Chan et al., 1979)."""
        if not self.normalize or not len(value):
            return
        columns = self._columns(value).double()
        variance, mean = torch.var_mean(columns, 0, correction=0)
        old_count = float(self.count)
        new_count = len(columns)
        share = new_count / (old_count + new_count)
        delta = mean - self.mean
        if not old_count:  # the initial statistics are of no observations
            self.variance.copy_(variance)
        else:
            pooled = (1 - share) * self.variance + share * variance
            self.variance.copy_(pooled + share * (1 - share) * delta.square())
        self.mean.add_(share * delta)
        self.count.add_(new_count)
