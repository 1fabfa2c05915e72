"""What a policy asks of an entry of its observation: columns for the encoder, and how badly it was predicted.

N observations, C columns of an entry.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from gymnasium import spaces
from torch import Tensor, nn

MOST_ONE_HOT = 4096  # columns of an entry in which every value has one of its own
VARIANCE_FLOOR = 1e-3  # numbers that vary less are not scaled up further


class EntryEncoder(nn.Module):
    """One entry of an observation. A subclass is one file in `policies.encoders` and one line in its `__init__`."""

    size: int
    """C: columns that `forward` gives."""
    outputs: int
    """Numbers that a prediction of the entry consists of; 0 if it is not predicted."""
    learns_statistics: ClassVar[bool] = False

    def __init__(self, entry: Mapping[str, Any]):
        """entry: what `spec_of` gave."""
        super().__init__()

    @classmethod
    def spec_of(cls, space: spaces.Space) -> dict[str, Any] | None:
        """The entry's part of the spec, JSON-able and without its kind; None for a space that is not read so."""
        raise NotImplementedError

    def forward(self, value: Tensor, dtype: torch.dtype) -> Tensor:
        """Values [N, ...] as the environment gave them -> [N,C] of the given type."""
        raise NotImplementedError

    def surprise(self, outputs: Tensor, value: Tensor) -> Tensor:
        """How badly `outputs` [N,outputs] predict the values [N, ...]: a scalar in nats, summed over the entry."""
        raise NotImplementedError

    def expect(self, space: Any) -> None:
        """Sets the statistics, where there are any, to what the entry's space lets one expect."""

    def expect_any_size(self) -> None:
        """Sets the statistics, where there are any, so that nothing is read before there are observations."""

    def observe(self, value: Tensor) -> None:
        """Takes values [N, ...] into the statistics that travel with the policy, where there are any."""


class Integers(EntryEncoder):
    """Whole numbers, columns of `sizes` values each, as one-hot columns one after the other."""

    largest: Tensor
    first: Tensor
    start: Tensor

    def __init__(self, entry: Mapping[str, Any], sizes: list[int], start: list[int] | int = 0):
        """start: the least value of each column, or of all."""
        super().__init__(entry)
        self.sizes = sizes
        self.size = self.outputs = sum(sizes)
        size = torch.tensor(sizes)
        self.register_buffer("largest", size - 1, persistent=False)
        self.register_buffer("first", size.cumsum(0) - size, persistent=False)
        self.register_buffer("start", torch.tensor(start), persistent=False)

    def _indices(self, value: Tensor) -> Tensor:
        """[N, ...] -> int64 [N, columns], counted from 0. Values outside count as the nearest inside: padding is
        outside."""
        columns = value[:, None] if value.ndim == 1 else value.flatten(1)
        return torch.minimum((columns.long() - self.start).clamp_(min=0), self.largest)

    def forward(self, value: Tensor, dtype: torch.dtype) -> Tensor:
        hot = self._indices(value) + self.first  # [N, columns]
        return torch.zeros(len(value), self.size, dtype=dtype, device=value.device).scatter_(1, hot, 1)

    def surprise(self, outputs: Tensor, value: Tensor) -> Tensor:
        """Cross entropy, summed over the columns."""
        indices, total = self._indices(value), outputs.new_zeros(())
        for i, logits in enumerate(outputs.split(self.sizes, 1)):
            total = total + F.cross_entropy(logits, indices[:, i])
        return total


def squared_error(outputs: Tensor, value: Tensor) -> Tensor:
    """The squared error of outputs [N,C] over twice the variance of values [N,C], summed over the columns: nats of
    normal distributions."""
    variance = value.var(0, correction=0).clamp(min=VARIANCE_FLOOR)
    return ((outputs - value).square().mean(0) / (2 * variance)).sum()


def bounds(space: spaces.Box) -> tuple[np.ndarray, np.ndarray]:
    """The least and the largest whole numbers of a Box of them, as Python's int would have them: object arrays."""
    return space.low.ravel().astype(object), space.high.ravel().astype(object)
