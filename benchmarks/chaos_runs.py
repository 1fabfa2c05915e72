"""Trainings that are killed, at random moments or while they write, and trainings whose disk fills.

Each is resumed until it is done. It must then equal the undisturbed training: the same tensors in its checkpoint and
its policies, the same rows in its log, and nothing else in its folder.
"""

from __future__ import annotations

import csv
import itertools
import math
import os
import shutil
import signal
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.chaos_trial import Outcome, ProcessResult, Trial, flags, kill, run, start, wait_for
from expire_span_rl.agents import AGENTS, TARGETS
from expire_span_rl.agents.checkpoint import load_checkpoint
from expire_span_rl.policies import KINDS, core_config
from expire_span_rl.run_files import CHECKPOINTS, foreign_entries

KILLS = 3  # of each training
TERM_SECONDS = 10.0  # within which a training must end after SIGTERM
TASKS = {
    "corridor": {"env": "Corridor-v0", "env_kwargs": '{"max_length": 8}'},
    "portal": {"env": "Portal-v0", "env_kwargs": '{"max_rooms": 2}'},
    "switch": {"env": "Switch-v0", "env_kwargs": '{"max_steps": 40}'},
    "wrapped": {"env": "Corridor-v0", "env_kwargs": '{"max_length": 6}', "wrap": "episodes=2"},
    "other": {"env": "CartPole-v1"},
}
STREAMS = {"copy": {"env": "Copy-v0", "env_kwargs": '{"delay": 6, "length": 3}'}}  # for supervised agents
STATELESS = (
    "other"  # the task whose environments cannot save their state, so that a resumed training begins new episodes
)
SMALL_RUN = {"num_envs": 8, "num_steps": 16, "torch_threads": 1, "no_progress_bar": True, "run_dir": "run"}
UPDATES = 48
TIME_COLUMNS = ("time/fps", "time/rollout_seconds", "time/update_seconds")  # differ between any two trainings
CHECK_COLUMN = "train/acting_learning_difference"  # is measured again after every start
MIN_DISK_KB = 300  # enough to start a training
MAX_DISK_KB = 12_000  # more than a training needs

_lock = threading.Lock()


@dataclass(frozen=True)
class Case:
    """A training."""

    name: str
    settings: dict[str, object]

    @property
    def is_exact(self) -> bool:
        """Whether a resumed training gives the same as an undisturbed one."""
        return not self.name.startswith(STATELESS)


def cases() -> list[Case]:
    """Every memory kind, agent and task."""
    result = []
    for agent in AGENTS:
        entry = AGENTS[agent]
        for kind in entry.memory_names(KINDS):
            for task, env_settings in (STREAMS if entry.learns_from == TARGETS else TASKS).items():
                kind_settings = {"memory": kind, "width": 16} if entry.takes_memory_kind else {}
                if entry.takes_memory_kind and hasattr(core_config(kind), "num_heads"):
                    kind_settings |= {"num_heads": 2, "num_positions": 4}
                settings = {**env_settings, "agent": agent, **kind_settings, **SMALL_RUN}
                total = SMALL_RUN["num_envs"] * SMALL_RUN["num_steps"] * UPDATES
                settings |= {"total_timesteps": total, "checkpoint_every": 640}
                result.append(Case(f"{task} {kind} {agent}", settings))
    return result


def case_of(number: int) -> Case:
    """The case of each number, in turn. Neighbours differ, so that a few numbers have every kind, agent and task."""
    all_cases = cases()
    count = len(all_cases)
    steps = [step for step in range(len(TASKS) + 4, count) if math.gcd(step, count) == 1]
    step = next(step for step in steps if _words(all_cases, step, count // 3) == _words(all_cases, 1, count))
    return all_cases[number * step % count]


def _words(all_cases: list[Case], step: int, count: int) -> list[set[str]]:
    """The tasks, kinds and agents of the first `count` cases, if every `step`th is taken."""
    words = [all_cases[i * step % len(all_cases)].name.split() for i in range(count)]
    return [set(column) for column in zip(*words, strict=True)]


@dataclass(frozen=True)
class Reference:
    """An undisturbed training."""

    folder: Path
    seconds: float


def reference(case: Case, trial: Trial) -> Reference:
    """The undisturbed training of a case, which is trained once. Raises RuntimeError if it fails."""
    folder = trial.shared / case.name.replace(" ", "-").replace(",", "")
    with _lock:
        seconds = folder / "seconds.txt"
        if not seconds.exists():
            folder.mkdir(exist_ok=True)
            result = run(flags(case.settings), folder)
            if problem := result.problem(0):
                raise RuntimeError(f"the undisturbed training: {problem}")
            seconds.write_text(str(result.seconds))
        return Reference(folder / "run", float(seconds.read_text()))


def try_kills(trial: Trial) -> Outcome:
    """SIGKILL at random moments."""
    return _try_signals(trial, signal.SIGKILL)


def try_terms(trial: Trial) -> Outcome:
    """SIGTERM at random moments."""
    return _try_signals(trial, signal.SIGTERM)


def _try_signals(trial: Trial, signum: signal.Signals) -> Outcome:
    """Sends the signal at random moments of a training, which is resumed each time."""
    case = case_of(trial.number)
    undisturbed = reference(case, trial)
    signals = 0  # that were sent
    while signals < trial.trials:
        start_time = time.perf_counter()
        process = start(_arguments(case, trial.folder), trial.folder)
        try:
            process.wait(trial.random.uniform(0.05, undisturbed.seconds))
        except subprocess.TimeoutExpired:
            signal_time = time.perf_counter()
            kill(process, signum)
            result = wait_for(process, trial.folder, start_time)
            signals += 1
            if problem := _signal_problem(result, signum, time.perf_counter() - signal_time):
                return Outcome(case.name, f"signal {signals}: {problem}", signals)
        else:  # it was done before the signal came
            result = wait_for(process, trial.folder, start_time)
            if problem := result.problem(0) or difference(trial.folder / "run", undisturbed.folder, case.is_exact):
                return Outcome(case.name, problem, signals)
            shutil.rmtree(trial.folder / "run")
    return Outcome(case.name, _resume(case, trial, undisturbed), signals)


def _signal_problem(result: ProcessResult, signum: signal.Signals, seconds: float) -> str:
    """Empty if the process ended as it must after a signal, `seconds` before; else one line."""
    if signum == signal.SIGKILL:
        return "" if result.code in (0, -signum) else result.problem(-signum)
    if result.code == -signum and (result.seconds < 1 or "\ntrained " in result.text):
        return ""  # Python had not read the script's first line yet, or the training was done and Python was exiting
    if seconds > TERM_SECONDS:
        return f"{seconds:.1f} s until it ended"
    return result.problem(0, 128 + signum)


def _arguments(case: Case, folder: Path) -> list[str]:
    """The command line that starts the case's training, or resumes it."""
    if any((folder / "run" / name).exists() for name in CHECKPOINTS):
        return ["--resume", "run", "--no-progress-bar"]
    return [*flags(case.settings), *(["--overwrite"] if (folder / "run").exists() else [])]


def _resume(case: Case, trial: Trial, undisturbed: Reference) -> str:
    """Resumes the training to its end. Empty if it then equals the undisturbed one, else what differs."""
    result = run(_arguments(case, trial.folder), trial.folder)
    return result.problem(0) or difference(trial.folder / "run", undisturbed.folder, case.is_exact)


def difference(run_dir: Path, reference_dir: Path, is_exact: bool = True) -> str:
    """The first difference between two run directories, in one line; empty if there is none.

    is_exact: compare everything. Otherwise only the steps of the log are compared, and what was left in the directory.
    """
    if foreign := list(foreign_entries(run_dir)):
        return f"{foreign[0].name} was left"
    temporary = itertools.chain(run_dir.glob(".*.tmp"), run_dir.glob("checkpoints/.*.tmp"))
    if remains := [path.name for path in temporary]:
        return f"{remains[0]} was left"
    log = _read_log(run_dir)
    reference_log = _read_log(reference_dir)
    if not is_exact:
        steps = [[row["time/total_timesteps"] for row in rows] for rows in (log, reference_log)]
        return "" if steps[0] == steps[1] else f"the log has {len(steps[0])} rows instead of {len(steps[1])}"
    tensors = load_checkpoint(run_dir / CHECKPOINTS[0])[0]
    reference_tensors = load_checkpoint(reference_dir / CHECKPOINTS[0])[0]
    if tensors.keys() != reference_tensors.keys():
        return f"the checkpoint has {min(tensors.keys() ^ reference_tensors.keys())} only once"
    for name, tensor in tensors.items():
        expected = reference_tensors[name]
        if tensor.shape != expected.shape or tensor.numpy().tobytes() != expected.numpy().tobytes():
            return f"{name} of the checkpoint differs"
    policies = [(folder / "policy.safetensors").read_bytes() for folder in (run_dir, reference_dir)]
    if policies[0] != policies[1]:
        return "policy.safetensors differs"
    return _log_difference(log, reference_log)


def _read_log(folder: Path) -> list[dict[str, str]]:
    """The rows of the log without empty values and without times."""
    with (folder / "progress.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{name: value for name, value in row.items() if value and name not in TIME_COLUMNS} for row in rows]


def _log_difference(log: list[dict[str, str]], reference_log: list[dict[str, str]]) -> str:
    """The first difference between two logs, in one line; empty if there is none."""
    if len(log) != len(reference_log):
        return f"the log has {len(log)} rows instead of {len(reference_log)}"
    for row, expected in zip(log, reference_log, strict=True):
        for name in sorted((row.keys() | expected.keys()) - {CHECK_COLUMN}):
            if row.get(name) != expected.get(name):
                where = f"step {expected.get('time/total_timesteps')}"
                return f"{name} at {where} is {row.get(name)} instead of {expected.get(name)}"
    return ""


def try_writes(trial: Trial) -> Outcome:
    """SIGKILL when the run directory has a file that is being written, or was just written."""
    case = case_of(trial.number)
    case = Case(f"{case.name}, writing", {**case.settings, "checkpoint_every": 1})
    undisturbed = reference(case, trial)
    process = start(_arguments(case, trial.folder), trial.folder)
    run_dir = trial.folder / "run"
    skip = trial.random.randrange(3 * UPDATES)
    sightings = 0  # of unfinished files
    while process.poll() is None:
        if any(name.endswith(".tmp") for name in _names(run_dir)):
            sightings += 1
            if sightings > skip:
                time.sleep(trial.random.choice([0, 0, 1e-4, 1e-3]))
                kill(process)
        time.sleep(2e-4)
    unfinished = [name for name in _names(run_dir) if name.endswith(".tmp")]
    name = f"{case.name} {'inside' if unfinished else 'after'}"
    return Outcome(name, _resume(case, trial, undisturbed), 1)


def _names(folder: Path) -> list[str]:
    try:
        return [*os.listdir(folder), *os.listdir(folder / "checkpoints")]
    except OSError:
        return []


def try_disk(trial: Trial) -> Outcome:
    """A disk that fills. The trials divide the sizes from MIN_DISK_KB to MAX_DISK_KB by equal factors.

    As root it is a file system in memory, which gets more room afterwards. Otherwise it is a limit on the size of a
    file.
    """
    case = case_of(trial.number)
    undisturbed = reference(case, trial)
    size = round(MIN_DISK_KB * (MAX_DISK_KB / MIN_DISK_KB) ** (trial.number / max(1, trial.total - 1)))
    disk = trial.folder / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(disk)], capture_output=True, check=False
    )
    is_disk = mounted.returncode == 0
    name = f"{case.name}, {size:,} kB {'in all' if is_disk else 'a file'}"
    try:
        result = _run_on(disk, case, trial, None if is_disk else size * 1024 // 10)
        if problem := result.problem(0, 1):
            return Outcome(name, problem, 1)
        if is_disk:
            subprocess.run(["mount", "-o", "remount,size=200m", str(disk)], check=True)
        if result.code == 1:
            name += ", filled"
        result = _run_on(disk, case, trial)
        problem = result.problem(0) or difference(disk / "run", undisturbed.folder, case.is_exact)
        return Outcome(name, problem, 1)
    finally:
        if is_disk:
            subprocess.run(["umount", "-l", str(disk)], check=False)


def _run_on(disk: Path, case: Case, trial: Trial, max_file_bytes: int | None = None) -> ProcessResult:
    """Starts or resumes the training in a run directory on the disk. What it prints goes elsewhere."""
    arguments = _arguments(case, disk)
    place = arguments.index("run")
    arguments[place] = str(disk / "run")
    return run(arguments, trial.folder, max_file_bytes=max_file_bytes)
