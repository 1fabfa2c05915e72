"""The encoder of grids in MiniGrid's encoding: the object, colour and state of each cell, one-hot.

N observations.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from gymnasium import spaces
from torch import Tensor

from expire_span_rl.policies.encoders.base import Integers
from expire_span_rl.spaces import CELL_BOUNDS

CELL_VALUES = tuple(bound + 1 for bound in CELL_BOUNDS)
"""The numbers of different objects, colours and states of a cell. An agent's directions are states 0 to 3."""


MIN_VARIANCE = 0.01  # smaller variances are not scaled up much further
MAX_NORMALIZED = 5.0
"""Normalised columns are clipped here. What is rarer than about 3 observations in a hundred reads as this."""


class CellsEncoder(Integers):
    """Encodes uint8 [columns, lines, 3] with the bounds of MiniGrid's encoding. A larger value counts as the largest
    one.

    Both options need how often each value was seen at each place, in all observations of training so far. These
    statistics are part of the policy's weights and change only when `observe` is called.

    With `normalize`, the frequency of each value is taken from its column, which is divided by its standard deviation.
    What was always the same then counts for nothing, and the one rare object among a hundred walls for much. What was
    never seen reads as 0.

    With `impute`, a cell that has an object, a colour or a state that was never seen at its place is read as the most
    frequent object, colour and state there. The weights of what was never seen are those of the start: it would read as
    noise, as loud as anything.
    """

    learns_statistics: ClassVar[bool] = True
    frequency: Tensor  # [C]
    scale: Tensor  # [C]
    count: Tensor  # scalar

    def __init__(self, entry: Mapping[str, Any]):
        columns, lines, _ = entry["shape"]
        super().__init__(entry, [*CELL_VALUES] * (columns * lines))
        self.normalize = bool(entry.get("normalize", False))
        self.impute = bool(entry.get("impute", False))
        if self.normalize or self.impute:
            self.register_buffer("frequency", torch.zeros(self.size))
            if self.normalize:
                self.register_buffer("scale", torch.ones(self.size))
            self.register_buffer("count", torch.zeros(()))

    @classmethod
    def spec_of(cls, space: spaces.Space) -> dict[str, Any] | None:
        if getattr(space, "encoder", None) == "cells" and isinstance(space, spaces.Box):
            return {"shape": list(space.shape)}
        return None

    @classmethod
    def bounds_of(cls, entry: Mapping[str, Any]) -> tuple[int, np.ndarray]:
        return 0, np.array(CELL_BOUNDS)

    def forward(self, value: Tensor, dtype: torch.dtype) -> Tensor:
        indices = self._indices(value)
        if self.impute:
            indices = self._imputed(indices)
        if not self.normalize:
            return self._one_hot(indices, dtype)
        absent, present = (self._normalized(frequency, dtype) for frequency in (0 - self.frequency, 1 - self.frequency))
        columns = indices + self.offset
        return absent.expand(len(columns), -1).clone().scatter_(1, columns, present.take(columns))

    def _normalized(self, difference: Tensor, dtype: torch.dtype) -> Tensor:
        """[C] the column's value for a difference [C] from its mean."""
        return (difference * self.scale).clamp_(-MAX_NORMALIZED, MAX_NORMALIZED).to(dtype)

    def _imputed(self, indices: Tensor) -> Tensor:
        """The same values, int64 [N, numbers]. Those of cells that show what was never seen there become the most
        frequent ones. Nothing changes before the first observation."""
        was_seen = ((self.frequency > 0) | (self.count == 0)).take(indices + self.offset)  # [N, numbers]
        if was_seen.device.type == "cpu" and bool(was_seen.all()):  # a GPU would have to be asked
            return indices
        by_cell = (-1, len(CELL_VALUES))
        is_known = was_seen.unflatten(1, by_cell).all(2, keepdim=True)  # [N, cells, 1]
        frequencies = self.frequency.unflatten(0, (-1, sum(CELL_VALUES))).split(CELL_VALUES, 1)
        usual = torch.stack([part.argmax(1) for part in frequencies], 1)  # [cells, 3]
        return torch.where(is_known, indices.unflatten(1, by_cell), usual).flatten(1)

    @torch.no_grad()
    def observe(self, value: Tensor) -> None:
        """Updates the frequencies with the values [N, ...]."""
        if not (self.normalize or self.impute) or not len(value):
            return
        self.count.add_(len(value))
        columns = (self._indices(value) + self.offset).flatten()
        frequency = torch.bincount(columns, minlength=self.size).to(self.frequency) / len(value)
        self.frequency.lerp_(frequency, len(value) / self.count)
        if not self.normalize:
            return
        variance = self.frequency * (1 - self.frequency)
        self.scale.copy_(torch.rsqrt(variance + MIN_VARIANCE) * (variance > 0))

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
