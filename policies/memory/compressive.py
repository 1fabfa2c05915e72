"""Compressive Transformer (Rae et al., ICLR 2020, arXiv 1911.05507): a window of recent memories, then a second one of
compressed memories.

B environments, H heads, T time steps, E compressed slots, c members of a block, C slots, D model width, d head width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from expire_span_rl.policies.memory.kind import MemoryKind, Merging
from expire_span_rl.policies.settings import CompressiveConfig


class Compressive(MemoryKind):
    """When the last of c memories has left the window, a convolution of kernel and stride c makes one slot of the block
    (section 3.1). The age of that slot counts from its last member. Both recent and compressed memories are live."""

    Config = CompressiveConfig

    def __init__(self, width: int, num_heads: int, config: CompressiveConfig):
        super().__init__(width, num_heads, config)
        # Kernel and stride are both c, so the convolution is one matrix product per block.
        self.convolution = nn.Linear(config.compression_rate * width, width)
        with torch.no_grad():  # at the start it gives the mean of the block
            self.convolution.weight.copy_(torch.eye(width).repeat(1, config.compression_rate) / config.compression_rate)
            self.convolution.bias.zero_()

    @property
    def merging(self) -> Merging:
        return Merging(self.config.compression_rate, self.config.window)

    @property
    def reach(self) -> int:
        """Largest age of a compressed memory. It is removed at the next query, when a new one comes."""
        return self.config.window + self.config.compressed_window * self.config.compression_rate

    def visibility(self, age: Tensor, slot_features: Tensor | None, exists: Tensor) -> tuple[Tensor, None]:
        return age <= self.reach, None

    def survives(self, age: Tensor, slot_features: Tensor | None, alive: Tensor) -> Tensor:
        return age <= self.reach

    def merge(self, blocks: Tensor) -> Tensor:
        return self.convolution(blocks.flatten(-2))

    def merge_loss(
        self, read: Callable[[Tensor], tuple[Tensor, Tensor]], queries: Tensor, blocks: Tensor, visible: Tensor
    ) -> Tensor:
        """The attention-reconstruction loss (algorithm 2), a mean squared difference over B, T and D.

        It compares what every query reads from its visible merged slots with what it would read from their members, by
        content alone.
        """
        visible_members = visible.repeat_interleave(blocks.shape[2], 2)  # [B,T,E*c]
        before = _attend(queries, *read(blocks.flatten(1, 2)), visible_members)
        after = _attend(queries, *read(self.merge(blocks)), visible)
        return (after - before).square().masked_fill(~visible.any(2)[:, None, :, None], 0).mean()


def _attend(queries: Tensor, keys: Tensor, values: Tensor, visible: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v [B,H,T,d] over the visible slots, bool [B,T,C]. For a query without any, the result is
    arbitrary."""
    scores = torch.matmul(queries, keys.transpose(2, 3)) * queries.shape[-1] ** -0.5
    scores = scores.masked_fill(~visible[:, None], torch.finfo(scores.dtype).min)
    return torch.matmul(torch.softmax(scores, -1), values)
