"""The loop that all agents share: collect, check, learn, forget, keep the best."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv
from torch import Tensor

from expire_span_rl.agents.episodes import EpisodeWindow
from expire_span_rl.agents.forgetting import ForgettingConfig, ForgettingController
from expire_span_rl.agents.guard import Backup, NotFinite, TrainingEnded, tell_skipped
from expire_span_rl.agents.rollout import (
    LARGEST_DIFFERENCE,
    Collector,
    Rollout,
    RolloutSource,
    acting_learning_difference,
    under,
)
from expire_span_rl.agents.schedules import Schedules
from expire_span_rl.checks import number_or_none

CHECK_EVERY = 50  # updates between two checks that acting equals learning
AS_FEW = 1.2
"""Policies with up to so many times the fewest live memories count as equally good, and the latest of them is kept. The
very fewest is a moment picked by chance: a rollout of short episodes, or spans whose brevity success does not show
yet."""


class Trainer:
    """Trains `policy` with `agent` in `env`, one rollout per `update()`."""

    def __init__(
        self,
        env: VectorEnv,
        policy: Any,
        agent: Any,
        forgetting: ForgettingConfig,
        total: int,
        seed: int,
        source: RolloutSource | None = None,
    ):
        """total: environment steps of the whole training, rounded up to whole rollouts in `total_timesteps`; source: of
        rollouts of `env.num_envs` environments, None to collect them here, in `env` with `seed`."""
        self.env, self.policy, self.agent = env, policy, agent
        self.collector = Collector(env, policy, agent.config.num_steps, seed) if source is None else source
        self.window = EpisodeWindow(env.metadata.get("difficulty_key"), hard_size=forgetting.min_hard_episodes)
        self.controller = ForgettingController(forgetting)
        self.rollout_size = agent.config.num_steps * env.num_envs
        self.total_timesteps = -(-total // self.rollout_size) * self.rollout_size
        self.timesteps = self.updates = self.episodes = 0
        self.last_check: int | None = None
        self.skipped = self.skipped_in_a_row = 0  # updates that were taken back, since they left what is not finite
        self.agent.check_deadline = self.collector.deadline.check
        self.notes: list[str] = []  # what `load_state` has to say, in lines
        self.best: dict[str, Any] | None = None  # weights and figures of the best policy that met the constraint
        self.keeps_evaluated = False
        """Keep a policy only where `keep_evaluated` says that an evaluation passed. Training draws its actions: what it
        learns of the likeliest alone can go wrong without its success showing it."""

    _COUNTERS = ("timesteps", "updates", "episodes", "last_check", "skipped", "skipped_in_a_row")

    @property
    def stop(self) -> threading.Event:
        """Set it to end the training: a source that waits for a rollout gives up."""
        return self.collector.stop

    @property
    def schedules(self) -> Schedules:
        """Those of the agent's settings."""
        return self.agent.schedules

    @property
    def done(self) -> bool:
        return self.timesteps >= self.total_timesteps

    def update(self) -> dict[str, float]:
        """One rollout and what is learned from it. Returns figures for the log.

        It happens as a whole or not at all: whatever it raises, the training's state is that before it, but for
        environments that cannot save theirs, which begin new episodes. Raises TrainingEnded if there is nothing to go
        on with."""
        before = {name: getattr(self, name) for name in (*self._COUNTERS, "best")}
        window, controller = self.window.state_dict(), self.controller.state_dict()
        collected, backup = self.collector.snapshot(), self.agent.backup()
        generator = self.agent.generator.get_state()
        try:
            return self._updated(backup)
        except BaseException:
            self.collector.restore(collected)
            backup.restore()
            self.agent.generator.set_state(generator)
            self.window.load_state_dict(window)
            self.controller.load_state_dict(controller)
            for name, value in before.items():
                setattr(self, name, value)
            raise

    def _updated(self, backup: Backup) -> dict[str, float]:
        """See `update`. backup: of what the agent changes."""
        began = time.perf_counter()
        rollout, episodes = self.collector.collect()
        collected = time.perf_counter()
        fresh = self.window.add(episodes)
        self.episodes += len(episodes)
        live = self.collector.live
        mean_live = self._mean_live
        score, count = self.window.hard_score()
        is_success = self.window.tells_success
        if self.controller.loss is not None and self.controller.loss.bits is not None:
            score = -self.controller.loss.bits
        self._drop_best(is_success)
        if not self.keeps_evaluated:
            self._keep_best(score, count, is_success, mean_live)
        can_forget = self.policy.can_forget
        pressure = self.controller.update(score, count, is_success, mean_live, fresh) if can_forget else 0.0
        figures = dict(self.collector.figures())
        if self.collector.on_policy and self._check_due(rollout):
            figures["train/acting_learning_difference"] = self._check(rollout)
        checked = time.perf_counter()
        figures.update(self._learned(rollout, pressure, backup))
        self.controller.observe_bits(figures.get("train/bits"))
        if self.controller.learned:
            self.policy.release_spans()
        ended = time.perf_counter()
        self.timesteps += self.rollout_size
        self.updates += 1
        figures.update(self.window.summary())
        for layer, value in enumerate(live.get("mean", ())):
            figures[f"memory/live_mean/layer_{layer}"] = value
            figures[f"memory/live_max/layer_{layer}"] = live["max"][layer]
        if mean_live is not None:
            figures["memory/live_mean"], figures["memory/live_max"] = mean_live, float(max(live["max"]))
        figures.update({f"memory/{name}": value for name, value in self.policy.memory_figures(rollout).items()})
        if can_forget:
            figures["memory/pressure"] = pressure
        figures["time/fps"] = self.rollout_size / (ended - began)
        figures["time/rollout_seconds"] = collected - began
        figures["time/update_seconds"] = ended - checked
        figures["time/total_timesteps"] = self.timesteps
        figures["time/episodes"] = self.episodes
        return figures

    def keep_evaluated(self, score: float) -> None:
        """Keeps the policy as it is now if it meets the constraint in training and in an evaluation, whose score this
        is: success, or the return where there is no success. See `keeps_evaluated`."""
        trained, count = self.window.hard_score()
        is_success = self.window.tells_success
        if score >= self.controller.target(is_success):
            self._keep_best(trained, count, is_success, self._mean_live)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The whole state of the training: tensors by name, and JSON-able figures."""
        collector, known = self.collector.state()
        agent, agent_known = self.agent.state()
        tensors = {f"policy/{name}": tensor for name, tensor in self.policy.state_dict().items()}
        tensors |= {f"collector/{name}": tensor for name, tensor in collector.items()}
        tensors |= {f"agent/{name}": tensor for name, tensor in agent.items()}
        best = None
        if self.best is not None:
            tensors |= {f"best/{name}": tensor for name, tensor in self.best["weights"].items()}
            best = {name: value for name, value in self.best.items() if name != "weights"}
        counters = {name: getattr(self, name) for name in self._COUNTERS}
        figures = {
            "counters": counters,
            "collector": known,
            "agent": agent_known,
            "window": self.window.state_dict(),
            "controller": self.controller.state_dict(),
            "best": best,
            "schedules": self.agent.schedules.state(self.total_timesteps),
        }
        return tensors, figures

    def load_state(self, tensors: Mapping[str, Tensor], figures: Mapping[str, Any]) -> bool:
        """Continues from `state`: the next update is what it would have been. Returns False if the environments could
        not save their state, so that they begin new episodes. `notes` then says what does not go on as it was."""
        self.notes = []
        self.policy.load_state_dict(under("policy/", tensors))
        self.agent.load_state(under("agent/", tensors), figures["agent"])
        continued = self.collector.load_state(under("collector/", tensors), figures["collector"])
        for name in self._COUNTERS:
            if name in figures["counters"]:  # runs of earlier versions do not have all
                setattr(self, name, number_or_none(name, figures["counters"][name]))
        self.notes += self.collector.notes
        schedules = figures.get("schedules")  # runs from before 26 November 2026 have none
        if schedules is not None:
            last = self.timesteps - self.rollout_size
            note = self.agent.schedules.load_state(schedules, self.timesteps, last, self.total_timesteps)
            self.notes += [note] if note else []
        self.window.load_state_dict(figures["window"])
        self.controller.load_state_dict(figures["controller"])
        best = figures["best"]
        if best is not None:  # runs before 24 November 2026 told the fewest as the cost
            best = {"fewest": best.get("cost"), **best}
            numbers = [best[name] for name in ("fewest", "score", "timesteps")]
            if not all(isinstance(number, (int, float)) for number in [*numbers, best["live"] or 0.0]):
                raise TypeError(f"best: expected numbers, got {numbers}")
            best["weights"] = under("best/", tensors)
        self.best = best
        return continued

    def close(self) -> None:
        """Lets environments and actors go."""
        self.collector.close()

    def _learned(self, rollout: Rollout, pressure: float, backup: Backup) -> dict[str, float]:
        """Learns from a rollout, or takes back what was learned if that is not finite. Raises TrainingEnded after it
        happened too often in a row."""
        figures: dict[str, float] = {}
        try:
            learned = self.agent.update(rollout, self._progress(), pressure)
            self.policy.observe(rollout.observation)  # afterwards: acting and learning normalise alike
            self.agent.check_finite()
            self.skipped_in_a_row, figures = 0, learned
        except NotFinite as error:
            backup.restore()
            self.skipped += 1
            self.skipped_in_a_row += 1
            tell_skipped(self.updates + 1, self.skipped_in_a_row, error)
        return {**figures, "train/skipped_updates": self.skipped}

    def _progress(self) -> float:
        """The fraction of the schedules that is over."""
        return self.agent.schedules.progress(self.timesteps, self.total_timesteps)

    def _check_due(self, rollout: Any) -> bool:
        if self.last_check is not None:
            return self.updates >= self.last_check + CHECK_EVERY
        counts = rollout.memory.live()
        return (counts is None or bool(counts.any())) and bool(rollout.episode_start.any()) and self.updates > 0

    def _check(self, rollout: Any) -> float:
        """Raises TrainingEnded if acting and learning differ by more than rounding."""
        difference = acting_learning_difference(self.policy, rollout)
        self.last_check = self.updates
        if not difference < LARGEST_DIFFERENCE:
            raise TrainingEnded(
                f"acting and learning differ: expected outputs within {LARGEST_DIFFERENCE} of each other, relative to their "
                f"size, got {difference:.3g} at update {self.updates}"
            )
        return difference

    @property
    def _mean_live(self) -> float | None:
        """Live memories per layer in the last rollout; None for a memory without slots."""
        live = self.collector.live
        return float(np.mean(live["mean"])) if live else None

    def _drop_best(self, is_success: bool) -> None:
        """Lets the kept policy go if it no longer meets the target, which without success moves with the best
        return."""
        if self.best is not None and self.best["score"] < self.controller.target(is_success):
            self.best = None

    def _keep_best(self, score: float, count: int, is_success: bool, live: float | None) -> None:
        """Keeps the present weights if the constraint holds with about as few live memories as ever, so that they are the
        latest of those; where nothing is brought down, the latest with which it holds."""
        if not self.controller.holds(score, count, is_success):
            return
        cost, budget = 0.0, self.controller.config.memory_budget
        if self.policy.can_forget and self.controller.config.forgetting and live is not None:
            cost = max(live, budget)  # within the budget fewer is no better
        fewest = cost if self.best is None else min(cost, self.best["fewest"])
        if cost <= (AS_FEW * fewest if fewest > budget else fewest):
            weights = {key: value.detach().clone() for key, value in self.policy.state_dict().items()}
            kept = {"fewest": fewest, "live": live, "score": score, "timesteps": self.timesteps}
            self.best = {**kept, "weights": weights}
