"""The attention that all memory kinds share: scaled dot products, relative positions, an additive bias.

B environments, H heads, N queries, T time steps, S memory slots, E merged slots (`policies.transformer.merging`), C = E
+ S + T slots, d head width, P relative positions.

A slot of age a < P scores (q . k + q . p_a) / sqrt(d), an older one q . k / sqrt(d) (Expire-Span paper, section 3).
With `newest_first` a slot's score falls with the number of newer slots that match the query equally well, so that the
newest of equal memories counts (`_count_matches`). With `age_values` a slot of age a < P gives v + r_a instead of v
(relative position representations of values: Shaw et al., 2018, arXiv 1803.02155, equation 3).
The backward pass is written out: this saves the copies that autograd makes of the largest tensors, [B,H,T,C].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

SMALLEST_NORM = 1e-12  # of a vector that is normalised; a shorter one counts as zeros
SMALLEST_PRODUCT = 400  # multiplications per row, below which PyTorch multiplies matrices on a CPU in a plain loop


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    positions: Tensor,
    age: Tensor,
    bias: Tensor,
    recent: int | None = None,
    age_bias: Tensor | None = None,
    newest_first: float = 0.0,
    order: Tensor | None = None,
    known_ages: Tensor | None = None,
    age_values: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention of one query per row, each with slots of its own: acting, and final observations.

    q: [B,H,d]; k, v: [B,H,C,d], oldest first; positions: [P,d]; age: [B,C]; bias: [B,C] for all heads or [B,H,C], minus
    infinity hides. recent: slots younger than P are among the last so many; None: the last P. age_bias: [H,P], what
    each head adds to the scores of an age; None for nothing. newest_first: what each newer slot that matches equally
    well takes from a score; order: int64 [B,C], the slots from the oldest to the newest for `newest_first`, None if
    they are in this order; known_ages: bool [B,P], the others count as beyond P; None for all; age_values: [H,P,d],
    what each head adds to the value of a slot of an age; None for nothing.

    Returns (output [B,H,d], weights [B,H,C]).
    """
    q = q * q.shape[-1] ** -0.5
    scores = torch.matmul(k, q[..., None]).squeeze(-1)  # [B,H,C]
    reach = min(recent or len(positions), k.shape[2])
    index = age[:, None, -reach:].clamp(0, len(positions)).long().expand(-1, q.shape[1], -1)  # [B,H,reach]
    by_age = F.pad(_by_age(q, positions, age_bias, known_ages), (0, 1))  # [B,H,P+1], 0 beyond P
    scores = torch.cat([scores[..., :-reach], scores[..., -reach:] + by_age.gather(2, index)], 2)
    scores = scores + _by_head(bias, 2)
    if newest_first:
        others = scores.detach().masked_fill(age[:, None] == 0, -math.inf)
        scores.add_(_count_matches(others, order), alpha=newest_first)
    weights = torch.softmax(scores, -1)
    output = _weighted_sum(weights, v)
    if age_values is not None:
        weights_by_age = weights.new_zeros(by_age.transpose(0, 1).shape).transpose(0, 1)  # heads first, for `bmm`
        weights_by_age = _only_known(weights_by_age.scatter_add(2, index, weights[..., -reach:])[..., :-1], known_ages)
        output = output + torch.bmm(weights_by_age.transpose(0, 1), age_values).transpose(0, 1)
    return output, weights


def attend_rollout(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    positions: Tensor,
    memory_age: Tensor,
    bias: Tensor,
    extension_age: Tensor | None = None,
    age_bias: Tensor | None = None,
    newest_first: float = 0.0,
    order: Tensor | None = None,
    known_ages: Tensor | None = None,
    age_values: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """All queries of a rollout in parallel.

    q: [B,H,T,d]; k, v: [B,H,C,d], E slots in any order, S memory slots, oldest first, then T of the rollout; positions:
    [P,d]; memory_age: [B,n,m], n = min(T, P-1), m = min(S, P-1), age of the last m memory slots at the first n queries;
    bias: [B,T,C] for all heads or [B,H,T,C]; extension_age: [B,T,E], age of the first E slots at all queries, None for
    E = 0; age_bias: [H,P], newest_first, order, known_ages and age_values: [H,P,d] as in `attend`.

    Returns (output [B,H,T,d], weights [B,H,T,C]).
    """
    q = (q * q.shape[-1] ** -0.5).contiguous()
    # The scores of the ages P - 1 .. 0, [B,H,T,P], as they lie on the diagonals: the oldest first.
    age_bias, known_ages, age_values = (
        None if numbers is None else numbers.flip(1) for numbers in (age_bias, known_ages, age_values)
    )
    band = _by_age(q, positions.flip(0), age_bias, known_ages)
    corner = _gather_ages(band[:, :, : memory_age.shape[1]], memory_age)
    extension_scores = band[..., :0]
    if extension_age is not None:
        extension_scores = _gather_ages(band, extension_age)
    output, weights, *known_weights = _RolloutAttention.apply(
        q, k, v, band, corner, extension_scores, bias, newest_first, order, age_values is not None
    )
    if age_values is not None:
        band_weights, corner_weights, extension_weights = known_weights
        weights_by_age = _weights_by_age(band_weights, corner_weights, extension_weights, memory_age, extension_age)
        output = output + torch.matmul(_only_known(weights_by_age, known_ages), age_values)
    return output, weights


def _gather_ages(band: Tensor, age: Tensor) -> Tensor:
    """The scores [B,H,N,C] of the ages [B,N,C], 0 from P on. band: [B,H,N,P], of the ages P - 1 .. 0."""
    return F.pad(band, (1, 0)).gather(3, _columns(age, band))


def _columns(age: Tensor, band: Tensor) -> Tensor:
    """int64 [B,H,N,C]: the columns of the ages [B,N,C] in `band` [B,H,...,P], of the ages P - 1 .. 0, with one before
    it for all from P on."""
    reach = band.shape[3]
    return (reach - age.clamp(0, reach)).long()[:, None].expand(-1, band.shape[1], -1, -1)


def _weights_by_age(
    band: Tensor, corner: Tensor, extension: Tensor, memory_age: Tensor, extension_age: Tensor | None
) -> Tensor:
    """The attention to each of the ages P - 1 .. 0, [B,H,T,P]. band [B,H,T,P], corner [B,H,n,m], extension [B,H,T,E]:
    the weights of the slots to which the scores of the same names belong (`_RolloutAttention`)."""
    steps, reach = band.shape[2:]
    weights = band
    for part, age in ((corner, memory_age), (extension, extension_age)):
        if age is not None and part.numel():
            by_age = part.new_zeros(*part.shape[:3], reach + 1).scatter_add(3, _columns(age, band), part)[..., 1:]
            weights = weights + F.pad(by_age, (0, 0, 0, steps - part.shape[2]))
    return weights


def _only_known(by_age: Tensor, known_ages: Tensor | None) -> Tensor:
    """Scores of ages, or attention to them, [B,H,(T,)P]: 0 where `known_ages` [B,P] is False."""
    if known_ages is None:
        return by_age
    return by_age * known_ages.view(len(known_ages), *[1] * (by_age.ndim - 2), -1)


class _RolloutAttention(torch.autograd.Function):
    """softmax(q k^T + positions + bias) v, for queries that are divided by sqrt(d).

    The position scores come in three parts: `band` [B,H,T,P] for the rollout's own slots, which lie on diagonals;
    `corner` [B,H,n,m] for the youngest memory slots; `extension_scores` [B,H,T,E] for the merged slots.

    Returns (output [B,H,T,d], weights [B,H,T,C]), and with `returns_parts` the weights of the three parts as well.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        band: Tensor,
        corner: Tensor,
        extension_scores: Tensor,
        bias: Tensor,
        newest_first: float,
        order: Tensor | None,
        returns_parts: bool,
    ) -> tuple[Tensor, ...]:
        scores = torch.matmul(q, k.transpose(2, 3))  # [B,H,T,C]
        _add_terms(scores, band, corner, extension_scores, _by_head(bias, 3))
        if newest_first:
            others = scores.clone()
            others.diagonal(scores.shape[3] - scores.shape[2], 2, 3).fill_(-math.inf)
            scores.add_(_count_matches(others, order), alpha=newest_first)
        weights = torch.softmax(scores, -1)
        output = torch.matmul(weights, v)  # [B,H,T,d]
        ctx.save_for_backward(q, k, v, weights)
        ctx.reach = band.shape[3]
        ctx.corner_shape = corner.shape
        ctx.extension_size = extension_scores.shape[3]
        ctx.shared_bias = bias.ndim == 3
        ctx.set_materialize_grads(False)
        if not returns_parts:
            return output, weights
        band_weights, corner_weights, extension_weights = _terms_of(
            weights, ctx.reach, ctx.corner_shape, ctx.extension_size
        )
        return output, weights, band_weights, corner_weights.clone(), extension_weights.clone()  # no views of `weights`

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad: Tensor | None, own_grad: Tensor | None, *part_grads: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        q, k, v, weights = ctx.saved_tensors
        grad = torch.zeros_like(q) if grad is None else grad.contiguous()
        grad_v = torch.matmul(weights.transpose(2, 3), grad)  # [B,H,C,d]
        grad_weights = torch.matmul(grad, v.transpose(2, 3))  # [B,H,T,C]
        if own_grad is not None:
            grad_weights += own_grad
        if part_grads and part_grads[0] is not None:
            _add_part_gradients(grad_weights, part_grads[0], *part_grads[1:])
        softmax_backward = torch._softmax_backward_data  # pyright: ignore[reportPrivateImportUsage]
        grad_scores = softmax_backward(grad_weights, weights, -1, weights.dtype).contiguous()
        grad_q = torch.matmul(grad_scores, k)
        grad_k = torch.matmul(grad_scores.transpose(2, 3), q)
        grad_band, grad_corner, grad_extension = _terms_of(grad_scores, ctx.reach, ctx.corner_shape, ctx.extension_size)
        grad_bias = None
        if ctx.needs_input_grad[6]:
            grad_bias = grad_scores.sum(1) if ctx.shared_bias else grad_scores
        return grad_q, grad_k, grad_v, grad_band, grad_corner, grad_extension, grad_bias, None, None, None


class _Normalize(torch.autograd.Function):
    """`normalize` with its backward pass in four operators; autograd takes a dozen."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, norm: float) -> Tensor:
        scale = _norm_scale(x, norm)
        y = x * scale
        ctx.save_for_backward(y, scale)
        ctx.norm = norm
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        y, scale = ctx.saved_tensors
        along = (grad * y).sum(-1, keepdim=True)
        return torch.addcmul(grad, y, along, value=-1 / ctx.norm**2).mul_(scale), None


def normalize(x: Tensor, norm: float) -> Tensor:
    """Vectors x [..., d], scaled to the given norm. A vector of zeros stays what it is, without a gradient."""
    return _Normalize.apply(x, norm) if torch.is_grad_enabled() else x * _norm_scale(x, norm)


def _norm_scale(x: Tensor, norm: float) -> Tensor:
    """[..., 1]. It is 0 for a vector of zeros: the gradient would be multiplied by it."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return (norm / length).masked_fill_(length <= SMALLEST_NORM, 0)


def _count_matches(scores: Tensor, order: Tensor | None) -> Tensor:
    """For each slot, the number of slots that match the query and are at most as new: [..., C]. Changes `scores`.

    scores: [B,...,C], minus infinity for the query's own slot and for slots that it does not see; order: as in
    `attend`.

    The best match counts as 1. A slot with half of its weight, or less, counts as 0. What is irrelevant therefore adds
    nothing, however much of it there is. Softmax ignores what all scores share, so adding these counts to the scores is
    the same as taking the number of newer matches from them. No gradient flows through the counts.
    """
    best = scores.amax(-1, keepdim=True).clamp_(min=torch.finfo(scores.dtype).min)  # finite, where nothing is seen
    matches = scores.sub_(best).exp_().mul_(2).sub_(1).clamp_(min=0)
    if order is None:
        return matches.cumsum(-1)
    order = order.unflatten(0, (-1, *(1,) * (matches.ndim - 2))).expand(matches.shape)
    return torch.empty_like(matches).scatter_(-1, order, matches.gather(-1, order).cumsum(-1))


def _weighted_sum(weights: Tensor, v: Tensor) -> Tensor:
    """The sum of v [B,H,C,d] with the weights [B,H,C]: [B,H,d]."""
    if v.device.type == "cpu" and v.shape[2] * v.shape[3] < SMALLEST_PRODUCT:
        return (weights[..., None] * v).sum(2)
    return torch.matmul(weights[:, :, None], v).squeeze(2)


def _by_age(q: Tensor, positions: Tensor, age_bias: Tensor | None, known_ages: Tensor | None) -> Tensor:
    """Scores of the ages that `positions` [P,d] and `age_bias` [H,P] stand for: q [B,H,(T,)d], divided by sqrt(d) ->
    [B,H,(T,)P]. They are 0 where `known_ages` [B,P] is False."""
    scores = q @ positions.T
    if age_bias is not None:
        scores.add_(age_bias if q.ndim == 3 else age_bias[:, None])
    return _only_known(scores, known_ages)


def _by_head(bias: Tensor, shared: int) -> Tensor:
    """The bias with an axis of heads. shared: the number of axes of a bias that has none."""
    return bias[:, None] if bias.ndim == shared else bias


def _add_terms(scores: Tensor, band: Tensor, corner: Tensor, extension_scores: Tensor, bias: Tensor) -> None:
    """Adds to the products of queries and keys, [B,H,T,C], what `_RolloutAttention` gets beside them.

    bias: [B,1 or H,T,C]."""
    steps, reach = band.shape[2:]
    memory = scores.shape[3] - steps
    scores[..., :memory].add_(bias[..., :memory])
    own = band.new_empty(*band.shape[:3], reach - 1 + steps)
    own[..., reach - 1 :] = bias[..., memory:]
    _diagonals(own, reach).add_(band)  # ages beyond the rollout's beginning fall on the columns that are left out
    scores[..., memory:].add_(own[..., reach - 1 :])
    scores[:, :, : corner.shape[2], _corner_slots(scores, corner.shape[3])].add_(corner)
    scores[..., : extension_scores.shape[3]].add_(extension_scores)


def _add_part_gradients(gradient: Tensor, band: Tensor, corner: Tensor | None, extension: Tensor | None) -> None:
    """Adds the gradients of parts of the weights (`_terms_of`) to that of all, [B,H,T,C]. None: of an empty part."""
    corner = gradient[:, :, :0, :0] if corner is None else corner
    extension = gradient[..., :0] if extension is None else extension
    nothing = gradient.new_zeros(()).expand(1, 1, 1, gradient.shape[3])
    _add_terms(gradient, band, corner, extension, nothing)


def _terms_of(
    scores: Tensor, reach: int, corner_shape: Sequence[int], extension_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The entries of scores or weights [B,H,T,C] to which `_add_terms` adds band, corner and extension scores."""
    corner = scores[:, :, : corner_shape[2], _corner_slots(scores, corner_shape[3])]
    return _band_of(scores, reach), corner, scores[..., :extension_size]


def _band_of(scores: Tensor, reach: int) -> Tensor:
    """The band [B,H,T,P] of scores [B,H,T,C]: those of the rollout's own slots, 0 for ages beyond its beginning."""
    steps = scores.shape[2]
    own = scores.new_empty(*scores.shape[:3], reach - 1 + steps)
    own[..., : reach - 1].zero_()  # assigned, the number would be copied into the view
    own[..., reach - 1 :] = scores[..., -steps:]
    return _diagonals(own, reach).contiguous()


def _diagonals(scores: Tensor, reach: int) -> Tensor:
    """View [B,H,T,P] of contiguous scores [B,H,T,W]: of the last T columns and those before, the slots aged P-1 .. 0 if
    there is one slot per step. W is at least T + P - 1."""
    batch, heads, steps, width = scores.shape
    offset = width - steps - (reach - 1)  # column of age P - 1 at the first query
    stride = scores.stride()
    return scores.as_strided((batch, heads, steps, reach), (stride[0], stride[1], stride[2] + 1, 1), offset)


def _corner_slots(scores: Tensor, width: int) -> slice:
    memory = scores.shape[3] - scores.shape[2]
    return slice(memory - width, memory)
