"""Rollouts on the way to the learner, and the actor at the other end, without Ray. T time steps, B environments."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from agent_cases import make_policy

from expire_span_rl import envs
from expire_span_rl.agents.actor import Actor, Request
from expire_span_rl.agents.rollout import Collector, acting_learning_difference
from expire_span_rl.agents.transport import Context, pack, recomputed, size, unpack
from expire_span_rl.policies import KINDS

T, B = 12, 6
LONG = {"min_length": 5, "max_length": 30, "max_steps": 25}


def collected(kind: str, rollouts: int):
    """A collector and its last rollouts, in which environments have memories of different number."""
    env = envs.make_vec_env("Corridor-v0", B, **LONG)
    collector = Collector(
        env, make_policy(env, kind, heads=0.1, layers=1 if kind in ("gru", "lstm", "lru") else 2), T, 5
    )
    collector.policy.policy_head.bias.data[1] = 1.5
    return collector, [collector.collect()[0] for _ in range(rollouts)]


def weights_of(policy) -> dict[str, np.ndarray]:
    return {name: tensor.numpy().copy() for name, tensor in policy.state_dict().items()}


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_packed_is_unpacked(kind):
    """Through a pickle: every tensor to the bit, the live memories in their order, and the outputs under the weights
    that acted."""
    collector, (*_, rollout) = collected(kind, 4)
    arrived = unpack(pickle.loads(pickle.dumps(pack(rollout))), collector.policy)
    for name in ("episode_start", "actions", "logits", "values", "next_values", "rewards", "terminated", "truncated"):
        assert torch.equal(getattr(arrived, name), getattr(rollout, name)), name
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(arrived.final_at, rollout.final_at, strict=True))
    for name in ("observation", "final_observation"):
        ours, theirs = getattr(arrived, name), getattr(rollout, name)
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    ours, theirs = arrived.memory.packed(), rollout.memory.packed()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert acting_learning_difference(collector.policy, arrived) < 1e-5


def test_only_what_is_live_travels():
    """Of hidden vectors, of width 32 in two layers, as many as there are live memories: less than their padded size,
    since the environments have different numbers of them."""
    _, (*_, rollout) = collected("transformer_xl", 4)
    arrays = pack(rollout)
    hidden = sum(array.nbytes for name, array in arrays.items() if name.endswith("/hidden"))
    live = rollout.memory.live()
    assert hidden == int(live.sum()) * 32 * 4 and live.min() < live.max()
    assert hidden < sum(layer.hidden.nbytes for layer in rollout.memory.layers)
    assert size(arrays) == sum(array.nbytes for array in arrays.values()) > hidden


@pytest.mark.parametrize("kind", KINDS)
def test_a_memory_computed_anew_is_the_cached_one_under_the_same_weights(kind):
    """From the observations of two rollouts before, and the memory before them. Under other weights it is another, and
    so the drift is seen; for a kind that stores nothing there is none."""
    collector, (_, second, third, fourth) = collected(kind, 4)
    context = Context(2)
    for rollout in (second, third):
        context.add(rollout)
    again = recomputed(collector.policy, context.packed()).with_span_limit_of(fourth.memory)
    cached, counts = fourth.memory, fourth.memory.live()
    if kind == "none":
        assert np.isnan(cached.drift(again, 2 * T))
        return
    assert counts is None or torch.equal(counts, again.live())
    assert cached.drift(again, 2 * T) < 1e-5
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in collector.policy.encoder.parameters():
            parameter += 0.5 * parameter.std() * torch.randn(parameter.shape, generator=generator)
    moved = recomputed(collector.policy, context.packed()).with_span_limit_of(cached)
    assert cached.drift(moved, 2 * T) > 0.05


def test_an_actor_delivers_what_a_collector_collects():
    """The same seed, environments and weights: the same rollouts; context and check only when asked for; seconds."""
    collector, rollouts = collected("expire_span", 3)
    actor = Actor(
        lambda: envs.make_vec_env("Corridor-v0", B, **LONG),
        make_policy(envs.make_vec_env("Corridor-v0", B, **LONG), "expire_span", seed=9, layers=2),
        T, T, 5,
    )  # fmt: skip
    weights = weights_of(collector.policy)
    requests = [Request(0), Request(1, context=True), Request(2, check=True)]
    deliveries = [actor.collect(weights, request) for request in requests]
    for delivery, rollout, request in zip(deliveries, rollouts, requests, strict=True):
        expected = pack(rollout)
        assert delivery.rollout.keys() == expected.keys()
        assert all(np.array_equal(delivery.rollout[name], expected[name]) for name in expected)
        assert (delivery.version, bool(delivery.context)) == (request.version, request.context)
        assert (delivery.difference is not None) == request.check and delivery.busy_seconds > 0
    assert deliveries[2].difference < 1e-5 and deliveries[2].live == collector.live
    assert deliveries[1].context["episode_start"].shape == (T, B)
    assert len({delivery.incarnation for delivery in deliveries}) == 1
    assert deliveries[0].idle_seconds == 0 < deliveries[1].idle_seconds


def test_an_error_inside_is_delivered_with_its_traceback():
    """Also one of making the environment. Of the same kind is what is raised at the same place."""
    env = envs.make_vec_env("Corridor-v0", B, **LONG)

    def broken():
        raise ZeroDivisionError("no corridor today")

    actor = Actor(broken, make_policy(env, "none"), T, T, 0)
    weights = weights_of(actor.policy)
    first, second = (actor.collect(weights, Request(0)) for _ in range(2))
    assert first.failure == second.failure and first.failure.startswith("ZeroDivisionError in broken (test_agent")
    assert "no corridor today" in first.traceback and first.rollout == {}
