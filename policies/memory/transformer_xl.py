"""Transformer-XL (Dai et al., ACL 2019, arXiv 1901.02860): a fixed window of the most recent steps."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from policies.memory.base import MemoryKind


@dataclass(frozen=True)
class TransformerXLConfig:
    window: int = 256
    """Steps that a memory stays visible: age <= window."""

    def __post_init__(self):
        if self.window < 1:
            raise ValueError(
                f"--window: expected at least 1, got {self.window} (for no memory at all use --memory none)"
            )


class TransformerXL(MemoryKind):
    """Memory is visible while its age is at most the window. Same attention and positions as Expire-Span, no loss."""

    Config = TransformerXLConfig

    def visibility(self, age: Tensor, described: Tensor | None) -> tuple[Tensor, None]:
        return age <= self.config.window, None

    def survives(self, age: Tensor, described: Tensor | None) -> Tensor:
        return age <= self.config.window
