"""The slots that queries look at. Acting, learning, final observations and those who look see slots by this code alone.

B environments, N queries of each, C slots, H heads, d head width, D width.

A slot has a position on an axis of time that all slots and queries of one pass share: the number of steps since the
rollout began, or since `begin` while acting. What was remembered before lies below 0. A query's age to a slot is the
difference of their positions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from expire_span_rl.policies.memory.kind import MemoryKind
from expire_span_rl.policies.memory.state import LayerMemory

GONE = -1e9  # position of a slot that is empty or removed
BEFORE = -1e8  # where an episode began that began before position 0: all slots that are there are younger


@dataclass(frozen=True)
class Written:
    """What a layer makes of hidden vectors [B,C,D] for the queries that will look at them."""

    normed: Tensor  # [B,C,D]
    keys: Tensor  # [B,H,C,d]
    values: Tensor  # [B,H,C,d]
    slot_features: Tensor | None  # [B,C] what the memory kind says of each


@dataclass(frozen=True)
class Slots:
    """The slots of one layer, oldest first but for those that came into being in a rollout."""

    keys: Tensor  # [B,H,C,d]
    values: Tensor  # [B,H,C,d]
    slot_features: Tensor | None  # [B,C]
    position: Tensor  # [B,C] GONE where there is nothing
    first: Tensor | None = None  # [B,C] position of the first query that may see it; None: its own
    until: Tensor | None = None  # [B,C] position of the first query that may not any more; None: there is none
    unordered: int = 0  # the first so many lie in no order of age, and may be younger than others

    def seen(self, kind: MemoryKind, at: Tensor, episode: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Age and visibility, [B,N,C] each, and the additive term, [B,N,C] or [B,H,N,C], for queries at positions `at`
        [N] or [B,N] whose episodes began at `episode` [B,N]."""
        at = (at if at.ndim == 2 else at[None])[..., None]
        position = self.position[:, None]
        first = position if self.first is None else self.first[:, None]
        exists = (position >= episode[..., None]) & (at >= first)
        if self.until is not None:
            exists &= at < self.until[:, None]
        age = at - position
        return age, *kind.seen(age, exists, self.slot_features)

    def columns(self, start: int, stop: int) -> Slots:
        """Views of the slots from `start` on, before `stop`."""
        return replace(
            self,
            keys=self.keys[:, :, start:stop],
            values=self.values[:, :, start:stop],
            **self._numbers(lambda tensor: tensor[:, start:stop]),
        )

    def of_rows(self, rows: Tensor) -> Slots:
        """Those of the environments `rows` int64 [R]."""
        return replace(
            self, keys=self.keys[rows], values=self.values[rows], **self._numbers(lambda tensor: tensor[rows])
        )

    def shifted(self, columns: Tensor) -> Slots:
        """The slots `columns` [B,C] of each environment, none where it is below 0."""
        chosen = columns.clamp(min=0)
        wide = chosen[:, None, :, None].expand(-1, self.keys.shape[1], -1, self.keys.shape[3])
        numbers = self._numbers(lambda tensor: tensor.gather(1, chosen))
        position = self.position.gather(1, chosen).masked_fill(columns < 0, GONE)
        return replace(
            self,
            keys=self.keys.gather(2, wide),
            values=self.values.gather(2, wide),
            **{**numbers, "position": position},
        )

    def with_own(self, own: Written, at: Tensor) -> Slots:
        """The same and, last, the slot of the one query of each environment, at positions `at` [B]. Nothing is written
        into these slots."""
        at = at[:, None]
        slot_features = None
        if self.slot_features is not None and own.slot_features is not None:
            slot_features = torch.cat([self.slot_features, own.slot_features], 1)
        return Slots(
            torch.cat([self.keys, own.keys], 2),
            torch.cat([self.values, own.values], 2),
            slot_features,
            torch.cat([self.position, at], 1),
            None if self.first is None else torch.cat([self.first, at], 1),
            None if self.until is None else torch.cat([self.until, torch.full_like(at, torch.inf)], 1),
            self.unordered,
        )

    def birth(self, time: Tensor, now: int) -> Tensor:
        """[B,C] the clock at which each slot was written, of those of the present episodes; time: [B] the clock at
        position `now`."""
        return self.position.to(time.dtype) + (time - now)[:, None]

    def remembered(
        self, kind: MemoryKind, hidden: Tensor, last_use: Tensor | None, episode: Tensor, time: Tensor, now: int
    ) -> LayerMemory:
        """What a query at position `now` and all after it may see, oldest first; the rest is gone for good. hidden:
        [B,C,D]; last_use: [B,C] or None; episode: [B] where the present episodes began; time: [B] the clock at `now`."""
        alive = self.position >= episode[:, None]
        if self.until is not None:
            alive &= self.until > now
        keep = alive & kind.survives(now - self.position, self.slot_features, alive)  # [B,C]
        size = int(keep.sum(1).max())
        order = torch.where(keep, self.position, GONE).argsort(dim=1, stable=True)[:, self.position.shape[1] - size :]
        return LayerMemory(
            hidden.gather(1, order[..., None].expand(-1, -1, hidden.shape[2])),
            self.birth(time, now).gather(1, order),
            keep.gather(1, order),
            None if last_use is None else last_use.gather(1, order),
        )

    def _numbers(self, change: Callable[[Tensor], Tensor]) -> dict[str, Tensor | None]:
        """The fields [B,C], changed."""
        names = ("slot_features", "position", "first", "until")
        return {name: None if (tensor := getattr(self, name)) is None else change(tensor) for name in names}
