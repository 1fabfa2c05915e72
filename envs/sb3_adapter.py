"""Adapts this toolkit's vector environments to Stable-Baselines3's `VecEnv`, for `evaluate_policy` and its algorithms.

    # `envs` does not import this module, so that the toolkit works without Stable-Baselines3.
    from expire_span_rl.envs.sb3_adapter import SB3VecEnv
    evaluate_policy(policy, SB3VecEnv(envs.make_vec_env("Corridor-v0", 8)), n_eval_episodes=100)

B environments. The vector environment's names (left) and Stable-Baselines3's (right):

    single_observation_space, a Dict       observation_space; scalars become vectors of length 1, which
                                           Stable-Baselines3's networks need (this toolkit's accept both)
    single_action_space                    action_space, the same; actions are the environment's own
    terminated | truncated                 dones [B]
    reward float64 [B]                     rewards float32 [B]
    infos["final_obs"], row b              infos[b]["terminal_observation"], if done
    infos["final_info"], row b             entries of infos[b], including `is_success`, if done
    truncated & ~terminated                infos[b]["TimeLimit.truncated"], at every step
    (counted here, as Monitor does)        infos[b]["episode"] = {"r": return, "l": steps}, if done; not of an episode
                                           that was lost with its process, which counts nowhere
    other infos, row b                     entries of infos[b]; if done, of reset_infos[b] (SAME_STEP autoreset)
    reset(seed=[s, s + 1, ...])            seed(s), then reset()

Environments that are stepped one by one, here or in processes, have their own attributes and methods. A batched task
has them once for all rows. They can be read for any row, but set or called only for all rows at once. The same holds
for the attributes of environments in processes.

`Monitor` wraps a single environment (`envs.make_env`). `VecNormalize` wraps the adapter; its `norm_obs_keys` must name
the entries that are real numbers. A `Discrete` or `MultiDiscrete` that does not begin at 0 stays as it is:
Stable-Baselines3's own networks refuse it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, cast

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvIndices, VecEnvStepReturn

from expire_span_rl.envs.env_wrappers import VectorPreviousActionReward
from expire_span_rl.spaces import EPISODE_LOST


class SB3VecEnv(VecEnv):
    """See the module. It owns `env` and closes it."""

    def __init__(self, env: VectorPreviousActionReward) -> None:
        self.env = env
        self._returns = np.zeros(env.num_envs)
        self._lengths = np.zeros(env.num_envs, np.int64)
        self._actions: np.ndarray | None = None
        space = cast(spaces.Dict, env.single_observation_space)
        self._scalars = [key for key, sub in space.items() if isinstance(sub, spaces.Box) and sub.shape == ()]
        vectors = {key: _as_vector(cast(spaces.Box, space[key])) for key in self._scalars}
        super().__init__(env.num_envs, spaces.Dict({**space.spaces, **vectors}), env.single_action_space)

    def reset(self) -> dict[str, np.ndarray]:
        """Begins new episodes. After a call of `seed` they are the first episodes of those seeds, otherwise the next
        ones."""
        if any(options != self._options[0] for options in self._options):
            raise ValueError(f"options: expected the same for all environments, got {self._options}")
        seeds: Any = None if self._seeds[0] is None else self._seeds
        observation, infos = self.env.reset(seed=seeds, options=self._options[0] or None)
        self._reset_seeds()
        self._reset_options()
        self.reset_infos = [_row(infos, b) for b in range(self.num_envs)]
        self._returns[:] = 0
        self._lengths[:] = 0
        return self._batch(observation)

    def step_async(self, actions: np.ndarray) -> None:
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        observation, reward, terminated, truncated, infos = self.env.step(cast(np.ndarray, self._actions))
        dones = terminated | truncated
        self._returns += reward
        self._lengths += 1
        final = self._batch(infos["final_obs"]) if dones.any() else {}
        row_infos: list[dict[str, Any]] = []
        for b in range(self.num_envs):
            info = _row(infos, b)
            if dones[b]:
                self.reset_infos[b] = info
                info = _row(infos.get("final_info", {}), b)
                info["terminal_observation"] = {key: value[b] for key, value in final.items()}
                if info.pop(EPISODE_LOST, False):
                    info.pop("is_success", None)
                else:
                    info["episode"] = {"r": float(self._returns[b]), "l": int(self._lengths[b])}
            info["TimeLimit.truncated"] = bool(truncated[b] and not terminated[b])
            row_infos.append(info)
        self._returns[dones] = 0
        self._lengths[dones] = 0
        return self._batch(observation), reward.astype(np.float32), dones, row_infos

    def state_dict(self) -> dict[str, np.ndarray]:
        """A copy of the environments' state between two steps; empty if they cannot save it."""
        state = self.env.state_dict()
        return state and {**state, "returns": self._returns.copy(), "lengths": self._lengths.copy()}

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Continues from a `state_dict`, which must not be empty. Raises EnvError for the state of other
        environments."""
        env_state = {name: array for name, array in state.items() if name not in ("returns", "lengths")}
        self.env.load_state_dict(env_state)
        self._returns[:] = state["returns"]
        self._lengths[:] = state["lengths"]

    def close(self) -> None:
        self.env.close()

    def get_images(self) -> list[np.ndarray | None]:
        return list(cast(Any, self.env.render()) or [None] * self.num_envs)

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        base = self.env.unwrapped
        if isinstance(base, AsyncVectorEnv):
            values = base.get_attr(attr_name)
            return [values[b] for b in self._get_indices(indices)]
        return [_attribute(env, attr_name) for env in self._targets(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        targets = self._targets(indices, each_once=True)
        if isinstance(self.env.unwrapped, AsyncVectorEnv):
            self.env.unwrapped.set_attr(attr_name, [value] * self.num_envs)
            return
        for env in targets:
            set_attribute = env.set_wrapper_attr if isinstance(env, gym.Env) else partial(setattr, env)
            set_attribute(attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list[Any]:
        targets = self._targets(indices, each_once=True)
        if isinstance(self.env.unwrapped, AsyncVectorEnv):
            return list(self.env.unwrapped.call(method_name, *args, **kwargs))
        results = [_attribute(env, method_name)(*args, **kwargs) for env in targets]
        return results if len(results) == len(list(self._get_indices(indices))) else results * self.num_envs

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """Whether the single environments have such a wrapper. Always True for Monitor, whose `episode` entry this
        adapter provides."""
        return [
            wrapper_class is Monitor or (isinstance(env, gym.Env) and is_wrapped(env, wrapper_class))
            for env in self._targets(indices)
        ]

    def _batch(self, observation: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Entries [B, ...], with scalars as [B,1]."""
        return {**observation, **{key: observation[key][:, None] for key in self._scalars}}

    def _targets(self, indices: VecEnvIndices, each_once: bool = False) -> list[Any]:
        """The objects with the attributes of `indices`: the single environments, or the batched one for each index.

        each_once: the batched one comes once, for all rows. Raises ValueError if `indices` are not all rows."""
        rows = list(self._get_indices(indices))
        base = self.env.unwrapped
        if isinstance(base, SyncVectorEnv):
            return [base.envs[b] for b in rows]
        if each_once and sorted(rows) != list(range(self.num_envs)):
            raise ValueError(f"indices: expected all {self.num_envs} of a batched environment, got {rows}")
        return [base] if each_once else [base] * len(rows)


def _attribute(env: Any, name: str) -> Any:
    return env.get_wrapper_attr(name) if isinstance(env, gym.Env) else getattr(env, name)


def _as_vector(number: spaces.Box) -> spaces.Box:
    return spaces.Box(number.low.reshape(1), number.high.reshape(1), (1,), number.dtype)


def _row(infos: Mapping[str, Any], b: int) -> dict[str, Any]:
    """The info of environment b from a vector environment's infos, without `final_obs` and `final_info`."""
    info = {}
    for key, value in infos.items():
        if key.startswith("_") or key in ("final_obs", "final_info") or not infos.get(f"_{key}", np.ones(b + 1))[b]:
            continue
        info[key] = _row(value, b) if isinstance(value, Mapping) else value[b]
    return info
