"""What each memory kind costs, and what success it buys: the part `kinds` of `python -m benchmarks.throughput`.

This is the comparison of the Expire-Span paper (Sukhbaatar et al., 2021): time and memory of trained policies
of several kinds on the same task.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.clock import seconds_of
from benchmarks.training import measure_resident, trainer_of
from expire_span_rl.evaluation import evaluate
from expire_span_rl.policies import load_policy

POLICIES = (
    "pretrained/corridor-expire_span.safetensors",
    "pretrained/corridor-transformer_xl.safetensors",
    "pretrained/corridor-adaptive_span.safetensors",
    "pretrained/corridor-compressive.safetensors",
    "pretrained/portal-expire_span.safetensors",
    "pretrained/portal-transformer_xl.safetensors",
    "pretrained/portal-adaptive_span.safetensors",
    "pretrained/portal-compressive.safetensors",
)
EPISODES = 200
RESIDENT_UPDATES = 8  # of the training whose largest resident memory is noted


def kinds(paths: Sequence[str], warm_up: int, updates: int) -> list[dict[str, Any]]:
    """A row for each policy and device: its success, live memories, and what an update and a step of acting cost.

    paths: policy files or run directories. Each policy goes on learning in its task with a learning rate of 0. Updates
    of the policies alternate. Times on a CPU are CPU seconds, on a GPU those of the clock. Peak memory is the process's
    resident memory in a training of its own, or what PyTorch allocated on the GPU."""
    results = [_play(path) for path in paths]
    rows = []
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        costs = _costs(paths, device, warm_up, updates)
        rows += [{**result, "device": device, **cost} for result, cost in zip(results, costs, strict=True)]
    return sorted(rows, key=lambda row: row["task"])  # as given within a task


def _play(path: str) -> dict[str, Any]:
    """What a policy reaches and holds, in episodes that no training has seen, with its most likely actions."""
    policy, info = load_policy(path)
    result = evaluate(policy, info["env"], info.get("env_kwargs", {}), EPISODES)
    live = result["live_memories_mean"]
    return {
        "task": info["env"],
        "memory": policy.config.memory,
        "success": result["success_rate"],
        "live": float(np.mean(live)) if live else 1.0,
        "memory_kb": result["memory_bytes"] / 1000,
    }


def _costs(paths: Sequence[str], device: str, warm_up: int, updates: int) -> list[dict[str, float]]:
    """The costs of each policy on a device: milliseconds of an update and of a step of acting in all environments, and
    the peak of memory in MB."""
    flags = ["--agent", "ppo", "--learning-rate", "0", "--device", device]
    trainers = [trainer_of(path, flags) for path in paths]
    acting: list[list[float]] = [[] for _ in paths]
    whole: list[list[float]] = [[] for _ in paths]
    peaks = [0.0] * len(paths)
    for update in range(warm_up + updates):
        for index, trainer in enumerate(trainers):
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            collect_seconds = seconds_of(trainer.collector.collect, device)
            update_seconds = seconds_of(trainer.update, device)
            if device == "cuda":
                peaks[index] = max(peaks[index], torch.cuda.max_memory_allocated() / 1e6)
            if update >= warm_up:
                acting[index].append(collect_seconds)
                whole[index].append(update_seconds)
    if device == "cpu":
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            resident = pool.starmap(measure_resident, [(path, flags, RESIDENT_UPDATES) for path in paths], 1)
        peaks = [1000 * largest for _, largest in resident]
    return [
        {
            "update_ms": 1000 * float(np.median(seconds) - np.median(collect)),
            "acting_step_ms": 1000 * float(np.median(collect)) / trainer.agent.config.num_steps,
            "peak_mb": peak,
        }
        for trainer, collect, seconds, peak in zip(trainers, acting, whole, peaks, strict=True)
    ]
