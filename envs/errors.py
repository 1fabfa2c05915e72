"""One-line errors: what was expected, what was given, and the valid choices."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable
from typing import Any

from expire_span_rl.checks import nearest as nearest_name
from expire_span_rl.checks import quoted, shown

NAME = 60
"""The number of characters of a name or value that a message repeats. The text may come from a stranger's file."""
LARGEST_FLOAT = int(sys.float_info.max)
"""The limit for ints: a larger one is less than infinity but cannot become a float."""


class EnvError(ValueError):
    """A bad environment id or setting. The message is one line that a command line can print as it is."""


class EnvironmentFailed(RuntimeError):
    """An environment failed after it was made and checked. The message is one line: id, index, step and problem."""

    problem: str
    """The last part of the line, in errors that `envs.gym_adapter.failure` makes."""


class EnvironmentWarning(UserWarning):
    """A problem of an environment that does not stop it."""


_WARNINGS: set[str] = set()
"""Warnings that were issued once."""


def warn_once(message: str) -> None:
    """Issues a warning of one line, the first time in this process."""
    if message not in _WARNINGS:
        _WARNINGS.add(message)
        warnings.warn(message, EnvironmentWarning, stacklevel=3)


def unknown_name(kind: str, name: str, valid: Iterable[str], nearest: Iterable[str] | None = None) -> EnvError:
    """The error for `name`, which is not a valid `kind`. It lists the `valid` choices and suggests the one of `nearest`
    (default: `valid`) with the most similar spelling, if one is similar enough."""
    valid = list(valid)
    near = nearest_name(name, valid if nearest is None else nearest)
    hint = f"; did you mean {near!r}?" if near else ""
    return EnvError(f"unknown {kind} {quoted(name, NAME)}: expected one of {', '.join(valid)}{hint}")


def expect_int(name: str, value: Any, low: int, high: int | None = None) -> int:
    """`value` if it is an int in `low..high`. Raises EnvError otherwise, also for a bool or a float."""
    if isinstance(value, int) and not isinstance(value, bool) and low <= value and (high is None or value <= high):
        return value
    bounds = f"of at least {low}" if high is None else f"from {low} to {high}"
    raise EnvError(f"{name}: expected a whole number {bounds}, got {shown(repr(value), NAME)}")


def expect_number(name: str, value: Any, low: float) -> float:
    """`value` as a float if it is a finite number of at least `low`. Raises EnvError otherwise."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= LARGEST_FLOAT:
        return float(value)
    raise EnvError(f"{name}: expected a finite number of at least {low:g}, got {shown(repr(value), NAME)}")


def expect_choice(name: str, value: Any, choices: Iterable[Any]) -> Any:
    """`value` if it is one of `choices`. Raises EnvError otherwise."""
    choices = list(choices)
    if any(value is choice or (isinstance(value, str) and value == choice) for choice in choices):
        return value
    raise EnvError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {shown(repr(value), NAME)}")


def one_line(error: BaseException) -> str:
    """The message of another package's error on one line of at most a few hundred characters. The name of the error's
    class comes first if the message is not a sentence."""
    message = shown(error)
    kind = type(error)
    if not message:
        return kind.__name__
    has_sentences = issubclass(kind, (ValueError, TypeError, AssertionError, ImportError))
    if (has_sentences or kind.__module__.startswith("gymnasium")) and " " in message:
        return message
    return f"{kind.__name__}: {message}"
