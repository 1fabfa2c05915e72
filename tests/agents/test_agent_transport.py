"""Rollouts on the way from an actor to the learner, and the actor itself, without Ray. T time steps, B
environments."""

from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import pytest
import torch
from agent_cases import make_policy

from expire_span_rl import envs
from expire_span_rl.agents.actor import Actor, Request
from expire_span_rl.agents.collector import Collector
from expire_span_rl.agents.rollout import acting_learning_difference
from expire_span_rl.agents.transport import Context, pack, recompute_memory, size, unpack
from expire_span_rl.policies import KINDS, ActorCritic

T = 12
B = 6
LONG = {"min_length": 5, "max_length": 30, "max_steps": 25}


def collect(kind: str, rollouts: int):
    """A collector and its rollouts. Environments have different numbers of memories in them."""
    env = envs.make_vec_env("Corridor-v0", B, **LONG)
    layers = 1 if kind in ("gru", "lstm", "lru") else 2
    collector = Collector(env, make_policy(env, kind, heads=0.1, layers=layers), T, 5)
    collector.policy.policy_head.bias.data[1] = 1.5
    return collector, [collector.collect()[0] for _ in range(rollouts)]


def weights_of(policy) -> dict[str, np.ndarray]:
    return {name: tensor.numpy().copy() for name, tensor in policy.state_dict().items()}


def assert_same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("kind", KINDS)
def test_a_packed_rollout_is_unpacked(kind):
    """Through a pickle. Every tensor is the same to the bit, the live memories are in the same order, and an unroll
    gives the outputs of acting."""
    collector, (*_, rollout) = collect(kind, 4)
    unpacked = unpack(pickle.loads(pickle.dumps(pack(rollout))), collector.policy)
    for name in ("episode_start", "actions", "logits", "values", "next_values", "rewards", "terminated", "truncated"):
        assert torch.equal(getattr(unpacked, name), getattr(rollout, name)), name
    assert all(torch.equal(left, right) for left, right in zip(unpacked.final_at, rollout.final_at, strict=True))
    assert_same(unpacked.observation, rollout.observation)
    assert_same(unpacked.final_observation, rollout.final_observation)
    assert_same(unpacked.memory.packed(), rollout.memory.packed())
    assert acting_learning_difference(collector.policy, unpacked) < 1e-5


def test_only_live_memories_are_packed():
    """There are as many hidden vectors, of width 32 in two layers, as live memories. The padded memory has more, since
    the environments have different numbers of memories."""
    _, (*_, rollout) = collect("transformer_xl", 4)
    arrays = pack(rollout)
    hidden = sum(array.nbytes for name, array in arrays.items() if name.endswith("/hidden"))
    live = rollout.memory.live()
    assert hidden == int(live.sum()) * 32 * 4 and live.min() < live.max()
    assert hidden < sum(layer.hidden.nbytes for layer in rollout.memory.layers)
    assert size(arrays) == sum(array.nbytes for array in arrays.values()) > hidden


@pytest.mark.parametrize("kind", KINDS)
def test_a_recomputed_memory_is_the_cached_one_under_the_same_weights(kind):
    """It is computed from the observations of two rollouts and the memory before them. Under other weights it differs,
    and the drift shows that. For a kind without memory the drift is NaN."""
    collector, (_, *context_rollouts, last_rollout) = collect(kind, 4)
    context = Context(2)
    for rollout in context_rollouts:
        context.add(rollout)
    cached = last_rollout.memory
    recomputed = recompute_memory(collector.policy, context.pack()).with_noise_of(cached)
    if kind == "none":
        assert np.isnan(cached.drift(recomputed, 2 * T))
        return
    assert cached.live() is None or torch.equal(cached.live(), recomputed.live())
    assert cached.drift(recomputed, 2 * T) < 1e-5
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in collector.policy.encoder.parameters():
            parameter += 0.5 * parameter.std() * torch.randn(parameter.shape, generator=generator)
    moved = recompute_memory(collector.policy, context.pack()).with_noise_of(cached)
    assert cached.drift(moved, 2 * T) > 0.05


def test_a_recomputed_memory_has_its_spans_renewed_as_the_actor_did():
    """With released spans of a few steps, and uses between rollouts."""
    env = envs.make_vec_env("Corridor-v0", B, **LONG)
    policy = make_policy(env, "expire_span", heads=0.1, layers=2)
    policy.release_spans()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for layer in policy.core.layers:
            kind = layer.kind
            kind.config = dataclasses.replace(kind.config, use_lift=1.2, use_share=0.0, ramp=2, renew_every=5)
            kind.span.config = dataclasses.replace(kind.span.config, use_coef=6.0, ramp=2)
            kind.span.bias.copy_(-2 + 0.5 * torch.randn(kind.span.bias.shape, generator=generator))
    collector = Collector(env, policy, T, 5)
    _, *context_rollouts, last_rollout = [collector.collect()[0] for _ in range(4)]
    context = Context(2)
    for rollout in context_rollouts:
        context.add(rollout)
    recomputed = recompute_memory(policy, context.pack()).with_noise_of(last_rollout.memory)
    assert torch.equal(last_rollout.memory.live(), recomputed.live())
    for cached, layer in zip(last_rollout.memory.layers, recomputed.layers, strict=True):
        assert (cached.known_need[cached.alive] > 0).any()
        assert torch.equal(cached.known_need[cached.alive], layer.known_need[layer.alive])
    refreshed = last_rollout.with_memory(recomputed)
    assert acting_learning_difference(policy, refreshed) < 1e-5


def test_an_actor_delivers_what_a_collector_collects():
    """With the same seed, environments and weights, the rollouts are the same. Context and difference are there only on
    request. Seconds are measured."""
    collector, rollouts = collect("expire_span", 3)
    actor = Actor(
        lambda: envs.make_vec_env("Corridor-v0", B, **LONG),
        make_policy(envs.make_vec_env("Corridor-v0", B, **LONG), "expire_span", seed=9, layers=2),
        num_steps=T,
        context_steps=T,
        seed=5,
    )
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


def test_an_actor_collects_without_noise_where_that_is_asked_for():
    collector, _ = collect("transformer_xl", 1)
    actor = Actor(lambda: collector.env, collector.policy, T, T, 5)
    early, late = (
        [actor.collect(weights_of(collector.policy), Request(0, noiseless)).rollout["memory/noise"] for _ in range(20)]
        for noiseless in (False, True)
    )
    assert np.shape(early) == (20, B, 2) and (np.array(early) == 0).any() and (np.array(late) == 1).all()


def test_an_actor_delivers_what_the_reward_head_put_out_where_that_is_asked_for():
    collector, _ = collect("none", 1)
    for reward_outputs, width in ((False, 0), (True, collector.policy.reward_head.out_features)):
        actor = Actor(lambda: collector.env, collector.policy, T, T, 5, reward_outputs=reward_outputs)
        delivery = actor.collect(weights_of(collector.policy), Request(0))
        assert delivery.rollout["reward_outputs"].shape == (T, B, width) and width != 1


def test_an_error_inside_is_delivered_with_its_traceback():
    """An error while the environment is made is delivered too. Errors of one place are of the same kind."""
    env = envs.make_vec_env("Corridor-v0", B, **LONG)

    def broken():
        raise ZeroDivisionError("no corridor today")

    actor = Actor(broken, make_policy(env, "none"), T, T, 0)
    weights = weights_of(actor.policy)
    deliveries = [actor.collect(weights, Request(0)) for _ in range(2)]
    assert deliveries[0].failure == deliveries[1].failure
    assert deliveries[0].failure.startswith("ZeroDivisionError in broken (test_agent")
    assert "no corridor today" in deliveries[0].traceback and deliveries[0].rollout == {}


@pytest.mark.parametrize("num_rollouts", [1, 3])
def test_time_that_was_skipped_between_rollouts_is_skipped_again(num_rollouts):
    """The context's memories have the ages that the actor's have."""
    env = envs.make_vec_env("Corridor-v0", B, min_length=150, max_length=200)
    settings = KINDS["expire_span"].Config(time_skips=1.0, time_gaps=0.0)
    policy = ActorCritic.for_spaces(
        env.single_observation_space, env.single_action_space, memory="expire_span", memory_config=settings
    )
    policy.observe_needs()
    policy.release_spans()
    collector, context = Collector(env, policy, T, 5), Context(num_rollouts)
    for _ in range(num_rollouts):
        context.add(collector.collect()[0])
    arrays = context.pack()
    rollout, _ = collector.collect()
    memory = recompute_memory(policy, arrays).with_noise_of(rollout.memory)
    for layer, expected in zip(memory.layers, rollout.memory.layers, strict=True):
        assert torch.equal(layer.birth[layer.alive], expected.birth[expected.alive])
    assert rollout.memory.drift(memory, 10**6) == pytest.approx(0, abs=1e-5)
