"""Time and memory of the policies of benchmarks.sequence, side by side: all of them in one run, block by block in turn,
so that a busy moment of the machine hits all. They keep their weights: the learning rate is 0."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from benchmarks.cells import csv_text, read_csv
from benchmarks.coverage import current_commit
from benchmarks.sequence_cells import Cell, Stopwatch, evaluate_blocks, peak_memory
from benchmarks.workers import in_processes
from expire_span_rl import cli
from expire_span_rl.agents import Trainer
from expire_span_rl.agents.schedules import Schedules
from expire_span_rl.building import build
from expire_span_rl.policies import load_policy
from expire_span_rl.policies.io import write_atomically
from expire_span_rl.saved_settings import complete
from expire_span_rl.settings import Settings

WARM_UP, BLOCKS = 40, 40  # a window of 2,048 steps is full after 32 blocks
COLUMNS = (
    "kind", "variant", "delay", "accuracy", "ms_per_block", "fastest", "slowest", "live_by_layer", "memory_bytes",
    "peak_memory_mb", "commit",
)  # fmt: skip
SHORT = 20_000  # steps: longer evaluations are not repeated here


class NoiselessSchedules(Schedules):
    """Schedules of blocks without training noise, which would skip time, and so drop memories."""

    def noisy_rollouts(self, begun: int, timesteps: int, total: int, rollout_size: int) -> float:
        """None of them has any."""
        return 0


def compare_speed(
    folder: Path, cells: Mapping[Cell, Mapping[str, Any]], kinds: Sequence[str], variant: str, delay: int
) -> None:
    """Measures the first seed's policies of the variant, of "default" or else any where a kind has no such cell, and
    writes speed.csv (rows of other delays and variants stay) and prints it. Raises UsageError, one line, for a policy
    that is not there."""
    chosen = []
    for kind in kinds:
        having = [cell for cell in sorted(cells) if cell.kind == kind]
        found = [cell for name in (variant, "default") for cell in having if cell.variant == name] or having
        path = folder / "runs" / f"{found[0]}-policy.safetensors" if found else None
        if path is None or not path.is_file():
            raise cli.UsageError(f"--speed-at: expected a trained policy of {kind}, {variant}, {folder} has none")
        chosen.append((path, cells[found[0]]))
    trainers = [trainer_at(path, cell["config"], delay) for path, cell in chosen]
    milliseconds: list[list[float]] = [[] for _ in trainers]
    live: list[list[Sequence[float]]] = [[] for _ in trainers]
    occupied: list[list[float]] = [[] for _ in trainers]
    for number in range(WARM_UP + BLOCKS):
        for i, trainer in enumerate(trainers):
            trainer.update()
            if number >= WARM_UP:
                milliseconds[i].append(trainer.agent.update.milliseconds)
                live[i].append(trainer.collector.live.get("mean", []))
                occupied[i].append(float(trainer.collector.block.memory.bytes().float().mean()))
    peaks = [next(iter(in_processes(peak_alone, [(path, cell["config"], delay)], 1))) for path, cell in chosen]
    rows = [
        {
            "kind": cell["kind"],
            "variant": cell["variant"],
            "delay": delay,
            "accuracy": accuracy_at(path, cell, delay),
            "ms_per_block": float(np.median(times)),
            "fastest": min(times),
            "slowest": max(times),
            "live_by_layer": " ".join(f"{value:.5g}" for value in np.mean(layers, 0)),
            "memory_bytes": float(np.mean(sizes)),
            "peak_memory_mb": peak / 1e6,
            "commit": current_commit(),
        }
        for (path, cell), times, layers, sizes, peak in zip(chosen, milliseconds, live, occupied, peaks, strict=True)
    ]
    file = folder / "speed.csv"
    others = read_csv(file, _parse_row, owner="--speed-at") if file.is_file() else []
    made = {(row["kind"], row["variant"], str(row["delay"])) for row in rows}
    text = csv_text(COLUMNS, [row for row in others if (row["kind"], row["variant"], row["delay"]) not in made] + rows)
    write_atomically(file, text.encode())
    print(text)


def trainer_at(path: Path, config: Mapping[str, Any], delay: int) -> Any:
    """A trainer that goes on from a policy without changing it, in streams that all have this delay, without training
    noise."""
    kwargs = json.loads(config["env_kwargs"])
    if "delay" in kwargs:
        kwargs |= {"delay": delay, "min_delay": delay}
    settings = {**config, "env_kwargs": json.dumps(kwargs), "learning_rate": 0.0, "total_timesteps": 10**12}
    policy, _ = load_policy(path)
    for name, value in vars(policy.config.memory_config).items():  # spans as they were, whatever the delay is
        if name in settings:
            settings[name] = value
    if "fixed_pressure" in settings:
        settings["fixed_pressure"] = 1.0  # the loss of spans is computed, as in a training that forgets
    trainer = cast(Trainer, build(Settings.from_flat(complete(settings, str(path))), say=lambda line: None).trainer)
    trainer.policy.load_state_dict(policy.state_dict())
    trainer.agent.schedules = NoiselessSchedules(trainer.schedules.starts, trainer.schedules.ends)
    trainer.agent.update = Stopwatch(trainer.agent.update, trainer.policy.device)  # pyright: ignore[reportAttributeAccessIssue]
    return trainer


def peak_alone(job: tuple[Path, Mapping[str, Any], int]) -> int:
    """Bytes of peak memory of the same blocks in a process of their own."""
    trainer = trainer_at(*job)
    for _ in range(WARM_UP + BLOCKS):
        trainer.update()
    return peak_memory(trainer.policy.device)


def accuracy_at(path: Path, cell: Mapping[str, Any], delay: int) -> float | None:
    """The cell's own at that delay, or of 100 streams more; None if that takes long."""
    for evaluation in cell["evaluations"]:
        if evaluation["env_kwargs"].get("delay", delay) == delay:
            return evaluation["accuracy"]
    kwargs = {**json.loads(cell["config"]["env_kwargs"]), "delay": delay}
    steps = delay + 2 * kwargs["length"]
    if steps > SHORT:
        return None
    return evaluate_blocks(load_policy(path)[0], cell["config"]["env"], kwargs, 100, steps)["accuracy"]


def _parse_row(text: dict[str, str]) -> dict[str, str]:
    return {name: text[name] for name in COLUMNS}
