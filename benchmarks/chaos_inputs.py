"""Files and command lines, changed at random, for the three scripts: taken or refused in one line, at once, and nothing
else.

A process of its own tries a batch of them one after the other (`benchmarks.chaos_worker`), which saves importing the
scripts every time, and tells of each. One that dies or does not end is started again behind the one that it died of.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import threading
import time
from pathlib import Path

from benchmarks.chaos_trial import ROOT, Outcome, Trial, flags, run
from expire_span_rl.files import write_atomically

BATCH = 100  # of a row
STALLED = 90.0  # seconds without a word from the worker
BASE = {
    "env": "Corridor-v0", "env_kwargs": '{"max_length": 5}', "num_envs": 2, "num_steps": 8, "num_minibatches": 2, "width": 8,
    "num_heads": 2, "num_positions": 4, "torch_threads": 1, "no_progress_bar": True, "run_dir": "run",
}  # fmt: skip
"""The training whose files are changed."""

_lock = threading.Lock()


def files(trial: Trial) -> Outcome:
    """Policies, checkpoints, config.json and progress.csv."""
    return _tried("files", trial)


def commands(trial: Trial) -> Outcome:
    """Command lines of train_rl.py, evaluate.py and visualize.py."""
    return _tried("commands", trial)


def _base(shared: Path) -> Path:
    """The run directory whose files are changed, trained once. Raises RuntimeError if that fails."""
    folder = shared / "base"
    with _lock:
        if not folder.exists():
            made = shared / "base.making"
            made.mkdir(exist_ok=True)
            done = run(flags({**BASE, "total_timesteps": 64, "checkpoint_every": 16}), made)
            if wrong := done.wrong(0):
                raise RuntimeError(f"the training whose files are changed: {wrong}")
            os.replace(made / "run", folder)
    return folder


def _tried(part: str, trial: Trial) -> Outcome:
    """A batch. What did not hold is written to `violations-PART-NUMBER.json` in the folder of results."""
    base = _base(trial.shared)
    seed, done, wrong = trial.random.getrandbits(32), 0, []
    while done < trial.trials:
        arguments = [part, str(seed), str(done), str(trial.trials), str(base)]
        with (trial.folder / "errors.txt").open("wb") as errors:
            worker = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.chaos_worker", *arguments], stdout=subprocess.PIPE, stderr=errors,
                cwd=trial.folder, stdin=subprocess.DEVNULL,
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "MPLCONFIGDIR": str(trial.folder)},
            )  # fmt: skip
        began = done
        for line in _lines(worker):
            told = json.loads(line)
            done = told["number"] + 1
            wrong += [told] if told["wrong"] else []
        worker.kill()
        worker.wait()
        if done < trial.trials:
            last = (trial.folder / "errors.txt").read_text(errors="replace").strip().splitlines()[-1:] or [""]
            if done == began == 0 and worker.returncode == 1:
                raise RuntimeError(f"the worker: {last[0]}")
            wrong.append(
                {"number": done, "wrong": f"its process ended or stalled ({worker.returncode}): {last[0][:200]}"}
            )
            done += 1
    report = trial.out / f"violations-{part}-{trial.number}.json"
    if wrong:
        write_atomically(report, (json.dumps(wrong, indent=1) + "\n").encode())
    else:
        report.unlink(missing_ok=True)
    first = f"{len(wrong)} of {done}: {wrong[0]['wrong']} ({wrong[0].get('case', '')})" if wrong else ""
    return Outcome(f"{part} {trial.number * BATCH} to {trial.number * BATCH + done - 1}", first, done)


def _lines(worker: subprocess.Popen[bytes]):
    """The worker's lines, until it ends or says nothing for too long."""
    assert worker.stdout is not None
    pending, heard = b"", time.perf_counter()
    while time.perf_counter() - heard < STALLED:
        if not select.select([worker.stdout], [], [], 1)[0]:
            continue
        data = os.read(worker.stdout.fileno(), 65536)
        if not data:
            return
        heard = time.perf_counter()
        *whole, pending = (pending + data).split(b"\n")
        yield from whole
