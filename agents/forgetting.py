"""Learn first, forget afterwards: the controller of the pressure on spans.

Success on the hard episodes is the constraint, and live memories are the cost. The controller gives one number per
update, the pressure in [-1, 1]. A positive pressure makes the memory kind's loss shorten spans, a negative one lengthen
them. The absolute value sets how fast the span parameters learn (`agents.learner`). docs/forgetting.md explains it with
a plot.
"""

from __future__ import annotations

import math
from typing import Any

from expire_span_rl.agents.loss_constraint import LossConstraint
from expire_span_rl.agents.pressure import Pressure
from expire_span_rl.agents.score_record import Score, ScoreRecord
from expire_span_rl.agents.settings import ForgettingConfig
from expire_span_rl.checks import number_or_none

OBSERVED_UPDATES = 50.0
"""Updates at full pressure for which the needs of memories are observed before spans follow them."""
LONG_TRAINING = 250
"""Updates of a training that has so much time. In a shorter one each counts for more, so that needs are observed for a
fifth of them, and the pressure rises faster in proportion."""
PATIENT_FRACTION = 1 / 3
"""Without success, spans follow needs only after this fraction of the training. A return that no longer rises may be
that of a guess: one of five trainings on MiniGrid's MemoryS13Random solved it only after 1.5M of 5M steps."""
STAGES = 15
"""Stages of a training. Whether returns still rise is looked at after each."""
FLAT = 0.02
"""Without success, spans follow needs only after a stage in which the best mean return has risen by at most this share
of what returns have risen by so far. What is still being learned is lost when memories become shorter. The best return
of a single update rises too rarely to tell: it is often a chance one."""
HARM = 0.2
"""Without success, spans no longer follow needs once the return has certainly lost this share of what it had risen by
before they did."""
HARMED_UPDATES = 10
"""So many updates in a row, in each of which episodes ended, must show that loss. A return that falls in an update or
two is often back in the next, whatever the spans are. And where spans became too short, the negative pressure may make
them long enough in the meantime."""


TIGHTENED_FRACTION = 1 / 4
"""At full pressure spans go all the way from where few memories that are needed expire to where more do (`tightening`)
in this fraction of a training."""
LOOSENING = 4.0
"""At full negative pressure they go back so many times as fast."""


class ForgettingController:
    """Computes the pressure from success on hard episodes and from live memories. With `loss_tolerance` the constraint
    is the loss instead of success (`LossConstraint`); the trainer passes it to `observe_bits`.

    The pressure is 0 until the target has been met once. Afterwards:

    - It is 0 or negative while the target is missed, and goes on with part of what it was afterwards (`Pressure`).
    - At the target and within the memory budget it is 0.
    - At the target and above the memory budget it rises by `pressure_rise` per update, up to 1. In a training of less
      than LONG_TRAINING updates it rises faster.

    With success or the return as the constraint, the rise and the fall are smaller for an update with few new hard
    episodes. Where all episodes end at the same step, most updates have none. Those of one step then count for several
    updates (`Pressure.take_evidence`). The loss is a moving average already, so that its violation becomes the negative
    pressure at once. With `fixed_pressure` the pressure is that number.
    """

    def __init__(self, config: ForgettingConfig):
        self.config = config
        self._pressure = Pressure()
        self.learned = False
        self.record = ScoreRecord()
        """What scores have reached. Without success, targets lie between the first score and what was reached since."""
        self.has_waited = False
        """Whether the training is as far as it must be for spans to follow needs."""
        self.stage = 0
        """Stages of the training that are over."""
        self.stage_score: float | None = None
        """The best mean score at the end of the last one."""
        self.is_flat = False
        """Whether the best mean score rose by little in it."""
        self.observed = 0.0
        """For how many updates needs have been observed since the start or the last setback: the sum of all pressures
        above 0. An update within the memory budget counts as 1, and each for more in a short training."""
        self.bound_score: float | None = None
        """The best score of the time before spans followed needs."""
        self.harmed = 0
        """Updates in a row, until now, after which the return was certainly lower than before spans followed needs."""
        self.setbacks = 0
        """How often spans followed needs and the return then fell below what it had been before."""
        self.best_with_noise: dict[str, float | None] | None = None
        """The best score, the best loss and the mean bits when training noise ended. None while there is noise."""
        self.loss = LossConstraint(config.loss_tolerance) if config.loss_tolerance else None

    @property
    def pressure(self) -> float:
        """The pressure of the latest update."""
        return self._pressure.value

    @property
    def needs_known(self) -> bool:
        """Whether the needs of memories were observed for so long that spans can follow them. False again after a
        setback."""
        return self.observed >= self._needed_updates and self.has_waited

    @property
    def _needed_updates(self) -> float:
        """For how many updates needs must be observed: twice as many after every setback."""
        return OBSERVED_UPDATES * 2.0**self.setbacks

    def is_enough(self, episodes: int) -> bool:
        """Whether a score over so many hard episodes says something."""
        return episodes >= self.config.min_hard_episodes

    def missing(self, score: Score) -> str:
        """Why spans do not follow needs yet, for a message. score: as of `update`."""
        if not self.learned:
            if self.loss is not None:
                return "the task was not learned"
            if not self.is_enough(score.episodes):
                counted = score.counted[:-1] if score.episodes == 1 else score.counted
                needed = self.config.min_hard_episodes
                needs = f"{needed} {'is' if needed == 1 else 'are'} needed first"
                return f"{score.episodes or 'no'} {counted} ended, {needs}"
            if not score.is_success and self.record.gain == 0:
                return f"the mean return of the latest {score.counted}, {score.value:.3g}, is not above the first"
            measure, format = ("success", ".1%") if score.is_success else ("mean return", ".3g")
            target = self.target(score.is_success)
            return f"{measure} in the latest {score.counted} is {score.value:{format}}, the target {target:{format}}"
        if self.observed >= self._needed_updates:
            return (
                f"where no success is reported, that begins after {PATIENT_FRACTION:.0%} of the training, once returns "
                "rise no more"
            )
        since = "memories were last shortened and the return fell" if self.setbacks else "the task was learned"
        done = f"{self.observed / self._needed_updates:.0%} of that is done since {since}"
        return f"how long they are needed is watched first, {done}; a longer training goes on from there"

    def set_noise(self, has_noise: bool) -> bool:
        """Tells whether the next rollout has training noise. What was reached without it is no measure for a policy
        that has to do with it again. Returns whether noise has returned, so that scores so far do not count."""
        best = self.best_with_noise
        if best is None:
            if not has_noise:
                loss, bits = (None, None) if self.loss is None else (self.loss.best, self.loss.bits)
                self.best_with_noise = {"score": self.record.best, "loss": loss, "bits": bits}
            return False
        if has_noise:
            self._go_back_to(best["score"])
            if self.loss is not None:
                self.loss.best, self.loss.bits = best["loss"], best["bits"]
            self.best_with_noise = None
        return has_noise

    def _go_back_to(self, best: float | None) -> None:
        """Goes back to an earlier best score, None for none. No score that others are measured by is above it."""
        self.record.go_back_to(best)
        for name in ("stage_score", "bound_score"):
            score = getattr(self, name)
            setattr(self, name, None if score is None or best is None else min(score, best))

    def observe_bits(self, bits: float | None) -> None:
        """Updates the constraint on the loss. bits: mean bits per answer of a block, None if the block has no queries.
        Does nothing without such a constraint."""
        if self.loss is not None and bits is not None:
            self.loss.observe(bits)

    def target(self, is_success: bool) -> float:
        """The score that must be reached: success, the return, or minus the bits per answer. is_success: scores are
        success rates, not returns."""
        return self._target(is_success, self.record.gain)

    def _target(self, is_success: bool, gain: float) -> float:
        """`target`, of returns with this gain over the first one."""
        if self.loss is not None:
            return -self.loss.limit
        if is_success or self.record.first is None:
            return self.config.success_target
        return self.record.first + self.config.success_target * gain

    def has_target(self, is_success: bool) -> bool:
        """Whether a score can meet or miss the target, or fail its test. The target of a return is relative, so that
        there is none before anything was learned. is_success: as for `target`."""
        return is_success or self.loss is not None or self.record.gain > 0

    def meets_target(self, score: Score) -> bool:
        """Whether a score is at the target. A return is, unless it is certainly lower."""
        return score.highest >= self.target(score.is_success)

    def update(
        self,
        score: Score,
        live: float | None,
        new_episodes: int,
        progress: float = 1.0,
        total_updates: float = math.inf,
    ) -> float:
        """Returns the pressure for the next update. live: mean live memories per layer, None for a memory without
        slots; new_episodes: hard episodes that ended in this update; progress: fraction of the training that is over;
        total_updates: of the whole training."""
        config = self.config
        pace = max(LONG_TRAINING / total_updates, 1.0)
        is_known = self.loss is None and self.is_enough(score.episodes)
        if is_known:
            self._observe_score(score, new_episodes)
        is_told = score.is_success or self.loss is not None or config.fixed_pressure > 0
        self._end_stage(int(progress * STAGES))
        self.has_waited |= is_told or (progress >= PATIENT_FRACTION and self.is_flat)
        if not self.needs_known:
            self.bound_score = self.record.best
        elif is_known and not is_told and new_episodes:
            self._watch_for_harm(score)
        if not config.forgetting:
            return self.pressure
        if config.fixed_pressure:
            self._pressure.value = config.fixed_pressure
            self.learned = True
            self.observed += pace * self.pressure
            return self.pressure
        rise = pace * config.pressure_rise
        if self.loss is not None:
            self._update_from_loss(self.loss, live, rise)
        elif is_known:
            self._update(score, live, new_episodes, rise)
        else:  # nothing is shortened without knowing what that does
            self._pressure.value = min(self.pressure, 0.0)
        if self.learned:
            self.observed += pace * (1.0 if self._is_within_budget(live) else max(self.pressure, 0.0))
        return self.pressure

    def tightening(self, total_updates: float) -> float:
        """By what share of the way from where few memories that are needed expire to where more do the latest pressure
        moves spans. Negative on the way back. total_updates: as of `update`."""
        full = 1 / (TIGHTENED_FRACTION * total_updates)
        return full * self.pressure * (1.0 if self.pressure > 0 else LOOSENING)

    def _is_within_budget(self, live: float | None) -> bool:
        return live is not None and live <= self.config.memory_budget

    def _observe_score(self, score: Score, new_episodes: int) -> None:
        """Notes the score, and whether the task is learned. Arguments: as of `update`."""
        if self.record.begins_with(score):
            self.learned = False  # what returns said says nothing of success, which is reported from now on
            if self.best_with_noise is not None:
                self.best_with_noise["score"] = None
        self.record.observe(score, new_episodes)
        self.learned |= self.meets_target(score) and (score.is_success or self.record.gain > 0)

    def _watch_for_harm(self, score: Score) -> None:
        """Notes whether the score shows that spans which follow needs harm. If it does so for HARMED_UPDATES in a row,
        needs must be observed again."""
        self.harmed = self.harmed + 1 if self._is_harmed(score) else 0
        if self.harmed >= HARMED_UPDATES:
            self.harmed = 0
            self.setbacks += 1
            self.observed = 0.0

    def _is_harmed(self, score: Score) -> bool:
        """Whether a return is certainly lower than it was before spans followed needs, by more than a share of HARM."""
        first = self.record.first
        if first is None or self.bound_score is None:
            return False
        return score.highest < first + (1 - HARM) * (self.bound_score - first)

    def _end_stage(self, stage: int) -> None:
        """Notes whether the best mean still rises. stage: number of stages that are over."""
        if stage == self.stage:
            return
        best = self.record.sustained
        if best is not None and self.stage_score is not None:
            self.is_flat = best - self.stage_score <= FLAT * self.record.gain
        self.stage, self.stage_score = stage, best

    def _update(self, score: Score, live: float | None, new_episodes: int, rise: float) -> None:
        """Sets the pressure. rise: by how much it rises at full evidence; the others: as of `update`."""
        config = self.config
        evidence = self._pressure.take_evidence(new_episodes / config.full_evidence)
        shortfall = self._target(score.is_success, self.record.sustained_gain) - score.highest
        if not self.learned:
            self._pressure.rest()
        elif shortfall > 0:
            slack = config.success_slack if score.is_success else config.success_slack * self.record.gain + score.error
            self._pressure.lower(min(1.0, shortfall / max(slack, 1e-8)) * evidence)
        else:
            self._raise_pressure(live, rise * evidence)

    def _update_from_loss(self, loss: LossConstraint, live: float | None, rise: float) -> None:
        """`_update` with the loss as the constraint."""
        self.learned |= loss.learned and self.config.forgetting
        if not self.learned:
            self._pressure.rest()
        elif loss.violation > 0:
            self._pressure.value = -min(1.0, loss.violation)
        else:
            self._raise_pressure(live, rise)

    def _raise_pressure(self, live: float | None, rise: float) -> None:
        """Sets the pressure where the target is met. live: as of `update`."""
        if self._is_within_budget(live):
            self._pressure.rest()
        else:
            self._pressure.go_up(rise)

    def holds(self, score: Score) -> bool:
        """Whether the constraint holds. The target of a return or a loss is relative, so that it cannot hold before
        anything was learned."""
        if self.loss is not None:
            return self.learned and self.loss.violation <= 0
        return self.has_target(score.is_success) and self.is_enough(score.episodes) and self.meets_target(score)

    def state_dict(self) -> dict[str, Any]:
        """The controller's state, JSON-able."""
        state = {
            **self._pressure.state_dict(),
            "learned": self.learned,
            **self.record.state_dict(),
            "observed": self.observed,
            "bound_score": self.bound_score,
            "harmed": self.harmed,
            "setbacks": self.setbacks,
            "has_waited": self.has_waited,
            "stage": self.stage,
            "stage_score": self.stage_score,
            "is_flat": self.is_flat,
            "best_with_noise": self.best_with_noise,
        }
        return state if self.loss is None else {**state, "loss": self.loss.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from `state_dict`. Raises TypeError, one line, for an entry of another type."""
        self._pressure.load_state_dict(state)
        self.learned = state["learned"]
        self.record.load_state_dict(state)
        self.has_waited = bool(state.get("has_waited", True))
        self.is_flat = bool(state.get("is_flat", False))
        for name in ("stage_score", "bound_score"):  # what is read with `get` is not in older checkpoints
            setattr(self, name, number_or_none(name, state.get(name)))
        self.observed = number_or_none("observed", state.get("observed")) or 0.0
        for name in ("stage", "harmed", "setbacks"):
            setattr(self, name, int(number_or_none(name, state.get(name)) or 0))
        best = state.get("best_with_noise")
        names = ("score", "loss", "bits")
        self.best_with_noise = best and {name: number_or_none(f"best_with_noise/{name}", best[name]) for name in names}
        if self.loss is not None:
            self.loss.load_state_dict(state["loss"])
