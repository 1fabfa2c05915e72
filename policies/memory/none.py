"""The memoryless control: the same policy, whose queries see themselves only. A task that it solves needs no memory."""

from __future__ import annotations

import torch
from torch import Tensor

from expire_span_rl.policies.memory.kind import MemoryKind
from expire_span_rl.policies.settings import NoMemoryConfig


class NoMemory(MemoryKind):
    Config = NoMemoryConfig
    stores = False

    def visibility(self, age: Tensor, slot_features: Tensor | None, exists: Tensor) -> tuple[Tensor, None]:
        return age == 0, None

    def survives(self, age: Tensor, slot_features: Tensor | None, alive: Tensor) -> Tensor:
        return torch.zeros_like(age, dtype=torch.bool)
