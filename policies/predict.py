"""`predict` with Stable-Baselines3's signature, for observations as the environment gives them or as `envs` wraps them.

B environments, P parameters of the actions' distribution.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from expire_span_rl.policies.actions import Actions
from expire_span_rl.policies.core import Acting
from expire_span_rl.policies.encoders import as_tensors
from expire_span_rl.spaces import ACTION_MASK, ADDED, PREVIOUS_ACTION, PREVIOUS_REWARD, find_entry, word_numbers

PREDICT_HORIZON = 64  # steps between two compactions of the memory; results do not depend on it


@dataclass(frozen=True)
class PredictState:
    """What `predict` hands back for the next call. It can be used once: acting writes into it."""

    acting: Acting
    position: list[int]  # shared by all states of one run: calls made
    at: int
    action: np.ndarray  # the entry "previous_action" of the next observation: [B] or [B,N]
    reward: np.ndarray  # [B] the reward that the policy expects of it


class Predicts(Protocol):
    """What `Predictor` needs of a policy."""

    config: Any
    actions: Actions

    @property
    def device(self) -> torch.device: ...

    def initial_memory(self, batch_size: int) -> Any: ...

    def begin(self, memory: Any, horizon: int) -> Any: ...

    def step_with_rewards(
        self, observation: Mapping[str, Tensor], acting: Any, episode_start: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]: ...

    def predicted_rewards(self, rewards: Tensor, actions: Tensor) -> Tensor: ...


class Predictor:
    """Adds `predict` to a policy."""

    @torch.no_grad()
    def predict(
        self: Predicts,
        observation: Any,
        state: PredictState | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        reward: Any = None,
        action_masks: np.ndarray | None = None,
    ) -> tuple[np.ndarray, PredictState]:
        """Actions of the environment's own space, for a batch of observations or for one, and the next state.

        observation: the environment's own, of any structure, or that of `envs.make_env`; batches have the batch axis in
        every part. state: what the last call returned, None to begin; each state serves one call, since acting writes
        into it.
        episode_start: bool [B], where an episode begins; None for none. reward: of the previous step, [B] or a number,
        where the observation does not have it; None: what the policy itself expected of its action. action_masks: [B,A]
        or [A], where actions are forbidden and the observation does not say so; None: all are allowed.
        Raises ValueError for a state used before or made for another number of environments, and for an observation
        without a part that the policy reads.
        """
        spec = self.config.observation
        entries = {key: _own_entry(observation, key, spec) for key in spec if key not in ADDED}
        entries |= {key: observation[key] for key in ADDED if key in spec and _has(observation, key)}
        if action_masks is not None:
            entries[ACTION_MASK] = action_masks
        key = next(iter(entries))
        single = np.ndim(entries[key]) == _rank(spec[key])
        arrays = {key: np.asarray(value)[None] if single else np.asarray(value) for key, value in entries.items()}
        batch = len(arrays[key])
        acting, position = _resumed(self, state, batch)
        start = np.zeros(batch, bool) if episode_start is None else np.atleast_1d(episode_start).astype(bool)
        arrays = {**_remembered(self, state, start, reward), **arrays}
        arrays = {key: arrays[key] for key in spec}
        params, _, rewards = self.step_with_rewards(
            as_tensors(arrays, self.device), acting, torch.as_tensor(start, device=self.device)
        )
        actions = self.actions.mode(params) if deterministic else self.actions.sample(params)
        position[0] += 1
        expected = self.predicted_rewards(rewards, actions).float().cpu().numpy()
        following = PredictState(acting, position, position[0], actions.cpu().numpy(), expected)
        taken = self.actions.to_env(actions)
        one = taken[0] if taken.dtype.kind != "f" else np.asarray(taken[0])  # a Box of rank 0 holds arrays
        return (one if single else taken), following


def _has(observation: Any, key: str) -> bool:
    return isinstance(observation, Mapping) and key in observation


def _rank(entry: Mapping[str, Any]) -> int:
    return len(entry.get("shape", []))


def _own_entry(observation: Any, key: str, spec: Mapping[str, Any]) -> Any:
    """The value of an entry in an observation of any structure; text as numbers of words. Raises ValueError."""
    parts = isinstance(observation, (Mapping, tuple)) and not (isinstance(observation, tuple) and key == "observation")
    try:
        value = find_entry(observation, key) if parts else observation
    except KeyError:
        raise ValueError(f"observation: expected a part {key!r}, which the policy reads, there is none") from None
    if spec[key]["kind"] != "words":
        return value
    if isinstance(value, str):
        return word_numbers(value, spec[key]["shape"][0]).copy()  # it is shared, and tensors can be written to
    if isinstance(value, Sequence) and all(isinstance(text, str) for text in value):
        return np.stack([word_numbers(text, spec[key]["shape"][0]) for text in value])
    return value


def _remembered(policy: Predicts, state: PredictState | None, start: np.ndarray, reward: Any) -> dict[str, np.ndarray]:
    """The entries that an environment's own observation lacks, [B, ...] each."""
    batch, none = len(start), policy.actions.none(len(start))
    action = none if state is None else np.where(start.reshape(-1, *[1] * (none.ndim - 1)), none, state.action)
    expected = np.zeros(batch, np.float32) if state is None else state.reward
    received = expected if reward is None else np.broadcast_to(np.asarray(reward, np.float32), (batch,))
    return {
        PREVIOUS_ACTION: action,
        PREVIOUS_REWARD: np.where(start | (state is None), np.float32(0), received),
        ACTION_MASK: np.ones((batch, policy.actions.num_outputs), np.int8),
    }


def _resumed(policy: Predicts, state: PredictState | None, batch: int) -> tuple[Any, list[int]]:
    if state is None:
        return policy.begin(policy.initial_memory(batch), PREDICT_HORIZON), [0]
    if state.at != state.position[0]:
        raise ValueError(f"state: expected the last one returned (call {state.position[0]}), got call {state.at}'s")
    if len(state.acting.time) != batch:
        raise ValueError(f"state: expected {batch} environments, got {len(state.acting.time)}")
    if state.acting.full:
        return policy.begin(state.acting.memory(), PREDICT_HORIZON), state.position
    return state.acting, state.position
