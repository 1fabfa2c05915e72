"""A memory laid out to act on. B environments, C slots, D model width, H heads, L layers, K numbers drawn."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from expire_span_rl.policies.memory.kind import MemoryKind
from expire_span_rl.policies.memory.state import LayerMemory, Memory
from expire_span_rl.policies.replay import Replay
from expire_span_rl.policies.transformer.layer import Layer
from expire_span_rl.policies.transformer.slots import GONE, Slots, Written

SMALLEST = 16  # capacity


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
        written = layer.write(held.hidden, memory.span_limit)
        position = (held.birth - memory.time[:, None]).to(held.hidden.dtype).masked_fill(~held.alive, GONE)

        def room(tensor: Tensor, dim: int = 1, value: float = 0.0) -> Tensor:
            shape = list(tensor.shape)
            shape[dim] = horizon
            return torch.cat([tensor, tensor.new_full(shape, value)], dim)

        slots = Slots(
            room(written.keys, 2),
            room(written.values, 2),
            None if written.slot_features is None else room(written.slot_features),
            room(position, value=GONE),
        )
        return cls(slots, room(held.hidden), None if held.last_use is None else room(held.last_use))

    def put(self, written: Written, hidden: Tensor, column: slice | Tensor, position: Tensor) -> None:
        """Writes one slot of each environment: hidden vectors [B,1,D] and what the layer made of them. column: where,
        one; position: [1]."""
        slots = self.slots
        slots.keys[:, :, column], slots.values[:, :, column] = written.keys, written.values
        if slots.slot_features is not None and written.slot_features is not None:
            slots.slot_features[:, column] = written.slot_features
        slots.position[:, column] = position
        self.hidden[:, column] = hidden

    def tensors(self) -> list[Tensor]:
        """All of them."""
        slots = self.slots
        mine = [slots.keys, slots.values, slots.slot_features, slots.position, self.hidden, self.last_use]
        return [tensor for tensor in mine if tensor is not None]


@dataclass
class TransformerActing:
    """A memory projected under today's weights, with room to act on. The caller owns it; `step` writes into it.

    One that is `static` has tensors whose shapes and addresses stay the same, and all of its slots are looked at in
    every step, so that a step can be captured and replayed. Else a step looks at the slots in use.
    """

    layers: list[LayerBuffers]
    time: Tensor  # [B] clock of the observation that comes next
    span_limit: Tensor  # [B,K]
    kinds: tuple[MemoryKind, ...]
    size: int  # slots of memory, before those of the steps
    horizon: int  # steps that there is room for
    episode: Tensor  # [B] position at which the episode began; BEFORE if before `begin`
    at: Tensor  # [1] position of the observation that comes next,
    now: int = 0  # and the same as a number
    live: Tensor | None = None  # [B,L] memories that the last step saw, itself included; None for a kind without slots
    column: Tensor | None = None  # int64 [1] the slot that the next step writes, where it is static; None elsewhere
    replay: Replay | None = None  # of a step, where it is static

    @property
    def full(self) -> bool:
        """No room for another step: call `begin(acting.memory(), horizon)`."""
        return self.now >= self.horizon

    @property
    def filled(self) -> int:
        """Slots in use."""
        return self.size + self.now

    @property
    def static(self) -> bool:
        return self.column is not None

    def begin_episodes(self, episode_start: Tensor) -> None:
        """Empties the memory of the environments where `episode_start` [B] bool."""
        self.time.masked_fill_(episode_start, 0)
        self.episode.copy_(torch.where(episode_start, self.at, self.episode))

    def slots(self, layer: int, written: Written, hidden: Tensor) -> Slots:
        """The slots of a layer that the present step looks at, its own, of hidden vectors [B,1,D], among them."""
        buffers, column = self.layers[layer], self.column
        if column is not None:
            buffers.put(written, hidden, column, self.at)
            return replace(buffers.slots, unordered=self.size + self.horizon)
        buffers.put(written, hidden, slice(self.filled, self.filled + 1), self.at)
        return buffers.slots.columns(0, self.filled + 1)

    def use(self, layer: int, used: Tensor) -> None:
        """Notes which slots of a layer the present step used, bool [B,C], and that its own is known."""
        last_use, time = self.layers[layer].last_use, self.time[:, None]
        if last_use is not None:
            own = slice(self.filled, self.filled + 1) if self.column is None else self.column
            last_use[:, own] = time
            seen = last_use[:, : used.shape[1]]
            seen.copy_(torch.where(used, time, seen))

    def advance(self) -> None:
        """The present step is over."""
        self.now += 1
        self.at += 1
        self.time += 1
        if self.column is not None:
            self.column += 1

    def changing(self) -> list[Tensor]:
        """What a step changes of a static one, but for slots of later steps, which those write anew."""
        last_uses = [layer.last_use for layer in self.layers if layer.last_use is not None]
        return [self.time, self.episode, self.at, *([] if self.column is None else [self.column]), *last_uses]

    def refill(self, other: TransformerActing) -> bool:
        """Takes the contents of another that has begun, so that what was captured goes on. Returns False, and changes
        nothing, if that has other shapes."""
        mine, theirs = (
            [
                acting.time,
                acting.span_limit,
                *acting.changing(),
                *(t for layer in acting.layers for t in layer.tensors()),
            ]
            for acting in (self, other)
        )
        if [tensor.shape for tensor in mine] != [tensor.shape for tensor in theirs]:
            return False
        for own, new in zip(mine, theirs, strict=True):
            own.copy_(new)
        self.now = other.now
        return True

    def memory(self) -> Memory:
        """What survives, compacted: slots that the next query cannot see are gone for good."""
        layers = tuple(self._compacted(*pair) for pair in zip(self.layers, self.kinds))
        time, span_limit = self.time, self.span_limit
        return Memory(layers, time.clone(), span_limit.clone()) if self.static else Memory(layers, time, span_limit)

    def _compacted(self, layer: LayerBuffers, kind: MemoryKind) -> LayerMemory:
        n = self.filled
        last_use = None if layer.last_use is None else layer.last_use[:, :n]
        slots = layer.slots.columns(0, n)
        return slots.remembered(kind, layer.hidden[:, :n], last_use, self.episode, self.time, self.now)


def ladder(size: int) -> int:
    """The capacity for so many slots: 16, 32, 64, ... Shapes then repeat."""
    return max(SMALLEST, 1 << (size - 1).bit_length())
