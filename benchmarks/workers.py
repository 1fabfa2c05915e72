"""Processes that benchmarks train in. They leave the terminal's interrupt to the benchmark, and end with it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any


def in_processes(function: Callable[[Any], Any], work: Sequence[Any], jobs: int) -> Iterator[Any]:
    """The results, as they come, each from a process of its own, `jobs` of them at a time. Raises what `function`
    raised, KeyboardInterrupt where it was interrupted, and RuntimeError for a process that was killed."""
    context = multiprocessing.get_context("spawn")
    waiting = deque(work)
    running: dict[Any, BaseProcess] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                result, sender = context.Pipe(duplex=False)
                running[result] = context.Process(target=_work, args=(function, waiting.popleft(), sender, os.getpid()))
                running[result].start()
                sender.close()  # the worker's end: without it the result is at its end
            for result in wait(list(running)):
                yield _received(result, running.pop(result))
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.join()


def _received(result: Any, process: BaseProcess) -> Any:
    try:
        told = result.recv()
    except EOFError:
        process.join()
        if process.exitcode == 130:
            raise KeyboardInterrupt from None
        raise RuntimeError(
            f"a training's process was ended from outside (exit code {process.exitcode}, -9 often for want of memory)"
        ) from None
    process.join()
    if isinstance(told, Exception):
        raise told
    return told


def _work(function: Callable[[Any], Any], work: Any, sender: Connection, parent: int) -> None:
    """In a worker: an interrupted training has written its checkpoint, and that is all there is to say."""
    _obey(parent)
    try:
        told = function(work)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:  # noqa: BLE001, the parent raises it
        told = error
    sender.send(told)


def _obey(parent: int) -> None:
    """A worker leaves the terminal's interrupt to its parent, writes a checkpoint when the parent ends it, and does not
    outlive it: a sweep that is continued works alone."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    def ended(signum: int, frame: Any) -> None:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # no training that could be saved
            os._exit(130)
        signal.raise_signal(signal.SIGINT)

    os.setsid()
    signal.signal(signal.SIGTERM, ended)
    threading.Thread(target=watch, daemon=True).start()
