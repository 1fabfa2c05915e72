"""Another package's environments as a core, so that what is built on cores (`envs.core_wrappers`) takes them too.

They are stepped one after the other and cannot save their state. Episode k of seed s is the one that they play without
the core (`envs.gym_adapter`), so that it can be played again. Names: B environments, R rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from gymnasium.vector.utils import create_empty_array

from expire_span_rl.envs.core import MaskedCore
from expire_span_rl.envs.gym_adapter import AdaptedEnv


class GymEnvCore(MaskedCore):
    """B adapted environments. What their infos say at the end of an episode is not passed on."""

    def __init__(self, envs: Sequence[AdaptedEnv]) -> None:
        self.envs = envs
        first = envs[0]
        self.metadata = {"render_modes": [], "render_fps": 10, **first.metadata}
        self.single_observation_space = first.observation_space
        self.single_action_space = first.action_space
        self.left_out, self.memory_horizon = first.left_out, first.memory_horizon
        super().__init__(len(envs))
        batch = create_empty_array(self.single_observation_space, len(envs), fn=np.zeros)
        self._seen = cast(dict[str, np.ndarray], batch)

    def begin(self, rows: np.ndarray) -> None:
        for row in rows.tolist():
            self._see(row, self.envs[row].start(int(self.seed[row]), int(self.episode[row]))[0])

    def advance_some(self, actions: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        reward = np.zeros(self.num_envs)
        terminated, truncated = np.zeros((2, self.num_envs), bool)
        for row in np.flatnonzero(mask).tolist():
            observation, reward[row], terminated[row], truncated[row], _ = self.envs[row].step(actions[row])
            self._see(row, observation)
        return reward, terminated, truncated

    def _see(self, row: int, observation: dict[str, Any]) -> None:
        for name, part in observation.items():
            self._seen[name][row] = part

    def observe(self) -> dict[str, np.ndarray]:
        return {name: array.copy() for name, array in self._seen.items()}

    def final_info(self) -> dict[str, np.ndarray]:
        return {}

    def render(self, row: int) -> np.ndarray:
        return cast(np.ndarray, self.envs[row].render())

    def close(self) -> None:
        for env in self.envs:
            env.close()

    def _arrays(self) -> dict[str, np.ndarray]:
        return {}
