"""Prediction of the next observation, an auxiliary task of learning. It needs memory at every step, while acting needs
it only now and then.

N time steps, D model width, O outputs of the predictor.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from expire_span_rl.policies.actions import Actions
from expire_span_rl.policies.encoders import CELL_VALUES
from expire_span_rl.policies.encoders.encoder import Encoder


class NextObservation(nn.Module):
    """Predicts the observation after an action, from the features of the step at which the action is taken."""

    def __init__(self, encoder: Encoder, actions: Actions, width: int):
        """encoder, actions: the policy's. The encoder has the entries of an observation and their statistics."""
        super().__init__()
        # In a tuple, neither is a submodule: their weights belong to the policy, not to this module.
        self._policy_parts = encoder, actions
        self.features = nn.Linear(width, width)
        self.action = nn.Embedding(actions.num_features, width)
        self.out = nn.Linear(width, sum(part.outputs for _, part in encoder.entries()))
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def loss(self, features: Tensor, actions: Tensor, following: Mapping[str, Tensor]) -> Tensor:
        """features: [N,D]; actions: canonical [N, ...]; following: entries [N, ...] -> scalar, nats per observation.

        It is the sum over the observation of cross entropies for whole numbers, and for other numbers of squared errors
        over twice their variance.
        """
        if not len(actions):
            return features.sum() * 0
        parts = self._parts(features, actions)
        encoder, _ = self._policy_parts
        losses = [part.surprise(parts[key], following[key]) for key, part in encoder.entries() if part.outputs]
        return sum(losses, features.new_zeros(()))

    def objects(self, features: Tensor, actions: Tensor, key: str, cell: tuple[int, int]) -> Tensor:
        """The most likely object in a cell of the image `key`: features [N,D], actions int64 [N] -> int64 [N]."""
        logits = self._parts(features, actions)[key]
        width = self._policy_parts[0].spec[key]["shape"][1]
        return logits.unflatten(1, (-1, sum(CELL_VALUES)))[:, cell[0] * width + cell[1], : CELL_VALUES[0]].argmax(1)

    def _parts(self, features: Tensor, actions: Tensor) -> dict[str, Tensor]:
        """The outputs for each entry of the observation, [N, ...] each."""
        encoder, action_space = self._policy_parts
        embedded_actions = action_space.encode(actions, features.dtype) @ self.action.weight  # [N,D]
        outputs = self.out(F.relu(self.features(features) + embedded_actions))  # [N,O]
        parts = outputs.split([part.outputs for _, part in encoder.entries()], 1)
        return dict(zip(encoder.keys, parts, strict=True))
