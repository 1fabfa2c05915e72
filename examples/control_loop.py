"""A trained policy in a control loop of one's own, one step at a time.

PYTHONPATH=. python examples/control_loop.py [POLICY.safetensors] [EPISODES] [ENV]

ENV: the environment as for evaluate.py, "my_envs.py:Recall-v0" for instance. It is needed where a file or a package
must be imported, since a policy file imports nothing.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch

import expire_span_rl as es
from expire_span_rl.environments import environment_of
from expire_span_rl.envs import make_env

POLICY = Path(__file__).parents[1] / "pretrained" / "corridor-expire_span.safetensors"


def main(path: str = str(POLICY), episodes: str = "10", env_name: str = "") -> None:
    torch.set_num_threads(1)  # the fastest for one observation at a time
    policy = es.load(path)
    env_id, env_kwargs = environment_of(env_name, (), policy.info, path)
    env = make_env(env_id, **env_kwargs)  # as in training: with its wraps and its action masks
    seconds, steps = 0.0, 0
    successes: list[float] = []
    returns: list[float] = []
    for episode in range(int(episodes)):
        observation, info = env.reset(seed=episode)
        state, over = None, False  # no state: the memory is empty
        returns.append(0.0)
        while not over:
            began = time.perf_counter()
            # The state holds the memory and the previous action. It serves one call, which returns the next.
            # Without `make_env`, as on a robot, pass the bare observation, and `reward=` of the step before. Where
            # actions are forbidden, pass `action_masks=` too, such as `info["action_mask"]`.
            action, state = policy.predict(observation, state, deterministic=True)
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
