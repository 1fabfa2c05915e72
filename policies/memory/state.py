"""What a memory is: the slots of a Transformer's layers, or the hidden state of a recurrent core.

B environments, L layers, S slots of a layer, D model width, K random numbers of a rollout, N live memories. A slot
holds the input of one layer at one step. Its age at a query is the number of steps since then.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

USES = ("last_use", "known_need")
"""Fields of a layer's memory that are None unless uses are tracked."""


def known_need(last_use: Tensor, birth: Tensor) -> Tensor:
    """[B,C] age of each slot at its last use, 0 if that is unknown. last_use, birth: [B,C] clocks."""
    return torch.where(last_use >= 0, (last_use - birth).clamp(min=0), 0)


def elapsed_steps(time: Tensor, episode_start: Tensor) -> Tensor:
    """Steps since the episode began: int64 [T,B].

    time: [B] those of the first step if its episode goes on; episode_start: [T,B] bool."""
    steps = torch.arange(len(episode_start), device=time.device)[:, None]
    begin = torch.where(episode_start, steps, -1).cummax(0).values  # [T,B], -1 before the rollout
    return torch.where(begin >= 0, steps - begin, steps + time)


@dataclass(frozen=True)
class LayerMemory:
    """The slots of one layer, oldest first, padding on the left (`alive` is False there)."""

    hidden: Tensor  # [B,S,D] layer inputs, detached
    birth: Tensor  # [B,S] clock of the environment when the slot was written
    alive: Tensor  # [B,S] bool
    last_use: Tensor | None = None
    """[B,S] clock at which attention last used the slot, -1 if unknown; None if it is not tracked."""
    known_need: Tensor | None = None
    """[B,S] age at which the slot was last used before its span was renewed, 0 if it never was; None if spans are not
    renewed."""

    def rows(self, indices: Tensor) -> LayerMemory:
        """The chosen environments, trimmed to the oldest live slot among them. Dead slots may lie between live ones.

        On a GPU nothing is trimmed: asking where the oldest live slot is would mean waiting for the device.
        """
        start = 0 if self.alive.is_cuda else _oldest_live(self.alive[indices])
        return self._map(lambda tensor: tensor[indices, start:])

    def trimmed(self) -> LayerMemory:
        """Views without the columns before the oldest live slot."""
        start = _oldest_live(self.alive)
        return self._map(lambda tensor: tensor[:, start:])

    def _map(self, change: Callable[[Tensor], Tensor]) -> LayerMemory:
        """A layer memory with every tensor changed."""
        uses = {name: change(tensor) for name, tensor in self.uses().items()}
        return LayerMemory(change(self.hidden), change(self.birth), change(self.alive), **uses)

    def uses(self) -> dict[str, Tensor]:
        """What is tracked of the slots' uses, [B,S] each, by name."""
        tensors = {name: getattr(self, name) for name in USES}
        return {name: tensor for name, tensor in tensors.items() if tensor is not None}

    def tracked(self) -> LayerMemory:
        """The same slots. Uses are tracked from now on if they were not before."""
        return self if self.last_use is not None else replace(self, last_use=torch.full_like(self.birth, -1))

    def renewed(self) -> LayerMemory:
        """The same slots, whose spans count from their last use. Uses must be tracked."""
        assert self.last_use is not None
        return replace(self, known_need=known_need(self.last_use, self.birth))

    def padded(self, size: int) -> LayerMemory:
        """The same memories in `size` slots. Dead slots are zeroed, since 0 * NaN would be NaN."""
        missing = size - self.hidden.shape[1]
        hidden = torch.where(self.alive[..., None], self.hidden, 0)
        return LayerMemory(
            F.pad(hidden, (0, 0, missing, 0)),
            F.pad(self.birth, (missing, 0)),
            F.pad(self.alive, (missing, 0)),
            **{name: F.pad(tensor, (missing, 0)) for name, tensor in self.uses().items()},
        )


def _oldest_live(alive: Tensor) -> int:
    """The first column of [B,S] with a live slot; S if there is none."""
    columns = torch.nonzero(alive.any(0))
    return int(columns[0]) if len(columns) else alive.shape[1]


@dataclass(frozen=True)
class Memory:
    """The memory of B environments between two rollouts. Opaque to agents: use the methods."""

    layers: tuple[LayerMemory, ...]
    time: Tensor  # [B] clock: steps since the episode began, of the observation that comes next
    noise: Tensor  # [B,K] random numbers of this rollout (`Transformer.draw`); K is 0 outside of training
    state: Tensor | None = None  # [B,L,D] hidden state of a recurrent core, which has no slots

    def rows(self, indices: Tensor) -> Memory:
        """The memories of the chosen environments. indices: [b] int64."""
        state = None if self.state is None else self.state[indices]
        layers = tuple(layer.rows(indices) for layer in self.layers)
        return Memory(layers, self.time[indices], self.noise[indices], state)

    def live(self) -> Tensor | None:
        """[B,L]: number of memories that the next query sees, itself not counted; None for a kind without slots."""
        return torch.stack([layer.alive.sum(1) for layer in self.layers], 1) if self.layers else None

    def bytes(self) -> Tensor:
        """[B]: bytes of each environment's live memories or hidden state. Padding is not counted."""
        total = torch.zeros_like(self.time, dtype=torch.int64)
        for layer, size in zip(self.layers, self.slot_bytes(), strict=True):
            total += layer.alive.sum(1) * size
        if self.state is not None:
            total += self.state[0].numel() * self.state.element_size()
        return total

    def slot_bytes(self) -> list[int]:
        """By layer: bytes of one memory. It has a hidden vector, a birth, what is tracked of its uses, and one byte for
        `alive`."""
        return [
            layer.hidden.shape[2] * layer.hidden.element_size()
            + layer.birth.element_size()
            + sum(tensor.element_size() for tensor in layer.uses().values())
            + 1
            for layer in self.layers
        ]

    def oldest(self) -> Tensor:
        """[B]: age of the oldest live memory at the next query, 0 if there is none. For a hidden state: all steps so
        far."""
        if self.state is not None:
            return self.time
        oldest = torch.zeros_like(self.time)
        for layer in self.layers:
            if layer.birth.shape[1]:
                age = (self.time[:, None] - layer.birth).masked_fill(~layer.alive, 0)
                oldest = torch.maximum(oldest, age.amax(1))
        return oldest

    @classmethod
    def join(cls, parts: Sequence[Memory], rows: Sequence[Tensor]) -> Memory:
        """One memory from those of disjoint sets of environments. rows: int64 [b] each; together all environments."""
        order = torch.argsort(torch.cat(list(rows)))

        def concatenate(tensors: Sequence[Tensor]) -> Tensor:
            return torch.cat(list(tensors))[order]

        layers = []
        for layer_parts in zip(*(part.layers for part in parts), strict=True):
            size = max(layer.hidden.shape[1] for layer in layer_parts)
            padded = [layer.padded(size) for layer in layer_parts]
            uses = [layer.uses() for layer in padded]
            layers.append(
                LayerMemory(
                    hidden=concatenate([layer.hidden for layer in padded]),
                    birth=concatenate([layer.birth for layer in padded]),
                    alive=concatenate([layer.alive for layer in padded]),
                    **{name: concatenate([layer_uses[name] for layer_uses in uses]) for name in uses[0]},
                )
            )
        states = [part.state for part in parts if part.state is not None]
        return cls(
            layers=tuple(layers),
            time=concatenate([part.time for part in parts]),
            noise=concatenate([part.noise for part in parts]),
            state=concatenate(states) if states else None,
        )

    def drift(self, recomputed: Memory, within: int) -> float:
        """How far the hidden vectors h' of another computation of the same memory lie from these, h: the mean of
        |h' - h| / |h| over the memories of both that are at most `within` steps old. NaN if there are none."""
        pairs = []
        for layer, recomputed_layer in zip(self.layers, recomputed.layers, strict=True):
            hidden, keys = _recent_memories(layer, self.time, within)
            recomputed_hidden, recomputed_keys = _recent_memories(recomputed_layer, self.time, within)
            if len(recomputed_keys):
                place = torch.searchsorted(recomputed_keys, keys).clamp(max=len(recomputed_keys) - 1)
                in_both = recomputed_keys[place] == keys
                pairs.append((hidden[in_both], recomputed_hidden[place[in_both]]))
        if self.state is not None and recomputed.state is not None:
            has_begun = self.time > 0
            pairs.append((self.state[has_begun].flatten(1), recomputed.state[has_begun].flatten(1)))
        drifts = [(after - before).norm(dim=-1) / before.norm(dim=-1).clamp(min=1e-8) for before, after in pairs]
        return float(torch.cat(drifts).mean()) if drifts else math.nan

    def with_noise_of(self, source: Memory) -> Memory:
        """The same memory with the noise of `source`, a memory of the same environments at the same step, and with its
        clock, which may have been moved."""
        return replace(self, noise=source.noise, time=source.time)

    def renewed(self) -> Memory:
        """The same memories at the start of a training rollout: spans that are renewed count from the last use."""
        layers = [layer if layer.known_need is None else layer.renewed() for layer in self.layers]
        return replace(self, layers=tuple(layers))

    def packed(self) -> dict[str, Tensor]:
        """`to_tensors` without the padding: the live memories of each layer, [N,D] and [N], and each environment's
        number of them, [B]. `from_tensors` reads these too."""
        out = {name: tensor for name, tensor in self.to_tensors().items() if "/" not in name}
        for i, layer in enumerate(self.layers):
            out |= {
                f"{i}/hidden": layer.hidden[layer.alive],
                f"{i}/birth": layer.birth[layer.alive],
                f"{i}/count": layer.alive.sum(1),
            }
            out |= {f"{i}/{name}": tensor[layer.alive] for name, tensor in layer.uses().items()}
        return out

    def to_tensors(self) -> dict[str, Tensor]:
        """Named tensors for a file; `from_tensors` reads them."""
        out = {"time": self.time, "noise": self.noise}
        if self.state is not None:
            out["state"] = self.state
        for i, layer in enumerate(self.layers):
            out |= {f"{i}/hidden": layer.hidden, f"{i}/birth": layer.birth, f"{i}/alive": layer.alive}
            out |= {f"{i}/{name}": tensor for name, tensor in layer.uses().items()}
        return out

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Memory:
        """The memory whose `to_tensors` or `packed` gave `tensors`."""
        noise = tensors["noise"] if "noise" in tensors else tensors["drawn"]  # its name until 30 November 2026
        layers = []
        for i in range(sum(name.endswith("/hidden") for name in tensors)):
            hidden, birth = tensors[f"{i}/hidden"], tensors[f"{i}/birth"]
            count = tensors.get(f"{i}/count")
            uses = {name: tensors[f"{i}/{name}"] for name in USES if f"{i}/{name}" in tensors}
            if count is None:
                layers.append(LayerMemory(hidden, birth, tensors[f"{i}/alive"], **uses))
            else:
                layers.append(_unpack(hidden, birth, count, uses))
        return cls(tuple(layers), tensors["time"], noise, tensors.get("state"))

    def remove_slots(self, layer: int, slots: Tensor) -> Memory:
        """The same memory with `slots` [B,S] (bool) of one layer removed."""
        layers = list(self.layers)
        layers[layer] = replace(layers[layer], alive=layers[layer].alive & ~slots)
        return replace(self, layers=tuple(layers))

    def replace_slots(self, layer: int, slots: Tensor, hidden: Tensor) -> Memory:
        """The same memory with the hidden vectors of `slots` [B,S] (bool) of one layer replaced by those of `hidden`
        [B,S,D]."""
        layers = list(self.layers)
        layers[layer] = replace(layers[layer], hidden=torch.where(slots[..., None], hidden, layers[layer].hidden))
        return replace(self, layers=tuple(layers))


def _unpack(hidden: Tensor, birth: Tensor, count: Tensor, uses: Mapping[str, Tensor]) -> LayerMemory:
    """Slots [B,S] of live memories [N,D], [N], and what is tracked of their uses, [N] each. count: [B], each
    environment's number of them; S is the largest."""
    size = int(count.max())
    alive = torch.arange(size, device=count.device) >= size - count[:, None]  # [B,S], padding on the left
    slots = hidden.new_zeros(*alive.shape, hidden.shape[1])
    births = birth.new_zeros(alive.shape)
    slots[alive] = hidden
    births[alive] = birth
    columns = {name: tensor.new_zeros(alive.shape) for name, tensor in uses.items()}
    for name, tensor in uses.items():
        columns[name][alive] = tensor
    return LayerMemory(slots, births, alive, **columns)


def _recent_memories(layer: LayerMemory, time: Tensor, within: int) -> tuple[Tensor, Tensor]:
    """Hidden vectors [N,D] of the live memories at most `within` steps old, and a key [N] of each. Keys are unique in
    the layer, and they rise."""
    recent = layer.alive & (time[:, None] - layer.birth <= within)
    row = torch.arange(len(time), device=time.device)[:, None]
    return layer.hidden[recent], (row * 2**32 + layer.birth)[recent]


def hidden_state(memory: Memory) -> Tensor:
    """The hidden state [B,L,D] of a recurrent core's memory. Raises ValueError for one of another core."""
    if memory.state is None:
        raise ValueError("memory: expected a hidden state, got slots")
    return memory.state
