"""Heads that start out with nearly uniform attention: which they are, and that the others stay as they were."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from policy_cases import SPEC, experience

from expire_span_rl.policies import KINDS, ActorCritic, PolicyConfig
from expire_span_rl.policies.settings import TransformerConfig

STEPS = 100
CORE = TransformerConfig(head_dropout=0, uniform_heads=0.5)  # two heads of four


def new_policy(core: TransformerConfig) -> ActorCritic:
    """A policy as it begins, with a window of STEPS."""
    torch.manual_seed(0)
    config = PolicyConfig(SPEC, 4, "transformer_xl", KINDS["transformer_xl"].Config(window=STEPS), core)
    return ActorCritic(config).double()


def largest_weights(core: TransformerConfig) -> torch.Tensor:
    """[L,H] the largest attention that a memory of the last of STEPS steps gets, the mean over 8 environments."""
    policy = new_policy(core)
    rollout = experience(torch.Generator().manual_seed(5), STEPS, 8, start_probability=0, final_probability=0)
    weights = []
    for layer in policy.core.layers:
        read = layer.read
        layer.read = lambda *args, read=read: weights.append(reading := read(*args)) or reading
    policy.unroll(rollout.observation, policy.initial_memory(8), rollout.start)
    return torch.stack([reading.weights[:, :, -1].amax(-1).mean(0) for reading in weights])


@pytest.mark.parametrize("qk_norm", [True, False])
def test_the_last_heads_begin_with_nearly_uniform_attention(qk_norm):
    """With uniform attention to 100 steps the largest weight is 0.01. The heads before them are as without uniform
    heads."""
    weights = largest_weights(replace(CORE, qk_norm=qk_norm))
    assert weights[:, 2:].max() < 0.06 and weights[0, :2].min() > 0.1
    sharp = largest_weights(replace(CORE, qk_norm=qk_norm, uniform_heads=0.0))
    assert sharp[0].min() > 0.1
    assert torch.equal(weights[0, :2], sharp[0, :2])


@pytest.mark.parametrize("qk_norm", [True, False])
def test_queries_begin_as_with_a_sharpness_of_1(qk_norm):
    """Scores are products of queries and keys, so queries are smaller by the square of the sharpness. With a sharpness
    of 1 or less nothing changes. Induction heads, too, begin so."""
    core = replace(CORE, qk_norm=qk_norm, shifted_heads=1)
    for sharpness, factor in ((5.0, 1 / 25), (1.0, 1.0), (0.5, 1.0)):
        some, none = (new_policy(replace(core, sharpness=sharpness, uniform_heads=share)).core for share in (0.5, 0.0))
        normed = torch.randn(7, core.width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        for layer, other in zip(some.layers, none.layers, strict=True):
            expected = other.queries(normed) * torch.tensor([1.0, 1.0, factor, factor], dtype=torch.float64)[:, None]
            torch.testing.assert_close(layer.queries(normed), expected)


@pytest.mark.parametrize(("heads", "share", "count"), [(1, 0.5, 0), (4, 0.49, 1), (4, 1.0, 4), (8, 0.5, 4)])
def test_a_share_of_heads_is_rounded_down(heads, share, count):
    core = TransformerConfig(num_heads=heads, uniform_heads=share)
    layer = new_policy(core).core.layers[0]
    assert (layer.query_gain < 1).sum() == count


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_another_share_is_one_line(share):
    with pytest.raises(ValueError, match=r"^--uniform-heads: expected a share from 0 to 1, got "):
        TransformerConfig(uniform_heads=share)
