"""By what a training judges its policy: success, the return, or minus the bits per answer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from expire_span_rl.agents.episodes import EpisodeWindow
from expire_span_rl.agents.forgetting import ForgettingController
from expire_span_rl.agents.score_record import Score


class Scores:
    """The scores of one training, by the episodes in its `window` and by whether its `controller` goes by the loss."""

    def __init__(self, window: EpisodeWindow, controller: ForgettingController, *, learns_from_targets: bool):
        """learns_from_targets: the agent learns from the right actions. Its score in training is the accuracy or,
        without success, minus the bits."""
        self._window = window
        self._controller = controller
        self._learns_from_targets = learns_from_targets

    @property
    def are_success(self) -> bool:
        """Whether they are success rates. Else they are returns, or minus the bits per answer."""
        return self._window.reports_success and self._controller.loss is None

    @property
    def gain(self) -> float:
        """By how much the scores of episodes have risen in this training (`EpisodeWindow.scores`). 1 of success."""
        if self._window.reports_success:
            return 1.0
        loss = self._controller.loss
        return self._controller.record.gain if loss is None else loss.gain

    def now(self) -> Score:
        """That of the latest hard episodes."""
        hard_score, count = self._window.hard_score()
        loss = self._controller.loss
        value = hard_score if loss is None or loss.bits is None else -loss.bits
        error = 0.0 if loss is not None else self._window.hard_error()
        return Score(value, count, self.are_success, error, self._window.has_difficulty)

    def of_evaluation(self, result: Mapping[str, Any]) -> float:
        """That of an evaluation, by the same measure as in training. result: `success_rate`, `mean_return` and, where
        the right actions are known, `bits` per answer and `accuracy`."""
        if self._controller.loss is not None or (self._learns_from_targets and not self.are_success):
            return -math.inf if result.get("bits") is None else -result["bits"]
        if not self.are_success:
            return result["mean_return"]
        accuracy = result.get("accuracy") if self._learns_from_targets else None
        has_accuracy = isinstance(accuracy, (int, float))
        return accuracy if has_accuracy else result["success_rate"] or 0.0  # None: no episode reported any
