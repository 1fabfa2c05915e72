"""Rollouts on the way from an actor to the learner: named arrays, ragged, so that only what is live travels.

T time steps, B environments, K steps of context.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import fields

import numpy as np
import torch
from torch import Tensor

from expire_span_rl.agents.rollout import Rollout, under
from expire_span_rl.protocols import LearningPolicy, Memory

Arrays = dict[str, np.ndarray]
_PLAIN = tuple(f.name for f in fields(Rollout) if "observation" not in f.name and f.name not in ("memory", "final_at"))


def pack(rollout: Rollout) -> Arrays:
    """A rollout as arrays by name; of the memory only what is live."""
    tensors = {name: getattr(rollout, name) for name in _PLAIN}
    for prefix in ("observation", "final_observation"):
        tensors |= {f"{prefix}/{key}": value for key, value in getattr(rollout, prefix).items()}
    tensors["final_t"], tensors["final_b"] = rollout.final_at
    tensors |= {f"memory/{name}": tensor for name, tensor in rollout.memory.packed().items()}
    return {name: tensor.cpu().numpy() for name, tensor in tensors.items()}


def unpack(arrays: Mapping[str, np.ndarray], policy: LearningPolicy) -> Rollout:
    """The rollout that `pack` was given, on the policy's device."""
    tensors = to_tensors(arrays, policy.device)
    return Rollout(
        observation=under("observation/", tensors),
        final_observation=under("final_observation/", tensors),
        final_at=(tensors["final_t"], tensors["final_b"]),
        memory=policy.memory_from(under("memory/", tensors)),
        **{name: tensors[name] for name in _PLAIN},
    )


def size(arrays: Mapping[str, np.ndarray]) -> int:
    """Bytes of the arrays."""
    return sum(array.nbytes for array in arrays.values())


class Context:
    """What an actor saw before its next rollout, so that the learner can compute the memory at its start anew: the
    observations of the last K steps, in whole rollouts, and the memory before them."""

    def __init__(self, rollouts: int):
        self.seen: deque[Rollout] = deque(maxlen=rollouts)

    def add(self, rollout: Rollout) -> None:
        self.seen.append(rollout)

    def packed(self) -> Arrays:
        """Arrays for `recomputed`; none if nothing was seen yet."""
        if not self.seen:
            return {}
        first = self.seen[0]
        tensors = {
            f"observation/{key}": torch.cat([r.observation[key] for r in self.seen]) for key in first.observation
        }
        tensors["episode_start"] = torch.cat([r.episode_start for r in self.seen])
        tensors |= {f"memory/{name}": tensor for name, tensor in first.memory.packed().items()}
        return {name: tensor.cpu().numpy() for name, tensor in tensors.items()}


def recomputed(policy: LearningPolicy, arrays: Mapping[str, np.ndarray]) -> Memory:
    """The memory after the steps of a `Context`, under the policy's weights of now: only what is older than these steps
    is as it was cached."""
    tensors = to_tensors(arrays, policy.device)
    observation, start = under("observation/", tensors), tensors["episode_start"]
    acting = policy.begin(policy.memory_from(under("memory/", tensors)), len(start))
    for t in range(len(start)):
        policy.step({key: value[t] for key, value in observation.items()}, acting, start[t])
    return acting.memory()


def to_tensors(arrays: Mapping[str, np.ndarray], device: torch.device | str) -> dict[str, Tensor]:
    """Copies: the arrays lie in memory that actors and learner share."""
    return {name: torch.tensor(array, device=device) for name, array in arrays.items()}
