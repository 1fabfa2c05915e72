"""The steps of a rollout while it is collected.

T time steps, B environments, P parameters of the action distribution, L layers, F final observations.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from expire_span_rl.agents.guard import TrainingEnded
from expire_span_rl.agents.rollout import Rollout, select_prefix


class Storage:
    """Tensors of T steps by name, on the device of what is stored. Each is allocated when its name is first stored."""

    def __init__(self, steps: int):
        self._steps = steps
        self.tensors: dict[str, Tensor] = {}
        """By name: [T, ...]. Steps that are not stored yet have arbitrary values."""

    def put(self, t: int, prefix: str, parts: Mapping[str, Tensor]) -> None:
        """Stores copies of the tensors `parts` as step t. The name of each is `prefix` plus its key."""
        for name, part in parts.items():
            tensor = self.tensors.get(prefix + name)
            if tensor is None:
                tensor = self.tensors[prefix + name] = part.new_empty((self._steps, *part.shape))
            tensor[t] = part


class RolloutBuffer:
    """The steps and the final observations of a rollout while it is collected. `rollout` makes a `Rollout` of them."""

    def __init__(self, steps: int, batch: int, device: torch.device):
        self.storage = Storage(steps)
        self.device = device
        self.rewards = np.zeros((steps, batch), np.float32)
        self.terminated = np.zeros((steps, batch), bool)
        self.truncated = np.zeros((steps, batch), bool)
        self.novelty = np.zeros((steps, batch), np.float32)
        self._final_observations: list[dict[str, Tensor]] = []
        self._final_values: list[Tensor] = []
        self._final_t: list[int] = []
        self._final_b: list[int] = []

    def add_finals(self, t: int, rows: np.ndarray, observation: dict[str, Tensor], values: Tensor) -> None:
        """Adds the final observations to which step t led in the environments `rows`, int64 [R]: entries [R, ...], and
        their values [R]."""
        self._final_observations.append(observation)
        self._final_values.append(values)
        self._final_t.extend([t] * len(rows))
        self._final_b.extend(rows.tolist())

    @property
    def observations(self) -> dict[str, Tensor]:
        """The observations of all steps, entries [T,B, ...]."""
        return select_prefix("observation/", self.storage.tensors)

    def live(self) -> dict[str, list[float]]:
        """Mean and maximum of the live memories per layer, over steps and environments. Empty for a memory without
        slots."""
        counts = self.storage.tensors.get("live")  # [T,B,L]
        if counts is None:
            return {}
        return {"mean": counts.float().mean((0, 1)).tolist(), "max": counts.amax((0, 1)).tolist()}

    def rollout(self, memory: Any) -> Rollout:
        """The rollout, whose tensors share the storage. memory: the one before the first step."""
        tensors = self.storage.tensors
        observations = self.observations
        final_at = (self._indices(self._final_t), self._indices(self._final_b))
        values = tensors["values"]
        next_values = torch.cat([values[1:], torch.zeros_like(values[:1])])
        # After a truncation, and at the rollout's end, the next value is the final observation's.
        if self._final_values:
            next_values[final_at] = torch.cat(self._final_values)
        empty = {key: entry[0, :0] for key, entry in observations.items()}
        return Rollout(
            observation=observations,
            episode_start=tensors["episode_start"],
            actions=tensors["actions"],
            logits=tensors["logits"],
            values=values,
            next_values=next_values,
            rewards=torch.as_tensor(self.rewards, device=self.device),
            terminated=torch.as_tensor(self.terminated, device=self.device),
            truncated=torch.as_tensor(self.truncated, device=self.device),
            reward_outputs=tensors.get("reward_outputs", values.new_empty((*values.shape, 0))),
            novelty=torch.as_tensor(self.novelty, device=self.device),
            memory=memory,
            final_observation={
                key: torch.cat([empty[key], *(final[key] for final in self._final_observations)]) for key in empty
            },
            final_at=final_at,
        )

    def _indices(self, numbers: list[int]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.int64, device=self.device)


def observation_tensors(observation: Mapping[str, Any], device: torch.device) -> dict[str, Tensor]:
    """The entries of an observation as tensors on a device."""
    return {key: torch.as_tensor(value, device=device) for key, value in observation.items()}


def check_outputs(observation: Mapping[str, Tensor], logits: Tensor, values: Tensor) -> None:
    """Raises TrainingEnded if a logit is NaN or a value is not finite. logits: [...,B,P], values: [...,B]. The message
    names the environment and the entry of its observation with the largest number. Entries are [...,B, ...]."""
    # The logits of masked actions are minus infinity. The two conditions are read in one wait for a GPU.
    is_bad = torch.isnan(logits).any(-1) | ~torch.isfinite(values)  # [...,B]
    if not is_bad.any():
        return
    index = tuple(is_bad.nonzero()[0].tolist())
    largest = {
        name: float(entry[index].double().abs().max()) for name, entry in observation.items() if entry[index].numel()
    }
    name = max(largest, key=lambda key: largest[key])
    raise TrainingEnded(
        f"the policy's outputs are not finite in environment {index[-1]}: its observation {name!r} has numbers up to "
        f"{largest[name]:.3g}"
    )
