"""`predict` with Stable-Baselines3's signature, for observations as the environment gives them or as `envs` wraps them.

B environments, N numbers of an action, A actions.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from expire_span_rl.policies.actions import Actions
from expire_span_rl.policies.core import Acting
from expire_span_rl.policies.encoders import as_tensors
from expire_span_rl.policies.entry_checks import EntryCheck, read_masks, read_rewards, read_starts
from expire_span_rl.spaces import ACTION_MASK, ADDED, PREVIOUS_ACTION, PREVIOUS_REWARD, find_entry, word_numbers

PREDICT_HORIZON = 64  # steps between two compactions of the memory; results do not depend on it


@dataclass(frozen=True)
class PredictState:
    """What `predict` returns for the next call. It can be used once, since acting writes into it."""

    acting: Acting
    call_counter: list[int]  # the number of calls, shared by all states of one run
    call: int  # the number of the call that returned this state
    action: np.ndarray  # the entry "previous_action" of the next observation: [B] or [B,N]
    reward: np.ndarray  # [B] the reward that is expected of it


class PredictingPolicy(Protocol):
    """What `Predictor` needs of a policy."""

    config: Any
    actions: Actions

    @property
    def entry_checks(self) -> Mapping[str, EntryCheck]: ...  # by the name of the entry

    @property
    def device(self) -> torch.device: ...

    def initial_memory(self, batch_size: int) -> Any: ...

    def begin(self, memory: Any, horizon: int) -> Any: ...

    def step_with_rewards(
        self, observation: Mapping[str, Tensor], acting: Any, episode_start: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]: ...

    def expected_rewards(self, rewards: Tensor, actions: Tensor) -> Tensor: ...


class Predictor:
    """Adds `predict` to a policy."""

    @torch.no_grad()
    def predict(
        self: PredictingPolicy,
        observation: Any,
        state: PredictState | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        reward: Any = None,
        *,
        action_masks: np.ndarray | None = None,
    ) -> tuple[np.ndarray, PredictState]:
        """Actions of the environment's own space, for a batch of observations or for one, and the next state.

        observation: the environment's own, of any structure, or that of `envs.make_env`; batches have the batch axis in
        every part; state: what the last call returned, None to begin; each state serves one call, since acting writes
        into it; episode_start: where an episode begins, bool [B] or one for all; None for nowhere; reward: of the
        previous step, [B] or one for all, if the observation does not hold it; None: the mean reward of training;
        action_masks: [B,A] or [A], 1 for an allowed action and 0 for others, if actions are forbidden and the
        observation does not say so; None: all are allowed. Each number of an action needs an allowed value. In a batch,
        a mask of zeros alone, as of an environment whose episode has ended, allows every action.

        Warns where a policy that knows masks gets none.
        Raises ValueError, one line, for a state that was used before or is of another number of environments; for an
        observation without a part that the policy reads, or with one of another shape; for numbers that are not finite,
        and for whole numbers that the space does not have (real ones have no bounds here, nor have whole ones that are
        read as real ones, such as those of a large MultiDiscrete); for a single mask that allows nothing; and for an
        `episode_start` or a `reward` of another length. Raises TypeError for what is no state.
        """
        spec = self.config.observation
        arrays, is_single = _batch_entries(self, observation, action_masks)
        batch = len(next(iter(arrays.values())))
        if ACTION_MASK in spec and ACTION_MASK not in arrays:
            warnings.warn("predict: there are no action_masks, so that all actions count as allowed", stacklevel=2)
        start = np.zeros(batch, bool) if episode_start is None else read_starts(episode_start, batch)
        reward = None if reward is None else read_rewards(reward, batch)
        acting, call_counter = _begin_or_resume(self, state, batch)
        arrays = {**_added_entries(self, state, start, reward), **arrays}
        arrays = {key: arrays[key] for key in spec}
        params, _, reward_outputs = self.step_with_rewards(
            as_tensors(arrays, self.device), acting, torch.as_tensor(start, device=self.device)
        )
        actions = self.actions.mode(params) if deterministic else self.actions.sample(params)
        call_counter[0] += 1
        next_state = PredictState(
            acting=acting,
            call_counter=call_counter,
            call=call_counter[0],
            action=actions.cpu().numpy(),
            reward=self.expected_rewards(reward_outputs, actions).float().cpu().numpy(),
        )
        env_actions = self.actions.to_env(actions)
        if not is_single:
            return env_actions, next_state
        env_action = env_actions[0]
        return np.asarray(env_action) if env_actions.dtype.kind == "f" else env_action, next_state  # Box: an array


def _batch_entries(
    policy: PredictingPolicy, observation: Any, action_masks: np.ndarray | None
) -> tuple[dict[str, np.ndarray], bool]:
    """The entries that the observation holds, [B, ...] each, and whether it was a single one. Raises ValueError."""
    spec, checks = policy.config.observation, policy.entry_checks
    own = [key for key in spec if key not in ADDED]
    if len(own) > 1 and not isinstance(observation, (Mapping, tuple)):
        names = ", ".join(map(repr, own))
        raise ValueError(f"observation: expected the parts {names}, got one {type(observation).__name__}")
    entries = {key: _environment_entry(observation, key, spec) for key in own}
    if isinstance(observation, Mapping):
        entries |= {key: observation[key] for key in ADDED if key in spec and key in observation}
    if action_masks is not None:
        if ACTION_MASK not in spec:
            raise ValueError("action_masks: expected none, since the policy was trained without")
        entries[ACTION_MASK] = action_masks
    arrays = {key: checks[key](value) for key, value in entries.items()}
    key, first = next(iter(arrays.items()))
    is_single = first.ndim == len(checks[key].shape)
    batch = () if is_single else first.shape[:1]
    for other, array in arrays.items():
        got = array.shape[: array.ndim - len(checks[other].shape)]
        if got != batch:
            axes = ["no batch axis" if not shape else f"a batch of {shape[0]}" for shape in (batch, got)]
            raise ValueError(f"observation {other!r}: expected {axes[0]}, as {key!r} has, got {axes[1]}")
    arrays = {key: array[None] if is_single else array for key, array in arrays.items()}
    if ACTION_MASK in arrays:
        arrays[ACTION_MASK] = read_masks(arrays[ACTION_MASK], policy.actions.sizes, is_single=is_single)
    return arrays, is_single


def _environment_entry(observation: Any, key: str, spec: Mapping[str, Any]) -> Any:
    """The value of an entry in the environment's own observation of any structure; text as numbers of words. Raises
    ValueError."""
    is_whole_tuple = isinstance(observation, tuple) and key == "observation"
    has_parts = isinstance(observation, (Mapping, tuple)) and not is_whole_tuple
    try:
        value = find_entry(observation, key) if has_parts else observation
    except KeyError:
        raise ValueError(f"observation: expected a part {key!r}, which the policy reads, there is none") from None
    if spec[key]["kind"] != "words":
        return value
    if isinstance(value, str):
        return word_numbers(value, spec[key]["shape"][0]).copy()  # the array is shared, and tensors can be written to
    if isinstance(value, Sequence) and all(isinstance(text, str) for text in value):
        return np.stack([word_numbers(text, spec[key]["shape"][0]) for text in value])
    return value


def _added_entries(
    policy: PredictingPolicy, state: PredictState | None, start: np.ndarray, reward: np.ndarray | None
) -> dict[str, np.ndarray]:
    """The entries that an environment's own observation lacks, [B, ...] each."""
    batch = len(start)
    no_action = policy.actions.no_action(batch)
    is_hidden = policy.config.observation.get(PREVIOUS_ACTION, {}).get("hidden", False)
    if state is None:
        previous_action = no_action
        previous_reward = np.zeros(batch, np.float32)
    else:
        is_absent = (start | is_hidden).reshape(-1, *[1] * (no_action.ndim - 1))
        previous_action = np.where(is_absent, no_action, state.action)
        previous_reward = state.reward
    if reward is not None:
        previous_reward = reward
    return {
        PREVIOUS_ACTION: previous_action,
        PREVIOUS_REWARD: np.where(start | (state is None), np.float32(0), previous_reward),
        ACTION_MASK: np.ones((batch, policy.actions.num_outputs), np.int8),
    }


def _begin_or_resume(policy: PredictingPolicy, state: PredictState | None, batch: int) -> tuple[Any, list[int]]:
    """What to act on, and the counter of calls. Raises ValueError."""
    if state is None:
        return policy.begin(policy.initial_memory(batch), PREDICT_HORIZON), [0]
    if not isinstance(state, PredictState):
        raise TypeError(f"state: expected None or what the last call returned, got {type(state).__name__}")
    if state.call != state.call_counter[0]:
        last_call = state.call_counter[0]
        raise ValueError(f"state: expected the last one returned (call {last_call}), got call {state.call}'s")
    if len(state.acting.time) != batch:
        raise ValueError(f"state: expected {batch} environments, got {len(state.acting.time)}")
    if state.acting.full:
        return policy.begin(state.acting.memory(), PREDICT_HORIZON), state.call_counter
    return state.acting, state.call_counter
