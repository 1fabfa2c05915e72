"""Whole numbers of few values: Discrete, MultiDiscrete, MultiBinary, and Boxes of them, one-hot.

A Discrete of more than MAX_ONE_HOT values is read as binary digits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from gymnasium import spaces
from torch import Tensor

from expire_span_rl.policies.encoders.base import MAX_ONE_HOT, EntryEncoder, Integers, bounds


class DiscreteEncoder(EntryEncoder):
    """One number of `n` values, the first of which is `start`."""

    def __init__(self, entry: Mapping[str, Any]):
        super().__init__(entry)
        n = int(entry["n"])
        self.start = int(entry.get("start", 0))
        self.digits = (n - 1).bit_length() if n > MAX_ONE_HOT else 0
        self.one_hot = None if self.digits else Integers(entry, [n], self.start)
        self.size = self.outputs = self.digits or n

    @classmethod
    def spec_of(cls, space: spaces.Space) -> dict[str, Any] | None:
        if not isinstance(space, spaces.Discrete):
            return None
        return {"n": int(space.n), **({"start": int(space.start)} if space.start else {})}

    @classmethod
    def bounds_of(cls, entry: Mapping[str, Any]) -> tuple[int, int]:
        start = int(entry.get("start", 0))
        return start, start + int(entry["n"]) - 1

    def _binary(self, value: Tensor) -> Tensor:
        """[N] -> bool [N, digits]."""
        index = (value.long() - self.start).clamp(min=0)
        return (index[:, None] >> torch.arange(self.digits, device=value.device)) & 1 == 1

    def forward(self, value: Tensor, dtype: torch.dtype) -> Tensor:
        return self._binary(value).to(dtype) if self.one_hot is None else self.one_hot(value, dtype)

    def surprise(self, outputs: Tensor, value: Tensor) -> Tensor:
        if self.one_hot is not None:
            return self.one_hot.surprise(outputs, value)
        target = self._binary(value).to(outputs.dtype)
        return F.binary_cross_entropy_with_logits(outputs, target) * self.digits


class MultiDiscreteEncoder(Integers):
    """Numbers of any shape. Number i has `nvec[i]` values, the first of which is `start[i]`."""

    def __init__(self, entry: Mapping[str, Any]):
        super().__init__(entry, [int(size) for size in entry["nvec"]], entry.get("start", 0))

    @classmethod
    def spec_of(cls, space: spaces.Space) -> dict[str, Any] | None:
        if isinstance(space, spaces.MultiDiscrete):
            low, sizes = space.start.ravel(), space.nvec.ravel()
        elif isinstance(space, spaces.MultiBinary):
            sizes = np.full(int(np.prod(space.shape)), 2)
            low = np.zeros_like(sizes)
        elif isinstance(space, spaces.Box) and space.dtype.kind in "iub" and not hasattr(space, "encoder"):
            low, high = bounds(space)
            sizes = high - low + 1
        else:
            return None
        if sum(int(size) for size in sizes) > MAX_ONE_HOT:
            return None
        start = {"start": [int(smallest) for smallest in low]} if any(low) else {}
        return {"shape": list(space.shape or ()), "nvec": [int(size) for size in sizes], **start}

    @classmethod
    def bounds_of(cls, entry: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        nvec = np.reshape(entry["nvec"], entry["shape"])
        low = np.reshape(entry["start"], entry["shape"]) if "start" in entry else np.zeros_like(nvec)
        return low, low + nvec - 1
