"""One-line errors: what was expected, what was given, what would be right."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from expire_span_rl.checks import nearest as nearest_name
from expire_span_rl.checks import quoted, shown

NAME = 60  # characters of a name or a value, which may stand in a stranger's file, that a message repeats
LARGEST_FLOAT = int(sys.float_info.max)  # an int may be larger and still less than infinity


class EnvError(ValueError):
    """A bad environment id or setting. The message is one line that a command line can print as it is."""


class EnvironmentFailed(RuntimeError):
    """What an environment did wrong after it was made and checked. One line that names it: id, index, step and what."""

    what: str
    """The last part of the line, where `envs.gym_adapter.failure` made it."""


def unknown_name(kind: str, name: str, valid: Iterable[str], nearest: Iterable[str] | None = None) -> EnvError:
    """The error for `name`, which is no `kind`: the `valid` choices and the one of `nearest` (default: `valid`) that
    is spelled most like it, if one is near."""
    valid = list(valid)
    near = nearest_name(name, valid if nearest is None else nearest)
    hint = f"; did you mean {near!r}?" if near else ""
    return EnvError(f"unknown {kind} {quoted(name, NAME)}: expected one of {', '.join(valid)}{hint}")


def expect_int(name: str, value: Any, low: int, high: int | None = None) -> int:
    """`value` if it is an int in `low..high`. Raises EnvError otherwise (a bool or a float is no int)."""
    if isinstance(value, int) and not isinstance(value, bool) and low <= value and (high is None or value <= high):
        return value
    span = f"of at least {low}" if high is None else f"from {low} to {high}"
    raise EnvError(f"{name}: expected a whole number {span}, got {shown(repr(value), NAME)}")


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
    """The message of a foreign error on one line of a few hundred characters; with the name of its class where the
    message alone says little."""
    message = shown(error)
    name = type(error).__name__
    if not message:
        return name
    is_sentence = isinstance(error, (ValueError, TypeError, AssertionError, ImportError)) or type(
        error
    ).__module__.startswith("gymnasium")
    return message if is_sentence and " " in message else f"{name}: {message}"
