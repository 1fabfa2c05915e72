"""Success against length: policies that were trained on short episodes play longer and longer ones.

    python -m benchmarks.generalisation                                   # five seeds of expire_span, Corridor-v0
    python -m benchmarks.generalisation --kinds expire_span transformer_xl gru --seeds 3 --out runs/kinds
    python -m benchmarks.generalisation --env TMaze-v0 --lengths 50 500 --total-timesteps 1000000 --out runs/tmaze

Flags of train_rl.py may follow; they apply to all trainings. Each kind and seed is trained unless its run is there, and
a run that was interrupted is continued. Then its `policy.safetensors` plays `--episodes` episodes of each length with
its most likely actions, at most BATCH at a time, and acting is timed. A length that has a row of the same flags and
enough episodes is not played again. Each row is also kept beside the run's directory as soon as it is known, so that a
stop loses one length at most. Rows of a policy that has changed since are left out. Where a policy is gone, its rows
stay, and no other lengths join them.

Rows of before 30 November 2026, as in the repository, do not say their flags. They count as those of any flags, which a
line says, and where their policies are gone no other seeds of their kind join them. --out names a folder to train anew.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.cells import check_settings
from benchmarks.comparison_cells import IMMATERIAL
from benchmarks.coverage import current_commit
from benchmarks.generalisation_report import BATCH, UNKNOWN, Row, plot, print_table, read_rows, write_rows
from benchmarks.learning import split_arguments
from benchmarks.workers import WorkersConfig, check_no_actors, results_of
from expire_span_rl import cli
from expire_span_rl.checks import check_at_least, choice
from expire_span_rl.cli.settings import parse_config, saved_config
from expire_span_rl.envs import make_env
from expire_span_rl.evaluation import evaluate
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
MAX_STEPS = 10**9  # no limit: every episode of these tasks ends


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


def main() -> None:
    benchmark_flags, training_flags = split_arguments(GeneralisationConfig, sys.argv[1:])
    config = cli.parse(
        GeneralisationConfig, benchmark_flags, "Success against length. Flags of train_rl.py may follow."
    )
    file = Path(config.out or f"benchmarks/results/generalisation-{config.env}") / "results.csv"
    cells = [(kind, seed) for kind in config.kinds for seed in range(1, config.seeds + 1)]
    kept = {key: row for cell in cells for key, row in kept_rows(config, *cell).items()}
    finished = finished_rows(config, file)
    rows = kept | finished
    check_no_actors(config.ray_address, training_flags)
    if not config.report:
        for length in config.lengths:
            longer: dict[str, Any] = dict.fromkeys(LENGTH[config.env], length)
            make_env(config.env, **longer).close()
        check_flags(config, cells, training_flags, rows.values(), file.parent)
        missing = {cell: _missing_lengths(config.lengths, rows, cell, config, training_flags) for cell in cells}
        missing = {cell: lengths for cell, lengths in missing.items() if lengths}
        check_policies(config, missing, rows.values(), file)
        if kept.keys() - finished.keys():
            write_rows(file, rows.values())
        _name_unknown([rows.get((*cell, length)) for cell in cells for length in config.lengths], file)
        os.environ["OMP_NUM_THREADS"] = "1"
        jobs = [(config, *cell, training_flags, lengths) for cell, lengths in missing.items()]
        for new_rows in results_of(train_and_play, jobs, config.jobs, config.ray_address):
            rows |= {(row.kind, row.seed, row.length): row for row in new_rows}
            write_rows(file, rows.values())
    print_table(rows.values())
    if rows:
        plot(config.env, list(rows.values()), file.with_name("generalisation.png"))
        print(f"rows: {file}")


def _name_unknown(rows: Iterable[Row | None], file: Path) -> None:
    """Prints whose rows count though their flags are unknown. None: a row that is still missing."""
    kinds = sorted({row.kind for row in rows if row is not None and row.flags == UNKNOWN})
    if kinds:
        print(
            f"{file}: rows of {', '.join(kinds)} do not say their flags of train_rl.py, and count as of these; name "
            "another --out to train anew",
            file=sys.stderr,
            flush=True,
        )


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
                f"{folder}: expected {row.flags or 'no flags of train_rl.py'} as in its row of {row.kind}, seed "
                f"{row.seed}, got {shlex.join(flags) or 'none'}: name another --out and --runs for other flags"
            )
    for kind, seed in cells:
        run = run_of(config, kind, seed)
        if (run / "config.json").exists():
            saved = complete(saved_config(run), str(run))
            current = parse_config(["--env", config.env, "--memory", kind, "--seed", str(seed), *flags]).flat()
            saved, current = (json.loads(json.dumps(settings)) for settings in (saved, current))
            names = sorted(current.keys() - IMMATERIAL)
            check_settings(Path(config.runs), run.name, saved, current, names=names, other="--runs and --out")


def check_policies(
    config: GeneralisationConfig, missing: Mapping[tuple[str, int], Sequence[int]], rows: Iterable[Row], file: Path
) -> None:
    """Raises UsageError, one line, for rows whose policy is gone, if others that are trained anew would join them:
    other lengths of its seed, or, where the row does not say its flags, other seeds of its kind.

    missing: the lengths to play by cell, for cells with any. file: the rows' own."""
    policies = [(row, run_of(config, row.kind, row.seed) / "policy.safetensors") for row in rows]
    gone = [(row, policy) for row, policy in policies if not policy.exists()]
    for row, policy in gone:
        lengths = missing.get((row.kind, row.seed))
        if lengths:
            raise cli.UsageError(
                f"{file}: expected the policy of its rows of {row.kind}, seed {row.seed}, to play {config.episodes} "
                f"episodes of length {', '.join(map(str, lengths))}, {policy} is gone: bring it back, or name another "
                "--out to train anew"
            )
    for row, _ in gone:
        seeds = [seed for kind, seed in missing if kind == row.kind]
        if seeds and row.flags == UNKNOWN:
            raise cli.UsageError(
                f"{file}: expected flags of train_rl.py in its rows of {row.kind}, to put seed {seeds[0]} beside them, "
                "they do not say them: name another --out to train anew"
            )


def finished_rows(config: GeneralisationConfig, file: Path) -> dict[tuple[str, int, int], Row]:
    """The rows of results, without those of policies that are newer."""
    rows = read_rows(file)
    return {key: row for key, row in rows.items() if not _is_newer(run_of(config, row.kind, row.seed), file)}


def _is_newer(run: Path, file: Path) -> bool:
    """Whether a run has a policy that is newer than `file`."""
    policy = run / "policy.safetensors"
    return policy.exists() and policy.stat().st_mtime_ns > file.stat().st_mtime_ns


def _missing_lengths(
    lengths: Sequence[int],
    rows: Mapping[tuple[str, int, int], Row],
    cell: tuple[str, int],
    config: GeneralisationConfig,
    flags: Sequence[str],
) -> list[int]:
    """The lengths that have no row of these flags, or of unknown ones, with enough episodes. cell: kind and seed."""
    found = {length: rows.get((*cell, length)) for length in lengths}
    fitting = (UNKNOWN, shlex.join(flags))
    return [n for n, row in found.items() if row is None or row.episodes < config.episodes or row.flags not in fitting]


def train_and_play(job: tuple[GeneralisationConfig, str, int, list[str], list[int]]) -> list[Row]:
    """Trains one seed of a kind unless that is done, and plays each length. job: the config, kind, seed, flags of
    train_rl.py, and lengths."""
    config, kind, seed, flags, lengths = job
    _train(config, kind, seed, flags)
    rows = kept_rows(config, kind, seed)
    missing = _missing_lengths(lengths, rows, (kind, seed), config, flags)
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
    file = kept_file(run)
    is_current = (run / "policy.safetensors").exists() and file.exists() and not _is_newer(run, file)
    return read_rows(file) if is_current else {}


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


if __name__ == "__main__":
    cli.run(main)
