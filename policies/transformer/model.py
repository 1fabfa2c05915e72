"""One Transformer with pluggable memory: the recurrent core of a policy.

B environments, T time steps, S memory slots, C = S + T slots, L layers, D width, H heads, P relative positions, F final
observations. Pre-norm; keys, values and spans are read from the normalised memory; cached slots carry no gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from expire_span_rl.policies.core import CoreOutput
from expire_span_rl.policies.memory.kind import MemoryKind
from expire_span_rl.policies.memory.state import LayerMemory, Memory
from expire_span_rl.policies.transformer.acting import LayerBuffers, TransformerActing, ladder
from expire_span_rl.policies.transformer.grouping import GroupedActing, Places, acting_groups, learning_groups
from expire_span_rl.policies.transformer.layer import Layer, TransformerConfig
from expire_span_rl.policies.transformer.merging import merge_in_place
from expire_span_rl.policies.transformer.slots import BEFORE
from expire_span_rl.policies.transformer.unrolling import Axis, unroll_layer

SHRINK = 4  # buffers are used again that are at most so many times as large as needed


class Transformer(nn.Module):
    """L layers, each with its own memory of the kind that `make_kind` makes."""

    static: bool | None = None
    """Whether acting has buffers of fixed shapes, whose steps are captured; None: on a GPU."""

    def __init__(self, config: TransformerConfig, make_kind: Callable[[], MemoryKind]):
        super().__init__()
        self.config = config
        shifted = config.shifted_heads
        layers = [Layer(config, make_kind(), 0 if i else shifted) for i in range(config.num_layers)]
        self.layers = cast(Sequence[Layer], nn.ModuleList(layers))
        if shifted:
            for layer in self.layers[1:]:
                layer.look_for_what_followed(self.layers[0], shifted)
        self.norm = nn.LayerNorm(config.width)

    @property
    def _kinds(self) -> tuple[MemoryKind, ...]:
        return tuple(layer.kind for layer in self.layers)

    @property
    def _stores(self) -> bool:
        return self._kinds[0].stores

    def initial_memory(self, batch_size: int) -> Memory:
        """No memories, clock 0."""
        weight = self.norm.weight
        layers = ()
        if self._stores:
            empty = LayerMemory(
                weight.new_zeros(batch_size, 0, self.config.width),
                torch.zeros(batch_size, 0, dtype=torch.int32, device=weight.device),
                torch.zeros(batch_size, 0, dtype=torch.bool, device=weight.device),
            )
            layers = (empty,) * len(self.layers)
        time = torch.zeros(batch_size, dtype=torch.int32, device=weight.device)
        return Memory(layers, time, weight.new_zeros(batch_size, 0))

    def draw(self, memory: Memory, generator: torch.Generator | None) -> Memory:
        """`memory` with what the kind draws at random for one training rollout."""
        span_limit = self._kinds[0].draw(len(memory.time), generator)
        memory = replace(memory, span_limit=span_limit.to(memory.time.device, self.norm.weight.dtype))
        if not self._kinds[0].tracks_use():
            return replace(memory, layers=tuple(replace(layer, last_use=None) for layer in memory.layers))
        layers = [
            m if m.last_use is not None else replace(m, last_use=torch.full_like(m.birth, -1)) for m in memory.layers
        ]
        return replace(memory, layers=tuple(layers))

    # Acting

    def begin(
        self, memory: Memory, horizon: int, into: TransformerActing | GroupedActing | None = None
    ) -> TransformerActing | GroupedActing:
        """Projects `memory` once and lays it out with room for `horizon` more steps. into: what was acted on before,
        whose buffers, and what was captured of its steps, are used again if they fit."""
        if self._static(memory):
            return self._begin_static(memory, horizon, into if isinstance(into, TransformerActing) else None)
        live = memory.live()
        groups = None if live is None else acting_groups(live.amax(1))
        if groups is not None:
            return GroupedActing.begin(partial(self._begin, horizon=horizon), memory, groups)
        return self._begin(memory, horizon, _slots(memory))

    def _static(self, memory: Memory) -> bool:
        """Whether steps are to be captured: on a GPU, unless slots are merged, since which ones depends on numbers that
        the device would be asked for."""
        fits = self._stores and self._kinds[0].merging is None
        return fits and (memory.time.is_cuda if self.static is None else self.static)

    def _begin_static(self, memory: Memory, horizon: int, into: TransformerActing | None) -> TransformerActing:
        needed = ladder(_slots(memory))
        if into is not None and into.static and needed <= into.size <= SHRINK * needed:
            needed = into.size
        begun = self._begin(memory, horizon, needed)
        begun.column = torch.full((1,), needed, device=memory.time.device)
        begun.span_limit = memory.span_limit.clone()
        if into is not None and into.refill(begun):
            return into
        return begun

    def _begin(self, memory: Memory, horizon: int, size: int | None = None) -> TransformerActing:
        size = _slots(memory) if size is None else size
        buffers = [
            LayerBuffers.begin(layer, held, memory, size, horizon) for layer, held in zip(self.layers, memory.layers)
        ]
        episode = torch.full_like(memory.time, BEFORE, dtype=self.norm.weight.dtype)
        at = episode.new_zeros(1)
        return TransformerActing(
            buffers, memory.time.clone(), memory.span_limit, self._kinds, size, horizon, episode, at
        )

    def step(self, x: Tensor, acting: TransformerActing | GroupedActing, episode_start: Tensor) -> Tensor:
        """One time step: x [B,D], episode_start [B] bool -> features [B,D]. Writes into `acting`."""
        if isinstance(acting, GroupedActing):
            return acting.each(self.step, x, episode_start)
        if acting.full:
            raise ValueError(f"acting: expected room for a step, got {acting.now} of {acting.horizon} steps taken")
        acting.begin_episodes(episode_start)
        x, live = x[:, None], []
        for i, layer in enumerate(self.layers):
            if not self._stores:
                x = layer.alone(x, layer.norm(x))
                continue
            own = layer.write(x, acting.span_limit)
            slots = acting.slots(i, own, x)
            reading = layer.read(x, own.normed, slots, acting.at, acting.episode[:, None])
            live.append(reading.visible.sum(2))  # [B,1]
            if acting.layers[i].last_use is not None:
                acting.use(i, layer.kind.used(reading.weights, live[-1][..., None])[:, 0])
            x = reading.x
        acting.live = torch.cat(live, 1) if live else None
        acting.advance()
        self._merge_due(acting)
        return self.norm(x[:, 0])

    def _merge_due(self, acting: TransformerActing) -> None:
        """Merges the blocks whose merged slots the next query is the first to see."""
        merging = self._kinds[0].merging
        if merging is None:
            return
        rows = torch.nonzero(merging.due(acting.time)).squeeze(1)
        if len(rows):
            for layer, buffers in zip(self.layers, acting.layers):
                merge_in_place(layer, merging, buffers, rows, acting)

    def value(self, x: Tensor, acting: TransformerActing | GroupedActing, rows: Tensor) -> Tensor:
        """Features [R,D] of observations x [R,D] that follow the last step in the environments `rows` [R], and to which
        nothing else will attend: `acting` is not written."""
        if isinstance(acting, GroupedActing):
            return acting.some(self.value, x, rows)
        x, episode = x[:, None], acting.episode[rows, None]
        at = torch.full_like(episode, acting.now)
        for i, layer in enumerate(self.layers):
            if not self._stores:
                x = layer.alone(x, layer.norm(x))
                continue
            own = layer.write(x, acting.span_limit[rows])
            slots = acting.layers[i].slots.columns(0, acting.filled).of_rows(rows).with_own(own, at[:, 0])
            x = layer.read(x, own.normed, slots, at, episode).x
        return self.norm(x[:, 0])

    # Learning

    def unroll(
        self,
        x: Tensor,
        memory: Memory,
        episode_start: Tensor,
        final_x: Tensor,
        final_at: tuple[Tensor, Tensor],
        pressure: float = 0.0,
        details: bool = False,
        keep: bool = False,
    ) -> CoreOutput:
        """One parallel pass: x [T,B,D], episode_start [T,B] bool, final_x [F,D], final_at (t, b) int64 [F] each. keep:
        give the memory after the last step, too.

        A final observation follows step t of row b, sees what step t + 1 would see had the episode gone on, and is seen
        by nobody. Rows are worked off in groups of like memory size, which changes nothing but the speed.
        """
        asked = pressure and self._kinds[0].tracks_use()
        if not (asked and torch.is_grad_enabled() and not details):  # those of episodes that are over teach spans
            fresh = episode_start[0]
            layers = tuple(replace(m, alive=m.alive & ~fresh[:, None]) for m in memory.layers)
            memory = replace(memory, layers=layers)
        live = memory.live()
        slots = None if live is None else live.amax(1) + len(x)  # [B] what each row needs
        groups = None if details or slots is None else learning_groups(slots)
        if groups is None:
            if not (details or x.is_cuda):
                memory = replace(memory, layers=tuple(layer.trimmed() for layer in memory.layers))
            return self._unroll(x, memory, episode_start, final_x, final_at, pressure, details, keep)
        places, (t, b) = Places(groups), final_at
        outputs, final_index, loss = [], [], x.new_zeros(())
        for number, rows in enumerate(groups):
            mine = torch.nonzero(places.group[b] == number).squeeze(1)
            at = (t[mine], places.place[b[mine]])
            part = self._unroll(
                x[:, rows], memory.rows(rows), episode_start[:, rows], final_x[mine], at, pressure, False, keep
            )
            outputs.append(part)
            final_index.append(mine)
            loss = loss + part.loss * (len(rows) / len(places.back))
        features = torch.cat([part.features for part in outputs], 1)[:, places.back]
        finals = torch.cat([part.final_features for part in outputs])[torch.argsort(torch.cat(final_index))]
        kept = [part.memory for part in outputs if part.memory is not None]
        return CoreOutput(features, finals, loss, memory=Memory.joined(kept, groups) if kept else None)

    def _unroll(
        self,
        x: Tensor,
        memory: Memory,
        episode_start: Tensor,
        final_x: Tensor,
        final_at: tuple[Tensor, Tensor],
        pressure: float,
        details: bool,
        keep: bool,
    ) -> CoreOutput:
        axis = Axis.of(episode_start, x.dtype, final_at, memory)
        x, loss, inspected, kept = x.transpose(0, 1), x.new_zeros(()), [], []
        for i, layer in enumerate(self.layers):
            if not self._stores:
                x = layer.alone(x, layer.norm(x))
                final_x = layer.alone(final_x, layer.norm(final_x))
                continue
            x, final_x, part = unroll_layer(layer, x, memory.layers[i], axis, final_x, pressure, details, keep)
            if part.loss is not None:
                loss = loss + part.loss / len(self.layers)
            inspected.append(part.looked)
            kept.append(part.memory)
        after = None
        if keep:
            after = Memory(tuple(kept), axis.time_after(), memory.span_limit)
        inspections = tuple(inspected) if details else ()
        return CoreOutput(self.norm(x).transpose(0, 1), self.norm(final_x), loss, inspections, after)


def _slots(memory: Memory) -> int:
    """Slots of the layer that has most."""
    return max((layer.hidden.shape[1] for layer in memory.layers), default=0)
