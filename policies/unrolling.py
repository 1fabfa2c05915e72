"""One Transformer layer over a whole rollout in parallel. B environments, T time steps, S memory slots, C = S + T slots, D
width, H heads, P relative positions, F final observations.

Within a rollout all slots have a coordinate on its time axis: step t is t, a memory slot is minus its age at step 0. A
query's age to a slot is the difference, and it sees no slot whose coordinate lies before the start of its episode.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from policies.attention import attend, attend_rollout
from policies.core import LayerInspection
from policies.memory.base import Memory, MemoryKind

if TYPE_CHECKING:
    from policies.transformer import Layer


@dataclass(frozen=True)
class Axis:
    """Coordinates that the layers of one unroll share."""

    queries: Tensor  # [T]
    episode: Tensor  # [B,T] coordinate at which the query's episode began; minus infinity if before the rollout
    final_at: tuple[Tensor, Tensor]  # (t, b) int64 [F] each
    drawn: Tensor


def unroll_layer(
    layer: Layer,
    x: Tensor,
    memory: Memory,
    index: int,
    axis: Axis,
    final_x: Tensor,
    pressure: float,
    details: bool,
) -> tuple[Tensor, Tensor, Tensor | None, LayerInspection | None]:
    """One layer of an unroll: x [B,T,D], final_x [F,D] -> their next values, the kind's loss, what was seen."""
    batch, steps, _ = x.shape
    held = memory.layers[index]
    held = held.padded(max(held.hidden.shape[1], len(layer.positions) - 1))
    size = held.hidden.shape[1]
    hidden = torch.cat([held.hidden, x], 1)  # [B,C,D]
    normed = layer.norm(hidden)
    keys, values = layer.keys_values(normed)
    described = layer.kind.describe(normed, axis.drawn)

    born = (held.birth - memory.time[:, None]).to(x.dtype).masked_fill(~held.alive, -math.inf)
    coordinate = torch.cat([born, axis.queries.expand(batch, -1)], 1)  # [B,C]
    age, visible, bias = _rollout_bias(layer.kind, axis.queries, axis.episode, coordinate, described)

    corner = min(steps, len(layer.positions) - 1)
    youngest = age[:, :corner, size - (len(layer.positions) - 1) : size]
    queries = layer.queries(normed[:, size:]).transpose(1, 2)  # [B,H,T,d]
    attended, weights = attend_rollout(queries, keys, values, layer.positions, youngest, bias)
    after = layer.residual(x, attended.transpose(1, 2))
    if len(final_x):
        final_x = _finals(layer, final_x, axis, keys, values, coordinate, described)

    loss = None
    if torch.is_grad_enabled() and not details:
        threshold, last_use = layer.kind.use_threshold(), None
        if threshold is not None:
            used = weights.amax(1) > threshold  # [B,T,C]
            last_use = age.masked_fill(~used, -1).amax(1)
        new = torch.zeros_like(coordinate, dtype=torch.bool)
        new[:, size:] = True
        loss = layer.kind.loss(normed, new, last_use, axis.drawn, pressure)
    looked = LayerInspection(coordinate, described, visible, weights) if details else None
    return after, final_x, loss, looked


def _finals(
    layer: Layer,
    x: Tensor,
    axis: Axis,
    keys: Tensor,
    values: Tensor,
    coordinate: Tensor,
    described: Tensor | None,
) -> Tensor:
    """The layer for final observations x [F,D]: each sees its row's slots up to its step, and itself."""
    t, b = axis.final_at
    now = t.to(x.dtype) + 1  # [F]
    normed = layer.norm(x)
    key, value = layer.keys_values(normed[:, None])
    own = layer.kind.describe(normed[:, None], axis.drawn[b])
    described = None if described is None else torch.cat([described[b], own], 1)
    # The slots of later steps come between: they are hidden, and the relative positions want the youngest last.
    slots = torch.arange(keys.shape[2], device=x.device) - (axis.queries.shape[0] - 1 - t)[:, None]  # [F,C]
    exists, slots = slots >= 0, slots.clamp(min=0)
    wide = slots[:, None, :, None].expand(-1, keys.shape[1], -1, keys.shape[3])
    keys = torch.cat([keys[b].gather(2, wide), key], 2)
    values = torch.cat([values[b].gather(2, wide), value], 2)
    if described is not None:
        described = torch.cat([described[:, :-1].gather(1, slots), described[:, -1:]], 1)
    coordinate = torch.cat([coordinate[b].gather(1, slots).masked_fill(~exists, -math.inf), now[:, None]], 1)
    age, _, bias = _rollout_bias(layer.kind, now[:, None], axis.episode[b, t][:, None], coordinate, described)
    attended, _ = attend(layer.queries(normed), keys, values, layer.positions, age[:, 0], bias[..., 0, :])
    return layer.residual(x, attended)


def _rollout_bias(
    kind: MemoryKind, queries: Tensor, episode: Tensor, coordinate: Tensor, described: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Age and visibility, [B,N,C] each, and additive term, [B,N,C] or [B,H,N,C], of queries at coordinates [N] or [B,N]
    whose episodes began at `episode` [B,N] for slots at `coordinate` [B,C]."""
    queries = queries if queries.ndim == 2 else queries[None]
    age = queries[..., None] - coordinate.clamp(min=-1e9)[:, None]
    exists = (coordinate[:, None] >= episode.clamp(min=-1e8)[..., None]) & (age >= 0)
    return age, *kind.seen(age, exists, described)
