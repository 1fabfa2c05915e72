"""One Transformer layer over a whole rollout in parallel. B environments, T time steps, S memory slots, E slots that
come into being, C = E + S + T slots, D width, H heads, P relative positions, F final observations, K numbers drawn.

Within a rollout all slots have a coordinate on its time axis: step t is t, a memory slot is minus its age at step 0. A
query's age to a slot is the difference, and it sees no slot whose coordinate lies before the start of its episode.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from expire_span_rl.policies.core import LayerInspection
from expire_span_rl.policies.memory.kind import Lives, MemoryKind
from expire_span_rl.policies.memory.state import LayerMemory, Memory
from expire_span_rl.policies.transformer.attention import attend_rollout
from expire_span_rl.policies.transformer.merging import Extension, extend

if TYPE_CHECKING:
    from expire_span_rl.policies.transformer.layer import Layer


@dataclass(frozen=True)
class Axis:
    """Coordinates that the layers of one unroll share."""

    queries: Tensor  # [T]
    episode: Tensor  # [B,T] coordinate at which the query's episode began; minus infinity if before the rollout
    end: Tensor  # [B,T+1] the first step from this one on at which an episode begins; infinity if none does
    final_at: tuple[Tensor, Tensor]  # (t, b) int64 [F] each
    drawn: Tensor  # [B,K]

    def clock(self, time: Tensor) -> Tensor:
        """int64 [B,T]: steps since the query's episode began; time: [B], the clock at the first of them."""
        began = torch.where(self.episode >= 0, self.episode, 0).long()
        return self.queries.long() - began + torch.where(self.episode >= 0, 0, time[:, None].long())


@dataclass(frozen=True)
class _Slots:
    """The slots of one layer: E that come into being, S of memory, T of the rollout."""

    coordinate: Tensor  # [B,C] from which age counts
    described: Tensor | None  # [B,C]
    first: Tensor  # [B,C] the first query that may see it
    until: Tensor | None  # [B,C] the first query that may not any more; None: there is none

    def seen(self, kind: MemoryKind, queries: Tensor, episode: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Age and visibility, [B,N,C] each, and additive term, [B,N,C] or [B,H,N,C], for queries at coordinates [N] or
        [B,N] whose episodes began at `episode` [B,N]."""
        queries = (queries if queries.ndim == 2 else queries[None])[..., None]
        age = queries - self.coordinate.clamp(min=-1e9)[:, None]
        exists = (self.coordinate[:, None] >= episode.clamp(min=-1e8)[..., None]) & (queries >= self.first[:, None])
        if self.until is not None:
            exists &= queries < self.until[:, None]
        return age, *kind.seen(age, exists, self.described)

    def shifted(self, rows: Tensor, slots: Tensor, now: Tensor, described: Tensor | None) -> _Slots:
        """For queries [F] of their own: `slots` [F,C] of the environments `rows`, below 0 for none, and last the
        query's own, written `now` [F], with `described` [F,1]."""
        exists, slots = slots >= 0, slots.clamp(min=0)

        def moved(tensor: Tensor, own: Tensor) -> Tensor:
            return torch.cat([tensor[rows].gather(1, slots), own], 1)

        now = now[:, None]
        coordinate = moved(self.coordinate, now)
        coordinate[:, :-1].masked_fill_(~exists, -math.inf)
        until = None if self.until is None else moved(self.until, torch.full_like(now, math.inf))
        if self.described is not None and described is not None:
            described = moved(self.described, described)
        return _Slots(coordinate, described, moved(self.first, now), until)


def unroll_layer(
    layer: Layer,
    x: Tensor,
    memory: Memory,
    index: int,
    axis: Axis,
    final_x: Tensor,
    pressure: float,
    details: bool,
    keep: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None, LayerInspection | None, LayerMemory | None]:
    """One layer of an unroll: x [B,T,D], final_x [F,D] -> their next values, the kind's loss, what was seen, and with
    `keep` what the layer remembers after the last step."""
    steps, kind = x.shape[1], layer.kind
    held = memory.layers[index]
    held = held.padded(max(held.hidden.shape[1], len(layer.positions) - 1))
    extension, merging = None, kind.merging
    if merging is not None:
        extension = extend(kind, held, memory.time, x, axis.clock(memory.time))
    hidden = [held.hidden, x] if extension is None else [extension.hidden, held.hidden, x]
    hidden = torch.cat(hidden, 1)  # [B,C,D]
    normed = layer.norm(hidden)
    keys, values = layer.keys_values(normed)
    slots = _slots(held, memory.time, axis.queries, extension, kind.describe(normed, axis.drawn))
    age, visible, bias = slots.seen(kind, axis.queries, axis.episode)

    past = hidden.shape[1] - steps
    corner = min(steps, len(layer.positions) - 1)
    youngest = age[:, :corner, past - (len(layer.positions) - 1) : past]
    left = None if extension is None else age[:, :, : extension.hidden.shape[1]]
    queries = layer.queries(normed[:, past:]).transpose(1, 2)  # [B,H,T,d]
    attended, weights = attend_rollout(queries, keys, values, layer.positions, youngest, bias, left, layer.by_age())
    after = layer.residual(x, attended.transpose(1, 2))
    if len(final_x):
        final_x = _finals(layer, final_x, axis, keys, values, slots)

    loss = None
    if torch.is_grad_enabled() and not details:
        lives = None
        if pressure and kind.use_lift() is not None:
            lives = _lives(kind, held, memory.time, axis, slots, age, visible, weights)
        new = torch.zeros_like(slots.coordinate, dtype=torch.bool)
        new[:, past:] = True
        loss = kind.loss(normed, new, lives, axis.drawn, pressure)
        if extension is not None and extension.hidden.shape[1]:
            merge_loss = kind.merge_loss(
                layer.frozen_keys_values, queries.detach(), extension.blocks, visible[:, :, : extension.hidden.shape[1]]
            )
            loss = merge_loss if loss is None or merge_loss is None else loss + merge_loss
    looked = None
    if details:
        covers = torch.ones_like(slots.coordinate, dtype=torch.int64)
        if extension is not None and merging is not None:
            merged = F.pad(extension.merged, (extension.hidden.shape[1], 0), value=True)  # [B,E+S]
            covers[:, :past] = torch.where(merged, merging.size, 1)
        looked = LayerInspection(slots.coordinate, covers, slots.described, visible, weights)
    kept = None
    if keep:
        kept = _kept(kind, held, hidden.detach(), memory.time, axis, slots, extension, age, visible, weights)
    return after, final_x, loss, looked, kept


@torch.no_grad()
def _kept(
    kind: MemoryKind,
    held: LayerMemory,
    hidden: Tensor,
    time: Tensor,
    axis: Axis,
    slots: _Slots,
    extension: Extension | None,
    age: Tensor,
    visible: Tensor,
    weights: Tensor,
) -> LayerMemory:
    """What survives the rollout, as `TransformerActing.memory` has it after the same steps. hidden: [B,C,D]; time: [B],
    the clock at the first step; age, visible: [B,T,C]; weights: [B,H,T,C]."""
    steps, clock = age.shape[1], axis.clock(time)  # [B,T]
    ended = slots.coordinate < axis.episode[:, -1:]
    alive = (slots.coordinate > -math.inf) & ~ended
    if slots.until is not None:
        alive &= slots.until > steps
    now = steps - torch.where(alive, slots.coordinate, steps)  # ages at the next query
    alive &= kind.survives(now, slots.described, alive)
    birth = torch.cat([held.birth, clock.to(held.birth.dtype)], 1)
    if extension is not None:
        merged = (
            clock[:, -1:] + 1 - steps + torch.where(extension.coordinate > -math.inf, extension.coordinate, 0).long()
        )
        birth = torch.cat([merged.to(birth.dtype), birth], 1)
    last_use = None
    if held.last_use is not None:
        used_here = age.masked_fill(~kind.used(weights, visible.sum(2, keepdim=True)), -1).amax(1)  # [B,C]
        merged = birth[:, : birth.shape[1] - steps - held.birth.shape[1]]
        before = torch.cat([merged, held.last_use, birth[:, -steps:]], 1)
        last_use = torch.where(used_here > 0, birth + used_here.to(birth.dtype), before)
    size = int(alive.sum(1).max())
    order = torch.where(alive, slots.coordinate, -math.inf).argsort(stable=True, dim=1)  # by age, the dead to the left
    order = order[:, order.shape[1] - size :]
    return LayerMemory(
        hidden.gather(1, order[..., None].expand(-1, -1, hidden.shape[2])),
        birth.gather(1, order),
        alive.gather(1, order),
        None if last_use is None else last_use.gather(1, order),
    )


def _lives(
    kind: MemoryKind,
    held: LayerMemory,
    time: Tensor,
    axis: Axis,
    slots: _Slots,
    age: Tensor,
    visible: Tensor,
    weights: Tensor,
) -> Lives:
    """What became of the slots in this rollout. time: [B]; age, visible: [B,T,C]; weights: [B,H,T,C]."""
    steps = age.shape[1]
    used = kind.used(weights, visible.sum(2, keepdim=True))  # [B,T,C]
    used_here = age.masked_fill(~used, -1).amax(1)
    last_use = used_here.clamp(min=0)
    exists = slots.coordinate > -math.inf
    past = held.birth.shape[1]
    unknown = used_here[:, :past] <= 0  # whether it was used before the rollout
    if held.last_use is not None:
        before = (held.last_use - held.birth).to(age.dtype)
        last_use[:, :past] = torch.maximum(last_use[:, :past], before)
        unknown &= held.last_use < 0
    exists[:, :past] &= ~unknown
    coordinate = torch.where(exists, slots.coordinate, 0)
    end = axis.end.gather(1, (coordinate.long() + 1).clamp(0, steps))
    ended = (end < steps) & exists
    age_then = torch.where(ended, end, steps) - coordinate
    return Lives(used_here, last_use, age_then, ended, exists, slots.described)


def _slots(
    held: LayerMemory, time: Tensor, queries: Tensor, extension: Extension | None, described: Tensor | None
) -> _Slots:
    """Where the slots of memory, rollout and extension lie. time: [B]; queries: [T]."""
    born = (held.birth - time[:, None]).to(queries.dtype).masked_fill(~held.alive, -math.inf)
    coordinate = torch.cat([born, queries.expand(len(born), -1)], 1)
    if extension is None:
        return _Slots(coordinate, described, coordinate, None)
    return _Slots(
        torch.cat([extension.coordinate, coordinate], 1),
        described,
        torch.cat([extension.first, coordinate], 1),
        F.pad(extension.until, (extension.hidden.shape[1], 0), value=math.inf),
    )


def _finals(layer: Layer, x: Tensor, axis: Axis, keys: Tensor, values: Tensor, slots: _Slots) -> Tensor:
    """The layer for final observations x [F,D]: each sees its row's slots up to its step, and itself."""
    t, b = axis.final_at
    now = t.to(x.dtype) + 1  # [F]
    normed = layer.norm(x)
    key, value = layer.keys_values(normed[:, None])
    own = layer.kind.describe(normed[:, None], axis.drawn[b])
    place = torch.arange(keys.shape[2], device=x.device) - (axis.queries.shape[0] - 1 - t)[:, None]  # [F,C]
    keys, values = keys[b], values[b]
    if bool((place[:, 0] < 0).any()):
        # The slots of later steps come between: they are hidden, and the relative positions want the youngest last.
        wide = place.clamp(min=0)[:, None, :, None].expand(-1, keys.shape[1], -1, keys.shape[3])
        keys, values = keys.gather(2, wide), values.gather(2, wide)
    keys, values = torch.cat([keys, key], 2), torch.cat([values, value], 2)
    slots = slots.shifted(b, place, now, own)
    age, _, bias = slots.seen(layer.kind, now[:, None], axis.episode[b, t][:, None])
    recent = None if slots.until is None else keys.shape[2]  # slots that came into being are not in order
    return layer.residual(x, layer.attend(normed, keys, values, age[:, 0], bias[..., 0, :], recent)[0])
