"""Success against memory size: memory kinds at the same budgets of live memories per layer, on several seeds.

    python -m benchmarks.comparison --quick
    python -m benchmarks.comparison --kinds expire_span transformer_xl adaptive_span compressive --gating      # 1M steps a cell
    python -m benchmarks.comparison --kinds expire_span transformer_xl gru none --env Portal-v0 \\
        --env-kwargs '{"max_rooms": 6, "rooms_distribution": "uniform"}' --success-target 0.9 --use-coef 4    # 3M

Flags of train_rl.py may follow; those that not all of the kinds have go to the kinds that have them. A cell is one kind
at one budget with one seed: it is trained and evaluated as users do it, on one thread, `--jobs` cells at a time, so
that timings are of one core. The same command again continues a sweep that was killed, in the middle of a training too;
more kinds, budgets or seeds make a sweep grow. `--report` draws anew what is there.

The sweep directory holds cells/ (a JSON per finished cell, all that was measured), plan.json (which cells there shall
be), runs/ (the trainings), and what is made of the cells: results.csv (one row per cell), table.md and success.png
(interquartile means and 95% intervals over seeds).

A budget is what a kind may keep live per layer, the query's own step included. A window is full for most of a long
episode, its budget is a peak; spans are pressed until their mean over steps and layers is within it. The table
therefore has both, and the layers.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.comparison_cells import EVALUATION, IMMATERIAL, Cell, finish_cell, finished, planned, write_plan
from benchmarks.comparison_report import write_report
from benchmarks.comparison_sizes import SIZED, SIZES, SMALLEST_BUDGET
from benchmarks.learning import split_arguments
from benchmarks.workers import in_processes
from expire_span_rl import cli
from expire_span_rl.agents import AGENTS, REWARDS
from expire_span_rl.building import build
from expire_span_rl.cli.settings import flag_names, parse_config, saved_config
from expire_span_rl.policies import KINDS
from expire_span_rl.settings import RunConfig, Settings

CHECKPOINTS = 10  # per cell: what a killed sweep loses is a tenth of a training

OURS = {"memory", "seed", "run_dir", "resume", "overwrite", "torch_threads", "progress_bar"}
"""Flags of train_rl.py that the sweep itself sets, beside those of SIZES."""
STEPS = {"Corridor-v0": "1_000_000"}
"""Environment steps of a cell where an environment needs fewer than train_rl.py's default."""
QUICK_KWARGS = {"Corridor-v0": '{"max_length": 24}', "Portal-v0": '{"max_rooms": 2}'}
QUICK_STEPS = "196608"


@dataclass(frozen=True)
class ComparisonConfig:
    kinds: tuple[str, ...] = tuple(KINDS)
    """Memory kinds."""
    budgets: tuple[int, ...] = (16, 32, 64, 128)
    """Live memories per layer. A kind without a size is trained once per seed."""
    seeds: int = 3
    """Seeds 1, 2, ..., each a training of its own."""
    jobs: int = 2
    """Trainings at a time, one thread each."""
    eval_episodes: int = 1000
    """Episodes of a cell's evaluation, the same for all."""
    eval_stochastic: bool = True
    """Evaluate with actions drawn, as in training. The most likely action of a policy whose memory is too small may be
    to walk into a wall for good: less than chance, which tells of walls and not of memory."""
    out: str = ""
    """Sweep directory. Default: benchmarks/results/comparison-<env>, with --quick runs/comparison-quick."""
    quick: bool = False
    """Finish within 10 minutes on two cores: budgets 8 and 16, 2 seeds, short corridors, few steps, 300 episodes."""
    report: bool = False
    """Train nothing: write table and figure of the cells that are in --out."""

    def __post_init__(self):
        for kind in self.kinds:
            cli.choice("--kinds", kind, KINDS)
        cli.check_at_least(self, seeds=1, jobs=1, eval_episodes=1)
        if not self.kinds:
            raise ValueError(f"--kinds: expected some of {', '.join(KINDS)}, got none")
        if not self.budgets or min(self.budgets) < SMALLEST_BUDGET:
            raise ValueError(f"--budgets: expected some of at least {SMALLEST_BUDGET}, got {list(self.budgets)}")


def main() -> None:
    own, rest = split_arguments(ComparisonConfig, sys.argv[1:])
    env = cli.value_of("env", rest) or RunConfig.env
    if "--quick" in own:
        own = ["--budgets", "8", "16", "--seeds", "2", "--eval-episodes", "300", "--out", "runs/comparison-quick", *own]
        rest = [*_unless_given("--env-kwargs", QUICK_KWARGS.get(env), rest), *rest]
        rest = [*_unless_given("--total-timesteps", QUICK_STEPS, rest), *rest]
    config = cli.parse(ComparisonConfig, own, __doc__ or "")
    out = Path(config.out or f"benchmarks/results/comparison-{env.replace('/', '-')}")
    settings = [*_unless_given("--total-timesteps", STEPS.get(env), rest), *rest]
    if config.report:
        known = finished(out)
        if any(cli.flag_of(argument) != "--env" for argument in rest if argument.startswith("--")):
            # A report needs no settings, but is not of others than are asked for.
            Sweep(config, settings, out).check(known)
        _report(out, known)
        return
    sweep = Sweep(config, settings, out)
    with sweep.claimed():
        known = finished(out)
        sweep.check(known)
        sweep.run(known)


def _unless_given(flag: str, value: str | None, arguments: Sequence[str]) -> list[str]:
    """The flag with that value, if there is one, unless the arguments have the flag."""
    return [] if value is None or _given(flag, arguments) else [flag, value]


def shared_out(flags: Sequence[str], kinds: Sequence[str]) -> dict[str, list[str]]:
    """By kind: those of the flags, with their values, that it has. Raises UsageError, one line, for one that no kind
    has."""
    names = {kind: flag_names(kind) for kind in kinds}
    known = list(dict.fromkeys(itertools.chain(*names.values())))
    out: dict[str, list[str]] = {kind: [] for kind in kinds}
    takers = list(kinds)
    for argument in flags:
        if argument.startswith("--"):
            cli.check_flag(argument, known)
            takers = [kind for kind in kinds if cli.flag_of(argument) in names[kind]]
        for kind in takers:
            out[kind].append(argument)
    return out


def _report(out: Path, cells: Mapping[Cell, dict[str, Any]]) -> None:
    """Writes table and figure, and prints the table."""
    if not cells:
        raise cli.UsageError(f"--report: expected a sweep with finished cells, {out} has none")
    _write(out, cells)
    print((out / "table.md").read_text())
    print(f"cells: {out / 'results.csv'}, figure: {out / 'success.png'}")


def _write(out: Path, cells: Mapping[Cell, dict[str, Any]]) -> None:
    order = list(KINDS)
    rows = sorted(cells.values(), key=lambda c: (order.index(c["kind"]), c["budget"] or 0, c["seed"]))
    if rows:
        write_report(out, rows[0]["config"]["env"], rows, command(rows, out))


def command(cells: Sequence[Mapping[str, Any]], out: Path) -> str:
    """What continues the sweep of these cells until nothing is missing."""
    plan = planned(out, cells)
    words = ["python", "-m", "benchmarks.comparison", "--kinds", *plan["kinds"]]
    words += ["--budgets", *map(str, plan["budgets"])] if plan["budgets"] else []
    words += ["--seeds", str(plan["seeds"]), "--eval-episodes", str(cells[0]["eval_episodes"])]
    words += [] if cells[0]["eval_stochastic"] else ["--no-eval-stochastic"]
    for flag, values in _unusual(cells).items():
        words += [word for value in values for word in (flag, value)] if values else [flag]
    config = cells[0]["config"]
    for name in ("env", "agent"):
        words += [] if config[name] == getattr(RunConfig, name) else [f"--{name}", config[name]]
    here = out.absolute()
    return shlex.join([*words, "--out", str(here.relative_to(Path.cwd()) if here.is_relative_to(Path.cwd()) else out)])


def _unusual(cells: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """The flags of train_rl.py that these cells were given, each with its values; none for a switch."""
    flags = {}
    for kind, config in {cell["kind"]: cell["config"] for cell in cells}.items():
        usual = _defaults(kind, config["env"], config["agent"])
        for name in sorted(config.keys() & usual.keys() - OURS - SIZED - IMMATERIAL - {"training_kwargs"}):
            flag, value = f"--{name.replace('_', '-')}", config[name]
            if _listed(value) == _listed(usual[name]):
                continue
            if isinstance(value, bool):
                flags[flag if value else flag.replace("--", "--no-", 1)] = []
            else:
                flags[flag] = [str(part) for part in _listed(value)]
    return flags


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


@cache
def _defaults(kind: str, env: str, agent: str) -> Mapping[str, Any]:
    """What train_rl.py sets where nothing else is given."""
    return parse_config(["--memory", kind, "--env", env, "--agent", agent]).flat()


class Sweep:
    """A directory of cells. Raises ValueError, one line, for settings that make no sense, before anything is
    written."""

    def __init__(self, config: ComparisonConfig, flags: Sequence[str], out: Path):
        for flag in (cli.flag_of(argument) for argument in flags if argument.startswith("--")):
            name = flag.removeprefix("--").removeprefix("no-").replace("-", "_")
            if name in OURS | SIZED:
                raise cli.UsageError(f"{flag}: expected only flags that the sweep leaves open, it sets {flag} itself")
        agent = cli.value_of("agent", list(flags))
        comparable = [
            name for name, entry in AGENTS.items() if entry.takes_memory_kind and entry.learns_from == REWARDS
        ]
        if agent is not None and agent in AGENTS and agent not in comparable:
            learn = ", ".join(comparable)
            raise cli.UsageError(f"--agent: expected one that learns with any memory kind ({learn}), got {agent!r}")
        self.config, self.out = config, out
        # The kinds that lie there are compared with the settings of now, too, whether this call trains them or not.
        kinds = list(dict.fromkeys([*config.kinds, *(cell.kind for cell in finished(out))]))
        self.settings = {kind: parse_config(["--memory", kind, *own]) for kind, own in shared_out(flags, kinds).items()}
        if not _given("--checkpoint-every", flags):
            for kind, settings in self.settings.items():
                every = -(-settings.run.total_timesteps // CHECKPOINTS)
                self.settings[kind] = settings.replace(checkpoint_every=every)
        self.try_to_build()

    def try_to_build(self) -> None:
        """A run of each kind: what cannot be built is told before hours of others."""
        first_of_kind = {cell.kind: cell for cell in reversed(self.cells())}
        for cell in first_of_kind.values():
            build(self.run_settings(cell)).trainer.env.close()

    def cells(self) -> list[Cell]:
        """By seed first: a sweep that is stopped has compared all kinds on fewer seeds."""
        budgets = {kind: self.config.budgets if kind in SIZES else (None,) for kind in self.config.kinds}
        seeds = range(1, self.config.seeds + 1)
        named = [Cell(kind, size, seed) for seed in seeds for kind in self.config.kinds for size in budgets[kind]]
        return list(dict.fromkeys(named))

    def run_settings(self, cell: Cell) -> Settings:
        """What train_rl.py trains for a cell."""
        size = SIZES[cell.kind](cell.budget) if cell.budget else {}
        here = {"seed": cell.seed, "run_dir": str(self.out / "runs" / str(cell)), "torch_threads": 1}
        return self.settings[cell.kind].replace(**size, **here, progress_bar=False)

    def evaluation(self) -> dict[str, Any]:
        """How a cell is evaluated."""
        return {name: getattr(self.config, name) for name in EVALUATION}

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """The directory, made where it is not there, for this process alone."""
        if self.out.exists() and (
            not self.out.is_dir() or (any(self.out.iterdir()) and not (self.out / "cells").is_dir())
        ):
            raise cli.UsageError(f"--out: expected a new directory or one of a sweep, {self.out} is another")
        for folder in ("cells", "runs"):
            (self.out / folder).mkdir(parents=True, exist_ok=True)
        with (self.out / "runs" / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise cli.UsageError(f"--out: expected a directory of its own, a sweep runs in {self.out}") from None
            yield

    def check(self, known: Mapping[Cell, Mapping[str, Any]]) -> None:
        """Raises UsageError unless what lies in the directory, finished or begun, was made with the settings of now."""
        for cell, told in known.items():
            self._same(str(cell), {**told["config"], **{name: told[name] for name in EVALUATION}}, cell)
        for cell in self.cells():
            begun = Path(self.run_settings(cell).run.run_dir) / "config.json"
            if begun.is_file():
                self._same(str(cell), saved_config(begun.parent), cell)

    def _same(self, name: str, then: Mapping[str, Any], cell: Cell) -> None:
        now = _comparable({**self.run_settings(cell).flat(), **self.evaluation()})
        # A flag that there was not yet had the effect of its default.
        then = _comparable({**_defaults(cell.kind, then["env"], then["agent"]), **self.evaluation(), **then})
        others = sorted((then.keys() | now.keys()) - IMMATERIAL - {"env", "agent"})
        for key in ("env", "agent", *others):  # first what others' defaults go with
            if then.get(key) != now.get(key):
                raise cli.UsageError(
                    f"{self.out}: expected --{key.replace('_', '-')} {then.get(key)} as in its cell {name}, got "
                    f"{now.get(key)}: name another --out for other settings"
                )

    def run(self, known: dict[Cell, dict[str, Any]]) -> None:
        """Trains and evaluates what is missing of `known`, which grows. Table and figure are written after every
        cell."""
        write_plan(self.out, list(known.values()), self.cells())
        missing = [cell for cell in self.cells() if cell not in known]
        _write(self.out, known)
        if missing:
            total = len(self.cells())
            _say(f"{total - len(missing)} of {total} cells are there, {len(missing)} to go -> {self.out}")
            work = [(c, self.run_settings(c), str(self.file(c)), self.evaluation()) for c in missing]
            for count, told in enumerate(self._each(work), total - len(missing) + 1):
                known[Cell(*(told[name] for name in Cell._fields))] = told
                _write(self.out, known)
                figures = {name: value for name, value in told["figures"].items() if value is not None}
                size = f" {told['budget']}" if told["budget"] else ""
                _say(f"[{count}/{total}] {told['kind']}{size} seed {told['seed']}: {_short(figures)}")
        _report(self.out, known)

    def _each(self, work: Sequence[Any]) -> Iterator[dict[str, Any]]:
        """The cells, as they come; one job needs no other process."""
        return map(finish_cell, work) if self.config.jobs == 1 else in_processes(finish_cell, work, self.config.jobs)

    def file(self, cell: Cell) -> Path:
        return self.out / "cells" / f"{cell}.json"


def _given(flag: str, arguments: Sequence[str]) -> bool:
    return flag in map(cli.flag_of, arguments)


def _comparable(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as they come back from a file, whatever blanks there are in the environment's keyword arguments."""
    told = json.loads(json.dumps(dict(settings)))
    return {**told, "env_kwargs": json.loads(told["env_kwargs"])}


def _short(figures: Mapping[str, float]) -> str:
    shown = ("success", "return", "memory_efficiency", "live_mean", "live_peak", "training_minutes")
    return ", ".join(f"{name.replace('_', ' ')} {figures[name]:.3g}" for name in shown if name in figures)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    cli.run(main)
