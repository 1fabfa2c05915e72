"""A training that runs for long, and trainings on Ray whose processes are killed."""

from __future__ import annotations

import json
import os
import signal
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.chaos_runs import SMALL
from benchmarks.chaos_trial import Outcome, Trial, ended, flags, kill, run, start
from expire_span_rl.files import write_atomically

FLAT = 1.02  # the last quarter's mean over that of the second: the first has the caches to fill
EVERY = 5.0  # seconds between two looks
SOAK = {"memory": "transformer_xl", "window": 32, "width": 32, "num_envs": 32, "num_steps": 64, "torch_threads": 1}
"""A memory that is bounded by its window: what grows is not what the policy remembers."""
RAY = {
    **SMALL, "env": "Corridor-v0", "env_kwargs": '{"max_length": 8}', "agent": "impala", "num_actors": 2, "width": 16,
    "num_heads": 2, "checkpoint_every": 1024, "total_timesteps": 24_576,
}  # fmt: skip
ACTOR = "ray::_RayActor"  # how the processes of actors are called
MARK = "CHAOS_TRIAL"  # an environment variable by which a trial's processes are found
SETTLED = 180.0  # seconds in which the processes of a training must be gone


def soak(trial: Trial) -> Outcome:
    """Trains for so many minutes, looks at resident memory and open files, and ends it by SIGTERM."""
    settings = {
        **SOAK,
        "total_timesteps": 10**12,
        "checkpoint_every": 200_000,
        "run_dir": "run",
        "no_progress_bar": True,
    }
    began = time.perf_counter()
    process = start(flags(settings), trial.folder)
    samples = []
    while process.poll() is None and time.perf_counter() - began < 60 * trial.soak_minutes:
        time.sleep(EVERY)
        if (trial.folder / "run" / "progress.csv").exists() and (seen := _used(process.pid)):
            samples.append({"seconds": round(time.perf_counter() - began), **seen})
    kill(process, signal.SIGTERM)
    done = ended(process, trial.folder, began, 60)
    write_atomically(trial.out / f"soak-{trial.number}.json", (json.dumps(samples) + "\n").encode())
    name = f"{trial.soak_minutes:g} minutes"
    if len(samples) < 8:
        return Outcome(name, done.wrong(143) or f"only {len(samples)} looks: it takes more minutes", 1)
    quarters = [samples[len(samples) * i // 4 : len(samples) * (i + 1) // 4] for i in range(4)]
    for what in ("megabytes", "files"):
        early, late = (sum(sample[what] for sample in quarters[i]) / len(quarters[i]) for i in (1, 3))
        name += f", {early:.0f} to {late:.0f} {what}"
        if late > early * FLAT:
            return Outcome(name, f"{what} grew from {early:.1f} to {late:.1f}", 1)
    return Outcome(name, done.wrong(143), 1)


def _used(pid: int) -> dict[str, float]:
    """Resident megabytes and open files of a process; empty if it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        files = len(os.listdir(f"/proc/{pid}/fd"))
        return {"megabytes": int(status.split("VmRSS:")[1].split()[0]) / 1024, "files": files}
    except (OSError, IndexError):
        return {}


def ray(trial: Trial) -> Outcome:
    """Kills an actor, or the learner, at a random moment of the training. It must reach its target, resumed where the
    learner was killed, and leave no process and no file."""
    name = ("actor", "learner")[trial.number % 2]
    mark, temporary = uuid.uuid4().hex, trial.folder / "tmp"
    temporary.mkdir()
    environment: dict[str, Any] = {MARK: mark, "RAY_TMPDIR": str(temporary), "TMPDIR": str(temporary)}
    began = time.perf_counter()
    process = start(flags({**RAY, "run_dir": "run"}), trial.folder, **environment)
    while process.poll() is None and _rows(trial.folder) < 1:
        time.sleep(0.1)
    time.sleep(trial.random.uniform(0, 3))
    victims = [process.pid] if name == "learner" else [pid for pid in _marked(mark) if ACTOR in _command(pid)]
    if victims and process.poll() is None:
        os.kill(trial.random.choice(victims), signal.SIGKILL)
    done = ended(process, trial.folder, began)
    if wrong := done.wrong_code(*((0,) if name == "actor" else (0, -signal.SIGKILL))):  # Ray says what it likes
        return Outcome(name, wrong, 1)
    if not victims:
        return Outcome(name, "no actor was found", 1)
    if wrong := _gone(mark):
        return Outcome(name, wrong, 1)
    if done.code:
        for lock in temporary.glob("ray-*/*.lock"):  # the next start removes what is abandoned for a minute
            os.utime(lock, (0, 0))
        resumed = run(["--resume", "run", "--no-progress-bar"], trial.folder, **environment)
        if wrong := resumed.wrong_code(0):
            return Outcome(name, f"resumed: {wrong}", 1)
    rows = _rows(trial.folder)
    target = -(-RAY["total_timesteps"] // (RAY["num_envs"] * RAY["num_steps"]))
    if rows != target:
        return Outcome(name, f"the log has {rows} rows instead of {target}", 1)
    left = [path.name for path in [*(trial.folder / "run").glob(".*.tmp"), *temporary.glob("ray*")]]
    return Outcome(name, _gone(mark) or (f"{left[0]} was left" if left else ""), 1)


def _rows(folder: Path) -> int:
    """Of the log."""
    log = folder / "run" / "progress.csv"
    return log.read_text().count("\n") - 1 if log.exists() else 0


def _gone(mark: str) -> str:
    """Empty if no process of a trial is left after a while; else one line. What is left is ended."""
    until = time.perf_counter() + SETTLED
    while (left := list(_marked(mark))) and time.perf_counter() < until:
        time.sleep(0.5)
    commands = [_command(pid) for pid in left]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    return f"{len(left)} processes were left: {commands[0][:100]}" if left else ""


def _marked(mark: str) -> Iterator[int]:
    """The processes whose environment has the trial's mark."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if f"{MARK}={mark}".encode() in (entry / "environ").read_bytes():
                    yield int(entry.name)
            except OSError:  # it has ended, or is somebody else's
                continue


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""
