"""Rows of like memory size go together, so that one that hoards does not make the others carry its padding.

B environments, R rows of a group, L layers, D width. Grouping changes nothing but the speed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from expire_span_rl.policies.memory.state import Memory
from expire_span_rl.policies.transformer.acting import TransformerActing

LEARNING_ROWS = 8  # rows of a group while learning, where a group's memory is read by all queries of a rollout,
ACTING_ROWS = 32  # and while acting, where it is read by one query at a time
PADDING = 1.2  # rows are grouped where all at once would take this many times the slots that are needed
ACTING_SLOTS = 8000  # and where acting in a group saves as many slots: a group costs as much time as those


def by_size(slots: Tensor, rows: int) -> tuple[Tensor, ...]:
    """Row numbers in groups of about `rows`, the small ones first. slots: [B] what each row needs."""
    return torch.argsort(slots, stable=True).tensor_split(max(1, len(slots) // rows))


def padded_size(slots: Tensor, groups: tuple[Tensor, ...]) -> int:
    """Slots that the groups take, each padded to its largest row."""
    return sum(len(rows) * int(slots[rows].max()) for rows in groups)


def learning_groups(slots: Tensor) -> tuple[Tensor, ...] | None:
    """Groups for `unroll`, None if all rows had better go at once."""
    if len(slots) < 2 * LEARNING_ROWS or int(slots.max()) * len(slots) < PADDING * int(slots.sum()):
        return None
    return by_size(slots, LEARNING_ROWS)


def acting_groups(slots: Tensor) -> tuple[Tensor, ...] | None:
    """Groups for `begin`, None if all rows had better go at once."""
    if len(slots) < 2 * ACTING_ROWS:
        return None
    groups = by_size(slots, ACTING_ROWS)
    saved = int(slots.max()) * len(slots) - padded_size(slots, groups)
    return groups if saved >= ACTING_SLOTS * (len(groups) - 1) else None


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
        return Memory.joined([part.memory() for part in self.parts], self.rows)

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
