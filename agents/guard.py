"""Protects a training from updates that leave numbers that are not finite, or that stop half-way.

A `Backup` holds what learning changes. A failed update is taken back from it.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from expire_span_rl.protocols import HasState, StatefulModule

LARGEST_WEIGHT = 1e9
"""Weights beyond it count as diverged. Products with them soon exceed the range of float32."""
MOST_SKIPPED = 10
"""Training stops after so many skipped updates in a row."""
FINISH_WITHIN = 4.0
"""Seconds that an update may still take after training was asked to stop."""


class TrainingEnded(RuntimeError):
    """The training cannot go on. Its state is the one after the last whole update, and can be saved. The message is one
    line."""


class NotFinite(ArithmeticError):
    """An update would leave numbers that are not finite, or weights that diverged. The message is one line and names
    the first such tensor."""


class SkippedUpdate(UserWarning):
    """An update was taken back."""


class Backup:
    """Copies of the state of modules and statistics, and of an optimiser's state."""

    def __init__(self, modules: Mapping[str, HasState], optimizer: torch.optim.Optimizer):
        self._modules = modules
        self._optimizer = optimizer
        self._tensors = {
            name: {key: tensor.detach().clone() for key, tensor in module.state_dict().items()}
            for name, module in modules.items()
        }
        self._moments = {
            parameter: {key: value.clone() if isinstance(value, Tensor) else value for key, value in entries.items()}
            for parameter, entries in optimizer.state.items()
        }

    def restore(self) -> None:
        """Puts everything back. To be called once, since the optimiser continues with the copies themselves."""
        for name, module in self._modules.items():
            module.load_state_dict(self._tensors[name])
        self._optimizer.zero_grad()
        self._optimizer.state.clear()
        self._optimizer.state.update(self._moments)


class Deadline:
    """Ends an update that is still under way some seconds after `stop` was set."""

    def __init__(self, stop: threading.Event):
        self._stop = stop
        self._since: float | None = None

    def check(self) -> None:
        """Raises TrainingEnded once the time is over. To be called repeatedly during anything long."""
        if not self._stop.is_set():
            self._since = None
            return
        now = time.monotonic()
        self._since = self._since or now
        if now - self._since > FINISH_WITHIN:
            raise TrainingEnded(f"interrupted during an update that did not end within {FINISH_WITHIN:.0f} s")


def report_skipped_update(update: int, in_a_row: int, error: NotFinite) -> None:
    """Reports that an update was taken back. update: its number; in_a_row: how many have been taken back in a row.
    Warns at the first of them, and raises TrainingEnded after MOST_SKIPPED."""
    if in_a_row >= MOST_SKIPPED:
        raise TrainingEnded(
            f"{in_a_row} updates in a row were not finite and were skipped, the last for its {error}: a lower "
            "--learning-rate may help"
        ) from error
    if in_a_row == 1:
        warnings.warn(f"update {update} is skipped: {error}", SkippedUpdate, stacklevel=2)


def check_modules(modules: Mapping[str, StatefulModule]) -> None:
    """Raises NotFinite for parameters that diverged and for statistics that are not finite."""
    limits: dict[str, tuple[Tensor, float]] = {}  # each tensor with the largest size that it may have
    for module in modules.values():
        limits |= {f"weight {name}": (tensor, LARGEST_WEIGHT) for name, tensor in module.named_parameters()}
        # Buffers that are not saved never change, and may have infinite bounds.
        saved_names = module.state_dict().keys()
        buffers = {name: tensor for name, tensor in module.named_buffers() if name in saved_names}
        limits |= {f"statistic {name}": (tensor, float("inf")) for name, tensor in buffers.items()}
    limits = {name: pair for name, pair in limits.items() if pair[0].is_floating_point() and pair[0].numel()}
    if not limits:
        return
    sizes = torch.stack([tensor.detach().abs().amax().double() for tensor, _ in limits.values()]).tolist()
    for (name, (_, limit)), size in zip(limits.items(), sizes, strict=True):
        if not size <= limit or size == float("inf"):
            expected = "finite numbers" if limit == float("inf") else f"numbers up to {limit:.0e}"
            raise NotFinite(f"{name}: expected {expected}, got {size:.3g}")


def first_not_finite(tensors: Mapping[str, Any]) -> str | None:
    """A message with the name of the first tensor that has a number that is not finite, and that number. None if all
    are finite. Values that are no tensors of floats are ignored."""
    for name, tensor in tensors.items():
        if isinstance(tensor, Tensor) and tensor.is_floating_point():
            is_bad = ~torch.isfinite(tensor.detach())
            if is_bad.any():
                return f"{name}: expected finite numbers, got {float(tensor.detach()[is_bad].flatten()[0])}"
    return None
