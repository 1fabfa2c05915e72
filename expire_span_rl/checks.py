"""Checks of settings that every package shares. A message is one line: what was expected, and what was given."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import numbers
from collections.abc import Iterable
from typing import Any, cast

SEED_BITS = 31
"""Seeds are multiplied, so that the environments of different runs do not overlap: the products fit into 64 bits."""
EPISODE_SEED_BITS = 63
"""Of the seed of a single episode, which nothing multiplies."""
USER_TEXT = 200  # characters of the user's own text, or of a file's, that a message repeats
MOST_THREADS = 1024
"""More threads of PyTorch than any machine has use for. Hundreds of thousands end the process."""
LARGEST_SETTING = 2**31 - 1
"""Largest number that a setting of a policy may have, since clocks are int32. No file with a larger one is loaded."""
NEAR = 0.7  # least likeness of a suggested name: "expire" suggests expire_span, "window" does not suggest width


def flag(name: str) -> str:
    """A setting's name as the command line spells it."""
    return f"--{name.replace('_', '-')}"


def quoted(text: object, most: int = USER_TEXT) -> str:
    """The user's own text, or a file's, in quotation marks for a message: control characters escaped, cut after `most`
    characters."""
    text = str(text)
    escaped = repr(text[:most])
    if len(escaped) <= most + 2:
        return escaped + ("..." if len(text) > most else "")
    return f"{escaped[: most + 1]}{escaped[0]}..."  # escapes take more than one character each


def printable(text: str) -> str:
    """The text on one line. Characters that a terminal would not print are escaped."""
    line = " ".join(text.split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def shown(text: object, most: int = USER_TEXT) -> str:
    """The same without quotation marks, as `printable`."""
    escaped = printable(str(text)[: 4 * most])
    return escaped if len(escaped) <= most else f"{escaped[:most]}..."


def is_number(value: object) -> bool:
    """Whether it is a real number; True and False are not."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def is_share(value: object) -> bool:
    """Whether a plain value counts as success: a flag, or a number from 0 to 1."""
    return isinstance(value, (bool, int, float)) and 0 <= value <= 1


def is_difficulty(value: object) -> bool:
    """Whether episodes can be ranked by it: a finite number of at least 0."""
    return is_number(value) and 0 <= cast(float, value) < math.inf


def number_or_none(name: str, value: Any) -> Any:
    """`value`, a saved number, or None where there was none yet. Raises TypeError, one line, for anything else."""
    if value is None or is_number(value):
        return value
    raise TypeError(f"{name}: expected a number or nothing, got {shown(repr(value), 60)}")


def check_at_least(config: Any, **least: int) -> None:
    """Raises ValueError, one line, for the first of the named settings below its least value, or not finite."""
    for name, low in least.items():
        value = getattr(config, name)
        if not low <= value < math.inf:
            expected = f"a finite number of at least {low}" if value == math.inf else f"at least {low}"
            raise ValueError(f"{flag(name)}: expected {expected}, got {shown(str(value), 40)}")


def check_at_most(config: Any, **most: float) -> None:
    """Raises ValueError, one line, for the first of the named settings that is above its largest value. Beyond it
    nothing could be built, or the run would never end."""
    for name, high in most.items():
        value = getattr(config, name)
        if value > high:
            raise ValueError(f"{flag(name)}: expected at most {high:,}, got {shown(str(value), 40)}")


def check_loadable(config: Any) -> None:
    """Raises ValueError, one line, for the first number of a dataclass with which no policy file would be loaded."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if is_number(value) and not abs(value) <= LARGEST_SETTING:
            raise ValueError(
                f"{flag(field.name)}: expected a number up to {LARGEST_SETTING:,}, got {shown(str(value), 40)}"
            )


def check_above_zero(config: Any, *names: str) -> None:
    """Raises ValueError, one line, for a setting that is not above 0, or no finite number."""
    for name in names:
        value = getattr(config, name)
        if not 0 < value < math.inf:
            expected = "a finite number" if value == math.inf else "more than 0"
            raise ValueError(f"{flag(name)}: expected {expected}, got {shown(str(value), 40)}")


def check_fractions(config: Any, *names: str) -> None:
    """Raises ValueError, one line, for a setting outside 0 to 1."""
    for name in names:
        if not 0 <= getattr(config, name) <= 1:
            raise ValueError(f"{flag(name)}: expected 0 to 1, got {getattr(config, name)}")


def nearest(name: str, choices: Iterable[str], cutoff: float = NEAR) -> str | None:
    """The choice that is spelled most like `name`, capitals aside; None if none is near.

    cutoff: the least similarity, from 0 to 1 (`difflib.SequenceMatcher.ratio`)."""
    spelled = {choice.lower(): choice for choice in choices}
    near = difflib.get_close_matches(name.lower(), list(spelled), n=1, cutoff=cutoff)
    return spelled[near[0]] if near else None


def choice(setting: str, value: str, choices: Iterable[str]) -> str:
    """`value` if it is one of `choices`. Raises ValueError, one line, with the nearest one, also for a value from
    Python that is no text."""
    choices = list(choices)
    if value in choices:
        return value
    near = nearest(value, choices) if isinstance(value, str) else None
    hint = f"; did you mean {near!r}?" if near else ""
    raise ValueError(f"{setting}: expected one of {', '.join(choices)}, got {quoted(value, 100)}{hint}")


def check_seed(config: Any, bits: int = SEED_BITS) -> None:
    """Raises ValueError, one line, for a `seed` that no environment could be given."""
    if not 0 <= config.seed < 2**bits:
        raise ValueError(f"--seed: expected 0 to 2^{bits} - 1, got {config.seed}")


OF_FIELDS = {"id": "env", "num_envs": "num_envs", "vectorization": "vectorization", "env_timeout": "env_timeout"}
"""Names that `make_vec_env` itself takes, with the settings that give them. Not every program has all of these."""


def env_keywords(config: Any) -> dict[str, Any]:
    """The keyword arguments of the environment that `env_kwargs` and `wrap` of settings or of a command line give.
    Raises ValueError, one line, for an `env_kwargs` that is no object, and for names that environments cannot have,
    since they are the toolkit's."""
    kwargs = json_object("--env-kwargs", config.env_kwargs)
    for name in kwargs.keys() & OF_FIELDS.keys():
        field = OF_FIELDS[name]
        whose = f"which {flag(field)} sets" if hasattr(config, field) else "which is the toolkit's"
        raise ValueError(f"--env-kwargs: expected the environment's own keyword arguments, got {name!r}, {whose}")
    return {**kwargs, "wraps": list(config.wrap)} if config.wrap else kwargs


def check_wraps(config: Any) -> None:
    """Raises ValueError, one line, for wraps both in `wrap` and in `env_kwargs`. Runs that were saved so go on with
    `wrap`."""
    if config.wrap and "wraps" in json_object("--env-kwargs", config.env_kwargs):
        raise ValueError('--wrap: expected wraps here or as "wraps" in --env-kwargs, got both')


def json_object(setting: str, text: str) -> dict[str, Any]:
    """The JSON object that a setting's text is. Raises ValueError, one line."""
    message = f"""{setting}: expected a JSON object such as '{{"max_length": 100}}', got {quoted(text, 150)}"""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{message} ({error.msg})") from None
    except RecursionError:
        raise ValueError(f"{message} (nested too deep)") from None
    if isinstance(value, dict):
        return value
    raise ValueError(message)
