"""Is anything lost when trainings are killed, disks fill, files are damaged, or command lines are mistyped?

    python -m benchmarks.chaos                                             # everything: a day on two cores
    python -m benchmarks.chaos --parts kills writes --kills 6 --writes 3   # a part of it, in minutes
    python -m benchmarks.chaos --report                                    # the results so far

part       what is tried                                          what must hold
kills      SIGKILL at random moments, three times in each         after --resume, the training ends with the weights
           training of every kind, agent and task                 and the log of an undisturbed one, bit by bit
terms      the same with SIGTERM                                  as for kills; it ends within 10 s with exit code 143
writes     SIGKILL while a checkpoint is written                  as for kills
disks      disks of many sizes that fill up while training        the error is one line; with more room, --resume
                                                                  continues, as for kills
files      policies, checkpoints, config.json and progress.csv,   a file is accepted or refused without a traceback or
           changed at random, for evaluate.py and --resume        a line of more than 300 characters; a refusal takes
                                                                  at most 2 s and 300 MB, and nothing else is written
commands   command lines of the three scripts, changed at random  as for files
soak       a training of many minutes                             memory and open files stay constant within 2%
ray        an actor or the learner of a training on Ray is        the training reaches its target, and no process and
           killed                                                 no file remain

The random numbers of a row depend on --seed, the part and the row's number, so that it can be repeated. Rows are added
to the CSV one by one. The same command continues with the trials that have no row yet, and --redo repeats others.
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
from functools import partial
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from benchmarks import chaos_inputs, chaos_long, chaos_runs
from benchmarks.cells import read_csv
from benchmarks.chaos_trial import Outcome, Trial
from benchmarks.coverage import current_commit
from expire_span_rl import cli
from expire_span_rl.checks import check_at_least, shown
from expire_span_rl.files import write_atomically

PARTS: dict[str, tuple[int, Callable[[Trial], Outcome]]] = {
    "kills": (chaos_runs.KILLS, chaos_runs.try_kills),
    "terms": (chaos_runs.KILLS, chaos_runs.try_terms),
    "writes": (1, chaos_runs.try_writes),
    "disks": (1, chaos_runs.try_disk),
    "files": (chaos_inputs.BATCH, chaos_inputs.try_files),
    "commands": (chaos_inputs.BATCH, chaos_inputs.try_commands),
    "soak": (1, chaos_long.try_soak),
    "ray": (1, chaos_long.try_ray),
}
"""By part: the number of trials in a row of the table, and the function that tries them."""
Part = Literal["kills", "terms", "writes", "disks", "files", "commands", "soak", "ray"]


@dataclass(frozen=True)
class ChaosConfig:
    parts: tuple[Part, ...] = tuple(PARTS)  # type: ignore[assignment]
    """Parts to try."""
    kills: int = 100
    """SIGKILLs at random moments."""
    terms: int = 50
    """SIGTERMs at random moments."""
    writes: int = 30
    """SIGKILLs while a checkpoint is written."""
    disks: int = 20
    """Sizes of disks that fill up."""
    files: int = 10_000
    """Changed files."""
    commands: int = 3000
    """Changed command lines."""
    soak: int = 1
    """Long trainings."""
    soak_minutes: float = 120
    """Minutes of each long training."""
    ray: int = 20
    """Kills of an actor or a learner on Ray."""
    seed: int = 0
    """Seed of all random numbers."""
    workers: int = 1
    """Rows that are tried at the same time, one thread each."""
    redo: Literal["none", "failed", "all"] = "none"
    """Repeat rows that exist: those that failed, or all."""
    out: str = "benchmarks/results/chaos"
    """Folder of the results."""
    report: bool = False
    """Try nothing, only print the results that are there."""

    def __post_init__(self):
        check_at_least(self, workers=1, seed=0, soak_minutes=0, **dict.fromkeys(PARTS, 0))


@dataclass(frozen=True)
class Row:
    """The result of some trials of a part."""

    part: str
    number: int
    """Number of the row in its part."""
    trials: int
    case: str
    """The name of what was tried, such as a training or a range of files."""
    held: bool
    """Whether everything that must hold did."""
    why_not: str
    """What failed, in one line. Empty if nothing failed."""
    seconds: float
    seed: int
    commit: str


def main() -> None:
    config = cli.parse(ChaosConfig, sys.argv[1:], "Tries to lose data: kills, full disks, damaged files, long runs.")
    folder = Path(config.out)
    rows = read_rows(folder / "trials.csv")
    if not config.report:
        folder.mkdir(parents=True, exist_ok=True)
        for row in try_rows(list(missing_rows(config, rows)), config):
            rows[row.part, row.number] = row
            write_rows(folder / "trials.csv", rows)
            write_atomically(folder / "summary.json", (json.dumps(summary(rows), indent=1) + "\n").encode())
    print_table(rows)
    print(f"rows: {folder / 'trials.csv'}")


def missing_rows(config: ChaosConfig, rows: dict[tuple[str, int], Row]) -> Iterator[tuple[str, int, int]]:
    """(part, number, trials) of the rows to try."""
    for part in config.parts:
        row_size, _ = PARTS[part]
        total = getattr(config, part)
        for number in range(math.ceil(total / row_size)):
            trials = min(row_size, total - number * row_size)
            row = rows.get((part, number))
            repeat = config.redo == "all" or (config.redo == "failed" and row is not None and not row.held)
            if row is None or row.trials < trials or repeat:
                yield part, number, trials


def try_rows(work: Sequence[tuple[str, int, int]], config: ChaosConfig) -> Iterator[Row]:
    """Yields a row for each (part, number, trials), as soon as it is tried."""
    os.environ["OMP_NUM_THREADS"] = "1"
    commit = current_commit()
    with (
        tempfile.TemporaryDirectory(prefix="chaos-") as shared,
        ThreadPoolExecutor(config.workers) as pool,
    ):
        try_one = partial(try_row, config=config, shared=Path(shared), commit=commit)
        jobs = [pool.submit(try_one, part, number, trials) for part, number, trials in work]
        try:
            for job in tqdm(as_completed(jobs), total=len(jobs), unit="row", disable=None):
                yield job.result()
        finally:
            pool.shutdown(cancel_futures=True)


def try_row(part: str, number: int, trials: int, *, config: ChaosConfig, shared: Path, commit: str) -> Row:
    """Tries one row, in a temporary folder. shared: a folder for files that several rows need."""
    _, try_trials = PARTS[part]
    start_time = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix=f"chaos-{part}-") as name:
        trial = Trial(
            number=number,
            trials=trials,
            folder=Path(name),
            shared=shared,
            random=random.Random(f"{config.seed}-{part}-{number}"),
            soak_minutes=config.soak_minutes,
            out=Path(config.out),
            total=getattr(config, part),
        )
        try:
            outcome = try_trials(trial)
        except Exception as error:  # noqa: BLE001, a trial that fails must not end the others
            outcome = Outcome("", f"the trial itself failed: {type(error).__name__}: {error}", trials)
        why_not = shown(outcome.why_not.replace(name, ""), 300)
    return Row(
        part=part,
        number=number,
        trials=outcome.trials,
        case=outcome.case,
        held=not why_not,
        why_not=why_not,
        seconds=round(time.perf_counter() - start_time, 1),
        seed=config.seed,
        commit=commit,
    )


def summary(rows: dict[tuple[str, int], Row]) -> dict[str, dict[str, object]]:
    """By part: trials, rows, rows that failed, hours, and the commits at which they were tried."""
    parts = {}
    for part in PARTS:
        part_rows = [row for row in rows.values() if row.part == part]
        if part_rows:
            parts[part] = {
                "trials": sum(row.trials for row in part_rows),
                "rows": len(part_rows),
                "rows that did not hold": sum(not row.held for row in part_rows),
                "hours": round(sum(row.seconds for row in part_rows) / 3600, 2),
                "commits": sorted({row.commit for row in part_rows}),
            }
    return parts


def read_rows(path: Path) -> dict[tuple[str, int], Row]:
    """The rows of a file by part and number. Empty if there is no file. Raises UsageError as `read_csv`."""
    if not path.exists():
        return {}
    rows = read_csv(path, _parse_row, owner="benchmarks.chaos")
    return {(row.part, row.number): row for row in rows}


def _parse_row(text: dict[str, str]) -> Row:
    numbers = {name: int(text[name]) for name in ("number", "trials", "seed")}
    texts = {name: text[name] for name in ("part", "case", "why_not", "commit")}
    return Row(**texts, **numbers, held=text["held"] == "True", seconds=float(text["seconds"]))  # type: ignore[arg-type]


def write_rows(path: Path, rows: dict[tuple[str, int], Row]) -> None:
    """Writes the rows, sorted."""
    text = io.StringIO()
    table = csv.DictWriter(text, [field.name for field in fields(Row)], lineterminator="\n")
    table.writeheader()
    table.writerows(asdict(rows[key]) for key in sorted(rows, key=lambda key: (list(PARTS).index(key[0]), key[1])))
    write_atomically(path, text.getvalue().encode())


def print_table(rows: dict[tuple[str, int], Row]) -> None:
    """Prints the results of each part, then every row that failed."""
    console = Console(width=None if sys.stdout.isatty() else 140, markup=False, highlight=False)
    table = Table("part", "trials", "rows", "did not hold", "hours")
    for part, totals in summary(rows).items():
        table.add_row(part, *(str(totals[name]) for name in ("trials", "rows", "rows that did not hold", "hours")))
    console.print(table)
    for row in rows.values():
        if not row.held:
            console.print(f"{row.part} {row.number} ({row.case}): {row.why_not}", soft_wrap=True)


if __name__ == "__main__":
    cli.run(main)
