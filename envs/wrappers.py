"""Previous action and previous reward join the observation, so that a policy is a function of its observation alone.

Names: B environments, n actions. The wrapped observation is a Dict:

    "image"            the observation itself if it is a uint8 Box of rank 3, else "observation";
                       a Dict brings its own keys, without text, which a policy of tensors cannot read
    "previous_action"  int64 in 0..n; n when there is none, at the start of an episode
    "previous_reward"  float32; 0 at the start of an episode; without `shaping`, the part of the reward that the
                       environment's info says is for the learner alone

At an episode's end `final_obs` carries the action just taken and the reward just received, and the observation after it
starts afresh. Neither wrapper holds a state: what they add is told by the step itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space, create_empty_array

from expire_span_rl.envs.errors import EnvError

_TENSORS = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


def kept_space(space: spaces.Space) -> spaces.Dict:
    """The part of an observation space that a policy of tensors can read, as a Dict. Raises EnvError if it is empty."""
    if not isinstance(space, spaces.Dict):
        is_image = isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) == 3
        space = spaces.Dict({"image" if is_image else "observation": space})
    kept = {key: sub for key, sub in space.items() if isinstance(sub, _TENSORS)}
    if not kept:
        raise EnvError(f"observation space: expected a Box, a Discrete or a Dict of them, got {space}")
    return spaces.Dict(kept)


def kept(observation: Any, space: spaces.Dict) -> dict[str, Any]:
    """The part of an observation (single or batched) that `space`, from `kept_space`, names."""
    if isinstance(observation, Mapping):
        return {key: observation[key] for key in space if key in observation}
    return {next(iter(space)): observation}


def _with_previous(space: spaces.Dict, action_space: spaces.Space) -> spaces.Dict:
    """`space` and the two entries of this module. Raises EnvError unless actions are Discrete and the names free."""
    if not isinstance(action_space, spaces.Discrete):
        raise EnvError(f"action space: expected Discrete, got {action_space}")
    added = {
        "previous_action": spaces.Discrete(int(action_space.n) + 1),
        "previous_reward": spaces.Box(-np.inf, np.inf, (), np.float32),
    }
    if taken := sorted(added.keys() & space.keys()):
        raise EnvError(f"observation space: expected none of {sorted(added)} in it, got {taken}")
    return spaces.Dict({**space.spaces, **added})


def shaping_of(infos: Mapping[str, Any]) -> np.ndarray | float:
    """The part of a vector environment's rewards that only the learner may see: [B], or 0 where no info tells it.

    As everything in the infos of Gymnasium's vectors, that of an episode's last step is in `final_info`."""
    going, ended = infos.get("shaping", 0.0), infos.get("final_info", {})
    return np.where(ended["_shaping"], ended["shaping"], going) if "shaping" in ended else going


class PreviousActionReward(gym.Wrapper):
    """The single form: see the module."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self._kept_space = kept_space(env.observation_space)
        self.observation_space = _with_previous(self._kept_space, env.action_space)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        return self._observation(observation, int(self.action_space.n), 0.0), info

    def step(self, action: int) -> tuple[dict, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        previous = int(action) - int(self.action_space.start)
        seen = float(reward) - float(info.get("shaping", 0.0))
        return self._observation(observation, previous, seen), reward, terminated, truncated, info

    def _observation(self, observation: Any, action: int, reward: float) -> dict[str, Any]:
        added = {"previous_action": np.int64(action), "previous_reward": np.array(reward, np.float32)}
        return {**kept(observation, self._kept_space), **added}


class VectorPreviousActionReward(VectorWrapper):
    """The vector form, over any SAME_STEP vector environment with Discrete actions: see the module.

    `infos["final_obs"]` is one batch, structured as the observation, whatever the environment beneath makes of it
    (SyncVectorEnv: an array of objects). Rows outside `_final_obs` mean nothing.
    """

    def __init__(self, env: VectorEnv) -> None:
        super().__init__(env)
        if env.metadata.get("autoreset_mode") != AutoresetMode.SAME_STEP:
            raise EnvError(f"autoreset_mode: expected SAME_STEP, got {env.metadata.get('autoreset_mode')}")
        self._kept_space = kept_space(env.single_observation_space)
        self.single_observation_space = _with_previous(self._kept_space, env.single_action_space)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)

    def reset(
        self, *, seed: int | list[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        if options is not None and "reset_mask" in options:
            raise EnvError("reset_mask: expected a reset of all environments, got a mask")
        observation, infos = self.env.reset(seed=seed, options=options)
        none = np.full(self.num_envs, self.single_action_space.n, np.int64)
        return self._observation(observation, none, np.zeros(self.num_envs, np.float32)), infos

    def step(
        self, actions: np.ndarray
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        observation, reward, terminated, truncated, infos = self.env.step(actions)
        action = np.asarray(actions).astype(np.int64) - self.single_action_space.start  # [B]
        previous_reward = (reward - shaping_of(infos)).astype(np.float32)  # [B]
        ended = terminated | truncated
        if "final_obs" in infos:
            final = self._batched(infos["final_obs"], ended)
            infos = {**infos, "final_obs": self._observation(final, action, previous_reward)}
            action = np.where(ended, self.single_action_space.n, action)
            previous_reward = np.where(ended, np.float32(0), previous_reward)
        return self._observation(observation, action, previous_reward), reward, terminated, truncated, infos

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

    def _observation(self, observation: Any, action: np.ndarray, reward: np.ndarray) -> dict[str, np.ndarray]:
        added = {"previous_action": action, "previous_reward": reward}
        return {**kept(observation, self._kept_space), **added}

    def _batched(self, final: Any, ended: np.ndarray) -> dict[str, np.ndarray]:
        """Final observations as one batch with the structure of `_kept_space`; rows outside `ended` mean nothing."""
        if not (isinstance(final, np.ndarray) and final.dtype == object):
            return kept(final, self._kept_space)
        batch = create_empty_array(self._kept_space, self.num_envs)
        for row in np.flatnonzero(ended):
            for key, value in kept(final[row], self._kept_space).items():
                batch[key][row] = value
        return batch
