"""One-line errors of a command line, and the exit codes: 0 for success, 2 for bad usage, 1 for anything that fails
later."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from expire_span_rl.checks import shown
from expire_span_rl.interrupts import ending

WHOLE_MESSAGE = 290  # characters of a message
LAST_PART = 90  # characters that stay of its end, which often says what would be right
OTHERS_MESSAGE = 280  # characters of another package's message


class UsageError(ValueError):
    """Bad usage. The message is one line: what was expected, what was given, what would be right."""


def one_line(text: Any) -> str:
    """`text` on one line of at most WHOLE_MESSAGE characters, the middle left out if it is longer, with every character
    that a terminal would not print escaped."""
    text = str(text)
    if len(text) > 8 * WHOLE_MESSAGE:  # to keep the cost of very long texts small
        text = f"{text[: 4 * WHOLE_MESSAGE]} {text[-4 * WHOLE_MESSAGE :]}"
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in " ".join(text.split()))
    if len(line) <= WHOLE_MESSAGE:
        return line
    return f"{line[: WHOLE_MESSAGE - LAST_PART - 5]} ... {line[-LAST_PART:]}"


def run(main: Callable[[], None]) -> NoReturn:
    """Runs a script's `main`, turns its errors into one line on stderr, and exits.

    Exit codes: 0 success; 2 bad usage (ValueError, a missing package, what Gymnasium refuses); 1 a failure of the
    system, of an environment or of the training; 130, 143 and 129 for Ctrl-C, SIGTERM and SIGHUP."""
    try:
        with ending():
            main()
            sys.stdout.flush()
    except KeyboardInterrupt as error:
        _stop(str(error) or "interrupted", getattr(error, "exit_code", 130))
    except BrokenPipeError:  # `--help | head`: the interpreter would complain when it flushes stdout at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except ValueError as error:  # every module of this project reports bad input as a ValueError of one line
        _stop(error, 2)
    except ImportError as error:
        if (error.name or "").startswith("expire_span_rl"):  # no package is missing, this one is broken
            raise
        _stop(f"cannot import what this needs: {error}", 2)
    except (OSError, RuntimeError, MemoryError) as error:
        _stop(_with_type(error), 1)
    except Exception as error:
        if not _is_from_gymnasium(error):
            raise
        _stop(error, 2)
    sys.exit(0)


def _with_type(error: Exception) -> str:
    """The message of an error. One of another package does not make sense without its type; ours say everything."""
    ours = type(error).__module__.startswith("expire_span_rl.")
    return str(error) if ours else shown(f"{type(error).__name__}: {error}", OTHERS_MESSAGE)


def _is_from_gymnasium(error: Exception) -> bool:
    """Whether Gymnasium raised it: DependencyNotInstalled and its like. Gymnasium is not imported to find out."""
    gymnasium = sys.modules.get("gymnasium.error")
    return gymnasium is not None and isinstance(error, gymnasium.Error)


def _stop(message: Any, code: int) -> NoReturn:
    print(f"error: {one_line(message)}", file=sys.stderr)
    sys.exit(code)
