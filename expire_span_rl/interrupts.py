"""Signals that ask a program to end: Ctrl-C (SIGINT), a scheduler or `kill` (SIGTERM), a terminal that closes (SIGHUP).

A program runs within `ending`: the first signal ends it, with one line and 128 plus the signal's number as exit code. A
training within it runs within `finishing`: the first signal lets it finish the current update, the second ends it at
once.

Nothing here imports more than the standard library, so that it works from a program's first moment on.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
REPEATED = 0.2  # seconds
_WORDS = {"SIGINT": "interrupted", "SIGTERM": "terminated (SIGTERM)", "SIGHUP": "the terminal closed (SIGHUP)"}


class Interrupted(KeyboardInterrupt):
    """A signal asked the program to end. Its message is one line."""

    def __init__(self, signum: int = signal.SIGINT):
        super().__init__(_WORDS[signal.Signals(signum).name])
        self.signum = int(signum)

    @property
    def exit_code(self) -> int:
        return 128 + self.signum


class Finishing:
    """What `finishing` gives: the signal that came, if any."""

    signum: int | None = None


@contextlib.contextmanager
def ending() -> Iterator[None]:
    """Within, a signal raises `Interrupted`. While a module is imported the process ends at once instead, since an
    import may catch the exception or wrap it; so does it at the second signal, in case the first was caught."""
    signal_came = False

    def end(signum: int, frame: FrameType | None) -> None:
        nonlocal signal_came
        if signal_came or _importing(frame):
            _exit(Interrupted(signum))
        signal_came = True
        raise Interrupted(signum)

    with _handler_for_signals(end):
        yield


@contextlib.contextmanager
def finishing(stop: threading.Event) -> Iterator[Finishing]:
    """Within, the first signal sets `stop`, the second raises `Interrupted`, and the third has the system's default
    effect. A signal that comes again within REPEATED seconds is still the first: whoever ends a job may send it to its
    processes and to their group."""
    finishing = Finishing()
    first_at = -math.inf

    def finish(signum: int, frame: FrameType | None) -> None:
        nonlocal first_at
        if finishing.signum is None and not stop.is_set():
            first_at = time.monotonic()
            finishing.signum = int(signum)
            stop.set()
            return
        if signum == finishing.signum and time.monotonic() < first_at + REPEATED:
            return
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        raise Interrupted(signum)

    with _handler_for_signals(finish):
        yield finishing


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Restores the signals' handlers afterwards: code that runs within may install its own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {signum: signal.getsignal(signum) for signum in SIGNALS}
    try:
        yield
    finally:
        for signum, handler in before.items():
            if handler is not None:  # None: not installed from Python, which cannot put it back
                signal.signal(signum, handler)


@contextlib.contextmanager
def blocked() -> Iterator[None]:
    """Within, the signals wait, in this thread and in the processes and threads that it starts. Those never get them,
    unless they call `unblock`."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def unblock() -> None:
    """Ends what the process inherited from a parent within `blocked`, for this thread and whatever it starts."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


@contextlib.contextmanager
def _handler_for_signals(handler: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    """Within, the signals go to `handler`, but for those that are ignored (nohup) or that somebody else's code handles.
    Nothing changes in a thread, where signals cannot be handled."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {signum: signal.getsignal(signum) for signum in SIGNALS}
    before = {signum: old for signum, old in before.items() if _is_ours_to_handle(old)}
    for signum in before:
        signal.signal(signum, handler)
    try:
        yield
    finally:
        for signum, old in before.items():
            signal.signal(signum, old)


def _is_ours_to_handle(handler: Any) -> bool:
    default = handler in (signal.SIG_DFL, signal.default_int_handler)
    return default or getattr(handler, "__module__", None) == __name__


def _importing(frame: FrameType | None) -> bool:
    """Whether a module is being imported in this frame or in one that called it."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _exit(interrupted: Interrupted) -> None:
    """Ends the process now: nothing is flushed, no clean-up runs."""
    os.write(2, f"error: {interrupted}\n".encode())
    os._exit(interrupted.exit_code)
