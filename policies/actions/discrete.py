"""Discrete actions: a softmax over A of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from gymnasium import spaces
from torch import Tensor

from expire_span_rl.policies.actions import base


class DiscreteActions(base.Actions):
    """Canonical actions count from 0, also if the space has another start."""

    def __init__(self, spec: Mapping[str, Any]):
        super().__init__(spec)
        self.num_outputs = self.num_features = int(spec["n"])
        self.sizes = [self.num_outputs]

    @staticmethod
    def spec_of(space: spaces.Discrete) -> dict[str, Any]:
        start = {"start": int(space.start)} if space.start else {}
        return {"kind": "discrete", "n": int(space.n), **start}

    def sample(self, params: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return base.gumbel_max(params, generator)

    def mode(self, params: Tensor) -> Tensor:
        return params.argmax(-1)

    def log_prob(self, params: Tensor, actions: Tensor) -> Tensor:
        return base.log_softmax_of(params, actions)

    def entropy(self, params: Tensor) -> Tensor:
        return base.softmax_entropy(params)

    def log_barrier(self, params: Tensor) -> Tensor:
        return base.softmax_log_barrier(params)

    def encode(self, actions: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        return F.one_hot(actions, self.num_outputs).to(dtype)

    def mean_encoding(self, params: Tensor) -> Tensor:
        return self.marginals(params)

    def distance(self, params: Tensor, other_params: Tensor) -> Tensor:
        return base.variation(params, other_params)

    def marginals(self, params: Tensor) -> Tensor:
        return torch.softmax(params, -1)

    def labels(self) -> list[str]:
        start = self.spec.get("start", 0)
        return [f"action {start + i}" for i in range(self.num_outputs)]

    def no_action(self, batch_size: int) -> np.ndarray:
        return np.full(batch_size, self.num_outputs, np.int64)

    def to_env(self, actions: Tensor) -> np.ndarray:
        return actions.cpu().numpy() + self.spec.get("start", 0)
