"""Where benchmarks train: in worker processes of this machine, or on a Ray cluster. Worker processes leave the
terminal's interrupt to the benchmark, and end with it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from expire_span_rl import cli


@dataclass(frozen=True)
class WorkersConfig:
    """Of benchmarks whose trainings may run on a Ray cluster. Their configs also have `jobs`."""

    ray_address: str = ""
    """Ray cluster that trains instead of this machine: host:port, or auto. Each training takes one CPU, as many at a
    time as are free, and --jobs does not count. All machines must share this folder."""


def in_processes(function: Callable[[Any], Any], work: Sequence[Any], jobs: int) -> Iterator[Any]:
    """Calls `function` for each item of `work` in a process of its own, `jobs` at a time. Yields the results in the
    order in which they end.

    Raises what `function` raised, KeyboardInterrupt where it was interrupted, and RuntimeError for a process that was
    killed.
    """
    context = multiprocessing.get_context("spawn")
    waiting = deque(work)
    running: dict[Any, BaseProcess] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                result, sender = context.Pipe(duplex=False)
                running[result] = context.Process(target=_work, args=(function, waiting.popleft(), sender, os.getpid()))
                running[result].start()
                sender.close()  # only the worker has it then, so that the pipe ends with the worker
            for result in wait(list(running)):
                yield _receive(result, running.pop(result))
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.join()


def on_ray(function: Callable[[Any], Any], work: Sequence[Any], address: str) -> Iterator[Any]:
    """As `in_processes`, on the free CPUs of the Ray cluster at `address` (host:port, or auto). Raises as
    `RayCluster.results`, and ValueError, one line, if Ray is not installed or no cluster answers."""
    from expire_span_rl.agents.ray_cluster import RayCluster  # Ray need not be installed

    cluster = RayCluster(address)
    try:
        yield from cluster.results(function, work)
    finally:
        cluster.close(None)


def results_of(
    function: Callable[[Any], Any], work: Sequence[Any], jobs: int, ray_address: str, *, may_stay: bool = False
) -> Iterator[Any]:
    """The results of `function` for each item of `work`, in the order in which they end: on the Ray cluster if there is
    an address, else in processes of this machine, `jobs` at a time. may_stay: one job at a time needs no other process
    than this one."""
    if ray_address:
        return on_ray(function, work, ray_address)
    return map(function, work) if may_stay and jobs == 1 else in_processes(function, work, jobs)


def check_no_actors(ray_address: str, training_flags: Sequence[str]) -> None:
    """Raises UsageError, one line, for trainings on a cluster that would start actors of their own."""
    if ray_address and (cli.value_of("num-actors", training_flags) or "0") != "0":
        raise cli.UsageError("--num-actors: expected 0 with --ray-address, where each training has one CPU")


def _receive(result: Any, process: BaseProcess) -> Any:
    """The result of a worker. Raises as `in_processes` does."""
    try:
        value = result.recv()
    except EOFError:
        process.join()
        if process.exitcode == 130:
            raise KeyboardInterrupt from None
        raise RuntimeError(
            f"a training's process was ended from outside (exit code {process.exitcode}, -9 often for want of memory)"
        ) from None
    process.join()
    if isinstance(value, Exception):
        raise value
    return value


def _work(function: Callable[[Any], Any], work: Any, sender: Connection, parent: int) -> None:
    """Runs in a worker and sends the result, or the error. An interrupted training has written its checkpoint, so that
    nothing is sent."""
    _follow_parent(parent)
    try:
        value = function(work)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:  # noqa: BLE001, the parent raises it
        value = error
    sender.send(value)


def _follow_parent(parent: int) -> None:
    """Makes a worker ignore the terminal's interrupt, which its parent gets, and write a checkpoint when the parent
    ends it. It ends when the parent does, since two processes must not continue the same sweep."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    def interrupt(signum: int, frame: Any) -> None:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # there is no training to save
            os._exit(130)
        signal.raise_signal(signal.SIGINT)

    os.setsid()
    signal.signal(signal.SIGTERM, interrupt)
    threading.Thread(target=watch, daemon=True).start()
