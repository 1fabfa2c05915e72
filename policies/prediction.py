"""The observation that comes next, predicted: an auxiliary task of learning, which asks of memory at every step what
acting asks of it now and then. N time steps, D model width, F features of an action, O numbers that the predictor puts
out.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from expire_span_rl.policies.actions import Actions
from expire_span_rl.policies.encoders import CELL_VALUES
from expire_span_rl.policies.encoders.encoder import Encoder


class NextObservation(nn.Module):
    """Predicts what an action leads to, from the features of the step at which it is taken."""

    def __init__(self, encoder: Encoder, actions: Actions, width: int):
        """encoder: the policy's, which says what an observation consists of and what normal numbers are."""
        super().__init__()
        # Neither belongs to this module: a tuple, so that its weights are its own alone.
        self._read = encoder, actions
        self.features = nn.Linear(width, width)
        self.action = nn.Embedding(actions.num_features, width)
        self.out = nn.Linear(width, sum(part.outputs for _, part in encoder.entries()))
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def loss(self, features: Tensor, actions: Tensor, following: Mapping[str, Tensor]) -> Tensor:
        """features: [N,D]; actions: canonical [N, ...]; following: entries [N, ...] -> scalar, nats per observation.

        Whole numbers count with their cross entropy, others with their squared error over twice their variance, each
        summed over the observation.
        """
        if not len(actions):
            return features.sum() * 0
        parts = self._parts(features, actions)
        encoder, _ = self._read
        losses = [part.surprise(parts[key], following[key]) for key, part in encoder.entries() if part.outputs]
        return sum(losses, features.new_zeros(()))

    def objects(self, features: Tensor, actions: Tensor, key: str, cell: tuple[int, int]) -> Tensor:
        """The most likely object in a cell of the image `key`: features [N,D], actions int64 [N] -> int64 [N]."""
        numbers = self._parts(features, actions)[key]
        width = self._read[0].spec[key]["shape"][1]
        return numbers.unflatten(1, (-1, sum(CELL_VALUES)))[:, cell[0] * width + cell[1], : CELL_VALUES[0]].argmax(1)

    def _parts(self, features: Tensor, actions: Tensor) -> dict[str, Tensor]:
        """What is put out for each entry of the observation [N,o]."""
        encoder, acted = self._read
        taken = acted.encode(actions, features.dtype) @ self.action.weight  # [N,D]
        outputs = self.out(F.relu(self.features(features) + taken))  # [N,O]
        parts = outputs.split([part.outputs for _, part in encoder.entries()], 1)
        return dict(zip(encoder.keys, parts, strict=True))
