"""The shared attention, forward and its handwritten backward, against plain loops and autograd.

B environments, H heads, T queries, S memory slots, C = S + T slots, d head width, P relative positions.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from expire_span_rl.policies.transformer.attention import attend, attend_rollout, normalize

B, H, D = 2, 2, 3


def one_query(
    q: Tensor, k: Tensor, v: Tensor, positions: Tensor, ages: Tensor, bias: Tensor, newest_first: float = 0
) -> tuple[Tensor, Tensor]:
    """One head's query [d] over slots [C,d] of `ages` [C], one score at a time."""
    scores = []
    for c in range(len(k)):
        score = q @ k[c]
        if ages[c] < len(positions):
            score = score + q @ positions[int(ages[c])]
        scores.append(score / math.sqrt(D) + bias[c])
    others = [score.item() for score, age in zip(scores, ages, strict=True) if age > 0 and score > -math.inf]
    for c in range(len(k)):  # every newer slot takes from the score in so far as it matches like the best
        newer = [scores[i].item() for i in range(len(k)) if 0 < ages[i] < ages[c]]
        matches = sum(max(0.0, 2 * math.exp(score - max(others)) - 1) for score in newer if others)
        scores[c] = scores[c] - newest_first * matches
    weights = torch.softmax(torch.stack(scores), 0)
    return weights @ v, weights


def naive_rollout(q, k, v, positions, age, bias, newest_first: float = 0) -> tuple[Tensor, Tensor]:
    """As `attend_rollout`, with the age [B,T,C] of every slot at every query; slots of the future are hidden by
    bias."""
    outputs, weights = torch.zeros_like(q), torch.zeros(*q.shape[:3], k.shape[2], dtype=q.dtype)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            for t in range(q.shape[2]):
                ages = torch.where(age[b, t] < 0, 10**6, age[b, t])
                output, weight = one_query(q[b, h, t], k[b, h], v[b, h], positions, ages, bias[b, t], newest_first)
                outputs = outputs.index_put(tuple(map(torch.tensor, (b, h, t))), output)
                weights = weights.index_put(tuple(map(torch.tensor, (b, h, t))), weight)
    return outputs, weights


def case(steps: int, memory: int, reach: int, seed: int = 0):
    """Random tensors; memories with irregular ages, oldest first, some slots hidden, never a query's own."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    slots = memory + steps
    gaps = torch.randint(1, 4, (B, memory), generator=generator)
    born = torch.cat([-gaps.flip(1).cumsum(1).flip(1), torch.arange(steps).expand(B, -1)], 1)  # [B,C]
    age = torch.arange(steps)[:, None] - born[:, None]  # [B,T,C]
    hidden = (torch.rand(B, steps, slots, generator=generator) < 0.2) & (age != 0) | (age < 0)
    return (
        normal(B, H, steps, D),
        normal(B, H, slots, D),
        normal(B, H, slots, D),
        normal(reach, D),
        normal(B, steps, slots),
        age,
        hidden,
    )


CASES = [(6, 5, 4), (2, 5, 5), (3, 4, 5), (1, 3, 4), (5, 0, 1), (4, 3, 1), (3, 8, 2), (5, 2, 7), (4, 0, 3)]
"""(T, S, P): with T < P - 1, S = P - 1, a single query, P = 1 with and without memory, more memory than reach, and
less."""


@pytest.mark.parametrize("newest_first", [0, 3.0])
@pytest.mark.parametrize("steps, memory, reach", CASES)
def test_attend_rollout_and_its_gradient(steps, memory, reach, newest_first):
    """Output and weights against the loops; the gradient of every argument against autograd's through the loops, and
    against finite differences, unless newer slots count, which has no gradient."""
    q, k, v, positions, bias, age, hidden = case(steps, memory, reach)
    corner = age[:, : min(steps, reach - 1), max(memory - (reach - 1), 0) : memory]

    def actual(q, k, v, positions, bias):
        bias = bias.masked_fill(hidden, -math.inf)
        return attend_rollout(q, k, v, positions=positions, memory_age=corner, bias=bias, newest_first=newest_first)

    def naive(q, k, v, positions, bias):
        return naive_rollout(q, k, v, positions, age, bias.masked_fill(hidden, -math.inf), newest_first)

    inputs = [x.clone().requires_grad_() for x in (q, k, v, positions, bias)]
    (output, weights), (expected, expected_weights) = actual(*inputs), naive(*inputs)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(weights, expected_weights, rtol=0, atol=1e-12)
    generator = torch.Generator().manual_seed(9)
    upstream = [torch.randn(x.shape, dtype=torch.float64, generator=generator) for x in (output, weights)]
    gradients = torch.autograd.grad((output, weights), inputs, upstream)
    expected_gradients = torch.autograd.grad((expected, expected_weights), inputs, upstream)
    for gradient, autograd in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, autograd, rtol=0, atol=1e-11)
    if not newest_first:
        assert torch.autograd.gradcheck(actual, inputs, fast_mode=True)


def test_a_bias_per_head_is_each_heads_own():
    """A bias [B,H,T,C], for spans that heads do not share. Output, weights and gradients equal those of single heads,
    each with its bias; so does acting."""
    q, k, v, positions, _, age, hidden = case(6, 5, 4)
    corner = age[:, :3, 2:5]
    bias = torch.randn(B, H, 6, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    inputs = [x.requires_grad_() for x in (q, k, v, positions, bias)]
    masked = bias.masked_fill(hidden[:, None], -math.inf)
    together = attend_rollout(q, k, v, positions=positions, memory_age=corner, bias=masked)
    step = attend(q[:, :, -1], k, v, positions=positions, age=age[:, -1], bias=masked[:, :, -1])
    outputs = []
    for h in range(H):
        head_bias = bias[:, h].masked_fill(hidden, -math.inf)
        parts = [x[:, h : h + 1] for x in (q, k, v)]
        output, weights = attend_rollout(*parts, positions=positions, memory_age=corner, bias=head_bias)
        outputs.append(output)
        torch.testing.assert_close(together[0][:, h], output[:, 0], rtol=0, atol=1e-12)
        torch.testing.assert_close(together[1][:, h], weights[:, 0], rtol=0, atol=1e-12)
        torch.testing.assert_close(step[0][:, h], output[:, 0, -1], rtol=0, atol=1e-12)
    upstream = torch.randn(q.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    for actual, expected_gradients in zip(
        torch.autograd.grad(together[0], inputs, upstream),
        torch.autograd.grad(torch.cat(outputs, 1), inputs, upstream),
        strict=True,
    ):
        torch.testing.assert_close(actual, expected_gradients, rtol=0, atol=1e-11)


def test_merged_slots_have_their_true_age():
    """Three slots of any ages before the memory: output, weights and gradients against the loops, and acting."""
    q, k, v, positions, bias, age, hidden = case(6, 5, 4)
    _, extra_k, extra_v, _, extra_bias, *_ = case(6, 0, 4, seed=2)
    extension_position = torch.randint(-3, 3, (B, 3), generator=torch.Generator().manual_seed(3))
    extra_age = (
        torch.arange(6)[:, None] - extension_position[:, None]
    )  # [B,T,3]; some are hidden, since they lie in the future
    k, v = torch.cat([extra_k[:, :, :3], k], 2), torch.cat([extra_v[:, :, :3], v], 2)
    bias, age = torch.cat([extra_bias[..., :3], bias], 2), torch.cat([extra_age, age], 2)
    hidden = torch.cat([extra_age < 0, hidden], 2)
    assert ((extra_age >= 0) & (extra_age < 4)).sum() > 10
    inputs = [x.requires_grad_() for x in (q, k, v, positions, bias)]
    output, weights = attend_rollout(
        q,
        k,
        v,
        positions=positions,
        memory_age=age[:, :3, 5:8],
        bias=bias.masked_fill(hidden, -math.inf),
        extension_age=extra_age,
    )
    expected, expected_weights = naive_rollout(q, k, v, positions, age, bias.masked_fill(hidden, -math.inf))
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(weights, expected_weights, rtol=0, atol=1e-12)
    upstream = torch.randn(output.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    for actual, expected_gradients in zip(
        torch.autograd.grad(output, inputs, upstream), torch.autograd.grad(expected, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(actual, expected_gradients, rtol=0, atol=1e-11)
    last_bias = bias.masked_fill(hidden, -math.inf)[:, -1]
    step, _ = attend(q[:, :, -1], k, v, positions=positions, age=age[:, -1], bias=last_bias, recent=k.shape[2])
    torch.testing.assert_close(step, expected[:, :, -1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("merged", [0, 3])
@pytest.mark.parametrize("steps, memory, reach", CASES)
def test_each_head_adds_a_vector_for_the_age_of_what_it_reads(steps, memory, reach, merged):
    """Output and the gradient of every argument against the loops, and the output of acting. Some ages are hidden, and
    merged slots are of any age."""
    q, k, v, positions, bias, age, hidden = case(steps, memory, reach)
    generator = torch.Generator().manual_seed(5)
    extra_age = torch.arange(steps)[:, None] - torch.randint(-3, 3, (B, 1, merged), generator=generator)  # [B,T,E]
    k, v = (torch.cat([torch.randn(B, H, merged, D, generator=generator).to(x), x], 2) for x in (k, v))
    bias, age = torch.cat([torch.zeros(extra_age.shape).to(bias), bias], 2), torch.cat([extra_age, age], 2)
    bias = bias.masked_fill(torch.cat([extra_age < 0, hidden], 2), -math.inf)
    known = torch.rand(B, reach, generator=generator) < 0.7
    first, last = merged + max(memory - (reach - 1), 0), merged + memory
    age_values = torch.randn(H, reach, D, generator=generator).to(v)

    def actual(q, k, v, positions, age_values):
        return attend_rollout(
            q,
            k,
            v,
            positions=positions,
            memory_age=age[:, : min(steps, reach - 1), first:last],
            bias=bias,
            extension_age=extra_age if merged else None,
            known_ages=known,
            age_values=age_values,
        )[0]

    def expected(q, k, v, positions, age_values):
        knows = [positions * known[b, :, None] for b in range(B)]
        parts = [slice(b, b + 1) for b in range(B)]
        parts = [naive_rollout(q[i], k[i], v[i], p, age[i], bias[i]) for i, p in zip(parts, knows, strict=True)]
        output, weights = (torch.cat(part) for part in zip(*parts, strict=True))
        for b, t, c in torch.nonzero((age >= 0) & (age < reach)).tolist():
            a = int(age[b, t, c])
            if known[b, a]:
                update = torch.zeros_like(output)
                update[b, :, t] = 1
                output = output + update * (weights[b, :, t, c, None] * age_values[:, a])[None, :, None]
        return output

    inputs = [x.clone().requires_grad_() for x in (q, k, v, positions, age_values)]
    output, reference = actual(*inputs), expected(*inputs)
    torch.testing.assert_close(output, reference, rtol=0, atol=1e-12)
    upstream = torch.randn(output.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    gradients = (torch.autograd.grad(y, inputs, upstream, allow_unused=True) for y in (output, reference))
    for gradient, autograd in zip(*gradients, strict=True):
        autograd = torch.zeros_like(gradient) if autograd is None else autograd
        torch.testing.assert_close(gradient, autograd, rtol=0, atol=1e-11)
    step, _ = attend(
        q[:, :, -1],
        k,
        v,
        positions=positions,
        age=torch.where(age[:, -1] < 0, 10**6, age[:, -1]),
        bias=bias[:, -1],
        recent=k.shape[2],
        known_ages=known,
        age_values=age_values,
    )
    torch.testing.assert_close(step, reference[:, :, -1], rtol=0, atol=1e-12)


def test_attend_rollout_by_finite_differences_in_every_direction():
    """The full gradient check, of a small case: of the output, and of the weights."""
    q, k, v, positions, bias, age, hidden = case(3, 4, 4)
    corner = age[:, :3, 1:4]
    inputs = [x[:1].clone().requires_grad_() for x in (q, k, v)]
    inputs += [positions.clone().requires_grad_(), bias[:1].clone().requires_grad_()]
    assert torch.autograd.gradcheck(
        lambda q, k, v, p, b: attend_rollout(
            q, k, v, positions=p, memory_age=corner[:1], bias=b.masked_fill(hidden[:1], -math.inf)
        ),
        inputs,
    )


@pytest.mark.parametrize("newest_first", [0, 3.0])
@pytest.mark.parametrize("steps, memory, reach", CASES)
def test_attend_is_one_query_of_the_rollout(steps, memory, reach, newest_first):
    """A query with slots of its own, as in acting: output and weights against the loops."""
    q, k, v, positions, bias, age, hidden = case(steps, memory, reach, seed=1)
    last_bias = bias.masked_fill(hidden, -math.inf)[:, -1]
    output, weights = attend(
        q[:, :, -1], k, v, positions=positions, age=age[:, -1], bias=last_bias, newest_first=newest_first
    )
    bias = bias.masked_fill(hidden, -math.inf)
    expected, expected_weights = naive_rollout(q, k, v, positions, age, bias, newest_first)
    torch.testing.assert_close(output, expected[:, :, -1], rtol=0, atol=1e-12)
    torch.testing.assert_close(weights, expected_weights[:, :, -1], rtol=0, atol=1e-12)


def weights_of(scores: list[float], newest_first: float) -> list[float]:
    """Attention of one query to memories with these scores, oldest first, and to its own slot, with score 0."""
    keys = torch.tensor([*scores, 0.0], dtype=torch.float64)[None, None, :, None]
    age = torch.arange(len(scores), -1, -1)[None]
    one = torch.ones(1, 1, 1, dtype=torch.float64)
    nothing = torch.zeros(1, len(scores) + 1, dtype=torch.float64)
    weights = attend(one, keys, keys, positions=one[0] * 0, age=age, bias=nothing, newest_first=newest_first)[1]
    return weights[0, 0].tolist()


def test_the_newest_of_equal_memories_counts():
    """Of three equal matches the newest gets 98% of what they get; what does not match changes nothing, however much
    there is of it; without the setting they get the same."""
    irrelevant = [1.0] * 200
    weights = weights_of([9.0, *irrelevant, 9.0, *irrelevant, 9.0, *irrelevant], 4.0)
    shares = torch.tensor([weights[0], weights[201], weights[402]])
    expected = torch.softmax(torch.tensor([-8.0, -4.0, 0.0]), 0)
    torch.testing.assert_close(shares / shares.sum(), expected, rtol=0, atol=1e-6)
    assert shares[2] / shares.sum() > 0.98
    equal = weights_of([9.0, 1.0, 9.0, 1.0], 0.0)
    assert equal[0] == equal[2] and equal[1] == equal[3]


def test_a_worse_match_replaces_nothing():
    """A newer memory with half of the best one's weight, or less, takes nothing from it."""
    half = 9.0 - math.log(2)
    assert weights_of([9.0, half], 4.0) == pytest.approx(weights_of([9.0, half], 0.0))
    assert weights_of([9.0, half + 0.1], 4.0)[0] < weights_of([9.0, half + 0.1], 0.0)[0]


def test_normalised_vectors_have_the_norm_and_their_gradient_is_right():
    x = torch.randn(3, 4, 2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).transpose(1, 2)
    expected = 7 * x / x.square().sum(-1, keepdim=True).sqrt()
    torch.testing.assert_close(normalize(x, 7.0), expected)
    leaf = x.clone().requires_grad_()
    torch.testing.assert_close(normalize(leaf, 7.0), expected)
    assert torch.autograd.gradcheck(lambda vectors: normalize(vectors, 7.0), leaf)
    zero = torch.zeros(1, 5, dtype=torch.float64, requires_grad=True)
    assert torch.equal(normalize(zero, 7.0), zero)
    normalize(zero, 7.0).sum().backward()
    assert zero.grad is not None and torch.isfinite(zero.grad).all()


def test_a_vector_of_zeros_gets_no_gradient():
    """It would be multiplied by a trillion, and the first update of a training was wasted."""
    x = torch.tensor([[0.0, 0.0], [3.0, 4.0]], requires_grad=True)
    y = normalize(x, 2.0)
    y.sum().backward()
    torch.testing.assert_close(y.detach(), torch.tensor([[0.0, 0.0], [1.2, 1.6]]))
    assert (x.grad[0] == 0).all() and (x.grad[1] != 0).all()
