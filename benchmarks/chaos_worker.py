"""A process that tries changed files and command lines: `python -m benchmarks.chaos_worker PART SEED FIRST END BASE`.

It reports each trial in a line of JSON on the standard output that it was started with. The scripts' command lines are
called in this process, and what they print goes to a file. `benchmarks.chaos_inputs` starts it; users do not.
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

from benchmarks.chaos_mutations import change_command, change_file
from benchmarks.chaos_trial import line_problem
from expire_span_rl import cli

MAX_SECONDS = 2.0  # of computing, within which an input must be refused
MAX_MEGABYTES = 300  # of memory that an input which is refused may take
INTERRUPT_SECONDS = 20.0  # after which a running script is interrupted, as a user would do it
WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT
PLACES = {
    "os.remove": (0,), "os.rename": (0, 1), "os.mkdir": (0,), "os.rmdir": (0,), "os.symlink": (1,), "os.link": (1,),
    "os.chmod": (0,), "os.truncate": (0,), "shutil.rmtree": (0,),
}  # fmt: skip
"""Audit events, and which of their arguments are paths that are changed."""
ADDRESS_SPACE = 8 << 30  # bytes; a request for more is a MemoryError here, and does not stop the machine


class Watch:
    """Notes files that are changed outside of `folder`, and network connections."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.violations: list[str] = []
        sys.addaudithook(self._audit)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.folder is None:
            return
        if event == "open":
            path, mode, flags = arguments
            writes = flags & WRITE_FLAGS if isinstance(flags, int) else any(c in str(mode) for c in "wax+")
            places = [path] if writes else []
        elif event in PLACES:
            places = [arguments[i] for i in PLACES[event]]
        elif event == "socket.connect":
            self.violations.append("a connection")
            return
        else:
            return
        for place in places:
            if isinstance(place, (str, bytes)):
                path = os.path.abspath(os.fsdecode(place))
                if not path.startswith((f"{self.folder}/", "/dev/", "/proc/")) and path != str(self.folder):
                    self.violations.append(path)


def main() -> None:
    part = sys.argv[1]
    seed, first_number, end = map(int, sys.argv[2:5])
    base = Path(sys.argv[5])
    report = os.fdopen(os.dup(1), "w")
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    home = Path.cwd()
    watch = Watch()
    for script in ("train_rl", "evaluate", "visualize"):
        importlib.import_module(script)
    _warm_up(base, home)
    for number in range(first_number, end):
        folder = home / f"trial-{number}"
        folder.mkdir()
        shutil.copytree(base, folder / "run")
        rng = random.Random(f"{seed}-{number}")
        script, arguments, case = (change_file if part == "files" else change_command)(rng, folder)
        result = try_script(script, arguments, folder, watch, may_run_long=part == "commands")
        command = [script, *(argument[:200] for argument in arguments)]
        print(json.dumps({"number": number, "case": case, "command": command, **result}), file=report)
        report.flush()
        shutil.rmtree(folder, ignore_errors=True)


def _warm_up(base: Path, home: Path) -> None:
    """Calls each script once, so that no trial has to import what they need."""
    folder = home / "warm"
    folder.mkdir(exist_ok=True)
    shutil.copytree(base, folder / "run", dirs_exist_ok=True)
    for script, arguments in {
        "train_rl": ["--resume", "run", "--total-timesteps", "80"],
        "evaluate": ["run", "--episodes", "2", "--num-envs", "2", "--json", "x.json", "--plot", "x.png"],
        "visualize": ["run", "--out", "x.html", "--png", "y.png"],
    }.items():
        result = try_script(script, arguments, folder, None, may_run_long=True)
        if result["code"] or result["wrong"]:
            sys.exit(f"{script}: {result['wrong'] or result['code']}")


def try_script(
    script: str, arguments: list[str], folder: Path, watch: Watch | None, may_run_long: bool
) -> dict[str, Any]:
    """Calls a script's command line in `folder`.

    Gives its exit `code`, `seconds` of computing, `megabytes`, and in `wrong` one line about what failed, empty if
    nothing did. may_run_long: an input that is accepted may take any time.
    """
    os.chdir(folder)
    with open("../output.txt", "wb") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    Path("/proc/self/clear_refs").write_text("5")
    megabytes_before = _status("VmRSS")
    start_time = time.process_time()
    if watch is not None:
        watch.violations = []
        watch.folder = folder
    sys.argv = [f"{script}.py", *arguments]
    code, error = _call(script)
    if watch is not None:
        watch.folder = None
    seconds = time.process_time() - start_time
    megabytes = _status("VmHWM") - megabytes_before
    text = Path("../output.txt").read_text(errors="backslashreplace")
    problem = error or line_problem(text)
    is_refused = code in (1, 2)
    if is_refused and not (text.strip().splitlines() or [""])[-1].startswith("error: "):
        problem = problem or "refused without a message"
    if code not in (0, 1, 2, 130) or (code == 130 and not may_run_long):
        problem = problem or f"exit code {code} after {seconds:.1f} s"
    if is_refused and seconds > MAX_SECONDS:
        problem = problem or f"{seconds:.1f} s until it was refused: {text.strip()[-100:]}"
    if (is_refused or not may_run_long) and megabytes > MAX_MEGABYTES:
        problem = problem or f"{megabytes:.0f} MB: {text.strip()[-100:]}"
    if watch is not None and watch.violations:
        problem = problem or f"changed {watch.violations[0]}"
    return {"code": code, "seconds": round(seconds, 2), "megabytes": round(megabytes), "wrong": problem}


def _call(script: str) -> tuple[int, str]:
    """(exit code, an error that the command line did not turn into an exit code)."""

    def interrupt(signum: int, frame: Any) -> None:
        signal.raise_signal(signal.SIGINT)

    signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, INTERRUPT_SECONDS, 10)
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
