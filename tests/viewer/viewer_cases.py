"""Policies and episodes that the viewer's tests share."""

from __future__ import annotations

from pathlib import Path

import torch

from expire_span_rl.envs import make_env
from expire_span_rl.policies import KINDS, ActorCritic, save_policy
from expire_span_rl.viewer.play import Episode, play

ROOT = Path(__file__).resolve().parent.parent.parent
SHIPPED = str(ROOT / "pretrained" / "corridor-expire_span.safetensors")
CONFIGS = {
    "expire_span": {"max_span": 24, "ramp": 3},
    "transformer_xl": {"window": 9},
    "adaptive_span": {"max_span": 24, "ramp": 3},
    "compressive": {"window": 3, "compression_rate": 4, "compressed_window": 2},
}
STORING = sorted(kind for kind in KINDS if KINDS[kind].stores)


def make_policy(
    kind: str = "expire_span", env_id: str = "Corridor-v0", settings: dict | None = None, **kwargs
) -> ActorCritic:
    """A policy with random weights whose heads and spans are not at zero."""
    torch.manual_seed(0)
    env = make_env(env_id, **kwargs)
    config = KINDS[kind].Config(**(CONFIGS.get(kind, {}) if settings is None else settings))
    policy = ActorCritic.for_spaces(env.observation_space, env.action_space, memory=kind, memory_config=config)
    for head in (policy.policy_head, policy.value_head):
        torch.nn.init.normal_(head.weight, std=0.3)
    for layer in policy.core.layers:
        torch.nn.init.normal_(layer.out.weight, std=0.5)  # so that memory matters
        if kind == "expire_span":
            torch.nn.init.normal_(layer.kind.span.weight)
    return policy


def saved(path: Path, kind: str = "expire_span", env_id: str = "Corridor-v0", **kwargs) -> str:
    save_policy(make_policy(kind, env_id, **kwargs), path, {"env": env_id, "env_kwargs": kwargs, "agent": "ppo"})
    return str(path)


def play_steps(policy: ActorCritic, steps: int, env_id: str = "Corridor-v0", seed: int = 3, **kwargs) -> Episode:
    """The first steps of an episode, with sampled actions."""
    return play(policy, make_env(env_id, **kwargs), seed, steps, False, chunk=kwargs.pop("chunk", 16))
