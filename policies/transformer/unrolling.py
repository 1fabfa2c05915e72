"""One Transformer layer over a whole rollout in parallel.

B environments, T time steps, S memory slots, E slots merged in the rollout, C = E + S + T slots, D width, H heads, F
final observations, K random numbers of a rollout.

Positions are as in `slots`: step t lies at t, a memory slot at minus its age at step 0.
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
from expire_span_rl.policies.memory.state import LayerMemory, Memory, elapsed_steps
from expire_span_rl.policies.transformer.merging import Extension, extend
from expire_span_rl.policies.transformer.slots import BEFORE_START, GONE, Projection, Slots

if TYPE_CHECKING:
    from expire_span_rl.policies.transformer.layer import Layer, Reading


@dataclass(frozen=True)
class Axis:
    """The time axis that the layers of one unroll share, and what belongs to its environments."""

    query_positions: Tensor  # [T]
    episode_begin: Tensor  # [B,T] where the query's episode began; BEFORE_START if before the rollout
    episode_end: Tensor  # [B,T+1] the first step from this one on at which an episode begins; infinity if none does
    final_at: tuple[Tensor, Tensor]  # (t, b) int64 [F] each
    time: Tensor  # [B] the clock at the first step
    clock: Tensor  # int64 [B,T] steps since the query's episode began
    noise: Tensor  # [B,K]

    @classmethod
    def of(cls, episode_start: Tensor, dtype: torch.dtype, final_at: tuple[Tensor, Tensor], memory: Memory) -> Axis:
        """episode_start: [T,B] bool; memory: the one with which the rollout begins."""
        begins = episode_start.T
        steps = torch.arange(begins.shape[1], device=begins.device, dtype=dtype)
        end = torch.where(begins, steps, math.inf).flip(1).cummin(1).values.flip(1)
        return cls(
            query_positions=steps,
            episode_begin=torch.where(begins, steps, BEFORE_START).cummax(1).values,
            episode_end=F.pad(end, (0, 1), value=math.inf),
            final_at=final_at,
            time=memory.time,
            clock=elapsed_steps(memory.time, episode_start).T,
            noise=memory.noise,
        )

    @property
    def num_steps(self) -> int:
        return self.query_positions.shape[0]

    def time_after(self) -> Tensor:
        """[B] the clock after the last step."""
        return (self.clock[:, -1] + 1).to(self.time.dtype)


class LayerExtras(NamedTuple):
    """What one layer gives besides its outputs; None where it was not asked for."""

    loss: Tensor | None  # scalar, of the memory kind
    inspection: LayerInspection | None
    memory: LayerMemory | None  # after the last step


def unroll_layer(
    layer: Layer,
    x: Tensor,
    layer_memory: LayerMemory,
    axis: Axis,
    final_x: Tensor,
    *,
    pressure: float,
    details: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, LayerExtras]:
    """One layer of an unroll: x [B,T,D], final_x [F,D] -> their next values, and what is asked for besides them.

    details: give the inspection; keep: give the memory after the last step.
    """
    layer_pass = _run_layer(layer, x, layer_memory, axis)
    if len(final_x):
        final_x = _read_finals(layer, final_x, axis, layer_pass.slots)
    learns = torch.is_grad_enabled() and not details
    extras = LayerExtras(
        loss=layer_pass.kind_loss(pressure) if learns else None,
        inspection=layer_pass.inspect() if details else None,
        memory=layer_pass.memory_after() if keep else None,
    )
    return layer_pass.reading.x, final_x, extras


def _run_layer(layer: Layer, x: Tensor, layer_memory: LayerMemory, axis: Axis) -> _LayerPass:
    """Attention of all steps x [B,T,D] over extension, memory and rollout."""
    layer_memory = layer_memory.padded(layer_memory.hidden.shape[1])  # zeroes what is dead
    extension = None
    if layer.kind.merging is not None:
        extension = extend(layer.kind, layer_memory, axis.time, x, axis.clock)
    parts = [layer_memory.hidden, x]
    if extension is not None:
        parts.insert(0, extension.hidden)
    hidden = torch.cat(parts, 1)  # [B,C,D]
    known_need = layer_memory.known_need
    if known_need is not None:
        known_need = F.pad(known_need, (hidden.shape[1] - layer_memory.hidden.shape[1] - x.shape[1], x.shape[1]))
    projection = layer.write(hidden, axis.noise, known_need)
    slots = _build_slots(projection, layer_memory, axis, extension)
    queries = projection.normed[:, -x.shape[1] :]
    reading = layer.read(x, queries, slots, axis.noise, axis.query_positions, axis.episode_begin)
    return _LayerPass(
        layer=layer,
        layer_memory=layer_memory,
        axis=axis,
        extension=extension,
        hidden=hidden,
        projection=projection,
        slots=slots,
        reading=reading,
    )


def _build_slots(projection: Projection, layer_memory: LayerMemory, axis: Axis, extension: Extension | None) -> Slots:
    """The slots of extension, memory and rollout, in this order."""
    memory_position = (layer_memory.birth - axis.time[:, None]).to(axis.query_positions.dtype)
    memory_position = memory_position.masked_fill(~layer_memory.alive, GONE)
    position = torch.cat([memory_position, axis.query_positions.expand(len(memory_position), -1)], 1)
    slots = Slots(projection.keys, projection.values, projection.slot_features, position)
    if extension is None:
        return slots
    count = extension.hidden.shape[1]
    return replace(
        slots,
        position=torch.cat([extension.position, position], 1),
        visible_from=torch.cat([extension.visible_from, position], 1),
        visible_until=F.pad(extension.visible_until, (count, 0), value=math.inf),
        num_unordered=count,
    )


def _read_finals(layer: Layer, x: Tensor, axis: Axis, slots: Slots) -> Tensor:
    """The layer for final observations x [F,D]: each sees the slots of its row up to its step, and itself."""
    t, b = axis.final_at
    x = x[:, None]
    slots = slots.rows(b)
    num_later = axis.num_steps - 1 - t  # [F] slots of later steps, which it must not see
    if x.is_cuda or bool((num_later > 0).any()):  # attention by age needs the youngest slots last
        columns = torch.arange(slots.position.shape[1], device=x.device) - num_later[:, None]  # [F,C]
        num_unordered = slots.position.shape[1] if slots.num_unordered else 0
        slots = replace(slots.gather(columns), num_unordered=num_unordered)
    query_position = t.to(x.dtype) + 1  # [F]
    noise = axis.noise[b]
    projection = layer.write(x, noise)
    slots = slots.append(projection, query_position)
    episode_begin = axis.episode_begin[b, t][:, None]
    return layer.read(x, projection.normed, slots, noise, query_position[:, None], episode_begin).x[:, 0]


@dataclass(frozen=True)
class _LayerPass:
    """One layer's pass over a rollout, from which its loss, its inspection and its memory follow."""

    layer: Layer
    layer_memory: LayerMemory  # with which the rollout began, padded to S slots
    axis: Axis
    extension: Extension | None
    hidden: Tensor  # [B,C,D]
    projection: Projection
    slots: Slots
    reading: Reading

    def kind_loss(self, pressure: float) -> Tensor | None:
        """The loss of the layer's memory kind."""
        kind = self.layer.kind
        slots = self.slots
        extension = self.extension
        lives = None
        if pressure and kind.use_lift() is not None:
            lives = self._lives()
        is_new = torch.zeros_like(slots.position, dtype=torch.bool)
        is_new[:, -self.axis.num_steps :] = True
        losses = [
            kind.loss(self.projection.normed, is_new, lives, self.layer.kind_noise(self.axis.noise), pressure),
            kind.attention_cost(self.reading.weights, self.reading.age, pressure),
        ]
        if extension is not None and slots.num_unordered:
            visible = self.reading.visible[:, :, : slots.num_unordered]
            queries = self.reading.queries.detach()
            losses.append(kind.merge_loss(self.layer.frozen_keys_values, queries, extension.blocks, visible))
        given = [loss for loss in losses if loss is not None]
        return sum(given[1:], given[0]) if given else None

    def _latest_use(self) -> Tensor:
        """[B,C] the largest age at which attention used each slot in this rollout; -1 if never."""
        reading = self.reading
        is_used = self.layer.kind.is_used(reading.weights.detach(), reading.num_visible[..., None])  # [B,T,C]
        return reading.age.masked_fill(~is_used, -1).amax(1)

    def _lives(self) -> Lives:
        """What became of the slots in this rollout."""
        layer_memory = self.layer_memory
        slots = self.slots
        steps = self.axis.num_steps
        use_in_rollout = self._latest_use()
        last_use = use_in_rollout.clamp(min=0)
        exists = slots.position > GONE
        # A memory without a recorded last use is left out, unless it was used in this rollout.
        num_memory = layer_memory.birth.shape[1]
        unknown = use_in_rollout[:, :num_memory] <= 0
        if layer_memory.last_use is not None:
            earlier_use = (layer_memory.last_use - layer_memory.birth).to(self.reading.age.dtype)
            last_use[:, :num_memory] = torch.maximum(last_use[:, :num_memory], earlier_use)
            unknown &= layer_memory.last_use < 0
        exists[:, :num_memory] &= ~unknown
        # Until when each slot was watched.
        position = torch.where(exists, slots.position, 0)
        end = self.axis.episode_end.gather(1, (position.long() + 1).clamp(0, steps))
        ended = (end < steps) & exists
        final_age = torch.where(ended, end, steps) - position
        # Its age when the rollout before was over. Time that was skipped since is not part of an episode that ended.
        earlier_age = -position
        skipped_steps = self.layer.kind.skipped_steps(self.layer.kind_noise(self.axis.noise))
        if skipped_steps is not None:
            earlier_age = earlier_age - skipped_steps[:, None]
            final_age = torch.where(end == 0, earlier_age, final_age)
        return Lives(
            use_in_rollout=use_in_rollout,
            last_use=last_use,
            first_age=earlier_age.clamp(min=0),
            final_age=final_age,
            ended=ended,
            exists=exists,
            slot_features=slots.slot_features,
        )

    def inspect(self) -> LayerInspection:
        """Slots, spans and attention for the viewer, the audit and tests."""
        slots = self.slots
        merging = self.layer.kind.merging
        covers = torch.ones_like(slots.position, dtype=torch.int64)
        if self.extension is not None and merging is not None:
            merged = F.pad(self.extension.merged, (slots.num_unordered, 0), value=True)  # [B,E+S]
            covers[:, : -self.axis.num_steps] = torch.where(merged, merging.size, 1)
        coordinate = slots.position.masked_fill(slots.position <= GONE, -math.inf)
        return LayerInspection(
            coordinate=coordinate,
            covers=covers,
            slot_features=slots.slot_features,
            visible=self.reading.visible,
            attention=self.reading.weights,
        )

    @torch.no_grad()
    def memory_after(self) -> LayerMemory:
        """The memory after the last step, the same that acting has after the same steps."""
        slots = self.slots
        steps = self.axis.num_steps
        time = self.axis.time_after()
        uses: dict[str, Tensor] = {}
        if self.layer_memory.last_use is not None:
            birth = slots.birth(time, steps)
            earlier_use = birth.clone()
            earlier_use[:, slots.num_unordered : -steps] = self.layer_memory.last_use
            use_in_rollout = self._latest_use().to(birth.dtype)
            uses["last_use"] = torch.where(use_in_rollout > 0, birth + use_in_rollout, earlier_use)
        if self.layer_memory.known_need is not None:
            uses["known_need"] = F.pad(self.layer_memory.known_need, (slots.num_unordered, steps))
        return slots.compact(
            self.layer.kind,
            self.hidden.detach(),
            uses,
            episode_begin=self.axis.episode_begin[:, -1],
            time=time,
            query_position=steps,
        )
