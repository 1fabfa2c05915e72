"""What a policy in training remembers: the timeline of one episode as a small picture, which shows how forgetting is
learned."""

from __future__ import annotations

import io

import gymnasium as gym
import numpy as np
from PIL import Image

from expire_span_rl.policies import ActorCritic
from expire_span_rl.viewer.figure import draw
from expire_span_rl.viewer.play import action_names, look, outcome, play


def snapshot(policy: ActorCritic, env: gym.Env, seed: int, max_steps: int, title: str) -> np.ndarray | None:
    """Plays the episode of `seed` (or its first `max_steps` steps) with the most likely actions and draws its memories.

    Gives uint8 [height, width, 3], or None for a policy whose memory has no slots. The global random state is not used.
    """
    episode = play(policy, env, seed, max_steps, True)
    lives = look(policy, episode)
    if not lives:
        return None
    png = draw(
        policy,
        episode,
        lives,
        title=f"{title}: {outcome(episode)}",
        how=f"seed {seed}, the most likely actions",
        names=action_names(env, policy),
        brief=True,
    )
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
