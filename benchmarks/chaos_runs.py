"""Trainings that are killed, at random moments or while they write, and trainings whose disk fills.

Each is resumed until it is done, and must then be the training that nobody disturbed: the same tensors in its
checkpoint and its policies, the same rows in its log, and nothing else in its folder.
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

from benchmarks.chaos_trial import Ended, Outcome, Trial, ended, flags, kill, run, start
from expire_span_rl.agents import AGENTS, TARGETS
from expire_span_rl.agents.checkpoint import load_checkpoint
from expire_span_rl.policies import KINDS, core_config
from expire_span_rl.run_files import CHECKPOINTS, foreign_entries

KILLS = 3  # of a training
TERM_SECONDS = 10.0
TASKS = {
    "corridor": {"env": "Corridor-v0", "env_kwargs": '{"max_length": 8}'},
    "portal": {"env": "Portal-v0", "env_kwargs": '{"max_rooms": 2}'},
    "switch": {"env": "Switch-v0", "env_kwargs": '{"max_steps": 40}'},
    "wrapped": {"env": "Corridor-v0", "env_kwargs": '{"max_length": 6}', "wrap": "episodes=2"},
    "other": {"env": "CartPole-v1"},
}
STREAMS = {"copy": {"env": "Copy-v0", "env_kwargs": '{"delay": 6, "length": 3}'}}  # for agents that are supervised
FORGETFUL = "other"  # the task whose environments cannot save their state: a resumed training begins new episodes
SMALL = {"num_envs": 8, "num_steps": 16, "torch_threads": 1, "no_progress_bar": True, "run_dir": "run"}
UPDATES = 48
TIMED = ("time/fps", "time/rollout_seconds", "time/update_seconds")  # columns that no two trainings share
CHECKED = "train/acting_learning_difference"  # is measured again after every start
DISK_KB = (300, 12_000)  # the smallest and the largest disk: what a training starts with, and more than it needs

_lock = threading.Lock()


@dataclass(frozen=True)
class Case:
    """A training."""

    name: str
    settings: dict[str, object]

    @property
    def goes_on(self) -> bool:
        """Whether a resumed training goes on as if nothing had happened."""
        return not self.name.startswith(FORGETFUL)


def cases() -> list[Case]:
    """Every memory kind, agent and task."""
    made = []
    for agent in AGENTS:
        entry = AGENTS[agent]
        for kind in entry.memory_names(KINDS):
            for task, named in (STREAMS if entry.learns_from == TARGETS else TASKS).items():
                own = {"memory": kind, "width": 16} if entry.takes_memory_kind else {}
                if entry.takes_memory_kind and hasattr(core_config(kind), "num_heads"):
                    own |= {"num_heads": 2, "num_positions": 4}
                settings = {**named, "agent": agent, **own, **SMALL}
                total = SMALL["num_envs"] * SMALL["num_steps"] * UPDATES
                made.append(
                    Case(f"{task} {kind} {agent}", {**settings, "total_timesteps": total, "checkpoint_every": 640})
                )
    return made


def case_of(number: int) -> Case:
    """A case for each number, in turn; neighbours differ, so that a few have every kind, agent and task."""
    every = cases()
    steps = [step for step in range(len(TASKS) + 4, len(every)) if math.gcd(step, len(every)) == 1]
    step = next(step for step in steps if _seen(every, step, len(every) // 3) == _seen(every, 1, len(every)))
    return every[number * step % len(every)]


def _seen(every: list[Case], step: int, count: int) -> list[set[str]]:
    """The tasks, kinds and agents of the first cases when every `step`th is taken."""
    words = [every[i * step % len(every)].name.split() for i in range(count)]
    return [set(column) for column in zip(*words, strict=True)]


@dataclass(frozen=True)
class Reference:
    """A training that nobody disturbed."""

    folder: Path
    seconds: float


def reference(case: Case, trial: Trial) -> Reference:
    """That of a case, trained once. Raises RuntimeError if it fails."""
    folder = trial.shared / case.name.replace(" ", "-").replace(",", "")
    with _lock:
        seconds = folder / "seconds.txt"
        if not seconds.exists():
            folder.mkdir(exist_ok=True)
            done = run(flags(case.settings), folder)
            if wrong := done.wrong(0):
                raise RuntimeError(f"the undisturbed training: {wrong}")
            seconds.write_text(str(done.seconds))
        return Reference(folder / "run", float(seconds.read_text()))


def killed(trial: Trial) -> Outcome:
    """SIGKILL at random moments."""
    return _disturbed(trial, signal.SIGKILL)


def terminated(trial: Trial) -> Outcome:
    """SIGTERM at random moments."""
    return _disturbed(trial, signal.SIGTERM)


def _disturbed(trial: Trial, signum: signal.Signals) -> Outcome:
    case = case_of(trial.number)
    whole = reference(case, trial)
    sent = 0
    while sent < trial.trials:
        began = time.perf_counter()
        process = start(_arguments(case, trial.folder), trial.folder)
        try:
            process.wait(trial.random.uniform(0.05, whole.seconds))
        except subprocess.TimeoutExpired:
            asked = time.perf_counter()
            kill(process, signum)
            done = ended(process, trial.folder, began)
            sent += 1
            if wrong := _ended_well(done, signum, time.perf_counter() - asked):
                return Outcome(case.name, f"signal {sent}: {wrong}", sent)
        else:  # it was done before the signal came
            done = ended(process, trial.folder, began)
            if wrong := done.wrong(0) or differs(trial.folder / "run", whole.folder, case.goes_on):
                return Outcome(case.name, wrong, sent)
            shutil.rmtree(trial.folder / "run")
    return Outcome(case.name, _resumed(case, trial, whole), sent)


def _ended_well(done: Ended, signum: signal.Signals, seconds: float) -> str:
    if signum == signal.SIGKILL:
        return "" if done.code in (0, -signum) else done.wrong(-signum)
    if done.code == -signum and (done.seconds < 1 or "\ntrained " in done.text):
        return ""  # Python had not read the script's first line yet, or all was done and it was on its way out
    if seconds > TERM_SECONDS:
        return f"{seconds:.1f} s until it ended"
    return done.wrong(0, 128 + signum)


def _arguments(case: Case, folder: Path) -> list[str]:
    """What starts the case's training, or goes on with it."""
    begun = any((folder / "run" / name).exists() for name in CHECKPOINTS)
    if begun:
        return ["--resume", "run", "--no-progress-bar"]
    return [*flags(case.settings), *(["--overwrite"] if (folder / "run").exists() else [])]


def _resumed(case: Case, trial: Trial, whole: Reference) -> str:
    """Goes on to the end and compares with the whole training: empty, or what differs."""
    done = run(_arguments(case, trial.folder), trial.folder)
    return done.wrong(0) or differs(trial.folder / "run", whole.folder, case.goes_on)


def differs(one: Path, other: Path, everything: bool = True) -> str:
    """What differs between two run directories; empty if nothing does that should not. everything: compare more than
    which rows the log has, and what is left in the directory."""
    if foreign := list(foreign_entries(one)):
        return f"{foreign[0].name} was left"
    if left := [path.name for path in itertools.chain(one.glob(".*.tmp"), one.glob("checkpoints/.*.tmp"))]:
        return f"{left[0]} was left"
    if not everything:
        steps = [[row["time/total_timesteps"] for row in _log(folder)] for folder in (one, other)]
        return "" if steps[0] == steps[1] else f"the log has {len(steps[0])} rows instead of {len(steps[1])}"
    checkpoints = [load_checkpoint(folder / CHECKPOINTS[0])[0] for folder in (one, other)]
    if checkpoints[0].keys() != checkpoints[1].keys():
        return f"the checkpoint has {min(checkpoints[0].keys() ^ checkpoints[1].keys())} only once"
    for name, tensor in checkpoints[0].items():
        if (
            tensor.shape != checkpoints[1][name].shape
            or tensor.numpy().tobytes() != checkpoints[1][name].numpy().tobytes()
        ):
            return f"{name} of the checkpoint differs"
    policies = [(folder / "policy.safetensors").read_bytes() for folder in (one, other)]
    if policies[0] != policies[1]:
        return "policy.safetensors differs"
    return _log_differs(*(_log(folder) for folder in (one, other)))


def _log(folder: Path) -> list[dict[str, str]]:
    with (folder / "progress.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{name: value for name, value in row.items() if value and name not in TIMED} for row in rows]


def _log_differs(one: list[dict[str, str]], other: list[dict[str, str]]) -> str:
    if len(one) != len(other):
        return f"the log has {len(one)} rows instead of {len(other)}"
    for row, wanted in zip(one, other, strict=True):
        for name in sorted((row.keys() | wanted.keys()) - {CHECKED}):
            if row.get(name) != wanted.get(name):
                where = f"step {wanted.get('time/total_timesteps')}"
                return f"{name} at {where} is {row.get(name)} instead of {wanted.get(name)}"
    return ""


def killed_while_writing(trial: Trial) -> Outcome:
    """SIGKILL when a file that is not complete yet, or has just been, is seen in the run directory."""
    case = case_of(trial.number)
    case = Case(f"{case.name}, writing", {**case.settings, "checkpoint_every": 1})
    whole = reference(case, trial)
    process = start(_arguments(case, trial.folder), trial.folder)
    run_dir, skip, seen = trial.folder / "run", trial.random.randrange(3 * UPDATES), 0
    while process.poll() is None:
        if any(name.endswith(".tmp") for name in _names(run_dir)):
            seen += 1
            if seen > skip:
                time.sleep(trial.random.choice([0, 0, 1e-4, 1e-3]))
                kill(process)
        time.sleep(2e-4)
    left = [name for name in _names(run_dir) if name.endswith(".tmp")]
    name = f"{case.name} {'inside' if left else 'after'}"
    return Outcome(name, _resumed(case, trial, whole), 1)


def _names(folder: Path) -> list[str]:
    try:
        return [*os.listdir(folder), *os.listdir(folder / "checkpoints")]
    except OSError:
        return []


def full_disk(trial: Trial) -> Outcome:
    """A disk of a size between the least and the largest, by equal factors. As root it is a file system in memory,
    which then gets room; else it is a limit on the size of a file."""
    case = case_of(trial.number)
    whole = reference(case, trial)
    low, high = DISK_KB
    size = round(low * (high / low) ** (trial.number / max(1, trial.wanted - 1)))
    disk = trial.folder / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(disk)], capture_output=True, check=False
    )
    is_disk = mounted.returncode == 0
    name = f"{case.name}, {size:,} kB {'in all' if is_disk else 'a file'}"
    try:
        done = _run_on(disk, case, trial, None if is_disk else size * 1024 // 10)
        if wrong := done.wrong(0, 1):
            return Outcome(name, wrong, 1)
        if is_disk:
            subprocess.run(["mount", "-o", "remount,size=200m", str(disk)], check=True)
        if done.code == 1:
            name += ", filled"
        done = _run_on(disk, case, trial)
        return Outcome(name, done.wrong(0) or differs(disk / "run", whole.folder, case.goes_on), 1)
    finally:
        if is_disk:
            subprocess.run(["umount", "-l", str(disk)], check=False)


def _run_on(disk: Path, case: Case, trial: Trial, largest_file: int | None = None) -> Ended:
    """Trains, or goes on, in a run directory on the disk; what is printed goes elsewhere."""
    arguments = _arguments(case, disk)
    place = arguments.index("run")
    arguments[place] = str(disk / "run")
    return run(arguments, trial.folder, largest_file=largest_file)
