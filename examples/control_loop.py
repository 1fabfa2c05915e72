"""A trained policy in a control loop of one's own: observations as the environment, or a robot, gives them.

PYTHONPATH=. python examples/control_loop.py [POLICY.safetensors] [EPISODES]

Gymnasium must know the policy's environment: for one of a package or a file of yours, import that here first.
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
    seconds, steps = 0.0, 0
    successes: list[float] = []
    returns: list[float] = []
    for episode in range(int(episodes)):
        observation, info = env.reset(seed=episode)
        state, reward, over = None, None, False  # no state: the memory is empty
        returns.append(0.0)
        while not over:
            began = time.perf_counter()
            # The state holds the memory and the previous action. It serves one call, which returns the next.
            action, state = policy.predict(observation, state, deterministic=True, reward=reward)
            seconds += time.perf_counter() - began
            observation, reward, terminated, truncated, info = env.step(action)
            returns[-1] += float(reward)
            over = terminated or truncated
            steps += 1
        if "is_success" in info:
            successes.append(float(info["is_success"]))
    if successes:
        print(f"{sum(successes):g} of {episodes} episodes succeeded")
    mean_return = sum(returns) / len(returns)
    print(f"mean return {mean_return:.4g}, {1000 * seconds / steps:.2f} ms a step over {steps:,} steps")


if __name__ == "__main__":
    main(*sys.argv[1:])
