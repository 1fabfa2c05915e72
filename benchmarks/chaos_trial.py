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
LONGEST_LINE = 300  # characters
NO_END = 300.0  # seconds after which a process is killed and has failed


@dataclass(frozen=True)
class Trial:
    """What is to be tried."""

    number: int
    trials: int
    folder: Path
    """An empty folder of its own."""
    shared: Path
    """A folder for what several trials need; it lasts as long as the benchmark."""
    random: random.Random
    soak_minutes: float
    out: Path
    """The folder of the results."""
    wanted: int
    """How many trials the part has in all."""


@dataclass(frozen=True)
class Outcome:
    """What became of a trial. why_not: one line; empty if all held."""

    case: str
    why_not: str
    trials: int


@dataclass(frozen=True)
class Ended:
    """A process that has ended: its exit code (negative: by a signal), what it printed, and how long it ran."""

    code: int
    text: str
    seconds: float

    def wrong(self, *codes: int) -> str:
        """Empty if it ended with one of these codes and said what it said in lines; else one line."""
        return self.wrong_code(*codes) or wrong_lines(self.text)

    def wrong_code(self, *codes: int) -> str:
        """Empty if it ended with one of these codes; else one line."""
        if self.code in codes:
            return ""
        last = next((line for line in reversed(self.text.splitlines()) if line.strip()), "nothing")
        return f"exit code {self.code} instead of {' or '.join(map(str, codes))}: {last[:200]}"


def wrong_lines(text: str) -> str:
    """Empty if the text is lines that a terminal takes, and no traceback; else one line."""
    if "Traceback (most recent call last)" in text:
        last = next((line for line in reversed(text.splitlines()) if line.strip()), "")
        return f"traceback: {last[:200]}"
    for line in text.splitlines():
        if len(line) > LONGEST_LINE:
            return f"a line of {len(line):,} characters: {line[:80]}"
        if not all(c.isprintable() or c == "\t" for c in line):
            return f"a line that a terminal would act on: {line[:80]!r}"
    return ""


def start(
    arguments: Sequence[str],
    folder: Path,
    script: str = "train_rl.py",
    largest_file: int | None = None,
    **environment: str,
) -> subprocess.Popen[bytes]:
    """A script in a process group of its own. What it prints goes to `output.txt` in `folder`, where it runs.
    largest_file: bytes that a file of its may have, None for any."""
    with (folder / "output.txt").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / script), *arguments], cwd=folder, stdout=output, stderr=output,
            stdin=subprocess.DEVNULL, start_new_session=True, env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        )  # fmt: skip
    if largest_file is not None:
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (largest_file, largest_file))
    return process


def ended(process: subprocess.Popen[bytes], folder: Path, began: float, limit: float = NO_END) -> Ended:
    """Waits for a process of `start`. One that does not end within `limit` seconds is killed."""
    try:
        process.wait(limit)
    except subprocess.TimeoutExpired:
        kill(process)
    text = (folder / "output.txt").read_text(errors="backslashreplace")
    return Ended(process.returncode, text, time.perf_counter() - began)


def kill(process: subprocess.Popen[bytes], signum: int = signal.SIGKILL) -> None:
    """Sends a signal to a process of `start`; SIGKILL to all of its group."""
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
    limit: float = NO_END,
    largest_file: int | None = None,
    **environment: str,
) -> Ended:
    """Runs a script to its end."""
    began = time.perf_counter()
    return ended(start(arguments, folder, script, largest_file, **environment), folder, began, limit)


def flags(settings: Mapping[str, object]) -> list[str]:
    """Settings as a command line gives them; True is a flag without a value."""
    words: list[str] = []
    for name, value in settings.items():
        words += [f"--{name.replace('_', '-')}"] if value is True else [f"--{name.replace('_', '-')}", str(value)]
    return words
