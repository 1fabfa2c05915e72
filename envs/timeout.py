"""A time limit on what an environment does: a simulator that hangs must not hang a training for ever.

It is an alarm of the system (SIGALRM), which interrupts Python, and system calls that Python makes. Code of another
language that does not come back cannot be interrupted; a process of its own can be ended (`vectors.AsyncEnvs`). Only in
a main thread, and only where the system has such alarms; an environment that uses SIGALRM itself takes the limit off.
"""

from __future__ import annotations

import faulthandler
import signal
import threading
from collections.abc import Callable
from typing import Any, NoReturn

_AGAIN = 1.0  # seconds after which the alarm comes once more, if the environment caught it


class Overdue(BaseException):
    """An environment took too long. No Exception, which environments catch. One line."""


def overdue(seconds: float) -> str:
    """What is said of it."""
    return f"no answer within {seconds:g} s (--env-timeout)"


def call_within(seconds: float, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """`call(*args, **kwargs)`, which raises Overdue if it takes longer than so many seconds; 0: no limit."""
    if not seconds or not _alarms():
        return call(*args, **kwargs)

    def ring(*_: Any) -> NoReturn:
        raise Overdue(overdue(seconds))

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds, _AGAIN)
    if _process_may_end:
        faulthandler.dump_traceback_later(2 * seconds + 1, exit=True, file=2)
    try:
        return call(*args, **kwargs)
    finally:
        if _process_may_end:
            faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def end_process() -> None:
    """From now on code that cannot be interrupted ends this process, since another one lives that starts it again."""
    global _process_may_end
    _process_may_end = True


_process_may_end = False


def _alarms() -> bool:
    return hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()
