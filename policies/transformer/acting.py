"""A memory laid out to act on. B environments, C slots, D model width, H heads, L layers, K numbers drawn."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from expire_span_rl.policies.memory.kind import MemoryKind
from expire_span_rl.policies.memory.state import LayerMemory, Memory


@dataclass
class LayerBuffers:
    """One layer while acting: C = S + horizon slots, oldest first; those from `filled` on are still empty."""

    keys: Tensor  # [B,H,C,d]
    values: Tensor  # [B,H,C,d]
    hidden: Tensor  # [B,C,D]
    described: Tensor | None  # [B,C]
    birth: Tensor  # [B,C]
    alive: Tensor  # [B,C] bool
    last_use: Tensor | None  # [B,C] clock at which attention last used the slot; None where nobody asks


@dataclass
class TransformerActing:
    """A memory projected under today's weights, with room to act on. The caller owns it; `step` writes into it."""

    layers: list[LayerBuffers]
    time: Tensor  # [B] clock of the observation that comes next
    drawn: Tensor  # [B,K]
    kinds: tuple[MemoryKind, ...]
    filled: int  # slots in use
    capacity: int
    live: Tensor | None = None  # [B,L] memories that the last step saw, itself included; None for a kind without slots

    @property
    def full(self) -> bool:
        """No room for another step: call `begin(acting.memory(), horizon)`."""
        return self.filled >= self.capacity

    def memory(self) -> Memory:
        """What survives, compacted: slots that the next query cannot see are gone for good."""
        return Memory(tuple(self._compacted(*pair) for pair in zip(self.layers, self.kinds)), self.time, self.drawn)

    def _compacted(self, layer: LayerBuffers, kind: MemoryKind) -> LayerMemory:
        n = self.filled
        age = self.time[:, None] - layer.birth[:, :n]
        described = None if layer.described is None else layer.described[:, :n]
        alive = layer.alive[:, :n]
        keep = alive & kind.survives(age.to(layer.keys.dtype), described, alive)  # [B,n]
        size = int(keep.sum(1).max())
        order = torch.argsort(keep.to(torch.uint8), dim=1, stable=True)[
            :, n - size :
        ]  # the kept to the right, in order
        alive = keep.gather(1, order)
        hidden = layer.hidden.gather(1, order[..., None].expand(-1, -1, layer.hidden.shape[2]))
        last_use = None if layer.last_use is None else layer.last_use.gather(1, order)
        return LayerMemory(hidden, layer.birth.gather(1, order), alive, last_use)
