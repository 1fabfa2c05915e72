"""One Transformer with pluggable memory: the recurrent core of a policy.

B environments, T time steps, S memory slots, C = S + T slots, L layers, D width, H heads, P relative positions, F final
observations. Pre-norm; keys, values and spans are read from the normalised memory; cached slots carry no gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from policies.acting import LayerBuffers, TransformerActing
from policies.attention import attend
from policies.core import CoreOutput
from policies.extension import merge_in_place
from policies.gating import Gate
from policies.grouping import GroupedActing, Places, acting_groups, learning_groups
from policies.memory.base import LayerMemory, Memory, MemoryKind, check_at_least
from policies.unrolling import Axis, unroll_layer

SHARPNESS = 5.0
"""Gain of the initial query and key weights. With 1 or 2 all heads start near uniform attention, and the one useful
memory among a hundred is 1% of what is read; with 5 some head looks at the odd one out from the start: above 5% in 85
of 100 networks, above 20% in half of them (at the door of a corridor of 100 tiles, four heads, two layers)."""
SHIFT = 10.0
"""What a shifted head adds to the score of the step before, at first: more than most contents give. 30 was no faster."""


@dataclass(frozen=True)
class TransformerConfig:
    width: int = 64
    """Model width D."""
    num_layers: int = 2
    """Layers of attention, each with a memory of its own."""
    num_heads: int = 4
    """Attention heads H."""
    num_positions: int = 16
    """Relative positions P: a memory older than that is found by its content alone."""
    shifted_heads: int = 0
    """Heads of every layer that begin by looking at the step before, by a learned bias per age: what followed what can
    then be read from one memory."""
    gating: bool = False
    """Gates instead of sums where attention and feed-forward layers join the residual stream (GTrXL)."""

    def __post_init__(self):
        check_at_least(self, width=1, num_layers=1, num_heads=1, num_positions=1)
        if not 0 <= self.shifted_heads <= self.num_heads:
            raise ValueError(f"--shifted-heads: expected 0 to --num-heads ({self.num_heads}), got {self.shifted_heads}")
        if self.shifted_heads and self.num_positions < 2:
            raise ValueError(f"--shifted-heads: expected --num-positions of at least 2, got {self.num_positions}")
        if self.width % self.num_heads:
            raise ValueError(f"--width: expected a multiple of --num-heads ({self.num_heads}), got {self.width}")


def orthogonal(linear: nn.Linear, gain: float) -> None:
    """Orthogonal weights and no bias: differences between inputs reach the output undimmed. With PyTorch's default the
    biases drown what tells two observations apart, and a policy needs several times as many steps to find its memory."""
    nn.init.orthogonal_(linear.weight, gain)
    nn.init.zeros_(linear.bias)


class Layer(nn.Module):
    """Attention over memory, then a feed-forward layer, both residual."""

    def __init__(self, config: TransformerConfig, kind: MemoryKind):
        super().__init__()
        width = config.width
        self.heads, self.kind = config.num_heads, kind
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width)
        self.positions = nn.Parameter(torch.randn(config.num_positions, width // config.num_heads) * 0.02)
        self.age_bias = None
        if config.shifted_heads:
            bias = torch.zeros(config.num_heads, config.num_positions)
            bias[: config.shifted_heads, 1] = SHIFT
            self.age_bias = nn.Parameter(bias)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width)
        )
        with torch.no_grad():
            self.query.weight.mul_(SHARPNESS)
            self.key_value.weight[:width].mul_(SHARPNESS)
        nn.init.normal_(self.out.weight, std=0.1)
        nn.init.zeros_(self.out.bias)
        orthogonal(self.feed_forward[1], 2**0.5)
        orthogonal(self.feed_forward[3], 0.5)
        self.gates = nn.ModuleList(Gate(width) for _ in range(2)) if config.gating else None

    def keys_values(self, normed: Tensor) -> tuple[Tensor, Tensor]:
        """[B,C,D] -> keys and values [B,H,C,d]."""
        return self._by_head(self.key_value(normed))

    def _by_head(self, both: Tensor) -> tuple[Tensor, Tensor]:
        """[B,C,2D] -> [B,H,C,d] twice."""
        both = both.unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return both[0], both[1]

    def frozen_keys_values(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of hidden vectors [B,C,D], by weights that learn nothing from it."""
        norm = self.norm
        normed = F.layer_norm(hidden, norm.normalized_shape, norm.weight.detach(), norm.bias.detach(), norm.eps)
        return self._by_head(F.linear(normed, self.key_value.weight.detach()))

    def queries(self, normed: Tensor) -> Tensor:
        """[..., D] -> [..., H, d]."""
        return self.query(normed).unflatten(-1, (self.heads, -1))

    def attend(
        self, normed: Tensor, keys: Tensor, values: Tensor, age: Tensor, bias: Tensor, recent: int | None = None
    ) -> Tensor:
        """One query per row, see `policies.attention.attend`: normed [B,D] -> [B,H,d]."""
        return attend(self.queries(normed), keys, values, self.positions, age, bias, recent, self.age_bias)[0]

    def residual(self, x: Tensor, attended: Tensor) -> Tensor:
        """x: [..., D]; attended: [..., H, d] -> [..., D]."""
        x = self._joined(0, x, self.out(attended.flatten(-2)))
        return self._joined(1, x, self.feed_forward(x))

    def _joined(self, part: int, x: Tensor, y: Tensor) -> Tensor:
        """What attention (part 0) or the feed-forward layer (1) computed from x, joined with x. [..., D] each."""
        return x + y if self.gates is None else self.gates[part](x, F.relu(y))

    def alone(self, x: Tensor, normed: Tensor) -> Tensor:
        """The layer for a kind that stores nothing: attention to oneself is one's own value."""
        return self.residual(x, self.key_value(normed)[..., normed.shape[-1] :].unflatten(-1, (self.heads, -1)))


class Transformer(nn.Module):
    """L layers, each with its own memory of the kind that `make_kind` makes."""

    def __init__(self, config: TransformerConfig, make_kind: Callable[[], MemoryKind]):
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(Layer(config, make_kind()) for _ in range(config.num_layers))
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
        return replace(memory, drawn=drawn.to(memory.time.device, self.norm.weight.dtype))

    # Acting

    def begin(self, memory: Memory, horizon: int) -> TransformerActing | GroupedActing:
        """Projects `memory` once and lays it out with room for `horizon` more steps."""
        groups = acting_groups(memory.live().amax(1)) if self._stores else None
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
            if buffers.described is not None:
                buffers.described[:, n - 1] = layer.kind.describe(normed[:, None], acting.drawn)[:, 0]
            buffers.birth[:, n - 1] = acting.time
            buffers.alive[:, n - 1] = True
            described = None if buffers.described is None else buffers.described[:, :n]
            age, seen, bias = self._acting_bias(
                layer.kind, acting.time, buffers.birth[:, :n], buffers.alive[:, :n], described
            )
            attended = layer.attend(normed, buffers.keys[:, :, :n], buffers.values[:, :, :n], age, bias)
            live.append(seen.sum(1))
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
                merge_in_place(layer, buffers, rows, time, acting.filled, drawn)

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
            if buffers.described is not None:
                own = layer.kind.describe(normed[:, None], acting.drawn[rows])
                described = torch.cat([buffers.described[rows, :n], own], 1)
            birth = torch.cat([buffers.birth[rows, :n], time[:, None]], 1)
            alive = F.pad(buffers.alive[rows, :n], (0, 1), value=True)
            age, _, bias = self._acting_bias(layer.kind, time, birth, alive, described)
            keys = torch.cat([buffers.keys[rows, :, :n], key], 2)
            values = torch.cat([buffers.values[rows, :, :n], value], 2)
            x = layer.residual(x, layer.attend(normed, keys, values, age, bias))
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
    ) -> CoreOutput:
        """One parallel pass: x [T,B,D], episode_start [T,B] bool, final_x [F,D], final_at (t, b) int64 [F] each.

        A final observation follows step t of row b, sees what step t + 1 would see had the episode gone on, and is seen
        by nobody. Rows are worked off in groups of like memory size, which changes nothing but the speed.
        """
        fresh = episode_start[0]
        layers = tuple(replace(m, alive=m.alive & ~fresh[:, None]) for m in memory.layers)
        memory = replace(memory, layers=layers)
        slots = memory.live().amax(1) + len(x) if self._stores else None  # [B] what each row needs
        groups = None if details or slots is None else learning_groups(slots)
        if groups is None:
            if not details:
                memory = replace(memory, layers=tuple(layer.trimmed() for layer in memory.layers))
            return self._unroll(x, memory, episode_start, final_x, final_at, pressure, details)
        places, (t, b) = Places(groups), final_at
        outputs, final_index, loss = [], [], 0.0
        for number, rows in enumerate(groups):
            mine = torch.nonzero(places.group[b] == number).squeeze(1)
            at = (t[mine], places.place[b[mine]])
            part = self._unroll(
                x[:, rows], memory.rows(rows), episode_start[:, rows], final_x[mine], at, pressure, False
            )
            outputs.append(part)
            final_index.append(mine)
            loss = loss + part.loss * (len(rows) / len(places.back))
        features = torch.cat([part.features for part in outputs], 1)[:, places.back]
        finals = torch.cat([part.final_features for part in outputs])[torch.argsort(torch.cat(final_index))]
        return CoreOutput(features, finals, loss)

    def _unroll(
        self,
        x: Tensor,
        memory: Memory,
        episode_start: Tensor,
        final_x: Tensor,
        final_at: tuple[Tensor, Tensor],
        pressure: float,
        details: bool,
    ) -> CoreOutput:
        steps = torch.arange(len(x), device=x.device, dtype=x.dtype)
        start = torch.where(episode_start.T, steps, -math.inf).cummax(1).values  # [B,T]
        axis = Axis(steps, start, final_at, memory.drawn)
        x, loss, inspected = x.transpose(0, 1), x.new_zeros(()), []
        for i, layer in enumerate(self.layers):
            if not self._stores:
                x = layer.alone(x, layer.norm(x))
                final_x = layer.alone(final_x, layer.norm(final_x))
                continue
            x, final_x, layer_loss, looked = unroll_layer(layer, x, memory, i, axis, final_x, pressure, details)
            if layer_loss is not None:
                loss = loss + layer_loss / len(self.layers)
            inspected.append(looked)
        return CoreOutput(self.norm(x).transpose(0, 1), self.norm(final_x), loss, tuple(inspected) if details else ())
