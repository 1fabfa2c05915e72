"""What a memory is: the slots of a Transformer's layers, or the hidden state of a recurrent core.

B environments, L layers, S slots of a layer, D model width, K numbers drawn. A slot holds the input of one layer at one
step; its age at a query is the number of steps since then.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class LayerMemory:
    """The slots of one layer, oldest first, padding on the left (`alive` is False there)."""

    hidden: Tensor  # [B,S,D] layer inputs, detached
    birth: Tensor  # [B,S] clock of the environment when the slot was written
    alive: Tensor  # [B,S] bool
    last_use: Tensor | None = (
        None  # [B,S] clock at which attention last used the slot, -1 if not known; None: not asked
    )

    def rows(self, indices: Tensor) -> LayerMemory:
        """The chosen environments, trimmed to the oldest live slot among them: dead ones may lie between live ones. On a
        GPU nothing is trimmed, since to ask where would be to wait for it."""
        first = 0 if self.alive.is_cuda else _first_live(self.alive[indices])
        return self._each(lambda tensor: tensor[indices, first:])

    def trimmed(self) -> LayerMemory:
        """Views of the same without the columns before the oldest live slot."""
        first = _first_live(self.alive)
        return self._each(lambda tensor: tensor[:, first:])

    def _each(self, change: Callable[[Tensor], Tensor]) -> LayerMemory:
        """The same with every tensor changed."""
        last_use = None if self.last_use is None else change(self.last_use)
        return LayerMemory(change(self.hidden), change(self.birth), change(self.alive), last_use)

    def padded(self, size: int) -> LayerMemory:
        """The same with `size` slots, dead ones zeroed (0 * NaN is NaN, so they must not be multiplied)."""
        missing = size - self.hidden.shape[1]
        hidden = torch.where(self.alive[..., None], self.hidden, 0)
        return LayerMemory(
            F.pad(hidden, (0, 0, missing, 0)),
            F.pad(self.birth, (missing, 0)),
            F.pad(self.alive, (missing, 0)),
            None if self.last_use is None else F.pad(self.last_use, (missing, 0)),
        )


def _first_live(alive: Tensor) -> int:
    """The first column of [B,S] with a live slot; S if there is none."""
    columns = torch.nonzero(alive.any(0))
    return int(columns[0]) if len(columns) else alive.shape[1]


@dataclass(frozen=True)
class Memory:
    """The memory of B environments between two rollouts. Opaque to agents: use the methods."""

    layers: tuple[LayerMemory, ...]
    time: Tensor  # [B] clock: steps since the episode began, of the observation that comes next
    span_limit: Tensor  # [B,K] what the kind drew at random for this rollout (K = 0 for most)
    state: Tensor | None = None  # [B,L,D] hidden state of a recurrent core, which has no slots

    def rows(self, indices: Tensor) -> Memory:
        """The memories of the chosen environments. indices: [b] int64."""
        state = None if self.state is None else self.state[indices]
        layers = tuple(layer.rows(indices) for layer in self.layers)
        return Memory(layers, self.time[indices], self.span_limit[indices], state)

    def live(self) -> Tensor | None:
        """[B,L]: memories that the next query will see, itself not counted; None for a kind without slots."""
        return torch.stack([layer.alive.sum(1) for layer in self.layers], 1) if self.layers else None

    def bytes(self) -> Tensor:
        """[B]: bytes that each environment's live memories, or its hidden state, take (padding is not counted)."""
        total = torch.zeros_like(self.time, dtype=torch.int64)
        for layer, size in zip(self.layers, self.slot_bytes(), strict=True):
            total += layer.alive.sum(1) * size
        if self.state is not None:
            total += self.state[0].numel() * self.state.element_size()
        return total

    def slot_bytes(self) -> list[int]:
        """By layer: what one memory takes, its hidden vector, its birth, its last use if it is kept, and that it
        lives."""
        return [
            layer.hidden.shape[2] * layer.hidden.element_size()
            + layer.birth.element_size()
            + (0 if layer.last_use is None else layer.last_use.element_size())
            + 1
            for layer in self.layers
        ]

    def oldest(self) -> Tensor:
        """[B]: age of the oldest live memory at the next query, 0 if there is none; of a hidden state, all steps so
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
    def joined(cls, parts: Sequence[Memory], rows: Sequence[Tensor]) -> Memory:
        """One memory from those of disjoint sets of environments, int64 [b] each, which are all environments together."""
        back = torch.argsort(torch.cat(list(rows)))

        def whole(tensors: Sequence[Tensor]) -> Tensor:
            return torch.cat(list(tensors))[back]

        layers = []
        for held in zip(*(part.layers for part in parts)):
            size = max(layer.hidden.shape[1] for layer in held)
            wide = [layer.padded(size) for layer in held]
            hidden, birth, alive = (whole([getattr(m, name) for m in wide]) for name in ("hidden", "birth", "alive"))
            last_uses = [layer.last_use for layer in wide if layer.last_use is not None]
            layers.append(LayerMemory(hidden, birth, alive, whole(last_uses) if last_uses else None))
        states = [part.state for part in parts if part.state is not None]
        time, span_limit = whole([part.time for part in parts]), whole([part.span_limit for part in parts])
        return cls(tuple(layers), time, span_limit, whole(states) if states else None)

    def drift(self, other: Memory, within: int) -> float:
        """How far the hidden vectors of another computation of the same memory lie from these: the mean of |h' - h| /
        |h| over the memories that both have and that are at most `within` steps old. NaN if there are none."""
        pairs = []
        for mine, theirs in zip(self.layers, other.layers):
            (ours, keys), (others, other_keys) = (_keyed(layer, self.time, within) for layer in (mine, theirs))
            place = torch.searchsorted(other_keys, keys).clamp(max=max(len(other_keys) - 1, 0))
            if len(other_keys):
                both = other_keys[place] == keys
                pairs.append((ours[both], others[place[both]]))
        if self.state is not None and other.state is not None:
            begun = self.time > 0
            pairs.append((self.state[begun].flatten(1), other.state[begun].flatten(1)))
        moved = [(b - a).norm(dim=-1) / a.norm(dim=-1).clamp(min=1e-8) for a, b in pairs]
        return float(torch.cat(moved).mean()) if moved else math.nan

    def with_span_limit_of(self, other: Memory) -> Memory:
        """The same memory with what the kind drew for `other`."""
        return replace(self, span_limit=other.span_limit)

    def packed(self) -> dict[str, Tensor]:
        """`to_tensors` without the padding: of each layer only the live memories, [N,D] and [N], and how many of them
        each environment has, [B]. `from_tensors` reads these too."""
        out = {name: tensor for name, tensor in self.to_tensors().items() if "/" not in name}
        for i, layer in enumerate(self.layers):
            count = layer.alive.sum(1)
            out |= {
                f"{i}/hidden": layer.hidden[layer.alive],
                f"{i}/birth": layer.birth[layer.alive],
                f"{i}/count": count,
            }
            if layer.last_use is not None:
                out[f"{i}/last_use"] = layer.last_use[layer.alive]
        return out

    def to_tensors(self) -> dict[str, Tensor]:
        """Named tensors for a file; `from_tensors` reads them."""
        out = {"time": self.time, "drawn": self.span_limit} | ({} if self.state is None else {"state": self.state})
        for i, layer in enumerate(self.layers):
            out |= {f"{i}/hidden": layer.hidden, f"{i}/birth": layer.birth, f"{i}/alive": layer.alive}
            if layer.last_use is not None:
                out[f"{i}/last_use"] = layer.last_use
        return out

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Memory:
        """What `to_tensors` or `packed` gave."""
        layers = []
        for i in range(sum(name.endswith("/hidden") for name in tensors)):
            hidden, birth, last_use = tensors[f"{i}/hidden"], tensors[f"{i}/birth"], tensors.get(f"{i}/last_use")
            if (count := tensors.get(f"{i}/count")) is None:
                layers.append(LayerMemory(hidden, birth, tensors[f"{i}/alive"], last_use))
            else:
                layers.append(_spread(hidden, birth, count, last_use))
        return cls(tuple(layers), tensors["time"], tensors["drawn"], tensors.get("state"))

    def remove_slots(self, layer: int, slots: Tensor) -> Memory:
        """The same memory with `slots` [B,S] (bool) of one layer removed."""
        layers = list(self.layers)
        layers[layer] = replace(layers[layer], alive=layers[layer].alive & ~slots)
        return replace(self, layers=tuple(layers))

    def replace_slots(self, layer: int, slots: Tensor, hidden: Tensor) -> Memory:
        """The same memory with the hidden vectors of `slots` [B,S] (bool) of one layer exchanged for `hidden`
        [B,S,D]."""
        layers = list(self.layers)
        new = torch.where(slots[..., None], hidden, layers[layer].hidden)
        layers[layer] = replace(layers[layer], hidden=new)
        return replace(self, layers=tuple(layers))


def _spread(hidden: Tensor, birth: Tensor, count: Tensor, last_use: Tensor | None) -> LayerMemory:
    """Slots [B,S] of live memories [N,D], [N] and [N], of which the environments have `count` [B] each; S is the largest."""
    size = int(count.max())
    alive = torch.arange(size, device=count.device) >= size - count[:, None]  # [B,S], padding on the left
    slots = hidden.new_zeros(*alive.shape, hidden.shape[1])
    births = birth.new_zeros(alive.shape)
    slots[alive], births[alive] = hidden, birth
    last_uses = None
    if last_use is not None:
        last_uses = last_use.new_zeros(alive.shape)
        last_uses[alive] = last_use
    return LayerMemory(slots, births, alive, last_uses)


def _keyed(layer: LayerMemory, time: Tensor, within: int) -> tuple[Tensor, Tensor]:
    """Hidden vectors [N,D] of the live memories at most `within` steps old, and a number [N] for each, rising, that no
    other memory of the layer has."""
    young = layer.alive & (time[:, None] - layer.birth <= within)
    row = torch.arange(len(time), device=time.device)[:, None]
    return layer.hidden[young], (row * 2**32 + layer.birth)[young]


def hidden_state(memory: Memory) -> Tensor:
    """The hidden state [B,L,D] of a recurrent core's memory. Raises ValueError for one of another core."""
    if memory.state is None:
        raise ValueError("memory: expected a hidden state, got slots")
    return memory.state
