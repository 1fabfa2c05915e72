"""The pressure on spans: how it falls after updates below the target, and how it comes back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from expire_span_rl.checks import number_or_none

MISSED_UPDATES = 3
"""Only so many updates below the target in a row make spans longer. Fewer are often a policy's own dip, which the next
update mends."""
LENGTHENING = 0.2
"""Each of these lowers the pressure by so much, times the violation. Spans need not grow by much for what they did to
be undone, and it takes many updates to shorten them again."""
MOST_BACKLOG = 10.0
"""Evidence of hard episodes that ended together lasts for at most this many updates."""


class Pressure:
    """A number in [-1, 1]. Above 0 it shortens spans, below 0 it lengthens them.

    - An update at the target raises it.
    - While updates are below the target, it is 0. From MISSED_UPDATES in a row on, each lowers it by LENGTHENING times
      the violation, down to -1.
    - Once the target is met again, it goes on with what it was, less up to a half for each update that was below, in
      proportion to the violation.
    """

    def __init__(self) -> None:
        self.value = 0.0
        self.missed = 0
        """Updates in a row, until now, whose score was below the target."""
        self.paused = 0.0
        """The pressure with which it goes on if the next update meets the target, after some that did not."""
        self.backlog = 0.0
        """Evidence of the latest hard episodes that no update has used yet, in updates."""

    def take_evidence(self, updates: float) -> float:
        """How much evidence this update has, from 0 to 1. updates: for how many the hard episodes that ended in it are
        enough. If there are none, what is left of the last ones counts. The rest is for the next updates."""
        if updates:
            self.backlog = min(MOST_BACKLOG, updates)
        evidence = min(1.0, self.backlog)
        self.backlog -= evidence
        return evidence

    def lower(self, violation: float) -> None:
        """After an update below the target. violation: from 0 to 1, 0 without evidence."""
        if not violation:
            return
        self.missed += 1
        self.paused = max(self.paused, self.value) * (1 - violation / 2)
        fall = LENGTHENING * violation if self.missed >= MISSED_UPDATES else 0.0
        self.value = max(-1.0, min(self.value, 0.0) - fall)

    def go_up(self, rise: float) -> None:
        """After an update at the target."""
        self.value = min(1.0, max(self.value, self.paused, 0.0) + rise)
        self.missed, self.paused = 0, 0.0

    def rest(self) -> None:
        """0, and nothing to go on with: after an update with as few memories as are wanted, or before the task is
        learned."""
        self.value, self.missed, self.paused = 0.0, 0, 0.0

    def state_dict(self) -> dict[str, Any]:
        """The state, JSON-able, under the names that it has in a controller's."""
        return {"pressure": self.value, "missed": self.missed, "paused": self.paused, "backlog": self.backlog}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from `state_dict`. Raises TypeError, one line, for an entry of another type."""
        self.value = number_or_none("pressure", state["pressure"]) or 0.0
        self.missed = int(number_or_none("missed", state.get("missed")) or 0)  # `get`: not in older checkpoints
        for name in ("paused", "backlog"):
            setattr(self, name, number_or_none(name, state.get(name)) or 0.0)
