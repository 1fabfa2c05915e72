"""Actors on Ray: a source of rollouts for the trainer, from the cores of this machine or of a cluster. This file and
`agents.ray_cluster` are the only ones that import ray.

Each actor has up to `QUEUE` requests, so that it goes on acting while the learner learns. A request carries the weights
of the update before it was sent. The actors' policies therefore lag behind the learner's.
"""

from __future__ import annotations

import copy
import math
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, cast

from gymnasium.vector import VectorEnv
from torch import Tensor

from expire_span_rl.agents.actor import Actor, Delivery, Request
from expire_span_rl.agents.guard import Deadline
from expire_span_rl.agents.ray_cluster import RayCluster
from expire_span_rl.agents.rollout import Rollout, RolloutsEnded, check_difference, far_seed
from expire_span_rl.agents.schedules import whole_rollouts
from expire_span_rl.agents.transport import recompute_memory, size, unpack
from expire_span_rl.interrupts import unblock
from expire_span_rl.protocols import LearningPolicy

# isort: split
# After `ray_cluster`, which checks the version and sets what Ray reads when it is imported.
import ray
import ray.exceptions
from ray import cloudpickle

QUEUE = 2
"""Requests under way per actor."""
FAILURES = 5
"""Training stops after so many failures of the same kind."""
CHECK_EVERY = 50
"""Updates between two checks of the memories' drift, and of acting against learning."""
SIGNAL_WITHIN = 1.0
"""Seconds for a signal to arrive that may have ended Ray."""
PATIENCE = 60.0
"""Seconds without a rollout after which a message says so."""
ACTING_PRECISION = "float32"
"""Of the actors' policies: bfloat16 is slower on most CPUs. To the learner, rounding is part of their lag."""
SEED_STEP = 100_003
"""Difference between the seeds of two actors. The environments of an actor have the seeds from the actor's own on."""
NEAR_SEEDS = 9
"""So many actors have seeds that are near the run's. More steps would come to those of the run with the next seed."""
SHARE_WINDOW = 4
"""Deliveries per actor over which the share of idle time is averaged."""
ENVIRONMENT_FAILED = "expire_span_rl.envs.errors.EnvironmentFailed: "
"""A traceback's last line begins so if an environment failed. The rest of the line describes the failure."""


class ActorPool:
    """Rollouts as they come, from actors that each have a vector environment and a copy of the policy. It is a
    `RolloutSource`."""

    on_policy: ClassVar[bool] = False  # actors lag behind; each compares its acting with its own weights' learning
    queue: ClassVar[int] = QUEUE

    def __init__(
        self,
        make_env: Callable[[], VectorEnv],
        policy: LearningPolicy,
        num_steps: int,
        *,
        seed: int,
        num_actors: int,
        address: str = "",
        refresh: int = 0,
        novelty: bool = False,
        reward_outputs: bool = False,
        say: Callable[[str], None] = print,
        log: Callable[[str], None] = lambda text: None,
    ):
        """num_actors: 0 for one per free CPU. address: of a Ray cluster; "" starts Ray on this machine. refresh: steps
        before each rollout from which its memory is computed again. novelty, reward_outputs: as for `Collector`. say:
        takes a line for the user. log: takes text that is only for the log, such as tracebacks. Raises ValueError, one
        line, before any actor starts."""
        self.policy = policy
        self.num_steps = num_steps
        self.seed = seed
        self.refresh = refresh
        self.log_dir: Path | None = None
        self.say = say
        self.log = log
        self.live: dict[str, list[float]] = {}
        self.notes: list[str] = []
        self.stop = threading.Event()
        self.deadline = Deadline(self.stop)
        self.version = 0  # rollouts that were given to the learner
        self.restarts = 0  # times that an actor's process died or an actor was lost
        self.num_started = 0  # actors that were ever started
        self.failures: Counter[str] = Counter()
        self.deaths: Counter[int] = Counter()  # by the actor's index: processes that died since its last rollout
        self.pending: dict[Any, int] = {}  # the index of each request's actor, oldest request first
        self.incarnations: dict[int, str] = {}
        self.num_noisy = math.inf
        """How many rollouts have training noise, from the one on that `collect` returns next."""
        self.long_after = math.inf
        self._metrics: dict[str, float] = {}
        self._times: deque[tuple[float, float]] = deque()  # (idle, busy) seconds of the latest deliveries
        self._collect_end: float | None = None  # when the last `collect` returned
        pickled_env = _pickle_env(make_env)
        self._cluster = RayCluster(address)
        try:
            num_cpus = _free_cpus(num_actors)
            settings = {"num_steps": num_steps, "context_steps": self._context_steps}
            settings |= {"novelty": novelty, "reward_outputs": reward_outputs}
            acting_policy = copy.deepcopy(policy).to("cpu")
            acting_policy.precision = ACTING_PRECISION
            self._shared = ray.put((pickled_env, acting_policy, settings))
            self.actors = [self._start_actor() for _ in range(num_actors or num_cpus)]
            self.num_actors = len(self.actors)
        except BaseException:
            self.close()
            raise

    def collect(self, num_noisy: float = math.inf) -> tuple[Rollout, list[dict[str, Any]]]:
        """Returns the oldest rollout that is ready, or waits for the next. num_noisy: so many from this one on should
        have training noise. Which they are is decided when they are asked for, by the number of those that were asked
        for before. Raises RolloutsEnded when `stop` was set or the environments failed too often."""
        start_time = time.perf_counter()
        try:
            self.num_noisy = num_noisy
            self._send_requests()
            ready, _ = ray.wait(list(self.pending), num_returns=len(self.pending), timeout=0)
            delivery = self._receive()
        except Exception as error:
            # A signal to all processes of a job may end Ray's before this one has handled it.
            if not isinstance(error, RolloutsEnded) and self.stop.wait(SIGNAL_WITHIN):
                raise RolloutsEnded("interrupted") from error
            raise
        self.version += 1
        self.live = delivery.live
        rollout = unpack(delivery.rollout, self.policy)
        metrics = self._delivery_metrics(delivery, start_time, len(ready))
        if delivery.context:
            memory = recompute_memory(self.policy, delivery.context).with_noise_of(rollout.memory)
            drift = rollout.memory.drift(memory, self._context_steps)
            if not math.isnan(drift):
                metrics["actors/memory_drift"] = drift
            if self.refresh:
                rollout = rollout.with_memory(memory)
        self._metrics = metrics
        self._collect_end = time.perf_counter()
        return rollout, delivery.episodes

    def snapshot(self) -> None:
        """None, since nothing is taken back: a lost rollout is followed by others."""

    def restore(self, snapshot: None) -> None:
        """Does nothing, see `snapshot`."""

    def metrics(self) -> dict[str, float]:
        """Metrics of the last rollout: lag in updates, bytes, drift of memories, how full the queue is, and the shares
        of idle time of actors and learner."""
        return self._metrics

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """No tensors, since actors cannot be continued. The metadata has the numbers of rollouts and actors."""
        return {}, {"version": self.version, "made": self.num_started}

    def load_state(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> bool:
        """Starts new actors with seeds that the run has not had, and returns False: all environments begin new
        episodes. The state may be a `Collector`'s, which has no version."""
        self.version = metadata.get("version", 0)
        self.num_started = max(self.num_started, metadata.get("made", 0))
        for index, actor in enumerate(self.actors):
            ray.kill(actor)
            self.actors[index] = self._start_actor()
        return False

    def close(self) -> None:
        """Ends all actors, and Ray if it was started here. Its logs are then copied to `log_dir`."""
        self._cluster.close(self.log_dir)

    @property
    def _context_steps(self) -> int:
        """Steps of context that actors keep, in whole rollouts. It is at least one rollout, to measure the drift."""
        return whole_rollouts(max(self.refresh, 1), self.num_steps)

    def _start_actor(self) -> Any:
        """Starts an actor, with a seed that no other one had."""
        near = self.num_started < NEAR_SEEDS
        seed = self.seed + self.num_started * SEED_STEP if near else far_seed(self.seed, self.num_started)
        self.num_started += 1
        return _RayActor.remote(seed)

    def _send_requests(self) -> None:
        """Sends requests with the present weights to every actor that has room in its queue."""
        is_due = self.version % CHECK_EVERY == 1
        needs_context = bool(self.refresh) or is_due
        request = Request(self.version, context=needs_context, check=is_due, long_after=self.long_after)
        weights = None
        for index, actor in enumerate(self.actors):
            for _ in range(QUEUE - sum(owner == index for owner in self.pending.values())):
                if weights is None:
                    weights = ray.put({name: t.detach().cpu().numpy() for name, t in self.policy.state_dict().items()})
                request = replace(request, noiseless=len(self.pending) >= self.num_noisy)
                self.pending[actor.collect.remote(weights, request, [self._shared])] = index

    def _receive(self) -> Delivery:
        """Waits for the next delivery that has a rollout. Actors that fail meanwhile are replaced."""
        start_time = time.perf_counter()
        while True:
            if self.stop.is_set():
                raise RolloutsEnded("interrupted")
            ready, _ = ray.wait(list(self.pending), timeout=0.2)
            if not ready:
                if time.perf_counter() - start_time > PATIENCE:
                    start_time = time.perf_counter()
                    self.say(
                        f"no rollout for {PATIENCE:.0f} seconds: {len(self.actors)} actors are busy, have no node, or "
                        "have an environment that hangs (--env-timeout)"
                    )
                continue
            index = self.pending.pop(ready[0])
            try:
                delivery = ray.get(ready[0])
            except ray.exceptions.RayError as error:  # Ray has given the actor up
                self._handle_loss(index, error)
                continue
            self.incarnations[index] = delivery.incarnation
            if delivery.restarted:
                self._handle_restart(index)
            elif delivery.failure:
                self._handle_failure(index, delivery)
            else:
                self.deaths[index] = 0
                where = f"in actor {index} at update {delivery.version}"
                check_difference(delivery.difference or 0.0, ACTING_PRECISION, where)
                return delivery

    def _handle_loss(self, index: int, error: Exception) -> None:
        """Replaces an actor that Ray has given up."""
        self.restarts += 1
        message = " ".join(str(error).split())[:200]
        self.say(f"actor {index} is lost and was replaced (restart {self.restarts} of this training): {message}")
        self._replace(index)

    def _handle_restart(self, index: int) -> None:
        """Ray has restarted an actor's process. Raises RolloutsEnded if that happens again and again."""
        self.restarts += 1
        self.deaths[index] += 1
        self.say(f"actor {index} died and was restarted by Ray (restart {self.restarts} of this training)")
        if self.deaths[index] >= FAILURES:
            raise RolloutsEnded(
                f"actor {index} died {FAILURES} times before it had a rollout: an environment ends its process, hangs "
                "(--env-timeout), or needs more memory than there is"
            )
        self._send_requests()

    def _handle_failure(self, index: int, delivery: Delivery) -> None:
        """An environment raised an error. Its actor is replaced. Raises RolloutsEnded after FAILURES of the same
        kind."""
        self.failures[delivery.failure] += 1
        count = self.failures[delivery.failure]
        message = " ".join(delivery.traceback.strip().splitlines()[-1].split()).removeprefix(ENVIRONMENT_FAILED)
        self.say(f"actor {index} failed, {delivery.failure} (time {count} of {FAILURES}): {message}")
        self.log(delivery.traceback)
        if count >= FAILURES:
            cause = RuntimeError(f"in an actor:\n{delivery.traceback}")
            raise RolloutsEnded(f"actors failed {count} times by {delivery.failure}: {message}") from cause
        self._replace(index)

    def _replace(self, index: int) -> None:
        """Starts another actor in place of this one, with requests of its own."""
        ray.kill(self.actors[index])
        self.pending = {request: owner for request, owner in self.pending.items() if owner != index}
        self.incarnations.pop(index, None)
        self.actors[index] = self._start_actor()
        self._send_requests()

    def _delivery_metrics(self, delivery: Delivery, start_time: float, num_ready: int) -> dict[str, float]:
        """Metrics of a delivery. start_time: when `collect` began; num_ready: deliveries that were ready then."""
        now = time.perf_counter()
        self._times.append((delivery.idle_seconds, delivery.busy_seconds))
        while len(self._times) > SHARE_WINDOW * len(self.actors):
            self._times.popleft()
        idle, busy = (sum(part) for part in zip(*self._times, strict=True))
        metrics = {
            "actors/policy_lag": float(self.version - 1 - delivery.version),
            "actors/rollout_bytes": float(size(delivery.rollout) + size(delivery.context)),
            "actors/queue_occupancy": num_ready / (QUEUE * len(self.actors)),
            "actors/idle_share": idle / (idle + busy),
            "actors/restarts": float(self.restarts),
        }
        if self._collect_end is not None:
            # Since the last `collect` the learner has learned, and then waited.
            metrics["learner/idle_share"] = (now - start_time) / (now - self._collect_end)
        if delivery.difference is not None:
            metrics["train/acting_learning_difference"] = delivery.difference
        return metrics


def _free_cpus(num_actors: int) -> int:
    """The number of free CPUs of the cluster. Raises ValueError, one line, if there are fewer than actors."""
    num_cpus = int(ray.available_resources().get("CPU", 0))
    if num_actors > num_cpus or not num_cpus:
        raise ValueError(
            f"--num-actors: expected at most the {num_cpus} free CPUs of {len(ray.nodes())} node(s), got {num_actors}"
        )
    return num_cpus


def _pickle_env(make_env: Callable[[], VectorEnv]) -> bytes:
    """The function as bytes, for actors. Raises ValueError, one line, if it cannot be pickled."""
    try:
        return cast(Any, cloudpickle).dumps(make_env)
    except Exception as error:  # noqa: BLE001, pickling calls the environment's own code
        message = " ".join(str(error).split())[:200]
        raise ValueError(
            "environment: expected one that can be pickled, since actors are processes of their own, got "
            f"{type(error).__name__}: {message}"
        ) from None


@ray.remote(num_cpus=1, max_restarts=-1, max_task_retries=-1)
class _RayActor:
    """The process of an actor. Its `Actor` is made at the first request. All that Ray needs to restart it is a seed."""

    def __init__(self, seed: int):
        unblock()  # for processes of the environments: whoever started them may end them by SIGTERM
        self.is_restarted = bool(ray.get_runtime_context().was_current_actor_reconstructed)
        # A process that replaces a dead one must not play the same episodes again.
        self.seed = seed + int.from_bytes(os.urandom(3), "big") * self.is_restarted
        self.actor: Actor | None = None

    def collect(self, weights: dict[str, Any], request: Request, shared: list[Any]) -> Delivery:
        """shared: holds a reference to what all actors have in common. Ray would resolve a bare reference at each
        call."""
        if self.actor is None:
            pickled_env, policy, settings = ray.get(shared[0])
            self.actor = Actor(lambda: cloudpickle.loads(pickled_env)(), policy, seed=self.seed, **settings)
        if self.is_restarted:
            # Report the restart first. The learner must know it even if no process of this actor ever has a rollout.
            self.is_restarted = False
            return Delivery(self.actor.incarnation, restarted=True)
        return self.actor.collect(weights, request)
