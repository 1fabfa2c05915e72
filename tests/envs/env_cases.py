"""Environments of other authors, for tests: all spaces, and violations of Gymnasium's interface."""

from __future__ import annotations

import copy
import os
import signal
from collections.abc import Callable
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

LEAVES: dict[str, spaces.Space] = {
    "vector": spaces.Box(-2, 2, (3,), np.float32),
    "scalar": spaces.Box(-1, 1, (), np.float64),
    "matrix": spaces.Box(0, 1, (3, 4), np.float32),
    "picture": spaces.Box(0, 255, (28, 28, 3), np.uint8),
    "channels_first": spaces.Box(0, 255, (1, 12, 12), np.uint8),
    "whole": spaces.Box(-5, 10, (3,), np.int64),
    "bytes": spaces.Box(0, 255, (3,), np.uint8),
    "flags": spaces.Box(0, 1, (2,), np.bool_),
    "discrete": spaces.Discrete(10, start=1),
    "negative": spaces.Discrete(3, start=-1),
    "multi_discrete": spaces.MultiDiscrete([3, 4]),
    "multi_discrete_matrix": spaces.MultiDiscrete([[2, 3], [4, 5]]),
    "multi_binary": spaces.MultiBinary(4),
    "multi_binary_matrix": spaces.MultiBinary([2, 2]),
    "text": spaces.Text(20),
}
"""The spaces without parts that a policy supports."""
ACTIONS: dict[str, spaces.Space] = {
    "discrete": spaces.Discrete(3),
    "discrete_from_minus_1": spaces.Discrete(3, start=-1),
    "multi_discrete": spaces.MultiDiscrete([3, 4]),
    "multi_discrete_matrix": spaces.MultiDiscrete([[2, 3], [4, 5]], start=[[1, 1], [0, -2]]),
    "multi_binary": spaces.MultiBinary(3),
    "box": spaces.Box(-2, 3, (2,), np.float32),
    "box_matrix": spaces.Box(np.array([[-1, -np.inf]]), np.array([[1, np.inf]]), (1, 2), np.float64),
}


class Stranger(gym.Env):
    """Draws its observations from its space, which each episode seeds. Actions do not change what is drawn."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 5}

    def __init__(
        self,
        observation_space: spaces.Space = LEAVES["vector"],
        action_space: spaces.Space = ACTIONS["discrete"],
        length: int = 5,
        render_mode: str | None = None,
    ):
        self.observation_space = copy.deepcopy(observation_space)
        self.action_space = copy.deepcopy(action_space)
        self.length = length
        self.render_mode = render_mode
        self.seeds: list[int | None] = []
        self.t = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.seeds.append(seed)
        self.t = 0
        self.observation_space.seed(int(self.np_random.integers(2**31)))
        return self.observe(), self.info()

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, Any]:
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        self.t += 1
        return self.observe(), self.reward(action), self.t >= self.length, False, self.info()

    def observe(self) -> Any:
        return self.observation_space.sample()

    def info(self) -> dict:
        return {"t": self.t}

    def reward(self, action: Any) -> Any:
        return float(np.sum(action)) + self.t

    def render(self) -> np.ndarray:
        return np.full((16, 16, 3), self.t, np.uint8)


class Counter(Stranger):
    """Shows the number of its step, always in the same array."""

    def __init__(self, **kwargs: Any):
        super().__init__(spaces.Box(-1e6, 1e6, (2,), np.float32), **kwargs)
        self.buffer = np.zeros(2, np.float32)

    def observe(self) -> np.ndarray:
        self.buffer[:] = self.t
        return self.buffer


class Patched(Counter):
    """A `Counter` with one method replaced: `Patched("reward", lambda env, action: ...)`."""

    def __init__(self, method: str, replacement: Callable[..., Any], **kwargs: Any):
        super().__init__(**kwargs)
        setattr(self, method, lambda *args, **named: replacement(self, *args, **named))


class Dying(Counter):
    """Fails in a worker process, at step `step_number` of the episodes whose seeds are in `failing_seeds`. failure:
    "kill" ends the process; the name of an error raises it."""

    def __init__(
        self,
        failure: str = "KeyError",
        step_number: int = 3,
        failing_seeds: tuple[int, ...] = (0,),
        length: int = 5,
    ):
        super().__init__(length=length)
        self.failure = failure
        self.step_number = step_number
        self.failing_seeds = failing_seeds
        self.parent = os.environ.get("PARENT_OF_WORKERS")

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, Any]:
        is_worker = str(os.getpid()) != self.parent
        if is_worker and self.seeds[-1] in self.failing_seeds and self.t + 1 == self.step_number:
            if self.failure == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise {"KeyError": KeyError, "SystemExit": SystemExit}[self.failure]("the simulator went away")
        return super().step(action)


class Once(Counter):
    """Can be made in one worker process only, the one that makes the file `path`."""

    def __init__(self, path: str):
        super().__init__()
        if str(os.getpid()) != os.environ.get("PARENT_OF_WORKERS"):
            open(path, "x").close()


class Maker:
    """Makes `env_class(**kwargs)`. Can be pickled."""

    def __init__(self, env_class: type[gym.Env], **kwargs: Any):
        self.env_class = env_class
        self.kwargs = kwargs
        self.__name__ = env_class.__name__

    def __call__(self) -> gym.Env:
        return self.env_class(**self.kwargs)


class Batch(VectorEnv):
    """A vector environment of another author, which steps a batch of counters by itself. Environment b ends an episode
    every b + 2 steps."""

    metadata: ClassVar[dict[str, Any]] = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": []}

    def __init__(self, num_envs: int = 3, masks: str | None = None, **fault: Any):
        """fault: `at` and `value`: from step 4 on, entry `at` of a step's result is `value`."""
        self.num_envs = num_envs
        self.masks = masks
        self.fault = fault
        parts: dict[str, spaces.Space] = {
            "clock": spaces.Box(0, 100, (1,), np.float32),
            "n": spaces.Discrete(9, start=1),
        }
        if masks == "observation":
            parts["action_mask"] = spaces.MultiBinary(3)
        self.single_observation_space = spaces.Dict({"inner": spaces.Dict(parts)} if masks is None else parts)
        self.single_action_space = spaces.Discrete(3)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.clock = np.zeros(num_envs, np.int64)
        self.steps = 0
        self.seed = None

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict]:
        self.seed = seed
        self.steps = 0
        self.clock[:] = 0
        return self._observe(), self._masks()

    def step(self, actions: np.ndarray) -> tuple[Any, Any, Any, Any, dict]:
        self.steps += 1
        self.clock += 1
        done = self.clock == np.arange(self.num_envs) + 2
        infos: dict[str, Any] = {
            "speed": self.clock * 0.5,
            "ragged": np.array([None] * self.num_envs),
            "shaping": np.ones(self.num_envs),
        }
        if done.any():
            final_info = {"is_success": done & (actions == 1), "_is_success": done, "shaping": np.ones(self.num_envs)}
            infos |= {"final_obs": self._observe(), "_final_obs": done, "final_info": final_info, "_final_info": done}
        reward = self.clock.astype(np.float64)
        self.clock[done] = 0
        result = [self._observe(), reward, done, np.zeros(self.num_envs, bool), infos | self._masks()]
        if self.steps >= 4 and "at" in self.fault:
            result[self.fault["at"]] = self.fault["value"]
        return tuple(result)

    def _observe(self) -> dict[str, Any]:
        parts: dict[str, Any] = {"clock": self.clock[:, None].astype(np.float32), "n": 1 + self.clock % 9}
        if self.masks == "observation":
            parts["action_mask"] = self._allowed()
        return {"inner": parts} if self.masks is None else parts

    def _masks(self) -> dict[str, np.ndarray]:
        return {"action_mask": self._allowed()} if self.masks == "info" else {}

    def _allowed(self) -> np.ndarray:
        allowed = np.ones((self.num_envs, 3), np.int8)
        allowed[np.arange(self.num_envs), self.clock % 3] = 0
        return allowed


def assert_same(left, right) -> None:
    """Asserts equal structure, dtypes and values."""
    if isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            assert_same(left[key], right[key])
    else:
        assert np.asarray(left).dtype == np.asarray(right).dtype
        np.testing.assert_array_equal(left, right)
