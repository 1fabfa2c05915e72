"""Actors on Ray: a source of rollouts for the trainer, from this machine's cores or a cluster's. The only file that
imports ray.

Each actor has up to `QUEUE` requests, so that it acts on while the learner learns; a request carries the weights of the
update before it was sent, whence the policy lag.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import importlib.metadata
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, cast

from gymnasium.vector import VectorEnv
from torch import Tensor

from expire_span_rl import checks
from expire_span_rl.agents.actor import Actor, Delivery, Request
from expire_span_rl.agents.guard import Deadline, TrainingEnded
from expire_span_rl.agents.rollout import LARGEST_DIFFERENCE, Rollout, RolloutsEnded
from expire_span_rl.agents.transport import recomputed, size, unpack
from expire_span_rl.interrupts import kept
from expire_span_rl.locks import FileLock, remove_abandoned
from expire_span_rl.protocols import LearningPolicy

OLDEST_RAY = "2.60"  # as the extra `ray` in pyproject.toml has it
QUEUE = 2  # requests per actor under way
LOCK_NAME = "expire-span.lock"  # in the temporary directory of our own Ray: whose it is no more is removed
FAILURES = 5  # of the same kind, after which training stops
CHECK_EVERY = 50  # updates between two looks at drift and at whether acting equals learning
ANSWER_WITHIN = 30.0  # seconds for a cluster to answer
ENVIRONMENT_FAILED = "expire_span_rl.envs.errors.EnvironmentFailed: "  # before a line that says which and what
PATIENCE = 60.0  # seconds without a rollout after which that is said


def _release(version: str) -> tuple[int, int]:
    """The first two numbers of a version."""
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


try:
    _installed = importlib.metadata.version("ray")
except importlib.metadata.PackageNotFoundError:
    _installed = "no ray"
if _installed == "no ray" or _release(_installed) < _release(OLDEST_RAY):
    raise ValueError(
        f"--num-actors: expected ray {OLDEST_RAY} or newer (pip install 'expire-span-rl[ray]'), got {_installed}"
    )
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_worker_niceness", "0")  # else actors are at the mercy of all else that runs
import ray
import ray.exceptions
from ray import cloudpickle


class ActorPool:
    """Rollouts as they come, from actors that each own a vector environment and a copy of the policy."""

    on_policy: ClassVar[bool] = False  # actors lag behind; each checks its own acting against its own weights

    def __init__(
        self,
        make_env: Callable[[], VectorEnv],
        policy: LearningPolicy,
        num_steps: int,
        seed: int,
        num_actors: int,
        address: str = "",
        refresh: int = 0,
        log_dir: Path | None = None,
        say: Callable[[str], None] = print,
        log: Callable[[str], None] = lambda text: None,
    ):
        """num_actors: 0 for one per CPU that is free; address: of a Ray cluster, "" for one of our own on this machine,
        whose logs go to `log_dir` at the end; refresh: steps over which memories are computed anew before learning;
        say: takes a line; log: takes what is for the log alone, such as tracebacks. Raises ValueError, one line, before
        any actor starts."""
        self.policy, self.num_steps, self.seed = policy, num_steps, seed
        self.refresh, self.log_dir, self.say, self.log = refresh, log_dir, say, log
        self.live: dict[str, list[float]] = {}
        self.notes: list[str] = []
        self.stop = threading.Event()
        self.deadline = Deadline(self.stop)
        self.version = self.restarts = self.made = 0
        self.failures: Counter[str] = Counter()
        self.deaths: Counter[int] = Counter()  # of an actor's processes, since its last rollout
        self.pending: dict[Any, int] = {}  # request -> its actor, oldest first
        self.incarnations: dict[int, str] = {}
        self._figures: dict[str, float] = {}
        self._shares: deque[tuple[float, float]] = deque()  # (idle, busy) seconds of the latest deliveries
        self._handed: float | None = None
        try:
            made = cast(Any, cloudpickle).dumps(make_env)
        except Exception as error:  # noqa: BLE001, pickling calls whatever the environment defines
            message = " ".join(str(error).split())[:200]
            raise ValueError(
                "environment: expected one that can be pickled, since actors are processes of their own, got "
                f"{type(error).__name__}: {message}"
            ) from None
        self._temporary, self._lock = _start(address)
        try:
            free = int(ray.available_resources().get("CPU", 0))
            if num_actors > free or not free:
                raise ValueError(
                    f"--num-actors: expected at most the {free} free CPUs of {len(ray.nodes())} node(s), got {num_actors}"
                )
            self._shared = ray.put((made, copy.deepcopy(policy).to("cpu"), num_steps, self._context_steps))
            self.actors = [self._made() for _ in range(num_actors or free)]
        except BaseException:
            self.close()
            raise

    def collect(self) -> tuple[Rollout, list[dict[str, Any]]]:
        """The oldest rollout that is there, or the next that comes. Raises RolloutsEnded when `stop` was set or the
        environments failed too often."""
        began = time.perf_counter()
        self._request()
        ready, _ = ray.wait(list(self.pending), num_returns=len(self.pending), timeout=0)
        waiting = len(ready)
        delivery = self._delivered()
        self.version += 1
        self.live = delivery.live
        rollout = unpack(delivery.rollout, self.policy)
        figures = self._account(delivery, began, waiting)
        if delivery.context:
            memory = recomputed(self.policy, delivery.context).drawn_as(rollout.memory)
            drift = rollout.memory.drift(memory, self._context_steps)
            if not math.isnan(drift):
                figures["actors/memory_drift"] = drift
            if self.refresh:
                rollout = rollout.with_memory(memory)
        self._figures = figures
        self._handed = time.perf_counter()
        return rollout, delivery.episodes

    def snapshot(self) -> None:
        """Nothing to take back: a rollout that is lost is followed by others."""

    def restore(self, snapshot: None) -> None:
        """See `snapshot`."""

    def figures(self) -> dict[str, float]:
        """Of the last rollout: lag in updates, bytes, drift of memories, how full the queue is, and who waits for
        whom."""
        return self._figures

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Nothing that could be continued: actors begin anew."""
        return {}, {"version": self.version, "made": self.made}

    def load_state(self, tensors: Mapping[str, Tensor], known: Mapping[str, Any]) -> bool:
        """Returns False: the environments begin new episodes, of other seeds than any before. A collector's state has
        no version."""
        self.version = known.get("version", 0)
        self.made = max(self.made, known.get("made", 0))
        for index, actor in enumerate(self.actors):
            ray.kill(actor)
            self.actors[index] = self._made()
        return False

    def close(self) -> None:
        """Ends all actors, and Ray if it is our own; its logs go where the run is written."""
        _kill_what_is_left()
        ray.shutdown()  # which also ends the actors of a cluster that was joined
        if self._temporary is not None:
            if self.log_dir is not None and self.log_dir.is_dir():
                for logs in self._temporary.glob("session_2*/logs"):
                    shutil.copytree(logs, self.log_dir / "ray", dirs_exist_ok=True, ignore_dangling_symlinks=True)
            shutil.rmtree(self._temporary, ignore_errors=True)
            self._temporary = None
        if self._lock is not None:
            self._lock.release()

    @property
    def _context_steps(self) -> int:
        """Steps of context that actors keep: at least a rollout, to see the drift. In whole rollouts."""
        return -(-max(self.refresh, 1) // self.num_steps) * self.num_steps

    def _made(self) -> Any:
        """A new actor, with a seed that no other had."""
        seed = self.seed + self.made * 100_003  # environments of one actor have the seeds from its own on
        self.made += 1
        return _RayActor.remote(seed)

    def _request(self) -> None:
        """Sends the weights of now to every actor that has room for a request."""
        due = self.version % CHECK_EVERY == 1
        request = Request(self.version, context=bool(self.refresh) or due, check=due)
        weights = None
        for index, actor in enumerate(self.actors):
            for _ in range(QUEUE - sum(owner == index for owner in self.pending.values())):
                if weights is None:
                    weights = ray.put({name: t.detach().cpu().numpy() for name, t in self.policy.state_dict().items()})
                self.pending[actor.collect.remote(weights, request, [self._shared])] = index

    def _delivered(self) -> Delivery:
        """The next rollout that an actor has, whatever befalls others meanwhile."""
        began = time.perf_counter()
        while True:
            if self.stop.is_set():
                raise RolloutsEnded("interrupted")
            ready, _ = ray.wait(list(self.pending), timeout=0.2)
            if not ready:
                if time.perf_counter() - began > PATIENCE:
                    began = time.perf_counter()
                    self.say(
                        f"no rollout for {PATIENCE:.0f} seconds: {len(self.actors)} actors are busy, have no node, or have an "
                        "environment that hangs (--env-timeout)"
                    )
                continue
            index = self.pending.pop(ready[0])
            try:
                delivery = ray.get(ready[0])
            except ray.exceptions.RayError as error:  # Ray has given the actor up
                self.restarts += 1
                told = " ".join(str(error).split())[:200]
                self.say(f"actor {index} is lost and was replaced (restart {self.restarts} of this training): {told}")
                self._replace(index)
                continue
            self.incarnations[index] = delivery.incarnation
            if delivery.died:
                self._died(index)
                continue
            if delivery.failure:
                self._failed(index, delivery)
                continue
            self.deaths[index] = 0
            if not (delivery.difference or 0.0) < LARGEST_DIFFERENCE:
                raise TrainingEnded(
                    f"acting and learning differ: expected outputs within {LARGEST_DIFFERENCE} of each other, relative to "
                    f"their size, got {delivery.difference:.3g} in actor {index} at update {delivery.version}"
                )
            return delivery

    def _died(self, index: int) -> None:
        """Ray has restarted an actor's process: once more, but not for ever."""
        self.restarts += 1
        self.deaths[index] += 1
        self.say(f"actor {index} died and was restarted by Ray (restart {self.restarts} of this training)")
        if self.deaths[index] >= FAILURES:
            raise RolloutsEnded(
                f"actor {index} died {FAILURES} times before it had a rollout: an environment ends its process, hangs "
                "(--env-timeout), or needs more memory than there is"
            )
        self._request()

    def _failed(self, index: int, delivery: Delivery) -> None:
        """An environment raised: its actor is replaced, but not for ever."""
        self.failures[delivery.failure] += 1
        count = self.failures[delivery.failure]
        last = " ".join(delivery.traceback.strip().splitlines()[-1].split()).removeprefix(ENVIRONMENT_FAILED)
        self.say(f"actor {index} failed, {delivery.failure} (time {count} of {FAILURES}): {last}")
        self.log(delivery.traceback)
        if count >= FAILURES:
            cause = RuntimeError(f"in an actor:\n{delivery.traceback}")
            raise RolloutsEnded(f"actors failed {count} times by {delivery.failure}: {last}") from cause
        self._replace(index)

    def _replace(self, index: int) -> None:
        """Another actor in place of this one, whose requests are forgotten, with requests of its own."""
        ray.kill(self.actors[index])
        self.pending = {request: owner for request, owner in self.pending.items() if owner != index}
        self.incarnations.pop(index, None)
        self.actors[index] = self._made()
        self._request()

    def _account(self, delivery: Delivery, began: float, waiting: int) -> dict[str, float]:
        now = time.perf_counter()
        self._shares.append((delivery.idle_seconds, delivery.busy_seconds))
        while len(self._shares) > 4 * len(self.actors):
            self._shares.popleft()
        idle, busy = (sum(part) for part in zip(*self._shares, strict=True))
        figures = {
            "actors/policy_lag": float(self.version - 1 - delivery.version),
            "actors/rollout_bytes": float(size(delivery.rollout) + size(delivery.context)),
            "actors/queue_occupancy": waiting / (QUEUE * len(self.actors)),
            "actors/idle_share": idle / (idle + busy),
            "actors/restarts": float(self.restarts),
        }
        if self._handed is not None:  # since the last rollout was handed over: learning, then waiting
            figures["learner/idle_share"] = (now - began) / (now - self._handed)
        if delivery.difference is not None:
            figures["train/acting_learning_difference"] = delivery.difference
        return figures


@ray.remote(num_cpus=1, max_restarts=-1, max_task_retries=-1)
class _RayActor:
    """Makes its `Actor` at the first request: what Ray keeps in order to restart it is a number."""

    def __init__(self, seed: int):
        self.again = bool(ray.get_runtime_context().was_current_actor_reconstructed)
        self.seed = (
            seed + int.from_bytes(os.urandom(3), "big") * self.again
        )  # not the episodes of the dead one once more
        self.actor: Actor | None = None

    def collect(self, weights: dict[str, Any], request: Request, shared: list[Any]) -> Delivery:
        """shared: holds a reference to what all actors have in common, so that it is not fetched each time."""
        if self.actor is None:
            made, policy, num_steps, context_steps = ray.get(shared[0])
            self.actor = Actor(lambda: cloudpickle.loads(made)(), policy, num_steps, context_steps, self.seed)
        if self.again:  # the learner must know, also if no process of this actor lives until it has a rollout
            self.again = False
            return Delivery(self.actor.incarnation, died=True)
        return self.actor.collect(weights, request)


def _kill_what_is_left() -> None:
    """Where processes of our own Ray are dead, as after a SIGTERM to all processes of a job, kills the others, for
    whose end `ray.shutdown` would wait some seconds each."""
    with contextlib.suppress(Exception):  # Ray's own, which another version may not have
        node: Any = importlib.import_module("ray._private.worker")._global_node
        if node is not None and node.dead_processes():
            node.kill_all_processes(check_alive=False, allow_graceful=False)


def _start(address: str) -> tuple[Path | None, FileLock | None]:
    """Joins the cluster at `address`, or starts one of our own, whose files lie in the directory returned: sockets take
    a short path, so that it cannot be the run's. It is locked, and those of learners that were killed are removed.
    Raises ValueError, one line."""
    root = str(Path(checks.__file__).resolve().parents[1])  # the checkout, or the folder in which we are installed
    quiet: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": "ERROR",
        "runtime_env": {"env_vars": {"PYTHONPATH": os.pathsep.join(filter(None, (root, os.getenv("PYTHONPATH"))))}},
    }
    if not address:
        remove_abandoned(Path(tempfile.gettempdir()), "ray-*", LOCK_NAME)
        temporary = Path(tempfile.mkdtemp(prefix="ray-"))
        lock = FileLock.take(temporary / LOCK_NAME)
        with kept():  # Ray's own handler of SIGTERM ends the process with a crash report
            if hasattr(signal, "SIGHUP") and threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGHUP, signal.SIG_IGN)  # which its processes inherit: they end with us
            ray.init(include_dashboard=False, _temp_dir=str(temporary), **quiet)
        return temporary, lock
    # ray.init has no time limit of its own; a process can be given one.
    code = f"import ray; ray.init(address={address!r}, log_to_driver=False, logging_level='ERROR')"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=ANSWER_WITHIN, check=False
        )
    except subprocess.TimeoutExpired:
        raise ValueError(
            f"--ray-address: expected a Ray cluster at {address}, got no answer within {ANSWER_WITHIN:.0f} seconds"
        ) from None
    if done.returncode:
        told = (done.stderr.strip().splitlines() or ["no message"])[-1][:300]
        raise ValueError(f"--ray-address: expected a Ray cluster at {address}, got {told}")
    with kept():
        ray.init(address=address, **quiet)
    return None, None
