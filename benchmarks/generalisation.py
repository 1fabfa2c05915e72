"""Success against length: policies that were trained on short episodes play longer and longer ones.

    python -m benchmarks.generalisation                                   # five seeds of expire_span, Corridor-v0
    python -m benchmarks.generalisation --kinds expire_span transformer_xl gru --seeds 3
    python -m benchmarks.generalisation --env TMaze-v0 --lengths 50 500 5000 50000 --total-timesteps 1000000

Flags of train_rl.py may follow; they apply to all trainings. Each kind and seed is trained unless its run is there, and
a run that was interrupted is continued. Then its `policy.safetensors` plays `--episodes` episodes of each length with
its most likely actions, at most BATCH at a time, and acting is timed. A length that has a row of the same flags is not
played again. Each row is also kept beside the run's directory as soon as it is known, so that a stop loses one length
at most. Rows of a policy that has changed since are left out.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.cells import check_settings
from benchmarks.comparison_cells import IMMATERIAL
from benchmarks.coverage import current_commit
from benchmarks.learning import split_arguments
from benchmarks.workers import WorkersConfig, check_no_actors, results_of
from expire_span_rl import cli
from expire_span_rl.checks import check_at_least, choice
from expire_span_rl.cli.settings import parse_config, saved_config
from expire_span_rl.envs import make_env
from expire_span_rl.evaluation import evaluate
from expire_span_rl.files import write_atomically
from expire_span_rl.policies import KINDS, load_policy
from expire_span_rl.saved_settings import complete

ROOT = Path(__file__).resolve().parents[1]
LENGTH: dict[str, tuple[str, ...]] = {
    "Corridor-v0": ("min_length", "max_length"),
    "Portal-v0": ("min_rooms", "max_rooms"),
    "Switch-v0": ("min_hold", "max_hold"),
    "TMaze-v0": ("length",),
}
"""Keyword arguments of the environment that make its episodes longer."""
LENGTHS: dict[str, tuple[int, ...]] = {
    "Corridor-v0": (200, 1000, 10_000, 100_000),
    "Portal-v0": (10, 20, 50),
    "Switch-v0": (8, 80),
    "TMaze-v0": (50, 500, 5000, 50_000),
}
"""The default lengths: as in training, and longer ones."""
UNKNOWN = "unknown"
"""The flags of a row of before 30 November 2026."""
MAX_STEPS = 10**9  # no limit: every episode of these tasks ends
BATCH = 64
"""Environments that play at a time. Times of batches of different sizes could not be compared."""


@dataclass(frozen=True)
class GeneralisationConfig(WorkersConfig):
    env: str = "Corridor-v0"
    """Task: Corridor-v0, Portal-v0, Switch-v0 or TMaze-v0."""
    kinds: tuple[str, ...] = ("expire_span",)
    """Memory kinds."""
    seeds: int = 5
    """Seeds 1, 2, ..., each a training of its own."""
    lengths: tuple[int, ...] = ()
    """Lengths of the episodes: tiles, rooms, junctions that a signal holds, or steps. None: some for each task, up to
    100,000 tiles, 50 rooms, 80 junctions or 50,000 steps."""
    episodes: int = 64
    """Episodes of each length."""
    runs: str = "runs/generalisation"
    """Folder of the runs. Their names are <env>-<kind>-<seed>."""
    out: str = ""
    """Folder of the results. Default: benchmarks/results/generalisation-<env>."""
    jobs: int = 1
    """Trainings or evaluations at a time, one thread each."""
    report: bool = False
    """Train and play nothing, only print and draw the results that are there."""

    def __post_init__(self):
        choice("--env", self.env, LENGTH)
        for kind in self.kinds:
            choice("--kinds", kind, KINDS)
        check_at_least(self, seeds=1, episodes=1, jobs=1)
        if not self.lengths:
            object.__setattr__(self, "lengths", LENGTHS[self.env])
        if min(self.lengths) < 1:
            raise ValueError(f"--lengths: expected lengths of at least 1, got {self.lengths}")


@dataclass(frozen=True)
class Row:
    """A policy in episodes of one length."""

    kind: str
    seed: int
    length: int
    episodes: int
    success: float
    mean_return: float
    live_mean: float
    """Live memories, mean over steps and layers. NaN if there are none."""
    live_largest_layer: float
    """The mean over steps of the layer that has most."""
    ms_per_step: float
    """Milliseconds of acting for one step of the batch, without the environments."""
    commit: str
    flags: str = UNKNOWN
    """Flags of train_rl.py that the training had, beside those that the benchmark sets."""


def main() -> None:
    benchmark_flags, training_flags = split_arguments(GeneralisationConfig, sys.argv[1:])
    config = cli.parse(
        GeneralisationConfig, benchmark_flags, "Success against length. Flags of train_rl.py may follow."
    )
    folder = Path(config.out or f"benchmarks/results/generalisation-{config.env}")
    cells = [(kind, seed) for kind in config.kinds for seed in range(1, config.seeds + 1)]
    rows = {key: row for cell in cells for key, row in kept_rows(config, *cell).items()}
    rows |= finished_rows(config, folder / "results.csv")
    check_no_actors(config.ray_address, training_flags)
    if not config.report:
        for length in config.lengths:
            longer: dict[str, Any] = dict.fromkeys(LENGTH[config.env], length)
            make_env(config.env, **longer).close()
        check_flags(config, cells, training_flags, rows.values(), folder)
        if rows:
            write_rows(folder / "results.csv", rows.values())  # what was kept and is not there yet
        os.environ["OMP_NUM_THREADS"] = "1"

        def missing(kind: str, seed: int) -> list[int]:
            return _missing_lengths(config.lengths, _by_length(rows, kind, seed), config, training_flags)

        jobs = [(config, kind, seed, training_flags, missing(kind, seed)) for kind, seed in cells]
        for new_rows in results_of(train_and_play, [job for job in jobs if job[-1]], config.jobs, config.ray_address):
            rows |= {(row.kind, row.seed, row.length): row for row in new_rows}
            write_rows(folder / "results.csv", rows.values())
    print_table(rows.values())
    if rows:
        plot(config.env, list(rows.values()), folder / "generalisation.png")
        print(f"rows: {folder / 'results.csv'}")


def check_flags(
    config: GeneralisationConfig,
    cells: Sequence[tuple[str, int]],
    flags: Sequence[str],
    rows: Iterable[Row],
    folder: Path,
) -> None:
    """Raises UsageError, one line, for rows or runs of these cells that had other flags of train_rl.py."""
    for row in rows:
        if (row.kind, row.seed) in cells and row.flags not in (UNKNOWN, shlex.join(flags)):
            raise cli.UsageError(
                f"{folder}: expected the flags {row.flags or 'of no flags'!r} as in its row of {row.kind}, seed "
                f"{row.seed}, got {shlex.join(flags)!r}: name another --out and --runs for other flags"
            )
    for kind, seed in cells:
        run = run_of(config, kind, seed)
        if (run / "config.json").exists():
            saved = complete(saved_config(run), str(run))
            current = parse_config(["--env", config.env, "--memory", kind, "--seed", str(seed), *flags]).flat()
            saved, current = (json.loads(json.dumps(settings)) for settings in (saved, current))
            names = sorted(current.keys() - IMMATERIAL)
            check_settings(Path(config.runs), run.name, saved, current, names=names, other="--runs and --out")


def finished_rows(config: GeneralisationConfig, file: Path) -> dict[tuple[str, int, int], Row]:
    """The rows of results, without those of policies that are newer."""
    rows = read_rows(file)
    policies = {row: run_of(config, row.kind, row.seed) / "policy.safetensors" for row in rows.values()}
    return {
        key: row
        for key, row in rows.items()
        if not policies[row].exists() or policies[row].stat().st_mtime_ns <= file.stat().st_mtime_ns
    }


def _missing_lengths(
    lengths: Sequence[int], rows: Mapping[int, Row], config: GeneralisationConfig, flags: Sequence[str]
) -> list[int]:
    """The lengths that have no row of these flags with enough episodes. rows: by length, of one kind and seed."""
    return [
        length
        for length in lengths
        if length not in rows or rows[length].episodes < config.episodes or rows[length].flags != shlex.join(flags)
    ]


def _by_length(rows: Mapping[tuple[str, int, int], Row], kind: str, seed: int) -> dict[int, Row]:
    return {length: row for (*cell, length), row in rows.items() if cell == [kind, seed]}


def train_and_play(job: tuple[GeneralisationConfig, str, int, list[str], list[int]]) -> list[Row]:
    """Trains one seed of a kind unless that is done, and plays each length. job: the config, kind, seed, flags of
    train_rl.py, and lengths."""
    config, kind, seed, flags, lengths = job
    _train(config, kind, seed, flags)
    rows = kept_rows(config, kind, seed)
    missing = _missing_lengths(lengths, _by_length(rows, kind, seed), config, flags)
    for row in play_lengths(config, kind, seed, flags, missing):
        rows[kind, seed, row.length] = row
        write_rows(kept_file(run_of(config, kind, seed)), rows.values())
    return [rows[kind, seed, length] for length in lengths]


def _train(config: GeneralisationConfig, kind: str, seed: int, flags: Sequence[str]) -> None:
    """Trains a seed of a kind, or continues what was interrupted. A training that is over has nothing left to do."""
    run = run_of(config, kind, seed)
    if (run / "checkpoint.safetensors").exists():  # beside it lies a policy from the middle of the training
        arguments = ["--resume", str(run)]
    elif (run / "policy.safetensors").exists():
        return
    else:
        arguments = ["--env", config.env, "--memory", kind, "--seed", str(seed), "--run-dir", str(run), *flags]
        arguments += ["--overwrite"] if run.exists() else []
    command = [sys.executable, str(ROOT / "train_rl.py"), "--no-progress-bar", *arguments]
    result = subprocess.run(command, check=False)
    if result.returncode:
        raise RuntimeError(f"{run}: the training ended with exit code {result.returncode}")


def run_of(config: GeneralisationConfig, kind: str, seed: int) -> Path:
    """The run directory of a training."""
    return Path(config.runs) / f"{config.env}-{kind}-{seed}"


def kept_file(run: Path) -> Path:
    """Where the rows of a run's policy are kept."""
    return run.with_name(f"{run.name}.csv")


def kept_rows(config: GeneralisationConfig, kind: str, seed: int) -> dict[tuple[str, int, int], Row]:
    """The rows that are kept of a run's policy, as `read_rows`. Empty if the policy is newer than they are."""
    run = run_of(config, kind, seed)
    policy, file = run / "policy.safetensors", kept_file(run)
    if not (policy.exists() and file.exists()) or file.stat().st_mtime_ns < policy.stat().st_mtime_ns:
        return {}
    return read_rows(file)


def play_lengths(
    config: GeneralisationConfig, kind: str, seed: int, flags: Sequence[str], lengths: Sequence[int]
) -> Iterator[Row]:
    """A row for each length. All else in the environment is as it was in training."""
    policy, info = load_policy(run_of(config, kind, seed))
    for length in lengths:
        kwargs = {**info.get("env_kwargs", {}), **dict.fromkeys(LENGTH[config.env], length)}
        episodes, batch = config.episodes, min(config.episodes, BATCH)
        result = evaluate(policy, config.env, kwargs, episodes, num_envs=batch, seed=1, max_steps=MAX_STEPS)
        live = result["live_memories_mean"]
        yield Row(
            kind=kind,
            seed=seed,
            length=length,
            episodes=episodes,
            success=result["success_rate"],
            mean_return=result["mean_return"],
            live_mean=sum(live) / len(live) if live else float("nan"),
            live_largest_layer=max(live, default=float("nan")),
            ms_per_step=1000 * batch / result["acting_steps_per_second"],
            commit=current_commit(),
            flags=shlex.join(flags),
        )
        print(f"{kind} {seed}: {result['success_rate']:.1%} at {length:,}", file=sys.stderr, flush=True)


def read_rows(path: Path) -> dict[tuple[str, int, int], Row]:
    """The rows of a file by kind, seed and length. Empty if there is no file."""
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        rows = [_parse_row(text) for text in csv.DictReader(file)]
    return {(row.kind, row.seed, row.length): row for row in rows}


def _parse_row(text: Mapping[str, str]) -> Row:
    integers: dict[str, Any] = {name: int(text[name]) for name in ("seed", "length", "episodes")}
    names = ("success", "mean_return", "live_mean", "live_largest_layer", "ms_per_step")
    floats: dict[str, Any] = {name: float(text[name]) for name in names}
    return Row(kind=text["kind"], commit=text["commit"], flags=text.get("flags", UNKNOWN), **integers, **floats)


def write_rows(path: Path, rows: Any) -> None:
    """Writes the rows, sorted, into a folder that need not be there yet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    table = csv.DictWriter(text, [field.name for field in fields(Row)], lineterminator="\n")
    table.writeheader()
    table.writerows(asdict(row) for row in sorted(rows, key=lambda row: (row.kind, row.seed, row.length)))
    write_atomically(path, text.getvalue().encode())


def print_table(rows: Any) -> None:
    """Prints for each kind and length the success of every seed. Live memories and milliseconds per step are mean and
    range over seeds."""
    columns = ["kind", "length", "episodes", "success of each seed", "live per layer", "ms per step"]
    table = Table(*columns)
    for (kind, length), group in groupby(sorted(rows, key=lambda row: (row.kind, row.length, row.seed)), _cell):
        seeds = list(group)
        success = " ".join(f"{row.success:.1%}" for row in seeds)
        episodes = str(min(row.episodes for row in seeds))
        live = _range([row.live_mean for row in seeds], ".1f")
        milliseconds = _range([row.ms_per_step for row in seeds], ".2f")
        cells = [kind, f"{length:,}", episodes, success, live, milliseconds]
        table.add_row(*cells)
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def _cell(row: Row) -> tuple[str, int]:
    return row.kind, row.length


def _range(values: Sequence[float], form: str) -> str:
    if any(math.isnan(value) for value in values):
        return "-"
    return f"{sum(values) / len(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def plot(env: str, rows: Sequence[Row], path: Path) -> None:
    """Draws success, live memories and milliseconds per step against length, a line for each kind, a point for each
    seed. Live memories are left out where no kind has slots, and times unless all lengths were played in batches of
    the same size."""
    from matplotlib.figure import Figure

    panels = {"success": "success"}
    if not all(math.isnan(row.live_mean) for row in rows):  # a recurrent memory has no slots
        panels["live_mean"] = "live memories per layer"
    if len({min(row.episodes, BATCH) for row in rows}) == 1:
        panels["ms_per_step"] = f"ms per step of {min(rows[0].episodes, BATCH)} environments"
    figure = Figure((3.7 * len(panels), 3.4), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for number, kind in enumerate(sorted({row.kind for row in rows})):
        kind_rows = [row for row in rows if row.kind == kind]
        lengths = sorted({row.length for row in kind_rows})
        for ax, (name, title) in zip(axes, panels.items(), strict=True):
            points = [(row.length, getattr(row, name)) for row in kind_rows]
            values = [[v for at, v in points if at == length and not math.isnan(v)] for length in lengths]
            means = [sum(v) / len(v) if v else math.nan for v in values]
            ax.plot(lengths, means, color=f"C{number}", label=kind)
            ax.scatter(*zip(*points, strict=True), s=12, c=f"C{number}", alpha=0.5)
            ax.set(xscale="log", xlabel=f"length of the episodes, {env}", title=title)
    for ax, name in zip(axes, panels, strict=True):  # limits last: they end the scaling to what is drawn
        if name == "success":
            ax.set_ylim(-0.03, 1.03)
        else:
            ax.set_ylim(0, 1.05 * ax.get_ylim()[1])
    axes[0].legend(frameon=False, fontsize="small", loc="lower left", ncols=2)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=130)
    write_atomically(path, image.getvalue())


if __name__ == "__main__":
    cli.run(main)
