"""Rows of similar memory size run together, so that one row with many memories does not pad all the others.

B environments, R rows of a group, L layers, D width. Grouping changes nothing but the speed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from expire_span_rl.policies.memory.state import Memory
from expire_span_rl.policies.transformer.acting import TransformerActing

LEARNING_GROUP = 600  # slots times environments that an unroll processes in the time that another group costs it
ACTING_GROUP = 8000  # the same for a step


def groups_of(slots: Tensor, cost: int) -> tuple[Tensor, ...]:
    """Row numbers in groups, small rows first. The groups minimise the total number of slots: each group is padded to
    its largest row, and costs `cost` slots more. slots: [B] what each row needs."""
    order = torch.argsort(slots, stable=True)
    sizes = slots[order].cpu().numpy().astype(np.int64)
    # Dynamic programming over the sorted rows.
    total = np.zeros(len(sizes) + 1, np.int64)  # fewest slots for the first i rows
    begins = np.zeros(len(sizes) + 1, np.int64)  # where the last group of these begins
    rows = np.arange(len(sizes) + 1)
    for i in range(1, len(sizes) + 1):
        totals = total[:i] + (i - rows[:i]) * sizes[i - 1]
        begins[i] = totals.argmin()
        total[i] = totals[begins[i]] + cost
    # The groups, from the last to the first.
    ends = [len(sizes)]
    while begins[ends[-1]]:
        ends.append(int(begins[ends[-1]]))
    return order.tensor_split(sorted(ends)[:-1])


def learning_groups(slots: Tensor) -> tuple[Tensor, ...] | None:
    """Groups for `unroll`, None if all rows should run at once. On a GPU they do: there the launches of many groups
    take longer than padding."""
    return None if slots.is_cuda else _groups(slots, LEARNING_GROUP)


def acting_groups(slots: Tensor) -> tuple[Tensor, ...] | None:
    """Groups for `begin`, None if all rows should run at once."""
    return _groups(slots, ACTING_GROUP)


def _groups(slots: Tensor, cost: int) -> tuple[Tensor, ...] | None:
    if not len(slots) or int(slots.max()) * len(slots) - int(slots.sum()) < cost:  # another group saves less
        return None
    groups = groups_of(slots, cost)
    return groups if len(groups) > 1 else None


class Places:
    """The group of each of B rows, and its place in the group."""

    def __init__(self, groups: tuple[Tensor, ...]):
        order = torch.cat(groups)
        self.back = torch.argsort(order)  # [B]: row -> place in the concatenated groups
        self.group = torch.empty_like(order)
        self.place = torch.empty_like(order)
        for number, rows in enumerate(groups):
            self.group[rows] = number
            self.place[rows] = torch.arange(len(rows), device=order.device)


@dataclass
class GroupedActing:
    """A memory to act on, in parts. Each part holds some of the environments."""

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
        return self._join([part.time for part in self.parts])

    @property
    def full(self) -> bool:
        return self.parts[0].full

    def memory(self) -> Memory:
        return Memory.join([part.memory() for part in self.parts], self.rows)

    def step(self, step: Callable[[Tensor, TransformerActing, Tensor], Tensor], x: Tensor, start: Tensor) -> Tensor:
        """`step` of every part: x [B,D], start [B] -> [B,D]."""
        parts = zip(self.rows, self.parts, strict=True)
        features = self._join([step(x[rows], part, start[rows]) for rows, part in parts])
        # Only kinds with slots are grouped, so every part has counts.
        self.live = self._join([part.live for part in self.parts if part.live is not None])
        return features

    def value(self, value: Callable[[Tensor, TransformerActing, Tensor], Tensor], x: Tensor, rows: Tensor) -> Tensor:
        """`value` of the environments `rows` [R]: x [R,D] -> [R,D]."""
        out = torch.empty_like(x)
        for number, part in enumerate(self.parts):
            in_part = torch.nonzero(self.places.group[rows] == number).squeeze(1)
            if len(in_part):
                out[in_part] = value(x[in_part], part, self.places.place[rows[in_part]])
        return out

    def _join(self, parts: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(parts))[self.places.back]
