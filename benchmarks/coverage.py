"""Which environments the command lines train and evaluate: Gymnasium's own, MiniGrid's, BabyAI's and POPGym's.

    python -m benchmarks.coverage                                 # all families: an hour on two cores
    python -m benchmarks.coverage --families popgym --workers 1
    python -m benchmarks.coverage --ids CartPole-v1 popgym:popgym-AutoencodeEasy-v0

Each id is trained by train_rl.py for --timesteps steps, and its policy is evaluated by evaluate.py. Each command runs
in a process of its own with a time limit. An id passes if both commands exit with 0, the training's log has at least
that many steps, and the report has the right number of episodes. For any other id, the table has the last line that the
command printed.

Rows are added to the CSV one by one, each with the commit at which it was measured. The same command continues with the
ids that have no row yet, and --redo measures others again. Packages of environments must be installed first: pip
install popgym mazelib box2d mujoco gives all of POPGym and most of Gymnasium.
"""

from __future__ import annotations

import csv
import importlib
import io
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal, cast

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from tqdm import tqdm

from benchmarks.cells import read_csv
from expire_span_rl import cli
from expire_span_rl.files import write_atomically

FAMILIES = ("gymnasium", "minigrid", "babyai", "popgym")
PREFIXES = {"minigrid": ("minigrid", "MiniGrid-"), "babyai": ("minigrid", "BabyAI-"), "popgym": ("popgym", "popgym-")}
"""By family: the package whose import registers the family's ids, and the prefix of these ids."""
OTHER = "other"  # the family of any other id
TRAINING = ["--num-envs", "8", "--num-steps", "64", "--torch-threads", "1", "--no-progress-bar", "--run-dir", "run"]
"""Flags of train_rl.py."""
EPISODES = 4
"""Episodes of an evaluation."""
EVALUATION = ["run", "--episodes", str(EPISODES), "--num-envs", "4", "--torch-threads", "1"]
"""Arguments of evaluate.py."""
MAX_EPISODE_STEPS = 1000
"""Steps after which episodes are truncated in Gymnasium's environments without a time limit. After little training, a
policy may never end them."""
REPORT = "evaluation.json"
SITE_PACKAGES = re.compile(r"/[^\s'\"]*/site-packages/")
"""The folder of installed packages, which differs between machines."""
PRELOAD = ["torch", "stable_baselines3", "minigrid", "expire_span_rl.training", "expire_span_rl.evaluation"]
"""Modules that are imported once, instead of once in every process."""


@dataclass(frozen=True)
class CoverageConfig:
    families: tuple[Literal["gymnasium", "minigrid", "babyai", "popgym"], ...] = FAMILIES
    """Families of environments."""
    ids: tuple[str, ...] = ()
    """Only these ids, whether they have a row or not. An id that a package registers on import is `package:Id-v0`."""
    timesteps: int = 4096
    """Environment steps of each training."""
    workers: int = 2
    """Ids that are measured at the same time, one thread each."""
    time_limit: float = 300
    """Seconds that each of the two commands may take."""
    redo: Literal["none", "failed", "all"] = "none"
    """Measure ids that have a row again: those that failed, or all."""
    out: str = "benchmarks/results/coverage.csv"
    """File of the rows."""
    report: bool = False
    """Measure nothing, only print the rows that are there."""

    def __post_init__(self):
        cli.check_at_least(self, timesteps=1, workers=1, time_limit=1)


@dataclass(frozen=True)
class Row:
    """The result of one id."""

    family: str
    id: str
    runs: bool
    """Whether the id passes."""
    why_not: str
    """One line: the command that failed and what it printed. Empty if the id passes."""
    seconds: float
    timesteps: int
    commit: str
    """The commit at which it was measured, with a + if tracked files differed from it."""


def main() -> None:
    config = cli.parse(CoverageConfig, sys.argv[1:], "Which environments train and are evaluated.")
    out = Path(config.out)
    rows = read_rows(out)
    if not config.report:
        work = list(_missing_ids(config, rows))
        out.parent.mkdir(parents=True, exist_ok=True)
        for row in measure_all(work, config):
            rows[row.id] = row
            write_rows(out, rows.values())
    print_table([row for row in rows.values() if _is_selected(row, config)])
    print(f"rows: {out}")


def environments(family: str) -> list[str]:
    """The values of --env for a family's ids. Raises UsageError, one line, if its package is not installed."""
    if family == "gymnasium":
        return sorted(id_ for id_, spec in gym.registry.items() if _is_gymnasium(spec))
    package, prefix = PREFIXES[family]
    try:
        importlib.import_module(package)
    except ImportError as error:
        raise cli.UsageError(f"--families: {family} cannot be measured: {error}") from None
    ids = sorted(id_ for id_ in gym.registry if id_.startswith(prefix))
    # MiniGrid is a dependency of this project, so that its ids need no import by the user.
    return ids if package == "minigrid" else [f"{package}:{id_}" for id_ in ids]


def _is_gymnasium(spec: EnvSpec) -> bool:
    """Whether Gymnasium itself registers `spec`. Some of its ids only raise an error that names the package to
    install."""
    entry = spec.entry_point
    return (entry if isinstance(entry, str) else entry.__module__).startswith("gymnasium.")


def _missing_ids(config: CoverageConfig, rows: dict[str, Row]) -> Iterator[tuple[str, str]]:
    """(family, id) of the environments to measure."""
    if config.ids:
        yield from ((_family_of(id_), id_) for id_ in config.ids)
        return
    by_id = {id_: family for family in config.families for id_ in environments(family)}
    for id_, family in by_id.items():
        row = rows.get(id_)
        if row is None or config.redo == "all" or (config.redo == "failed" and not row.runs):
            yield family, id_


def _family_of(id_: str) -> str:
    """The family of an id. No package need be installed for it."""
    for family, (package, prefix) in PREFIXES.items():
        if id_.removeprefix(f"{package}:").startswith(prefix):
            return family
    spec = gym.registry.get(id_)
    return "gymnasium" if spec is not None and _is_gymnasium(spec) else OTHER


def _is_selected(row: Row, config: CoverageConfig) -> bool:
    """Whether the printed table has the row."""
    return row.id in config.ids if config.ids else row.family in config.families


def measure_all(work: Sequence[tuple[str, str]], config: CoverageConfig) -> Iterator[Row]:
    """Yields a row for each (family, id), as soon as it is measured."""
    commit = current_commit()
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    with ThreadPoolExecutor(config.workers) as pool:
        jobs = [pool.submit(measure, family, id_, config, commit) for family, id_ in work]
        try:
            for job in tqdm(as_completed(jobs), total=len(jobs), unit="id", disable=None):
                yield job.result()
        finally:
            pool.shutdown(cancel_futures=True)


def measure(family: str, id_: str, config: CoverageConfig, commit: str) -> Row:
    """Trains and evaluates one id."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="coverage-") as name:
        folder = Path(name)
        training = ["--env", id_, "--total-timesteps", str(config.timesteps), *TRAINING]
        evaluation = [*EVALUATION, "--env", id_, "--json", REPORT]
        spec = gym.registry.get(id_.rpartition(":")[2])
        if spec is not None and spec.max_episode_steps is None and family == "gymnasium":
            evaluation += ["--env-kwargs", json.dumps({"max_episode_steps": MAX_EPISODE_STEPS})]
        # Each of these returns a message if it fails, and the next one is run only if it does not.
        why_not = (
            _run_script("train_rl", training, folder, config.time_limit)
            or _check_training(folder, config.timesteps)
            or _run_script("evaluate", evaluation, folder, config.time_limit)
            or _check_evaluation(folder)
        )
        why_not = SITE_PACKAGES.sub("site-packages/", why_not)
    return Row(
        family=family,
        id=id_,
        runs=not why_not,
        why_not=why_not,
        seconds=round(time.perf_counter() - start, 1),
        timesteps=config.timesteps,
        commit=commit,
    )


def _run_script(script: str, arguments: list[str], folder: Path, time_limit: float) -> str:
    """Runs a script in `folder`, in a process of its own. Returns "" if it exits with 0, otherwise one line about the
    failure, with the last line that it printed. time_limit: seconds after which the process is killed."""
    log = folder / f"{script}.log"
    process = multiprocessing.get_context("forkserver").Process(
        target=_run_in_process, args=(script, arguments, str(folder), str(log))
    )
    process.start()
    process.join(time_limit)
    if process.exitcode is None:
        try:
            os.killpg(cast(int, process.pid), signal.SIGKILL)  # also kills the processes of its environments
        except ProcessLookupError:  # it does not have its own process group yet
            process.kill()
        process.join()
        return f"{script}: no end within {time_limit:g} seconds"
    if process.exitcode == 0:
        return ""
    lines = log.read_text(errors="replace").split("\n") if log.exists() else []
    last_line = next((line.strip() for line in reversed(lines) if line.strip()), "nothing was printed")
    if process.exitcode < 0:
        return f"{script}: ended by {signal.Signals(-process.exitcode).name}: {last_line}"
    if last_line.startswith("error: "):
        return f"{script}: {last_line.removeprefix('error: ')}"
    return f"{script}: traceback: {last_line}"  # a traceback is a bug


def _run_in_process(script: str, arguments: list[str], folder: str, log: str) -> None:
    """Runs a script's command line in this process, whose standard output and error go to `log`, and exits."""
    os.setsid()
    os.chdir(folder)
    with open(log, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = [f"{script}.py", *arguments]
    cli.run(importlib.import_module(script).main)


def _check_training(folder: Path, timesteps: int) -> str:
    """Returns "" if the training's log has at least `timesteps` steps, otherwise one line."""
    with (folder / "run" / "progress.csv").open(newline="") as file:
        steps = max((int(float(row["time/total_timesteps"])) for row in csv.DictReader(file)), default=0)
    return "" if steps >= timesteps else f"train_rl: {steps} steps were trained instead of {timesteps}"


def _check_evaluation(folder: Path) -> str:
    """Returns "" if the report has EPISODES episodes, otherwise one line."""
    (result,) = json.loads((folder / REPORT).read_text(encoding="utf-8"))["policies"]
    episodes = result["episodes"]
    return "" if episodes == EPISODES else f"evaluate: {episodes} episodes were played instead of {EPISODES}"


def current_commit() -> str:
    """The abbreviated commit of the checkout, with a + if tracked files differ from it."""
    root = Path(__file__).resolve().parents[1]
    command = ["git", "-C", str(root), "describe", "--always", "--dirty=+", "--exclude=*"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip() or "unknown"


def read_rows(path: Path) -> dict[str, Row]:
    """The rows of a file by id. Empty if there is no file. Raises UsageError as `read_csv`."""
    if not path.exists():
        return {}
    return {row.id: row for row in read_csv(path, _parse_row, owner="benchmarks.coverage")}


def _parse_row(text: dict[str, str]) -> Row:
    numbers = {"runs": text["runs"] == "True", "seconds": float(text["seconds"]), "timesteps": int(text["timesteps"])}
    return Row(family=text["family"], id=text["id"], why_not=text["why_not"], commit=text["commit"], **numbers)


def sort_rows(rows: Iterable[Row]) -> list[Row]:
    """The rows by family and id."""
    return sorted(rows, key=lambda row: ([*FAMILIES, OTHER].index(row.family), row.id))


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Writes the rows, sorted."""
    text = io.StringIO()
    table = csv.DictWriter(text, [field.name for field in fields(Row)], lineterminator="\n")
    table.writeheader()
    table.writerows(asdict(row) for row in sort_rows(rows))
    write_atomically(path, text.getvalue().encode())


def print_table(rows: Sequence[Row]) -> None:
    """Prints each id with "yes" or the reason why not, and how many of each family run."""
    table = Table("id", "runs, or why not")
    for row in sort_rows(rows):
        table.add_row(row.id, "yes" if row.runs else escape(row.why_not))
    summary = Table("family", "run", "of")
    for family in (*FAMILIES, OTHER):
        passes = [row.runs for row in rows if row.family == family]
        if passes:
            summary.add_row(family, str(sum(passes)), str(len(passes)))
    console = Console()
    console.print(table)
    console.print(summary)


if __name__ == "__main__":
    cli.run(main)
