"""The loop that all agents share: collect, check, learn, forget, keep the best policy."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gymnasium.vector import VectorEnv
from torch import Tensor

from expire_span_rl.agents.collector import Collector
from expire_span_rl.agents.entries import TARGETS
from expire_span_rl.agents.guard import Backup, NotFinite, report_skipped_update
from expire_span_rl.agents.judge import Judge
from expire_span_rl.agents.kept_policy import KeptPolicy
from expire_span_rl.agents.learner import Learner
from expire_span_rl.agents.long_episodes import RUNNING
from expire_span_rl.agents.rollout import (
    Rollout,
    RolloutSource,
    acting_learning_difference,
    check_difference,
    select_prefix,
)
from expire_span_rl.agents.schedules import Schedules, whole_rollouts
from expire_span_rl.agents.settings import ForgettingConfig
from expire_span_rl.checks import number_or_none
from expire_span_rl.protocols import LearningPolicy

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
        self.judge = Judge(
            env,
            policy,
            source,
            forgetting,
            num_steps=agent.config.num_steps,
            learns_from_targets=agent.learns_from == TARGETS,
        )
        self.window = self.judge.window
        self.controller = self.judge.controller
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
        self.keeps_evaluated = False
        """Keep a policy only if `keep_evaluated` is called with the score of an evaluation that passed. Training
        samples its actions. The most likely actions alone can go wrong without the training's success showing it."""

    @property
    def best(self) -> KeptPolicy | None:
        """The best policy so far that met the constraint."""
        return self.judge.best

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
        judge = self.judge.snapshot()
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
            self.judge.restore(judge)
            for name, value in attributes.items():
                setattr(self, name, value)
            self.is_whole = True
            raise

    def _update(self, backup: Backup) -> dict[str, float]:
        """Does the work of `update`. backup: of what the agent changes."""
        # Collect.
        start_time = time.perf_counter()
        num_noisy = self.schedules.noisy_rollouts(self.begun, self.timesteps, self.total_timesteps, self.rollout_size)
        self.judge.begin_rollout(has_noise=num_noisy > 0)
        rollout, episodes = self.collector.collect(num_noisy)
        collect_time = time.perf_counter()

        # Keep the best policy, and set the pressure on spans.
        self.episodes += sum(RUNNING not in episode for episode in episodes)
        was_known = self.controller.needs_known
        total_updates = self.total_timesteps / self.rollout_size
        now = self.judge.review(episodes, self.timesteps, total_updates)
        if not self.keeps_evaluated:
            self.judge.keep(now)
        pressure = self.judge.set_pressure(now, self._progress(), total_updates)
        failure_rate = self.judge.failure_rate()
        if failure_rate is not None:
            self.failure_rate = failure_rate

        # Compare acting with learning.
        metrics = dict(self.collector.metrics())
        if self.collector.on_policy and self._check_due(rollout):
            metrics["train/acting_learning_difference"] = self._check(rollout)

        # Learn.
        learn_time = time.perf_counter()
        metrics.update(self._learn(rollout, pressure, backup))
        self.controller.observe_bits(metrics.get("train/bits"))
        metrics |= self.judge.adapt_memory(
            episodes, was_known=was_known, has_noise=num_noisy > 0, total_updates=total_updates
        )
        end_time = time.perf_counter()
        self.timesteps += self.rollout_size
        self.updates += 1

        metrics.update(self.window.summary())
        metrics.update(self.judge.memory_metrics(rollout))
        metrics["time/fps"] = self.rollout_size / (end_time - start_time)
        metrics["time/rollout_seconds"] = collect_time - start_time
        metrics["time/update_seconds"] = end_time - learn_time
        metrics["time/total_timesteps"] = self.timesteps
        metrics["time/episodes"] = self.episodes
        return metrics

    def keep_evaluated(self, result: Mapping[str, Any]) -> None:
        """`Judge.keep_evaluated` of the policy as it is."""
        self.judge.keep_evaluated(result, self.timesteps)

    def unfinished(self) -> str | None:
        """`Judge.unfinished`."""
        return self.judge.unfinished()

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The whole state of the training: tensors by name, and JSON-able metadata."""
        collector_tensors, collector_metadata = self.collector.state()
        agent_tensors, agent_metadata = self.agent.state()
        tensors = {f"policy/{name}": tensor for name, tensor in self.policy.state_dict().items()}
        tensors |= {f"collector/{name}": tensor for name, tensor in collector_tensors.items()}
        tensors |= {f"agent/{name}": tensor for name, tensor in agent_tensors.items()}
        judge_tensors, judge_metadata = self.judge.state()
        tensors |= judge_tensors
        metadata = {
            "counters": {name: getattr(self, name) for name in self._COUNTERS},
            "collector": collector_metadata,
            "agent": agent_metadata,
            **judge_metadata,
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
        self.judge.load_state(tensors, metadata)
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
