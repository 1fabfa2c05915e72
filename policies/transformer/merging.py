"""Merged slots: a memory kind may merge blocks of slots into one slot each (see `Merging`).

While acting, the merged slot takes the place of its members. While learning, queries before and after the merging run
in parallel, so the merged slot is an extra slot beside its members. Both ways show the same slots to every query.

B environments, T time steps, S memory slots, E merged slots, c members of a block, D width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from expire_span_rl.policies.memory.kind import MemoryKind, Merging
from expire_span_rl.policies.memory.state import LayerMemory
from expire_span_rl.policies.transformer.slots import GONE

if TYPE_CHECKING:
    from expire_span_rl.policies.transformer.acting import LayerBuffers, TransformerActing
    from expire_span_rl.policies.transformer.layer import Layer


@dataclass(frozen=True)
class Extension:
    """Merged slots of one layer in a rollout, and until when their members are visible. Positions are as in
    `slots`."""

    blocks: Tensor  # [B,E,c,D] the members, detached; zero where one was removed
    hidden: Tensor  # [B,E,D] the merged slots, detached
    position: Tensor  # [B,E] of the last member; GONE where a row has fewer slots than E
    visible_from: Tensor  # [B,E] the first query that sees the merged slot
    visible_until: Tensor  # [B,S+T] the first query that no longer sees a slot of memory or rollout: it is merged then
    merged: Tensor  # [B,S] bool: memory slots that were merged before the rollout


def extend(kind: MemoryKind, layer_memory: LayerMemory, time: Tensor, x: Tensor, clock: Tensor) -> Extension | None:
    """The slots merged in a rollout: those that a query at step 1 to T - 1, or a final observation after any step, is
    the first to see. None if the kind does not merge.

    layer_memory: dead slots zeroed; time: [B], its clock; x: [B,T,D], the layer's inputs; clock: [B,T] int64, steps
    since the episode began.
    """
    merging = kind.merging
    if merging is None:
        return None
    size, reach = merging.size, merging.size + merging.delay
    # The steps t after which a merged slot exists: the query at t + 1 is the first to see it, if the episode goes on.
    due = merging.due(clock + 1)  # [B,T]
    count = int(due.sum(1).max())
    order = torch.argsort(due.to(torch.uint8), dim=1, descending=True, stable=True)[:, :count]  # [B,E]
    visible_from = order + 1

    # The members of each block, by their place on one line of memory and rollout.
    birth, time = layer_memory.birth.long(), time.long()[:, None]
    unmerged = layer_memory.alive & (time < merging.clock(birth))  # [B,S]
    place = torch.where(unmerged, birth - time + reach, 0)
    line, exists = _line_up(layer_memory, unmerged, place, reach, x)
    members = (visible_from[..., None] + torch.arange(size, device=x.device)).flatten(1)  # [B,E*c]
    blocks = line.gather(1, members[..., None].expand(-1, -1, x.shape[2])).unflatten(1, (count, size))
    has_members = exists.gather(1, members).unflatten(1, (count, size)).any(2)
    exists = due.gather(1, order) & has_members  # [B,E]
    with torch.no_grad():
        hidden = kind.merge(blocks)

    # Where the merged slots lie, and until when the others are visible.
    position = (visible_from - 1 - merging.delay).to(x.dtype).masked_fill(~exists, GONE)
    memory_until = (merging.clock(birth) - time).to(x.dtype).masked_fill(~unmerged, math.inf)
    rollout_until = (torch.arange(x.shape[1], device=x.device) + merging.clock(clock) - clock).to(x.dtype)
    return Extension(
        blocks=blocks,
        hidden=hidden,
        position=position,
        visible_from=visible_from.to(x.dtype),
        visible_until=torch.cat([memory_until, rollout_until], 1),
        merged=layer_memory.alive & ~unmerged,
    )


def _line_up(
    layer_memory: LayerMemory, unmerged: Tensor, place: Tensor, reach: int, x: Tensor
) -> tuple[Tensor, Tensor]:
    """Hidden vectors [B,reach+T,D] of memory and rollout by position, and where there is one, bool [B,reach+T].

    Place i of the line is position i - reach. place: [B,S]; slots that are not `unmerged` go to place 0, as zeros.
    """
    batch, steps, width = x.shape
    hidden = torch.where(unmerged[..., None], layer_memory.hidden, 0)
    line = x.new_zeros(batch, reach, width).scatter(1, place[..., None].expand(-1, -1, width), hidden)
    exists = torch.zeros(batch, reach, dtype=torch.bool, device=x.device).scatter(1, place, unmerged)
    in_rollout = torch.ones(batch, steps, dtype=torch.bool, device=x.device)
    return torch.cat([line, x.detach()], 1), torch.cat([exists, in_rollout], 1)


def merge_in_place(
    layer: Layer, merging: Merging, buffers: LayerBuffers, rows: Tensor, acting: TransformerActing
) -> None:
    """Merges the block that is due in each of the environments `rows` [n] before their next query.

    The merged slot takes the place of its members, right before the younger slots.
    """
    slots = buffers.slots
    size = merging.size
    reach = merging.size + merging.delay
    # The members: slots of the present episode, by their phase 0 .. c - 1 in the block.
    start = max(0, acting.num_slots - reach)  # all members are at or after it
    position = slots.position[rows, start : acting.num_slots]  # [n,s]
    alive = position >= acting.episode_begin[rows, None]
    phase = (position - (acting.steps_taken - reach)).long()
    is_member = alive & (phase >= 0) & (phase < size)
    row, column = torch.nonzero(is_member, as_tuple=True)
    blocks = buffers.hidden.new_zeros(len(rows), size, buffers.hidden.shape[2])
    blocks[row, phase[row, column]] = buffers.hidden[rows[row], start + column]
    slots.position[rows[row], start + column] = GONE
    # The place before the first younger slot; rows whose members were all removed have no merged slot.
    is_younger = F.pad(alive & (phase >= size), (0, 1), value=True)
    place = start - 1 + is_younger.to(torch.uint8).argmax(1)
    has_members = is_member.any(1)
    rows, blocks, place = rows[has_members], blocks[has_members], place[has_members]
    # The merged slot.
    merged = layer.kind.merge(blocks)
    projection = layer.write(merged[:, None], acting.noise[rows])
    slots.keys[rows, :, place] = projection.keys[:, :, 0]
    slots.values[rows, :, place] = projection.values[:, :, 0]
    slots.position[rows, place] = acting.steps_taken - merging.delay - 1.0
    buffers.hidden[rows, place] = merged
    if slots.slot_features is not None and projection.slot_features is not None:
        slots.slot_features[rows, place] = projection.slot_features[:, 0]
