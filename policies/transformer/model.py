"""One Transformer with pluggable memory: the recurrent core of a policy.

B environments, T time steps, L layers, D width, F final observations. Pre-norm: keys, values and spans are read from
the normalised memory. Slots of the memory carry no gradient.
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
from expire_span_rl.policies.transformer.slots import BEFORE_START
from expire_span_rl.policies.transformer.unrolling import Axis, unroll_layer

MAX_REUSE = 4  # buffers are used again if they are at most so many times as large as needed


class Transformer(nn.Module):
    """L layers, each with its own memory of the kind that `make_kind` makes."""

    static: bool | None = None
    """Whether acting uses buffers of fixed shapes, whose steps are captured. None: on a GPU only."""

    def __init__(self, config: TransformerConfig, make_kind: Callable[[], MemoryKind]):
        super().__init__()
        self.config = config
        shifted = config.shifted_heads
        layers = [Layer(config, make_kind(), i, 0 if i else shifted) for i in range(config.num_layers)]
        self.layers = cast(Sequence[Layer], nn.ModuleList(layers))
        if shifted:
            for layer in self.layers[1:]:
                layer.make_induction_heads(self.layers[0], shifted)
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

    def draw(self, memory: Memory, generator: torch.Generator | None, *, noiseless: bool = False) -> Memory:
        """`memory` with the random numbers of one training rollout: weights of heads (`_draw_head_weights`), the reach
        of positions (`_draw_position_reach`), then those that the kind draws. If the kind asks for it, uses are
        tracked, spans renewed, and steps of the clock skipped. noiseless: without training noise."""
        kind = self._kinds[0]
        noise = kind.draw(len(memory.time), generator, noiseless=noiseless)
        noise = noise.to(memory.time.device, self.norm.weight.dtype)
        skipped_steps = kind.skipped_steps(noise)
        time = memory.time if skipped_steps is None else memory.time + skipped_steps.to(memory.time.dtype)
        head_weights = self._draw_head_weights(len(time), generator, noiseless).to(noise)
        reach = self._draw_position_reach(len(time), generator, noiseless).to(noise)
        memory = replace(memory, noise=torch.cat([head_weights, reach, noise], 1), time=time)
        layers = [replace(layer, known_need=None) for layer in memory.layers]
        if not kind.tracks_use():
            return replace(memory, layers=tuple(replace(layer, last_use=None) for layer in layers))
        layers = [layer.tracked() for layer in layers]
        if kind.renew_every():
            layers = [layer.renewed() for layer in layers]
        return replace(memory, layers=tuple(layers))

    def _draw_head_weights(self, batch_size: int, generator: torch.Generator | None, noiseless: bool) -> Tensor:
        """[B,(L-1)H]: 0 for the heads that are left out (DropHead: Zhou et al., 2020, arXiv 2004.13342), and for the
        others a factor that keeps the mean. [B,0] without `head_dropout`. Heads of the first layer stay. noiseless:
        all stay."""
        config = self.config
        if not config.head_dropout:
            return torch.zeros(batch_size, 0)
        dropout = 0.0 if noiseless else config.head_dropout
        device = None if generator is None else generator.device
        shape = (batch_size, (config.num_layers - 1) * config.num_heads)
        return (torch.rand(shape, generator=generator, device=device) >= dropout) / (1 - dropout)

    def _draw_position_reach(self, batch_size: int, generator: torch.Generator | None, noiseless: bool) -> Tensor:
        """[B,1]: from 1 to P in the rows that are drawn, and P in the others. [B,0] without `position_dropout`.
        noiseless: none is drawn."""
        chance, reach = self.config.position_dropout, self.config.num_positions
        if not chance:
            return torch.zeros(batch_size, 0)
        chance = 0.0 if noiseless else chance
        device = None if generator is None else generator.device
        draw, size = torch.rand(2, batch_size, 1, generator=generator, device=device)
        return torch.where(draw < chance, 1 + (size * reach).floor().clamp(max=reach - 1), reach)

    # Acting

    def begin(
        self,
        memory: Memory,
        horizon: int,
        into: TransformerActing | GroupedActing | None = None,
        *,
        in_rollout: bool = False,
    ) -> TransformerActing | GroupedActing:
        """Projects `memory` once, into buffers with room for `horizon` more steps.

        into: what was acted on before. Its buffers, and what was captured of its steps, are used again if they fit;
        in_rollout: for a training rollout, in which spans are renewed by `draw` and not on the way.
        """
        renew_every = 0 if in_rollout else self._kinds[0].renew_every()
        if renew_every:
            layers = [layer if layer.known_need is not None else layer.tracked().renewed() for layer in memory.layers]
            memory = replace(memory, layers=tuple(layers))
        begin = partial(self._begin, horizon=horizon, renew_every=renew_every)
        if self._is_static(memory):
            return self._begin_static(memory, begin, into if isinstance(into, TransformerActing) else None)
        live = memory.live()
        groups = None if live is None else acting_groups(live.amax(1))
        if groups is not None:
            return GroupedActing.begin(begin, memory, groups)
        return begin(memory)

    def _is_static(self, memory: Memory) -> bool:
        """Whether steps are captured: on a GPU, unless the kind merges slots. Which slots merge depends on numbers that
        the device would have to be asked for."""
        if not self._stores or self._kinds[0].merging is not None:
            return False
        return memory.time.is_cuda if self.static is None else self.static

    def _begin_static(
        self, memory: Memory, begin: Callable[..., TransformerActing], into: TransformerActing | None
    ) -> TransformerActing:
        size = ladder(_num_slots(memory))
        if into is not None and into.static and size <= into.size <= MAX_REUSE * size:
            size = into.size
        acting = begin(memory, size=size)
        acting.column = torch.full((1,), size, device=memory.time.device)
        acting.noise = memory.noise.clone()
        if into is not None and into.refill(acting):
            return into
        return acting

    def _begin(self, memory: Memory, *, horizon: int, renew_every: int, size: int | None = None) -> TransformerActing:
        size = _num_slots(memory) if size is None else size
        buffers = [
            LayerBuffers.begin(layer, layer_memory, memory, size, horizon)
            for layer, layer_memory in zip(self.layers, memory.layers, strict=False)
        ]
        episode_begin = torch.full_like(memory.time, BEFORE_START, dtype=self.norm.weight.dtype)
        return TransformerActing(
            layers=buffers,
            time=memory.time.clone(),
            noise=memory.noise,
            kinds=self._kinds,
            size=size,
            horizon=horizon,
            renew_every=renew_every,
            episode_begin=episode_begin,
            query_position=episode_begin.new_zeros(1),
        )

    def step(self, x: Tensor, acting: TransformerActing | GroupedActing, episode_start: Tensor) -> Tensor:
        """One time step: x [B,D], episode_start [B] bool -> features [B,D]. Writes into `acting`."""
        if isinstance(acting, GroupedActing):
            return acting.step(self.step, x, episode_start)
        if acting.full:
            steps_taken, horizon = acting.steps_taken, acting.horizon
            raise ValueError(f"acting: expected room for a step, got {steps_taken} of {horizon} steps taken")
        acting.begin_episodes(episode_start)
        x = x[:, None]
        live = []
        for i, layer in enumerate(self.layers):
            if not self._stores:
                x = layer.read_self(x, layer.norm(x))
                continue
            projection = layer.write(x, acting.noise)
            slots = acting.write_slots(i, projection, x)
            position, episode_begin = acting.query_position, acting.episode_begin[:, None]
            reading = layer.read(x, projection.normed, slots, acting.noise, position, episode_begin)
            live.append(reading.num_visible)  # [B,1]
            if acting.layers[i].uses:
                acting.record_use(i, layer.kind.is_used(reading.weights, reading.num_visible[..., None])[:, 0])
            x = reading.x
        acting.live = torch.cat(live, 1) if live else None
        acting.advance()
        self._merge_due(acting)
        self._renew_due(acting)
        return self.norm(x[:, 0])

    def _renew_due(self, acting: TransformerActing) -> None:
        """Renews the slot features of the environments whose clock says so."""
        if not acting.renew_every:
            return
        is_due = (acting.time % acting.renew_every == 0) & (acting.time > 0)
        if acting.static or bool(is_due.any()):  # a captured step cannot ask
            for layer, buffers in zip(self.layers, acting.layers, strict=True):
                buffers.renew(layer, acting, is_due)

    def _merge_due(self, acting: TransformerActing) -> None:
        """Merges the blocks whose merged slots the next query is the first to see."""
        merging = self._kinds[0].merging
        if merging is None:
            return
        rows = torch.nonzero(merging.due(acting.time)).squeeze(1)
        if len(rows):
            for layer, buffers in zip(self.layers, acting.layers, strict=True):
                merge_in_place(layer, merging, buffers, rows, acting)

    def value(self, x: Tensor, acting: TransformerActing | GroupedActing, rows: Tensor) -> Tensor:
        """Features [R,D] of observations x [R,D] that follow the last step in the environments `rows` [R]. No later
        query sees them: nothing is written into `acting`."""
        if isinstance(acting, GroupedActing):
            return acting.value(self.value, x, rows)
        x = x[:, None]
        episode_begin = acting.episode_begin[rows, None]
        query_position = torch.full_like(episode_begin, acting.steps_taken)
        for i, layer in enumerate(self.layers):
            if not self._stores:
                x = layer.read_self(x, layer.norm(x))
                continue
            noise = acting.noise[rows]
            projection = layer.write(x, noise)
            slots = acting.layers[i].slots.columns(0, acting.num_slots).rows(rows)
            slots = slots.append(projection, query_position[:, 0])
            x = layer.read(x, projection.normed, slots, noise, query_position, episode_begin).x
        return self.norm(x[:, 0])

    # Learning

    def unroll(
        self,
        x: Tensor,
        memory: Memory,
        episode_start: Tensor,
        final_x: Tensor,
        final_at: tuple[Tensor, Tensor],
        *,
        pressure: float = 0.0,
        details: bool = False,
        keep: bool = False,
    ) -> CoreOutput:
        """One parallel pass: x [T,B,D], episode_start [T,B] bool, final_x [F,D], final_at (t, b) int64 [F] each.

        details: give the inspection of every layer; keep: give the memory after the last step.
        A final observation follows step t of row b. It sees what step t + 1 would see if the episode went on, and no
        query sees it. Rows run in groups of similar memory size, which changes nothing but the speed.
        """
        learns_spans = pressure and self._kinds[0].tracks_use() and torch.is_grad_enabled() and not details
        if not learns_spans:  # otherwise memories of episodes that are over teach their spans
            starts = episode_start[0]
            layers = tuple(replace(layer, alive=layer.alive & ~starts[:, None]) for layer in memory.layers)
            memory = replace(memory, layers=layers)
        run = partial(self._unroll, pressure=pressure, details=details, keep=keep)
        live = memory.live()
        groups = None
        if live is not None and not details:
            groups = learning_groups(live.amax(1) + len(x))
        if groups is not None:
            return _unroll_groups(run, groups, x, memory, episode_start, final_x=final_x, final_at=final_at)
        if not (details or x.is_cuda):
            memory = replace(memory, layers=tuple(layer.trimmed() for layer in memory.layers))
        return run(x, memory, episode_start, final_x, final_at)

    def _unroll(
        self,
        x: Tensor,
        memory: Memory,
        episode_start: Tensor,
        final_x: Tensor,
        final_at: tuple[Tensor, Tensor],
        *,
        pressure: float,
        details: bool,
        keep: bool,
    ) -> CoreOutput:
        """`unroll` of all rows at once."""
        axis = Axis.of(episode_start, x.dtype, final_at, memory)
        x = x.transpose(0, 1)
        loss = x.new_zeros(())
        inspections, layer_memories = [], []
        for i, layer in enumerate(self.layers):
            if not self._stores:
                x = layer.read_self(x, layer.norm(x))
                final_x = layer.read_self(final_x, layer.norm(final_x))
                continue
            x, final_x, extras = unroll_layer(
                layer, x, memory.layers[i], axis, final_x, pressure=pressure, details=details, keep=keep
            )
            if extras.loss is not None:
                loss = loss + extras.loss / len(self.layers)
            inspections.append(extras.inspection)
            layer_memories.append(extras.memory)
        return CoreOutput(
            features=self.norm(x).transpose(0, 1),
            final_features=self.norm(final_x),
            loss=loss,
            layers=tuple(inspections) if details else (),
            memory=Memory(tuple(layer_memories), axis.time_after(), memory.noise) if keep else None,
        )


def _unroll_groups(
    run: Callable[..., CoreOutput],
    groups: tuple[Tensor, ...],
    x: Tensor,
    memory: Memory,
    episode_start: Tensor,
    *,
    final_x: Tensor,
    final_at: tuple[Tensor, Tensor],
) -> CoreOutput:
    """`run`, an unroll, of each group of rows by itself, and the outputs of all rows in their order."""
    places = Places(groups)
    t, b = final_at
    outputs = []
    final_indices = []
    loss = x.new_zeros(())
    for number, rows in enumerate(groups):
        in_group = torch.nonzero(places.group[b] == number).squeeze(1)
        group_final_at = (t[in_group], places.place[b[in_group]])
        output = run(x[:, rows], memory.rows(rows), episode_start[:, rows], final_x[in_group], group_final_at)
        outputs.append(output)
        final_indices.append(in_group)
        loss = loss + output.loss * (len(rows) / len(places.back))
    final_order = torch.argsort(torch.cat(final_indices))
    memories = [output.memory for output in outputs if output.memory is not None]
    return CoreOutput(
        features=torch.cat([output.features for output in outputs], 1)[:, places.back],
        final_features=torch.cat([output.final_features for output in outputs])[final_order],
        loss=loss,
        memory=Memory.join(memories, groups) if memories else None,
    )


def _num_slots(memory: Memory) -> int:
    """Slots of the layer that has the most."""
    return max((layer.hidden.shape[1] for layer in memory.layers), default=0)
