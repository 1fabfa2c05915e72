"""An actor: a vector environment and a copy of the policy in a process of its own. Ray starts actors, but nothing here
needs Ray."""

from __future__ import annotations

import math
import os
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv

from expire_span_rl.agents.collector import Collector
from expire_span_rl.agents.rollout import acting_learning_difference
from expire_span_rl.agents.transport import Arrays, Context, pack, to_tensors
from expire_span_rl.protocols import LearningPolicy


@dataclass(frozen=True)
class Request:
    """What the learner asks of an actor, besides a rollout."""

    version: int
    """Version of the weights: the number of updates that led to them."""
    noiseless: bool = False
    """Collect without training noise."""
    context: bool = False
    """Send what the learner needs to compute the memory again."""
    check: bool = False
    """Compare acting with learning."""
    long_after: float = math.inf
    """As of the `RolloutSource`."""


@dataclass(frozen=True)
class Delivery:
    """What an actor sends back: a rollout and its details, or the reason why there is none."""

    incarnation: str
    """Name of the process. It changes when the actor is restarted."""
    version: int = 0
    rollout: Arrays = field(default_factory=dict)
    episodes: list[dict[str, Any]] = field(default_factory=list)
    live: dict[str, list[float]] = field(default_factory=dict)
    context: Arrays = field(default_factory=dict)
    difference: float | None = None
    """The largest difference between acting and learning. None if the request did not ask for it."""
    idle_seconds: float = 0.0
    busy_seconds: float = 0.0
    restarted: bool = False
    """True if this process replaces one that died, whose rollout is lost."""
    failure: str = ""
    """The type of the error and where it was raised. It is the same for failures of the same kind."""
    traceback: str = ""


class Actor:
    """Collects one rollout per call. An error inside is delivered and not raised, since the learner's process may not
    have the error's class."""

    def __init__(
        self,
        make_env: Callable[[], VectorEnv],
        policy: LearningPolicy,
        num_steps: int,
        context_steps: int,
        seed: int,
        *,
        novelty: bool = False,
        reward_outputs: bool = False,
    ):
        """make_env is called at the first rollout. context_steps: K of `Context`, rounded up to whole rollouts;
        novelty, reward_outputs: as for `Collector`."""
        torch.set_num_threads(1)
        self.make_env = make_env
        self.policy = policy
        self.num_steps = num_steps
        self.seed = seed
        self.extras = {"novelty": novelty, "reward_outputs": reward_outputs}
        self.context = Context(-(-context_steps // num_steps))
        self.collector: Collector | None = None
        self.incarnation = f"{os.getpid()}-{os.urandom(4).hex()}"
        self.idle_since: float | None = None

    def collect(self, weights: Mapping[str, np.ndarray], request: Request) -> Delivery:
        """Collects a rollout with these weights."""
        start_time = time.perf_counter()
        idle_seconds = 0.0 if self.idle_since is None else start_time - self.idle_since
        try:
            if self.collector is None:
                self.collector = Collector(self.make_env(), self.policy, self.num_steps, self.seed, **self.extras)
            self.policy.load_state_dict(to_tensors(weights, "cpu"))
            context = self.context.pack() if request.context else {}
            self.collector.long_after = request.long_after
            rollout, episodes = self.collector.collect(0 if request.noiseless else math.inf)
            self.context.add(rollout)
            difference = acting_learning_difference(self.policy, rollout) if request.check else None
        except Exception as error:  # noqa: BLE001, an environment may raise anything
            return Delivery(self.incarnation, failure=_failure_kind(error), traceback=traceback.format_exc())
        self.idle_since = time.perf_counter()
        return Delivery(
            incarnation=self.incarnation,
            version=request.version,
            rollout=pack(rollout),
            episodes=episodes,
            live=self.collector.live,
            context=context,
            difference=difference,
            idle_seconds=idle_seconds,
            busy_seconds=self.idle_since - start_time,
        )


def _failure_kind(error: Exception) -> str:
    """The error's type and where it was raised. If an environment raised the error, those of the environment's."""
    error = error.__cause__ if isinstance(error.__cause__, Exception) else error
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} in {frame.name} ({os.path.basename(frame.filename)}:{frame.lineno})"
