"""The cells of a comparison: one training and its evaluation each, and the JSON files in which they stay."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.coverage import current_commit
from expire_span_rl import cli, evaluation, training
from expire_span_rl.policies import KINDS, load_policy
from expire_span_rl.policies.io import write_atomically
from expire_span_rl.settings import Settings

IMMATERIAL = {
    "run_dir", "folder", "resume", "overwrite", "torch_threads", "progress_bar", "checkpoint_every", "memory_image_every", "device",
}  # fmt: skip
"""Settings that a sweep may change from one call to the next."""
EVALUATION = ("eval_episodes", "eval_stochastic")
"""Settings of the sweep that a cell's figures depend on."""

CURVE = ("rollout/success_rate", "rollout/ep_rew_mean")
CURVE_POINTS = 250  # of a cell's learning curve
FEWEST_EPISODES = 100


class Cell(NamedTuple):
    """One training and its evaluation."""

    kind: str
    budget: int | None
    seed: int

    def __str__(self) -> str:
        return f"{self.kind}-{self.budget or 'any'}-{self.seed}"


def finished(out: Path) -> dict[Cell, dict[str, Any]]:
    """The cells in a sweep's directory. Raises UsageError, one line, for a file that is none."""
    found = {}
    for file in sorted((out / "cells").glob("*.json")):
        try:
            told = json.loads(file.read_text())
            cell = Cell(*(told[name] for name in Cell._fields))
            told = {"eval_stochastic": False, **told}  # cells from before that was a setting
            whole = cell.kind in KINDS and told["config"]["env"] and told["eval_episodes"] and told["figures"].keys()
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError):
            whole = False
        if not whole:
            raise cli.UsageError(f"{file}: expected a cell of a sweep, could not read it")
        found[cell] = told
    return found


def planned(out: Path, cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The sweep's `kinds`, `budgets` and `seeds`, finished or not, those of `cells` among them. Raises UsageError, one
    line, for a plan that cannot be read."""
    file = out / "plan.json"
    kinds, budgets, seeds = [], [], 0  # as it was before there was such a file
    if file.exists():
        try:
            plan = json.loads(file.read_text())
            kinds, budgets, seeds = list(plan["kinds"]), list(plan["budgets"]), int(plan["seeds"])
        except (KeyError, TypeError, ValueError):
            raise cli.UsageError(
                f"{file}: expected the plan of a sweep, could not read it: without the file the sweep goes on"
            ) from None
    found = {*kinds, *(cell["kind"] for cell in cells)}
    return {
        "kinds": [kind for kind in KINDS if kind in found],
        "budgets": sorted({*budgets, *(cell["budget"] for cell in cells if cell["budget"])}),
        "seeds": max([seeds, *(cell["seed"] for cell in cells)]),
    }


def write_plan(out: Path, cells: Sequence[Mapping[str, Any]], more: Sequence[Cell]) -> None:
    """The plan grows by `more`."""
    plan = planned(out, [*cells, *(cell._asdict() for cell in more)])
    write_atomically(out / "plan.json", (json.dumps(plan) + "\n").encode())


def finish_cell(work: tuple[Cell, Settings, str, Mapping[str, Any]]) -> dict[str, Any]:
    """Trains a cell, from its checkpoint if there is one, evaluates the policy that train_rl.py keeps, writes the
    cell."""
    cell, settings, file, protocol = work
    run_dir = Path(settings.run.run_dir)
    begun = (run_dir / "checkpoint.safetensors").is_file()
    training.train(settings.replace(resume=str(run_dir) if begun else "", overwrite=not begun))
    policy, info = load_policy(run_dir)
    torch.manual_seed(0)
    episodes, likely = protocol["eval_episodes"], not protocol["eval_stochastic"]
    result = evaluation.evaluate(policy, settings.run.env, info["env_kwargs"], episodes, deterministic=likely)
    told = {
        **cell._asdict(),
        "figures": {**evaluation_figures(result), **training_figures(run_dir, settings)},
        "policy_timesteps": info["timesteps"],
        "curve": learning_curve(run_dir),
        "commit": current_commit(),
        **protocol,
        "config": {name: value for name, value in settings.flat().items() if name not in IMMATERIAL},
        "evaluation": result,
    }
    write_atomically(file, (json.dumps(told, indent=1) + "\n").encode())
    return told


def evaluation_figures(result: Mapping[str, Any]) -> dict[str, float | None]:
    """What the table shows of an evaluation. Live memories: the mean over layers, and the largest count in any."""
    live = result["live_memories_mean"]
    return {
        "success": result["success_rate"],
        "return": result["mean_return"],
        "memory_efficiency": result["memory_efficiency"],
        "live_mean": sum(live) / len(live) if live else None,
        "live_peak": max(result["live_memories_max"]) if live else None,
        "bytes": result["memory_bytes"],
        "acting_steps_per_second": result["acting_steps_per_second"],
    }


def training_figures(run_dir: Path, settings: Settings) -> dict[str, float]:
    """From the run's log, which a resumed run continues: minutes without pauses, environment steps per second."""
    with (run_dir / "progress.csv").open(newline="") as log:
        rows = list(csv.DictReader(log))
    rollout_size = settings.agent.num_steps * settings.run.num_envs
    seconds = sum(rollout_size / float(row["time/fps"]) for row in rows)
    steps = float(rows[-1]["time/total_timesteps"])
    return {"training_minutes": seconds / 60, "training_steps_per_second": steps / seconds}


def learning_curve(run_dir: Path) -> list[list[float | None]]:
    """From the run's log: [environment steps, success, return] at up to `CURVE_POINTS` updates, the last one included.
    Both are means over the latest training episodes, and left out until `FEWEST_EPISODES` of them have ended: the first to
    end are the shortest."""
    with (run_dir / "progress.csv").open(newline="") as log:
        rows = [row for row in csv.DictReader(log) if float(row["time/episodes"] or 0) >= FEWEST_EPISODES]
    every = -(-len(rows) // CURVE_POINTS) or 1
    return [
        [float(row["time/total_timesteps"]), *(_number(row.get(name)) for name in CURVE)]
        for row in reversed(rows[::-1][::every])
    ]


def _number(text: str | None) -> float | None:
    return round(float(text), 4) if text else None
