"""Wrappers that add the previous action and reward to the observation. A policy is then a function of its observation.

Names: B environments, N numbers of an action. The wrapped observation is a flat Dict:

    entries            of the observation itself (`spaces.Flattener`): "image" or "observation" if it has no parts
    "previous_action"  `spaces.previous_action_space`: actions counted from 0. At the start of an episode it is the
                       number of actions. For a Box: its numbers scaled to [-1, 1], and zeros at the start. With
                       `metadata["hides_previous_action"]` it is always as at the start
    "previous_reward"  float32; 0 at the start of an episode. It excludes `shaping`, the part of the reward that only
                       the learner may see
    "action_mask"      if the environment says which actions are allowed (`envs.masks`)

At the end of an episode, `final_obs` has the last action and the last reward. The observation that follows has those of
an episode's start. The wrappers have no state: each step provides everything they add.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space, create_empty_array

from expire_span_rl.envs.core_adapters import BatchedVectorEnv, SingleEnv
from expire_span_rl.envs.errors import EnvError
from expire_span_rl.envs.gym_adapter import AdaptedEnv, adapt
from expire_span_rl.envs.inner_envs import complete_final_info, find_horizon
from expire_span_rl.envs.vector_adapter import AdaptedVectorEnv
from expire_span_rl.envs.vectors import AsyncEnvs, SyncEnvs
from expire_span_rl.spaces import (
    ADDED,
    PREVIOUS_ACTION,
    PREVIOUS_REWARD,
    entry_name,
    no_action,
    previous_action,
    previous_action_space,
)

_FLAT_VECTORS = (AdaptedVectorEnv, SyncEnvs, AsyncEnvs)
_PLAIN_WRAPPERS = (gym.wrappers.OrderEnforcing, gym.wrappers.PassiveEnvChecker, gym.wrappers.TimeLimit)


class _Entries:
    """The entries of an observation, with those that this module adds."""

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space, hides_action: bool = False) -> None:
        """observation_space: a flat one, of a toolkit task or an adapted environment; hides_action: the previous action
        is always that of an episode's start. Raises EnvError if the space has the names of the added entries."""
        self.name: str | None = None  # of the only entry of an observation without parts
        if isinstance(observation_space, spaces.Dict):
            entries = observation_space.spaces
        else:
            self.name = entry_name((), observation_space)
            entries = {self.name: observation_space}
        if clashes := sorted({PREVIOUS_ACTION, PREVIOUS_REWARD} & entries.keys()):
            raise EnvError(f"observation space: expected none of {sorted(ADDED[:2])} in it, got {clashes}")
        self.inner = spaces.Dict(entries)
        self.no_action = no_action(action_space)
        self.hides_action = hides_action
        action_entry: Any = previous_action_space(action_space)
        action_entry.is_hidden = hides_action
        previous = {
            PREVIOUS_ACTION: action_entry,
            PREVIOUS_REWARD: spaces.Box(-np.inf, np.inf, (), np.float32),
        }
        self.space = spaces.Dict({**entries, **previous})

    def split(self, observation: Any) -> dict[str, Any]:
        """The entries of an observation, which is a Dict of them or the only one."""
        return observation if self.name is None else {self.name: observation}

    def add(self, observation: Any, action: Any, reward: Any) -> dict[str, Any]:
        """The entries of an observation, with the previous action and reward."""
        return {**self.split(observation), PREVIOUS_ACTION: action, PREVIOUS_REWARD: reward}


def shaping_of(infos: Mapping[str, Any]) -> np.ndarray | float:
    """The part of a vector environment's rewards that only the learner may see: [B], or 0 if the infos have none.

    The shaping of an episode's last step is in `final_info`, as everything about that step in Gymnasium's vectors."""
    shaping = infos.get("shaping", 0.0)
    final_info = infos.get("final_info", {})
    return np.where(final_info["_shaping"], final_info["shaping"], shaping) if "shaping" in final_info else shaping


def _hides_action(env: Any) -> bool:
    """Whether the metadata of an environment say that observations leave out the previous action."""
    metadata = env.metadata
    return isinstance(metadata, Mapping) and metadata.get("hides_previous_action") is True


def is_toolkit_task(env: gym.Env) -> bool:
    """Whether `env` is a task of this toolkit in no wrappers but Gymnasium's plain ones. It then needs no adapter."""
    while isinstance(env, _PLAIN_WRAPPERS):
        env = env.env
    return isinstance(env, SingleEnv)


class PreviousActionReward(gym.Wrapper):
    """The wrapper of a single environment (see the module). An environment of another package is adapted first
    (`envs.gym_adapter`).

    `left_out`: parts of the observation that are not read, {name: reason}. Raises EnvError for spaces that no policy
    supports."""

    def __init__(self, env: gym.Env, encoder: str = "auto", timeout: float = 0.0) -> None:
        """encoder: see `cells.cells_space`; timeout: see `envs.timeout`."""
        if not (isinstance(env, AdaptedEnv) or is_toolkit_task(env)):
            env = adapt(env, encoder=encoder, timeout=timeout)
        super().__init__(env)
        self.left_out: dict[str, str] = (
            env.left_out if isinstance(env, AdaptedEnv) else cast(Any, env.unwrapped).left_out
        )
        self._entries = _Entries(env.observation_space, env.action_space, _hides_action(env))
        self.observation_space = self._entries.space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        return self._entries.add(observation, self._entries.no_action.copy(), np.array(0, np.float32)), info

    def step(self, action: Any) -> tuple[dict, float, bool, bool, dict[str, Any]]:
        hides_action = self._entries.hides_action
        action_entry = (
            self._entries.no_action.copy() if hides_action else previous_action(self.env.action_space, action)
        )
        observation, reward, terminated, truncated, info = self.env.step(action)
        reward_entry = np.array(float(reward) - float(info.get("shaping", 0.0)), np.float32)
        entries = self._entries.add(observation, action_entry, reward_entry)
        return entries, cast(float, reward), terminated, truncated, info


class VectorPreviousActionReward(VectorWrapper):
    """The wrapper of a SAME_STEP vector environment (see the module). One of another package is adapted first.

    `infos["final_obs"]` is always one batch, structured as the observation, even if the inner environment gives an
    array of objects (SyncVectorEnv). Rows outside `_final_obs` have no meaning. `left_out`: see `PreviousActionReward`.
    """

    def __init__(self, env: VectorEnv, encoder: str = "auto", timeout: float = 0.0) -> None:
        """encoder: see `cells.cells_space`; timeout: see `vector_adapter.AdaptedVectorEnv`."""
        if env.metadata.get("autoreset_mode") != AutoresetMode.SAME_STEP:
            raise EnvError(f"autoreset_mode: expected SAME_STEP, got {env.metadata.get('autoreset_mode')}")
        is_flat = isinstance(env, (*_FLAT_VECTORS, BatchedVectorEnv))
        if not is_flat and not (isinstance(env, SyncVectorEnv) and all(map(is_toolkit_task, env.envs))):
            env = AdaptedVectorEnv(env, encoder=encoder, timeout=timeout)
        super().__init__(env)
        self.left_out: dict[str, str] = getattr(env, "left_out", {})
        self._entries = _Entries(env.single_observation_space, env.single_action_space, _hides_action(env))
        self.single_observation_space = self._entries.space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self._no_action = np.stack([self._entries.no_action] * self.num_envs)  # [B] or [B,N]
        self._inner_action_space = env.single_action_space

    def reset(
        self, *, seed: int | list[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        if options is not None and "reset_mask" in options:
            raise EnvError("reset_mask: expected a reset of all environments, got a mask")
        observation, infos = cast(Any, self.env).reset(seed=seed, options=options)
        return self._entries.add(observation, self._no_action.copy(), np.zeros(self.num_envs, np.float32)), infos

    def step(
        self, actions: np.ndarray
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        hides_action = self._entries.hides_action
        action_entry = self._no_action.copy() if hides_action else previous_action(self._inner_action_space, actions)
        observation, reward, terminated, truncated, infos = self.env.step(actions)
        reward_entry = (reward - shaping_of(infos)).astype(np.float32)  # [B]
        done = terminated | truncated
        if "final_obs" in infos:
            final = self._batch_final(infos["final_obs"], done)
            infos = {**infos, "final_obs": self._entries.add(final, action_entry, reward_entry)}
            if isinstance(self.env, SyncVectorEnv) and not isinstance(self.env, _FLAT_VECTORS):
                infos["final_info"] = complete_final_info(self.env, infos.get("final_info"), np.flatnonzero(done))
            # The observation after an episode's end has no previous action and reward.
            done_rows = done if action_entry.ndim == 1 else done[:, None]
            action_entry = np.where(done_rows, self._no_action, action_entry)
            reward_entry = np.where(done, np.float32(0), reward_entry)
        entries = self._entries.add(observation, action_entry, reward_entry)
        return entries, reward, terminated, truncated, infos

    @property
    def begin_next(self) -> Callable[[np.ndarray], dict[str, np.ndarray]] | None:
        """A function that begins the next episodes of the environments `rows` [R], and returns their observations,
        entries [R, ...]. None if the inner environments cannot do that."""
        return None if getattr(self.env, "begin_next", None) is None else self._begin_next

    def _begin_next(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        observation = cast(Any, self.env).begin_next(rows)
        return self._entries.add(observation, self._no_action[rows], np.zeros(len(rows), np.float32))

    def state_dict(self) -> dict[str, np.ndarray]:
        """The state of the inner environments; empty if they cannot save it. Only this toolkit's own batches can: what
        another package's `state_dict` holds, and whether it is the whole state, nobody says."""
        inner = self.unwrapped
        return inner.state_dict() if isinstance(inner, BatchedVectorEnv) else {}

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Continues from a `state_dict`. Raises EnvError if the inner environments cannot."""
        inner = self.unwrapped
        if isinstance(inner, BatchedVectorEnv):
            inner.load_state_dict(state)
        elif state:
            raise EnvError(f"environment state: expected none for {inner}, got {sorted(state)}")

    @property
    def memory_horizon(self) -> int | None:
        """The steps for which the longest-lived fact must be remembered; None if the environment does not say."""
        return find_horizon(self.env)

    def _batch_final(self, final: Any, done: np.ndarray) -> Any:
        """Final observations as one batch. Rows outside `done` have no meaning."""
        if not (isinstance(final, np.ndarray) and final.dtype == object):
            return final
        batch = cast(dict[str, np.ndarray], create_empty_array(self._entries.inner, self.num_envs))
        for row in np.flatnonzero(done):
            for key, value in self._entries.split(final[row]).items():
                batch[key][row] = value
        return batch if self._entries.name is None else batch[self._entries.name]
