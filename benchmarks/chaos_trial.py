"""What the parts of `benchmarks.chaos` share: a trial, its outcome, and trainings in processes of their own."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MAX_LINE = 300  # characters
TIME_LIMIT = 300.0  # seconds, after which a process is killed and has failed


@dataclass(frozen=True)
class Trial:
    """What is to be tried."""

    number: int
    trials: int
    folder: Path
    """An empty folder for this trial alone."""
    shared: Path
    """A folder for what several trials need. It lasts as long as the benchmark."""
    random: random.Random
    soak_minutes: float
    out: Path
    """The folder of the results."""
    total: int
    """How many trials the part has in all."""


@dataclass(frozen=True)
class Outcome:
    """What became of a trial. why_not: in one line what failed; empty if nothing did."""

    case: str
    why_not: str
    trials: int


@dataclass(frozen=True)
class ProcessResult:
    """A process that has ended: its exit code (negative for a signal), what it printed, and how long it ran."""

    code: int
    text: str
    seconds: float

    def problem(self, *codes: int) -> str:
        """Empty if it ended with one of these codes and printed proper lines; else one line."""
        return self.code_problem(*codes) or line_problem(self.text)

    def code_problem(self, *codes: int) -> str:
        """Empty if it ended with one of these codes; else one line."""
        if self.code in codes:
            return ""
        last_line = next((line for line in reversed(self.text.splitlines()) if line.strip()), "nothing")
        return f"exit code {self.code} instead of {' or '.join(map(str, codes))}: {last_line[:200]}"


def line_problem(text: str) -> str:
    """Empty if the text is lines that a terminal can show, without a traceback; else one line."""
    if "Traceback (most recent call last)" in text:
        last_line = next((line for line in reversed(text.splitlines()) if line.strip()), "")
        return f"traceback: {last_line[:200]}"
    for line in text.splitlines():
        if len(line) > MAX_LINE:
            return f"a line of {len(line):,} characters: {line[:80]}"
        if not all(c.isprintable() or c == "\t" for c in line):
            return f"a line that a terminal would act on: {line[:80]!r}"
    return ""


def start(
    arguments: Sequence[str],
    folder: Path,
    script: str = "train_rl.py",
    max_file_bytes: int | None = None,
    **environment: str,
) -> subprocess.Popen[bytes]:
    """Starts a script in a process group of its own. It runs in `folder`, where `output.txt` gets what it prints.
    max_file_bytes: the largest file that it may write, None for any."""
    with (folder / "output.txt").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / script), *arguments],
            cwd=folder,
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        )
    if max_file_bytes is not None:
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (max_file_bytes, max_file_bytes))
    return process


def wait_for(
    process: subprocess.Popen[bytes], folder: Path, start_time: float, limit: float = TIME_LIMIT
) -> ProcessResult:
    """Waits for a process of `start`. One that does not end within `limit` seconds is killed."""
    try:
        process.wait(limit)
    except subprocess.TimeoutExpired:
        kill(process)
    text = (folder / "output.txt").read_text(errors="backslashreplace")
    return ProcessResult(process.returncode, text, time.perf_counter() - start_time)


def kill(process: subprocess.Popen[bytes], signum: int = signal.SIGKILL) -> None:
    """Sends a signal to a process of `start`. SIGKILL goes to its whole group."""
    if process.poll() is None:
        if signum == signal.SIGKILL:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        else:
            process.send_signal(signum)


def run(
    arguments: Sequence[str],
    folder: Path,
    script: str = "train_rl.py",
    limit: float = TIME_LIMIT,
    max_file_bytes: int | None = None,
    **environment: str,
) -> ProcessResult:
    """Runs a script to its end."""
    start_time = time.perf_counter()
    process = start(arguments, folder, script, max_file_bytes, **environment)
    return wait_for(process, folder, start_time, limit)


def flags(settings: Mapping[str, object]) -> list[str]:
    """Settings as the words of a command line. True is a flag without a value."""
    words: list[str] = []
    for name, value in settings.items():
        words += [f"--{name.replace('_', '-')}"] if value is True else [f"--{name.replace('_', '-')}", str(value)]
    return words
