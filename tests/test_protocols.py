"""The protocols of `expire_span_rl.protocols` and `agents.interfaces`, and the classes that satisfy them."""

from __future__ import annotations

import inspect
import json
from typing import Any

import pytest
import torch

from expire_span_rl import envs
from expire_span_rl.agents import AGENTS, SB3Trainer, Trainer, TrainingLoop
from expire_span_rl.building import build
from expire_span_rl.policies import KINDS, ActorCritic, Memory, core_config
from expire_span_rl.policies.actions import Actions
from expire_span_rl.policies.sb3 import SB3Policy
from expire_span_rl.protocols import Acting, LearningPolicy, Policy, PolicyActions, PolicySpec, StatefulModule
from expire_span_rl.protocols import Memory as MemoryProtocol
from expire_span_rl.settings import resolve

SMALL = {"num_envs": 4, "num_steps": 8, "env_kwargs": {"max_length": 6}, "torch_threads": 1}
CLASSES = [
    (ActorCritic, LearningPolicy),
    (SB3Policy, Policy),
    (Memory, MemoryProtocol),
    (Actions, PolicyActions),
    (Trainer, TrainingLoop),
    (SB3Trainer, TrainingLoop),
]


def policy_of(kind: str) -> ActorCritic:
    env = envs.make_vec_env("Corridor-v0", 2)
    core = core_config(kind)(width=16)
    return ActorCritic.for_spaces(env.single_observation_space, env.single_action_space, memory=kind, core=core)


def check(instance: Any, protocol: type) -> None:
    """That an object has every member of a protocol; what is missing is named."""
    missing = [name for name in members(protocol) if not hasattr(instance, name)]
    assert missing == [] and isinstance(instance, protocol)


def members(protocol: type) -> list[str]:
    """The names of a protocol's methods and attributes, its bases' too."""
    bases = [base for base in protocol.__mro__ if getattr(base, "_is_protocol", False)]
    names = {name for base in bases for name in (*vars(base), *vars(base).get("__annotations__", {}))}
    return sorted(name for name in names if not name.startswith("_"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_policy_with_any_memory_kind_is_a_learning_policy(kind):
    policy = policy_of(kind)
    check(policy, LearningPolicy)
    check(policy.actions, PolicyActions)
    check(policy.config, PolicySpec)
    memory = policy.initial_memory(2)
    check(memory, MemoryProtocol)
    check(policy.begin(memory, 1), Acting)


@pytest.mark.parametrize("agent", [name for name, entry in AGENTS.items() if not entry.takes_memory_kind])
def test_a_baselines_policy_is_a_policy_that_does_not_learn_by_itself(agent):
    run = build(resolve(agent=agent, batch_size=16, **SMALL))
    check(run.policy, Policy)
    assert not isinstance(run.policy, LearningPolicy)
    memory = run.policy.initial_memory(4)
    check(memory, MemoryProtocol)
    acting = run.policy.begin(memory, 1)
    check(acting, Acting)
    check(run.policy.config, PolicySpec)
    check(run.trainer, TrainingLoop)
    assert json.dumps(run.policy.config.to_json()) and acting.live is None and acting.full is False
    run.trainer.close()


@pytest.mark.parametrize("cls, protocol", CLASSES)
def test_methods_take_what_the_protocol_says(cls, protocol):
    """Every call that the protocol's signature allows binds to the class's method."""
    for name in members(protocol):
        method = inspect.getattr_static(cls, name, None)
        if not inspect.isfunction(method) or not inspect.isfunction(inspect.getattr_static(protocol, name, None)):
            continue
        parameters = list(inspect.signature(getattr(protocol, name)).parameters.values())
        positional = [p.name for p in parameters if p.kind is p.POSITIONAL_ONLY or p.name == "self"]
        keywords = {p.name: None for p in parameters if p.name not in positional}
        inspect.signature(method).bind(*positional, **keywords)


def test_what_is_no_policy_is_told_from_one():
    assert not isinstance(torch.nn.Linear(1, 1), Policy) and isinstance(torch.nn.Linear(1, 1), StatefulModule)
