"""The picture of what a policy remembers, which a training logs now and then."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import gymnasium as gym

from expire_span_rl.building import Run
from expire_span_rl.envs import EnvError, EnvironmentFailed
from expire_span_rl.evaluation import FIRST_SEED
from expire_span_rl.messages import say
from expire_span_rl.policies import ActorCritic

IMAGE_SEED = FIRST_SEED + 3  # of the episode whose memories are drawn, one of evaluation's
IMAGE_STEPS = 500  # the most steps of it


def memory_picture(run: Run, policy: ActorCritic, make_env: Callable[[], gym.Env]) -> tuple[str, Any] | None:
    """A picture of what the policy remembers, always in the same episode, which no training has. None, with a message,
    if the environment fails: the training can do without."""
    from expire_span_rl.viewer.snapshot import snapshot  # importing it takes a second

    title = f"{run.settings.run.env} after {run.trainer.timesteps:,} steps"
    try:
        with contextlib.closing(make_env()) as env:
            picture = snapshot(policy, env, IMAGE_SEED, IMAGE_STEPS, title)
    except (EnvError, EnvironmentFailed) as error:
        say(f"no picture of what is remembered: {error}")
        return None
    return None if picture is None else ("memory/timeline", picture)
