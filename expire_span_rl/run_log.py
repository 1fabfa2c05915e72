"""run.log: the messages of a training and how it was started, for readers who do not have the terminal."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
import time
import traceback
from collections.abc import Iterable
from pathlib import Path

import torch

from expire_span_rl import __file__ as package_file
from expire_span_rl import __version__
from expire_span_rl.checks import shown

_PACKAGES = ("torch", "numpy", "gymnasium", "minigrid", "stable-baselines3", "ray")
_LONGEST = 100_000  # characters of one entry: a traceback may quote a whole observation


class RunLog:
    """Appends to a run's run.log. A log that cannot be written stops no training, since stderr has its messages too."""

    def __init__(self, path: Path):
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        try:
            self._file = os.fdopen(os.open(path, flags, 0o666), "a", encoding="utf-8", errors="backslashreplace")
        except OSError:  # a link, for instance, or a directory
            self._file = None

    def begin(self, threads: int, device: torch.device, lines: Iterable[str] = ()) -> None:
        """Writes how the training was started, and its messages since then."""
        self.write("\n".join(["started", *(f"  {line}" for line in provenance(threads, device))]))
        for line in lines:
            self.write(line)

    def write(self, text: str) -> None:
        """Writes an entry with the time."""
        if self._file is None:
            return
        try:
            self._file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S%z')} {text[:_LONGEST]}\n")
            self._file.flush()
        except OSError:
            self._file = None

    def failed(self, error: BaseException) -> None:
        """Writes the error that ended the training, with its traceback."""
        self.write("ended by\n" + "".join(traceback.format_exception(error)).rstrip())

    def close(self) -> None:
        """Finishes the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


def provenance(threads: int, device: torch.device) -> list[str]:
    """The command, versions, device and state of the sources, a line each."""
    gpu = f", {torch.cuda.get_device_name(device)}" if device.type == "cuda" else ""
    machine = f"{platform.machine()}, {os.cpu_count()} CPUs, {platform.platform(terse=True)}"
    versions = [f"{name} {version}" for name in _PACKAGES if (version := _version(name))]
    lines = [
        f"command: {shlex.join([Path(sys.executable).name, *sys.argv])[:2000]}",
        f"folder: {os.getcwd()}",
        f"process: {os.getpid()} on {platform.node()}",
        f"versions: expire-span-rl {__version__}, Python {platform.python_version()}, {', '.join(versions)}",
        f"device: {device}{gpu}, {threads} PyTorch thread(s); {machine}",
    ]
    folders = {Path(package_file).resolve().parents[1], Path.cwd().resolve()}
    states = {state for folder in sorted(folders) if (state := git_state(folder))}
    return [*lines, *(f"git: {state}" for state in sorted(states))]


def git_state(folder: Path) -> str:
    """The commit of the repository that `folder` is in, and whether files differ from it; empty where there is none."""
    commands = (["rev-parse", "--show-toplevel", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
    answers = []
    for command in commands:
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *command], capture_output=True, text=True, timeout=5, check=True
            )
        except (OSError, ValueError, subprocess.SubprocessError):
            return ""
        answers.append(done.stdout.split("\n"))
    (top, commit, *_), changes = answers
    changed = len([line for line in changes if line])
    return f"{shown(top)} at {commit}" + (f", {changed} changed files" if changed else "")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
