"""Corridor (Sukhbaatar et al., ICML 2021, section 4.1): remember one colour for the whole walk.

    #############N#      o  the ball, red or blue      N, S  a red and a blue door, sides drawn per episode
    o>............#      >  the start, tile 0          .     the corridor, `length` tiles, length drawn per episode
    #############S#

The agent walks east and leaves by a door. The door of the ball's colour pays 1, the other door 0. Both end the episode,
as does the step limit.

Names: B environments, R rows, V view size, r = V // 2, x the agent's tile, y = 0 in the corridor, -1 in the north door,
+1 in the south door.

Observation: uint8 [V, V, 3], the window centred on the agent in MiniGrid's encoding (object, colour, state) and axes:
`image[r + dx, r + dy]` is the tile dx east and dy south. The agent's own tile is empty, as in MiniGrid. Everything
except corridor, ball and doors is wall. Balls and walls block the way. A window depends only on the distances to the
two ends. One table therefore holds all possible windows, and an observation is one gather.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from gymnasium import spaces

from expire_span_rl.envs.core import DISTRIBUTIONS, MOST_STEPS, EnvCore, draw_integers
from expire_span_rl.envs.core_adapters import BatchedVectorEnv, SingleEnv
from expire_span_rl.envs.errors import EnvError, expect_choice, expect_int
from expire_span_rl.envs.tiles import (
    ACTION_NAMES,
    BALL,
    COLOURS,
    DOOR,
    EMPTY,
    STEP_X,
    STEP_Y,
    WALL,
    expect_view_size,
    open_door,
    swap_balls,
)
from expire_span_rl.spaces import Cells

if TYPE_CHECKING:
    from expire_span_rl.envs.rendering import Strip

LARGEST_LENGTH = 10**9


def tile(x: int, y: int, length: int, ball: int, door: int) -> tuple[int, int, int]:
    """The code of tile (x, y) of a corridor. ball: its colour (0 red, 1 blue); door: y of the right door."""
    if y == 0 and 0 <= x < length:
        return EMPTY
    if (x, y) == (-1, 0):
        return BALL[ball]
    if x == length - 1 and abs(y) == 1:
        return DOOR[ball if y == door else 1 - ball]
    return WALL


class Corridor(EnvCore):
    """B corridors at once.

    Args:
        min_length, max_length: tiles, drawn per episode, both included.
        length_distribution: "uniform" (the paper's) or "log_uniform", P(length) ~ log((length + 1) / length).
        view_size: V, odd. With V = 3 the ball is visible from the first tile only and the doors from the last two.
        max_steps: the step limit, after which the episode is truncated; None for 4 * length + 20.

    Raises EnvError for a value out of range.
    """

    metadata: ClassVar[dict[str, Any]] = {
        **EnvCore.metadata,
        "difficulty_key": "length",
        "action_names": ACTION_NAMES,
    }
    state_fields = ("length", "ball", "door", "x", "y")

    def __init__(
        self,
        num_envs: int,
        *,
        min_length: int = 3,
        max_length: int = 200,
        length_distribution: str = "uniform",
        view_size: int = 3,
        max_steps: int | None = None,
    ) -> None:
        self.min_length = expect_int("min_length", min_length, 3, LARGEST_LENGTH)
        self.max_length = expect_int("max_length", max_length, 3, LARGEST_LENGTH)
        if min_length > max_length:
            raise EnvError(f"min_length: expected at most max_length ({max_length}), got {min_length}")
        self.length_distribution = expect_choice("length_distribution", length_distribution, DISTRIBUTIONS)
        self.view_size = expect_view_size(view_size)
        self.max_steps = None if max_steps is None else expect_int("max_steps", max_steps, 1, MOST_STEPS)

        self.single_observation_space = Cells(view_size, view_size)
        self.single_action_space = spaces.Discrete(4)
        self.memory_horizon = max_length
        self.longest_episode = _step_limit(max_length) if max_steps is None else max_steps
        super().__init__(num_envs)
        self.length = np.full(num_envs, min_length)  # tiles
        self.ball = np.zeros(num_envs, np.int64)  # its colour, 0 red, 1 blue
        self.door = np.ones(num_envs, np.int64)  # y of the right door, -1 north, +1 south
        self.x = np.zeros(num_envs, np.int64)
        self.y = np.zeros(num_envs, np.int64)
        self._windows = _window_table(view_size // 2)  # [windows, V * V * 3]

    def begin(self, rows: np.ndarray) -> None:
        length, ball, door = self.uniform(rows, 3)  # [R] each
        self.length[rows] = draw_integers(length, self.min_length, self.max_length, self.length_distribution)
        self.ball[rows] = ball < 0.5
        self.door[rows] = np.where(door < 0.5, -1, 1)
        self.x[rows] = 0
        self.y[rows] = 0

    def advance(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        last_tile = self.length - 1
        self.y = np.where(self.x == last_tile, STEP_Y[actions], 0)  # [B]; only the last tile has doors
        self.x = (self.x + STEP_X[actions]).clip(0, last_tile)
        terminated = self.y != 0
        limit = _step_limit(self.length) if self.max_steps is None else self.max_steps
        truncated = ~terminated & (self.steps >= limit)
        return (self.y == self.door).astype(np.float64), terminated, truncated

    def observe(self) -> np.ndarray:
        r = self.view_size // 2
        west = np.minimum(self.x, r)
        east = np.minimum(self.length - 1 - self.x, r + 1)
        window = _window_index(r, west, east, y=self.y, ball=self.ball, door=self.door)  # [B]
        return self._windows.take(window, axis=0).reshape(-1, self.view_size, self.view_size, 3)  # [B, V, V, 3]

    def final_info(self) -> dict[str, np.ndarray]:
        """`is_success`, `length`, `ball` ("red" or "blue") and `door_side` (of the right door: "north" or "south")."""
        return {
            "is_success": self.y == self.door,
            "length": self.length.copy(),
            "ball": COLOURS[self.ball],
            "door_side": np.where(self.door < 0, "north", "south"),
        }

    def decisions(self) -> np.ndarray:
        """On the tile between the doors."""
        return self.x == self.length - 1

    def facts(self) -> np.ndarray:
        """The ball's colour is fact 0."""
        return np.where(self.x < self.view_size // 2, 0, -1)

    @staticmethod
    def swap_observation(image: np.ndarray) -> np.ndarray:
        """A copy of the observations [..., V, V, 3] with a blue ball for a red one and a red ball for a blue one."""
        return swap_balls(image)

    def strip(self, row: int) -> Strip:
        """The corridor, the agent's view lit. Of a long corridor, both ends and the agent's section."""
        from expire_span_rl.envs.rendering import Strip

        length, ball, door, x, y = (int(getattr(self, name)[row]) for name in self.state_fields)

        def code_at(column: int, line: int) -> tuple[int, int, int]:
            code = tile(column, line, length, ball, door)
            return open_door(code) if y and (column, line) == (x, y) else code

        return Strip(
            code_at, span=(-1, length), max_columns=self.max_length + 2, agent=(x, y), reach=self.view_size // 2
        )


def _step_limit(length: Any) -> Any:
    """The step limit of corridors of `length` tiles."""
    return 4 * length + 20


def _window_index(r: int, west: Any, east: Any, *, y: Any, ball: Any, door: Any) -> Any:
    """The table's row for an agent `west` tiles from the start (at most r) and `east` tiles from the end (at most
    r + 1). All larger distances look the same."""
    return (((west * (r + 2) + east) * 3 + y + 1) * 2 + ball) * 2 + (door + 1) // 2


def _window_table(r: int) -> np.ndarray:
    """All possible windows: uint8 [windows, V * V * 3], in the order of `_window_index`."""
    offsets = range(-r, r + 1)
    table = np.empty(((r + 1) * (r + 2) * 12, 2 * r + 1, 2 * r + 1, 3), np.uint8)
    table[:] = WALL
    for west, east in np.ndindex(r + 1, r + 2):
        for y, ball, door in itertools.product((-1, 0, 1), (0, 1), (-1, 1)):
            index = _window_index(r, west, east, y=y, ball=ball, door=door)
            for line in (-1, 0, 1):  # all other lines are walls
                if abs(line - y) <= r:
                    codes = [tile(west + dx, line, west + east + 1, ball, door) for dx in offsets]
                    table[index, :, r + line - y] = np.asarray(codes)
    table[:, r, r] = EMPTY  # the agent's own tile, also in a door
    return table.reshape(len(table), -1)


class CorridorEnv(SingleEnv, core=Corridor):
    """`gym.make("Corridor-v0")`."""


class CorridorVectorEnv(BatchedVectorEnv, core=Corridor):
    """`gym.make_vec("Corridor-v0", num_envs)`."""
