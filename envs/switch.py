"""Switch: only the latest signal counts. Does an agent forget what is out of date?

    #####N#      o  a signal, red or blue, at the start of a passage now and then   N, S  a red and a blue door,
    o>....#      >  where the agent enters a passage of `passage_length` tiles            sides drawn per junction
    #####S#

An endless corridor of junctions. The door of the latest signal's colour pays +1, the other door 0. Both lead to the
next passage. The first passage has a signal. Each signal holds for `min_hold..max_hold` junctions, a number drawn with
it; then the next one appears. Each signal draws its colour independently, so half of the new signals change nothing,
and the number of signals reveals nothing.

Episodes are truncated at `max_steps` and never terminate. An episode is a success if the agent passed at least 20
junctions (or as many as the limit allows) and took the right door at 95% of them or more. A share of fewer junctions
could be luck, and an agent that stands still has shown nothing.

Names: B environments, R rows, V view size, r = V // 2, K groups of junctions, x the agent's tile in its passage. The
agent's line is y = 0, the north door is at -1, the south door at +1.

Observation: uint8 [V, V, 3], the window centred on the agent in MiniGrid's encoding and axes, as in `envs.corridor`.
Other passages are never visible. With V = 3 a signal is visible from the first tile only and doors from the last two.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from gymnasium import spaces

from expire_span_rl.envs.core import MOST_STEPS, EnvCore
from expire_span_rl.envs.core_adapters import BatchedVectorEnv, SingleEnv
from expire_span_rl.envs.errors import EnvError, expect_int
from expire_span_rl.envs.tiles import (
    ACTION_NAMES,
    BALL,
    DOOR,
    EMPTY,
    STEP_X,
    STEP_Y,
    WALL,
    expect_view_size,
    swap_balls,
)
from expire_span_rl.spaces import Cells

if TYPE_CHECKING:
    from expire_span_rl.envs.rendering import Strip

SUCCESS_SHARE = 0.95
FEWEST_JUNCTIONS = 20
LARGEST_LENGTH = 100
LARGEST_HOLD = 10**6

GROUPS = ("1", "2", "3-4", "5-8", "9-16", "17-32", "33-64", "65+")
"""The K groups of junctions, by the number of signals since the episode's start."""
_GROUP_ENDS = np.array([1, 2, 4, 8, 16, 32, 64])


def tile(x: int, y: int, passage_length: int, north: int, signal: int | None) -> tuple[int, int, int]:
    """The code of tile (x, y) of a passage. north: the north door's colour (0 red, 1 blue); signal: the colour of the
    signal at the start of the passage, or None."""
    if y == 0 and 0 <= x < passage_length:
        return EMPTY
    if (x, y) == (-1, 0) and signal is not None:
        return BALL[signal]
    if x == passage_length - 1 and abs(y) == 1:
        return DOOR[north if y < 0 else 1 - north]
    return WALL


class Switch(EnvCore):
    """B endless corridors at once.

    Args:
        passage_length: tiles of a passage, and the steps from one junction to the next.
        min_hold, max_hold: the number of junctions for which a signal holds, drawn per signal, both included. With
            long holds, an agent that has missed a signal comes closer to success by learning from its rewards alone.
        view_size: V, odd. With V = 3 signal and doors are never visible together.
        max_steps: the step limit, after which the episode is truncated.

    Raises EnvError for a value out of range.
    """

    metadata: ClassVar[dict[str, Any]] = {
        **EnvCore.metadata,
        "difficulty_key": "signals",
        "action_names": ACTION_NAMES,
        "old_facts_mislead": True,
        "ratios": {
            "correct_share": ("correct", "junctions"),
            "correct_share_by_signals": {group: (f"correct_{group}", f"junctions_{group}") for group in GROUPS},
        },
    }
    state_fields = ("passage", "x", "north", "signal", "shown", "hold", "signals", "correct_in", "junctions_in")

    def __init__(
        self,
        num_envs: int,
        *,
        passage_length: int = 5,
        min_hold: int = 1,
        max_hold: int = 8,
        view_size: int = 3,
        max_steps: int = 1000,
    ) -> None:
        self.passage_length = expect_int("passage_length", passage_length, 2, LARGEST_LENGTH)
        self.min_hold = expect_int("min_hold", min_hold, 1, LARGEST_HOLD)
        self.max_hold = expect_int("max_hold", max_hold, 1, LARGEST_HOLD)
        if min_hold > max_hold:
            raise EnvError(f"min_hold: expected at most max_hold ({max_hold}), got {min_hold}")
        self.view_size = expect_view_size(view_size)
        self.max_steps = expect_int("max_steps", max_steps, 1, MOST_STEPS)

        self.single_observation_space = Cells(view_size, view_size)
        self.single_action_space = spaces.Discrete(4)
        self.memory_horizon = min(passage_length * max_hold, max_steps)
        self.longest_episode = max_steps
        super().__init__(num_envs)
        self.passage = np.zeros(num_envs, np.int64)  # its number, counted from 0
        self.x = np.zeros(num_envs, np.int64)
        self.north = np.zeros(num_envs, np.int64)  # the north door's colour, 0 red, 1 blue
        self.signal = np.zeros(num_envs, np.int64)  # colour of the latest signal, 0 red, 1 blue
        self.shown = np.zeros(num_envs, bool)  # whether the latest signal is at the start of this passage
        self.hold = np.zeros(num_envs, np.int64)  # junctions for which the signal still holds
        self.signals = np.zeros(num_envs, np.int64)  # signals so far
        self.correct_in = np.zeros((num_envs, len(GROUPS)), np.int64)
        self.junctions_in = np.zeros((num_envs, len(GROUPS)), np.int64)
        self._min_junctions = max(1, min(FEWEST_JUNCTIONS, max_steps // passage_length))
        self._windows = _window_table(passage_length, view_size // 2)  # [windows, V * V * 3]

    def begin(self, rows: np.ndarray) -> None:
        for state in (self.passage, self.hold, self.signals, self.correct_in, self.junctions_in):
            state[rows] = 0
        self._enter(rows)

    def _enter(self, rows: np.ndarray) -> None:
        """Puts the agents `rows` [R] at the start of their passages. A new signal appears where the last one no longer
        holds."""
        north, signal, hold = self.uniform(rows, 3, first=3 * self.passage[rows])  # [R] each
        is_new = self.hold[rows] == 0
        new_hold = self.min_hold + (hold * (self.max_hold - self.min_hold + 1)).astype(np.int64)
        self.x[rows] = 0
        self.north[rows] = north < 0.5
        self.signal[rows] = np.where(is_new, signal < 0.5, self.signal[rows])
        self.hold[rows] = np.where(is_new, new_hold, self.hold[rows])
        self.shown[rows] = is_new
        self.signals[rows] += is_new

    def advance(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        last_tile = self.passage_length - 1
        door = np.where(self.x == last_tile, STEP_Y[actions], 0)  # [B]: y of the door that is taken, or 0
        self.x = (self.x + STEP_X[actions]).clip(0, last_tile)
        reward = np.zeros(self.num_envs)
        rows = np.flatnonzero(door)  # [R]
        colour = np.where(door[rows] < 0, self.north[rows], 1 - self.north[rows])
        correct = colour == self.signal[rows]
        group = np.searchsorted(_GROUP_ENDS, self.signals[rows])
        reward[rows] = correct
        self.correct_in[rows, group] += correct
        self.junctions_in[rows, group] += 1
        self.passage[rows] += 1
        self.hold[rows] -= 1
        self._enter(rows)
        return reward, np.zeros(self.num_envs, bool), self.steps >= self.max_steps

    def observe(self) -> np.ndarray:
        window = _window_index(self.x, self.north, self.shown * (self.signal + 1))  # [B]
        return self._windows.take(window, axis=0).reshape(-1, self.view_size, self.view_size, 3)  # [B, V, V, 3]

    def final_info(self) -> dict[str, np.ndarray]:
        """`is_success`, `correct_share` (0 without a junction), `signals` (so far), `correct` (doors) and `junctions`.
        The last two are also counted for each of `GROUPS`: `correct_1`, `junctions_1`, ..., `junctions_65+`."""
        correct = self.correct_in.sum(1)
        junctions = self.junctions_in.sum(1)
        share = correct / junctions.clip(1)
        info = {
            "is_success": (share >= SUCCESS_SHARE) & (junctions >= self._min_junctions),
            "correct_share": share,
            "signals": self.signals.copy(),
            "correct": correct,
            "junctions": junctions,
        }
        for k, group in enumerate(GROUPS):
            info[f"correct_{group}"] = self.correct_in[:, k].copy()
            info[f"junctions_{group}"] = self.junctions_in[:, k].copy()
        return info

    def decisions(self) -> np.ndarray:
        """On the tile between the doors."""
        return self.x == self.passage_length - 1

    def facts(self) -> np.ndarray:
        """Each signal is a separate fact."""
        return np.where(self.shown & (self.x < self.view_size // 2), self.signals, -1)

    @staticmethod
    def swap_observation(image: np.ndarray) -> np.ndarray:
        """A copy of the observations [..., V, V, 3] with a blue signal for a red one and a red signal for a blue
        one."""
        return swap_balls(image)

    def strip(self, row: int) -> Strip:
        """The agent's passage, its view lit. Columns are numbered across all passages."""
        from expire_span_rl.envs.rendering import Strip

        x, north, signal, is_new = (int(getattr(self, name)[row]) for name in ("x", "north", "signal", "shown"))
        width = self.passage_length + 2  # with the walls, or the signal, on either side
        start = int(self.passage[row]) * width

        def code_at(column: int, line: int) -> tuple[int, int, int]:
            return tile(column - start - 1, line, self.passage_length, north, signal if is_new else None)

        return Strip(
            code_at,
            span=(start, start + width - 1),
            max_columns=width,
            agent=(start + 1 + x, 0),
            reach=self.view_size // 2,
        )


def _window_index(x: Any, north: Any, signal: Any) -> Any:
    """The table's row for an agent on tile x. signal: 0 for none in the passage, 1 for a red one, 2 for a blue one."""
    return (x * 2 + north) * 3 + signal


def _window_table(passage_length: int, r: int) -> np.ndarray:
    """All possible windows: uint8 [windows, V * V * 3], in the order of `_window_index`."""
    offsets = range(-r, r + 1)
    table = np.zeros((passage_length * 6, 2 * r + 1, 2 * r + 1, 3), np.uint8)
    for x, north, index in np.ndindex(passage_length, 2, 3):
        signal = (None, 0, 1)[index]
        window = [[tile(x + dx, dy, passage_length, north, signal) for dy in offsets] for dx in offsets]
        table[_window_index(x, north, index)] = np.asarray(window)
    return table.reshape(len(table), -1)


class SwitchEnv(SingleEnv, core=Switch):
    """`gym.make("Switch-v0")`."""


class SwitchVectorEnv(BatchedVectorEnv, core=Switch):
    """`gym.make_vec("Switch-v0", num_envs)`."""
