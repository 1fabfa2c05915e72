"""Is anything lost? Trainings that are killed, disks that fill, damaged files, mistyped command lines, hours of
running.

    python -m benchmarks.chaos                                             # everything: a day on two cores
    python -m benchmarks.chaos --parts kills writes --kills 6 --writes 3   # some of it, in minutes
    python -m benchmarks.chaos --report                                    # what has been found so far

part       what is tried                                                          what must hold
kills      SIGKILL at random moments, three times in each training of every       resumed, it ends with the weights and the log of
           kind, agent and task                                                   one that nobody disturbed, bit by bit
terms      the same with SIGTERM                                                  and it ends within 10 s with exit code 143
writes     SIGKILL while a checkpoint is written                                  as for kills
disks      disks of so many sizes that fill up while training                     one line; with room it goes on, as for kills
files      policies, checkpoints, config.json and progress.csv, changed at        taken or refused: no traceback, no line of more than 300
           random, for evaluate.py and --resume                                   characters, refused within 2 s and 300 MB, nothing
                                                                                  written elsewhere
commands   command lines of the three scripts, changed at random                  the same
soak       a training of so many minutes                                          memory and open files flat within 2%
ray        an actor or the learner of a training on Ray is killed                 it reaches its target; no process, no file left

Trials are drawn from --seed, the part and their number, so that each can be repeated. Rows are added to the CSV as they
come; the same command goes on with the trials that have none yet, --redo tries others again.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from benchmarks import chaos_inputs, chaos_long, chaos_runs
from benchmarks.chaos_trial import Outcome, Trial
from benchmarks.coverage import current_commit
from expire_span_rl import cli
from expire_span_rl.checks import check_at_least, shown
from expire_span_rl.files import write_atomically

PARTS: dict[str, tuple[int, Callable[[Trial], Outcome]]] = {
    "kills": (chaos_runs.KILLS, chaos_runs.killed),
    "terms": (chaos_runs.KILLS, chaos_runs.terminated),
    "writes": (1, chaos_runs.killed_while_writing),
    "disks": (1, chaos_runs.full_disk),
    "files": (chaos_inputs.BATCH, chaos_inputs.files),
    "commands": (chaos_inputs.BATCH, chaos_inputs.commands),
    "soak": (1, chaos_long.soak),
    "ray": (1, chaos_long.ray),
}
"""How many trials a row stands for, and what tries them."""
Part = Literal["kills", "terms", "writes", "disks", "files", "commands", "soak", "ray"]


@dataclass(frozen=True)
class ChaosConfig:
    parts: tuple[Part, ...] = tuple(PARTS)  # type: ignore[assignment]
    """What is tried."""
    kills: int = 100
    """SIGKILLs at random moments."""
    terms: int = 50
    """SIGTERMs at random moments."""
    writes: int = 30
    """SIGKILLs while a checkpoint is written."""
    disks: int = 20
    """Sizes of disks that fill."""
    files: int = 10_000
    """Changed files."""
    commands: int = 3000
    """Changed command lines."""
    soak: int = 1
    """Long trainings."""
    soak_minutes: float = 120
    """Minutes of each of them."""
    ray: int = 20
    """Kills of actors and learners."""
    seed: int = 0
    """Of all that is drawn."""
    workers: int = 1
    """Trials at a time, one thread each."""
    redo: Literal["none", "failed", "all"] = "none"
    """Try again what has a row: what did not hold, or all."""
    out: str = "benchmarks/results/chaos"
    """Folder of the rows."""
    report: bool = False
    """Try nothing: print what the rows say."""

    def __post_init__(self):
        check_at_least(self, workers=1, seed=0, soak_minutes=0, **dict.fromkeys(PARTS, 0))


@dataclass(frozen=True)
class Row:
    """What became of some trials of a part."""

    part: str
    number: int
    """Of the row in its part."""
    trials: int
    case: str
    held: bool
    why_not: str
    """One line."""
    seconds: float
    seed: int
    commit: str


def main() -> None:
    config = cli.parse(
        ChaosConfig, sys.argv[1:], "Tries to lose something: kills, full disks, damaged files, long runs."
    )
    folder = Path(config.out)
    rows = read_rows(folder / "trials.csv")
    if not config.report:
        folder.mkdir(parents=True, exist_ok=True)
        for row in tried(list(missing(config, rows)), config):
            rows[row.part, row.number] = row
            write_rows(folder / "trials.csv", rows)
            write_atomically(folder / "summary.json", (json.dumps(summary(rows), indent=1) + "\n").encode())
    print_table(rows)
    print(f"rows: {folder / 'trials.csv'}")


def missing(config: ChaosConfig, rows: dict[tuple[str, int], Row]) -> Iterator[tuple[str, int, int]]:
    """(part, number, trials) of the rows that are asked for."""
    for part in config.parts:
        size = PARTS[part][0]
        wanted = getattr(config, part)
        for number in range(math.ceil(wanted / size)):
            trials = min(size, wanted - number * size)
            row = rows.get((part, number))
            again = config.redo == "all" or (config.redo == "failed" and row is not None and not row.held)
            if row is None or row.trials < trials or again:
                yield part, number, trials


def tried(work: Sequence[tuple[str, int, int]], config: ChaosConfig) -> Iterator[Row]:
    """A row for each (part, number, trials), as they come."""
    os.environ["OMP_NUM_THREADS"] = "1"
    commit = current_commit()
    with (
        tempfile.TemporaryDirectory(prefix="chaos-") as shared,
        ThreadPoolExecutor(config.workers) as pool,
    ):
        jobs = [pool.submit(one_row, *item, config, Path(shared), commit) for item in work]
        try:
            for job in tqdm(as_completed(jobs), total=len(jobs), unit="row", disable=None):
                yield job.result()
        finally:
            pool.shutdown(cancel_futures=True)


def one_row(part: str, number: int, trials: int, config: ChaosConfig, shared: Path, commit: str) -> Row:
    """Tries one row, in a folder of its own. shared: a folder for what several rows need."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix=f"chaos-{part}-") as name:
        trial = Trial(
            number, trials, Path(name), shared, random.Random(f"{config.seed}-{part}-{number}"), config.soak_minutes,
            Path(config.out), getattr(config, part) if part in PARTS else 0,
        )  # fmt: skip
        try:
            outcome = PARTS[part][1](trial)
        except Exception as error:  # noqa: BLE001, one trial must not end the others
            outcome = Outcome("", f"the trial itself failed: {type(error).__name__}: {error}", trials)
        why = shown(outcome.why_not.replace(name, ""), 300)
    seconds = round(time.perf_counter() - began, 1)
    return Row(part, number, outcome.trials, outcome.case, not why, why, seconds, config.seed, commit)


def summary(rows: dict[tuple[str, int], Row]) -> dict[str, dict[str, object]]:
    """By part: trials, rows that did not hold, and the commits at which they were tried."""
    parts = {}
    for part in PARTS:
        own = [row for row in rows.values() if row.part == part]
        if own:
            parts[part] = {
                "trials": sum(row.trials for row in own),
                "rows": len(own),
                "rows that did not hold": sum(not row.held for row in own),
                "hours": round(sum(row.seconds for row in own) / 3600, 2),
                "commits": sorted({row.commit for row in own}),
            }
    return parts


def read_rows(path: Path) -> dict[tuple[str, int], Row]:
    """The rows of a file by part and number; none if there is no file."""
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        rows = [_row(row) for row in csv.DictReader(file)]
    return {(row.part, row.number): row for row in rows}


def _row(text: dict[str, str]) -> Row:
    numbers = {name: int(text[name]) for name in ("number", "trials", "seed")}
    rest = {name: text[name] for name in ("part", "case", "why_not", "commit")}
    return Row(**rest, **numbers, held=text["held"] == "True", seconds=float(text["seconds"]))  # type: ignore[arg-type]


def write_rows(path: Path, rows: dict[tuple[str, int], Row]) -> None:
    """Writes the rows, ordered."""
    text = io.StringIO()
    table = csv.DictWriter(text, [field.name for field in fields(Row)], lineterminator="\n")
    table.writeheader()
    table.writerows(asdict(rows[key]) for key in sorted(rows, key=lambda key: (list(PARTS).index(key[0]), key[1])))
    write_atomically(path, text.getvalue().encode())


def print_table(rows: dict[tuple[str, int], Row]) -> None:
    """By part how much held, then every row that did not."""
    console = Console(width=None if sys.stdout.isatty() else 140, markup=False, highlight=False)
    table = Table("part", "trials", "rows", "did not hold", "hours")
    for part, figures in summary(rows).items():
        table.add_row(part, *(str(figures[name]) for name in ("trials", "rows", "rows that did not hold", "hours")))
    console.print(table)
    for row in rows.values():
        if not row.held:
            console.print(f"{row.part} {row.number} ({row.case}): {row.why_not}", soft_wrap=True)


if __name__ == "__main__":
    cli.run(main)
