"""How fast training runs, and how much memory it takes: `python -m benchmarks.training`.

    python -m benchmarks.training pretrained/corridor-expire_span.safetensors \\
        pretrained/corridor-transformer_xl.safetensors
    python -m benchmarks.training pretrained/corridor-expire_span.safetensors --agents ppo impala --learning-rate 0

Each agent trains each policy, in the policy's own environment and with the defaults of train_rl.py. Any flags of
train_rl.py may follow. With a learning rate of 0 the policies stay the same. A contender is one policy with one agent.
Updates alternate between the contenders, so that a busy moment of the machine affects all of them. The first updates do
not count (--warm-up), so that episodes of all lengths have begun. The table has medians over updates. Its memory is the
resident memory of a whole process, for which each contender is also trained alone, in a process of its own.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.learning import resident_gb, split_arguments
from expire_span_rl import cli
from expire_span_rl.building import build
from expire_span_rl.cli.settings import parse_config
from expire_span_rl.policies import load_policy
from expire_span_rl.spaces import PREVIOUS_REWARD


@dataclass(frozen=True)
class BenchmarkConfig:
    policies: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Policy files or run directories."""
    agents: tuple[str, ...] = ("ppo",)
    """Learning algorithms. Each of them trains each policy."""
    updates: int = 30
    """Updates of each contender that are timed."""
    warm_up: int = 20
    """Updates of each contender before those."""

    def __post_init__(self):
        if not self.policies:
            raise ValueError("policies: expected at least one policy file or run directory, got none")
        cli.check_at_least(self, updates=1, warm_up=1)


def main() -> None:
    benchmark_flags, training_flags = split_arguments(BenchmarkConfig, sys.argv[1:])
    config = cli.parse(BenchmarkConfig, benchmark_flags, "Training speed and memory. Flags of train_rl.py may follow.")
    contenders = [(path, [*training_flags, "--agent", agent]) for path in config.policies for agent in config.agents]
    trainers = [trainer_of(path, flags) for path, flags in contenders]
    metrics: list[list[dict[str, float]]] = [[] for _ in trainers]
    total_updates = config.warm_up + config.updates
    for update in range(total_updates):
        for trainer, trainer_metrics in zip(trainers, metrics, strict=True):
            update_metrics = trainer.update()
            if update >= config.warm_up:
                trainer_metrics.append(update_metrics)
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        jobs = [(path, flags, total_updates) for path, flags in contenders]
        resident = pool.starmap(measure_resident, jobs, 1)
    table = Table(
        title=f"Training with {' '.join(training_flags) or 'the defaults'}, medians of {config.updates} updates"
    )
    table.add_column("policy", overflow="fold")
    table.add_column("agent")
    for name in ("steps/s", "slowest-fastest", "rollout s", "update s", "live memories", "resident GB", "at half time"):
        table.add_column(name, justify="right")
    for (path, flags), trainer_metrics, (half_time_gb, max_gb) in zip(contenders, metrics, resident, strict=True):
        agent = flags[-1]
        speeds = [update["time/fps"] for update in trainer_metrics]
        rollout_seconds = np.median([update["time/rollout_seconds"] for update in trainer_metrics])
        update_seconds = np.median([update["time/update_seconds"] for update in trainer_metrics])
        # A memory without slots counts as one live memory.
        live = np.median([update.get("memory/live_mean", 1.0) for update in trainer_metrics])
        cells = [path, agent, f"{np.median(speeds):,.0f}", f"{min(speeds):,.0f}-{max(speeds):,.0f}"]
        cells += [f"{rollout_seconds:.2f}", f"{update_seconds:.2f}", f"{live:.1f}"]
        table.add_row(*cells, f"{max_gb:.2f}", f"{half_time_gb:.2f}")
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def trainer_of(path: str, flags: list[str]) -> Any:
    """A trainer that continues from the policy at `path`, in the policy's environment. flags: of train_rl.py."""
    policy, info = load_policy(path)
    policy_settings = {**vars(policy.config.core), **vars(policy.config.memory_config)}
    policy_settings |= {**_reading(policy.config.observation), "time_aware_value": policy.config.time_aware_value}
    policy_flags = ["--env", info["env"], "--memory", policy.config.memory]
    # With so many steps in all, the schedules hardly move.
    settings = parse_config([*policy_flags, "--total-timesteps", "1000000000", *flags])
    names = settings.flat().keys()
    changes = {name: value for name, value in policy_settings.items() if name in names}
    run = build(settings.replace(**changes, env_kwargs=json.dumps(info.get("env_kwargs", {}))))
    run.policy.load_state_dict(policy.state_dict())
    return run.trainer


def _reading(spec: Mapping[str, Mapping[str, Any]]) -> dict[str, bool]:
    """The settings with which a policy of this spec reads its observations."""
    cells = [entry for entry in spec.values() if entry["kind"] == "cells"]
    return {
        "normalize_cells": any(entry.get("normalize", False) for entry in cells),
        "impute_cells": any(entry.get("impute", False) for entry in cells),
        "normalize_rewards": bool(spec.get(PREVIOUS_REWARD, {}).get("normalize", False)),
    }


def measure_resident(path: str, flags: list[str], updates: int) -> tuple[float, float]:
    """Trains the policy at `path`. Returns the resident memory in GB at half time, and its maximum. flags: of
    train_rl.py; updates: the length of the training."""
    trainer = trainer_of(path, flags)
    measurements = []
    for _ in range(updates):
        trainer.update()
        measurements.append(resident_gb())
    return measurements[len(measurements) // 2], max(measurements)


if __name__ == "__main__":
    cli.run(main)
