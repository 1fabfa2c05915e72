"""The mask of the allowed actions as numbers, so that a policy can also learn from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor

from expire_span_rl.policies.encoders.base import EntryEncoder


class MaskEncoder(EntryEncoder):
    """int8 [C], 1 for an allowed action. Not predicted."""

    def __init__(self, entry: Mapping[str, Any]):
        super().__init__(entry)
        (self.size,) = entry["shape"]
        self.outputs = 0

    @classmethod
    def spec_of(cls, space: spaces.Space) -> dict[str, Any] | None:
        if getattr(space, "encoder", None) == "mask":
            return {"shape": list(space.shape or ())}
        return None

    @classmethod
    def bounds_of(cls, entry: Mapping[str, Any]) -> tuple[int, int]:
        return 0, 1

    def forward(self, value: Tensor, dtype: torch.dtype) -> Tensor:
        return value.to(dtype)

    def surprise(self, outputs: Tensor, value: Tensor) -> Tensor:
        return outputs.sum() * 0
