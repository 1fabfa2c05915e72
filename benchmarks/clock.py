"""The time that benchmarks measure: CPU seconds, so that it does not matter what else the machine does, or where a GPU
works those of the wall."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch


class Clock:
    """Seconds since it was made, `spent` before that: of the process's CPU, or of the wall where a GPU works."""

    def __init__(self, device: torch.device | str, spent: float = 0.0):
        self.on_gpu = torch.device(device).type == "cuda"
        self.begun = self._now() - spent

    def seconds(self) -> float:
        return self._now() - self.begun

    def _now(self) -> float:
        if self.on_gpu:
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()


def seconds_of(function: Callable[[], Any], device: torch.device | str = "cpu") -> float:
    """Seconds that a call takes."""
    clock = Clock(device)
    function()
    return clock.seconds()
