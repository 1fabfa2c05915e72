"""Environments as strangers write them, for tests: any spaces, and the ways to break Gymnasium's contract."""

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
"""Spaces without parts that a policy can read."""
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
    """Draws its observations from its space; each episode has its own generator, which actions move on."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 5}

    def __init__(
        self,
        observation_space: spaces.Space = LEAVES["vector"],
        action_space: spaces.Space = ACTIONS["discrete"],
        length: int = 5,
        render_mode: str | None = None,
    ):
        self.observation_space, self.action_space = copy.deepcopy(observation_space), copy.deepcopy(action_space)
        self.length, self.render_mode = length, render_mode
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
    """Shows the step it is at, and writes to the same array again and again."""

    def __init__(self, **kwargs: Any):
        super().__init__(spaces.Box(-1e6, 1e6, (2,), np.float32), **kwargs)
        self.buffer = np.zeros(2, np.float32)

    def observe(self) -> np.ndarray:
        self.buffer[:] = self.t
        return self.buffer


class Patched(Counter):
    """A `Counter` of which one method is another: `Patched("reward", lambda env, action: ...)`."""

    def __init__(self, method: str, replacement: Callable[..., Any], **kwargs: Any):
        super().__init__(**kwargs)
        setattr(self, method, lambda *args, **named: replacement(self, *args, **named))


class Dying(Counter):
    """In the process of a vector's environment 1 (its first seed is odd), at step `at` of the episodes that `when`
    names: raises, or ends its process."""

    def __init__(self, how: str = "KeyError", at: int = 3, when: tuple[int, ...] = (0,), length: int = 5):
        super().__init__(length=length)
        self.how, self.at, self.when = how, at, when
        self.parent = os.environ.get("PARENT_OF_WORKERS")

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, Any]:
        if self.seeds[-1] in self.when and self.t + 1 == self.at and str(os.getpid()) != self.parent:
            if self.how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise {"KeyError": KeyError, "SystemExit": SystemExit}[self.how]("the simulator went away")
        return super().step(action)


class Maker:
    """Makes `kind(**kwargs)`; pickles."""

    def __init__(self, kind: type[gym.Env], **kwargs: Any):
        self.kind, self.kwargs = kind, kwargs
        self.__name__ = kind.__name__

    def __call__(self) -> gym.Env:
        return self.kind(**self.kwargs)


class Batch(VectorEnv):
    """A stranger's vector environment that steps a batch by itself: counters, of which environment b ends every b + 2
    steps."""

    metadata: ClassVar[dict[str, Any]] = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": []}

    def __init__(self, num_envs: int = 3, masks: str | None = None, **broken: Any):
        self.num_envs, self.masks, self.broken = num_envs, masks, broken
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
        self.steps, self.seed = 0, None

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict]:
        self.seed, self.steps = seed, 0
        self.clock[:] = 0
        return self._observe(), self._masks()

    def step(self, actions: np.ndarray) -> tuple[Any, Any, Any, Any, dict]:
        self.steps += 1
        self.clock += 1
        over = self.clock == np.arange(self.num_envs) + 2
        infos: dict[str, Any] = {
            "speed": self.clock * 0.5,
            "ragged": np.array([None] * self.num_envs),
            "shaping": np.ones(self.num_envs),
        }
        if over.any():
            final_info = {"is_success": over & (actions == 1), "_is_success": over, "shaping": np.ones(self.num_envs)}
            infos |= {"final_obs": self._observe(), "_final_obs": over, "final_info": final_info, "_final_info": over}
        reward = self.clock.astype(np.float64)
        self.clock[over] = 0
        outcome = [self._observe(), reward, over, np.zeros(self.num_envs, bool), infos | self._masks()]
        if self.steps >= 4 and "at" in self.broken:
            outcome[self.broken["at"]] = self.broken["value"]
        return tuple(outcome)

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
    """Equal in structure, dtype and every value."""
    if isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            assert_same(left[key], right[key])
    else:
        assert np.asarray(left).dtype == np.asarray(right).dtype
        np.testing.assert_array_equal(left, right)
