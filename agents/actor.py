"""An actor: a vector environment and a copy of the policy in a process of its own. What runs there; Ray is not
needed."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv

from expire_span_rl.agents.rollout import Collector, acting_learning_difference
from expire_span_rl.agents.transport import Arrays, Context, pack, to_tensors
from expire_span_rl.protocols import LearningPolicy


@dataclass(frozen=True)
class Request:
    """What the learner asks of an actor beside a rollout."""

    version: int
    """Of the weights: the number of updates before them."""
    context: bool = False
    """Send what it takes to compute the memory anew."""
    check: bool = False
    """Compare acting with learning."""


@dataclass(frozen=True)
class Delivery:
    """What an actor sends: a rollout and what goes with it, or why there is none."""

    incarnation: str
    """Names the process: it changes when the actor was restarted."""
    version: int = 0
    rollout: Arrays = field(default_factory=dict)
    episodes: list[dict[str, Any]] = field(default_factory=list)
    live: dict[str, list[float]] = field(default_factory=dict)
    context: Arrays = field(default_factory=dict)
    difference: float | None = None
    """The largest between acting and learning, if asked for."""
    idle_seconds: float = 0.0
    busy_seconds: float = 0.0
    died: bool = False
    """The process is a new one, since the one before it died with its rollout."""
    failure: str = ""
    """What was raised and where, in a few words that are the same for failures of the same kind."""
    traceback: str = ""


class Actor:
    """Collects a rollout per call. An error inside is delivered, not raised: its class may exist here only."""

    def __init__(
        self, make_env: Callable[[], VectorEnv], policy: LearningPolicy, num_steps: int, context_steps: int, seed: int
    ):
        """make_env is called at the first rollout; context_steps: K of `Context`, rounded up to whole rollouts."""
        torch.set_num_threads(1)
        self.make_env, self.policy, self.num_steps, self.seed = make_env, policy, num_steps, seed
        self.context = Context(-(-context_steps // num_steps))
        self.collector: Collector | None = None
        self.incarnation = f"{os.getpid()}-{os.urandom(4).hex()}"
        self.ended: float | None = None

    def collect(self, weights: Mapping[str, np.ndarray], request: Request) -> Delivery:
        """A rollout with these weights."""
        began = time.perf_counter()
        idle = 0.0 if self.ended is None else began - self.ended
        try:
            if self.collector is None:
                self.collector = Collector(self.make_env(), self.policy, self.num_steps, self.seed)
            self.policy.load_state_dict(to_tensors(weights, "cpu"))
            context = self.context.packed() if request.context else {}
            rollout, episodes = self.collector.collect()
            self.context.add(rollout)
            difference = acting_learning_difference(self.policy, rollout) if request.check else None
        except Exception as error:  # noqa: BLE001, whatever an environment raises
            return Delivery(self.incarnation, failure=_kind(error), traceback=traceback.format_exc())
        self.ended = time.perf_counter()
        return Delivery(
            self.incarnation,
            request.version,
            pack(rollout),
            episodes,
            self.collector.live,
            context,
            difference,
            idle,
            self.ended - began,
        )


def _kind(error: Exception) -> str:
    """The error's type and where it was raised; of what an environment raised, of that."""
    error = error.__cause__ if isinstance(error.__cause__, Exception) else error
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} in {where.name} ({os.path.basename(where.filename)}:{where.lineno})"
