"""Whether a task can do with time that is skipped in training: a comparison with environments where it never is.

Skipped time makes memories older than they are (docs/forgetting.md). Where a task asks for what was seen N steps ago,
or counts steps, nothing can be learned from such a rollout, and forgetting sees failures that are not the policy's.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

KEPT = 0.97
"""What is left of an update's episodes in the means after each later one."""
SETTLED = 50
"""Updates with skipped time before the comparison counts. A policy first has to learn to act without what it has only
just seen."""
LARGEST_LOSS = 0.05
"""Share of what the training has gained that skipped time may cost."""
CERTAIN = 5.0
"""Standard errors by which the difference must exceed 0. So many, since it is looked at after every update."""


class TimeTrial:
    """Compares the scores of episodes in environments whose time is never skipped with those of all others.

    They differ by nothing else, so the difference is what skipping costs. An environment of the others has its time
    skipped in some rollouts only.
    """

    def __init__(self) -> None:
        self.updates = 0
        """Updates so far in which time may have been skipped."""
        self.is_over = False
        """Whether skipping was found to be harmful."""
        self.sums = np.zeros((2, 4))
        """Of the episodes of others and of controls, the latest counting most: weights, squared weights, scores and
        squared scores."""

    def add(self, episodes: Iterable[tuple[float, bool]]) -> None:
        """Adds the episodes that ended in an update: the score of each, and whether its environment is a control."""
        self.updates += 1
        self.sums *= np.array([KEPT, KEPT**2, KEPT, KEPT])
        for score, is_control in episodes:
            self.sums[int(is_control)] += (1.0, 1.0, score, score**2)

    @property
    def loss(self) -> float | None:
        """What skipping costs: the mean score of controls less that of others. None before both have episodes."""
        weights = self.sums[:, 0]
        if not weights.all():
            return None
        others, controls = (self.sums[:, 2] / weights).tolist()
        return controls - others

    def is_harmful(self, gain: float) -> bool:
        """Whether skipping certainly costs more than the largest loss. gain: by how much scores have risen in this
        training."""
        loss = self.loss
        return self.updates >= SETTLED and loss is not None and loss > max(LARGEST_LOSS * gain, CERTAIN * self._error)

    @property
    def _error(self) -> float:
        """The standard error of `loss` if skipping changed nothing, from the variance of all episodes. That of a group
        alone is 0 where few episodes happened to be alike. Infinity where a group has too few."""
        weights, squared_weights, scores, squared_scores = self.sums.T
        counts = weights**2 / squared_weights  # of equally weighted episodes that say as much
        if counts.min() < 2:
            return np.inf
        mean = scores.sum() / weights.sum()
        variance = max(squared_scores.sum() / weights.sum() - mean**2, 0.0)
        return float(np.sqrt(variance * (1 / counts).sum()))

    def state_dict(self) -> dict[str, Any]:
        """The state, JSON-able."""
        return {"updates": self.updates, "is_over": self.is_over, "sums": self.sums.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from `state_dict`. Raises ValueError for sums of another shape."""
        sums = np.array(state["sums"], float)
        if sums.shape != self.sums.shape:
            raise ValueError(f"time trial: expected sums {self.sums.shape}, got {sums.shape}")
        self.updates, self.is_over, self.sums = int(state["updates"]), bool(state["is_over"]), sums
