"""How far acting scales out, and what it brings: `python -m benchmarks.scaling`.

    python -m benchmarks.scaling pretrained/corridor-expire_span.safetensors --actors 1 2 --out scaling.json --plot
    scaling.png python -m benchmarks.scaling pretrained/corridor-expire_span.safetensors --actors 1 --refresh-memory 64

The policy is trained on in its own environment by IMPALA, with a learning rate of 0 so that it stays what it is (any
flag of train_rl.py may follow). First in one process, which also gives the seconds of acting and of learning; then from
rollouts recorded there, packed as actors pack them, which is all that one learner can take in; then with each number of
Ray actors. Figures are medians over updates.
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

RECORDED = 8  # rollouts that the learner is fed with, over and over


@dataclass(frozen=True)
class ScalingConfig:
    policy: Annotated[str, tyro.conf.Positional]
    """Policy file or run directory."""
    actors: tuple[int, ...] = (1, 2)
    """Numbers of Ray actors to measure."""
    updates: int = 30
    """Updates that are timed, each."""
    warm_up: int = 10
    """Updates before that."""
    out: str = ""
    """Figures, as JSON."""
    plot: str = ""
    """Throughput against actors, as a picture."""

    def __post_init__(self):
        cli.check_at_least(self, updates=1, warm_up=1)
        if min(self.actors) < 1:
            raise ValueError(f"--actors: expected at least 1, got {min(self.actors)}")


def main() -> None:
    own, rest = split_arguments(ScalingConfig, sys.argv[1:])
    config = cli.parse(ScalingConfig, own, "Throughput against the number of actors. Flags of train_rl.py may follow.")
    flags = ["--agent", "impala", "--learning-rate", "0", *rest]
    local = [flag for i, flag in enumerate(flags) if "--refresh-memory" not in (flag, flags[i - 1] if i else "")]
    figures: dict[str, Any] = {"policy": config.policy, "flags": rest, **alone(config, local), "actors": {}}
    for number in config.actors:
        figures["actors"][str(number)] = with_actors(config, [*flags, "--num-actors", str(number)])
    show(figures)
    if config.out:
        write_atomically(config.out, (json.dumps(figures, indent=2) + "\n").encode())
    if config.plot:
        plot(figures, config.plot)


def alone(config: ScalingConfig, flags: list[str]) -> dict[str, Any]:
    """One process that acts and learns in turn, and a learner that is fed."""
    trainer = trainer_of(config.policy, flags)
    for _ in range(config.warm_up):
        trainer.update()
    timed = [trainer.update() for _ in range(config.updates)]
    recorded = [pack(trainer.collector.collect()[0]) for _ in range(RECORDED)]
    seconds = []
    for i in range(config.updates):
        began = time.perf_counter()
        trainer.agent.update(unpack(recorded[i % RECORDED], trainer.policy), 0.0, 0.0)
        seconds.append(time.perf_counter() - began)
    trainer.close()
    acting = float(np.median([f["time/rollout_seconds"] for f in timed]))
    return {
        "one_process": float(np.median([f["time/fps"] for f in timed])),
        "learner_intake": trainer.rollout_size / float(np.median(seconds)),
        "actor_output": trainer.rollout_size / acting,
        "rollout_bytes": float(np.mean([size(arrays) for arrays in recorded])),
    }


def with_actors(config: ScalingConfig, flags: list[str]) -> dict[str, float]:
    """Medians of a training with actors; steps per second over the whole time."""
    trainer = trainer_of(config.policy, flags)
    try:
        for _ in range(config.warm_up):
            trainer.update()
        began = time.perf_counter()
        timed = [trainer.update() for _ in range(config.updates)]
        took = time.perf_counter() - began
    finally:
        trainer.close()
    names = {
        "learner_idle": "learner/idle_share",
        "actors_idle": "actors/idle_share",
        "queue": "actors/queue_occupancy",
        "lag": "actors/policy_lag",
        "clipped": "train/clipped_share",
    }
    told = {name: float(np.mean([f[key] for f in timed])) for name, key in names.items()}
    return {"steps_per_second": trainer.rollout_size * config.updates / took, **told}


def show(figures: dict[str, Any]) -> None:
    feeds = figures["learner_intake"] / figures["actor_output"]
    table = Table(title=f"{figures['policy']} {' '.join(figures['flags'])}")
    for name in ("", "steps/s", "learner idle", "actors idle", "queue", "lag", "clipped weights"):
        table.add_column(name, justify="right")
    table.add_row("one process", f"{figures['one_process']:,.0f}")
    for number, row in figures["actors"].items():
        shares = [f"{row[name]:.0%}" for name in ("learner_idle", "actors_idle", "queue")]
        table.add_row(
            f"{number} actors", f"{row['steps_per_second']:,.0f}", *shares, f"{row['lag']:.1f}", f"{row['clipped']:.1%}"
        )
    table.add_row("learner, fed", f"{figures['learner_intake']:,.0f}")
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(table)
    console.print(
        f"One actor on a core of its own acts {figures['actor_output']:,.0f} steps per second, so that one learner feeds "
        f"on {feeds:.1f} actors; a rollout travels in {figures['rollout_bytes'] / 1e6:.2f} MB."
    )


def plot(figures: dict[str, Any], path: str) -> None:
    """Steps per second against actors, and the learner's limit."""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(6, 4), layout="constrained")
    axes = drawing.subplots()
    numbers = [int(number) for number in figures["actors"]]
    axes.plot(
        [0, *numbers], [figures["one_process"], *(r["steps_per_second"] for r in figures["actors"].values())], "o-"
    )
    reach = np.linspace(0, max(*numbers, figures["learner_intake"] / figures["actor_output"]) * 1.2, 50)
    axes.plot(reach, reach * figures["actor_output"], ":", color="grey", label="actors on cores of their own")
    axes.axhline(figures["learner_intake"], ls="--", color="C3", label="learner fed by recorded rollouts")
    axes.set(xlabel="actors (0: one process)", ylabel="steps per second", ylim=(0, 1.3 * figures["learner_intake"]))
    axes.legend()
    data = io.BytesIO()
    drawing.savefig(data, format=Path(path).suffix[1:] or "png", dpi=120)
    write_atomically(path, data.getvalue())


if __name__ == "__main__":
    cli.run(main)
