"""A time limit for a call to an environment: a simulator that hangs must not hang a training for ever.

The limit is a system alarm (SIGALRM). It interrupts Python code and the system calls that Python makes. It cannot
interrupt native code that does not return; a process of its own can be ended instead (`vectors.AsyncEnvs`). The limit
works only in the main thread, and only on systems with such alarms. An environment that uses SIGALRM itself disables
it.
"""

from __future__ import annotations

import faulthandler
import signal
import threading
from collections.abc import Callable
from typing import Any, NoReturn

_REPEAT_SECONDS = 1.0  # between alarms, in case the environment catches the first one


class Overdue(BaseException):
    """An environment took too long. The message is one line. It is no Exception, since environments catch those."""


def overdue_message(seconds: float) -> str:
    """The message for a call that exceeded its limit."""
    return f"no answer within {seconds:g} s (--env-timeout)"


def call_within(seconds: float, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The result of `call(*args, **kwargs)`. Raises Overdue if the call takes longer than `seconds`; 0: no limit."""
    if not seconds or not _has_alarms():
        return call(*args, **kwargs)

    def ring(*_: Any) -> NoReturn:
        raise Overdue(overdue_message(seconds))

    previous_handler = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds, _REPEAT_SECONDS)
    if _process_may_end:
        faulthandler.dump_traceback_later(2 * seconds + 1, exit=True, file=2)
    try:
        return call(*args, **kwargs)
    finally:
        if _process_may_end:
            faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous_handler)


def allow_process_exit() -> None:
    """From now on, a call that cannot be interrupted ends this process. For processes that another one restarts."""
    global _process_may_end
    _process_may_end = True


_process_may_end = False


def _has_alarms() -> bool:
    """Whether alarms work in this thread, on this system."""
    return hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()
