"""Rows of like memory size go together, so that one that hoards does not make the others carry its padding.

B environments, R rows of a group, L layers, D width. Grouping changes nothing but the speed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from expire_span_rl.policies.memory.state import LayerMemory, Memory
from expire_span_rl.policies.transformer.acting import TransformerActing

LEARNING_GROUP = 600  # slots, times environments, that an unroll works off in the time that another group costs it,
ACTING_GROUP = 8000  # and a step


def groups_of(slots: Tensor, cost: int) -> tuple[Tensor, ...]:
    """Row numbers in groups, the small ones first, for which padding each group to its largest row, and `cost` slots for
    each group, come to the fewest slots. slots: [B] what each row needs."""
    order = torch.argsort(slots, stable=True)
    needed = slots[order].cpu().numpy().astype(np.int64)
    least = np.zeros(len(needed) + 1, np.int64)  # slots for the first i rows
    begins = np.zeros(len(needed) + 1, np.int64)  # where the last of their groups begins
    rows = np.arange(len(needed) + 1)
    for i in range(1, len(needed) + 1):
        totals = least[:i] + (i - rows[:i]) * needed[i - 1]
        begins[i] = totals.argmin()
        least[i] = totals[begins[i]] + cost
    ends = [len(needed)]
    while begins[ends[-1]]:
        ends.append(int(begins[ends[-1]]))
    return order.tensor_split(sorted(ends)[:-1])


def learning_groups(slots: Tensor) -> tuple[Tensor, ...] | None:
    """Groups for `unroll`, None if all rows had better go at once: on a GPU, where the launches of many groups take
    longer than padding does."""
    return None if slots.is_cuda else _groups(slots, LEARNING_GROUP)


def acting_groups(slots: Tensor) -> tuple[Tensor, ...] | None:
    """Groups for `begin`, None if all rows had better go at once."""
    return _groups(slots, ACTING_GROUP)


def _groups(slots: Tensor, cost: int) -> tuple[Tensor, ...] | None:
    if not len(slots) or int(slots.max()) * len(slots) - int(slots.sum()) < cost:  # another group saves less
        return None
    groups = groups_of(slots, cost)
    return groups if len(groups) > 1 else None


class Places:
    """Where each of B rows is: which group, and which place in it."""

    def __init__(self, groups: tuple[Tensor, ...]):
        order = torch.cat(groups)
        self.back = torch.argsort(order)  # [B]: row -> place in the concatenated groups
        self.group = torch.empty_like(order)
        self.place = torch.empty_like(order)
        for number, rows in enumerate(groups):
            self.group[rows] = number
            self.place[rows] = torch.arange(len(rows), device=order.device)


def joined(parts: Sequence[Memory], places: Places) -> Memory:
    """The memories of groups as one, rows in their own order."""
    layers = []
    for held in zip(*(part.layers for part in parts)):
        size = max(layer.hidden.shape[1] for layer in held)
        wide = [layer.padded(size) for layer in held]
        last_uses = [layer.last_use for layer in wide if layer.last_use is not None]
        layers.append(
            LayerMemory(
                torch.cat([layer.hidden for layer in wide])[places.back],
                torch.cat([layer.birth for layer in wide])[places.back],
                torch.cat([layer.alive for layer in wide])[places.back],
                torch.cat(last_uses)[places.back] if last_uses else None,
            )
        )
    time, drawn = (torch.cat([getattr(part, name) for part in parts])[places.back] for name in ("time", "drawn"))
    return Memory(tuple(layers), time, drawn)


@dataclass
class GroupedActing:
    """A memory to act on in parts, each for some of the environments."""

    rows: tuple[Tensor, ...]
    parts: list[TransformerActing]
    places: Places
    live: Tensor | None = None  # [B,L] memories that the last step saw, itself included

    @classmethod
    def begin(
        cls, begin: Callable[[Memory], TransformerActing], memory: Memory, groups: tuple[Tensor, ...]
    ) -> GroupedActing:
        return cls(groups, [begin(memory.rows(rows)) for rows in groups], Places(groups))

    @property
    def time(self) -> Tensor:
        return self._joined([part.time for part in self.parts])

    @property
    def full(self) -> bool:
        return self.parts[0].full

    def memory(self) -> Memory:
        return joined([part.memory() for part in self.parts], self.places)

    def each(self, step: Callable[[Tensor, TransformerActing, Tensor], Tensor], x: Tensor, start: Tensor) -> Tensor:
        """`step` of every part: x [B,D], start [B] -> [B,D]."""
        features = self._joined([step(x[rows], part, start[rows]) for rows, part in zip(self.rows, self.parts)])
        # Only what has slots is grouped: every part has counts.
        self.live = self._joined([part.live for part in self.parts if part.live is not None])
        return features

    def some(self, value: Callable[[Tensor, TransformerActing, Tensor], Tensor], x: Tensor, rows: Tensor) -> Tensor:
        """`value` of the environments `rows` [R]: x [R,D] -> [R,D]."""
        out = torch.empty_like(x)
        for number, part in enumerate(self.parts):
            mine = torch.nonzero(self.places.group[rows] == number).squeeze(1)
            if len(mine):
                out[mine] = value(x[mine], part, self.places.place[rows[mine]])
        return out

    def _joined(self, parts: list[Tensor]) -> Tensor:
        return torch.cat(parts)[self.places.back]
