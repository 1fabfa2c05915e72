"""Previous action and previous reward join the observation, so that a policy is a function of its observation alone.

Names: B environments, N numbers of an action. The wrapped observation is a flat Dict:

    entries            of the observation itself (`spaces.Flattener`): "image" or "observation" if it has no parts
    "previous_action"  `spaces.previous_action_space`: actions counted from 0, one more than the last for none at the
                       start of an episode; of a Box, its numbers scaled to [-1, 1], and zeros for none. Always none
                       where `metadata["hides_previous_action"]` is True
    "previous_reward"  float32; 0 at the start of an episode; without `shaping`, the part of the reward that one of our
                       tasks says is for the learner alone
    "action_mask"      where the environment says which actions are allowed (`envs.masks`)

At an episode's end `final_obs` carries the action just taken and the reward just received, and the observation after it
starts afresh. Neither wrapper holds a state: what they add is told by the step itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space, create_empty_array

from expire_span_rl.envs.adapter import AdaptedEnv, adapt
from expire_span_rl.envs.batched import AdaptedVectorEnv
from expire_span_rl.envs.errors import EnvError
from expire_span_rl.envs.faces import BatchedVectorEnv, SingleEnv
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
    """An observation as a Dict of entries, with those that this module adds."""

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space, hides_action: bool = False) -> None:
        """observation_space: flat already, of one of our tasks or adapted. Raises EnvError if a name is taken."""
        if isinstance(observation_space, spaces.Dict):
            self.name, own = None, observation_space.spaces
        else:
            self.name = entry_name((), observation_space)
            own = {self.name: observation_space}
        if taken := sorted({PREVIOUS_ACTION, PREVIOUS_REWARD} & own.keys()):
            raise EnvError(f"observation space: expected none of {sorted(ADDED[:2])} in it, got {taken}")
        self.inner = spaces.Dict(own)
        self.no_action = no_action(action_space)
        self.hides_action = hides_action
        added = {
            PREVIOUS_ACTION: previous_action_space(action_space),
            PREVIOUS_REWARD: spaces.Box(-np.inf, np.inf, (), np.float32),
        }
        self.space = spaces.Dict({**own, **added})

    def named(self, observation: Any) -> dict[str, Any]:
        return observation if self.name is None else {self.name: observation}

    def joined(self, entries: Any, action: Any, reward: Any) -> dict[str, Any]:
        return {**entries, PREVIOUS_ACTION: action, PREVIOUS_REWARD: reward}


def shaping_of(infos: Mapping[str, Any]) -> np.ndarray | float:
    """The part of a vector environment's rewards that only the learner may see: [B], or 0 where no info tells it.

    As everything in the infos of Gymnasium's vectors, that of an episode's last step is in `final_info`."""
    going, ended = infos.get("shaping", 0.0), infos.get("final_info", {})
    return np.where(ended["_shaping"], ended["shaping"], going) if "shaping" in ended else going


def _hides_action(env: Any) -> bool:
    """Whether its metadata say that the previous action is no part of the observation."""
    metadata = env.metadata
    return isinstance(metadata, Mapping) and metadata.get("hides_previous_action") is True


def is_own(env: gym.Env) -> bool:
    """Whether it is one of our tasks, in nothing but Gymnasium's own plain wrappers: it needs no adapter."""
    while isinstance(env, _PLAIN_WRAPPERS):
        env = env.env
    return isinstance(env, SingleEnv)


class PreviousActionReward(gym.Wrapper):
    """The single form: see the module. An environment of another package is adapted first (`envs.adapter`).

    `left_out`: by name, why a part of the observation is not read. Raises EnvError for what no policy can take."""

    def __init__(self, env: gym.Env, encoder: str = "auto") -> None:
        """encoder: see `cells.cells_space`."""
        if not (isinstance(env, AdaptedEnv) or is_own(env)):
            env = adapt(env, encoder=encoder)
        super().__init__(env)
        self.left_out: dict[str, str] = (
            env.left_out if isinstance(env, AdaptedEnv) else cast(Any, env.unwrapped).left_out
        )
        self._entries = _Entries(env.observation_space, env.action_space, _hides_action(env))
        self.observation_space = self._entries.space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        return self._entries.joined(
            self._entries.named(observation), self._entries.no_action.copy(), np.array(0, np.float32)
        ), info

    def step(self, action: Any) -> tuple[dict, float, bool, bool, dict[str, Any]]:
        hides_action = self._entries.hides_action
        previous = self._entries.no_action.copy() if hides_action else previous_action(self.env.action_space, action)
        observation, reward, terminated, truncated, info = self.env.step(action)
        seen = np.array(float(reward) - float(info.get("shaping", 0.0)), np.float32)
        return (
            self._entries.joined(self._entries.named(observation), previous, seen),
            cast(float, reward),
            terminated,
            truncated,
            info,
        )


class VectorPreviousActionReward(VectorWrapper):
    """The vector form, over any SAME_STEP vector environment: see the module. One of another package is adapted first.

    `infos["final_obs"]` is one batch, structured as the observation, whatever the environment beneath makes of it
    (SyncVectorEnv: an array of objects). Rows outside `_final_obs` mean nothing. `left_out` as in the single form.
    """

    def __init__(self, env: VectorEnv, encoder: str = "auto", timeout: float = 0.0) -> None:
        """encoder: see `cells.cells_space`; timeout: see `batched.AdaptedVectorEnv`."""
        if env.metadata.get("autoreset_mode") != AutoresetMode.SAME_STEP:
            raise EnvError(f"autoreset_mode: expected SAME_STEP, got {env.metadata.get('autoreset_mode')}")
        is_flat = isinstance(env, (*_FLAT_VECTORS, BatchedVectorEnv))
        if not is_flat and not (isinstance(env, SyncVectorEnv) and all(map(is_own, env.envs))):
            env = AdaptedVectorEnv(env, encoder=encoder, timeout=timeout)
        super().__init__(env)
        self.left_out: dict[str, str] = getattr(env, "left_out", {})
        self._entries = _Entries(env.single_observation_space, env.single_action_space, _hides_action(env))
        self.single_observation_space = self._entries.space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self._no_action = np.stack([self._entries.no_action] * self.num_envs)  # [B] or [B,N]
        self._acts_in = env.single_action_space

    def reset(
        self, *, seed: int | list[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        if options is not None and "reset_mask" in options:
            raise EnvError("reset_mask: expected a reset of all environments, got a mask")
        observation, infos = cast(Any, self.env).reset(seed=seed, options=options)
        none = np.zeros(self.num_envs, np.float32)
        return self._entries.joined(self._entries.named(observation), self._no_action.copy(), none), infos

    def step(
        self, actions: np.ndarray
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        hides_action = self._entries.hides_action
        action = self._no_action.copy() if hides_action else previous_action(self._acts_in, actions)  # [B] or [B,N]
        observation, reward, terminated, truncated, infos = self.env.step(actions)
        previous_reward = (reward - shaping_of(infos)).astype(np.float32)  # [B]
        ended = terminated | truncated
        if "final_obs" in infos:
            final = self._batched(infos["final_obs"], ended)
            infos = {**infos, "final_obs": self._entries.joined(final, action, previous_reward)}
            rows = ended if action.ndim == 1 else ended[:, None]
            action = np.where(rows, self._no_action, action)
            previous_reward = np.where(ended, np.float32(0), previous_reward)
        return (
            self._entries.joined(self._entries.named(observation), action, previous_reward),
            reward,
            terminated,
            truncated,
            infos,
        )

    def state_dict(self) -> dict[str, np.ndarray]:
        """The state of the environments beneath; empty if they cannot save it."""
        save = getattr(self.unwrapped, "state_dict", None)
        return {} if save is None else save()

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Continues from `state_dict`. Raises EnvError if the environments beneath cannot."""
        load = getattr(self.unwrapped, "load_state_dict", None)
        if load is not None:
            load(state)
        elif state:
            raise EnvError(f"environment state: expected none for {self.unwrapped}, got {sorted(state)}")

    @property
    def memory_horizon(self) -> int | None:
        """For how many steps the longest-lived fact must survive; None where the environment does not say."""
        return getattr(self.unwrapped, "memory_horizon", None)

    def _batched(self, final: Any, ended: np.ndarray) -> dict[str, np.ndarray]:
        """Final observations as one batch of entries; rows outside `ended` mean nothing."""
        if not (isinstance(final, np.ndarray) and final.dtype == object):
            return self._entries.named(final)
        batch = cast(dict[str, np.ndarray], create_empty_array(self._entries.inner, self.num_envs))
        for row in np.flatnonzero(ended):
            for key, value in self._entries.named(final[row]).items():
                batch[key][row] = value
        return batch
