"""What a policy asks of an entry of its observation: columns for the encoder, and the loss of a prediction of it.

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

MAX_ONE_HOT = 4096  # columns of an entry that has one column for each value
MIN_VARIANCE = 1e-3  # of a predicted number: smaller errors are not scaled up further


class EntryEncoder(nn.Module):
    """One entry of an observation. A subclass is one file in `policies.encoders` and one line in its `__init__`."""

    size: int
    """C: columns that `forward` gives."""
    outputs: int
    """Numbers of a prediction of the entry; 0 if it is not predicted."""
    learns_statistics: ClassVar[bool] = False
    """Whether `observe` changes anything."""

    def __init__(self, entry: Mapping[str, Any]):
        """entry: the dict of `spec_of`."""
        super().__init__()

    @classmethod
    def spec_of(cls, space: spaces.Space) -> dict[str, Any] | None:
        """The entry's part of the spec, a dict for JSON without the kind; None for a space of another encoder."""
        raise NotImplementedError

    @classmethod
    def bounds_of(cls, entry: Mapping[str, Any]) -> tuple[Any, Any] | None:
        """The smallest and the largest whole number of an entry of a spec, or arrays of them; None for real numbers,
        and where the spec does not say."""
        return None

    def forward(self, value: Tensor, dtype: torch.dtype) -> Tensor:
        """Values [N, ...] as the environment gave them -> [N,C] of the given type."""
        raise NotImplementedError

    def surprise(self, outputs: Tensor, value: Tensor) -> Tensor:
        """The loss of the prediction `outputs` [N,outputs] of the values [N, ...]: a scalar in nats, summed over the
        entry."""
        raise NotImplementedError

    def set_initial_statistics(self, space: Any) -> None:
        """Sets the statistics, if there are any, from the bounds of the entry's space."""

    def ignore_until_observed(self) -> None:
        """Sets the statistics, if there are any, such that values read as 0 until there are observations."""

    def observe(self, value: Tensor) -> None:
        """Updates the statistics, if there are any, with values [N, ...]. They are part of the policy's weights."""


class Integers(EntryEncoder):
    """Whole numbers, each one-hot, one after the other. sizes: how many values each number has."""

    largest: Tensor
    offset: Tensor
    start: Tensor

    def __init__(self, entry: Mapping[str, Any], sizes: list[int], start: list[int] | int = 0):
        """start: the smallest value of each number, or of all."""
        super().__init__(entry)
        self.sizes = sizes
        self.size = self.outputs = sum(sizes)
        size = torch.tensor(sizes)
        self.register_buffer("largest", size - 1, persistent=False)
        self.register_buffer("offset", size.cumsum(0) - size, persistent=False)
        self.register_buffer("start", torch.tensor(start), persistent=False)

    def _indices(self, value: Tensor) -> Tensor:
        """[N, ...] -> int64 [N, numbers], counted from 0. Values outside the bounds, such as padding, count as the
        nearest value inside."""
        numbers = value[:, None] if value.ndim == 1 else value.flatten(1)
        return torch.minimum((numbers.long() - self.start).clamp_(min=0), self.largest)

    def forward(self, value: Tensor, dtype: torch.dtype) -> Tensor:
        return self._one_hot(self._indices(value), dtype)

    def _one_hot(self, indices: Tensor, dtype: torch.dtype) -> Tensor:
        """int64 [N, numbers] -> [N,C]."""
        columns = torch.zeros(len(indices), self.size, dtype=dtype, device=indices.device)
        return columns.scatter_(1, indices + self.offset, 1)

    def surprise(self, outputs: Tensor, value: Tensor) -> Tensor:
        """Cross entropy, summed over the numbers."""
        indices = self._indices(value)
        total = outputs.new_zeros(())
        for i, logits in enumerate(outputs.split(self.sizes, 1)):
            total = total + F.cross_entropy(logits, indices[:, i])
        return total


def squared_error(outputs: Tensor, value: Tensor) -> Tensor:
    """The squared error of outputs [N,C] over twice the variance of values [N,C], summed over the columns: the nats of
    normal distributions."""
    variance = value.var(0, correction=0).clamp(min=MIN_VARIANCE)
    return ((outputs - value).square().mean(0) / (2 * variance)).sum()


def bounds(space: spaces.Box) -> tuple[np.ndarray, np.ndarray]:
    """The smallest and the largest values of a Box of whole numbers, as object arrays of Python's unbounded int."""
    return space.low.ravel().astype(object), space.high.ravel().astype(object)
