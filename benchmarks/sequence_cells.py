"""The cells of benchmarks.sequence: one training of a fixed time and its evaluation each, and the JSON files in which
they stay.

Time is the CPU time of the training's process, so that it does not matter what else the machine does; with a policy on
a GPU it is wall time. T time steps, B streams, L layers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.cells import read_cell_files
from benchmarks.clock import Clock
from benchmarks.coverage import current_commit
from expire_span_rl.agents.blocks import BlockSource, answers_of
from expire_span_rl.agents.checkpoint import checkpoint_bytes, load_checkpoint
from expire_span_rl.agents.schedules import NOISELESS_PART, Schedules
from expire_span_rl.building import build
from expire_span_rl.envs import make_vec_env
from expire_span_rl.evaluation import FIRST_SEED
from expire_span_rl.policies import save_policy
from expire_span_rl.policies.io import write_atomically
from expire_span_rl.settings import Settings

SAVE_EVERY = 60.0  # seconds of training between two checkpoints of a cell
CURVE_POINTS = 100
CURVE = ("train/accuracy", "train/bits", "memory/live_mean")


class Cell(NamedTuple):
    """One training and its evaluation."""

    kind: str
    variant: str
    seed: int

    def __str__(self) -> str:
        return f"{self.kind}-{self.variant}-{self.seed}"


class TimedSchedules(Schedules):
    """Schedules that follow the time that was spent, not the steps. Training noise ends with the time, too."""

    def __init__(self, schedules: Schedules, clock: Clock, limit: float):
        super().__init__(schedules.starts, schedules.ends)
        self.clock, self.limit = clock, limit

    def progress(self, timesteps: int, total: int) -> float:
        """The fraction of the time that is over."""
        return min(1.0, self.clock.seconds() / self.limit)

    def noisy_rollouts(self, begun: int, timesteps: int, total: int, rollout_size: int) -> float:
        """0 in the last part of the time, infinite before it: how many are left then is not known."""
        is_last_part = NOISELESS_PART * (1 - self.progress(timesteps, total)) <= 1
        return 0 if is_last_part else math.inf


def read_cells(out: Path) -> dict[Cell, dict[str, Any]]:
    """The finished cells in a directory. Raises UsageError, one line, for a file that is no cell."""

    def is_complete(data: dict[str, Any]) -> Any:
        return data["config"]["env"] and data["evaluations"] and data["seconds"]

    return read_cell_files(out, Cell, owner="benchmarks.sequence", is_complete=is_complete)


def checkpoint_file(out: Path, cell: Cell) -> Path:
    """Where the state of a cell's training is kept."""
    return out / "runs" / f"{cell}.safetensors"


Work = tuple[Cell, Settings, str, float, Sequence[Mapping[str, Any]], Mapping[str, Any]]


def finish_cell(work: Work) -> dict[str, Any]:
    """Trains a cell for its seconds, from its checkpoint if there is one, evaluates it and writes it. work: the cell,
    the settings of its run, the benchmark's directory, the seconds, the evaluations (`evaluate_blocks`), and what else
    is written into its file."""
    cell, settings, out, limit, evaluations, more = work
    folder = Path(out)
    run = build(settings, say=lambda line: None)
    request = {"settings": settings.flat(), "seconds": limit}
    trained = train_for(run.trainer, limit, checkpoint_file(folder, cell), request)
    policy = run.policy
    if run.trainer.best is not None:
        policy.load_state_dict(run.trainer.best.weights)
    path = folder / "runs" / f"{cell}-policy.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_policy(policy, path, {**run.info, "timesteps": run.trainer.timesteps})
    kwargs = run.env_kwargs
    result = {
        **cell._asdict(),
        **more,
        "requested_seconds": limit,
        **trained,
        "policy_timesteps": run.trainer.best.timesteps if run.trainer.best else run.trainer.timesteps,
        "parameters": sum(p.numel() for p in policy.parameters()),
        "evaluations": [
            evaluate_blocks(policy, settings.run.env, {**kwargs, **what["env_kwargs"]}, what["streams"], what["steps"])
            for what in evaluations
        ],
        "commit": current_commit(),
        "config": settings.flat(),
    }
    write_atomically(folder / "cells" / f"{cell}.json", (json.dumps(result, indent=1) + "\n").encode())
    return result


def train_for(
    trainer: Any, limit: float, file: Path | None = None, request: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Updates until `limit` seconds are spent, with schedules that end there. file: keeps the state meanwhile, and
    `request`, what the training was asked for, JSON-able.

    Returns `seconds`, `blocks`, `timesteps`, `ms_per_block` (forward and backward: the median over the second half of
    the time), `peak_memory` in bytes (allocated on a GPU, resident on a CPU) and `curve` ([seconds, steps, *CURVE])."""
    progress: dict[str, Any] = {"seconds": 0.0, "curve": [], "peak_memory": 0, "milliseconds": []}
    if file is not None and file.is_file():
        tensors, figures = load_checkpoint(file)
        trainer.load_state(tensors, figures["trainer"])
        progress = figures["progress"]
    device = trainer.policy.device
    clock = Clock(device, progress["seconds"])
    trainer.agent.schedules = TimedSchedules(trainer.agent.schedules, clock, limit)
    trainer.agent.update = Stopwatch(trainer.agent.update, device)
    saved = clock.seconds()
    while progress["seconds"] < limit:  # as saved: a training that has ended does not go on
        figures = trainer.update()
        spent = clock.seconds()
        if spent > limit / 2:
            progress["milliseconds"].append(trainer.agent.update.milliseconds)
        progress["curve"].append([spent, trainer.timesteps, *(figures.get(name) for name in CURVE)])
        progress |= {"seconds": spent, "peak_memory": max(progress["peak_memory"], peak_memory(device))}
        if file is not None and spent > saved + SAVE_EVERY:
            saved = spent
            _save(trainer, progress, file, request)
    if file is not None:
        _save(trainer, progress, file, request)
    every = -(-len(progress["curve"]) // CURVE_POINTS) or 1
    return {
        "seconds": progress["seconds"],
        "blocks": trainer.updates,
        "timesteps": trainer.timesteps,
        "ms_per_block": float(np.median(progress["milliseconds"])),
        "peak_memory": progress["peak_memory"],
        "curve": progress["curve"][::-1][::every][::-1],
    }


def _save(trainer: Any, progress: Mapping[str, Any], file: Path, request: Mapping[str, Any] | None) -> None:
    tensors, figures = trainer.state()
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, checkpoint_bytes(tensors, {"trainer": figures, "progress": progress, "request": request}))


class Stopwatch:
    """A function that takes the time of its latest call, as `Clock` counts it."""

    def __init__(self, function: Any, device: Any):
        self.function, self.device, self.milliseconds = function, device, 0.0

    def __call__(self, *arguments: Any) -> Any:
        clock = Clock(self.device)
        result = self.function(*arguments)
        self.milliseconds = 1000 * clock.seconds()
        return result


def peak_memory(device: torch.device | str) -> int:
    """Bytes: the most that was allocated on a GPU, or that this process had resident. `getrusage` would count what its
    parent had when it began, too."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def evaluate_blocks(
    policy: Any, env_id: str, env_kwargs: Mapping[str, Any], streams: int, steps: int, num_steps: int = 64
) -> dict[str, Any]:
    """What a policy answers in the first `steps` steps of fresh streams, block by block, after right previous answers.

    Returns what was evaluated, `asked` answers, `accuracy`, `bits` (-log2 of the probability of the right action),
    `flawless`: the share of streams in which every action was right, the silent ones too. In these a policy that gets
    its own previous actions acts the same. Live memories (`live_mean`, `live_max` [L]) are counted at the first step of
    each block. There is no training noise."""
    env = make_vec_env(env_id, streams, **env_kwargs)
    source = BlockSource(env, policy, num_steps, FIRST_SEED)
    sums, flawless = np.zeros(3), torch.ones(streams, dtype=torch.bool)  # asked, right, nats
    means, largest, occupied = [], [], []
    with torch.no_grad():
        for begun in range(0, steps, num_steps):
            block, _ = source.collect(num_noisy=0)
            out = policy.unroll(block.observation, block.memory, block.episode_start, keep=True)
            block.answers = answers_of(policy, out, block)
            counts = (begun + torch.arange(num_steps, device=block.is_query.device) < steps)[:, None]
            is_query = block.is_query & counts
            is_right = block.answers.is_right
            sums += [float(part.sum()) for part in (is_query, is_right & is_query, block.answers.surprise * is_query)]
            flawless &= (is_right | ~counts).all(0).cpu()
            if source.live:
                means.append(source.live["mean"])
                largest.append(source.live["max"])
            occupied.append(float(block.memory.bytes().float().mean()))
    env.close()
    total, right, nats = sums
    return {
        "env_kwargs": dict(env_kwargs),
        "streams": streams,
        "steps": steps,
        "asked": int(total),
        "accuracy": right / total,
        "bits": nats / total / math.log(2),
        "flawless": float(flawless.float().mean()),
        "live_mean": np.mean(means, 0).tolist() if means else [],
        "live_max": np.max(largest, 0).tolist() if largest else [],
        "memory_bytes": float(np.mean(occupied)),
    }
