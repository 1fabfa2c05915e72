"""Another package's environments as a core, so that what is built on cores (`envs.long`) takes them too.

They are stepped one after the other and cannot save their state. Episode k of seed s begins with a seed drawn from both,
so that it can be played again. Their infos are not passed on. Names: B environments, R rows.
"""

from __future__ import annotations

from collections.abc import Callable

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector.utils import create_empty_array

from expire_span_rl.envs.core import MaskedCore
from expire_span_rl.envs.wrappers import kept, kept_space


class Foreign(MaskedCore):
    """`num_envs` environments that `make` gives. Their observations are the parts that a policy can read, as a Dict.
    Raises EnvError if there are none; the actions must be Discrete."""

    memory_horizon = None

    def __init__(self, make: Callable[[], gym.Env], num_envs: int) -> None:
        self.envs = [make() for _ in range(num_envs)]
        first = self.envs[0]
        self.metadata = {"render_modes": [], "render_fps": 10, **first.metadata}
        self.single_observation_space = kept_space(first.observation_space)
        self.single_action_space = spaces.Discrete(int(first.action_space.n))
        self._start = int(first.action_space.start)
        super().__init__(num_envs)
        self._seen = create_empty_array(self.single_observation_space, num_envs, fn=np.zeros)

    def begin(self, rows: np.ndarray) -> None:
        (draw,) = self.uniform(rows, 1)
        for row, seed in zip(rows, (draw * 2**31).astype(np.int64), strict=True):
            self._see(row, self.envs[row].reset(seed=int(seed))[0])

    def advance_some(self, actions: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        reward = np.zeros(self.num_envs)
        terminated, truncated = np.zeros((2, self.num_envs), bool)
        for row in np.flatnonzero(mask):
            action = int(actions[row]) + self._start
            observation, reward[row], terminated[row], truncated[row], _ = self.envs[row].step(action)
            self._see(row, observation)
        return reward, terminated, truncated

    def _see(self, row: int, observation: object) -> None:
        for key, part in kept(observation, self.single_observation_space).items():
            self._seen[key][row] = part

    def observe(self) -> dict[str, np.ndarray]:
        return {key: array.copy() for key, array in self._seen.items()}

    def final_info(self) -> dict[str, np.ndarray]:
        return {}

    def render(self, row: int) -> np.ndarray:
        return self.envs[row].render()

    def close(self) -> None:
        for env in self.envs:
            env.close()

    def _arrays(self) -> dict[str, np.ndarray]:
        return {}
