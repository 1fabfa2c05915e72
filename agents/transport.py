"""Rollouts on the way from an actor to the learner: named arrays. Of the memory only the live slots travel.

T time steps, B environments, K steps of context.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from expire_span_rl.agents.rollout import Rollout, select_prefix
from expire_span_rl.protocols import LearningPolicy, Memory

Arrays = dict[str, np.ndarray]
_TENSOR_FIELDS = tuple(
    f.name for f in fields(Rollout) if "observation" not in f.name and f.name not in ("memory", "final_at")
)
"""Fields of a rollout that are a single tensor."""


def pack(rollout: Rollout) -> Arrays:
    """A rollout as arrays by name. Of the memory only the live slots are packed."""
    tensors = {name: getattr(rollout, name) for name in _TENSOR_FIELDS}
    for prefix in ("observation", "final_observation"):
        tensors |= {f"{prefix}/{key}": value for key, value in getattr(rollout, prefix).items()}
    tensors["final_t"], tensors["final_b"] = rollout.final_at
    tensors |= {f"memory/{name}": tensor for name, tensor in rollout.memory.packed().items()}
    return {name: tensor.cpu().numpy() for name, tensor in tensors.items()}


def unpack(arrays: Mapping[str, np.ndarray], policy: LearningPolicy) -> Rollout:
    """The rollout that was given to `pack`, on the policy's device."""
    tensors = to_tensors(arrays, policy.device)
    return Rollout(
        observation=select_prefix("observation/", tensors),
        final_observation=select_prefix("final_observation/", tensors),
        final_at=(tensors["final_t"], tensors["final_b"]),
        memory=policy.memory_from(select_prefix("memory/", tensors)),
        **{name: tensors[name] for name in _TENSOR_FIELDS},
    )


def size(arrays: Mapping[str, np.ndarray]) -> int:
    """Size of the arrays in bytes."""
    return sum(array.nbytes for array in arrays.values())


class Context:
    """The steps before an actor's next rollout, from which the learner can compute the memory at its start again. It
    holds the observations of the last K steps, in whole rollouts, and the memory before them."""

    def __init__(self, num_rollouts: int):
        self.rollouts: deque[Rollout] = deque(maxlen=num_rollouts)

    def add(self, rollout: Rollout) -> None:
        """Appends a rollout, and drops the oldest one if there are too many."""
        self.rollouts.append(rollout)

    def pack(self) -> Arrays:
        """The arrays for `recompute_memory`. Empty if no rollout was added."""
        if not self.rollouts:
            return {}
        oldest = self.rollouts[0]
        tensors = {
            f"observation/{key}": torch.cat([rollout.observation[key] for rollout in self.rollouts])
            for key in oldest.observation
        }
        tensors["episode_start"] = torch.cat([rollout.episode_start for rollout in self.rollouts])
        tensors["lengths"] = torch.tensor([len(rollout.episode_start) for rollout in self.rollouts])
        for name in ("time", "noise"):  # time may be skipped before each rollout
            tensors[name] = torch.stack([getattr(rollout.memory, name) for rollout in self.rollouts])
        tensors |= {f"memory/{name}": tensor for name, tensor in oldest.memory.packed().items()}
        return {name: tensor.cpu().numpy() for name, tensor in tensors.items()}


def recompute_memory(policy: LearningPolicy, arrays: Mapping[str, np.ndarray]) -> Memory:
    """The memory after the steps of a `Context`, computed with the policy's present weights, as the next rollout begins
    with it. Only memories older than these steps are as the actor cached them."""
    tensors = to_tensors(arrays, policy.device)
    observation = select_prefix("observation/", tensors)
    memory = policy.memory_from(select_prefix("memory/", tensors))
    t = 0
    for i, length in enumerate(arrays["lengths"].tolist()):  # spans are renewed between two rollouts
        memory = replace(cast(Any, memory), time=tensors["time"][i], noise=tensors["noise"][i])
        acting = policy.begin(memory, length, in_rollout=True)
        for _ in range(length):
            policy.step({key: value[t] for key, value in observation.items()}, acting, tensors["episode_start"][t])
            t += 1
        memory = acting.memory().renewed()
    return memory


def to_tensors(arrays: Mapping[str, np.ndarray], device: torch.device | str) -> dict[str, Tensor]:
    """The arrays as tensors on a device. They are copies, since actors and learner share the arrays' memory."""
    return {name: torch.tensor(array, device=device) for name, array in arrays.items()}
