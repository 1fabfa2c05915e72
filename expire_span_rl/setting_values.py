"""Values of settings: which types they have, and conversion of what Python or a JSON file gives.

Nothing here imports torch, so that a command line answers at once.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import types
from collections.abc import Mapping
from typing import Any, cast, get_args, get_origin, get_type_hints

from expire_span_rl.checks import flag, is_number, shown

LARGEST_FLOAT = 10**308
LARGEST_INT = 2**63 - 1
LONGEST_SHOWN = 60  # characters of a value or a name that a message repeats


@functools.cache
def field_types(config: type) -> dict[str, Any]:
    """The types of a dataclass's fields by name, without what the command line adds to them."""
    types_by_name = get_type_hints(config)
    return {field.name: types_by_name[field.name] for field in dataclasses.fields(config)}


def converted(name: str, value: Any, expected: Any) -> Any:
    """`value` as a field of the type `expected` holds it. Raises ValueError, one line, for a value of another type."""
    if isinstance(expected, types.UnionType):
        if value is None and type(None) in get_args(expected):
            return None
        (expected,) = (member for member in get_args(expected) if member is not type(None))
    if name == "env_kwargs" and isinstance(value, Mapping):
        return _as_json(name, value)
    if get_origin(expected) is tuple:
        if isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
            return tuple(value)
        raise _type_error(name, value, "a list of strings")
    if expected is bool:
        if isinstance(value, bool):
            return value
        raise _type_error(name, value, "True or False")
    if expected in (int, float):
        return _number(name, value, expected)
    if isinstance(value, str):
        return value
    raise _type_error(name, value, "a string")


def _number(name: str, value: Any, expected: type) -> int | float:
    """`value` as an int or a float. Raises ValueError as `converted`."""
    number = cast(Any, value)
    if expected is int and is_number(number) and not abs(number) <= LARGEST_INT:
        raise _type_error(name, value, "a whole number below 2^63")
    fits = is_number(number) and (not isinstance(number, int) or abs(number) < LARGEST_FLOAT)
    if fits and (expected is float or (math.isfinite(number) and number == int(number))):
        return expected(number)
    raise _type_error(name, value, "a whole number" if expected is int else "a number")


def _as_json(name: str, value: Mapping[str, Any]) -> str:
    try:
        return json.dumps(dict(value), allow_nan=False)
    except (TypeError, ValueError) as error:
        text = shown(repr(value), LONGEST_SHOWN)
        raise ValueError(f"{flag(name)}: expected what JSON can hold, got {text} ({error})") from None


def _type_error(name: str, value: Any, expected: str) -> ValueError:
    return ValueError(f"{flag(name)}: expected {expected}, got {shown(repr(value), LONGEST_SHOWN)}")
