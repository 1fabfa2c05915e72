"""One Transformer layer over a whole rollout in parallel. B environments, T time steps, S memory slots, E slots that
come into being, C = E + S + T slots, D width, H heads, F final observations, K numbers drawn.

Positions are as in `slots`: step t lies at t, a slot of memory at minus its age at step 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from expire_span_rl.policies.core import LayerInspection
from expire_span_rl.policies.memory.kind import Lives
from expire_span_rl.policies.memory.state import LayerMemory, Memory
from expire_span_rl.policies.transformer.merging import Extension, extend
from expire_span_rl.policies.transformer.slots import BEFORE, GONE, Slots, Written

if TYPE_CHECKING:
    from expire_span_rl.policies.transformer.layer import Layer, Reading


@dataclass(frozen=True)
class Axis:
    """Positions that the layers of one unroll share."""

    queries: Tensor  # [T]
    episode: Tensor  # [B,T] where the query's episode began; BEFORE if before the rollout
    end: Tensor  # [B,T+1] the first step from this one on at which an episode begins; infinity if none does
    final_at: tuple[Tensor, Tensor]  # (t, b) int64 [F] each
    time: Tensor  # [B] the clock at the first step
    span_limit: Tensor  # [B,K]

    @classmethod
    def of(cls, episode_start: Tensor, dtype: torch.dtype, final_at: tuple[Tensor, Tensor], memory: Memory) -> Axis:
        """episode_start: [T,B] bool; memory: that with which the rollout begins."""
        begins = episode_start.T
        steps = torch.arange(begins.shape[1], device=begins.device, dtype=dtype)
        episode = torch.where(begins, steps, BEFORE).cummax(1).values
        end = torch.where(begins, steps, math.inf).flip(1).cummin(1).values.flip(1)
        return cls(steps, episode, F.pad(end, (0, 1), value=math.inf), final_at, memory.time, memory.span_limit)

    def time_after(self) -> Tensor:
        """[B] the clock after the last step."""
        return (self.clock()[:, -1] + 1).to(self.time.dtype)

    def clock(self) -> Tensor:
        """int64 [B,T]: steps since the query's episode began."""
        began = self.episode.clamp(min=0).long()
        return self.queries.long() - began + torch.where(self.episode >= 0, 0, self.time[:, None].long())


class LayerPart(NamedTuple):
    """What one layer has to say beside its outputs; None where it was not asked."""

    loss: Tensor | None  # scalar, of the memory kind
    looked: LayerInspection | None
    memory: LayerMemory | None  # after the last step


def unroll_layer(
    layer: Layer,
    x: Tensor,
    held: LayerMemory,
    axis: Axis,
    final_x: Tensor,
    pressure: float,
    details: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, LayerPart]:
    """One layer of an unroll: x [B,T,D], final_x [F,D] -> their next values, and what is asked for beside them."""
    steps, kind = x.shape[1], layer.kind
    held = held.padded(max(held.hidden.shape[1], len(layer.positions) - 1))
    extension = None if kind.merging is None else extend(kind, held, axis.time, x, axis.clock())
    hidden = [held.hidden, x] if extension is None else [extension.hidden, held.hidden, x]
    hidden = torch.cat(hidden, 1)  # [B,C,D]
    written = layer.write(hidden, axis.span_limit)
    slots = _slots(written, held, axis, extension)
    reading = layer.read(x, written.normed[:, -steps:], slots, axis.queries, axis.episode)
    if len(final_x):
        final_x = _finals(layer, final_x, axis, slots)
    loss = None
    if torch.is_grad_enabled() and not details:
        loss = _loss(layer, written, slots, reading, held, axis, extension, pressure)
    looked = _looked(layer, slots, reading, extension, steps) if details else None
    kept = _kept(layer, slots, reading, held, axis, hidden.detach()) if keep else None
    return reading.x, final_x, LayerPart(loss, looked, kept)


def _slots(written: Written, held: LayerMemory, axis: Axis, extension: Extension | None) -> Slots:
    """The slots of extension, memory and rollout, in this order."""
    born = (held.birth - axis.time[:, None]).to(axis.queries.dtype).masked_fill(~held.alive, GONE)
    position = torch.cat([born, axis.queries.expand(len(born), -1)], 1)
    if extension is None:
        return Slots(written.keys, written.values, written.slot_features, position)
    count = extension.hidden.shape[1]
    return Slots(
        written.keys,
        written.values,
        written.slot_features,
        torch.cat([extension.position, position], 1),
        torch.cat([extension.first, position], 1),
        F.pad(extension.until, (count, 0), value=math.inf),
        count,
    )


def _finals(layer: Layer, x: Tensor, axis: Axis, slots: Slots) -> Tensor:
    """The layer for final observations x [F,D]: each sees its row's slots up to its step, and itself."""
    t, b = axis.final_at
    x, slots = x[:, None], slots.of_rows(b)
    later = axis.queries.shape[0] - 1 - t  # [F] slots of later steps, which lie between and are not seen
    if x.is_cuda or bool((later > 0).any()):  # the relative positions want the youngest last
        columns = torch.arange(slots.position.shape[1], device=x.device) - later[:, None]  # [F,C]
        slots = replace(slots.shifted(columns), unordered=slots.position.shape[1] if slots.unordered else 0)
    now = t.to(x.dtype) + 1  # [F]
    own = layer.write(x, axis.span_limit[b])
    return layer.read(x, own.normed, slots.with_own(own, now), now[:, None], axis.episode[b, t][:, None]).x[:, 0]


def _loss(
    layer: Layer,
    written: Written,
    slots: Slots,
    reading: Reading,
    held: LayerMemory,
    axis: Axis,
    extension: Extension | None,
    pressure: float,
) -> Tensor | None:
    """The loss of the layer's memory kind."""
    kind, steps = layer.kind, axis.queries.shape[0]
    lives = None
    if pressure and kind.use_lift() is not None:
        lives = _lives(layer, slots, reading, held, axis)
    new = torch.zeros_like(slots.position, dtype=torch.bool)
    new[:, -steps:] = True
    loss = kind.loss(written.normed, new, lives, axis.span_limit, pressure)
    if extension is not None and slots.unordered:
        seen = reading.visible[:, :, : slots.unordered]
        merge_loss = kind.merge_loss(layer.frozen_keys_values, reading.queries.detach(), extension.blocks, seen)
        loss = merge_loss if loss is None or merge_loss is None else loss + merge_loss
    return loss


def _lives(layer: Layer, slots: Slots, reading: Reading, held: LayerMemory, axis: Axis) -> Lives:
    """What became of the slots in this rollout."""
    age, steps = reading.age, axis.queries.shape[0]  # [B,T,C]
    used = layer.kind.used(reading.weights, reading.visible.sum(2, keepdim=True))  # [B,T,C]
    used_here = age.masked_fill(~used, -1).amax(1)
    last_use = used_here.clamp(min=0)
    exists = slots.position > GONE
    past = held.birth.shape[1]
    unknown = used_here[:, :past] <= 0  # whether it was used before the rollout
    if held.last_use is not None:
        before = (held.last_use - held.birth).to(age.dtype)
        last_use[:, :past] = torch.maximum(last_use[:, :past], before)
        unknown &= held.last_use < 0
    exists[:, :past] &= ~unknown
    position = torch.where(exists, slots.position, 0)
    end = axis.end.gather(1, (position.long() + 1).clamp(0, steps))
    ended = (end < steps) & exists
    age_then = torch.where(ended, end, steps) - position
    return Lives(used_here, last_use, age_then, ended, exists, slots.slot_features)


def _looked(layer: Layer, slots: Slots, reading: Reading, extension: Extension | None, steps: int) -> LayerInspection:
    """What those who look want to know."""
    covers = torch.ones_like(slots.position, dtype=torch.int64)
    merging = layer.kind.merging
    if extension is not None and merging is not None:
        merged = F.pad(extension.merged, (slots.unordered, 0), value=True)  # [B,E+S]
        covers[:, :-steps] = torch.where(merged, merging.size, 1)
    coordinate = slots.position.masked_fill(slots.position <= GONE, -math.inf)
    return LayerInspection(coordinate, covers, slots.slot_features, reading.visible, reading.weights)


@torch.no_grad()
def _kept(layer: Layer, slots: Slots, reading: Reading, held: LayerMemory, axis: Axis, hidden: Tensor) -> LayerMemory:
    """What is remembered after the last step, as acting has it after the same steps. hidden: [B,C,D]."""
    steps, time = axis.queries.shape[0], axis.time_after()
    last_use = None
    if held.last_use is not None:
        birth = slots.birth(time, steps)
        before = birth.clone()
        before[:, slots.unordered : -steps] = held.last_use
        used = layer.kind.used(reading.weights, reading.visible.sum(2, keepdim=True))  # [B,T,C]
        used_here = reading.age.masked_fill(~used, -1).amax(1).to(birth.dtype)
        last_use = torch.where(used_here > 0, birth + used_here, before)
    return slots.remembered(layer.kind, hidden, last_use, axis.episode[:, -1], time, steps)
