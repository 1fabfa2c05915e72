"""The memoryless control: the same policy, and every query sees itself only. What it can solve is no memory task."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from policies.memory.base import MemoryKind


@dataclass(frozen=True)
class NoMemoryConfig:
    pass


class NoMemory(MemoryKind):
    Config = NoMemoryConfig
    stores = False

    def visibility(self, age: Tensor, described: Tensor | None) -> tuple[Tensor, None]:
        return age == 0, None

    def survives(self, age: Tensor, described: Tensor | None) -> Tensor:
        return torch.zeros_like(age, dtype=torch.bool)
