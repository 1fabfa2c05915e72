"""What an update may not do to a training: leave numbers that are not finite, or stop half-way.

A `Backup` holds what learning changes, from which an update that went wrong is taken back.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from expire_span_rl.protocols import StatefulModule

LARGEST_WEIGHT = 1e9
"""Weights beyond it count as blown up: what they are multiplied with soon is beyond what float32 can hold."""
MOST_SKIPPED = 10  # updates in a row that are skipped, after which training stops
FINISH_WITHIN = 4.0  # seconds that an update still has after training was asked to stop


class TrainingEnded(RuntimeError):
    """The training cannot go on. Its state is that after the last whole update: a checkpoint can be written. One
    line."""


class NotFinite(ArithmeticError):
    """An update was to leave numbers that are not finite, or weights that blew up. Names the first such tensor. One
    line."""


class SkippedUpdate(UserWarning):
    """An update was taken back."""


class Backup:
    """Copies of the parameters and buffers of modules, and of an optimiser's state."""

    def __init__(self, modules: Mapping[str, StatefulModule], optimizer: torch.optim.Optimizer):
        self._modules, self._optimizer = modules, optimizer
        self._tensors = {
            name: {key: tensor.detach().clone() for key, tensor in module.state_dict().items()}
            for name, module in modules.items()
        }
        self._moments = {
            parameter: {key: value.clone() if isinstance(value, Tensor) else value for key, value in entries.items()}
            for parameter, entries in optimizer.state.items()
        }

    def restore(self) -> None:
        """Puts everything back. For one use: the optimiser goes on with the copies."""
        for name, module in self._modules.items():
            module.load_state_dict(self._tensors[name])
        self._optimizer.zero_grad()
        self._optimizer.state.clear()
        self._optimizer.state.update(self._moments)


class Deadline:
    """Whether an update under way must be given up: some seconds after `stop` was set."""

    def __init__(self, stop: threading.Event):
        self._stop = stop
        self._since: float | None = None

    def check(self) -> None:
        """Raises TrainingEnded when the time is over. To be called now and then while something long is under way."""
        if not self._stop.is_set():
            self._since = None
            return
        now = time.monotonic()
        self._since = self._since or now
        if now - self._since > FINISH_WITHIN:
            raise TrainingEnded(
                f"interrupted in the midst of an update, which did not end within {FINISH_WITHIN:.0f} s"
            )


def tell_skipped(update: int, in_a_row: int, error: NotFinite) -> None:
    """Says that update number `update` was taken back, the last of so many in a row: the first time by a warning, and
    at last by TrainingEnded."""
    if in_a_row >= MOST_SKIPPED:
        raise TrainingEnded(
            f"{in_a_row} updates in a row were not finite and were skipped, the last for its {error}: a lower "
            "--learning-rate may help"
        ) from error
    if in_a_row == 1:
        warnings.warn(f"update {update} is skipped: {error}", SkippedUpdate, stacklevel=2)


def check_modules(modules: Mapping[str, StatefulModule]) -> None:
    """Raises NotFinite for parameters that blew up and statistics that are not finite."""
    tensors: dict[str, tuple[Tensor, float]] = {}
    for module in modules.values():
        tensors |= {f"weight {name}": (tensor, LARGEST_WEIGHT) for name, tensor in module.named_parameters()}
        saved = module.state_dict().keys()  # others are made with the module and never change: a bound may be infinite
        buffers = {name: tensor for name, tensor in module.named_buffers() if name in saved}
        tensors |= {f"statistic {name}": (tensor, float("inf")) for name, tensor in buffers.items()}
    tensors = {name: pair for name, pair in tensors.items() if pair[0].is_floating_point() and pair[0].numel()}
    if not tensors:
        return
    largest = torch.stack([tensor.detach().abs().amax().double() for tensor, _ in tensors.values()]).tolist()
    for (name, (_, most)), size in zip(tensors.items(), largest, strict=True):
        if not size <= most or size == float("inf"):
            wanted = "finite numbers" if most == float("inf") else f"numbers up to {most:.0e}"
            raise NotFinite(f"{name}: expected {wanted}, got {size:.3g}")


def first_not_finite(tensors: Mapping[str, Any]) -> str | None:
    """The name of the first tensor that has a number that is not finite, and that number; None if all are finite."""
    for name, tensor in tensors.items():
        if isinstance(tensor, Tensor) and tensor.is_floating_point():
            bad = ~torch.isfinite(tensor.detach())
            if bad.any():
                return f"{name}: expected finite numbers, got {float(tensor.detach()[bad].flatten()[0])}"
    return None
