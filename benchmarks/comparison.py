"""Success against memory size: memory kinds at the same budgets of live memories per layer, on several seeds.

    python -m benchmarks.comparison --quick
    python -m benchmarks.comparison --kinds expire_span transformer_xl adaptive_span compressive --gating    # 1M steps
    python -m benchmarks.comparison --kinds expire_span transformer_xl gru none --env Portal-v0 \\
        --env-kwargs '{"max_rooms": 6, "rooms_distribution": "uniform"}' --success-target 0.9 --use-coef 4    # 3M steps

Flags of train_rl.py may follow. A flag that not all of the kinds have goes to the kinds that have it. A cell is one
kind at one budget with one seed. It is trained and evaluated as users do it, on one thread, `--jobs` cells at a time,
so that timings are of one core. The same command again continues a sweep that was killed, even in the middle of a
training. More kinds, budgets or seeds make a sweep larger. `--report` only writes table and figure again.

The sweep directory has cells/ (a JSON file of each finished cell with all measurements), plan.json (all cells of the
sweep) and runs/ (the trainings). From the cells come results.csv (one row for each), table.md and success.png
(interquartile means and 95% intervals over seeds; not drawn where no kind has a size).

With `--search N` each kind first has N trials of random settings (`benchmarks/comparison_search.py`). Its cells have
those of its best trial. trials.csv has all trials.

A budget is the number of live memories that a kind may have in each layer, the query's own step included. For a window
it is the peak, since a window is full for most of a long episode. Spans are penalised until their mean over steps and
layers is within the budget. The table therefore has mean and peak, and the means of the layers.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.cells import check_settings, lock_directory
from benchmarks.comparison_cells import EVALUATION, IMMATERIAL, Cell, finish_cell, read_cells, write_plan
from benchmarks.comparison_command import SWEEP_FLAGS, command, run_defaults
from benchmarks.comparison_report import FIGURE, write_report
from benchmarks.comparison_search import FOLDER, SEARCH_SEED, chosen_settings, scores_of, trial_settings, write_trials
from benchmarks.comparison_sizes import MIN_BUDGET, SIZE_SETTINGS, SIZES
from benchmarks.learning import split_arguments
from benchmarks.workers import WorkersConfig, check_no_actors, results_of
from expire_span_rl import cli
from expire_span_rl.agents import AGENTS, REWARDS
from expire_span_rl.building import build
from expire_span_rl.cli.settings import flag_names, parse_config, saved_config
from expire_span_rl.policies import KINDS
from expire_span_rl.saved_settings import LATER
from expire_span_rl.settings import RunConfig, Settings

CHECKPOINTS = 10  # of a cell, so that a killed sweep loses at most a tenth of a training

STEPS = {"Corridor-v0": "1_000_000"}
"""Environment steps of a cell, for environments that need fewer than train_rl.py's default."""
QUICK_KWARGS = {"Corridor-v0": '{"max_length": 24}', "Portal-v0": '{"max_rooms": 2}'}
QUICK_STEPS = "196608"


@dataclass(frozen=True)
class ComparisonConfig(WorkersConfig):
    kinds: tuple[str, ...] = tuple(KINDS)
    """Memory kinds."""
    budgets: tuple[int, ...] = (16, 32, 64, 128)
    """Live memories per layer. A kind without a size is trained once per seed."""
    seeds: int = 3
    """Seeds 1, 2, ..., each a training of its own."""
    search: int = 0
    """Trials of each kind from which the settings of its cells are chosen. All kinds get as many. 0: the settings as
    they are."""
    jobs: int = 2
    """Trainings at a time, one thread each."""
    eval_episodes: int = 1000
    """Episodes of a cell's evaluation, the same for all."""
    eval_stochastic: bool = True
    """Evaluate with sampled actions, as in training. The most likely action of a policy whose memory is too small may
    be to walk into a wall for ever. It then scores less than chance, which says nothing about memory."""
    out: str = ""
    """Sweep directory. Default: benchmarks/results/comparison-<env>, with --quick runs/comparison-quick."""
    quick: bool = False
    """Finish within 10 minutes on two cores: budgets 8 and 16, 2 seeds, short corridors, few steps, 300 episodes."""
    report: bool = False
    """Train nothing, only write table and figure of the cells in --out."""

    def __post_init__(self):
        for kind in self.kinds:
            cli.choice("--kinds", kind, KINDS)
        cli.check_at_least(self, seeds=1, jobs=1, eval_episodes=1, search=0)
        if not self.kinds:
            raise ValueError(f"--kinds: expected some of {', '.join(KINDS)}, got none")
        if not self.budgets or min(self.budgets) < MIN_BUDGET:
            raise ValueError(f"--budgets: expected some of at least {MIN_BUDGET}, got {list(self.budgets)}")


def main() -> None:
    benchmark_flags, training_flags = split_arguments(ComparisonConfig, sys.argv[1:])
    env = cli.value_of("env", training_flags) or RunConfig.env
    if "--quick" in benchmark_flags:
        benchmark_flags = [
            "--budgets",
            "8",
            "16",
            "--seeds",
            "2",
            "--eval-episodes",
            "300",
            "--out",
            "runs/comparison-quick",
            *benchmark_flags,
        ]
        training_flags = [*_default_flag("--env-kwargs", QUICK_KWARGS.get(env), training_flags), *training_flags]
        training_flags = [*_default_flag("--total-timesteps", QUICK_STEPS, training_flags), *training_flags]
    config = cli.parse(ComparisonConfig, benchmark_flags, __doc__ or "")
    out = Path(config.out or f"benchmarks/results/comparison-{env.replace('/', '-')}")
    flags = [*_default_flag("--total-timesteps", STEPS.get(env), training_flags), *training_flags]
    if config.report:
        cells = read_cells(out)
        if any(cli.flag_of(argument) != "--env" for argument in training_flags if argument.startswith("--")):
            # A report needs no settings, but if there are any, its cells must have them.
            sweep = Sweep(config, flags, out)
            sweep.use_best_trials()
            sweep.check(cells)
        _report(out, cells)
        return
    sweep = Sweep(config, flags, out)
    with sweep.lock():
        sweep.search()
        cells = read_cells(out)
        sweep.check(cells)
        sweep.run(cells)


def _default_flag(flag: str, value: str | None, arguments: Sequence[str]) -> list[str]:
    """The flag with that value. Empty if the value is None or the arguments have the flag."""
    return [] if value is None or _has_flag(flag, arguments) else [flag, value]


def flags_by_kind(flags: Sequence[str], kinds: Sequence[str]) -> dict[str, list[str]]:
    """For each kind the flags that it has, with their values. Raises UsageError, one line, for a flag that no kind
    has."""
    names = {kind: flag_names(kind) for kind in kinds}
    all_names = list(dict.fromkeys(itertools.chain(*names.values())))
    result: dict[str, list[str]] = {kind: [] for kind in kinds}
    receivers = list(kinds)
    for argument in flags:
        if argument.startswith("--"):
            cli.check_flag(argument, all_names)
            receivers = [kind for kind in kinds if cli.flag_of(argument) in names[kind]]
        for kind in receivers:
            result[kind].append(argument)
    return result


def _report(out: Path, cells: Mapping[Cell, dict[str, Any]]) -> None:
    """Writes table and figure, and prints the table."""
    if not cells:
        raise cli.UsageError(f"--report: expected a sweep with finished cells, {out} has none")
    _write(out, cells)
    print((out / "table.md").read_text(encoding="utf-8"))
    figure = out / FIGURE
    print(f"cells: {out / 'results.csv'}" + (f", figure: {figure}" if figure.exists() else ""))


def _write(out: Path, cells: Mapping[Cell, dict[str, Any]]) -> None:
    order = list(KINDS)
    rows = sorted(cells.values(), key=lambda c: (order.index(c["kind"]), c["budget"] or 0, c["seed"]))
    notes = write_trials(out)
    if rows:
        write_report(out, rows[0]["config"]["env"], rows, command(rows, out), notes)


class Sweep:
    """A directory of cells. Raises ValueError, one line, for settings that cannot work, before anything is written."""

    def __init__(self, config: ComparisonConfig, flags: Sequence[str], out: Path):
        # Flags that the sweep sets itself, and agents that have a memory of their own, cannot be compared.
        for flag in (cli.flag_of(argument) for argument in flags if argument.startswith("--")):
            name = flag.removeprefix("--").removeprefix("no-").replace("-", "_")
            if name in SWEEP_FLAGS | SIZE_SETTINGS:
                raise cli.UsageError(f"{flag}: expected only flags that the sweep leaves open, it sets {flag} itself")
        agent = cli.value_of("agent", list(flags))
        comparable = [
            name for name, entry in AGENTS.items() if entry.takes_memory_kind and entry.learns_from == REWARDS
        ]
        if agent is not None and agent in AGENTS and agent not in comparable:
            learn = ", ".join(comparable)
            raise cli.UsageError(f"--agent: expected one that learns with any memory kind ({learn}), got {agent!r}")
        check_no_actors(config.ray_address, flags)
        self.config = config
        self.out = out
        # The kinds of all cells in the directory are checked, also those that this call does not train.
        kinds = list(dict.fromkeys([*config.kinds, *(cell.kind for cell in read_cells(out))]))
        kind_flags = flags_by_kind(flags, kinds)
        self.settings = {kind: parse_config(["--memory", kind, *kind_flags[kind]]) for kind in kinds}
        if not _has_flag("--checkpoint-every", flags):
            for kind, settings in self.settings.items():
                steps = -(-settings.run.total_timesteps // CHECKPOINTS)
                self.settings[kind] = settings.replace(checkpoint_every=steps)
        self.try_to_build()

    def try_to_build(self) -> None:
        """Builds a run of each kind, so that an error shows before hours of training."""
        first_cells = {cell.kind: cell for cell in reversed(self.cells())}
        for cell in first_cells.values():
            build(self.run_settings(cell)).trainer.env.close()

    def cells(self) -> list[Cell]:
        """All cells, sorted by seed, so that a sweep which is stopped early has compared all kinds on fewer seeds."""
        budgets = {kind: self.config.budgets if kind in SIZES else (None,) for kind in self.config.kinds}
        seeds = range(1, self.config.seeds + 1)
        cells = [Cell(kind, size, seed) for seed in seeds for kind in self.config.kinds for size in budgets[kind]]
        return list(dict.fromkeys(cells))

    def run_settings(self, cell: Cell) -> Settings:
        """The settings of train_rl.py for a cell."""
        return self._run_settings(cell, self.settings[cell.kind], cell.seed, self.out)

    def _run_settings(self, cell: Cell, settings: Settings, seed: int, out: Path) -> Settings:
        size = SIZES[cell.kind](cell.budget) if cell.budget else {}
        run = {"seed": seed, "run_dir": str(out / "runs" / str(cell)), "torch_threads": 1}
        return settings.replace(**size, **run, progress_bar=False)

    def search(self) -> None:
        """Trains and evaluates the trials of --search that are missing, and takes the settings of the best ones."""
        out = self.out / FOLDER
        finished = read_cells(out)
        work = []
        for trial, settings in self._trials().items():
            if trial in finished:
                self._check_cell(trial, _saved_settings(finished[trial]), settings)
            else:
                work.append((trial, settings, str(out / "cells" / f"{trial}.json"), self.evaluation()))
        if work:
            (out / "cells").mkdir(parents=True, exist_ok=True)
        for number, data in enumerate(self._finish_cells(work), 1):
            _log(f"[trial {number}/{len(work)}] {data['kind']} {data['seed']}: {scores_of([data])[0]:.4g}")
        self.use_best_trials()

    def use_best_trials(self) -> None:
        """From now on each kind has the settings of the best of its finished trials, if it has any."""
        trials = self._trials()
        finished = [data for cell, data in read_cells(self.out / FOLDER).items() if cell in trials]
        chosen = chosen_settings(finished, self.settings)
        self.settings = {kind: settings.replace(**chosen.get(kind, {})) for kind, settings in self.settings.items()}

    def _trials(self) -> dict[Cell, Settings]:
        """The settings of all trials of --search, sorted by number. They have the largest budget."""
        budgets = {cell.kind: max(self.config.budgets) if cell.budget else None for cell in self.cells()}
        trials = {}
        for number in range(1, self.config.search + 1):
            for kind, budget in budgets.items():
                cell = Cell(kind, budget, number)
                settings = self.settings[kind].replace(**trial_settings(self.settings[kind], number))
                trials[cell] = self._run_settings(cell, settings, SEARCH_SEED, self.out / FOLDER)
        return trials

    def evaluation(self) -> dict[str, Any]:
        """The settings of a cell's evaluation."""
        return {name: getattr(self.config, name) for name in EVALUATION}

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """Creates the directory if needed, and locks it for this process."""
        return lock_directory(self.out, contents="a sweep", process="a sweep")

    def check(self, cells: Mapping[Cell, Mapping[str, Any]]) -> None:
        """Raises UsageError unless all cells of the directory, finished or not, have the settings of this sweep."""
        for cell, data in cells.items():
            self._check_cell(cell, _saved_settings(data), self.run_settings(cell))
        for cell in self.cells():
            settings = self.run_settings(cell)
            config_file = Path(settings.run.run_dir) / "config.json"
            if config_file.is_file():
                self._check_cell(cell, saved_config(config_file.parent), settings)

    def _check_cell(self, cell: Cell, saved: Mapping[str, Any], settings: Settings) -> None:
        """Raises UsageError unless the saved settings of a cell are `settings` and those of this evaluation."""
        current = _comparable({**settings.flat(), **self.evaluation()})
        # What a cell lacks is younger than it: it had the effect that `saved_settings.LATER` names, or of its default.
        earlier = {name: value for name, value in LATER.items() if value is not None and name in current}
        defaults = {**run_defaults(cell.kind, saved["env"], saved["agent"]), **self.evaluation()}
        saved = _comparable({**defaults, **earlier, **saved})
        names = sorted((saved.keys() | current.keys()) - IMMATERIAL - {"env", "agent"})
        # These two first, since the defaults of others depend on them.
        names = ["env", "agent", *names]
        check_settings(self.out, cell, saved, current, names=names, other="--out")

    def run(self, cells: dict[Cell, dict[str, Any]]) -> None:
        """Trains and evaluates the cells that are missing, and adds them to `cells`. Table and figure are written after
        every cell."""
        write_plan(self.out, list(cells.values()), self.cells())
        missing = [cell for cell in self.cells() if cell not in cells]
        _write(self.out, cells)
        if missing:
            total = len(self.cells())
            _log(f"{total - len(missing)} of {total} cells are there, {len(missing)} to go -> {self.out}")
            work = [(cell, self.run_settings(cell), str(self.file(cell)), self.evaluation()) for cell in missing]
            for count, data in enumerate(self._finish_cells(work), total - len(missing) + 1):
                cells[Cell(**{name: data[name] for name in Cell._fields})] = data
                _write(self.out, cells)
                metrics = {name: value for name, value in data["figures"].items() if value is not None}
                size = f" {data['budget']}" if data["budget"] else ""
                _log(f"[{count}/{total}] {data['kind']}{size} seed {data['seed']}: {_metrics_text(metrics)}")
        _report(self.out, cells)

    def _finish_cells(self, work: Sequence[Any]) -> Iterator[dict[str, Any]]:
        """The cells, in the order in which they end."""
        return results_of(finish_cell, work, self.config.jobs, self.config.ray_address, may_stay=True)

    def file(self, cell: Cell) -> Path:
        return self.out / "cells" / f"{cell}.json"


def _saved_settings(cell: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a finished cell and of its evaluation."""
    return {**cell["config"], **{name: cell[name] for name in EVALUATION}}


def _has_flag(flag: str, arguments: Sequence[str]) -> bool:
    return flag in map(cli.flag_of, arguments)


def _comparable(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as they are read from a file, with the environment's keyword arguments parsed, so that blanks in them do
    not count."""
    data = json.loads(json.dumps(dict(settings)))
    return {**data, "env_kwargs": json.loads(data["env_kwargs"])}


def _metrics_text(metrics: Mapping[str, float]) -> str:
    names = ("success", "return", "memory_efficiency", "live_mean", "live_peak", "training_minutes")
    return ", ".join(f"{name.replace('_', ' ')} {metrics[name]:.3g}" for name in names if name in metrics)


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    cli.run(main)
