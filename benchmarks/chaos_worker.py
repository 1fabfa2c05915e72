"""One process that tries changed files and command lines: `python -m benchmarks.chaos_worker PART SEED FIRST END BASE`.

Tells of each in a line of JSON on the standard output that it was started with. The scripts' command lines are called
in this process; what they print goes to a file. Nothing here is for users: `benchmarks.chaos_inputs` starts it.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.chaos_mutations import changed_command, changed_file
from benchmarks.chaos_trial import wrong_lines
from expire_span_rl import cli

SECONDS, MEGABYTES = 2.0, 300  # of computing, and of memory, that what is refused may take
INTERRUPTED = 20.0  # seconds after which what goes on is interrupted, as a user would
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
PLACES = {
    "os.remove": (0,), "os.rename": (0, 1), "os.mkdir": (0,), "os.rmdir": (0,), "os.symlink": (1,), "os.link": (1,),
    "os.chmod": (0,), "os.truncate": (0,), "shutil.rmtree": (0,),
}  # fmt: skip
"""Audit events and which of their arguments are paths that are changed."""
ADDRESS_SPACE = 8 << 30  # bytes: what asks for more is a MemoryError, not the end of the machine


class Watch:
    """What is changed outside of `folder`, and which addresses are called."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.seen: list[str] = []
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.folder is None:
            return
        if event == "open":
            path, mode, flags = arguments
            writes = flags & WRITES if isinstance(flags, int) else any(c in str(mode) for c in "wax+")
            places = [path] if writes else []
        elif event in PLACES:
            places = [arguments[i] for i in PLACES[event]]
        elif event == "socket.connect":
            self.seen.append("a connection")
            return
        else:
            return
        for place in places:
            if isinstance(place, (str, bytes)):
                whole = os.path.abspath(os.fsdecode(place))
                if not whole.startswith((f"{self.folder}/", "/dev/", "/proc/")) and whole != str(self.folder):
                    self.seen.append(whole)


def main() -> None:
    part, seed, first, end, base = sys.argv[1], *map(int, sys.argv[2:5]), Path(sys.argv[5])
    report = os.fdopen(os.dup(1), "w")
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    home, watch = Path.cwd(), Watch()
    for script in ("train_rl", "evaluate", "visualize"):
        importlib.import_module(script)
    _warm(base, home)
    for number in range(first, end):
        folder = home / f"trial-{number}"
        folder.mkdir()
        shutil.copytree(base, folder / "run")
        drawn = random.Random(f"{seed}-{number}")
        script, arguments, case = (changed_file if part == "files" else changed_command)(drawn, folder)
        told = tried(script, arguments, folder, watch, may_go_on=part == "commands")
        print(
            json.dumps({"number": number, "case": case, "command": [script, *(a[:200] for a in arguments)], **told}),
            file=report,
        )
        report.flush()
        shutil.rmtree(folder, ignore_errors=True)


def _warm(base: Path, home: Path) -> None:
    """Each script once, so that no trial has to import what they need."""
    folder = home / "warm"
    folder.mkdir(exist_ok=True)
    shutil.copytree(base, folder / "run", dirs_exist_ok=True)
    for script, arguments in {
        "train_rl": ["--resume", "run", "--total-timesteps", "80"],
        "evaluate": ["run", "--episodes", "2", "--num-envs", "2", "--json", "x.json", "--plot", "x.png"],
        "visualize": ["run", "--out", "x.html", "--png", "y.png"],
    }.items():
        told = tried(script, arguments, folder, None, may_go_on=True)
        if told["code"] or told["wrong"]:
            sys.exit(f"{script}: {told['wrong'] or told['code']}")


def tried(script: str, arguments: list[str], folder: Path, watch: Watch | None, may_go_on: bool) -> dict[str, Any]:
    """Calls a script's command line in `folder`: its exit code, seconds of computing, megabytes, and in one line what
    did not hold, empty if all did. may_go_on: what is taken may take as long as it likes."""
    os.chdir(folder)
    with open("../output.txt", "wb") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    Path("/proc/self/clear_refs").write_text("5")
    before, began = _status("VmRSS"), time.process_time()
    if watch is not None:
        watch.seen, watch.folder = [], folder
    sys.argv = [f"{script}.py", *arguments]
    code, error = _called(script)
    if watch is not None:
        watch.folder = None
    seconds, megabytes = time.process_time() - began, _status("VmHWM") - before
    text = Path("../output.txt").read_text(errors="backslashreplace")
    wrong = error or wrong_lines(text)
    refused = code in (1, 2)
    if refused and not (text.strip().splitlines() or [""])[-1].startswith("error: "):
        wrong = wrong or "refused without a word"
    if code not in (0, 1, 2, 130) or (code == 130 and not may_go_on):
        wrong = wrong or f"exit code {code} after {seconds:.1f} s"
    if refused and seconds > SECONDS:
        wrong = wrong or f"{seconds:.1f} s until it was refused: {text.strip()[-100:]}"
    if (refused or not may_go_on) and megabytes > MEGABYTES:
        wrong = wrong or f"{megabytes:.0f} MB: {text.strip()[-100:]}"
    if watch is not None and watch.seen:
        wrong = wrong or f"changed {watch.seen[0]}"
    return {"code": code, "seconds": round(seconds, 2), "megabytes": round(megabytes), "wrong": wrong}


def _called(script: str) -> tuple[int, str]:
    """(exit code, the error that no exit code was made of)."""

    def interrupt(signum: int, frame: Any) -> None:
        signal.raise_signal(signal.SIGINT)

    signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, INTERRUPTED, 10)
    try:
        cli.run(sys.modules[script].main)
    except SystemExit as stop:
        return (stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1), ""
    except BaseException as error:  # noqa: BLE001, a user would see a traceback
        return -1, f"traceback: {type(error).__name__}: {str(error)[:200]}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.stdout.flush()
        sys.stderr.flush()
    return 0, ""


def _status(name: str) -> float:
    return int(Path("/proc/self/status").read_text().split(f"{name}:")[1].split()[0]) / 1024


if __name__ == "__main__":
    main()
