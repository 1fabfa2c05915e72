"""One layer of the Transformer: its config, its weights, and what it computes from them.

B environments, N queries, C slots, D width, H heads, d = D / H, P relative positions. Pre-norm; keys and values are read
from the normalised memory. `write` and `read` are all that anything does with a layer.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expire_span_rl.policies.memory.kind import MemoryKind
from expire_span_rl.policies.settings import TransformerConfig
from expire_span_rl.policies.transformer.attention import attend, attend_rollout
from expire_span_rl.policies.transformer.gating import Gate
from expire_span_rl.policies.transformer.slots import Slots, Written

SHIFT = 20.0
"""Score of the step before in a shifted head, where all other memories have 0: of thousands none is seen."""


def _fixed(tensor: Tensor, axis: int, count: int) -> Tensor:
    """The tensor, of which the first `count` along an axis learn nothing."""
    if not torch.is_grad_enabled():  # acting
        return tensor
    fixed, free = tensor.split([count, tensor.shape[axis] - count], axis)
    return torch.cat([fixed.detach(), free], axis)


def orthogonal(linear: nn.Linear, gain: float) -> None:
    """Orthogonal weights and no bias: differences between inputs reach the output undimmed. With PyTorch's default the
    biases drown what tells two observations apart, and a policy needs several times as many steps to find its
    memory."""
    nn.init.orthogonal_(linear.weight, gain)
    nn.init.zeros_(linear.bias)


class Reading(NamedTuple):
    """What a layer makes of queries, and how it looked."""

    x: Tensor  # [B,N,D] the layer's output
    queries: Tensor  # [B,H,N,d]
    age: Tensor  # [B,N,C]
    visible: Tensor  # [B,N,C] bool
    weights: Tensor  # [B,H,N,C], without gradient


class Layer(nn.Module):
    """Attention over memory, then a feed-forward layer, both residual."""

    def __init__(self, config: TransformerConfig, kind: MemoryKind, shifted: int = 0):
        """shifted: heads, the first ones, that look at the step before."""
        super().__init__()
        width, size = config.width, config.width // config.num_heads
        self.heads, self.kind, self.shifted = config.num_heads, kind, shifted
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width)
        self.positions = nn.Parameter(torch.randn(config.num_positions, width // config.num_heads) * 0.02)
        self.age_bias = None
        if config.shifted_heads:
            bias = torch.zeros(config.num_heads, config.num_positions)
            bias[:shifted, 1] = SHIFT
            self.age_bias = nn.Parameter(bias)
        up, down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.feed_forward = nn.Sequential(nn.LayerNorm(width), up, nn.ReLU(), down)
        with torch.no_grad():
            # With a gain of 1 or 2 all heads start near uniform attention, and the one useful memory among a hundred is
            # 1% of what is read; with 5 some head looks at the odd one out from the start: above 5% in 85% of 40
            # networks, above 20% in half of them (at the door of a corridor of 100 tiles, four heads, two layers).
            self.query.weight.mul_(config.sharpness)
            self.key_value.weight[:width].mul_(config.sharpness)
            self.query.weight[: shifted * size] = 0
        nn.init.normal_(self.out.weight, std=0.1)
        nn.init.zeros_(self.out.bias)
        orthogonal(up, 2**0.5)
        orthogonal(down, 0.5)
        self.gates = nn.ModuleList(Gate(width) for _ in range(2)) if config.gating else None

    @torch.no_grad()
    def look_for_what_followed(self, below: Layer, shifted: int) -> None:
        """Makes an induction head (Olsson et al., 2022, arXiv 2209.11895) of every head: its initial query is what its
        key makes of what the `shifted` first heads of the layer `below` write of the step before."""
        width, size = self.query.in_features, self.query.in_features // self.heads
        written = (
            below.out.weight[:, : shifted * size] @ below.key_value.weight[width : width + shifted * size]
        )  # [D,D]
        for head in range(self.heads):
            rows = slice(head * size, (head + 1) * size)
            key = self.key_value.weight[rows]
            query = key @ written
            self.query.weight[rows] = query * (key.norm() / query.norm())

    def write(self, hidden: Tensor, span_limit: Tensor) -> Written:
        """What queries will look at of hidden vectors [B,C,D]; span_limit: [B,K] what the kind drew for this rollout."""
        normed = self.norm(hidden)
        keys, values = self._by_head(self.key_value(normed))
        return Written(normed, keys, values, self.kind.describe(normed, span_limit))

    def read(self, x: Tensor, normed: Tensor, slots: Slots, at: Tensor, episode: Tensor) -> Reading:
        """The layer for queries x [B,N,D], normalised `normed`, at positions `at` [N] or [B,N], whose episodes began at
        `episode` [B,N]. N is 1, or the queries are those of the last N slots, one for each step."""
        age, visible, bias = slots.seen(self.kind, at, episode)
        queries = self.queries(normed).transpose(1, 2)  # [B,H,N,d]
        attended, weights = self._attend(queries, slots, age, bias)
        return Reading(self.residual(x, attended.transpose(1, 2)), queries, age, visible, weights)

    def _attend(self, queries: Tensor, slots: Slots, age: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Output [B,H,N,d] and weights [B,H,N,C] of queries [B,H,N,d]; age: [B,N,C]; bias: [B,N,C] or [B,H,N,C]."""
        keys, values, positions, loose = slots.keys, slots.values, self.positions, slots.unordered
        if queries.shape[2] == 1:
            recent = keys.shape[2] if loose else None
            one = queries[:, :, 0], keys, values, positions, age[:, 0], bias[..., 0, :], recent, self.by_age()
            attended, weights = attend(*one)
            return attended[:, :, None], weights[:, :, None]
        older = len(positions) - 1  # slots right before the rollout's, of which the first queries need the ages
        past = keys.shape[2] - queries.shape[2]
        corner = age[:, :older, past - older : past]
        extension = age[..., :loose] if loose else None
        return attend_rollout(queries, keys, values, positions, corner, bias, extension, self.by_age())

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
        queries = self.query(normed).unflatten(-1, (self.heads, -1))
        return queries if not self.shifted else _fixed(queries, -2, self.shifted)

    def by_age(self) -> Tensor | None:
        """[H,P]: what each head adds to the scores of an age; None for nothing."""
        if self.age_bias is None or not self.shifted:
            return self.age_bias
        return _fixed(self.age_bias, 0, self.shifted)

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
