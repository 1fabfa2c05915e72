"""Actions of several independent whole numbers, with a softmax for each: MultiDiscrete and MultiBinary."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from gymnasium import spaces
from torch import Tensor

from expire_span_rl.policies.actions import base


class MultiDiscreteActions(base.Actions):
    """Number i has `nvec[i]` values. The logits of all numbers follow one another: P = F = sum of `nvec`."""

    def __init__(self, spec: Mapping[str, Any]):
        super().__init__(spec)
        self.sizes = self._sizes()
        self.num_outputs = self.num_features = sum(self.sizes)

    @staticmethod
    def spec_of(space: spaces.MultiDiscrete) -> dict[str, Any]:
        start = {"start": space.start.ravel().tolist()} if np.any(space.start) else {}
        return {
            "kind": "multi_discrete",
            "shape": list(space.nvec.shape),
            "nvec": space.nvec.ravel().tolist(),
            "dtype": space.dtype.name,
            **start,
        }

    def _sizes(self) -> list[int]:
        return [int(size) for size in self.spec["nvec"]]

    def _split(self, params: Tensor) -> tuple[Tensor, ...]:
        """The logits of each number, [..., nvec[i]]."""
        return params.split(self.sizes, -1)

    def _summed(self, function: Callable[[Tensor], Tensor], params: Tensor) -> Tensor:
        """[...]: the sum of what a function gives for the logits of each number."""
        return torch.stack([function(logits) for logits in self._split(params)]).sum(0)

    def sample(self, params: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return torch.stack([base.gumbel_max(logits, generator) for logits in self._split(params)], -1)

    def mode(self, params: Tensor) -> Tensor:
        return torch.stack([logits.argmax(-1) for logits in self._split(params)], -1)

    def log_prob(self, params: Tensor, actions: Tensor) -> Tensor:
        pairs = zip(self._split(params), actions.unbind(-1), strict=True)
        return torch.stack([base.log_softmax_of(logits, action) for logits, action in pairs]).sum(0)

    def entropy(self, params: Tensor) -> Tensor:
        return self._summed(base.softmax_entropy, params)

    def log_barrier(self, params: Tensor) -> Tensor:
        return self._summed(base.softmax_log_barrier, params)

    def encode(self, actions: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        pairs = zip(actions.unbind(-1), self.sizes, strict=True)
        return torch.cat([F.one_hot(action, size) for action, size in pairs], -1).to(dtype)

    def mean_encoding(self, params: Tensor) -> Tensor:
        return self.marginals(params)

    def distance(self, params: Tensor, other_params: Tensor) -> Tensor:
        pairs = zip(self._split(params), self._split(other_params), strict=True)
        return 1 - torch.stack([1 - base.variation(logits, other_logits) for logits, other_logits in pairs]).prod(0)

    def marginals(self, params: Tensor) -> Tensor:
        return torch.cat([torch.softmax(logits, -1) for logits in self._split(params)], -1)

    def labels(self) -> list[str]:
        starts = self.spec.get("start", [0] * len(self.sizes))
        return [
            f"{i}: {start + value}"
            for i, (size, start) in enumerate(zip(self.sizes, starts, strict=True))
            for value in range(size)
        ]

    def no_action(self, batch_size: int) -> np.ndarray:
        return np.tile(np.array(self.sizes, np.int64), (batch_size, 1))

    def to_env(self, actions: Tensor) -> np.ndarray:
        numbers = actions.cpu().numpy() + np.array(self.spec.get("start", 0))
        return numbers.reshape(len(numbers), *self.spec["shape"]).astype(self.spec.get("dtype", "int64"))


class MultiBinaryActions(MultiDiscreteActions):
    """Every number is 0 or 1."""

    @staticmethod
    def spec_of(space: spaces.MultiBinary) -> dict[str, Any]:
        return {"kind": "multi_binary", "shape": list(space.shape or ()), "dtype": space.dtype.name}

    def _sizes(self) -> list[int]:
        return [2] * int(np.prod(self.spec["shape"]))
