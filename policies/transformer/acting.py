"""A memory laid out to act on.

B environments, C slots, D model width, H heads, L layers, K random numbers of a rollout.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from expire_span_rl.policies.memory.kind import MemoryKind
from expire_span_rl.policies.memory.state import USES, LayerMemory, Memory, known_need
from expire_span_rl.policies.replay import Replay
from expire_span_rl.policies.transformer.layer import Layer
from expire_span_rl.policies.transformer.slots import GONE, Projection, Slots

MIN_CAPACITY = 16  # slots of static buffers


@dataclass
class LayerBuffers:
    """One layer while acting: C = S + horizon slots, oldest first. Slots that were never written are GONE. Position 0
    is the step after `begin`."""

    slots: Slots
    hidden: Tensor  # [B,C,D]
    uses: dict[str, Tensor]  # what is tracked of the slots' uses, [B,C] each, as in `LayerMemory`

    @classmethod
    def begin(cls, layer: Layer, layer_memory: LayerMemory, memory: Memory, size: int, horizon: int) -> LayerBuffers:
        """Puts `layer_memory`, the layer's part of `memory`, into the last of `size` slots. `horizon` more follow."""
        layer_memory = layer_memory.padded(size)
        hidden = layer_memory.hidden
        projection = layer.write(hidden, memory.noise, layer_memory.known_need)
        position = (layer_memory.birth - memory.time[:, None]).to(hidden.dtype)
        position = position.masked_fill(~layer_memory.alive, GONE)

        def extend(tensor: Tensor, dim: int = 1, value: float = 0.0) -> Tensor:
            shape = list(tensor.shape)
            shape[dim] = horizon
            return torch.cat([tensor, tensor.new_full(shape, value)], dim)

        slots = Slots(
            keys=extend(projection.keys, 2),
            values=extend(projection.values, 2),
            slot_features=None if projection.slot_features is None else extend(projection.slot_features),
            position=extend(position, value=GONE),
        )
        return cls(slots, extend(hidden), {name: extend(tensor) for name, tensor in layer_memory.uses().items()})

    def put(self, projection: Projection, hidden: Tensor, column: slice | Tensor, position: Tensor) -> None:
        """Writes one slot of each environment: hidden vectors [B,1,D] and the layer's projection of them. column: the
        slot's place, one; position: [1]."""
        slots = self.slots
        slots.keys[:, :, column] = projection.keys
        slots.values[:, :, column] = projection.values
        if slots.slot_features is not None and projection.slot_features is not None:
            slots.slot_features[:, column] = projection.slot_features
        slots.position[:, column] = position
        self.hidden[:, column] = hidden

    def tensors(self) -> list[Tensor]:
        """All buffers of the layer."""
        slots = self.slots
        features = [] if slots.slot_features is None else [slots.slot_features]
        return [slots.keys, slots.values, *features, slots.position, self.hidden, *self.uses.values()]

    def renew(self, layer: Layer, acting: TransformerActing, is_due: Tensor) -> None:
        """Computes the slot features of the environments where `is_due` [B] is set again, from what was used until now.
        Slots that the next query cannot see stay as they are, so that they never come back."""
        rows = slice(None) if acting.static else torch.nonzero(is_due).squeeze(1)
        columns = slice(None) if acting.static else slice(acting.num_slots)
        features, position = self.slots.slot_features, self.slots.position[rows, columns]
        if features is None:
            return
        last_use, old_need = (self.uses[name][rows, columns] for name in USES)
        old_features = features[rows, columns]
        age = acting.query_position - position
        survives = layer.kind.survives(age, old_features, position >= acting.episode_begin[rows, None])
        changes = is_due[rows, None] & survives
        birth = self.slots.birth(acting.time, acting.query_position)[rows, columns].to(last_use.dtype)
        need = torch.where(changes, known_need(last_use, birth), old_need)
        new_features = layer.describe(layer.norm(self.hidden[rows, columns]), acting.noise[rows], need)
        assert new_features is not None
        self.uses["known_need"][rows, columns] = need
        features[rows, columns] = torch.where(changes, new_features, old_features)


@dataclass
class TransformerActing:
    """A memory projected under today's weights, with room to act on. The caller owns it; `step` writes into it.

    A `static` one has tensors whose shapes and addresses stay the same, and every step looks at all slots. A step can
    then be captured and replayed. Otherwise a step looks at the slots in use only.
    """

    layers: list[LayerBuffers]
    time: Tensor  # [B] clock of the observation that comes next
    noise: Tensor  # [B,K]
    kinds: tuple[MemoryKind, ...]
    size: int  # slots of memory, before those of the steps
    horizon: int  # steps that there is room for
    renew_every: int  # steps of the clock between two renewals of slot features; 0: none on the way
    episode_begin: Tensor  # [B] position at which the episode began; BEFORE_START if that was before `begin`
    query_position: Tensor  # [1] position of the observation that comes next
    steps_taken: int = 0  # the same as a number
    live: Tensor | None = None  # [B,L] memories that the last step saw, itself included; None for a kind without slots
    column: Tensor | None = None  # int64 [1] slot that the next step writes, if static; None otherwise
    replay: Replay | None = None  # of a step, if static

    @property
    def full(self) -> bool:
        """No room for another step: call `begin(acting.memory(), horizon)`."""
        return self.steps_taken >= self.horizon

    @property
    def num_slots(self) -> int:
        """Slots in use."""
        return self.size + self.steps_taken

    @property
    def static(self) -> bool:
        return self.column is not None

    def begin_episodes(self, episode_start: Tensor) -> None:
        """Empties the memory of the environments where `episode_start` [B] bool is set."""
        self.time.masked_fill_(episode_start, 0)
        self.episode_begin.copy_(torch.where(episode_start, self.query_position, self.episode_begin))

    def write_slots(self, layer: int, projection: Projection, hidden: Tensor) -> Slots:
        """Writes the present step's slot, of hidden vectors [B,1,D], and gives the slots that the step looks at."""
        buffers = self.layers[layer]
        column = self.column
        if column is not None:
            buffers.put(projection, hidden, column, self.query_position)
            return replace(buffers.slots, num_unordered=self.size + self.horizon)
        buffers.put(projection, hidden, slice(self.num_slots, self.num_slots + 1), self.query_position)
        return buffers.slots.columns(0, self.num_slots + 1)

    def record_use(self, layer: int, is_used: Tensor) -> None:
        """Records which slots of a layer the present step used, bool [B,C]. Its own slot counts as used now."""
        last_use = self.layers[layer].uses.get("last_use")
        time = self.time[:, None]
        if last_use is not None:
            column = slice(self.num_slots, self.num_slots + 1) if self.column is None else self.column
            last_use[:, column] = time
            looked_at = last_use[:, : is_used.shape[1]]
            looked_at.copy_(torch.where(is_used, time, looked_at))

    def advance(self) -> None:
        """Ends the present step."""
        self.steps_taken += 1
        self.query_position += 1
        self.time += 1
        if self.column is not None:
            self.column += 1

    def step_state(self) -> list[Tensor]:
        """What a step changes of a static one. Slots of later steps are left out: those steps write them anew."""
        column = [] if self.column is None else [self.column]
        changed = [tensor for layer in self.layers for tensor in layer.uses.values()]
        if self.renew_every:
            features = [layer.slots.slot_features for layer in self.layers]
            changed += [tensor for tensor in features if tensor is not None]
        return [self.time, self.episode_begin, self.query_position, *column, *changed]

    def _tensors(self) -> list[Tensor]:
        """All tensors that `refill` copies."""
        buffers = [tensor for layer in self.layers for tensor in layer.tensors()]
        return [self.time, self.noise, *self.step_state(), *buffers]

    def refill(self, source: TransformerActing) -> bool:
        """Takes the contents of `source`, which has just begun, so that the captured step stays valid. Returns False,
        and changes nothing, if the shapes of `source` differ, or when it renews slot features."""
        targets, sources = self._tensors(), source._tensors()
        if self.renew_every != source.renew_every:
            return False
        if [tensor.shape for tensor in targets] != [tensor.shape for tensor in sources]:
            return False
        for target, tensor in zip(targets, sources, strict=True):
            target.copy_(tensor)
        self.steps_taken = source.steps_taken
        return True

    def memory(self) -> Memory:
        """What survives, compacted. Slots that the next query cannot see are removed for good."""
        layers = tuple(self._compact(buffers, kind) for buffers, kind in zip(self.layers, self.kinds, strict=False))
        return Memory(layers, self.time.clone(), self.noise.clone())

    def _compact(self, buffers: LayerBuffers, kind: MemoryKind) -> LayerMemory:
        size = self.num_slots
        return buffers.slots.columns(0, size).compact(
            kind,
            buffers.hidden[:, :size],
            {name: tensor[:, :size] for name, tensor in buffers.uses.items()},
            episode_begin=self.episode_begin,
            time=self.time,
            query_position=self.steps_taken,
        )


def ladder(size: int) -> int:
    """The capacity for so many slots: 16, 32, 64, ... Shapes then repeat."""
    return max(MIN_CAPACITY, 1 << (size - 1).bit_length())
