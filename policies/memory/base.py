"""What a memory is, and the three questions that a memory kind answers.

B environments, L layers, S slots of a layer, N query steps, C slots that a query may look at, D model width, H heads.
A slot holds the input of one layer at one step; its age at a query is the number of steps since then.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expire_span_rl.policies.settings import TransformerConfig


@dataclass(frozen=True)
class LayerMemory:
    """The slots of one layer, oldest first, padding on the left (`alive` is False there)."""

    hidden: Tensor  # [B,S,D] layer inputs, detached
    birth: Tensor  # [B,S] clock of the environment when the slot was written
    alive: Tensor  # [B,S] bool

    def rows(self, indices: Tensor) -> LayerMemory:
        """The chosen environments, trimmed to the oldest live slot among them: dead ones may lie between live ones."""
        alive = self.alive[indices]
        first = _first_live(alive)
        return LayerMemory(self.hidden[indices, first:], self.birth[indices, first:], alive[:, first:])

    def trimmed(self) -> LayerMemory:
        """Views of the same without the columns before the oldest live slot."""
        first = _first_live(self.alive)
        return LayerMemory(self.hidden[:, first:], self.birth[:, first:], self.alive[:, first:])

    def padded(self, size: int) -> LayerMemory:
        """The same with `size` slots, dead ones zeroed (0 * NaN is NaN, so they must not be multiplied)."""
        missing = size - self.hidden.shape[1]
        hidden = torch.where(self.alive[..., None], self.hidden, 0)
        return LayerMemory(
            F.pad(hidden, (0, 0, missing, 0)), F.pad(self.birth, (missing, 0)), F.pad(self.alive, (missing, 0))
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
    drawn: Tensor  # [B,K] what the kind drew at random for this rollout (K = 0 for most)
    state: Tensor | None = None  # [B,L,D] hidden state of a recurrent core, which has no slots

    def rows(self, indices: Tensor) -> Memory:
        """The memories of the chosen environments. indices: [b] int64."""
        state = None if self.state is None else self.state[indices]
        layers = tuple(layer.rows(indices) for layer in self.layers)
        return Memory(layers, self.time[indices], self.drawn[indices], state)

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
        """By layer: what one memory takes, its hidden vector, its birth and that it lives."""
        return [x.hidden.shape[2] * x.hidden.element_size() + x.birth.element_size() + 1 for x in self.layers]

    def oldest(self) -> Tensor:
        """[B]: age of the oldest live memory at the next query, 0 if there is none; of a hidden state, all steps so far."""
        if self.state is not None:
            return self.time
        oldest = torch.zeros_like(self.time)
        for layer in self.layers:
            if layer.birth.shape[1]:
                age = (self.time[:, None] - layer.birth).masked_fill(~layer.alive, 0)
                oldest = torch.maximum(oldest, age.amax(1))
        return oldest

    def drift(self, other: Memory, within: int) -> float:
        """How far the hidden vectors of another computation of the same memory lie from these: the mean of |h' - h| / |h|
        over the memories that both have and that are at most `within` steps old. NaN if there are none."""
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

    def drawn_as(self, other: Memory) -> Memory:
        """The same memory with what the kind drew for `other`."""
        return replace(self, drawn=other.drawn)

    def packed(self) -> dict[str, Tensor]:
        """`to_tensors` without the padding: of each layer only the live memories, [N,D] and [N], and how many of them each
        environment has, [B]. `from_tensors` reads these too."""
        out = {name: tensor for name, tensor in self.to_tensors().items() if "/" not in name}
        for i, layer in enumerate(self.layers):
            count = layer.alive.sum(1)
            out |= {
                f"{i}/hidden": layer.hidden[layer.alive],
                f"{i}/birth": layer.birth[layer.alive],
                f"{i}/count": count,
            }
        return out

    def to_tensors(self) -> dict[str, Tensor]:
        """Named tensors for a file; `from_tensors` reads them."""
        out = {"time": self.time, "drawn": self.drawn} | ({} if self.state is None else {"state": self.state})
        for i, layer in enumerate(self.layers):
            out |= {f"{i}/hidden": layer.hidden, f"{i}/birth": layer.birth, f"{i}/alive": layer.alive}
        return out

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Memory:
        """What `to_tensors` or `packed` gave."""
        layers = []
        for i in range(sum(name.endswith("/hidden") for name in tensors)):
            hidden, birth = tensors[f"{i}/hidden"], tensors[f"{i}/birth"]
            if (count := tensors.get(f"{i}/count")) is None:
                layers.append(LayerMemory(hidden, birth, tensors[f"{i}/alive"]))
            else:
                layers.append(_spread(hidden, birth, count))
        return cls(tuple(layers), tensors["time"], tensors["drawn"], tensors.get("state"))

    def without(self, layer: int, slots: Tensor) -> Memory:
        """The same memory with `slots` [B,S] (bool) of one layer removed."""
        layers = list(self.layers)
        layers[layer] = replace(layers[layer], alive=layers[layer].alive & ~slots)
        return replace(self, layers=tuple(layers))

    def replaced(self, layer: int, slots: Tensor, hidden: Tensor) -> Memory:
        """The same memory with the hidden vectors of `slots` [B,S] (bool) of one layer exchanged for `hidden` [B,S,D]."""
        layers = list(self.layers)
        new = torch.where(slots[..., None], hidden, layers[layer].hidden)
        layers[layer] = replace(layers[layer], hidden=new)
        return replace(self, layers=tuple(layers))


def _spread(hidden: Tensor, birth: Tensor, count: Tensor) -> LayerMemory:
    """Slots [B,S] of live memories [N,D] and [N], of which the environments have `count` [B] each; S is the largest."""
    size = int(count.max())
    alive = torch.arange(size, device=count.device) >= size - count[:, None]  # [B,S], padding on the left
    slots = hidden.new_zeros(*alive.shape, hidden.shape[1])
    births = birth.new_zeros(alive.shape)
    slots[alive], births[alive] = hidden, birth
    return LayerMemory(slots, births, alive)


def _keyed(layer: LayerMemory, time: Tensor, within: int) -> tuple[Tensor, Tensor]:
    """Hidden vectors [N,D] of the live memories at most `within` steps old, and a number [N] for each, rising, that no
    other memory of the layer has."""
    young = layer.alive & (time[:, None] - layer.birth <= within)
    row = torch.arange(len(time), device=time.device)[:, None]
    return layer.hidden[young], (row * 2**32 + layer.birth)[young]


@dataclass(frozen=True)
class Merging:
    """Blocks of `size` slots, counted from the start of the episode, become one slot each, which is what a query sees instead
    of its members from `delay` + 1 steps after the last of them on."""

    size: int
    delay: int

    def clock(self, birth: Tensor) -> Tensor:
        """Clock of the first query that sees no longer a slot born at `birth` but what its block became."""
        return (torch.div(birth, self.size, rounding_mode="floor") + 1) * self.size + self.delay

    def due(self, clock: Tensor) -> Tensor:
        """Is a query at this clock the first that sees a merged slot?"""
        return (clock >= self.size + self.delay) & ((clock - self.delay) % self.size == 0)


def hidden_state(memory: Memory) -> Tensor:
    """The hidden state [B,L,D] of a recurrent core's memory. Raises ValueError for one of another core."""
    if memory.state is None:
        raise ValueError("memory: expected a hidden state, got slots")
    return memory.state


class MemoryKind(nn.Module):
    """How one layer remembers. One instance per layer; attention itself is the Transformer's.

    A kind answers: what a query sees (`visibility`), what that costs (`loss`), which slots become one in the course of
    time (`merging`), and what survives a rollout (`survives`). `describe` turns each slot's hidden vector into the numbers
    those questions need, once per slot and rollout.
    """

    Config: ClassVar[type]  # a frozen dataclass; its fields are command-line flags
    CoreConfig: ClassVar[type] = TransformerConfig
    stores: ClassVar[bool] = True  # False: it keeps no slots
    presses: ClassVar[bool] = False
    """True: `loss` heeds the pressure, so that live memories can be brought down; the kind's own parameters then learn at a
    rate in proportion to it, by plain Adam."""

    def __init__(self, width: int, num_heads: int, config: Any):
        super().__init__()
        self.config = config

    def learning_rate_scale(self, name: str) -> float:
        """Learning rate of the kind's own parameter `name` as a multiple of the policy's, at full pressure if it presses."""
        return 1.0

    def describe(self, normed: Tensor, drawn: Tensor) -> Tensor | None:
        """Numbers per slot from its normalised hidden vector [B,C,D] -> [B,C], or None. drawn: [B,K]."""
        return None

    def visibility(self, age: Tensor, described: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """What a query sees. age: [B,N,C] >= 0; described: [B,C] or None.

        Returns (visible [B,N,C] bool, to any head, or None for all; additive score term, [B,N,C] if the heads share it,
        else [B,H,N,C], or None for zero). Where a slot is not visible the term does not matter.
        """
        return None, None

    def seen(self, age: Tensor, exists: Tensor, described: Tensor | None) -> tuple[Tensor, Tensor]:
        """`visibility` of the slots that exist for the query, `exists` [B,N,C] bool, as attention wants it: (seen
        [B,N,C], additive term [B,N,C] or [B,H,N,C], minus infinity for what is not seen)."""
        visible, term = self.visibility(age, described)
        seen = exists if visible is None else exists & visible
        if term is None:
            term = torch.zeros((), dtype=age.dtype, device=age.device)
        return seen, torch.where(seen[:, None] if term.ndim == 4 else seen, term, -math.inf)

    def survives(self, age: Tensor, described: Tensor | None) -> Tensor:
        """[B,C] bool: will a query of this age [B,C] still see the slot? False is final: the slot is removed."""
        return torch.ones_like(age, dtype=torch.bool)

    # Extension: for the few kinds that merge slots

    @property
    def merging(self) -> Merging | None:
        """Which slots become one, and when; None if none do."""
        return None

    def merge(self, blocks: Tensor) -> Tensor:
        """What blocks of hidden vectors [..., c, D] become: [..., D]. Where a member was removed there are zeros."""
        raise NotImplementedError

    def merge_loss(
        self, read: Callable[[Tensor], tuple[Tensor, Tensor]], queries: Tensor, blocks: Tensor, seen: Tensor
    ) -> Tensor | None:
        """What `merge` learns from. The task teaches it nothing: attention sees merged slots detached.

        read: hidden vectors [B,C,D] -> the layer's keys and values [B,H,C,d]; queries: [B,H,T,d], without gradient,
        like the weights in `read`; blocks: [B,E,c,D] members of the slots merged in this rollout; seen: [B,T,E] bool.
        """
        return None

    def figures(self, normed: Tensor) -> dict[str, float]:
        """Figures for the log, of slots with normalised hidden vectors [N,D]."""
        return {}

    def draw(self, batch_size: int, generator: torch.Generator | None = None) -> Tensor:
        """[B,K] random numbers that hold for one training rollout, the same for acting and learning."""
        return torch.zeros(batch_size, 0)

    def use_lift(self) -> float | None:
        """How many times the attention of the average other slot some head must give one for it to count as used; None
        if `loss` does not ask."""
        return None

    def loss(
        self, normed: Tensor, new: Tensor, last_use: Tensor | None, drawn: Tensor, pressure: float
    ) -> Tensor | None:
        """The kind's loss. normed: [B,C,D]; new: [B,C] bool, written in this rollout; last_use: [B,C], the largest age
        at which attention used the slot in this rollout (-1: never); pressure: the controller's, in [-1, 1]."""
        return None
