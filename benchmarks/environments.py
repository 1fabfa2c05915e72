"""How fast the environments step, next to MiniGrid's own MemoryEnv: `python -m benchmarks.environments`.

It uses one thread. Repeats alternate between the contenders, so that a busy moment of the machine affects all of them.
Speeds are medians over repeats, and ratios are medians of the ratios within a repeat. Actions are random and drawn
beforehand. The time includes the resets of episodes that end.
"""

from __future__ import annotations

import os

os.environ.update({"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"})  # before numpy

import sys
import time
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from rich.console import Console
from rich.table import Table

from expire_span_rl import cli, envs

MEMORY_ENV = "MiniGrid-MemoryS17Random-v0"


@dataclass(frozen=True)
class Config:
    num_envs: int = 1024
    """Environments in a batch."""
    repeats: int = 9
    """How often each contender is timed."""
    seconds: float = 0.3
    """Approximate duration of each timing."""
    minigrid_envs: int = 16
    """Environments in MiniGrid's batch. They run one after the other, so more of them are no faster per step."""

    def __post_init__(self):
        cli.check_at_least(self, num_envs=1, repeats=1, minigrid_envs=1)


class Contender:
    """A vector environment (or a single one) that is stepped with random actions."""

    def __init__(self, name: str, env: Any) -> None:
        self.name = name
        self.env = env
        self.batch = getattr(env, "num_envs", None)  # None for a single environment
        space = env.action_space if self.batch is None else env.single_action_space
        self.actions = np.random.default_rng(0).integers(int(space.n), size=(256, self.batch or 1))
        env.reset(seed=0)
        self.run(0.05)  # warm up

    def run(self, seconds: float) -> float:
        """Environment steps per second over about `seconds`."""
        env = self.env
        actions = self.actions
        steps = 0
        start = time.perf_counter()
        while (elapsed := time.perf_counter() - start) < seconds:
            if self.batch is None:
                _, _, terminated, truncated, _ = env.step(int(actions[steps % len(actions), 0]))
                if terminated or truncated:
                    env.reset()
            else:
                env.step(actions[steps % len(actions)])
            steps += 1
        return steps * (self.batch or 1) / elapsed


def contenders(config: Config) -> list[Contender]:
    """Every task of ours: the core alone, wrapped, and as long trajectories. Then MiniGrid's MemoryEnv: in Gymnasium's
    vector environment, as training steps it (`envs.minigrid_view`), and alone. The ratios are relative to the last
    one."""
    result = []
    for id in envs.env_ids():
        vector = {"num_envs": config.num_envs, "vectorization_mode": "vector_entry_point"}
        result.append(Contender(f"{id}, core, {config.num_envs} envs", gym.make_vec(id, **vector)))
        result.append(Contender(f"{id}, with wrapper, {config.num_envs} envs", envs.make_vec_env(id, config.num_envs)))
        long = envs.make_vec_env(id, config.num_envs, wraps=["stretch=10", "episodes=4"])
        result.append(Contender(f"{id}, stretch=10 episodes=4, {config.num_envs} envs", long))
        result.append(Contender(f"{id}, one env", gym.make(id, disable_env_checker=True)))
    factories = [lambda: gym.make(MEMORY_ENV, disable_env_checker=True)] * config.minigrid_envs
    sync = SyncVectorEnv(factories, autoreset_mode=AutoresetMode.SAME_STEP)
    result.append(Contender(f"{MEMORY_ENV}, SyncVectorEnv, {config.minigrid_envs} envs", sync))
    adapted = envs.make_vec_env(MEMORY_ENV, config.minigrid_envs)
    result.append(Contender(f"{MEMORY_ENV}, with wrapper, {config.minigrid_envs} envs", adapted))
    result.append(Contender(f"{MEMORY_ENV}, one env", gym.make(MEMORY_ENV, disable_env_checker=True)))
    return result


def main() -> None:
    """Times all contenders and prints the table."""
    config = cli.parse(Config, sys.argv[1:], "How fast the environments step, next to MiniGrid's own MemoryEnv.")
    entrants = contenders(config)
    speeds = np.array([[contender.run(config.seconds) for contender in entrants] for _ in range(config.repeats)])
    ratios = np.median(speeds / speeds[:, -1:], axis=0)  # [contenders]
    table = Table(title=f"Environment steps per second, one thread, median of {config.repeats}")
    for column in ("environment", "steps/s", "slowest", "fastest", "× MiniGrid, one env"):
        table.add_column(column, justify="left" if column == "environment" else "right", no_wrap=True)
    for contender, speed, ratio in zip(entrants, speeds.T, ratios, strict=True):
        metrics = (np.median(speed), speed.min(), speed.max())
        table.add_row(contender.name, *(f"{metric:,.0f}" for metric in metrics), f"{ratio:,.1f}")
    Console(width=None if os.isatty(1) else 120).print(table)


if __name__ == "__main__":
    cli.run(main)
