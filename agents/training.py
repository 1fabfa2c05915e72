"""The loop that all agents share: collect, check, learn, forget, keep the best policy."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv
from torch import Tensor

from expire_span_rl.agents.collector import Collector
from expire_span_rl.agents.entries import TARGETS
from expire_span_rl.agents.episodes import IS_CONTROL, RUNNING, EpisodeWindow
from expire_span_rl.agents.forgetting import ForgettingController
from expire_span_rl.agents.guard import Backup, NotFinite, report_skipped_update
from expire_span_rl.agents.kept_policy import Candidate, KeptPolicy, PolicyKeeper
from expire_span_rl.agents.learner import Learner
from expire_span_rl.agents.rollout import (
    Rollout,
    RolloutSource,
    acting_learning_difference,
    check_difference,
    select_prefix,
)
from expire_span_rl.agents.schedules import Schedules, whole_rollouts
from expire_span_rl.agents.scores import Scores
from expire_span_rl.agents.settings import ForgettingConfig
from expire_span_rl.agents.time_trial import TimeTrial
from expire_span_rl.checks import number_or_none
from expire_span_rl.protocols import LearningPolicy

TRIAL_FRACTION = 0.02
"""The share of the training that a trial of a kept policy lasts, at most."""
CHECK_EVERY = 50
"""Updates between two comparisons of acting with learning."""


class Trainer:
    """Trains `policy` with `agent` in `env`, one rollout per `update()`."""

    _COUNTERS = (
        "timesteps", "updates", "episodes", "last_check", "skipped", "skipped_in_a_row", "failure_rate", "begun",
    )  # fmt: skip

    def __init__(
        self,
        env: VectorEnv,
        policy: LearningPolicy,
        agent: Learner,
        forgetting: ForgettingConfig,
        *,
        total: int,
        seed: int,
        source: RolloutSource | None = None,
    ):
        """total: environment steps of the whole training. `total_timesteps` is the same, rounded up to whole rollouts.
        source: gives rollouts of `env.num_envs` environments. None: a `Collector` with `env` and `seed`."""
        self.env = env
        self.policy = policy
        self.agent = agent
        if source is None:
            source = Collector(
                env,
                policy,
                agent.config.num_steps,
                seed,
                novelty=agent.config.novelty_coef > 0,
                reward_outputs=agent.needs_reward_outputs,
            )
        self.collector = source
        self.window = EpisodeWindow(
            env.metadata.get("difficulty_key"),
            hard_size=forgetting.min_hard_episodes,
            num_actors=source.num_actors,
            ratios=env.metadata.get("ratios"),
        )
        self.controller = ForgettingController(
            replace(forgetting, forgetting=forgetting.forgetting and policy.can_forget)
        )
        self.scores = Scores(self.window, self.controller, learns_from_targets=agent.learns_from == TARGETS)
        self.rollout_size = agent.config.num_steps * env.num_envs
        self.total_timesteps = whole_rollouts(total, self.rollout_size)
        self.timesteps = 0
        self.begun = 0
        """The step at which this training was last given another length (`go_on`, `load_state`)."""
        self.updates = 0
        self.is_whole = True
        self.episodes = 0
        self.last_check: int | None = None
        """Number of updates at the last comparison of acting with learning."""
        self.skipped = 0
        """Updates that were taken back because numbers were not finite."""
        self.skipped_in_a_row = 0
        self.agent.check_deadline = self.collector.deadline.check
        self.log_dir: Path | None = None
        self.notes: list[str] = []
        """Remarks of the last `load_state`, one line each."""
        self.time_trial = TimeTrial()
        """Of skipped time, from the release of spans on."""
        self.keeper = PolicyKeeper(policy, self.controller)
        self.keeps_evaluated = False
        """Keep a policy only if `keep_evaluated` is called with the score of an evaluation that passed. Training
        samples its actions. The most likely actions alone can go wrong without the training's success showing it."""

    @property
    def best(self) -> KeptPolicy | None:
        """The best policy so far that met the constraint."""
        return self.keeper.best

    @property
    def stop(self) -> threading.Event:
        """Set it to end the training. A source that waits for a rollout then gives up."""
        return self.collector.stop

    @property
    def schedules(self) -> Schedules:
        """The schedules of the agent's settings."""
        return self.agent.schedules

    @property
    def failure_rate(self) -> float:
        """The agent's. It stays as it was while too few hard episodes have ended, as after a harder one than any
        before."""
        return self.agent.failure_rate

    @failure_rate.setter
    def failure_rate(self, rate: float) -> None:
        self.agent.failure_rate = rate

    @property
    def done(self) -> bool:
        """Whether all steps of the training are done."""
        return self.timesteps >= self.total_timesteps

    def go_on(self, timesteps: int) -> None:
        """Makes this a training of so many steps more, rounded up to whole rollouts."""
        self.total_timesteps = self.timesteps + whole_rollouts(timesteps, self.rollout_size)
        self.begun = self.timesteps

    def begin_new_episodes(self) -> None:
        """Has the next rollout begin new episodes, since somebody else has played in `env`. Environments that a source
        has for itself go on."""
        if isinstance(self.collector, Collector):
            self.collector.begin_new_episodes()

    def update(self) -> dict[str, float]:
        """Collects one rollout and learns from it. Returns metrics for the log.

        An update happens as a whole or not at all. Whatever it raises, the training's state is the one before it. Only
        environments that cannot save their state begin new episodes. Raises TrainingEnded if the training cannot go
        on."""
        attributes = {name: getattr(self, name) for name in self._COUNTERS}
        kept = self.keeper.kept
        window = self.window.state_dict()
        controller = self.controller.state_dict()
        time_trial = self.time_trial.state_dict()
        snapshot = self.collector.snapshot()
        backup = self.agent.backup()
        generator = self.agent.generator.get_state()
        try:
            return self._update(backup)
        except BaseException:
            self.is_whole = False  # until all is as before
            self.collector.restore(snapshot)
            backup.restore()
            self.agent.generator.set_state(generator)
            self.window.load_state_dict(window)
            self.controller.load_state_dict(controller)
            self.time_trial.load_state_dict(time_trial)
            self.keeper.kept = kept
            for name, value in attributes.items():
                setattr(self, name, value)
            self.is_whole = True
            raise

    def _update(self, backup: Backup) -> dict[str, float]:
        """Does the work of `update`. backup: of what the agent changes."""
        # Collect.
        start_time = time.perf_counter()
        num_noisy = self.schedules.noisy_rollouts(self.begun, self.timesteps, self.total_timesteps, self.rollout_size)
        if self.controller.set_noise(num_noisy > 0):
            self.window.hard.clear()
        self.collector.long_after = self.window.long_after()
        rollout, episodes = self.collector.collect(num_noisy)
        collect_time = time.perf_counter()

        # Keep the best policy, and set the pressure on spans.
        hardest = self.window.hardest
        new_hard_episodes = self.window.add(episodes, self._older_episodes)
        self.episodes += sum(RUNNING not in episode for episode in episodes)
        live_now = self._live_now
        if live_now is not None:
            self.window.live.append(live_now)
        hard_score, count = self.window.hard_score()
        if not self.window.reports_success:
            self.failure_rate = 1.0
        elif self.controller.is_enough(count):
            self.failure_rate = 1 - hard_score
        now = self._candidate(is_own=self._is_own(new_hard_episodes), trial=self._trial())
        is_harder = self.window.has_difficulty and self.window.hardest > hardest
        self.keeper.review(now, new_hard_episodes, is_harder=is_harder)
        if not self.keeps_evaluated:
            is_tested = new_hard_episodes > 0 or self.controller.loss is not None  # the loss is of every block
            self.keeper.keep(now, is_tested=is_tested)
        was_known = self.controller.needs_known
        total_updates = self.total_timesteps / self.rollout_size
        pressure = self.controller.update(now.score, now.live, new_hard_episodes, self._progress(), total_updates)

        # Compare acting with learning.
        metrics = dict(self.collector.metrics())
        if self.collector.on_policy and self._check_due(rollout):
            metrics["train/acting_learning_difference"] = self._check(rollout)

        # Learn.
        learn_time = time.perf_counter()
        metrics.update(self._learn(rollout, pressure, backup))
        self.controller.observe_bits(metrics.get("train/bits"))
        if self.controller.config.forgetting:
            self._let_spans_follow_needs(was_known)
            self.policy.tighten_spans(self.controller.tightening(total_updates))
            if num_noisy:  # otherwise no time is skipped
                self._try_skipped_time(episodes, metrics)
        end_time = time.perf_counter()
        self.timesteps += self.rollout_size
        self.updates += 1

        metrics.update(self.window.summary())
        metrics.update(self._memory_metrics(rollout, pressure))
        metrics["time/fps"] = self.rollout_size / (end_time - start_time)
        metrics["time/rollout_seconds"] = collect_time - start_time
        metrics["time/update_seconds"] = end_time - learn_time
        metrics["time/total_timesteps"] = self.timesteps
        metrics["time/episodes"] = self.episodes
        return metrics

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

    def _try_skipped_time(self, episodes: Sequence[Mapping[str, Any]], metrics: dict[str, float]) -> None:
        """Has no more time skipped once this is known to harm. Adds to the metrics what it costs. episodes: that ended
        in this update."""
        if not (self.policy.can_skip_time and self.controller.needs_known) or self.time_trial.is_over:
            return
        compared = [episode for episode in episodes if IS_CONTROL in episode and self.window.has_score(episode)]
        scores = self.window.scores(compared).tolist()
        self.time_trial.add(zip(scores, (episode[IS_CONTROL] for episode in compared), strict=True))
        if self.time_trial.is_harmful(self.scores.gain):
            self.time_trial.is_over = True
            self.policy.keep_time()
        if self.time_trial.loss is not None:
            metrics["memory/skipped_time_loss"] = self.time_trial.loss

    def _memory_metrics(self, rollout: Rollout, pressure: float) -> dict[str, float]:
        """Metrics of live memories and of forgetting."""
        live = self.collector.live
        live_now = self._live_now
        metrics: dict[str, float] = {}
        for layer, value in enumerate(live.get("mean", ())):
            metrics[f"memory/live_mean/layer_{layer}"] = value
            metrics[f"memory/live_max/layer_{layer}"] = live["max"][layer]
        if live_now is not None:
            metrics["memory/live_mean"] = live_now
            metrics["memory/live_max"] = float(max(live["max"]))
        metrics.update({f"memory/{name}": value for name, value in self.policy.memory_metrics(rollout).items()})
        if self.policy.can_forget:
            metrics["memory/pressure"] = pressure
        return metrics

    def keep_evaluated(self, result: Mapping[str, Any]) -> None:
        """Keeps the present policy if it meets the constraint both in training and in an evaluation. result: of the
        evaluation (`Scores.of_evaluation`). See `keeps_evaluated`."""
        if self.scores.of_evaluation(result) >= self.controller.target(self.scores.are_success):
            self.keeper.keep(self._candidate(is_own=True), is_tested=True)

    @property
    def _older_episodes(self) -> int | None:
        """How many episodes of a rollout earlier policies may have begun: one in each environment. None: all."""
        return self.env.num_envs if self.collector.on_policy else None

    def _is_own(self, new_hard_episodes: int) -> bool:
        """Whether as many hard episodes as the score counts began and ended in the last rollout."""
        older = self._older_episodes
        return older is not None and new_hard_episodes - older >= len(self.window.hard)

    def _trial(self) -> int:
        """`Candidate.trial`: reviews until episodes that the policy got stuck in have taken long (`RUNNING`), at most
        TRIAL_FRACTION of the training."""
        long_after = self.collector.long_after
        if math.isinf(long_after):
            return 0
        rollouts_of_actor = math.ceil(long_after / self.agent.config.num_steps) + self.collector.queue
        most = int(TRIAL_FRACTION * self.total_timesteps / self.rollout_size)
        return min(rollouts_of_actor * self.collector.num_actors, most)

    def _candidate(self, *, is_own: bool = False, trial: int = 0) -> Candidate:
        """What is known of the policy as it is now. Arguments: of `Candidate`."""
        num_steps, released = self.agent.config.num_steps, self.controller.needs_known
        is_measured = self.window.is_live_measured(num_steps, spans_released=released, queue=self.collector.queue)
        return Candidate(
            score=self.scores.now(),
            live=self.window.mean_live(num_steps),
            is_live_measured=is_measured or not self.policy.can_forget,  # else they still grow
            timesteps=self.timesteps,
            is_own=is_own,
            trial=trial,
        )

    def unfinished(self) -> str | None:
        """A line that says so if the spans of the kept policy are not released, so that it cannot remember for longer;
        else None."""
        reach = self.policy.unreleased_reach()
        is_kept_released = self.best is not None and self.best.released
        if reach is None or is_kept_released or not self.controller.config.forgetting:
            return None
        missing = self.controller.missing(self.scores.now())
        return f"memories were not shortened, each lasts {reach:,.0f} steps: {missing}"

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The whole state of the training: tensors by name, and JSON-able metadata."""
        collector_tensors, collector_metadata = self.collector.state()
        agent_tensors, agent_metadata = self.agent.state()
        tensors = {f"policy/{name}": tensor for name, tensor in self.policy.state_dict().items()}
        tensors |= {f"collector/{name}": tensor for name, tensor in collector_tensors.items()}
        tensors |= {f"agent/{name}": tensor for name, tensor in agent_tensors.items()}
        kept_tensors, kept_metadata = self.keeper.state()
        tensors |= kept_tensors
        metadata = {
            "counters": {name: getattr(self, name) for name in self._COUNTERS},
            "collector": collector_metadata,
            "agent": agent_metadata,
            "window": self.window.state_dict(),
            "controller": self.controller.state_dict(),
            "time_trial": self.time_trial.state_dict(),
            "best": kept_metadata,
            "schedules": self.agent.schedules.state(self.total_timesteps),
        }
        return tensors, metadata

    def load_state(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> bool:
        """Continues from `state`: the next update is what it would have been. Returns False if the environments could
        not save their state, so that they begin new episodes. `notes` then says what has changed."""
        self.policy.load_state_dict(select_prefix("policy/", tensors))
        self.agent.load_state(select_prefix("agent/", tensors), metadata["agent"])
        episodes_continue = self.collector.load_state(select_prefix("collector/", tensors), metadata["collector"])
        for name in self._COUNTERS:
            if name in metadata["counters"]:  # runs of earlier versions do not have all of them
                setattr(self, name, number_or_none(name, metadata["counters"][name]))
        self.notes = [*self.collector.notes]
        schedules = metadata.get("schedules")  # runs from before 26 November 2026 have none
        if schedules is not None:
            last_update = self.timesteps - self.rollout_size
            note = self.agent.schedules.load_state(schedules, self.timesteps, last_update, self.total_timesteps)
            self.notes += [note] if note else []
            if schedules["total"] != self.total_timesteps > self.timesteps:
                self.begun = self.timesteps
        self.window.load_state_dict(metadata["window"])
        self.controller.load_state_dict(metadata["controller"])
        if "time_trial" in metadata:  # runs from before 8de04c8 have none
            self.time_trial.load_state_dict(metadata["time_trial"])
        self.keeper.load_state(tensors, metadata["best"])
        return episodes_continue

    def close(self) -> None:
        """Ends the environments and the actors."""
        self.collector.log_dir = self.log_dir
        self.collector.close()

    def _learn(self, rollout: Rollout, pressure: float, backup: Backup) -> dict[str, float]:
        """Learns from a rollout, or takes the update back if it is not finite. Raises TrainingEnded after too many of
        these in a row."""
        metrics: dict[str, float] = {}
        try:
            learner_metrics = self.agent.update(rollout, self._progress(), pressure)
            # The statistics change after learning, so that acting and learning of a rollout normalise alike.
            self.policy.observe(rollout.observation)
            self.agent.check_finite()
            self.skipped_in_a_row = 0
            metrics = learner_metrics
        except NotFinite as error:
            backup.restore()
            self.skipped += 1
            self.skipped_in_a_row += 1
            report_skipped_update(self.updates + 1, self.skipped_in_a_row, error)
        return {**metrics, "train/skipped_updates": self.skipped}

    def _progress(self) -> float:
        """The fraction of the schedules that is over."""
        return self.agent.schedules.progress(self.timesteps, self.total_timesteps)

    def _check_due(self, rollout: Rollout) -> bool:
        """Whether acting is to be compared with learning: at the first rollout that begins with memories and has an
        episode start, and every CHECK_EVERY updates after it."""
        if self.last_check is not None:
            return self.updates >= self.last_check + CHECK_EVERY
        counts = rollout.memory.live()
        return (counts is None or bool(counts.any())) and bool(rollout.episode_start.any()) and self.updates > 0

    def _check(self, rollout: Rollout) -> float:
        """The difference between acting and learning. Raises TrainingEnded if it is more than rounding."""
        difference = acting_learning_difference(self.policy, rollout)
        self.last_check = self.updates
        check_difference(difference, self.policy.precision, f"at update {self.updates}")
        return difference

    @property
    def _live_now(self) -> float | None:
        """Live memories per layer in the last rollout. None for a memory without slots."""
        live = self.collector.live
        return float(np.mean(live["mean"])) if live else None
