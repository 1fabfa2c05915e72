"""An environment of any spaces, and the spaces of the viewer's tests."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

ACTIONS: dict[str, spaces.Space] = {
    "discrete": spaces.Discrete(3, start=-1),
    "multi_discrete": spaces.MultiDiscrete([3, 2], start=[0, 1]),
    "multi_binary": spaces.MultiBinary(3),
    "box": spaces.Box(np.array([-2, 0], np.float32), np.array([2, 5], np.float32)),
    "box_without_bounds": spaces.Box(-np.inf, np.inf, (2, 2), np.float64),
}
PICTURE = spaces.Box(0, 255, (12, 10, 3), np.uint8)
OBSERVATIONS: dict[str, spaces.Space] = {
    "vector": spaces.Box(-1, 1, (3,), np.float32),
    "matrix": spaces.Box(-10, 10, (5, 6), np.float64),
    "picture": PICTURE,
    "channels_first": spaces.Box(0, 255, (3, 12, 10), np.uint8),
    "gray": spaces.Box(0, 255, (12, 10), np.uint8),
    "large": spaces.Box(0, 255, (200, 160, 3), np.uint8),
    "discrete": spaces.Discrete(4, start=2),
    "multi_discrete": spaces.MultiDiscrete([[2, 3], [4, 5]]),
    "multi_binary": spaces.MultiBinary(5),
    "integers": spaces.Box(-3, 3, (2,), np.int8),
    "many": spaces.Box(-1, 1, (700,), np.float32),
    "text": spaces.Text(20),
    "nested": spaces.Dict(
        {
            "view": PICTURE,
            "cards": spaces.Tuple((spaces.Discrete(3), spaces.Dict({"left": spaces.MultiBinary(2)}))),
            "said": spaces.Text(40),
        }
    ),
}
WORDS = "go to the blue door, then wait"


class Sampled(gym.Env):
    """Episodes of 12 steps with random observations of their space. `render` returns or raises `drawn`. The infos have
    all kinds of values that occur in infos."""

    def __init__(self, observation: spaces.Space, action: spaces.Space, masks: bool = False, drawn: Any = None):
        self.observation_space = observation
        self.action_space = action
        self.masks = masks
        self.drawn = drawn
        self.taken = []  # actions of this episode
        self.taken_before = []  # actions of the episode before
        self.metadata = {"render_modes": [] if drawn is None else ["rgb_array"]}
        self.render_mode = None if drawn is None else "rgb_array"

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.taken_before = self.taken
        self.taken = []
        return self._observation(), self._info()

    def step(self, action):
        assert action in self.action_space
        self.taken.append(np.array(action))
        return self._observation(), float(self.np_random.normal()), len(self.taken) == 12, False, self._info()

    def render(self):
        if isinstance(self.drawn, Exception):
            raise self.drawn
        return self.drawn

    def _observation(self):
        observation = self.observation_space.sample()
        if isinstance(self.observation_space, spaces.Dict) and "said" in observation:
            observation["said"] = WORDS
        return observation

    def _info(self):
        info = {"note": "text", "nothing": None, "lists": [[1], [2, 3]], "many": np.zeros(3), "nan": float("nan")}
        if self.masks:  # the first value of every number is forbidden at odd steps
            odd = len(self.taken) % 2
            sizes = getattr(self.action_space, "nvec", [getattr(self.action_space, "n", 0)])
            info["action_mask"] = np.concatenate([[1 - odd] + [1] * (int(size) - 1) for size in sizes]).astype(np.int8)
        return info
