"""How fast training runs, and what it takes: `python -m benchmarks.training`.

    python -m benchmarks.training pretrained/corridor-expire_span.safetensors
    pretrained/corridor-transformer_xl.safetensors python -m benchmarks.training
    pretrained/corridor-expire_span.safetensors --agents ppo impala --learning-rate 0

Each policy is trained on in its own environment with the defaults of train_rl.py (any of its flags may follow), by each
of the agents; with a learning rate of 0 all of them keep the policy that they were given. Updates
alternate between the contenders, so that a busy moment of the machine hits all of them; the first ones, until episodes
of all lengths are under way, do not count. Figures are medians over updates; memory is what the whole process has
resident, for which each policy is also trained alone, in a process of its own.
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
    """Learning algorithms, each of which trains each policy."""
    updates: int = 30
    """Updates that are timed, per policy."""
    warm_up: int = 20
    """Updates before that."""

    def __post_init__(self):
        if not self.policies:
            raise ValueError("policies: expected at least one policy file or run directory, got none")
        cli.check_at_least(self, updates=1, warm_up=1)


def main() -> None:
    own, rest = split_arguments(BenchmarkConfig, sys.argv[1:])
    config = cli.parse(BenchmarkConfig, own, "Training speed and memory. Flags of train_rl.py may follow.")
    contenders = [(path, [*rest, "--agent", agent]) for path in config.policies for agent in config.agents]
    trainers = [trainer_of(*contender) for contender in contenders]
    timed: list[list[dict[str, float]]] = [[] for _ in trainers]
    for update in range(config.warm_up + config.updates):
        for trainer, figures in zip(trainers, timed, strict=True):
            took = trainer.update()
            if update >= config.warm_up:
                figures.append(took)
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        resident = pool.map(
            resident_alone, [(*contender, config.warm_up + config.updates) for contender in contenders], 1
        )
    table = Table(title=f"Training with {' '.join(rest) or 'the defaults'}, medians of {config.updates} updates")
    table.add_column("policy", overflow="fold")
    table.add_column("agent")
    for name in ("steps/s", "slowest-fastest", "rollout s", "update s", "live memories", "resident GB", "at half time"):
        table.add_column(name, justify="right")
    for (path, flags), figures, (half, end) in zip(contenders, timed, resident, strict=True):
        speeds = [f["time/fps"] for f in figures]
        seconds = [f"{np.median([f[f'time/{part}_seconds'] for f in figures]):.2f}" for part in ("rollout", "update")]
        live = np.median([f.get("memory/live_mean", 1.0) for f in figures])
        spread = f"{min(speeds):,.0f}-{max(speeds):,.0f}"
        table.add_row(
            path, flags[-1], f"{np.median(speeds):,.0f}", spread, *seconds, f"{live:.1f}", f"{end:.2f}", f"{half:.2f}"
        )
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def trainer_of(path: str, flags: list[str]) -> Any:
    """A trainer that goes on from the policy of `path` in its environment."""
    policy, info = load_policy(path)
    trained = {**vars(policy.config.core), **vars(policy.config.memory_config)}
    known = ["--env", info["env"], "--memory", policy.config.memory]
    settings = parse_config([*known, "--total-timesteps", "1000000000", *flags])
    changes = {name: value for name, value in trained.items() if name in settings.flat()}
    run = build(settings.replace(**changes, env_kwargs=json.dumps(info.get("env_kwargs", {}))))
    run.policy.load_state_dict(policy.state_dict())
    return run.trainer


def resident_alone(job: tuple[str, list[str], int]) -> tuple[float, float]:
    """Resident GB at half time and at the end of a training."""
    path, flags, updates = job
    trainer, seen = trainer_of(path, flags), []
    for _ in range(updates):
        trainer.update()
        seen.append(resident_gb())
    return seen[len(seen) // 2], max(seen)


if __name__ == "__main__":
    cli.run(main)
