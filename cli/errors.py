"""One-line errors of a command line, and the exit codes: 0 for success, 2 for bad usage, 1 for anything that fails
later."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from expire_span_rl.checks import shown
from expire_span_rl.interrupts import ending

MAX_MESSAGE = 290
"""Characters of the longest message."""
MESSAGE_END = 90
"""Characters that a shortened message keeps of its end, which often says what would be right."""
MAX_PACKAGE_MESSAGE = 280
"""Characters of the longest message of another package."""


class UsageError(ValueError):
    """Bad usage. The message is one line: what was expected, what was given, what would be right."""


def one_line(text: Any) -> str:
    """`text` on one line of at most MAX_MESSAGE characters. A longer text loses its middle. Characters that a terminal
    would not print are escaped."""
    text = str(text)
    if len(text) > 8 * MAX_MESSAGE:  # so that a very long text costs little time
        text = f"{text[: 4 * MAX_MESSAGE]} {text[-4 * MAX_MESSAGE :]}"
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in " ".join(text.split()))
    if len(line) <= MAX_MESSAGE:
        return line
    return f"{line[: MAX_MESSAGE - MESSAGE_END - 5]} ... {line[-MESSAGE_END:]}"


def run(main: Callable[[], None]) -> NoReturn:
    """Runs a script's `main`, turns its errors into one line on stderr, and exits. Other exceptions are bugs: they are
    raised, with a traceback.

    Exit codes: 0 success; 2 bad usage (ValueError, a missing package, an error of Gymnasium); 1 a failure of the
    system, of an environment or of the training; 130, 143 and 129 for Ctrl-C, SIGTERM and SIGHUP."""
    try:
        with ending():
            main()
            sys.stdout.flush()
    except KeyboardInterrupt as error:
        _stop(str(error) or "interrupted", getattr(error, "exit_code", 130))
    except BrokenPipeError:  # as in `--help | head`. Without this, the interpreter's last flush prints an error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except ValueError as error:  # bad input: all modules of this project report it so, in one line
        _stop(error, 2)
    except ImportError as error:
        if (error.name or "").startswith("expire_span_rl"):  # a bug in this package, not a missing one
            raise
        _stop(f"cannot import a package that this command needs: {error}", 2)
    except (OSError, RuntimeError, MemoryError) as error:
        _stop(_with_type(error), 1)
    except Exception as error:
        if not _is_from_gymnasium(error):
            raise
        _stop(error, 2)
    sys.exit(0)


def _with_type(error: Exception) -> str:
    """The message of an error. If the error's class is not of this project, the name of the class comes first, since
    such messages are often unclear without it."""
    if type(error).__module__.startswith("expire_span_rl."):
        return str(error)
    return shown(f"{type(error).__name__}: {error}", MAX_PACKAGE_MESSAGE)


def _is_from_gymnasium(error: Exception) -> bool:
    """Whether it is an error of Gymnasium, such as DependencyNotInstalled. If Gymnasium is not imported, it cannot be
    one. Importing it here would take time."""
    gymnasium_errors = sys.modules.get("gymnasium.error")
    return gymnasium_errors is not None and isinstance(error, gymnasium_errors.Error)


def _stop(message: Any, code: int) -> NoReturn:
    """Prints the message on stderr and exits with `code`."""
    print(f"error: {one_line(message)}", file=sys.stderr)
    sys.exit(code)
