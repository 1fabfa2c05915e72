"""How an effect of the audit is described: a short name of the action, and whether the action is another one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MAX_LETTERS = 24  # of an action
MIN_SHIFT = 0.05  # a smaller change is not reported


def action_short(record: Mapping[str, Any], action: int | str) -> str:
    """The action of an answer, in at most MAX_LETTERS letters."""
    text = record["action_names"][action] if isinstance(action, int) else action
    return text if len(text) <= MAX_LETTERS else f"{text[: MAX_LETTERS - 1]}…"


def is_another(record: Mapping[str, Any], base: Mapping[str, Any], effect: Mapping[str, Any]) -> bool:
    """Whether an effect's action differs from that of `base`. Real numbers always differ a little, so for them the
    distribution must have shifted too."""
    min_shift = MIN_SHIFT if record.get("continuous") else 0
    return effect["action"] != base["action"] and effect["shift"] >= min_shift
