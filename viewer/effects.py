"""How an effect of the audit is told: the action in few letters, and whether it is another one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MOST_LETTERS = 24  # of an action
LEAST_SHIFT = 0.05  # below it nothing is said to have changed


def action_short(record: Mapping[str, Any], action: int | str) -> str:
    """An answer's action, in a few letters."""
    text = record["action_names"][action] if isinstance(action, int) else action
    return text if len(text) <= MOST_LETTERS else f"{text[: MOST_LETTERS - 1]}…"


def is_another(record: Mapping[str, Any], base: Mapping[str, Any], effect: Mapping[str, Any]) -> bool:
    """Whether an effect's action is another than that of `base`. Real numbers always differ a little: there only if the
    distribution has shifted too."""
    least = LEAST_SHIFT if record.get("continuous") else 0
    return effect["action"] != base["action"] and effect["shift"] >= least
