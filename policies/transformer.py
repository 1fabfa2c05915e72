"""One Transformer with pluggable memory: the recurrent core of a policy.

B environments, T time steps, S memory slots, C = S + T slots, L layers, D width, H heads, P relative positions, F final
observations. Pre-norm; keys, values and spans are read from the normalised memory; cached slots carry no gradient.

Within a rollout all slots have a coordinate on its time axis: step t is t, a memory slot is minus its age at step 0. A
query's age to a slot is the difference, and it sees no slot whose coordinate lies before the start of its episode.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from policies.attention import attend, attend_rollout
from policies.memory.base import LayerMemory, Memory, MemoryKind

ROWS_AT_ONCE = 8  # unroll: rows of like memory size go together, so that padding is small,
PADDING = 1.2  # where all rows at once would take this many times the slots that are needed
SHARPNESS = 5.0
"""Gain of the initial query and key weights. With 1 or 2 all heads start near uniform attention, and the one useful
memory among a hundred is 1% of what is read; with 5 some head looks at the odd one out from the start: above 5% in 85
of 100 networks, above 20% in half of them (at the door of a corridor of 100 tiles, four heads, two layers)."""


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

    def __post_init__(self):
        for name in ("width", "num_layers", "num_heads", "num_positions"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')}: expected at least 1, got {getattr(self, name)}")
        if self.width % self.num_heads:
            raise ValueError(f"--width: expected a multiple of --num-heads ({self.num_heads}), got {self.width}")


@dataclass
class LayerBuffers:
    """One layer while acting: C = S + horizon slots, oldest first; those from `Acting.filled` on are not yet written."""

    keys: Tensor  # [B,H,C,d]
    values: Tensor  # [B,H,C,d]
    hidden: Tensor  # [B,C,D]
    described: Tensor | None  # [B,C]
    birth: Tensor  # [B,C]
    alive: Tensor  # [B,C] bool


@dataclass
class Acting:
    """A memory projected under today's weights, with room to act on. The caller owns it; `step` writes into it."""

    layers: list[LayerBuffers]
    time: Tensor  # [B] clock of the observation that comes next
    drawn: Tensor  # [B,K]
    kinds: tuple[MemoryKind, ...]
    filled: int  # slots in use
    capacity: int
    live: Tensor | None = None  # [B,L] memories that the last step saw, itself included; None for a kind without slots

    @property
    def full(self) -> bool:
        """No room for another step: call `begin(acting.memory(), horizon)`."""
        return self.filled >= self.capacity

    def memory(self) -> Memory:
        """What survives, compacted: slots that the next query cannot see are gone for good."""
        return Memory(tuple(self._compacted(*pair) for pair in zip(self.layers, self.kinds)), self.time, self.drawn)

    def _compacted(self, layer: LayerBuffers, kind: MemoryKind) -> LayerMemory:
        n = self.filled
        age = self.time[:, None] - layer.birth[:, :n]
        described = None if layer.described is None else layer.described[:, :n]
        keep = layer.alive[:, :n] & kind.survives(age.to(layer.keys.dtype), described)  # [B,n]
        size = int(keep.sum(1).max())
        order = torch.argsort(keep.to(torch.uint8), dim=1, stable=True)[
            :, n - size :
        ]  # the kept to the right, in order
        alive = keep.gather(1, order)
        hidden = layer.hidden.gather(1, order[..., None].expand(-1, -1, layer.hidden.shape[2]))
        return LayerMemory(hidden, layer.birth.gather(1, order), alive)


@dataclass(frozen=True)
class LayerInspection:
    """What one layer did in an unroll. C slots: those of the memory, then the rollout's."""

    coordinate: Tensor  # [B,C] step at which the slot was written; negative in memory, minus infinity if dead
    described: Tensor | None  # [B,C] the kind's number per slot (Expire-Span: its span in steps)
    visible: Tensor  # [B,T,C] bool
    attention: Tensor  # [B,H,T,C] weights


@dataclass(frozen=True)
class CoreOutput:
    """Features of an unroll, and what learning and looking need beside them."""

    features: Tensor  # [T,B,D]
    final_features: Tensor  # [F,D]
    loss: Tensor  # scalar, of the memory kind
    layers: tuple[LayerInspection, ...] = ()


@dataclass(frozen=True)
class _Axis:
    """Coordinates that the layers of one unroll share."""

    queries: Tensor  # [T]
    episode: Tensor  # [B,T] coordinate at which the query's episode began; minus infinity if before the rollout
    final_at: tuple[Tensor, Tensor]  # (t, b) int64 [F] each
    drawn: Tensor


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

    def keys_values(self, normed: Tensor) -> tuple[Tensor, Tensor]:
        """[B,C,D] -> keys and values [B,H,C,d]."""
        batch, slots, width = normed.shape
        both = self.key_value(normed).view(batch, slots, 2, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        return both[0], both[1]

    def queries(self, normed: Tensor) -> Tensor:
        """[..., D] -> [..., H, d]."""
        return self.query(normed).unflatten(-1, (self.heads, -1))

    def residual(self, x: Tensor, attended: Tensor) -> Tensor:
        """x: [..., D]; attended: [..., H, d] -> [..., D]."""
        x = x + self.out(attended.flatten(-2))
        return x + self.feed_forward(x)

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

    def begin(self, memory: Memory, horizon: int) -> Acting:
        """Projects `memory` once and lays it out with room for `horizon` more steps."""
        size = max((layer.hidden.shape[1] for layer in memory.layers), default=0)
        buffers = [
            self._laid_out(layer, held, memory, size, horizon) for layer, held in zip(self.layers, memory.layers)
        ]
        return Acting(buffers, memory.time.clone(), memory.drawn, self._kinds, size, size + horizon)

    def _laid_out(self, layer: Layer, held: LayerMemory, memory: Memory, size: int, horizon: int) -> LayerBuffers:
        held = _padded(held, size)
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

    def step(self, x: Tensor, acting: Acting, episode_start: Tensor) -> Tensor:
        """One time step: x [B,D], episode_start [B] bool -> features [B,D]. Writes into `acting`."""
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
            age, bias = self._acting_bias(
                layer.kind, acting.time, buffers.birth[:, :n], buffers.alive[:, :n], described
            )
            attended, _ = attend(
                layer.queries(normed), buffers.keys[:, :, :n], buffers.values[:, :, :n], layer.positions, age, bias
            )
            live.append((bias > -math.inf).sum(1))
            x = layer.residual(x, attended)
        acting.filled = n
        acting.time += 1
        acting.live = torch.stack(live, 1) if live else None
        return self.norm(x)

    def value(self, x: Tensor, acting: Acting, rows: Tensor) -> Tensor:
        """Features [R,D] of observations x [R,D] that follow the last step in the environments `rows` [R], and to which
        nothing else will attend: `acting` is not written."""
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
            age, bias = self._acting_bias(layer.kind, time, birth, alive, described)
            keys = torch.cat([buffers.keys[rows, :, :n], key], 2)
            values = torch.cat([buffers.values[rows, :, :n], value], 2)
            x = layer.residual(x, attend(layer.queries(normed), keys, values, layer.positions, age, bias)[0])
        return self.norm(x)

    def _acting_bias(
        self, kind: MemoryKind, time: Tensor, birth: Tensor, alive: Tensor, described: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Ages [B,C] and the additive term [B,C] of one query per environment."""
        age = (time[:, None] - birth).to(self.norm.weight.dtype)
        visible, term = kind.visibility(age[:, None], described)
        seen = alive if visible is None else alive & visible[:, 0]
        zero = torch.zeros_like(age) if term is None else term[:, 0]
        return age, torch.where(seen, zero, -math.inf)

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
        batch = x.shape[1]
        if details or not self._stores or batch < 2 * ROWS_AT_ONCE:
            return self._unroll(x, memory, episode_start, final_x, final_at, pressure, details)
        slots = memory.live().amax(1) + len(x)  # [B] what each row needs; together all would take the largest of them
        if int(slots.max()) * batch < PADDING * int(slots.sum()):
            return self._unroll(
                x, memory.rows(torch.arange(batch, device=x.device)), episode_start, final_x, final_at, pressure, False
            )
        order = torch.argsort(slots)
        groups = order.tensor_split(max(1, batch // ROWS_AT_ONCE))
        place = torch.empty_like(order)  # row -> position in its group
        group_of = torch.empty_like(order)
        for g, rows in enumerate(groups):
            place[rows] = torch.arange(len(rows), device=order.device)
            group_of[rows] = g
        outputs, final_index, loss = [], [], 0.0
        for g, rows in enumerate(groups):
            mine = torch.nonzero(group_of[final_at[1]] == g).squeeze(1)
            at = (final_at[0][mine], place[final_at[1][mine]])
            part = self._unroll(
                x[:, rows], memory.rows(rows), episode_start[:, rows], final_x[mine], at, pressure, False
            )
            outputs.append(part)
            final_index.append(mine)
            loss = loss + part.loss * (len(rows) / batch)
        features = torch.cat([part.features for part in outputs], 1)[:, torch.argsort(order)]
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
        axis = _Axis(steps, start, final_at, memory.drawn)
        x, loss, inspected = x.transpose(0, 1), x.new_zeros(()), []
        for i, layer in enumerate(self.layers):
            if not self._stores:
                x = layer.alone(x, layer.norm(x))
                final_x = layer.alone(final_x, layer.norm(final_x))
                continue
            x, final_x, layer_loss, looked = self._layer(layer, x, memory, i, axis, final_x, pressure, details)
            if layer_loss is not None:
                loss = loss + layer_loss / len(self.layers)
            inspected.append(looked)
        return CoreOutput(self.norm(x).transpose(0, 1), self.norm(final_x), loss, tuple(inspected) if details else ())

    def _layer(
        self,
        layer: Layer,
        x: Tensor,
        memory: Memory,
        index: int,
        axis: _Axis,
        final_x: Tensor,
        pressure: float,
        details: bool,
    ) -> tuple[Tensor, Tensor, Tensor | None, LayerInspection | None]:
        """One layer of an unroll: x [B,T,D], final_x [F,D] -> their next values, the kind's loss, what was seen."""
        batch, steps, _ = x.shape
        held = memory.layers[index]
        held = _padded(held, max(held.hidden.shape[1], len(layer.positions) - 1))
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
            final_x = self._finals(layer, final_x, axis, keys, values, coordinate, described)

        loss = None
        if torch.is_grad_enabled() and not details:
            lift, last_use = layer.kind.use_lift(), None
            if lift is not None:  # w / (1 - w) * others > lift, solved for w
                others = visible.sum(2, keepdim=True) - 1
                used = weights.amax(1) > lift / (lift + others)  # [B,T,C]
                last_use = age.masked_fill(~used, -1).amax(1)
            new = torch.zeros_like(coordinate, dtype=torch.bool)
            new[:, size:] = True
            loss = layer.kind.loss(normed, new, last_use, axis.drawn, pressure)
        looked = LayerInspection(coordinate, described, visible, weights) if details else None
        return after, final_x, loss, looked

    def _finals(
        self,
        layer: Layer,
        x: Tensor,
        axis: _Axis,
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
        attended, _ = attend(layer.queries(normed), keys, values, layer.positions, age[:, 0], bias[:, 0])
        return layer.residual(x, attended)


def _rollout_bias(
    kind: MemoryKind, queries: Tensor, episode: Tensor, coordinate: Tensor, described: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Age, visibility and additive term, [B,N,C] each, of queries at coordinates [N] or [B,N] whose episodes began at
    `episode` [B,N] for slots at `coordinate` [B,C]."""
    queries = queries if queries.ndim == 2 else queries[None]
    age = queries[..., None] - coordinate.clamp(min=-1e9)[:, None]
    seen = (coordinate[:, None] >= episode.clamp(min=-1e8)[..., None]) & (age >= 0)
    visible, term = kind.visibility(age, described)
    seen = seen if visible is None else seen & visible
    zero = torch.zeros((), dtype=age.dtype, device=age.device) if term is None else term
    return age, seen, torch.where(seen, zero, -math.inf)


def _padded(held: LayerMemory, size: int) -> LayerMemory:
    """The layer's memory with `size` slots, dead ones zeroed (0 * NaN is NaN, so they must not be multiplied)."""
    missing = size - held.hidden.shape[1]
    hidden = torch.where(held.alive[..., None], held.hidden, 0)
    return LayerMemory(
        F.pad(hidden, (0, 0, missing, 0)), F.pad(held.birth, (missing, 0)), F.pad(held.alive, (missing, 0))
    )
