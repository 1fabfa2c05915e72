"""A long training, and trainings on Ray whose processes are killed."""

from __future__ import annotations

import json
import os
import signal
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.chaos_runs import SMALL_RUN
from benchmarks.chaos_trial import Outcome, Trial, flags, kill, run, start, wait_for
from expire_span_rl.files import write_atomically

MAX_GROWTH = 1.02  # mean of the last quarter over that of the second; in the first, caches fill
SAMPLE_SECONDS = 5.0  # between two samples
MIN_SAMPLES = 8
SOAK = {"memory": "transformer_xl", "window": 32, "width": 32, "num_envs": 32, "num_steps": 64, "torch_threads": 1}
"""A memory that is bounded by its window, so that any growth is not what the policy remembers."""
RAY = {
    **SMALL_RUN, "env": "Corridor-v0", "env_kwargs": '{"max_length": 8}', "agent": "impala", "num_actors": 2,
    "width": 16, "num_heads": 2, "checkpoint_every": 1024, "total_timesteps": 24_576,
}  # fmt: skip
ACTOR = "ray::_RayActor"  # the command of an actor's process
MARK = "CHAOS_TRIAL"  # an environment variable by which a trial's processes are found
EXIT_LIMIT = 180.0  # seconds within which the processes of a training must end


def try_soak(trial: Trial) -> Outcome:
    """Trains for `soak_minutes` while it samples resident memory and open files, and ends the training by SIGTERM."""
    settings = {
        **SOAK,
        "total_timesteps": 10**12,
        "checkpoint_every": 200_000,
        "run_dir": "run",
        "no_progress_bar": True,
    }
    start_time = time.perf_counter()
    process = start(flags(settings), trial.folder)
    samples = []
    while process.poll() is None and time.perf_counter() - start_time < 60 * trial.soak_minutes:
        time.sleep(SAMPLE_SECONDS)
        if (trial.folder / "run" / "progress.csv").exists() and (usage := _usage(process.pid)):
            samples.append({"seconds": round(time.perf_counter() - start_time), **usage})
    kill(process, signal.SIGTERM)
    result = wait_for(process, trial.folder, start_time, 60)
    write_atomically(trial.out / f"soak-{trial.number}.json", (json.dumps(samples) + "\n").encode())
    name = f"{trial.soak_minutes:g} minutes"
    if len(samples) < MIN_SAMPLES:
        return Outcome(name, result.problem(143) or f"only {len(samples)} samples: it takes more minutes", 1)
    quarters = [samples[len(samples) * i // 4 : len(samples) * (i + 1) // 4] for i in range(4)]
    for key in ("megabytes", "files"):
        means = [sum(sample[key] for sample in quarter) / len(quarter) for quarter in quarters]
        second = means[1]
        fourth = means[3]
        name += f", {second:.0f} to {fourth:.0f} {key}"
        if fourth > second * MAX_GROWTH:
            return Outcome(name, f"{key} grew from {second:.1f} to {fourth:.1f}", 1)
    return Outcome(name, result.problem(143), 1)


def _usage(pid: int) -> dict[str, float]:
    """Resident megabytes and open files of a process. Empty if the process is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        files = len(os.listdir(f"/proc/{pid}/fd"))
        return {"megabytes": int(status.split("VmRSS:")[1].split()[0]) / 1024, "files": files}
    except (OSError, IndexError):
        return {}


def try_ray(trial: Trial) -> Outcome:
    """Kills an actor, or the learner, at a random moment of the training. The training must reach its target and leave
    no process and no file. If the learner was killed, it is resumed."""
    name = ("actor", "learner")[trial.number % 2]
    mark = uuid.uuid4().hex
    temporary = trial.folder / "tmp"
    temporary.mkdir()
    environment: dict[str, Any] = {MARK: mark, "RAY_TMPDIR": str(temporary), "TMPDIR": str(temporary)}
    # Train, and kill a process some time after the first row of the log.
    start_time = time.perf_counter()
    process = start(flags({**RAY, "run_dir": "run"}), trial.folder, **environment)
    while process.poll() is None and _log_rows(trial.folder) < 1:
        time.sleep(0.1)
    time.sleep(trial.random.uniform(0, 3))
    victims = [process.pid] if name == "learner" else [pid for pid in _trial_pids(mark) if ACTOR in _command(pid)]
    if victims and process.poll() is None:
        os.kill(trial.random.choice(victims), signal.SIGKILL)
    result = wait_for(process, trial.folder, start_time)
    codes = (0,) if name == "actor" else (0, -signal.SIGKILL)
    if problem := result.code_problem(*codes):  # only the code: what Ray prints is not ours
        return Outcome(name, problem, 1)
    if not victims:
        return Outcome(name, "no actor was found", 1)
    if problem := _end_processes(mark):
        return Outcome(name, problem, 1)
    # Resume, and check what there is at the end.
    if result.code:
        for lock in temporary.glob("ray-*/*.lock"):  # the next start removes a lock that nobody touched for a minute
            os.utime(lock, (0, 0))
        resumed = run(["--resume", "run", "--no-progress-bar"], trial.folder, **environment)
        if problem := resumed.code_problem(0):
            return Outcome(name, f"resumed: {problem}", 1)
    rows = _log_rows(trial.folder)
    target = -(-RAY["total_timesteps"] // (RAY["num_envs"] * RAY["num_steps"]))
    if rows != target:
        return Outcome(name, f"the log has {rows} rows instead of {target}", 1)
    remains = [path.name for path in [*(trial.folder / "run").glob(".*.tmp"), *temporary.glob("ray*")]]
    return Outcome(name, _end_processes(mark) or (f"{remains[0]} was left" if remains else ""), 1)


def _log_rows(folder: Path) -> int:
    """How many rows the log of the run has."""
    log = folder / "run" / "progress.csv"
    return log.read_text().count("\n") - 1 if log.exists() else 0


def _end_processes(mark: str) -> str:
    """Waits for the processes of a trial to end, and kills those that run after EXIT_LIMIT seconds. Gives one line
    about these, empty for none."""
    deadline = time.perf_counter() + EXIT_LIMIT
    while (pids := list(_trial_pids(mark))) and time.perf_counter() < deadline:
        time.sleep(0.5)
    commands = [_command(pid) for pid in pids]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    return f"{len(pids)} processes were left: {commands[0][:100]}" if pids else ""


def _trial_pids(mark: str) -> Iterator[int]:
    """The processes whose environment has the trial's mark."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if f"{MARK}={mark}".encode() in (entry / "environ").read_bytes():
                    yield int(entry.name)
            except OSError:  # it has ended, or belongs to another user
                continue


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""
