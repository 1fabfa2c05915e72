"""A memory laid out to act on. B environments, C slots, D model width, H heads, L layers, K numbers drawn."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from expire_span_rl.policies.memory.kind import MemoryKind
from expire_span_rl.policies.memory.state import LayerMemory, Memory
from expire_span_rl.policies.transformer.layer import Layer
from expire_span_rl.policies.transformer.slots import GONE, Slots, Written


@dataclass
class LayerBuffers:
    """One layer while acting: C = S + horizon slots, oldest first; those that nothing was written to yet are GONE.
    Position 0 is the step after `begin`."""

    slots: Slots
    hidden: Tensor  # [B,C,D]
    last_use: Tensor | None  # [B,C] clock at which attention last used the slot; None where nobody asks

    @classmethod
    def begin(cls, layer: Layer, held: LayerMemory, memory: Memory, size: int, horizon: int) -> LayerBuffers:
        """`held`, the layer's part of `memory`, in the last of `size` slots, and room for `horizon` more."""
        held = held.padded(size)
        written = layer.write(held.hidden, memory.drawn)
        position = (held.birth - memory.time[:, None]).to(held.hidden.dtype).masked_fill(~held.alive, GONE)

        def room(tensor: Tensor, dim: int = 1, value: float = 0.0) -> Tensor:
            shape = list(tensor.shape)
            shape[dim] = horizon
            return torch.cat([tensor, tensor.new_full(shape, value)], dim)

        slots = Slots(
            room(written.keys, 2),
            room(written.values, 2),
            None if written.described is None else room(written.described),
            room(position, value=GONE),
        )
        return cls(slots, room(held.hidden), None if held.last_use is None else room(held.last_use))

    def put(self, written: Written, hidden: Tensor, column: int | Tensor, position: float | Tensor) -> None:
        """Writes one slot of each environment: hidden vectors [B,1,D] and what the layer made of them."""
        slots = self.slots
        slots.keys[:, :, column], slots.values[:, :, column] = written.keys[:, :, 0], written.values[:, :, 0]
        if slots.described is not None and written.described is not None:
            slots.described[:, column] = written.described[:, 0]
        slots.position[:, column] = position
        self.hidden[:, column] = hidden[:, 0]


@dataclass
class TransformerActing:
    """A memory projected under today's weights, with room to act on. The caller owns it; `step` writes into it."""

    layers: list[LayerBuffers]
    time: Tensor  # [B] clock of the observation that comes next
    drawn: Tensor  # [B,K]
    kinds: tuple[MemoryKind, ...]
    size: int  # slots of memory, before those of the steps
    horizon: int  # steps that there is room for
    episode: Tensor  # [B] position at which the episode began; BEFORE if before `begin`
    now: int = 0  # position of the observation that comes next
    live: Tensor | None = None  # [B,L] memories that the last step saw, itself included; None for a kind without slots

    @property
    def full(self) -> bool:
        """No room for another step: call `begin(acting.memory(), horizon)`."""
        return self.now >= self.horizon

    @property
    def at(self) -> Tensor:
        """[1] the position as a query has it."""
        return self.episode.new_full((1,), self.now)

    @property
    def filled(self) -> int:
        """Slots in use."""
        return self.size + self.now

    def begin_episodes(self, episode_start: Tensor) -> None:
        """Empties the memory of the environments where `episode_start` [B] bool."""
        self.time.masked_fill_(episode_start, 0)
        self.episode.masked_fill_(episode_start, self.now)

    def memory(self) -> Memory:
        """What survives, compacted: slots that the next query cannot see are gone for good."""
        return Memory(tuple(self._compacted(*pair) for pair in zip(self.layers, self.kinds)), self.time, self.drawn)

    def _compacted(self, layer: LayerBuffers, kind: MemoryKind) -> LayerMemory:
        n = self.filled
        last_use = None if layer.last_use is None else layer.last_use[:, :n]
        slots = layer.slots.columns(0, n)
        return slots.remembered(kind, layer.hidden[:, :n], last_use, self.episode, self.time, self.now)
