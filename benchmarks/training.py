"""How fast training runs, and how much memory it takes: `python -m benchmarks.training`.

    python -m benchmarks.training pretrained/corridor-expire_span.safetensors \\
        pretrained/corridor-transformer_xl.safetensors
    python -m benchmarks.training pretrained/corridor-expire_span.safetensors --agents ppo impala --learning-rate 0

Each of the agents trains each policy in its own environment, with the defaults of train_rl.py (any of its flags may
follow). With a learning rate of 0 the policies stay the same. Updates alternate between the contenders, so that a busy
moment of the machine affects all of them. The first updates, until episodes of all lengths have begun, do not count.
Metrics are medians over updates. Memory is the resident memory of the whole process, for which each policy is also
trained alone, in a process of its own.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
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


@dataclass(frozen=True)
class BenchmarkConfig:
    policies: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Policy files or run directories."""
    agents: tuple[str, ...] = ("ppo",)
    """Learning algorithms. Each of them trains each policy."""
    updates: int = 30
    """Updates that are timed, for each policy."""
    warm_up: int = 20
    """Updates before that."""

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
        resident = pool.map(measure_resident, jobs, 1)
    table = Table(
        title=f"Training with {' '.join(training_flags) or 'the defaults'}, medians of {config.updates} updates"
    )
    table.add_column("policy", overflow="fold")
    table.add_column("agent")
    for name in ("steps/s", "slowest-fastest", "rollout s", "update s", "live memories", "resident GB", "at half time"):
        table.add_column(name, justify="right")
    for (path, flags), updates, (half_time_gb, gb) in zip(contenders, metrics, resident, strict=True):
        speeds = [update["time/fps"] for update in updates]
        rollout_seconds = np.median([update["time/rollout_seconds"] for update in updates])
        update_seconds = np.median([update["time/update_seconds"] for update in updates])
        live = np.median([update.get("memory/live_mean", 1.0) for update in updates])
        cells = [path, flags[-1], f"{np.median(speeds):,.0f}", f"{min(speeds):,.0f}-{max(speeds):,.0f}"]
        cells += [f"{rollout_seconds:.2f}", f"{update_seconds:.2f}", f"{live:.1f}", f"{gb:.2f}", f"{half_time_gb:.2f}"]
        table.add_row(*cells)
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def trainer_of(path: str, flags: list[str]) -> Any:
    """A trainer that continues from the policy at `path`, in its environment."""
    policy, info = load_policy(path)
    policy_settings = {**vars(policy.config.core), **vars(policy.config.memory_config)}
    policy_flags = ["--env", info["env"], "--memory", policy.config.memory]
    settings = parse_config([*policy_flags, "--total-timesteps", "1000000000", *flags])
    names = settings.flat().keys()
    changes = {name: value for name, value in policy_settings.items() if name in names}
    run = build(settings.replace(**changes, env_kwargs=json.dumps(info.get("env_kwargs", {}))))
    run.policy.load_state_dict(policy.state_dict())
    return run.trainer


def measure_resident(job: tuple[str, list[str], int]) -> tuple[float, float]:
    """Resident GB at half time of a training, and the maximum over it. job: path, flags, updates."""
    path, flags, updates = job
    trainer = trainer_of(path, flags)
    resident = []
    for _ in range(updates):
        trainer.update()
        resident.append(resident_gb())
    return resident[len(resident) // 2], max(resident)


if __name__ == "__main__":
    cli.run(main)
