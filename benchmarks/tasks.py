"""One setting on third-party tasks and our own: each memory kind on each task, on several seeds.

    python -m benchmarks.tasks --quick
    python -m benchmarks.tasks --kinds expire_span gru lstm lru none --tasks CartPole-v1 MemoryS7 TMaze-50
    python -m benchmarks.tasks                     # everything: hundreds of hours of a core

Flags of train_rl.py may follow. A flag that not all of the kinds have goes to the kinds that have it. A task sets its
environment, the steps of a training and what counts as solved (`benchmarks/task_list.py`). Everything else has the
defaults of train_rl.py. A cell is one kind on one task with one seed. It is trained and evaluated as users do it, on
one thread, `--jobs` cells at a time. The same command again continues after a kill, even in the middle of a training.
More tasks, kinds or seeds make the table larger. `--report` only writes table and figure again.

The directory has, for each task, cells/ (a JSON file of each finished cell) and runs/ (the trainings). From all cells
come results.csv (a row for each, with the commit of its code), table.md and tasks.png.
"""

from __future__ import annotations

import contextlib
import csv
import json
import math
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.comparison import ComparisonConfig, Sweep
from benchmarks.comparison_cells import Cell, curve_point, finish_cell, read_cells
from benchmarks.learning import split_arguments
from benchmarks.task_list import TASKS, BenchmarkTask
from benchmarks.tasks_report import rows_of, write_report
from benchmarks.workers import WorkersConfig, results_of
from expire_span_rl import cli
from expire_span_rl.agents.checkpoint import CheckpointError, load_checkpoint
from expire_span_rl.building import build
from expire_span_rl.policies import KINDS

TASK_FLAGS = ("--env", "--env-kwargs", "--wrap")  # flags of train_rl.py that a task sets
QUICK = ["--tasks", "CartPole-v1", "MemoryS7", "Corridor-v0", "--kinds", "expire_span", "gru", "none"]
QUICK += ["--seeds", "2", "--eval-episodes", "100", "--out", "runs/tasks-quick"]
QUICK_STEPS = "98304"


@dataclass(frozen=True)
class TasksConfig(WorkersConfig):
    tasks: tuple[str, ...] = tuple(TASKS)
    """Tasks by name. Those of a package that is not installed are left out."""
    kinds: tuple[str, ...] = tuple(KINDS)
    """Memory kinds. The table compares each with the first of this list's order that has results."""
    seeds: int = 5
    """Number of seeds, each a training of its own."""
    first_seed: int = 1
    """The first of them. With --seeds 2 --first-seed 4 these are the seeds 4 and 5."""
    jobs: int = 2
    """Trainings at a time, one thread each."""
    eval_episodes: int = 200
    """Episodes of a cell's evaluation, the same for all."""
    eval_stochastic: bool = True
    """Evaluate with sampled actions, as in training."""
    end_after: float = 0.0
    """End a training after this many times the steps that it took to reach its task's target. 0: train for all steps.
    Schedules are those of all steps."""
    out: str = "benchmarks/results/tasks"
    """Directory of the cells and the table."""
    quick: bool = False
    """Finish within 10 minutes on two cores: three tasks, three kinds, two seeds, 98,304 steps a cell."""
    report: bool = False
    """Train nothing, only write table and figure of the cells in --out."""

    def __post_init__(self):
        for name in self.tasks:
            cli.choice("--tasks", name, TASKS)
        for kind in self.kinds:
            cli.choice("--kinds", kind, KINDS)
        cli.check_at_least(self, seeds=1, first_seed=1, jobs=1, eval_episodes=1)
        if self.end_after != 0 and not 1 <= self.end_after < math.inf:
            raise ValueError(f"--end-after: expected 0, or 1 or more, got {self.end_after:g}")
        for flag, names, choices in (("--tasks", self.tasks, TASKS), ("--kinds", self.kinds, KINDS)):
            if not names:
                raise ValueError(f"{flag}: expected some of {', '.join(choices)}, got none")


class TaskSweep(Sweep):
    """The cells of one task, without budgets. Raises ValueError, one line, for settings that cannot work, before
    anything is written."""

    def __init__(self, name: str, config: TasksConfig, flags: Sequence[str]):
        self.name = name
        self.seeds = range(config.first_seed, config.first_seed + config.seeds)
        task = TASKS[name]
        task_flags = ["--env", task.env]
        task_flags += ["--env-kwargs", json.dumps(dict(task.env_kwargs))] if task.env_kwargs else []
        for wrap in task.wrap:
            task_flags += ["--wrap", wrap]
        task_flags += [] if "--total-timesteps" in map(cli.flag_of, flags) else ["--total-timesteps", str(task.steps)]
        settings = ComparisonConfig(
            kinds=config.kinds,
            jobs=config.jobs,
            ray_address=config.ray_address,
            eval_episodes=config.eval_episodes,
            eval_stochastic=config.eval_stochastic,
        )
        super().__init__(settings, [*task_flags, *flags], Path(config.out) / name)

    def cells(self) -> list[Cell]:
        """All cells, sorted by seed."""
        return [Cell(kind, None, seed) for seed in self.seeds for kind in self.config.kinds]

    def try_to_build(self) -> None:
        """Builds the first kind only, since the needs of a task do not depend on the kind."""
        build(self.run_settings(self.cells()[0])).trainer.env.close()


def main() -> None:
    benchmark_flags, training_flags = split_arguments(TasksConfig, sys.argv[1:])
    if "--quick" in benchmark_flags:
        benchmark_flags = [*QUICK, *benchmark_flags]
        training_flags = [
            *([] if "--total-timesteps" in map(cli.flag_of, training_flags) else ["--total-timesteps", QUICK_STEPS]),
            *training_flags,
        ]
    config = cli.parse(TasksConfig, benchmark_flags, __doc__ or "")
    for flag in map(cli.flag_of, training_flags):
        if flag in TASK_FLAGS:
            raise cli.UsageError(f"{flag}: expected only flags that tasks leave open, a task sets {flag} itself")
    out = Path(config.out)
    if config.report:
        _report(out, load_cells(out))
        return
    sweeps = [
        TaskSweep(name, config, training_flags) for name in dict.fromkeys(config.tasks) if not TASKS[name].is_missing
    ]
    _report_missing(config.tasks)
    if not sweeps:
        raise cli.UsageError("--tasks: expected at least one whose package is installed, got none")
    with lock_all(out, sweeps):
        for sweep in sweeps:
            # Kinds of other calls may have other settings: a table says of which commit each is.
            cells = read_cells(sweep.out)
            sweep.check({cell: data for cell, data in cells.items() if cell.kind in config.kinds})
        run(sweeps, config)


def _report_missing(names: Sequence[str]) -> None:
    """Prints one line on stderr for each package that is not installed."""
    missing: dict[str, list[str]] = {}
    for name in names:
        if TASKS[name].is_missing:
            missing.setdefault(TASKS[name].package, []).append(name)
    for package, tasks in missing.items():
        _log(f"{package} is not installed (pip install {package}): left out are {', '.join(tasks)}")


@contextlib.contextmanager
def lock_all(out: Path, sweeps: Sequence[TaskSweep]) -> Iterator[None]:
    """Creates the directories of all sweeps if needed, and locks them for this process."""
    if out.exists() and not (out.is_dir() and all(_is_output(path) for path in out.iterdir())):
        raise cli.UsageError(f"--out: expected a new directory or one of this benchmark, {out} is another")
    with contextlib.ExitStack() as stack:
        for sweep in sweeps:
            stack.enter_context(sweep.lock())
        yield


def _is_output(path: Path) -> bool:
    return path.name in TASKS or path.name in ("results.csv", "table.md", "tasks.png", "command.txt")


def run(sweeps: Sequence[TaskSweep], config: TasksConfig) -> None:
    """Trains and evaluates the cells that are missing, sorted by seed. The table is written after every cell."""
    work = []
    for sweep in sweeps:
        finished_cells = read_cells(sweep.out)
        for cell in sweep.cells():
            if cell not in finished_cells:
                cell_work = (cell, sweep.run_settings(cell), str(sweep.file(cell)), sweep.evaluation())
                work.append((sweep.name, cell_work, config.end_after))
    work.sort(key=lambda item: item[1][0].seed)
    out = Path(config.out)
    total = sum(len(sweep.cells()) for sweep in sweeps)
    (out / "command.txt").write_text(shlex.join(["python", "-m", "benchmarks.tasks", *sys.argv[1:]]) + "\n")
    _log(f"{total - len(work)} of {total} cells are there, {len(work)} to go -> {out}")
    finish = results_of(finish_task, work, config.jobs, config.ray_address, may_stay=True)
    for count, (name, cell) in enumerate(finish, total - len(work) + 1):
        _write(out, load_cells(out))
        row = rows_of({name: [cell]})[0]
        _log(f"[{count}/{total}] {name} {cell['kind']} seed {cell['seed']}: {row['measure']} {row['final']:.4g}")
    _report(out, load_cells(out))


def finish_task(work: tuple[str, Any, float]) -> tuple[str, dict[str, Any]]:
    """`finish_cell` for a cell of a task: (the task's name, the cell). work: the name, the cell's work, and
    `TasksConfig.end_after`."""
    name, cell, end_after = work
    _, settings, *_ = cell
    task = TASKS[name]
    if not end_after:
        return name, finish_cell(cell, progress=task.progress)
    callback = EndAfter(task, end_after, Path(settings.run.run_dir))
    return name, finish_cell(cell, callback, is_trained=callback.has_ended, progress=task.progress)


class EndAfter:
    """A callback of a training: ends it after `factor` times the steps that it took to reach the task's target."""

    def __init__(self, task: BenchmarkTask, factor: float, run_dir: Path):
        """run_dir: of a training that may have begun."""
        self._task = task
        self._factor = factor
        self._reached: float | None = None
        self.has_ended = False
        """Whether it has said so, to this process or to one before it."""
        log, checkpoint = run_dir / "progress.csv", run_dir / "checkpoint.safetensors"
        if not (checkpoint.is_file() and log.is_file()):
            return
        with contextlib.suppress(CheckpointError), log.open(newline="") as file:
            saved = load_checkpoint(checkpoint)[1]["counters"]["timesteps"]  # later rows will be done again
            for row in csv.DictReader(file):
                if float(row["time/total_timesteps"]) <= saved:
                    self(row)

    def __call__(self, metrics: Mapping[str, Any]) -> bool:
        """Whether to go on after this update. metrics: its metrics, or its row of the log."""
        point = curve_point(metrics)
        if self._reached is None and point is not None and self._task.is_reached(point):
            self._reached = point[0]
        steps = float(metrics["time/total_timesteps"])
        self.has_ended = self._reached is not None and steps >= self._factor * self._reached
        return not self.has_ended


def load_cells(out: Path) -> dict[str, list[dict[str, Any]]]:
    """The finished cells of each task, sorted by kind and seed. Tasks are in the order of TASKS."""
    order = list(KINDS)
    cells = {name: list(read_cells(out / name).values()) for name in TASKS}
    return {
        name: sorted(task_cells, key=lambda cell: (order.index(cell["kind"]), cell["seed"]))
        for name, task_cells in cells.items()
        if task_cells
    }


def _report(out: Path, cells: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Writes table and figure, and prints the table."""
    if not cells:
        raise cli.UsageError(f"--report: expected a directory with finished cells, {out} has none")
    _write(out, cells)
    print((out / "table.md").read_text(encoding="utf-8"))
    print(f"cells: {out / 'results.csv'}, figure: {out / 'tasks.png'}")


def _write(out: Path, cells: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    command = out / "command.txt"
    called = command.read_text(encoding="utf-8").strip() if command.is_file() else "python -m benchmarks.tasks"
    write_report(out, cells, called)


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    cli.run(main)
