"""Processes that benchmarks train in. They leave the terminal's interrupt to the benchmark, and end with it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any


def in_processes(function: Callable[[Any], Any], work: Sequence[Any], jobs: int) -> Iterator[Any]:
    """The results, as they come, each from a process of its own, `jobs` of them at a time."""
    with multiprocessing.get_context("spawn").Pool(jobs, _worker, (os.getpid(),), maxtasksperchild=1) as pool:
        yield from pool.imap_unordered(partial(_or_stopped, function), work)


def _or_stopped(function: Callable[[Any], Any], work: Any) -> Any:
    """In a worker: an interrupted training has written its checkpoint, and that is all there is to say."""
    try:
        return function(work)
    except KeyboardInterrupt:
        sys.exit(130)


def _worker(parent: int) -> None:
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
