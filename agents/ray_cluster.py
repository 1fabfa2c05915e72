"""Ray itself: the version check, joining a cluster or starting one, and calls of functions on it. This file and
`agents.ray_actors` are the only ones that import ray.

Importing this file raises ValueError, one line, if Ray is not installed or too old.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from expire_span_rl import checks
from expire_span_rl.interrupts import blocked, kept, unblock
from expire_span_rl.locks import FileLock, remove_abandoned

OLDEST_RAY = "2.60"
"""The version in the extra `ray` of pyproject.toml."""
LOCK_NAME = "expire-span.lock"
"""A locked file in the directory of a Ray that we started. A directory whose lock nobody holds is removed."""
ANSWER_WITHIN = 30.0
"""Seconds for a cluster to answer."""
FINISH_WITHIN = 60.0
"""Seconds for trainings to end with a checkpoint."""


def _release(version: str) -> tuple[int, int]:
    """The first two numbers of a version."""
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


try:
    _installed = importlib.metadata.version("ray")
except importlib.metadata.PackageNotFoundError:
    _installed = "no ray"
if _installed == "no ray" or _release(_installed) < _release(OLDEST_RAY):
    raise ValueError(
        f"--num-actors and --ray-address: expected ray {OLDEST_RAY} or newer (pip install 'expire-span-rl[ray]'), got "
        f"{_installed}"
    )
# Ray reads these when it is imported.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_worker_niceness", "0")  # by default every other process goes before the actors
import ray
import ray.exceptions


class RayCluster:
    """A cluster that this process has joined, or one that it has started on this machine."""

    def __init__(self, address: str):
        """address: of a cluster to join. "": start one. Raises ValueError, one line, if the cluster does not answer.

        The files of a cluster that is started lie in a temporary directory, since Ray's sockets need a short path. The
        directory is locked. Directories of killed processes are removed.
        """
        self._directory: Path | None = None
        self._lock: FileLock | None = None
        if address:
            self._join(address)
        else:
            self._start()

    def _join(self, address: str) -> None:
        _check_answer(address)
        with kept():
            ray.init(address=address, **_init_arguments())

    def _start(self) -> None:
        remove_abandoned(Path(tempfile.gettempdir()), "ray-*", LOCK_NAME)
        self._directory = Path(tempfile.mkdtemp(prefix="ray-"))
        self._lock = FileLock.take(self._directory / LOCK_NAME)
        # Ray's own handler of SIGTERM ends the process with a crash report. Ray's processes must outlive a signal to
        # all processes of a job, since Ray ends a driver whose raylet is gone at once, before it has saved anything.
        with kept(), blocked():
            ray.init(include_dashboard=False, _temp_dir=str(self._directory), **_init_arguments())

    def results(self, function: Callable[[Any], Any], work: Sequence[Any]) -> Iterator[Any]:
        """Calls `function` for each item of `work`, each call on a CPU of its own, as many at a time as are free in the
        cluster. Yields the results in the order in which they end.

        The calls run in the current folder, which all machines must share. A call whose machine is lost is made again.
        Raises what `function` raised, ValueError where a machine does not have the folder, and RuntimeError for a call
        that was ended more often than Ray repeats it. Calls that still run then are interrupted, as by Ctrl-C.
        """
        remote = ray.remote(num_cpus=1)(_call_in)
        running = [remote.remote(str(Path.cwd()), function, item) for item in work]
        try:
            while running:
                ended, running = ray.wait(running)
                yield _result(ended[0])
        finally:
            for call in running:
                ray.cancel(call)
            if running:
                ray.wait(running, num_returns=len(running), timeout=FINISH_WITHIN)

    def close(self, log_dir: Path | None) -> None:
        """Ends all actors, and Ray if this process has started it. Its logs are then copied to `log_dir`."""
        _kill_at_shutdown()
        ray.shutdown()  # this also ends our actors in a cluster that we have joined
        if self._directory is not None:
            if log_dir is not None and log_dir.is_dir():
                for logs in self._directory.glob("session_2*/logs"):
                    shutil.copytree(logs, log_dir / "ray", dirs_exist_ok=True, ignore_dangling_symlinks=True)
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None
        if self._lock is not None:
            self._lock.release()


def _call_in(folder: str, function: Callable[[Any], Any], item: Any) -> Any:
    """Runs on a machine of the cluster. Raises as `RayCluster.results`."""
    if not Path(folder).is_dir():
        raise ValueError(
            f"--ray-address: expected the folder {folder} on every machine of the cluster, "
            f"{os.uname().nodename} has none"
        )
    unblock()  # as in an actor
    os.chdir(folder)
    return function(item)


def _result(call: Any) -> Any:
    """The result of a call that has ended. Raises as `RayCluster.results`."""
    try:
        return ray.get(call)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayError as error:
        reason = (str(error).strip().splitlines() or ["no message"])[0][:300]
        raise RuntimeError(f"a training on the cluster was ended from outside: {reason}") from None


def _init_arguments() -> dict[str, Any]:
    """Arguments of `ray.init` for every cluster: no output, and our package on the actors' path."""
    root = str(Path(checks.__file__).resolve().parents[1])  # the checkout, or the folder that holds the package
    path = os.pathsep.join(filter(None, (root, os.getenv("PYTHONPATH"))))
    return {
        "log_to_driver": False,
        "logging_level": "ERROR",
        "runtime_env": {"env_vars": {"PYTHONPATH": path}},
    }


def _check_answer(address: str) -> None:
    """Raises ValueError, one line, if no cluster answers at `address`. `ray.init` has no time limit, so that a process
    with a time limit tries it."""
    code = f"import ray; ray.init(address={address!r}, log_to_driver=False, logging_level='ERROR')"
    try:
        process = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=ANSWER_WITHIN, check=False
        )
    except subprocess.TimeoutExpired:
        raise ValueError(
            f"--ray-address: expected a Ray cluster at {address}, got no answer within {ANSWER_WITHIN:.0f} seconds"
        ) from None
    if process.returncode:
        message = (process.stderr.strip().splitlines() or ["no message"])[-1][:300]
        raise ValueError(f"--ray-address: expected a Ray cluster at {address}, got {message}")


def _kill_at_shutdown() -> None:
    """Lets `ray.shutdown` kill the processes of our own Ray, and those that they have started. They do not get the
    SIGTERM that it would send first, and it would wait some seconds for each."""
    with contextlib.suppress(Exception):  # these are Ray's internals, which another version may not have
        node: Any = importlib.import_module("ray._private.worker")._global_node
        node.kill_all_processes = functools.partial(_kill_tree, node, node.kill_all_processes)


def _kill_tree(node: Any, kill: Callable[..., Any], **_: Any) -> None:
    """Kills the processes of a Ray's node by `kill`, the node's own method, and then all that they have started."""
    psutil: Any = importlib.import_module("psutil")  # it is a part of Ray
    started: list[Any] = []
    for information in (item for items in node.all_processes.values() for item in items):
        with contextlib.suppress(psutil.Error):
            started += psutil.Process(information.process.pid).children(recursive=True)
    kill(check_alive=False, allow_graceful=False)
    for process in started:
        with contextlib.suppress(psutil.Error):
            process.kill()
