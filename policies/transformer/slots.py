"""The slots that queries look at. Acting, learning, final observations and inspection read slots by this code alone.

B environments, N queries of each, C slots, H heads, d head width, D width.

A slot has a position on an axis of time, which all slots and queries of one pass share. A position is the number of
steps since the rollout began, or since `begin` while acting. Slots of the memory lie below 0. The age of a slot at a
query is the difference of their positions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from expire_span_rl.policies.memory.kind import MemoryKind
from expire_span_rl.policies.memory.state import LayerMemory

GONE = -1e9  # position of a slot that is empty or removed
BEFORE_START = -1e8  # start of an episode that began before position 0; the position of every existing slot is above it


@dataclass(frozen=True)
class Projection:
    """What a layer makes of hidden vectors [B,C,D] for the queries that will look at them."""

    normed: Tensor  # [B,C,D]
    keys: Tensor  # [B,H,C,d]
    values: Tensor  # [B,H,C,d]
    slot_features: Tensor | None  # [B,C] the memory kind's number for each


@dataclass(frozen=True)
class Slots:
    """The slots of one layer, oldest first, except for the first `num_unordered`: slots merged in a rollout."""

    keys: Tensor  # [B,H,C,d]
    values: Tensor  # [B,H,C,d]
    slot_features: Tensor | None  # [B,C]
    position: Tensor  # [B,C] GONE where there is nothing
    visible_from: Tensor | None = None  # [B,C] position of the first query that may see it; None: its own
    visible_until: Tensor | None = None  # [B,C] position of the first query that may no longer see it; None: no end
    num_unordered: int = 0  # the first so many are not sorted by age, and may be younger than others

    def visibility(
        self, kind: MemoryKind, query_positions: Tensor, episode_begin: Tensor, gaps: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Age and visibility, [B,N,C] each, and the additive score term, [B,N,C] or [B,H,N,C].

        query_positions: [N] or [B,N]; episode_begin: [B,N] positions at which the queries' episodes began; gaps: [B]
        steps by which the kind sees all slots but the query's own as older, None for 0.
        """
        if query_positions.ndim == 1:
            query_positions = query_positions[None]
        query_positions = query_positions[..., None]
        position = self.position[:, None]
        visible_from = position if self.visible_from is None else self.visible_from[:, None]
        exists = (position >= episode_begin[..., None]) & (query_positions >= visible_from)
        if self.visible_until is not None:
            exists &= query_positions < self.visible_until[:, None]
        age = query_positions - position
        age_for_kind = age if gaps is None else torch.where(age > 0, age + gaps[:, None, None], age)
        return age, *kind.attention_bias(age_for_kind, exists, self.slot_features)

    def columns(self, start: int, stop: int) -> Slots:
        """Views of the slots from `start` on, before `stop`."""
        return replace(
            self,
            keys=self.keys[:, :, start:stop],
            values=self.values[:, :, start:stop],
            **self._map_columns(lambda tensor: tensor[:, start:stop]),
        )

    def rows(self, indices: Tensor) -> Slots:
        """The slots of the chosen environments. indices: int64 [R]."""
        return replace(
            self,
            keys=self.keys[indices],
            values=self.values[indices],
            **self._map_columns(lambda tensor: tensor[indices]),
        )

    def gather(self, columns: Tensor) -> Slots:
        """The slots `columns` [B,C] of each environment; empty slots where a column is below 0."""
        existing = columns.clamp(min=0)
        wide = existing[:, None, :, None].expand(-1, self.keys.shape[1], -1, self.keys.shape[3])
        fields = self._map_columns(lambda tensor: tensor.gather(1, existing))
        fields["position"] = self.position.gather(1, existing).masked_fill(columns < 0, GONE)
        return replace(self, keys=self.keys.gather(2, wide), values=self.values.gather(2, wide), **fields)

    def append(self, projection: Projection, query_position: Tensor) -> Slots:
        """New slots: these, then the slot of each environment's one query. `self` is not changed.

        projection: of the queries, C = 1; query_position: [B].
        """
        position = query_position[:, None]
        slot_features = None
        if self.slot_features is not None and projection.slot_features is not None:
            slot_features = torch.cat([self.slot_features, projection.slot_features], 1)
        visible_from, visible_until = self.visible_from, self.visible_until
        if visible_from is not None:
            visible_from = torch.cat([visible_from, position], 1)
        if visible_until is not None:
            visible_until = torch.cat([visible_until, torch.full_like(position, torch.inf)], 1)
        return Slots(
            keys=torch.cat([self.keys, projection.keys], 2),
            values=torch.cat([self.values, projection.values], 2),
            slot_features=slot_features,
            position=torch.cat([self.position, position], 1),
            visible_from=visible_from,
            visible_until=visible_until,
            num_unordered=self.num_unordered,
        )

    def birth(self, time: Tensor, query_position: int | Tensor) -> Tensor:
        """[B,C] the clock at which each slot of the present episodes was written. time: [B] the clock at
        `query_position`."""
        return self.position.to(time.dtype) + (time - query_position)[:, None]

    def compact(
        self,
        kind: MemoryKind,
        hidden: Tensor,
        uses: Mapping[str, Tensor],
        *,
        episode_begin: Tensor,
        time: Tensor,
        query_position: int,
    ) -> LayerMemory:
        """The slots that a query at `query_position` or later may see, oldest first. The rest is removed for good.

        hidden: [B,C,D]; uses: what is tracked of the slots' uses, [B,C] each; episode_begin: [B] where the present
        episodes began; time: [B] the clock at `query_position`.
        """
        alive = self.position >= episode_begin[:, None]
        if self.visible_until is not None:
            alive &= self.visible_until > query_position
        keep = alive & kind.survives(query_position - self.position, self.slot_features, alive)  # [B,C]
        size = int(keep.sum(1).max())
        order = torch.where(keep, self.position, GONE).argsort(dim=1, stable=True)[:, self.position.shape[1] - size :]
        return LayerMemory(
            hidden=hidden.gather(1, order[..., None].expand(-1, -1, hidden.shape[2])),
            birth=self.birth(time, query_position).gather(1, order),
            alive=keep.gather(1, order),
            **{name: tensor.gather(1, order) for name, tensor in uses.items()},
        )

    def _map_columns(self, change: Callable[[Tensor], Tensor]) -> dict[str, Tensor | None]:
        """The fields [B,C], changed."""
        names = ("slot_features", "position", "visible_from", "visible_until")
        return {name: None if (tensor := getattr(self, name)) is None else change(tensor) for name in names}
