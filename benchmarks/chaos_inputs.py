"""Files and command lines, changed at random, for the three scripts. Each must be accepted, or refused at once in one
line.

A worker process tries a batch of them one after the other (`benchmarks.chaos_worker`) and reports each. This saves
importing the scripts every time. A worker that dies or hangs is started again, behind the trial at which it died.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.chaos_trial import ROOT, Outcome, Trial, flags, run
from expire_span_rl.files import write_atomically

BATCH = 100  # trials of a row
SILENCE_LIMIT = 90.0  # seconds without a report, after which the worker counts as hanging
BASE = {
    "env": "Corridor-v0", "env_kwargs": '{"max_length": 5}', "num_envs": 2, "num_steps": 8, "num_minibatches": 2,
    "width": 8, "num_heads": 2, "num_positions": 4, "torch_threads": 1, "no_progress_bar": True, "run_dir": "run",
}  # fmt: skip
"""The training whose files are changed."""

_lock = threading.Lock()


def try_files(trial: Trial) -> Outcome:
    """Policies, checkpoints, config.json and progress.csv."""
    return _try_batch("files", trial)


def try_commands(trial: Trial) -> Outcome:
    """Command lines of train_rl.py, evaluate.py and visualize.py."""
    return _try_batch("commands", trial)


def _base(shared: Path) -> Path:
    """The run directory whose files are changed. It is trained once. Raises RuntimeError if that fails."""
    folder = shared / "base"
    with _lock:
        if not folder.exists():
            temporary = shared / "base.making"
            temporary.mkdir(exist_ok=True)
            result = run(flags({**BASE, "total_timesteps": 64, "checkpoint_every": 16}), temporary)
            if problem := result.problem(0):
                raise RuntimeError(f"the training whose files are changed: {problem}")
            os.replace(temporary / "run", folder)
    return folder


def _try_batch(part: str, trial: Trial) -> Outcome:
    """Tries a batch. The failures are written to `violations-PART-NUMBER.json` in the folder of the results."""
    base = _base(trial.shared)
    seed = trial.random.getrandbits(32)
    count = 0  # trials that are done
    failures = []
    while count < trial.trials:
        first_number = count
        worker = _start_worker(trial, [part, str(seed), str(count), str(trial.trials), str(base)])
        for line in _lines(worker):
            message = json.loads(line)
            count = message["number"] + 1
            failures += [message] if message["wrong"] else []
        worker.kill()
        worker.wait()
        if count < trial.trials:
            errors = (trial.folder / "errors.txt").read_text(errors="replace").strip().splitlines()[-1:] or [""]
            if count == first_number == 0 and worker.returncode == 1:
                raise RuntimeError(f"the worker: {errors[0]}")
            problem = f"its process ended or stalled ({worker.returncode}): {errors[0][:200]}"
            failures.append({"number": count, "wrong": problem})
            count += 1
    report = trial.out / f"violations-{part}-{trial.number}.json"
    if failures:
        write_atomically(report, (json.dumps(failures, indent=1) + "\n").encode())
    else:
        report.unlink(missing_ok=True)
    why_not = ""
    if failures:
        why_not = f"{len(failures)} of {count}: {failures[0]['wrong']} ({failures[0].get('case', '')})"
    first_number = trial.number * BATCH
    return Outcome(f"{part} {first_number} to {first_number + count - 1}", why_not, count)


def _start_worker(trial: Trial, arguments: list[str]) -> subprocess.Popen[bytes]:
    """A worker in the trial's folder. What it writes to stderr goes to `errors.txt` there."""
    environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "MPLCONFIGDIR": str(trial.folder)}
    with (trial.folder / "errors.txt").open("wb") as errors:
        return subprocess.Popen(
            [sys.executable, "-m", "benchmarks.chaos_worker", *arguments],
            stdout=subprocess.PIPE,
            stderr=errors,
            stdin=subprocess.DEVNULL,
            cwd=trial.folder,
            env={**os.environ, **environment},
        )


def _lines(worker: subprocess.Popen[bytes]) -> Iterator[bytes]:
    """The worker's lines, until it ends or is silent for SILENCE_LIMIT seconds."""
    assert worker.stdout is not None
    pending = b""
    last_time = time.perf_counter()
    while time.perf_counter() - last_time < SILENCE_LIMIT:
        if not select.select([worker.stdout], [], [], 1)[0]:
            continue
        data = os.read(worker.stdout.fileno(), 65536)
        if not data:
            return
        last_time = time.perf_counter()
        lines = (pending + data).split(b"\n")
        pending = lines.pop()
        yield from lines
