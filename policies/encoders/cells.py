"""The encoder of grids in MiniGrid's encoding: the object, colour and state of each cell, one-hot.

N observations.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from gymnasium import spaces
from torch import Tensor

from expire_span_rl.policies.encoders.base import Integers
from expire_span_rl.spaces import CELL_BOUNDS

CELL_VALUES = tuple(bound + 1 for bound in CELL_BOUNDS)
"""The numbers of different objects, colours and states of a cell. An agent's directions are states 0 to 3."""


class CellsEncoder(Integers):
    """Encodes uint8 [columns, lines, 3] with the bounds of MiniGrid's encoding. A larger value counts as the largest
    one."""

    def __init__(self, entry: Mapping[str, Any]):
        columns, lines, _ = entry["shape"]
        super().__init__(entry, [*CELL_VALUES] * (columns * lines))

    @classmethod
    def spec_of(cls, space: spaces.Space) -> dict[str, Any] | None:
        if getattr(space, "encoder", None) == "cells" and isinstance(space, spaces.Box):
            return {"shape": list(space.shape)}
        return None

    def surprise(self, outputs: Tensor, value: Tensor) -> Tensor:
        """The same as `Integers.surprise`, but in three cross entropies over all cells: objects, colours, states."""
        cells = self._indices(value).unflatten(1, (-1, len(CELL_VALUES)))  # [N, cells, 3]
        num_cells = cells.shape[1]
        split_logits = outputs.unflatten(1, (num_cells, -1)).split(CELL_VALUES, 2)  # 3 times [N, cells, values]
        total = outputs.new_zeros(())
        for i, logits in enumerate(split_logits):
            # `cross_entropy` is a mean over N and cells. The surprise is a sum over cells.
            total = total + F.cross_entropy(logits.flatten(0, 1), cells[..., i].flatten()) * num_cells
        return total
