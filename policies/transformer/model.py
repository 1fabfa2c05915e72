"""One Transformer with pluggable memory: the recurrent core of a policy.

B environments, T time steps, S memory slots, C = S + T slots, L layers, D width, H heads, P relative positions, F final
observations. Pre-norm; keys, values and spans are read from the normalised memory; cached slots carry no gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expire_span_rl.policies.core import CoreOutput
from expire_span_rl.policies.memory.kind import MemoryKind
from expire_span_rl.policies.memory.state import LayerMemory, Memory
from expire_span_rl.policies.transformer.acting import LayerBuffers, TransformerActing
from expire_span_rl.policies.transformer.grouping import GroupedActing, Places, acting_groups, learning_groups
from expire_span_rl.policies.transformer.layer import Layer, TransformerConfig
from expire_span_rl.policies.transformer.merging import merge_in_place
from expire_span_rl.policies.transformer.unrolling import Axis, unroll_layer


class Transformer(nn.Module):
    """L layers, each with its own memory of the kind that `make_kind` makes."""

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
        drawn = self._kinds[0].draw(len(memory.time), generator)
        memory = replace(memory, drawn=drawn.to(memory.time.device, self.norm.weight.dtype))
        if not self._kinds[0].tracks_use():
            return replace(memory, layers=tuple(replace(layer, last_use=None) for layer in memory.layers))
        layers = [
            m if m.last_use is not None else replace(m, last_use=torch.full_like(m.birth, -1)) for m in memory.layers
        ]
        return replace(memory, layers=tuple(layers))

    # Acting

    def begin(self, memory: Memory, horizon: int) -> TransformerActing | GroupedActing:
        """Projects `memory` once and lays it out with room for `horizon` more steps."""
        live = memory.live()
        groups = None if live is None else acting_groups(live.amax(1))
        if groups is not None:
            return GroupedActing.begin(partial(self._begin, horizon=horizon), memory, groups)
        return self._begin(memory, horizon)

    def _begin(self, memory: Memory, horizon: int) -> TransformerActing:
        size = max((layer.hidden.shape[1] for layer in memory.layers), default=0)
        buffers = [
            self._laid_out(layer, held, memory, size, horizon) for layer, held in zip(self.layers, memory.layers)
        ]
        return TransformerActing(buffers, memory.time.clone(), memory.drawn, self._kinds, size, size + horizon)

    def _laid_out(self, layer: Layer, held: LayerMemory, memory: Memory, size: int, horizon: int) -> LayerBuffers:
        held = held.padded(size)
        normed = layer.norm(held.hidden)  # [B,S,D]
        keys, values = layer.keys_values(normed)
        described = layer.kind.describe(normed, memory.drawn)

        def room(tensor: Tensor, dim: int) -> Tensor:
            shape = list(tensor.shape)
            shape[dim] = horizon
            return torch.cat([tensor, tensor.new_zeros(shape)], dim)

        return LayerBuffers(
            room(keys, 2),
            room(values, 2),
            room(held.hidden, 1),
            None if described is None else room(described, 1),
            room(held.birth, 1),
            room(held.alive, 1),
            None if held.last_use is None else room(held.last_use, 1),
        )

    def step(self, x: Tensor, acting: TransformerActing | GroupedActing, episode_start: Tensor) -> Tensor:
        """One time step: x [B,D], episode_start [B] bool -> features [B,D]. Writes into `acting`."""
        if isinstance(acting, GroupedActing):
            return acting.each(self.step, x, episode_start)
        if acting.full:
            raise ValueError(f"acting: expected room for a step, got {acting.filled} of {acting.capacity} slots filled")
        if episode_start.any():
            acting.time.masked_fill_(episode_start, 0)
            for buffers in acting.layers:
                buffers.alive.masked_fill_(episode_start[:, None], False)
        n, live = acting.filled + 1, []
        for i, layer in enumerate(self.layers):
            normed = layer.norm(x)
            if not self._stores:
                x = layer.alone(x, normed)
                continue
            buffers = acting.layers[i]
            key, value = layer.keys_values(normed[:, None])
            buffers.keys[:, :, n - 1], buffers.values[:, :, n - 1] = key[:, :, 0], value[:, :, 0]
            buffers.hidden[:, n - 1] = x
            own = layer.kind.describe(normed[:, None], acting.drawn)
            if buffers.described is not None and own is not None:
                buffers.described[:, n - 1] = own[:, 0]
            buffers.birth[:, n - 1] = acting.time
            buffers.alive[:, n - 1] = True
            if buffers.last_use is not None:
                buffers.last_use[:, n - 1] = acting.time
            described = None if buffers.described is None else buffers.described[:, :n]
            age, seen, bias = self._acting_bias(
                layer.kind, acting.time, buffers.birth[:, :n], buffers.alive[:, :n], described
            )
            attended, weights = layer.attend(normed, buffers.keys[:, :, :n], buffers.values[:, :, :n], age, bias)
            visible = seen.sum(1)
            live.append(visible)
            if buffers.last_use is not None:
                used = layer.kind.used(weights, visible[:, None])
                buffers.last_use[:, :n] = torch.where(used, acting.time[:, None], buffers.last_use[:, :n])
            x = layer.residual(x, attended)
        acting.filled = n
        acting.time += 1
        acting.live = torch.stack(live, 1) if live else None
        self._merge_due(acting)
        return self.norm(x)

    def _merge_due(self, acting: TransformerActing) -> None:
        """Merges the blocks whose merged slots the next query is the first to see."""
        merging = self._kinds[0].merging
        if merging is None:
            return
        rows = torch.nonzero(merging.due(acting.time)).squeeze(1)
        if len(rows):
            time, drawn = acting.time[rows], acting.drawn[rows]
            for layer, buffers in zip(self.layers, acting.layers):
                merge_in_place(layer, merging, buffers, rows, time, acting.filled, drawn)

    def value(self, x: Tensor, acting: TransformerActing | GroupedActing, rows: Tensor) -> Tensor:
        """Features [R,D] of observations x [R,D] that follow the last step in the environments `rows` [R], and to which
        nothing else will attend: `acting` is not written."""
        if isinstance(acting, GroupedActing):
            return acting.some(self.value, x, rows)
        n = acting.filled
        for i, layer in enumerate(self.layers):
            normed = layer.norm(x)
            if not self._stores:
                x = layer.alone(x, normed)
                continue
            buffers = acting.layers[i]
            key, value = layer.keys_values(normed[:, None])
            time = acting.time[rows]
            described = None
            own = layer.kind.describe(normed[:, None], acting.drawn[rows])
            if buffers.described is not None and own is not None:
                described = torch.cat([buffers.described[rows, :n], own], 1)
            birth = torch.cat([buffers.birth[rows, :n], time[:, None]], 1)
            alive = F.pad(buffers.alive[rows, :n], (0, 1), value=True)
            age, _, bias = self._acting_bias(layer.kind, time, birth, alive, described)
            keys = torch.cat([buffers.keys[rows, :, :n], key], 2)
            values = torch.cat([buffers.values[rows, :, :n], value], 2)
            x = layer.residual(x, layer.attend(normed, keys, values, age, bias)[0])
        return self.norm(x)

    def _acting_bias(
        self, kind: MemoryKind, time: Tensor, birth: Tensor, alive: Tensor, described: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Ages and what is seen, [B,C] each, and the additive term, [B,C] or [B,H,C], of one query per environment."""
        age = (time[:, None] - birth).to(self.norm.weight.dtype)
        seen, bias = kind.seen(age[:, None], alive[:, None], described)
        return age, seen[:, 0], bias[..., 0, :]

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
            if not details:
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
        steps = torch.arange(len(x), device=x.device, dtype=x.dtype)
        start = torch.where(episode_start.T, steps, -math.inf).cummax(1).values  # [B,T]
        index = torch.where(episode_start.T, steps, math.inf).flip(1)
        end = F.pad(index.cummin(1).values.flip(1), (0, 1), value=math.inf)  # [B,T+1]
        axis = Axis(steps, start, end, final_at, memory.drawn)
        x, loss, inspected, kept = x.transpose(0, 1), x.new_zeros(()), [], []
        for i, layer in enumerate(self.layers):
            if not self._stores:
                x = layer.alone(x, layer.norm(x))
                final_x = layer.alone(final_x, layer.norm(final_x))
                continue
            x, final_x, layer_loss, looked, layer_memory = unroll_layer(
                layer, x, memory, i, axis, final_x, pressure, details, keep
            )
            if layer_loss is not None:
                loss = loss + layer_loss / len(self.layers)
            inspected.append(looked)
            kept.append(layer_memory)
        after = None
        if keep:
            after = Memory(tuple(kept), (axis.clock(memory.time)[:, -1] + 1).to(memory.time.dtype), memory.drawn)
        inspections = tuple(inspected) if details else ()
        return CoreOutput(self.norm(x).transpose(0, 1), self.norm(final_x), loss, inspections, after)
