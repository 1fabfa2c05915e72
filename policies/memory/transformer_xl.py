"""Transformer-XL (Dai et al., ACL 2019, arXiv 1901.02860): a fixed window of the most recent steps."""

from __future__ import annotations

from torch import Tensor

from expire_span_rl.policies.memory.kind import MemoryKind
from expire_span_rl.policies.settings import TransformerXLConfig


class TransformerXL(MemoryKind):
    """Memory is visible while its age is at most the window. Same attention and positions as Expire-Span, no loss."""

    Config = TransformerXLConfig

    def visibility(self, age: Tensor, slot_features: Tensor | None, exists: Tensor) -> tuple[Tensor, None]:
        return age <= self.config.window, None

    def survives(self, age: Tensor, slot_features: Tensor | None, alive: Tensor) -> Tensor:
        return age <= self.config.window
