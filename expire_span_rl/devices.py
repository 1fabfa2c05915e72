"""The device of a training or an evaluation: the one that is named, or with `auto` the one that is faster for it.

B environments, T steps of a rollout.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from gymnasium.vector.utils import batch_space

from expire_span_rl.checks import quoted
from expire_span_rl.policies import ActorCritic
from expire_span_rl.policies.encoders import as_tensors
from expire_span_rl.spaces import Mask

MEASURED_ENVS = (32, 64)
"""Environments with which a CPU acts while it is measured, if the training has more. Its time for all of them follows
from the two: a step costs something, and each environment adds to that."""
MEASURED_ROWS = 64
"""Environments of a minibatch with which a CPU is measured at most. Learning works in groups of fewer, so that its time
grows in proportion."""
ROUNDS = 2
"""Times that a piece of work is done. The last counts: the ones before it warm up."""


@dataclass(frozen=True)
class Device:
    """A device that was chosen."""

    name: str
    reason: str
    """Why, for the run's first lines. Empty if the user named it."""

    def __str__(self) -> str:
        return f"{self.name} ({self.reason})" if self.reason else self.name


@dataclass(frozen=True)
class Workload:
    """What an update of a training does."""

    num_envs: int
    num_steps: int
    num_minibatches: int
    epochs: int
    acts: bool = True
    """Whether this process acts. Actors of other processes act on CPUs of their own."""


def check_device(name: str) -> None:
    """Raises ValueError, one line, if `name` is not `auto` and no device of this machine."""
    gpu = torch.cuda.is_available()
    if name in ("auto", "cpu") or (gpu and re.fullmatch(r"cuda(:\d+)?", name)):
        return
    usable = "cpu, cuda or auto" if gpu else "cpu or auto (there is no GPU here)"
    raise ValueError(f"--device: expected {usable}, got {quoted(name, 60)}")


def allow_tf32(device: str) -> None:
    """Lets a GPU compute products of float32 matrices in TF32, with inputs rounded to 11 significant bits. For a CPU
    nothing changes."""
    if device.startswith("cuda"):
        torch.backends.cuda.matmul.allow_tf32 = True  # `set_float32_matmul_precision` would change CPUs, too


def choose_device(name: str, seconds_on: Callable[[str], float] | None = None) -> Device:
    """The device that --device names; for `auto`, the one on which an update takes less time.

    seconds_on: device -> seconds of an update; None if they cannot be measured, a GPU is then taken if there is one.
    Raises as `check_device`.
    """
    check_device(name)
    if name != "auto":
        return Device(name, "")
    if not torch.cuda.is_available():
        return Device("cpu", "there is no GPU")
    if seconds_on is None:
        return Device("cuda", "there is a GPU; which is faster was not measured")
    try:
        on_gpu = seconds_on("cuda")
    except RuntimeError as error:  # too little memory, for instance, or a card that PyTorch does not know
        return Device("cpu", f"the GPU failed: {quoted(str(error), 100)}")
    finally:
        gc.collect()  # what was captured refers to itself
        torch.cuda.empty_cache()
    on_cpu = seconds_on("cpu")
    faster = "cuda" if on_gpu < on_cpu else "cpu"
    return Device(faster, f"an update takes about {on_cpu:.2g} s on the CPU, {on_gpu:.2g} s on the GPU")


def update_seconds(policy: ActorCritic, env: VectorEnv, work: Workload) -> float:
    """An estimate of the seconds that one update takes on the policy's device.

    It acts for a rollout on random observations, as `env` might give them, and learns from a minibatch, forward and
    backward. Environments, losses and the optimiser are left out. The memory is that of one rollout, less than it has
    before a policy forgets. Leaves the weights and random numbers as they are.
    """
    with kept_random_numbers(policy.device):
        seconds = acting_seconds(policy, env, work) if work.acts else 0.0
        return seconds + learning_seconds(policy, env, work)


def acting_seconds(policy: ActorCritic, env: VectorEnv, work: Workload) -> float:
    """Seconds of a rollout, as `update_seconds`."""

    def measured(num_envs: int) -> float:
        observation = random_observation(env, num_envs)
        start = torch.zeros(num_envs, dtype=torch.bool, device=policy.device)
        memory = policy.draw(policy.initial_memory(num_envs))
        acting: Any = None

        @torch.no_grad()
        def rollout() -> None:
            nonlocal acting
            acting = policy.begin(memory, work.num_steps, acting, in_rollout=True)
            for _ in range(work.num_steps):
                params, _ = policy.step(as_tensors(observation, policy.device), acting, start)
                policy.actions.to_env(policy.actions.sample(params))

        rollout()
        memory = acting.memory()
        return _last_seconds(rollout, policy.device)

    few, many = MEASURED_ENVS
    if policy.device.type == "cuda" or work.num_envs <= many:
        return measured(work.num_envs)
    of_few, of_many = measured(few), measured(many)
    return of_many + max(0.0, of_many - of_few) * (work.num_envs - many) / (many - few)


def learning_seconds(policy: ActorCritic, env: VectorEnv, work: Workload) -> float:
    """Seconds of all passes over a rollout, as `update_seconds`."""
    device = policy.device
    rows = max(1, work.num_envs // work.num_minibatches)
    measured = rows if device.type == "cuda" else min(rows, MEASURED_ROWS)
    observation = as_tensors(random_observation(env, measured), device)
    entries = {key: value.expand(work.num_steps, *value.shape) for key, value in observation.items()}
    start = torch.zeros(work.num_steps, measured, dtype=torch.bool, device=device)
    with torch.no_grad():
        memory = policy.unroll(entries, policy.initial_memory(measured), start, keep=True).memory
    assert memory is not None

    def learn() -> None:
        output = policy.unroll(entries, memory, start)
        (output.logits.sum() + output.values.sum()).backward()

    seconds = _last_seconds(learn, device)
    policy.zero_grad()
    return work.epochs * work.num_minibatches * seconds * rows / measured


@contextlib.contextmanager
def kept_random_numbers(device: torch.device | str) -> Iterator[None]:
    """PyTorch's random numbers of the CPU and of a device are afterwards what they were before."""
    device = torch.device(device)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield


@contextlib.contextmanager
def random_numbers_of(seed: int, device: torch.device | str) -> Iterator[None]:
    """PyTorch's random numbers are those of `seed`, and afterwards what they were before (`kept_random_numbers`)."""
    with kept_random_numbers(device):
        torch.manual_seed(seed)
        yield


def _last_seconds(run: Callable[[], None], device: torch.device) -> float:
    """Seconds of the last of `ROUNDS` calls."""
    seconds = 0.0
    for _ in range(ROUNDS):
        began = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - began
    return seconds


def random_observation(env: VectorEnv, num_envs: int) -> dict[str, np.ndarray]:
    """Entries [B, ...] of observations that the space of `env` allows, in which all actions are allowed."""
    space: Any = copy.deepcopy(env.single_observation_space)  # whose random numbers nobody else gets
    observation = batch_space(space, num_envs).sample()
    masks = [key for key in observation if isinstance(space[key], Mask)]
    return {**observation, **{key: np.ones_like(observation[key]) for key in masks}}
