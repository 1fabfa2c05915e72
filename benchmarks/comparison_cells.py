"""The cells of a comparison. A cell is one training and its evaluation; it is kept in a JSON file."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.cells import read_cell_files
from benchmarks.coverage import current_commit
from expire_span_rl import cli, evaluation, training
from expire_span_rl.policies import KINDS, load_policy
from expire_span_rl.policies.io import write_atomically
from expire_span_rl.settings import Settings

IMMATERIAL = {
    "run_dir", "folder", "resume", "overwrite", "torch_threads", "progress_bar", "checkpoint_every",
    "memory_image_every", "device",
}  # fmt: skip
"""Settings that may change between two calls of a sweep."""
EVALUATION = ("eval_episodes", "eval_stochastic")
"""Settings of the sweep that the metrics of a cell depend on."""

CURVE_COLUMNS = ("rollout/success_rate", "rollout/ep_rew_mean")
CURVE_POINTS = 250  # at most, of a cell's learning curve
MIN_EPISODES = 100  # that must have ended before the curve begins
EPOCH = 65_536
"""Environment steps of an epoch of `best_epoch`: those of POPGym's paper (Morad et al., 2023, arXiv 2303.01859)."""


class Cell(NamedTuple):
    """One training and its evaluation."""

    kind: str
    budget: int | None
    seed: int

    def __str__(self) -> str:
        return f"{self.kind}-{self.budget or 'any'}-{self.seed}"


def read_cells(out: Path) -> dict[Cell, dict[str, Any]]:
    """The finished cells in a sweep's directory. Raises UsageError, one line, for a file that is no cell."""

    def is_complete(data: dict[str, Any]) -> Any:
        return data["config"]["env"] and data["eval_episodes"] and data["figures"].keys()

    found = read_cell_files(out, Cell, owner="a sweep", is_complete=is_complete)
    return {cell: {"eval_stochastic": False, **data} for cell, data in found.items()}  # old cells lack this setting


def read_plan(out: Path, cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The sweep's `kinds`, `budgets` and `seeds`, finished or not, and those of `cells`. Raises UsageError, one line,
    for a plan that cannot be read."""
    file = out / "plan.json"
    plan: dict[str, Any] = {"kinds": [], "budgets": [], "seeds": 0}  # old sweeps have no such file
    if file.exists():
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
            plan = {"kinds": list(data["kinds"]), "budgets": list(data["budgets"]), "seeds": int(data["seeds"])}
        except (KeyError, TypeError, ValueError):
            raise cli.UsageError(
                f"{file}: expected the plan of a sweep, could not read it: without the file the sweep goes on"
            ) from None
    kinds = {*plan["kinds"], *(cell["kind"] for cell in cells)}
    return {
        "kinds": [kind for kind in KINDS if kind in kinds],
        "budgets": sorted({*plan["budgets"], *(cell["budget"] for cell in cells if cell["budget"])}),
        "seeds": max([plan["seeds"], *(cell["seed"] for cell in cells)]),
    }


def write_plan(out: Path, cells: Sequence[Mapping[str, Any]], new_cells: Sequence[Cell]) -> None:
    """Adds `new_cells` to the plan."""
    plan = read_plan(out, [*cells, *(cell._asdict() for cell in new_cells)])
    write_atomically(out / "plan.json", (json.dumps(plan) + "\n").encode())


def finish_cell(
    work: tuple[Cell, Settings, str, Mapping[str, Any]],
    callback: Callable[[dict[str, float]], Any] | None = None,
    *,
    is_trained: bool = False,
    progress: Callable[[list[list[float | None]]], Mapping[str, float | None]] = lambda points: {},
) -> dict[str, Any]:
    """Trains a cell, from its checkpoint if there is one, evaluates the policy that train_rl.py keeps, and writes the
    cell. work: the cell, the settings of its training, its file, and the settings of the evaluation. callback: gets the
    metrics of each update, and ends the training by returning False. is_trained: it has ended before, and is only
    evaluated. progress: more metrics, from the points of all updates (`curve_point`)."""
    cell, settings, file, protocol = work
    run_dir = Path(settings.run.run_dir)
    has_checkpoint = (run_dir / "checkpoint.safetensors").is_file()
    settings = settings.replace(resume=str(run_dir) if has_checkpoint else "", overwrite=not has_checkpoint)
    if not is_trained:
        training.train(settings, callback)
    policy, info = load_policy(run_dir)
    torch.manual_seed(0)
    result = evaluation.evaluate(
        policy,
        settings.run.env,
        info["env_kwargs"],
        protocol["eval_episodes"],
        deterministic=not protocol["eval_stochastic"],
    )
    points = curve_points(run_dir)
    data = {
        **cell._asdict(),
        "figures": {**evaluation_metrics(result), **training_metrics(run_dir, settings), **progress(points)},
        "policy_timesteps": info["timesteps"],
        "curve": thinned(points),
        "commit": current_commit(),
        **protocol,
        "config": {name: value for name, value in settings.flat().items() if name not in IMMATERIAL},
        "evaluation": result,
    }
    write_atomically(file, (json.dumps(data, indent=1) + "\n").encode())
    return data


def evaluation_metrics(result: Mapping[str, Any]) -> dict[str, float | None]:
    """What the table shows of an evaluation. Of live memories these are the mean over layers and the largest count in
    any layer."""
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


def training_metrics(run_dir: Path, settings: Settings) -> dict[str, float | None]:
    """Minutes without pauses, environment steps per second and the return of the best epoch, from the run's log. A
    resumed run continues the log."""
    with (run_dir / "progress.csv").open(newline="") as log:
        rows = list(csv.DictReader(log))
    rollout_size = settings.agent.num_steps * settings.run.num_envs
    seconds = sum(rollout_size / float(row["time/fps"]) for row in rows)
    steps = float(rows[-1]["time/total_timesteps"])
    return {
        "training_minutes": seconds / 60,
        "training_steps_per_second": steps / seconds,
        "best_epoch": best_epoch(_curve_points(rows)),
    }


def best_epoch(curve: Sequence[Sequence[float | None]]) -> float | None:
    """The highest mean return of an epoch, None before one has ended. An epoch is EPOCH environment steps, and its mean
    return that of its points. curve: points as of `curve_point`, one for each update."""
    epochs: dict[int, list[float]] = {}
    for steps, _, mean_return in curve:
        if steps is not None and mean_return is not None:
            epochs.setdefault(math.ceil(steps / EPOCH), []).append(mean_return)
    if curve and (last := float(curve[-1][0] or 0)) % EPOCH:
        epochs.pop(math.ceil(last / EPOCH), None)  # has not ended
    return max((sum(returns) / len(returns) for returns in epochs.values()), default=None)


def thinned(points: list[list[float | None]]) -> list[list[float | None]]:
    """Up to CURVE_POINTS of the points, the last one included."""
    stride = -(-len(points) // CURVE_POINTS) or 1
    return points[::-1][::stride][::-1]


def curve_points(run_dir: Path) -> list[list[float | None]]:
    """[environment steps, success, return] of all updates, from the run's log.

    Success and return are means over the latest training episodes. The curve begins when MIN_EPISODES episodes have
    ended, since the first to end are the shortest.
    """
    with (run_dir / "progress.csv").open(newline="") as log:
        return _curve_points(csv.DictReader(log))


def _curve_points(rows: Iterable[Mapping[str, Any]]) -> list[list[float | None]]:
    """The points of a log's rows that have one."""
    return [point for row in rows if (point := curve_point(row)) is not None]


def curve_point(row: Mapping[str, Any]) -> list[float | None] | None:
    """[environment steps, success, return] of an update, from its row of the log or its metrics. None before
    MIN_EPISODES episodes have ended."""
    if float(row["time/episodes"] or 0) < MIN_EPISODES:
        return None
    return [float(row["time/total_timesteps"]), *(_parse_number(row.get(name)) for name in CURVE_COLUMNS)]


def _parse_number(number: str | float | None) -> float | None:
    return None if number in (None, "") else round(float(number), 4)
