"""One layer of the Transformer: its weights, and what it computes from them.

B environments, N queries, C slots, D width, H heads, d = D / H, P relative positions. Pre-norm: keys and values are
read from the normalised memory. Everything that uses a layer calls `write` and `read`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expire_span_rl.policies.memory.kind import MemoryKind
from expire_span_rl.policies.precision import Linear
from expire_span_rl.policies.settings import TransformerConfig
from expire_span_rl.policies.transformer.attention import attend, attend_rollout, normalize
from expire_span_rl.policies.transformer.gating import Gate
from expire_span_rl.policies.transformer.slots import Projection, Slots

SHIFT = 20.0
"""Score of the previous step in a shifted head. All other memories have 0, so that even thousands get no attention."""


def _freeze(tensor: Tensor, axis: int, count: int) -> Tensor:
    """The same tensor; the first `count` entries along an axis get no gradient."""
    if not torch.is_grad_enabled():  # acting
        return tensor
    frozen, free = tensor.split([count, tensor.shape[axis] - count], axis)
    return torch.cat([frozen.detach(), free], axis)


def orthogonal(linear: nn.Linear, gain: float) -> None:
    """Initialises orthogonal weights and no bias, so that differences between inputs keep their size at the output.

    With PyTorch's default biases the differences between two observations drown, and a policy needs several times as
    many steps to find its memory.
    """
    nn.init.orthogonal_(linear.weight, gain)
    nn.init.zeros_(linear.bias)


def _initial_gains(config: TransformerConfig) -> Tensor:
    """[H,1]: what the queries of each head are multiplied by at first. Scores grow with the square of the sharpness."""
    gains = torch.ones(config.num_heads, 1)
    uniform = int(config.uniform_heads * config.num_heads)
    gains[config.num_heads - uniform :] = min(1.0, 1 / config.sharpness**2)
    return gains


class Reading(NamedTuple):
    """The output of a layer for its queries, and their attention."""

    x: Tensor  # [B,N,D] the layer's output
    queries: Tensor  # [B,H,N,d], sharpened
    age: Tensor  # [B,N,C]
    visible: Tensor  # [B,N,C] bool
    num_visible: Tensor  # int64 [B,N]
    weights: Tensor  # [B,H,N,C]


class Layer(nn.Module):
    """Attention over memory, then a feed-forward layer, both residual."""

    def __init__(self, config: TransformerConfig, kind: MemoryKind, index: int = 0, shifted: int = 0):
        """index: of the layer, from 0 on; shifted: number of heads, the first ones, that attend to the previous
        step."""
        super().__init__()
        # What is drawn for a rollout begins with weights of heads, those of this layer among them, and the reach of
        # positions. The rest is the kind's.
        num_weights = config.num_heads * (config.num_layers - 1) if config.head_dropout else 0
        has_weights = config.head_dropout and index
        self.head_weight_columns = (
            slice(config.num_heads * (index - 1), config.num_heads * index) if has_weights else None
        )
        self.reach_column = num_weights if config.position_dropout else None
        self.noise_columns = num_weights + (self.reach_column is not None)
        width = config.width
        size = width // config.num_heads
        self.heads = config.num_heads
        self.kind = kind
        self.shifted = shifted
        self.newest_first = config.newest_first
        self.sharpen_beyond = config.sharpen_beyond
        self.norm = nn.LayerNorm(width)
        self.initial_gains = _initial_gains(config)
        self.query_gain = None
        if config.qk_norm:
            self.vector_norm = config.sharpness * math.sqrt(size / 3)  # what it is on average without normalisation
            self.query_gain = nn.Parameter(self.initial_gains.clone())
        self.query = Linear(width, width, bias=False)
        self.key_value = Linear(width, 2 * width, bias=False)
        self.out = Linear(width, width)
        self.positions = nn.Parameter(torch.randn(config.num_positions, size) * 0.02)
        self.age_bias = None
        self.age_gain = config.age_gain or 1.0
        if config.shifted_heads or config.age_gain:
            bias = torch.zeros(config.num_heads, config.num_positions)
            if shifted:
                bias[:shifted, 1] = SHIFT / self.age_gain
            self.age_bias = nn.Parameter(bias)
        up, down = Linear(width, 2 * width), Linear(2 * width, width)
        self.feed_forward = nn.Sequential(nn.LayerNorm(width), up, nn.ReLU(), down)
        with torch.no_grad():
            # With a gain of 1 or 2 all heads start near uniform attention: one useful memory among a hundred gets 1% of
            # it. With 5 some head gives the odd memory more from the start: above 5% in 85% of 40 networks, above 20%
            # in half of them. That was at the door of a corridor of 100 tiles, with four heads and two layers. What is
            # an average, or depends on ages, is found sooner by heads near uniform attention (`uniform_heads`).
            self.query.weight.mul_(config.sharpness)
            self.key_value.weight[:width].mul_(config.sharpness)
            self._scale_queries()
            self.query.weight[: shifted * size] = 0
        nn.init.normal_(self.out.weight, std=0.1)
        nn.init.zeros_(self.out.bias)
        orthogonal(up, 2**0.5)
        orthogonal(down, 0.5)
        self.gates = nn.ModuleList(Gate(width) for _ in range(2)) if config.gating else None
        self.age_values = None
        if config.age_values:
            self.age_values = nn.Parameter(torch.zeros(config.num_heads, config.num_positions, size))
        self.age_values_gain = config.age_values

    @torch.no_grad()
    def make_induction_heads(self, lower: Layer, shifted: int) -> None:
        """Initialises every head as an induction head (Olsson et al., 2022, arXiv 2209.11895): it looks for memories
        whose previous step resembles the query.

        A head's initial query is its key of what the first `shifted` heads of the layer `lower` write about the
        previous step.
        """
        width = self.query.in_features
        size = width // self.heads
        lower_values = lower.key_value.weight[width : width + shifted * size]
        previous_step = lower.out.weight[:, : shifted * size] @ lower_values  # [D,D]
        for head in range(self.heads):
            rows = slice(head * size, (head + 1) * size)
            key = self.key_value.weight[rows]
            query = key @ previous_step
            self.query.weight[rows] = query * (key.norm() / query.norm())
        self._scale_queries()

    def _scale_queries(self) -> None:
        """Multiplies new query weights by their heads' initial gains, where queries have no gain of their own."""
        if self.query_gain is None:
            self.query.weight.unflatten(0, (self.heads, -1)).mul_(self.initial_gains[..., None])

    def write(self, hidden: Tensor, noise: Tensor, known_need: Tensor | None = None) -> Projection:
        """The projection of hidden vectors [B,C,D] that queries look at.

        noise: [B,K], for this rollout (`Transformer.draw`); known_need: [B,C] as in `LayerMemory`, None for slots
        that are new or not renewed."""
        normed = self.norm(hidden)
        keys, values = self._keys_values(self.key_value(normed))
        return Projection(normed, keys, values, self.describe(normed, noise, known_need))

    def describe(self, normed: Tensor, noise: Tensor, known_need: Tensor | None) -> Tensor | None:
        """The slot features [B,C] of normalised hidden vectors [B,C,D], or None. Arguments as for `write`."""
        if known_need is None:
            return self.kind.describe(normed, self.kind_noise(noise))
        return self.kind.describe_renewed(normed, self.kind_noise(noise), known_need)

    def kind_noise(self, noise: Tensor) -> Tensor:
        """The part of `noise` [B,K] that the kind drew."""
        return noise[:, self.noise_columns :]

    def head_weights(self, noise: Tensor) -> Tensor | None:
        """[B,H,1,1] what the outputs of this layer's heads are multiplied by in the rollout for which `noise` [B,K] was
        drawn. None for 1."""
        if self.head_weight_columns is None or not noise.shape[1]:
            return None
        return noise[:, self.head_weight_columns, None, None]

    def known_ages(self, noise: Tensor) -> Tensor | None:
        """Bool [B,P]: which ages below P attention knows in the rollout for which `noise` [B,K] was drawn. None for
        all."""
        if self.reach_column is None or not noise.shape[1]:
            return None
        return torch.arange(len(self.positions), device=noise.device) < noise[:, self.reach_column, None]

    def read(
        self, x: Tensor, normed: Tensor, slots: Slots, noise: Tensor, query_positions: Tensor, episode_begin: Tensor
    ) -> Reading:
        """The layer for queries x [B,N,D], normalised `normed`.

        noise: [B,K], for this rollout; query_positions: [N] or [B,N]; episode_begin: [B,N] positions at which the
        queries' episodes began. N is 1, or the queries are those of the last N slots, one for each step.
        """
        age, visible, bias = slots.visibility(
            self.kind, query_positions, episode_begin, self.kind.time_gaps(self.kind_noise(noise))
        )
        num_visible = visible.sum(2)
        queries = self.queries(normed).transpose(1, 2)  # [B,H,N,d]
        if self.sharpen_beyond:
            queries = queries * self._sharpening(num_visible).to(queries.dtype)[:, None, :, None]
        attended, weights = self._attend(queries, slots, age, bias, self.known_ages(noise))
        head_weights = self.head_weights(noise)
        if head_weights is not None:
            attended = attended * head_weights
        return Reading(self.residual(x, attended.transpose(1, 2)), queries, age, visible, num_visible, weights)

    def _sharpening(self, num_visible: Tensor) -> Tensor:
        """Factor [B,N] on the scores of queries, at least 1, by the number of slots that they see, int64 [B,N].

        A softmax over n slots that match equally badly gives the one that matches well a share that falls with n. With
        scores in proportion to log(n) it does not fall (scalable softmax: Nakanishi, 2025, arXiv 2501.19399)."""
        count = num_visible.clamp(min=self.sharpen_beyond)
        return count.double().log() / math.log(self.sharpen_beyond)

    def _attend(
        self, queries: Tensor, slots: Slots, age: Tensor, bias: Tensor, known_ages: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Output [B,H,N,d] and weights [B,H,N,C] of queries [B,H,N,d]; age: [B,N,C]; bias: [B,N,C] or [B,H,N,C];
        known_ages: [B,P] or None."""
        keys, values = slots.keys, slots.values
        order = slots.position.argsort(1) if self.newest_first and self.kind.merging is not None else None
        if queries.shape[2] == 1:
            attended, weights = attend(
                queries[:, :, 0],
                keys,
                values,
                positions=self.positions,
                age=age[:, 0],
                bias=bias[..., 0, :],
                recent=keys.shape[2] if slots.num_unordered else None,
                age_bias=self.head_age_bias(),
                newest_first=self.newest_first,
                order=order,
                known_ages=known_ages,
                age_values=self.head_age_values(),
            )
            return attended[:, :, None], weights[:, :, None]
        num_past = keys.shape[2] - queries.shape[2]
        reach = len(self.positions) - 1  # the first so many queries know the ages of memory slots
        recent = min(reach, num_past - slots.num_unordered)  # memory slots whose ages they may know
        return attend_rollout(
            queries,
            keys,
            values,
            positions=self.positions,
            memory_age=age[:, :reach, num_past - recent : num_past],
            bias=bias,
            extension_age=age[..., : slots.num_unordered] if slots.num_unordered else None,
            age_bias=self.head_age_bias(),
            newest_first=self.newest_first,
            order=order,
            known_ages=known_ages,
            age_values=self.head_age_values(),
        )

    def _keys_values(self, projected: Tensor) -> tuple[Tensor, Tensor]:
        """[B,C,2D] -> keys and values, [B,H,C,d] each."""
        keys, values = projected.unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).contiguous()
        return self._normalized(keys), values

    def _normalized(self, vectors: Tensor) -> Tensor:
        """Queries or keys [..., d], all of the same norm, with `qk_norm`.

        A query then scores highest with the keys in its own direction (QKNorm: Henry et al., 2020, arXiv 2010.04245).
        Without this, a long key of something else may score as high as the key that the query looks for."""
        return vectors if self.query_gain is None else normalize(vectors, self.vector_norm)

    def frozen_keys_values(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of hidden vectors [B,C,D]. The layer's weights get no gradient."""
        norm = self.norm
        normed = F.layer_norm(hidden, norm.normalized_shape, norm.weight.detach(), norm.bias.detach(), norm.eps)
        return self._keys_values(self.key_value.apply_weights(normed, self.key_value.weight.detach()))

    def queries(self, normed: Tensor) -> Tensor:
        """[..., D] -> [..., H, d]."""
        queries = self._normalized(self.query(normed).unflatten(-1, (self.heads, -1)))
        if self.query_gain is not None:
            queries = queries * self.query_gain
        return _freeze(queries, -2, self.shifted) if self.shifted else queries

    def head_age_bias(self) -> Tensor | None:
        """[H,P]: what each head adds to the scores of an age; None for nothing."""
        if self.age_bias is None:
            return None
        bias = self.age_bias * self.age_gain
        return _freeze(bias, 0, self.shifted) if self.shifted else bias

    def head_age_values(self) -> Tensor | None:
        """[H,P,d]: what each head adds to the values of an age; None for nothing."""
        return None if self.age_values is None else self.age_values * self.age_values_gain

    def residual(self, x: Tensor, attended: Tensor) -> Tensor:
        """x: [..., D]; attended: [..., H, d] -> [..., D]."""
        x = self._add(0, x, self.out(attended.flatten(-2)))
        return self._add(1, x, self.feed_forward(x))

    def _add(self, part: int, x: Tensor, y: Tensor) -> Tensor:
        """Adds to x what attention (part 0) or the feed-forward layer (1) computed from it, y. [..., D] each."""
        return x + y if self.gates is None else self.gates[part](x, F.relu(y))

    def read_self(self, x: Tensor, normed: Tensor) -> Tensor:
        """The layer for a kind that stores nothing: attention to oneself gives one's own value."""
        values = self.key_value(normed)[..., normed.shape[-1] :].unflatten(-1, (self.heads, -1))
        by_age = self.head_age_values()
        return self.residual(x, values if by_age is None else values + by_age[:, 0])
