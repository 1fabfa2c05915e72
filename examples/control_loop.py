"""A trained policy in a control loop of one's own: observations as the environment, or a robot, gives them.

PYTHONPATH=. python examples/control_loop.py [POLICY.safetensors] [EPISODES]
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import gymnasium as gym
import torch

import expire_span_rl as es

POLICY = Path(__file__).parents[1] / "pretrained" / "corridor-expire_span.safetensors"


def main(path: str = str(POLICY), episodes: str = "10") -> None:
    torch.set_num_threads(1)  # the fastest for one observation at a time
    policy = es.load(path)
    env = gym.make(policy.info["env"], **policy.info["env_kwargs"])  # no wrapper of ours
    successes, seconds, steps = 0, 0.0, 0
    for episode in range(int(episodes)):
        observation, info = env.reset(seed=episode)
        state, reward, over = None, None, False  # no state: the memory is empty
        while not over:
            began = time.perf_counter()
            # The state holds the memory and the previous action. It serves one call, which returns the next.
            action, state = policy.predict(observation, state, deterministic=True, reward=reward)
            seconds += time.perf_counter() - began
            observation, reward, terminated, truncated, info = env.step(action)
            over = terminated or truncated
            steps += 1
        successes += info["is_success"]
    print(f"{successes} of {episodes} episodes succeeded, {1000 * seconds / steps:.2f} ms a step over {steps:,} steps")


if __name__ == "__main__":
    main(*sys.argv[1:])
