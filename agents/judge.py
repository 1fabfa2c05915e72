"""What a training knows of how good its policy is, and what follows from it: which policy is kept, how fast memories
are forgotten, and whether time is skipped."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv
from torch import Tensor

from expire_span_rl.agents.episodes import IS_CONTROL, EpisodeWindow
from expire_span_rl.agents.forgetting import ForgettingController
from expire_span_rl.agents.kept_policy import Candidate, KeptPolicy, PolicyKeeper
from expire_span_rl.agents.rollout import Rollout, RolloutSource
from expire_span_rl.agents.scores import Scores
from expire_span_rl.agents.settings import ForgettingConfig
from expire_span_rl.agents.time_trial import TimeTrial
from expire_span_rl.protocols import LearningPolicy

TRIAL_FRACTION = 0.02
"""The share of the training that a trial of a kept policy lasts, at most."""


class Judge:
    """Judges `policy` by the episodes of rollouts from `source`, and tells the policy what follows for its memory."""

    def __init__(
        self,
        env: VectorEnv,
        policy: LearningPolicy,
        source: RolloutSource,
        forgetting: ForgettingConfig,
        *,
        num_steps: int,
        learns_from_targets: bool,
    ):
        """num_steps: of a rollout; learns_from_targets: as for `Scores`."""
        self.env = env
        self.policy = policy
        self.source = source
        self.num_steps = num_steps
        self.window = EpisodeWindow(
            env.metadata.get("difficulty_key"),
            hard_size=forgetting.min_hard_episodes,
            num_actors=source.num_actors,
            ratios=env.metadata.get("ratios"),
        )
        self.controller = ForgettingController(
            replace(forgetting, forgetting=forgetting.forgetting and policy.can_forget)
        )
        self.scores = Scores(self.window, self.controller, learns_from_targets=learns_from_targets)
        self.keeper = PolicyKeeper(policy, self.controller)
        self.time_trial = TimeTrial()
        """Of skipped time, from the release of spans on."""
        self.new_hard_episodes = 0
        """Hard episodes that the last review was of."""

    @property
    def best(self) -> KeptPolicy | None:
        """The best policy so far that met the constraint."""
        return self.keeper.best

    @property
    def live_now(self) -> float | None:
        """Live memories per layer in the last rollout. None for a memory without slots."""
        live = self.source.live
        return float(np.mean(live["mean"])) if live else None

    def begin_rollout(self, *, has_noise: bool) -> None:
        """Call it before a rollout is collected. has_noise: it has training noise."""
        if self.controller.set_noise(has_noise):
            self.window.hard.clear()
        self.source.long_after = self.window.long_after()

    def review(self, episodes: Sequence[dict[str, Any]], timesteps: int, total_updates: float) -> Candidate:
        """Judges the policy that has played a rollout, and drops the kept one if it proves not to be good enough.
        Returns what is known of the former. episodes: of the rollout; timesteps: for which the policy was trained;
        total_updates: of the whole training."""
        hardest = self.window.hardest
        self.new_hard_episodes = self.window.add(episodes, self._older_episodes)
        if self.live_now is not None:
            self.window.live.append(self.live_now)
        now = self._candidate(timesteps, is_own=self._is_own(), trial=self._trial(total_updates))
        is_harder = self.window.has_difficulty and self.window.hardest > hardest
        self.keeper.review(now, self.new_hard_episodes, is_harder=is_harder, running=self._running())
        return now

    def keep(self, now: Candidate) -> None:
        """Keeps the policy if it is the best so far. now: of the last review."""
        is_tested = self.new_hard_episodes > 0 or self.controller.loss is not None  # the loss is of every block
        self.keeper.keep(now, is_tested=is_tested)

    def set_pressure(self, now: Candidate, progress: float, total_updates: float) -> float:
        """Sets and returns the pressure on spans. now: of the last review; the others: as of
        `ForgettingController.update`."""
        return self.controller.update(now.score, now.live, self.new_hard_episodes, progress, total_updates)

    def failure_rate(self) -> float | None:
        """The share of hard episodes that failed. 1 where no success is reported, None after too few episodes."""
        if not self.window.reports_success:
            return 1.0
        hard_score, count = self.window.hard_score()
        return 1 - hard_score if self.controller.is_enough(count) else None

    def keep_evaluated(self, result: Mapping[str, Any], timesteps: int) -> None:
        """Keeps the present policy if it meets the constraint both in training and in an evaluation. result: of the
        evaluation (`Scores.of_evaluation`)."""
        if self.scores.of_evaluation(result) >= self.controller.target(self.scores.are_success):
            self.keeper.keep(self._candidate(timesteps, is_own=True), is_tested=True)

    @property
    def _older_episodes(self) -> int | None:
        """How many episodes of a rollout earlier policies may have begun: one in each environment. None: all."""
        return self.env.num_envs if self.source.on_policy else None

    def _is_own(self) -> bool:
        """Whether as many hard episodes as the score counts began and ended in the last rollout."""
        older = self._older_episodes
        return older is not None and self.new_hard_episodes - older >= len(self.window.hard)

    def _trial(self, total_updates: float) -> int:
        """`Candidate.trial`, at most TRIAL_FRACTION of the training. 0 where other policies may have played a rollout:
        it says nothing of this one's own episodes."""
        if math.isinf(self.source.long_after) or not self.source.on_policy:
            return 0
        return min(int(self.source.long_after / self.num_steps) + 1, int(TRIAL_FRACTION * total_updates))

    def _running(self) -> list[tuple[int, float]]:
        """The episodes of the last rollout that have come to take long, as `PolicyKeeper.review` takes them."""
        running = self.window.running
        began = [(episode["steps"] - 1) // self.num_steps for episode in running]
        return list(zip(began, self.window.scores(running).tolist(), strict=True))

    def _candidate(self, timesteps: int, *, is_own: bool = False, trial: int = 0) -> Candidate:
        """What is known of the policy as it is now. Arguments: of `Candidate`."""
        released, queue = self.controller.needs_known, self.source.queue
        is_measured = self.window.is_live_measured(self.num_steps, spans_released=released, queue=queue)
        return Candidate(
            score=self.scores.now(),
            live=self.window.mean_live(self.num_steps),
            is_live_measured=is_measured or not self.policy.can_forget,  # else they still grow
            timesteps=timesteps,
            is_own=is_own,
            trial=trial,
        )

    def adapt_memory(
        self, episodes: Sequence[Mapping[str, Any]], *, was_known: bool, has_noise: bool, total_updates: float
    ) -> dict[str, float]:
        """Tells the policy what follows from the last review for its spans and for skipped time. Returns metrics for
        the log. was_known: needs were known before it (`ForgettingController.needs_known`); has_noise: the rollout had
        training noise; the others: as of `review`."""
        if not self.controller.config.forgetting:
            return {}
        self._let_spans_follow_needs(was_known)
        self.policy.tighten_spans(self.controller.tightening(total_updates))
        return self._try_skipped_time(episodes) if has_noise else {}  # without noise no time is skipped

    def _let_spans_follow_needs(self, was_known: bool) -> None:
        """Tells the policy what the controller knows: that the task is learned, and for how long memories are needed.
        was_known: this was known before the update, so that there was a setback if it no longer is."""
        if self.controller.learned:
            self.policy.observe_needs()
        is_known = self.controller.needs_known
        is_bound = self.policy.unreleased_reach() is not None
        if was_known and not is_known:
            self.policy.bind_spans()
            self.window.live.clear()  # they were those of other spans
        elif is_known and is_bound:
            self.policy.release_spans()
            self.window.live.clear()
            if self.time_trial.is_over:
                self.policy.keep_time()

    def _try_skipped_time(self, episodes: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Has no more time skipped once this is known to harm. Returns metrics of what it costs. episodes: of the
        rollout."""
        if not (self.policy.can_skip_time and self.controller.needs_known) or self.time_trial.is_over:
            return {}
        compared = [episode for episode in episodes if IS_CONTROL in episode and self.window.has_score(episode)]
        scores = self.window.scores(compared).tolist()
        self.time_trial.add(zip(scores, (episode[IS_CONTROL] for episode in compared), strict=True))
        if self.time_trial.is_harmful(self.scores.gain):
            self.time_trial.is_over = True
            self.policy.keep_time()
        loss = self.time_trial.loss
        return {} if loss is None else {"memory/skipped_time_loss": loss}

    def memory_metrics(self, rollout: Rollout) -> dict[str, float]:
        """Metrics of live memories and of forgetting."""
        live = self.source.live
        metrics: dict[str, float] = {}
        for layer, value in enumerate(live.get("mean", ())):
            metrics[f"memory/live_mean/layer_{layer}"] = value
            metrics[f"memory/live_max/layer_{layer}"] = live["max"][layer]
        if self.live_now is not None:
            metrics["memory/live_mean"] = self.live_now
            metrics["memory/live_max"] = float(max(live["max"]))
        metrics.update({f"memory/{name}": value for name, value in self.policy.memory_metrics(rollout).items()})
        if self.policy.can_forget:
            metrics["memory/pressure"] = self.controller.pressure
        return metrics

    def unfinished(self) -> str | None:
        """A line that says so if the spans of the kept policy are not released, so that it cannot remember for longer;
        else None."""
        reach = self.policy.unreleased_reach()
        is_kept_released = self.best is not None and self.best.released
        if reach is None or is_kept_released or not self.controller.config.forgetting:
            return None
        missing = self.controller.missing(self.scores.now())
        return f"memories were not shortened, each lasts {reach:,.0f} steps: {missing}"

    def snapshot(self) -> dict[str, Any]:
        """What an update changes, for `restore`."""
        return {**self._state(), "kept": self.keeper.kept}

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Goes back to a snapshot."""
        self._load(snapshot)
        self.keeper.kept = snapshot["kept"]

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that is known, as tensors by name and JSON-able metadata."""
        tensors, kept = self.keeper.state()
        return tensors, {**self._state(), "best": kept}

    def load_state(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
        """Continues from `state`."""
        self._load(metadata)
        self.keeper.load_state(tensors, metadata["best"])

    def _state(self) -> dict[str, Any]:
        parts = {"window": self.window, "controller": self.controller, "time_trial": self.time_trial}
        return {name: part.state_dict() for name, part in parts.items()}

    def _load(self, state: Mapping[str, Any]) -> None:
        self.window.load_state_dict(state["window"])
        self.controller.load_state_dict(state["controller"])
        if "time_trial" in state:  # runs from before 8de04c8 have none
            self.time_trial.load_state_dict(state["time_trial"])
