"""Passive T-maze (Bakker, 2001; as in Ni et al., NeurIPS 2023, arXiv 2307.03864): remember one side for the whole walk.

             G        @  the start, x = 0             G  the goal, north or south, drawn per episode
    @........J        .  the corridor, `length` steps to the junction J at x = length
             .

The goal's side is visible at the first step only. Every episode lasts `length` + 1 steps. Each step but the last costs
1 / length if the agent has come less far than it could have. One delay therefore costs until the end of the episode.
The last step pays 1 in the arm on the goal's side. A perfect episode returns 1. Names: B environments, R rows.

Observation: float32 [2]. At the start (0, g), with g = +1 for a goal in the north and -1 in the south at the first step
and 0 later; in the corridor (0, 0); at the junction (1, 0); in an arm (1, y) with y = +1 north, -1 south.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from gymnasium import spaces

from expire_span_rl.envs.core import MOST_STEPS, EnvCore
from expire_span_rl.envs.core_adapters import BatchedVectorEnv, SingleEnv
from expire_span_rl.envs.errors import expect_int
from expire_span_rl.envs.tiles import EMPTY, GOAL, WALL

if TYPE_CHECKING:
    from expire_span_rl.envs.rendering import Strip

STEP_X = np.array([1, 0, -1, 0])
STEP_Y = np.array([0, 1, 0, -1])  # +1 is north here, as in the observation


class TMaze(EnvCore):
    """B mazes at once.

    Args:
        length: steps from the start to the junction.

    Raises EnvError for a value out of range.
    """

    metadata: ClassVar[dict[str, Any]] = {
        **EnvCore.metadata,
        "difficulty_key": "length",
        "action_names": ("east", "north", "west", "south"),
        "observation_names": ("at the junction", "north (1) or south (-1)"),
    }
    state_fields = ("goal", "x", "y")

    def __init__(self, num_envs: int, *, length: int = 50) -> None:
        self.length = expect_int("length", length, 1, MOST_STEPS)
        self.single_observation_space = spaces.Box(-1, 1, (2,), np.float32)
        self.single_action_space = spaces.Discrete(4)
        self.memory_horizon = length
        self.longest_episode = length + 1
        super().__init__(num_envs)
        self.goal = np.ones(num_envs, np.int64)  # y of the goal's arm, +1 north, -1 south
        self.x = np.zeros(num_envs, np.int64)
        self.y = np.zeros(num_envs, np.int64)

    def begin(self, rows: np.ndarray) -> None:
        self.goal[rows] = np.where(self.uniform(rows, 1)[0] < 0.5, -1, 1)
        self.x[rows] = 0
        self.y[rows] = 0

    def advance(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        at_junction = self.x == self.length
        self.x = np.where(self.y == 0, self.x + STEP_X[actions], self.x).clip(0, self.length)  # an arm has one tile
        self.y = np.where(at_junction, self.y + STEP_Y[actions], 0).clip(-1, 1)
        terminated = self.steps > self.length
        delay_cost = np.where(self.x < self.steps, -1 / self.length, 0.0)
        reward = np.where(terminated, (self.y == self.goal).astype(np.float64), delay_cost)
        return reward, terminated, np.zeros_like(terminated)

    def observe(self) -> np.ndarray:
        signal = np.where(self.steps == 0, self.goal, 0)
        at_junction = self.x == self.length
        return np.stack([at_junction, np.where(at_junction, self.y, signal)], 1).astype(np.float32)  # [B,2]

    def final_info(self) -> dict[str, np.ndarray]:
        """`is_success`, `length` and `goal_side` ("north" or "south")."""
        return {
            "is_success": self.y == self.goal,
            "length": np.full(self.num_envs, self.length),
            "goal_side": np.where(self.goal > 0, "north", "south"),
        }

    def decisions(self) -> np.ndarray:
        """At the junction."""
        return (self.x == self.length) & (self.y == 0)

    def facts(self) -> np.ndarray:
        """The goal's side is fact 0."""
        return np.where(self.steps == 0, 0, -1)

    @staticmethod
    def swap_observation(observation: np.ndarray) -> np.ndarray:
        """A copy of the observations [..., 2] in which a northern goal is a southern one and vice versa."""
        swapped = observation.copy()
        swapped[..., 1] *= np.where(observation[..., 0] == 0, -1, 1)
        return swapped

    def strip(self, row: int) -> Strip:
        """The maze. Of a long maze, both ends and the agent's section."""
        from expire_span_rl.envs.rendering import Strip

        goal, x, y = (int(getattr(self, name)[row]) for name in self.state_fields)

        def code_at(column: int, line: int) -> tuple[int, int, int]:
            if line == 0 and 0 <= column <= self.length:
                return EMPTY
            if column == self.length and abs(line) == 1:
                return GOAL if line == -goal else EMPTY
            return WALL

        return Strip(code_at, span=(-1, self.length + 1), max_columns=self.length + 3, agent=(x, -y), reach=0)


class TMazeEnv(SingleEnv, core=TMaze):
    """`gym.make("TMaze-v0")`."""


class TMazeVectorEnv(BatchedVectorEnv, core=TMaze):
    """`gym.make_vec("TMaze-v0", num_envs)`."""
