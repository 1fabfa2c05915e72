"""Checks of settings that every package shares: one line that says what was expected and what was given."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from typing import Any


def flag(name: str) -> str:
    """A setting's name as the command line spells it."""
    return f"--{name.replace('_', '-')}"


def check_at_least(config: Any, **least: int) -> None:
    """Raises ValueError, one line, for the first of the named settings that is below its least, or no finite number."""
    for name, low in least.items():
        value = getattr(config, name)
        if not low <= value < math.inf:
            wanted = f"a finite number of at least {low}" if value == math.inf else f"at least {low}"
            raise ValueError(f"{flag(name)}: expected {wanted}, got {value}")


def check_above_zero(config: Any, *names: str) -> None:
    """Raises ValueError, one line, for a setting that is not above 0, or no finite number."""
    for name in names:
        value = getattr(config, name)
        if not 0 < value < math.inf:
            wanted = "a finite number" if value == math.inf else "more than 0"
            raise ValueError(f"{flag(name)}: expected {wanted}, got {value}")


def check_fractions(config: Any, *names: str) -> None:
    """Raises ValueError, one line, for a setting outside 0 to 1."""
    for name in names:
        if not 0 <= getattr(config, name) <= 1:
            raise ValueError(f"{flag(name)}: expected 0 to 1, got {getattr(config, name)}")


def nearest(name: str, choices: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The choice that is spelled most like `name`, capitals aside; None if none is near.

    cutoff: the least similarity, from 0 to 1 (`difflib.SequenceMatcher.ratio`)."""
    spelled = {choice.lower(): choice for choice in choices}
    near = difflib.get_close_matches(name.lower(), list(spelled), n=1, cutoff=cutoff)
    return spelled[near[0]] if near else None
