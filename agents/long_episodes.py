"""Episodes that take long: they count before they end, with what such episodes came to lately.

Otherwise episodes in which an agent is stuck would be missing from every mean until a time limit ends them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np

RUNNING = "_running"
"""The entry of an episode that still runs and has taken long. It has the return and the steps so far."""
COUNTED = "_counted"
"""The entry of an episode that has ended, and was reported before as one that still ran."""
LONG = 2.0
LONG_QUANTILE = 0.95
"""An episode has taken long once it runs for more than LONG times this quantile of the latest episodes' steps."""
REMEMBERED = 100
"""Episodes that had taken long when they ended, the latest of which say what such episodes come to."""
PRIOR = 5
"""So many more are assumed that came to no success, and to the return that the running episode has so far."""


def long_after(steps: list[int]) -> float:
    """After how many steps an episode has taken long. steps: of the latest episodes."""
    return LONG * float(np.quantile(steps, LONG_QUANTILE))


def success_of(episode: Mapping[str, Any]) -> float:
    """Success of an episode, from 0 to 1. It is 0 where the episode does not report it."""
    return float(episode.get("is_success", 0.0))


class LongEpisodes:
    """What episodes that take long come to, and which of them count as hard."""

    def __init__(self) -> None:
        self.ended: deque[dict[str, Any]] = deque(maxlen=REMEMBERED)
        """The latest that have ended."""
        self.share = 0.0
        """What is left of the shares of running episodes that count as hard: less than one episode."""

    def foreseen(self, episode: Mapping[str, Any], *, has_success: bool) -> dict[str, Any]:
        """A running episode with the result that it is expected to come to. has_success: success is reported."""
        number = len(self.ended) + PRIOR
        result = sum(ended["return"] for ended in self.ended) + PRIOR * episode["return"]
        success = sum(map(success_of, self.ended))
        return {**episode, "return": result / number, **({"is_success": success / number} if has_success else {})}

    def is_counted(self, share: float) -> bool:
        """Whether the next running episode counts as a hard one: so many do that they are a `share` of all. How hard
        one is is known only at its end."""
        self.share += share
        is_counted = self.share >= 1.0
        self.share -= float(is_counted)
        return is_counted

    def state_dict(self) -> dict[str, Any]:
        """The state, JSON-able."""
        return {"ended": list(self.ended), "share": self.share}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from `state_dict`."""
        self.ended.clear()
        self.ended.extend(state["ended"])
        self.share = float(state["share"])
