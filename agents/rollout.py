"""Rollouts: what they hold, where the trainer gets them, and the comparison of acting with learning.

T time steps, B environments, P parameters of the action distribution, N numbers of an action, G outputs of the reward
head, F final observations.

A trace is cut after a final observation and bootstrapped with its value. Final observations are the last one of a
truncated episode, and the last one of the rollout where the episode goes on.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from expire_span_rl.agents.guard import Deadline, TrainingEnded
from expire_span_rl.protocols import LearningPolicy, Memory

FAR_SEEDS = 2**60
"""The smallest `far_seed`."""
LARGEST_DIFFERENCE = {"float32": 1e-2, "bf16": 1e-1}
"""By the policy's precision: largest difference between acting and learning that counts as rounding, of logits or
values. It is relative to the largest of them if that is above 1."""


@dataclass(frozen=True)
class Rollout:
    """T steps of B environments, time-major, and the memory before the first step."""

    observation: dict[str, Tensor]  # entries [T,B, ...], as the environment gave them
    episode_start: Tensor  # [T,B] bool
    actions: Tensor  # [T,B] or [T,B,N] canonical (`policy.actions`)
    logits: Tensor  # [T,B,P] parameters of the action distribution of the policy that acted
    values: Tensor  # [T,B]
    next_values: Tensor  # [T,B] of the next observation in the same episode (meaningless after a termination)
    rewards: Tensor  # [T,B]
    terminated: Tensor  # [T,B] bool
    truncated: Tensor  # [T,B] bool
    reward_outputs: Tensor  # [T,B,G] of the reward head of the policy that acted; G = 0 unless they are asked for
    novelty: Tensor  # [T,B] how new an observation the step led to (`EpisodicNovelty`); 0 unless it is counted
    memory: Memory
    final_observation: dict[str, Tensor]  # entries [F, ...]: after truncations by time, then after the rollout's end
    final_at: tuple[Tensor, Tensor]  # (t, b) int64 [F] each: the step that led to each final observation

    def rows(self, indices: Tensor, finals: bool = True) -> Rollout:
        """A minibatch: the environments `indices`, int64 [b]. finals: include their final observations. On a GPU their
        number is a wait."""
        t, b = self.final_at
        new_index = torch.full((self.actions.shape[1],), -1, device=b.device)  # of each environment in the minibatch
        new_index[indices] = torch.arange(len(indices), device=b.device)
        chosen = torch.nonzero(new_index[b] >= 0).squeeze(1) if finals else b[:0]
        return Rollout(
            observation={key: value[:, indices] for key, value in self.observation.items()},
            episode_start=self.episode_start[:, indices],
            actions=self.actions[:, indices],
            logits=self.logits[:, indices],
            values=self.values[:, indices],
            next_values=self.next_values[:, indices],
            rewards=self.rewards[:, indices],
            terminated=self.terminated[:, indices],
            truncated=self.truncated[:, indices],
            reward_outputs=self.reward_outputs[:, indices],
            novelty=self.novelty[:, indices],
            memory=self.memory.rows(indices),
            final_observation={key: value[chosen] for key, value in self.final_observation.items()},
            final_at=(t[chosen], new_index[b[chosen]]),
        )

    def with_memory(self, memory: Memory) -> Rollout:
        """The same steps, preceded by another memory."""
        return replace(self, memory=memory)


class RolloutsEnded(TrainingEnded):
    """There will be no more rollouts. The message is one line."""


class RolloutSource(Protocol):
    """Where the trainer gets its rollouts. A `Collector` collects them in the trainer's own process, and an `ActorPool`
    (`agents.ray_actors`) in processes of actors."""

    on_policy: ClassVar[bool]
    """Whether the present weights acted, so that the trainer can compare acting with learning."""
    stop: threading.Event
    """Set it to end the training."""
    deadline: Deadline
    """When to give up after `stop` was set."""
    num_actors: int
    """Actors, whose rollouts come in turn. 1 for the trainer's own process."""
    queue: ClassVar[int]
    """Rollouts of each actor that are asked for before the one that is learned from, so that older weights act in
    them."""
    log_dir: Path | None
    """To which directory `close` copies logs of actors. None: to none."""
    live: dict[str, list[float]]
    """Mean and maximum of the live memories per layer. Empty for a memory without slots."""
    notes: list[str]
    """Remarks of the last `load_state`, one line each."""
    long_after: float
    """Episodes that run for more steps are reported once, before they end (`agents.long_episodes.RUNNING`)."""

    def collect(self, num_noisy: float = math.inf) -> tuple[Rollout, list[dict[str, Any]]]:
        """Returns a rollout and the episodes that ended in it or run for long. num_noisy: so many rollouts from this
        one on have training noise (`LearningPolicy.draw`). Raises TrainingEnded."""
        ...

    def snapshot(self) -> Any:
        """What `collect` changes, for `restore`."""
        ...

    def restore(self, snapshot: Any) -> None:
        """Takes back everything since the snapshot, even if `collect` raised. Environments that cannot go back begin
        new episodes."""
        ...

    def metrics(self) -> dict[str, float]:
        """The source's own metrics of the last rollout, for the log."""
        ...

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The source's state, as tensors and JSON-able metadata."""
        ...

    def load_state(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> bool:
        """Continues from `state`. Returns whether the episodes under way go on."""
        ...

    def close(self) -> None:
        """Ends the environments and the actors."""
        ...


def check_difference(difference: float, precision: str, where: str) -> None:
    """Raises TrainingEnded if acting and learning differ by more than the rounding of a precision. where: it was
    measured, for the message."""
    largest = LARGEST_DIFFERENCE[precision]
    if not difference < largest:  # NaN included
        raise TrainingEnded(
            f"acting and learning differ: expected outputs within {largest} of each other, relative to their size, got "
            f"{difference:.3g} {where}"
        )


@torch.no_grad()
def acting_learning_difference(policy: LearningPolicy, rollout: Rollout) -> float:
    """The largest difference between what acting computed and what one unroll under the same weights computes.

    Compared are logits, values, and the values of final observations. Each difference is relative to the largest number
    of its kind if that is above 1, as rounding is. That number leaves out the parameters of actions that a mask
    forbids. NaN if any number is NaN.
    """
    out = policy.unroll(
        rollout.observation,
        rollout.memory,
        rollout.episode_start,
        rollout.final_observation,
        rollout.final_at,
    )
    pairs = (
        (out.logits, rollout.logits),
        (out.values, rollout.values),
        (out.final_values, rollout.next_values[rollout.final_at]),
    )
    differences = []
    for learning, acting in pairs:
        largest = acting[acting != policy.actions.forbidden].abs().amax() if acting.numel() else acting.new_ones(())
        differences.append((learning - acting).abs() / largest.clamp(min=1))
    # Python's max would lose a NaN.
    return float(torch.cat([difference.flatten() for difference in differences]).max())


def select_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, by the rest of their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def check_arrays(expected: Mapping[str, np.ndarray], loaded: Mapping[str, Tensor]) -> None:
    """Raises RuntimeError, one line, if saved arrays have other names, types or shapes than the environments' own."""
    for name in sorted(expected.keys() | loaded.keys()):
        expected_shape = _shape(expected.get(name))
        loaded_shape = _shape(loaded[name].numpy() if name in loaded else None)
        if expected_shape != loaded_shape:
            raise RuntimeError(f"{name}: expected {expected_shape}, got {loaded_shape}")


def _shape(array: np.ndarray | None) -> str:
    return "nothing" if array is None else f"{array.dtype}{list(array.shape)}"


def restore_generator(generator: torch.Generator, state: Tensor) -> list[str]:
    """Sets the generator's state. The state of another kind of device has another size, and only seeds the generator.
    Returns the line that says so, if any."""
    if state.shape == generator.get_state().shape:
        generator.set_state(state)
        return []
    generator.manual_seed(hash_state(state))
    note = (
        "the run was on another device, which draws random numbers differently: from here on it differs from a run "
        "that was never interrupted"
    )
    return [note]


def far_seed(seed: int, part: int) -> int:
    """The seed of a further part of the run whose environments' seeds begin at `seed`: a hash of both numbers, beyond
    the seeds of all runs and evaluations. 2^60 of them make it unlikely that two parts come close."""
    digest = hashlib.sha256(f"{seed},{part}".encode()).digest()
    return FAR_SEEDS + (int.from_bytes(digest[:8], "big") >> 4)


def hash_state(state: Tensor) -> int:
    """A whole number below 2^63 that differs for different states of a generator."""
    digest = hashlib.sha256(state.cpu().numpy().tobytes()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
