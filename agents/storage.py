"""Where the steps of a rollout are kept while it is collected.

T time steps, B environments, P parameters of the actions' distribution.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from expire_span_rl.agents.guard import TrainingEnded


class Storage:
    """Tensors of T steps by name, on their device, made when the first step is put in."""

    def __init__(self, steps: int):
        self._steps = steps
        self.tensors: dict[str, Tensor] = {}
        """[T, ...] each."""

    def put(self, t: int, prefix: str, parts: Mapping[str, Tensor]) -> None:
        """Copies what step t brought, by names that begin with `prefix`."""
        for name, part in parts.items():
            whole = self.tensors.get(prefix + name)
            if whole is None:
                whole = self.tensors[prefix + name] = part.new_empty((self._steps, *part.shape))
            whole[t] = part


def tensors_of(observation: Mapping[str, Any], device: torch.device) -> dict[str, Tensor]:
    """The entries of an observation on a device."""
    return {key: torch.as_tensor(value, device=device) for key, value in observation.items()}


def check_outputs(observation: Mapping[str, Tensor], logits: Tensor, values: Tensor) -> None:
    """Raises TrainingEnded for outputs of the policy, logits [...,B,P] and values [...,B], that are not finite: where,
    and of which observation, entries [...,B, ...]."""
    if not torch.isnan(logits).any() | ~torch.isfinite(values).all():  # one wait for a GPU, not two
        return
    wrong = torch.isnan(logits).any(-1) | ~torch.isfinite(values)
    place = tuple(wrong.nonzero()[0].tolist())
    sizes = {name: float(entry[place].abs().max()) for name, entry in observation.items() if entry[place].numel()}
    name = max(sizes, key=lambda name: sizes[name])
    raise TrainingEnded(
        f"the policy's outputs are not finite in environment {place[-1]}: its observation {name!r} has numbers up to "
        f"{sizes[name]:.3g}"
    )
