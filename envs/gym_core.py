"""Environments of another package as a core, so that the wrappers of cores (`envs.core_wrappers`) apply to them too.

The environments are stepped one after the other and cannot save their state. Episode k of seed s is the same as without
the core (`envs.gym_adapter`), so it can be played again. Names: B environments, R rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from gymnasium.vector.utils import create_empty_array

from expire_span_rl.envs.core import MaskedCore
from expire_span_rl.envs.gym_adapter import AdaptedEnv
from expire_span_rl.envs.lengths import longest_episode

_OF_INFOS = ("difficulty_key", "ratios")
"""Metadata that name entries of infos (`EnvCore.metadata`)."""


class GymEnvCore(MaskedCore):
    """B adapted environments. Their infos are not passed on, not even those of an episode's last step."""

    def __init__(self, envs: Sequence[AdaptedEnv]) -> None:
        self.envs = envs
        without_infos = {name: entry for name, entry in envs[0].metadata.items() if name not in _OF_INFOS}
        self.metadata = {"render_modes": [], "render_fps": 10, **without_infos}
        self.single_observation_space = envs[0].observation_space
        self.single_action_space = envs[0].action_space
        self.left_out = envs[0].left_out
        self.memory_horizon = envs[0].memory_horizon
        self.longest_episode = longest_episode(envs[0])
        super().__init__(len(envs))
        batch = create_empty_array(self.single_observation_space, len(envs), fn=np.zeros)
        self._observations = cast(dict[str, np.ndarray], batch)

    def begin(self, rows: np.ndarray) -> None:
        for row in rows.tolist():
            observation, _ = self.envs[row].start(int(self.seed[row]), int(self.episode[row]))
            self._store(row, observation)

    def advance_some(self, actions: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        reward = np.zeros(self.num_envs)
        terminated, truncated = np.zeros((2, self.num_envs), bool)
        for row in np.flatnonzero(mask).tolist():
            observation, reward[row], terminated[row], truncated[row], _ = self.envs[row].step(actions[row])
            self._store(row, observation)
        return reward, terminated, truncated

    def _store(self, row: int, observation: dict[str, Any]) -> None:
        """Writes the observation of environment `row` into the batch."""
        for name, value in observation.items():
            self._observations[name][row] = value

    def observe(self) -> dict[str, np.ndarray]:
        return {name: array.copy() for name, array in self._observations.items()}

    def final_info(self) -> dict[str, np.ndarray]:
        return {}

    def render(self, row: int) -> np.ndarray:
        return cast(np.ndarray, self.envs[row].render())

    def close(self) -> None:
        for env in self.envs:
            env.close()

    def _arrays(self) -> dict[str, np.ndarray]:
        return {}
