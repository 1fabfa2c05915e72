"""What a policy in training remembers: the timeline of one episode as a small picture, so that one sees forgetting
being learned."""

from __future__ import annotations

import io

import gymnasium as gym
import numpy as np
from PIL import Image

from expire_span_rl.policies import ActorCritic
from expire_span_rl.viewer.figure import draw
from expire_span_rl.viewer.play import action_names, look, outcome, play


def snapshot(policy: ActorCritic, env: gym.Env, seed: int, max_steps: int, title: str) -> np.ndarray | None:
    """Plays the episode of `seed` (or its first `max_steps` steps) by the most likely actions and draws its memories:
    uint8 [height, width, 3]; None for a policy without memories to look at. No random number of anybody else's is
    drawn."""
    episode = play(policy, env, seed, max_steps, True)
    lives = look(policy, episode)
    if not lives:
        return None
    told = f"{title}: {outcome(episode)}"
    names = action_names(env, policy)
    drawn = draw(policy, episode, lives, told, f"seed {seed}, the most likely actions", names, brief=True)
    return np.asarray(Image.open(io.BytesIO(drawn)).convert("RGB"))
