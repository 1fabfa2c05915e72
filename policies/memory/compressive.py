"""Compressive Transformer (Rae et al., ICLR 2020, arXiv 1911.05507): a window of recent memories, then a second one of
compressed memories.

B environments, H heads, T time steps, E compressed slots, c members of a block, C slots, N query steps, D model
width, d head width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from expire_span_rl.policies.memory.kind import MemoryKind, Merging
from expire_span_rl.policies.settings import CompressiveConfig


class Compressive(MemoryKind):
    """When the last of c memories has left the window, the block becomes one slot by a convolution of kernel and stride
    c (section 3.1). Its age counts from its last member. Live memories are the recent and the compressed ones."""

    Config = CompressiveConfig

    def __init__(self, width: int, num_heads: int, config: CompressiveConfig):
        super().__init__(width, num_heads, config)
        self.convolution = nn.Linear(
            config.compression_rate * width, width
        )  # kernel = stride = c: one product per block
        with torch.no_grad():  # the mean of the block, before anything is learned
            self.convolution.weight.copy_(torch.eye(width).repeat(1, config.compression_rate) / config.compression_rate)
            self.convolution.bias.zero_()

    @property
    def merging(self) -> Merging:
        return Merging(self.config.compression_rate, self.config.window)

    @property
    def reach(self) -> int:
        """Age of the oldest compressed memory: it goes at the next query, when another one comes."""
        return self.config.window + self.config.compressed_window * self.config.compression_rate

    def visibility(self, age: Tensor, slot_features: Tensor | None, exists: Tensor) -> tuple[Tensor, None]:
        return age <= self.reach, None

    def survives(self, age: Tensor, slot_features: Tensor | None, alive: Tensor) -> Tensor:
        return age <= self.reach

    def merge(self, blocks: Tensor) -> Tensor:
        return self.convolution(blocks.flatten(-2))

    def merge_loss(
        self, read: Callable[[Tensor], tuple[Tensor, Tensor]], queries: Tensor, blocks: Tensor, seen: Tensor
    ) -> Tensor:
        """The attention-reconstruction loss (algorithm 2): what every query reads from the merged slots that it sees,
        against what it would read from their members, by content alone; mean squared difference over B, T and D."""
        members = seen.repeat_interleave(blocks.shape[2], 2)  # [B,T,E*c]
        before = _read(queries, *read(blocks.flatten(1, 2)), members)
        after = _read(queries, *read(self.merge(blocks)), seen)
        return (after - before).square().masked_fill(~seen.any(2)[:, None, :, None], 0).mean()


def _read(queries: Tensor, keys: Tensor, values: Tensor, seen: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v [B,H,T,d] over the slots seen [B,T,C]; a query that sees none reads anything."""
    scores = torch.matmul(queries, keys.transpose(2, 3)) * queries.shape[-1] ** -0.5
    scores = scores.masked_fill(~seen[:, None], torch.finfo(scores.dtype).min)
    return torch.matmul(torch.softmax(scores, -1), values)
