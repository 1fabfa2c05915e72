"""MiniGrid's cells: the object, colour and state of each cell, one-hot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from gymnasium import spaces
from torch import Tensor

from expire_span_rl.policies.encoders.base import Integers
from expire_span_rl.spaces import CELL_BOUNDS

CELL_VALUES = tuple(bound + 1 for bound in CELL_BOUNDS)
"""Number of objects, colours and states that a cell can have. Agent directions are states 0 to 3."""


class CellsEncoder(Integers):
    """uint8 [columns, lines, 3] with the bounds of MiniGrid's encoding. Larger values count as the largest."""

    def __init__(self, entry: Mapping[str, Any]):
        columns, lines, _ = entry["shape"]
        super().__init__(entry, [*CELL_VALUES] * (columns * lines))

    @classmethod
    def spec_of(cls, space: spaces.Space) -> dict[str, Any] | None:
        if getattr(space, "encoder", None) == "cells" and isinstance(space, spaces.Box):
            return {"shape": list(space.shape)}
        return None

    def surprise(self, outputs: Tensor, value: Tensor) -> Tensor:
        """The cross entropy of `Integers`, for all cells at once: one for objects, one for colours, one for states."""
        cells = self._indices(value).unflatten(1, (-1, len(CELL_VALUES)))  # [N, cells, 3]
        by_part = outputs.unflatten(1, (cells.shape[1], -1)).split(CELL_VALUES, 2)  # 3 of [N, cells, values]
        total = outputs.new_zeros(())
        for i, logits in enumerate(by_part):
            total = total + F.cross_entropy(logits.flatten(0, 1), cells[..., i].flatten()) * cells.shape[1]
        return total
