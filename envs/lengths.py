"""How many steps the longest episode of an environment has, where something tells."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import SyncVectorEnv, VectorEnv

from expire_span_rl.envs.gym_adapter import AdaptedEnv, find_attribute

NAME = "longest_episode"
"""The attribute of the toolkit's tasks."""


def longest_episode(env: VectorEnv | gym.Env) -> int | None:
    """The steps of the longest episode of an environment, or of a vector that is stepped in this process. A task of the
    toolkit says it (`EnvCore.longest_episode`), and so does Gymnasium's time limit (`max_episode_steps`). None where
    neither is there."""
    if isinstance(env, VectorEnv):
        inner = env.unwrapped
        env = inner.envs[0] if isinstance(inner, SyncVectorEnv) else inner
    for steps in _lengths(env.env if isinstance(env, AdaptedEnv) else env):
        if isinstance(steps, (int, np.integer)) and not isinstance(steps, bool) and steps > 0:
            return int(steps)
    return None


def _lengths(env: VectorEnv | gym.Env) -> Iterator[Any]:
    """What an environment says of the length of its episodes."""
    yield find_attribute(env, NAME) if isinstance(env, gym.Env) else getattr(env, NAME, None)
    yield getattr(env.spec, "max_episode_steps", None)
