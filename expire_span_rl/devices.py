"""The device of a training or an evaluation: the one that is named, or with `auto` the one that is faster for it.

B environments, T steps of a rollout.
"""

from __future__ import annotations

import copy
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from expire_span_rl.checks import quoted
from expire_span_rl.policies import ActorCritic
from expire_span_rl.policies.encoders import as_tensors
from expire_span_rl.spaces import Mask

MEASURED_ENVS = 64
"""Environments with which a CPU is measured at most. Its time grows in proportion to them; a GPU's does not."""
ROUNDS = 2
"""Times that the work is done. Only the last counts: the ones before it warm up, and fill the memory."""


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
    """Whether this process acts. Actors of other processes act on their own CPUs."""


def check_device(name: str) -> None:
    """Raises ValueError, one line, if `name` is not `auto` and no device of this machine."""
    gpu = torch.cuda.is_available()
    if name in ("auto", "cpu") or (gpu and re.fullmatch(r"cuda(:\d+)?", name)):
        return
    usable = "cpu, cuda or auto" if gpu else "cpu or auto (there is no GPU here)"
    raise ValueError(f"--device: expected {usable}, got {quoted(name, 60)}")


def choose_device(name: str, seconds_on: Callable[[str], float] | None = None, work: str = "an update") -> Device:
    """The device that --device names; for `auto`, the one that takes fewer seconds.

    seconds_on: device -> seconds of the work at hand; None if it cannot be measured, a GPU is then taken if there is
    one; work: what it is, for the reason. Raises as `check_device`.
    """
    check_device(name)
    if name != "auto":
        return Device(name, "")
    if not torch.cuda.is_available():
        return Device("cpu", "there is no GPU")
    if seconds_on is None:
        return Device("cuda", "there is a GPU; which is faster was not measured")
    seconds = {device: seconds_on(device) for device in ("cpu", "cuda")}
    faster = min(seconds, key=lambda device: seconds[device])
    return Device(faster, f"{work} takes about {seconds['cpu']:.2g} s on the CPU, {seconds['cuda']:.2g} s on the GPU")


def update_seconds(policy: ActorCritic, env: VectorEnv, work: Workload) -> float:
    """An estimate of the seconds that one update takes on the policy's device: a rollout with random observations, as
    `env` might give them, and its passes of learning. The environments themselves and the optimiser are left out. The
    memory is that of some rollouts without an end of an episode."""
    device = policy.device
    num_envs = work.num_envs if device.type == "cuda" else min(work.num_envs, MEASURED_ENVS)
    observation = random_observation(env, num_envs, device)
    start = torch.zeros(num_envs, dtype=torch.bool, device=device)
    with torch.random.fork_rng():
        memory, acting_seconds = _act(policy, observation, start, work.num_steps)
        rows = max(1, num_envs // work.num_minibatches)
        some = torch.arange(rows, device=device)
        entries = {key: value[:rows].expand(work.num_steps, *value[:rows].shape) for key, value in observation.items()}
        starts = start[:rows].expand(work.num_steps, -1)

        def learn() -> None:
            output = policy.unroll(entries, memory.rows(some), starts)
            (output.logits.sum() + output.values.sum()).backward()

        learning_seconds = _last_seconds(learn, device)
        policy.zero_grad()
    passes = work.epochs * work.num_envs / rows
    return work.acts * acting_seconds * work.num_envs / num_envs + passes * learning_seconds


def _act(policy: ActorCritic, observation: Mapping[str, Tensor], start: Tensor, num_steps: int) -> tuple[Any, float]:
    """The memory after `ROUNDS` rollouts, and the seconds of the last one."""
    memory = policy.initial_memory(len(start))

    @torch.no_grad()
    def rollout() -> None:
        nonlocal memory
        acting = policy.begin(policy.draw(memory), num_steps, in_rollout=True)
        for _ in range(num_steps):
            policy.step(observation, acting, start)
        memory = acting.memory()

    seconds = _last_seconds(rollout, start.device)
    return memory, seconds


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


def random_observation(env: VectorEnv, num_envs: int, device: torch.device) -> dict[str, Tensor]:
    """Entries [B, ...] of observations that the space of `env` allows, in which all actions are allowed."""
    space = copy.deepcopy(env.observation_space)  # whose random numbers nobody else gets
    observation = as_tensors({key: value[:num_envs] for key, value in space.sample().items()}, device)
    parts: Any = env.single_observation_space
    masks = [key for key in observation if isinstance(parts[key], Mask)]
    return {**observation, **{key: torch.ones_like(observation[key]) for key in masks}}
