"""How far acting scales out, and what it brings: `python -m benchmarks.scaling`.

    python -m benchmarks.scaling pretrained/corridor-expire_span.safetensors --actors 1 2 \\
        --out scaling.json --plot scaling.png
    python -m benchmarks.scaling pretrained/corridor-expire_span.safetensors --actors 1 --refresh-memory 64

IMPALA trains the policy in its own environment, with a learning rate of 0 so that it stays the same (any flag of
train_rl.py may follow). First one process acts and learns, which also gives the seconds of acting and of learning. Then
one learner is fed with rollouts that were recorded there, packed as actors pack them; this is the most that it can take
in. Then each number of Ray actors is measured. Metrics are medians over updates.
"""

from __future__ import annotations

import io
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.learning import split_arguments
from benchmarks.training import trainer_of
from expire_span_rl import cli
from expire_span_rl.agents.transport import pack, size, unpack
from expire_span_rl.policies.io import write_atomically

RECORDED = 8  # rollouts that the learner is fed with in turn


@dataclass(frozen=True)
class ScalingConfig:
    policy: Annotated[str, tyro.conf.Positional]
    """Policy file or run directory."""
    actors: tuple[int, ...] = (1, 2)
    """Numbers of Ray actors to measure."""
    updates: int = 30
    """Updates that are timed in each case."""
    warm_up: int = 10
    """Updates before that."""
    out: str = ""
    """JSON file of the metrics."""
    plot: str = ""
    """Picture of the throughput against the number of actors."""

    def __post_init__(self):
        cli.check_at_least(self, updates=1, warm_up=1)
        if min(self.actors) < 1:
            raise ValueError(f"--actors: expected at least 1, got {min(self.actors)}")


def main() -> None:
    benchmark_flags, training_flags = split_arguments(ScalingConfig, sys.argv[1:])
    config = cli.parse(
        ScalingConfig, benchmark_flags, "Throughput against the number of actors. Flags of train_rl.py may follow."
    )
    flags = ["--agent", "impala", "--learning-rate", "0", *training_flags]
    local = [flag for i, flag in enumerate(flags) if "--refresh-memory" not in (flag, flags[i - 1] if i else "")]
    metrics: dict[str, Any] = {
        "policy": config.policy,
        "flags": training_flags,
        **measure_local(config, local),
        "actors": {},
    }
    for number in config.actors:
        metrics["actors"][str(number)] = measure_actors(config, [*flags, "--num-actors", str(number)])
    print_table(metrics)
    if config.out:
        write_atomically(config.out, (json.dumps(metrics, indent=2) + "\n").encode())
    if config.plot:
        plot(metrics, config.plot)


def measure_local(config: ScalingConfig, flags: list[str]) -> dict[str, Any]:
    """Metrics of one process that acts and learns in turn, and of a learner that is fed."""
    trainer = trainer_of(config.policy, flags)
    for _ in range(config.warm_up):
        trainer.update()
    metrics = [trainer.update() for _ in range(config.updates)]
    rollouts = [pack(trainer.collector.collect()[0]) for _ in range(RECORDED)]
    seconds = []
    for i in range(config.updates):
        start_time = time.perf_counter()
        trainer.agent.update(unpack(rollouts[i % RECORDED], trainer.policy), 0.0, 0.0)
        seconds.append(time.perf_counter() - start_time)
    trainer.close()
    acting_seconds = float(np.median([update["time/rollout_seconds"] for update in metrics]))
    return {
        "one_process": float(np.median([update["time/fps"] for update in metrics])),
        "learner_intake": trainer.rollout_size / float(np.median(seconds)),
        "actor_output": trainer.rollout_size / acting_seconds,
        "rollout_bytes": float(np.mean([size(arrays) for arrays in rollouts])),
    }


def measure_actors(config: ScalingConfig, flags: list[str]) -> dict[str, float]:
    """Means over the updates of a training with actors, and steps per second over the whole time."""
    trainer = trainer_of(config.policy, flags)
    try:
        for _ in range(config.warm_up):
            trainer.update()
        start_time = time.perf_counter()
        metrics = [trainer.update() for _ in range(config.updates)]
        seconds = time.perf_counter() - start_time
    finally:
        trainer.close()
    names = {
        "learner_idle": "learner/idle_share",
        "actors_idle": "actors/idle_share",
        "queue": "actors/queue_occupancy",
        "lag": "actors/policy_lag",
        "clipped": "train/clipped_share",
    }
    means = {name: float(np.mean([update[key] for update in metrics])) for name, key in names.items()}
    return {"steps_per_second": trainer.rollout_size * config.updates / seconds, **means}


def print_table(metrics: dict[str, Any]) -> None:
    """Prints a row for each case, and what follows from them."""
    actors_per_learner = metrics["learner_intake"] / metrics["actor_output"]
    table = Table(title=f"{metrics['policy']} {' '.join(metrics['flags'])}")
    for name in ("", "steps/s", "learner idle", "actors idle", "queue", "lag", "clipped weights"):
        table.add_column(name, justify="right")
    table.add_row("one process", f"{metrics['one_process']:,.0f}")
    for number, row in metrics["actors"].items():
        shares = [f"{row[name]:.0%}" for name in ("learner_idle", "actors_idle", "queue")]
        speed = f"{row['steps_per_second']:,.0f}"
        table.add_row(f"{number} actors", speed, *shares, f"{row['lag']:.1f}", f"{row['clipped']:.1%}")
    table.add_row("learner, fed", f"{metrics['learner_intake']:,.0f}")
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(table)
    console.print(
        f"One actor on a core of its own acts {metrics['actor_output']:,.0f} steps per second, so one learner can take "
        f"in the steps of {actors_per_learner:.1f} actors. A rollout has {metrics['rollout_bytes'] / 1e6:.2f} MB."
    )


def plot(metrics: dict[str, Any], path: str) -> None:
    """Draws steps per second against the number of actors, and the learner's limit."""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(6, 4), layout="constrained")
    axes = drawing.subplots()
    numbers = [int(number) for number in metrics["actors"]]
    speeds = [metrics["one_process"], *(row["steps_per_second"] for row in metrics["actors"].values())]
    axes.plot([0, *numbers], speeds, "o-")
    x = np.linspace(0, max(*numbers, metrics["learner_intake"] / metrics["actor_output"]) * 1.2, 50)
    axes.plot(x, x * metrics["actor_output"], ":", color="grey", label="actors on cores of their own")
    axes.axhline(metrics["learner_intake"], ls="--", color="C3", label="learner fed by recorded rollouts")
    axes.set(xlabel="actors (0: one process)", ylabel="steps per second", ylim=(0, 1.3 * metrics["learner_intake"]))
    axes.legend()
    data = io.BytesIO()
    drawing.savefig(data, format=Path(path).suffix[1:] or "png", dpi=120)
    write_atomically(path, data.getvalue())


if __name__ == "__main__":
    cli.run(main)
