"""Memory kinds on sequences, at equal size and equal training time: `python -m benchmarks.sequence`.

    python -m benchmarks.sequence --task copy --seconds 120 --delays 1024 16384
    python -m benchmarks.sequence --task copy --search 4 --set transformer_xl.window=2048 compressive.window=128
    python -m benchmarks.sequence --task copy --speed-at 1024        # trains nothing: time and memory side by side

Flags of train_sequence.py may follow. A flag that only some kinds have goes to those kinds, and --set gives one to a
single kind. A cell is one kind with one seed. It trains for --seconds of its process's CPU time (wall time on a GPU),
in a process of its own, one cell at a time. Its schedules end with that time. The same command again continues where
it was killed, in the middle of a training too. What is there of other settings or seconds is refused. More kinds, seeds
or variants make the table grow.
--search gives every kind the same number of trials on a seed of their own, and the seeds then train with the best one's
settings. --variant names cells of other flags, so that they stand beside the others.

The directory holds cells/ (a JSON per finished cell), runs/ (checkpoints and policies), and what is made of all cells:
results.csv (every cell and evaluation, trials too), table.md and memory.png (accuracy against memory).
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.cells import lock_directory
from benchmarks.learning import split_arguments
from benchmarks.sequence_cells import Cell, checkpoint_file, finish_cell, read_cells
from benchmarks.sequence_checks import check_cell, check_checkpoint, check_environment, check_is_asked
from benchmarks.sequence_report import is_trial, write_report
from benchmarks.sequence_search import SEARCH_SEED, best_trial, trial_settings
from benchmarks.sequence_speed import compare_speed
from benchmarks.workers import in_processes
from expire_span_rl import cli
from expire_span_rl.building import build
from expire_span_rl.checks import check_above_zero
from expire_span_rl.cli.train_sequence import parse_sequence, sequence_parts
from expire_span_rl.policies import KINDS
from expire_span_rl.sequences import TASKS, SequenceConfig
from expire_span_rl.settings import Settings

SET_FLAGS = ("--memory", "--seed", "--run-dir", "--resume", "--overwrite", "--total-blocks", "--progress-bar")
"""Flags of train_sequence.py that the benchmark itself sets."""
OTHERS = ("expire_span", "transformer_xl", "adaptive_span", "compressive")


@dataclass(frozen=True)
class SequenceBenchmark:
    task: str = SequenceConfig.task
    """What is learned."""
    kinds: tuple[str, ...] = OTHERS
    """Memory kinds."""
    seeds: int = 3
    """Seeds 1, 2, ..., each a training of its own. 0: the search alone."""
    seconds: float = 180.0
    """CPU seconds of a training (wall seconds on a GPU)."""
    delays: tuple[int, ...] = (1024,)
    """Delays of the evaluations, of tasks that have a delay."""
    streams: int = 100
    """Streams of an evaluation."""
    eval_steps: int = 4096
    """Steps of each stream in an evaluation, of tasks that have no delay."""
    eval_kwargs: str = "{}"
    """What an evaluation sets of the environment, a JSON object over the training's. The policy must fit."""
    search: int = 0
    """Trials of each kind before the seeds, each with other settings. 0: none."""
    search_seconds: float = 60.0
    """CPU seconds of a trial."""
    variant: str = "default"
    """Name of cells that are trained with these flags."""
    set: tuple[str, ...] = ()
    """Settings of single kinds: KIND.SETTING=VALUE, such as transformer_xl.window=2048."""
    speed_at: int = 0
    """Train nothing: milliseconds per block and memory of the first seed's policies, in turn, in streams with this
    delay. 0: none. Any number for a task without a delay."""
    out: str = ""
    """Directory of the cells. Default: benchmarks/results/sequence-<environment>."""
    report: bool = False
    """Train nothing: write table and figure of the cells that are in --out."""

    def __post_init__(self):
        cli.choice("--task", self.task, TASKS)
        for kind in self.kinds:
            cli.choice("--kinds", kind, KINDS)
        cli.check_at_least(self, seeds=0, streams=1, eval_steps=1, search=0, speed_at=0)
        check_above_zero(self, "seconds", "search_seconds")
        if not self.kinds:
            raise ValueError(f"--kinds: expected some of {', '.join(KINDS)}, got none")
        if not self.delays or min(self.delays) < 1:
            raise ValueError(f"--delays: expected some of at least 1, got {list(self.delays)}")
        if not re.fullmatch(r"[\w,.]+", self.variant):
            raise ValueError(f"--variant: expected a name of letters, digits, '_', '.' and ',', got {self.variant!r}")

    @property
    def folder(self) -> Path:
        return Path(self.out or f"benchmarks/results/sequence-{TASKS[self.task].env}")


def main() -> None:
    own, rest = split_flags(sys.argv[1:])
    config = cli.parse(SequenceBenchmark, own, __doc__ or "")
    if config.report:
        _write(config, required(config.folder, "--report"))
        print((config.folder / "table.md").read_text(encoding="utf-8"))
    elif config.speed_at:
        cells = required(config.folder, "--speed-at")
        compare_speed(config.folder, cells, config.kinds, config.variant, config.speed_at)
    else:
        bench = Bench(config, rest)
        with lock_directory(config.folder, contents="this benchmark", process="a benchmark"):
            bench.run()


def required(folder: Path, flag: str) -> dict[Cell, dict[str, Any]]:
    """The cells of a directory. Raises UsageError if there are none."""
    cells = read_cells(folder)
    if not cells:
        raise cli.UsageError(f"{flag}: expected a directory with finished cells, {folder} has none")
    return cells


def split_flags(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The benchmark's arguments, and those of train_sequence.py. Raises UsageError, one line, for a flag that neither
    has, or that the benchmark sets."""
    for argument in arguments:
        if argument.startswith("--") and cli.flag_of(argument).replace("--no-", "--") in SET_FLAGS:
            raise cli.UsageError(f"{argument}: expected only flags that the benchmark leaves open, it sets it itself")
    task = cli.choice("--task", cli.value_of("task", list(arguments)) or SequenceConfig.task, TASKS)
    return split_arguments(SequenceBenchmark, list(arguments), _flags(task, list(KINDS)))


def _flags(task: str, kinds: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(name for kind in kinds for p in sequence_parts(task, kind) for name in cli.flag_names(p)))


class Bench:
    """The cells of a call. Raises ValueError, one line, for settings that make no sense, before anything is written."""

    def __init__(self, config: SequenceBenchmark, flags: Sequence[str]):
        self.config, self.flags, self.out = config, list(flags), config.folder
        self.own = {kind: _own_settings(config.set, kind) for kind in config.kinds}
        for item in config.set:
            if item.split(".")[0] not in config.kinds:
                raise cli.UsageError(f"--set: expected KIND.SETTING=VALUE with one of --kinds, got {item!r}")
        self.eval_kwargs = cli.json_object("--eval-kwargs", config.eval_kwargs)
        known = read_cells(config.folder)
        for kind in config.kinds:
            self._check_evaluations(kind)
        for cell, settings in self.planned(known):
            self._check_same(cell, settings, known)

    def settings(self, kind: str, seed: int, chosen: Mapping[str, Any]) -> Settings:
        """What train_sequence.py trains for a cell, with the settings that a search has chosen over those of flags;
        --set has the last word."""
        arguments = ["--task", self.config.task, "--memory", kind, "--seed", str(seed)]
        arguments += [*self.arguments_of(kind), "--quiet"]
        for name, value in {**chosen, **self.own[kind]}.items():
            arguments += [f"--{name.replace('_', '-')}", str(value)]
        settings = parse_sequence([*arguments, "--no-progress-bar", "--memory-image-every", "0"])
        return settings.replace(torch_threads=1)

    def evaluations(self, settings: Settings, is_trial: bool) -> list[dict[str, Any]]:
        """What a cell is evaluated on; a trial where it was trained. Where there is a delay: one whole string."""
        kwargs = json.loads(settings.run.env_kwargs)
        streams, own = self.config.streams, self.eval_kwargs
        if "delay" not in kwargs:
            return [{"env_kwargs": own, "streams": streams, "steps": self.config.eval_steps}]
        delays = [kwargs["delay"]] if is_trial else self.config.delays
        length = own.get("length", kwargs["length"])
        return [
            {"env_kwargs": {**own, "delay": delay}, "streams": streams, "steps": 2 * length + delay} for delay in delays
        ]

    def _check_evaluations(self, kind: str) -> None:
        """Builds a training of a kind, and the environments of its evaluations. Raises ValueError, one line, for what
        cannot be built, or where the policy would have nothing to answer."""
        settings = self.settings(kind, 1, {})
        run = build(settings, say=lambda line: None)
        run.trainer.close()
        env = settings.run.env
        for name, reason in (("delay", "--delays sets it"), ("wraps", "streams have none")):
            if name in self.eval_kwargs:
                raise cli.UsageError(f"--eval-kwargs: expected no {name!r}, since {reason}")
        check_environment(run.policy, env, {**run.env_kwargs, **self.eval_kwargs}, "--eval-kwargs")
        for evaluation in self.evaluations(settings, is_trial=False):
            kwargs = {**run.env_kwargs, **evaluation["env_kwargs"]}
            if "delay" in kwargs:
                check_environment(run.policy, env, kwargs, "--delays")
            else:
                check_is_asked(env, kwargs, evaluation["streams"], evaluation["steps"])

    def seconds(self, cell: Cell) -> dict[str, float]:
        """The seconds that a cell is trained for, by the name of their setting."""
        name = "search_seconds" if is_trial(cell._asdict()) else "seconds"
        return {name: getattr(self.config, name)}

    def planned(self, known: Mapping[Cell, Mapping[str, Any]]) -> list[tuple[Cell, dict[str, Any]]]:
        """The cells, by seed first, and what they set beside the flags: trials, and the seeds as far as the trials are
        there."""
        config, cells = self.config, []
        for number in range(1, config.search + 1):
            for kind in config.kinds:
                cells.append(
                    (Cell(kind, f"trial-{config.variant}-{number}", SEARCH_SEED), trial_settings(kind, number))
                )
        trials = {kind: [cell for cell, _ in cells if cell.kind == kind] for kind in config.kinds}
        for seed in range(1, config.seeds + 1):
            for kind in config.kinds:
                if all(cell in known for cell in trials[kind]):
                    cells.append((Cell(kind, config.variant, seed), self._chosen([known[c] for c in trials[kind]])))
        return cells

    def _chosen(self, trials: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return dict(best_trial(trials, self.config.task == "text")["chosen"]) if trials else {}

    def run(self) -> None:
        """Trains and evaluates what is missing. CSV, table and figure are written after every cell."""
        known = read_cells(self.out)
        while missing := [(cell, chosen) for cell, chosen in self.planned(known) if cell not in known]:
            cell, chosen = missing[0]
            remark = self._check_same(cell, chosen, known)
            _say(f"{len(missing)} to go: {cell} {json.dumps(chosen)}")
            if remark:
                _say(remark)
            known[cell] = self._finish(cell, chosen)
            _write(self.config, known)
        _write(self.config, known)
        table = self.out / "table.md"
        print(table.read_text(encoding="utf-8") if table.is_file() else f"trials: {self.out / 'results.csv'}")

    def _finish(self, cell: Cell, chosen: Mapping[str, Any]) -> dict[str, Any]:
        """One cell, in a process of its own."""
        settings = self.settings(cell.kind, cell.seed, chosen)
        (seconds,) = self.seconds(cell).values()
        evaluations = self.evaluations(settings, is_trial(cell._asdict()))
        given = {"chosen": dict(chosen), "given": {**self._given(cell.kind), **chosen, **self.own[cell.kind]}}
        work = (cell, settings, str(self.out), seconds, evaluations, given)
        (result,) = in_processes(finish_cell, [work], 1)
        scores = ", ".join(f"{e['accuracy']:.4f} ({e['bits']:.3f} bits)" for e in result["evaluations"])
        _say(f"{cell}: {scores}, {result['timesteps'] / 1e6:.2f}M steps in {result['seconds']:.0f} s")
        return result

    def arguments_of(self, kind: str) -> list[str]:
        """The arguments for train_sequence.py that are flags of a kind, with their values."""
        names = _flags(self.config.task, [kind])
        arguments: list[str] = []
        is_taken = False
        for argument in self.flags:
            if argument.startswith("--"):
                is_taken = cli.flag_of(argument) in names
            arguments += [argument] if is_taken else []
        return arguments

    def _given(self, kind: str) -> dict[str, Any]:
        """The flags that a kind's cells were given, and their values."""
        values: dict[str, Any] = {}
        name = ""
        for argument in self.arguments_of(kind):
            if argument.startswith("--"):
                flag, _, value = argument.partition("=")
                name = flag[2:].replace("-", "_")
                values[name] = value or True
            else:
                values[name] = argument
        return values

    def _check_same(self, cell: Cell, chosen: Mapping[str, Any], known: Mapping[Cell, Mapping[str, Any]]) -> str:
        """Raises UsageError if what is there of a cell was made with other settings. Returns a remark on the checkpoint
        of one that is not finished, empty if there is none to make."""
        settings = self.settings(cell.kind, cell.seed, chosen)
        seconds = self.seconds(cell)
        if cell not in known:
            return check_checkpoint(self.out, cell, checkpoint_file(self.out, cell), settings.flat(), seconds)
        evaluations = self.evaluations(settings, is_trial(cell._asdict()))
        check_cell(self.out, cell, known[cell], settings.flat(), seconds, evaluations)
        return ""


def _own_settings(items: Sequence[str], kind: str) -> dict[str, str]:
    """The settings that --set gives a kind. Raises UsageError, one line, for what is none."""
    found = {}
    for item in items:
        name, equals, value = item.partition("=")
        owner, dot, setting = name.partition(".")
        if not (equals and dot and setting and value):
            raise cli.UsageError(
                f"--set: expected KIND.SETTING=VALUE, such as transformer_xl.window=2048, got {item!r}"
            )
        if owner == kind:
            found[setting] = value
    return found


def _write(config: SequenceBenchmark, cells: Mapping[Cell, Mapping[str, Any]]) -> None:
    order = list(KINDS)
    rows = sorted(cells.values(), key=lambda c: (order.index(c["kind"]), c["variant"], c["seed"]))
    write_report(config.folder, f"Sequences: {config.task}", rows, config.task == "text")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    cli.run(main)
