"""The observation that comes next, predicted: an auxiliary task of learning, which asks of memory at every step what acting
asks of it now and then. N time steps, D model width, A actions, O numbers that the predictor puts out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from expire_span_rl.policies.encoders import CELL_VALUES, entry_size

VARIANCE_FLOOR = 1e-3  # numbers that vary less are not scaled up further


class NextObservation(nn.Module):
    """Predicts what an action leads to, from the features of the step at which it is taken."""

    def __init__(self, spec: Mapping[str, Mapping[str, Any]], width: int, num_actions: int):
        """spec: of the observation (`policies.encoders.observation_spec`)."""
        super().__init__()
        self.spec = {key: dict(entry) for key, entry in spec.items()}
        self.features = nn.Linear(width, width)
        self.action = nn.Embedding(num_actions, width)
        self.out = nn.Linear(width, sum(entry_size(entry) for entry in self.spec.values()))
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def loss(self, features: Tensor, actions: Tensor, following: Mapping[str, Tensor]) -> Tensor:
        """features: [N,D]; actions: int64 [N]; following: entries [N, ...] -> scalar, nats per observation.

        Cells and discrete entries count with their cross entropy, numbers with their squared error over twice their
        variance, each summed over the observation.
        """
        if not len(actions):
            return features.sum() * 0
        parts = self._parts(features, actions)
        return sum(_surprise(entry, parts[key], following[key]) for key, entry in self.spec.items())

    def objects(self, features: Tensor, actions: Tensor, key: str, cell: tuple[int, int]) -> Tensor:
        """The most likely object in a cell of the image `key`: features [N,D], actions int64 [N] -> int64 [N]."""
        numbers = self._parts(features, actions)[key]
        width = self.spec[key]["shape"][1]
        return numbers.unflatten(1, (-1, sum(CELL_VALUES)))[:, cell[0] * width + cell[1], : CELL_VALUES[0]].argmax(1)

    def _parts(self, features: Tensor, actions: Tensor) -> dict[str, Tensor]:
        """What is put out for each entry of the observation [N,o]."""
        outputs = self.out(F.relu(self.features(features) + self.action(actions)))  # [N,O]
        parts = outputs.split([entry_size(entry) for entry in self.spec.values()], 1)
        return dict(zip(self.spec, parts, strict=True))


def _surprise(entry: Mapping[str, Any], outputs: Tensor, value: Tensor) -> Tensor:
    """outputs: [N,o]; value: [N, ...] -> scalar."""
    value = value[:, None] if value.ndim == 1 else value.flatten(1)  # [N, columns]
    if entry["kind"] == "vector":
        variance = value.var(0, correction=0).clamp(min=VARIANCE_FLOOR)
        return ((outputs - value).square().mean(0) / (2 * variance)).sum()
    if entry["kind"] == "discrete":
        return F.cross_entropy(outputs, value[:, 0].long())
    cells = value.unflatten(1, (-1, len(CELL_VALUES))).long()  # [N, cells, 3]
    by_cell = outputs.unflatten(1, (cells.shape[1], -1)).split(CELL_VALUES, 2)  # 3 of [N, cells, values]
    total = outputs.new_zeros(())
    for i, logits in enumerate(by_cell):
        right = cells[..., i].clamp(max=CELL_VALUES[i] - 1)
        total = total + F.cross_entropy(logits.flatten(0, 1), right.flatten()) * cells.shape[1]
    return total
