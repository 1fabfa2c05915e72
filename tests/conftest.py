"""Fixtures of the tests of the scripts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from script_cases import FORGETFUL, ROOT, SHORT, SMALL

from expire_span_rl.interrupts import kept

# Threads of several processes wait for each other on busy cores. The tests' own processes inherit this.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# In the background, or under nohup, these may be ignored, which the processes that tests start would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def signals_as_before() -> Iterator[None]:
    """Every test leaves the handlers of signals as they were: a cluster of Ray's in this process installs its own."""
    with kept():
        yield


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, which is the working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory) -> Path:
    """A short run, trained by the command line in a process of its own. It forgets and keeps a policy, as long ones
    do."""
    folder = tmp_path_factory.mktemp("run") / "x"
    command = [
        sys.executable,
        str(ROOT / "train_rl.py"),
        *SMALL,
        *SHORT,
        *FORGETFUL,
        "--total-timesteps",
        "1000",
        "--run-dir",
        str(folder),
    ]
    done = subprocess.run(
        [*command, "--checkpoint-every", "512"], capture_output=True, text=True, check=False, cwd=folder.parent
    )
    assert done.returncode == 0, done.stderr
    assert "rounded up from 1,000 to 1,024" in done.stderr
    return folder
