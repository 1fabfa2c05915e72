"""Slots that come into being: a memory kind may merge blocks of slots into one (see `Merging`).

While acting the merged slot takes the place of its members. While learning, where queries before and after the
merging work in parallel, it is an extra slot beside its members; the two ways see the same at every query.

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
    """Extra slots of one layer in a rollout, and until when their members are seen. Positions are as in `slots`."""

    blocks: Tensor  # [B,E,c,D] the members, detached; zero where one was removed
    hidden: Tensor  # [B,E,D] the merged slots, detached
    position: Tensor  # [B,E] of the last member; GONE where a row has fewer slots than E
    first: Tensor  # [B,E] the first query that sees the merged slot
    until: Tensor  # [B,S+T] the first query that does not see a slot of memory or rollout any more, since it is merged
    merged: Tensor  # [B,S] bool: slots of memory that were merged before the rollout


def extend(kind: MemoryKind, held: LayerMemory, time: Tensor, x: Tensor, clock: Tensor) -> Extension | None:
    """The slots that come into being in a rollout: those that queries at its steps 1 to T - 1 are the first to see, or
    a final observation after any step. None if the kind does not merge.

    held: the memory, dead slots zeroed; time: [B], its clock; x: [B,T,D], the layer's inputs; clock: [B,T] int64, steps
    since the episode began.
    """
    merging = kind.merging
    if merging is None:
        return None
    size, reach = merging.size, merging.size + merging.delay
    batch, steps, width = x.shape
    due = merging.due(clock + 1)  # [B,T]: at t + 1, if the episode of t goes on
    count = int(due.sum(1).max())
    order = torch.argsort(due.to(torch.uint8), dim=1, descending=True, stable=True)[:, :count]  # [B,E]
    first = order + 1

    # Members by position: place i of the line is position i - reach. What is merged already goes to 0, as nothing.
    birth, time = held.birth.long(), time.long()[:, None]
    raw = held.alive & (time < merging.clock(birth))  # [B,S]
    place = torch.where(raw, birth - time + reach, 0)
    line = x.new_zeros(batch, reach, width).scatter(
        1, place[..., None].expand(-1, -1, width), torch.where(raw[..., None], held.hidden, 0)
    )
    exists = torch.zeros(batch, reach, dtype=torch.bool, device=x.device).scatter(1, place, raw)
    line = torch.cat([line, x.detach()], 1)
    exists = torch.cat([exists, torch.ones_like(due)], 1)
    members = (first[..., None] + torch.arange(size, device=x.device)).flatten(1)  # [B,E*c]
    blocks = line.gather(1, members[..., None].expand(-1, -1, width)).unflatten(1, (count, size))
    there = due.gather(1, order) & exists.gather(1, members).unflatten(1, (count, size)).any(2)
    with torch.no_grad():
        hidden = kind.merge(blocks)
    position = (first - 1 - merging.delay).to(x.dtype).masked_fill(~there, GONE)
    until = torch.cat(
        [
            (merging.clock(birth) - time).to(x.dtype).masked_fill(~raw, math.inf),
            (torch.arange(steps, device=x.device) + merging.clock(clock) - clock).to(x.dtype),
        ],
        1,
    )
    return Extension(blocks, hidden, position, first.to(x.dtype), until, held.alive & ~raw)


def merge_in_place(
    layer: Layer, merging: Merging, buffers: LayerBuffers, rows: Tensor, acting: TransformerActing
) -> None:
    """Merges the block that is due in each of the environments `rows` [n] before their next query. The merged slot
    takes the place of its members, right before what is younger."""
    size, reach, filled, slots = merging.size, merging.size + merging.delay, acting.filled, buffers.slots
    start = max(0, filled - reach)  # members lie right of it
    position = slots.position[rows, start:filled]  # [n,s]
    alive = position >= acting.episode[rows, None]
    phase = (position - (acting.now - reach)).long()  # 0 .. c - 1 for members
    member = alive & (phase >= 0) & (phase < size)
    row, column = torch.nonzero(member, as_tuple=True)
    blocks = buffers.hidden.new_zeros(len(rows), size, buffers.hidden.shape[2])
    blocks[row, phase[row, column]] = buffers.hidden[rows[row], start + column]
    slots.position[rows[row], start + column] = GONE
    place = start - 1 + F.pad(alive & (phase >= size), (0, 1), value=True).to(torch.uint8).argmax(1)
    some = member.any(1)
    rows, blocks, place = rows[some], blocks[some], place[some]
    merged = layer.kind.merge(blocks)
    written = layer.write(merged[:, None], acting.span_limit[rows])
    slots.keys[rows, :, place], slots.values[rows, :, place] = written.keys[:, :, 0], written.values[:, :, 0]
    slots.position[rows, place] = acting.now - merging.delay - 1.0
    buffers.hidden[rows, place] = merged
    if slots.slot_features is not None and written.slot_features is not None:
        slots.slot_features[rows, place] = written.slot_features[:, 0]
