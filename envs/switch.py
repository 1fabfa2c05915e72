"""Switch: the latest signal counts, and only that one. Does an agent drop what is out of date?

    #####N#      o  a signal, red or blue, at the start of a passage now and then   N, S  a red and a blue door,
    o>....#      >  where the agent enters a passage of `passage_length` tiles            sides drawn per junction
    #####S#

An endless corridor of junctions. Through the door of the colour that the latest signal had the agent gets +1, through
the other 0, and the walk goes on in the next passage either way. The first passage has a signal; each signal holds for
`min_hold..max_hold` junctions, a number drawn with it, and then the next one appears. Colours are drawn anew each time,
so that a new signal changes nothing half of the time and how many there were tells nothing. Episodes are truncated at
`max_steps` and never terminate. Success is a correct share of at least 0.95 of the junctions passed, and of at least 20
(or as many as the limit allows): a share of fewer could be luck, and an agent that stands still has shown nothing.

Names: B environments, R rows, V view size, r = V // 2, K groups of junctions, x the agent's tile in its passage. The
agent's line is y = 0, -1 the north door's, +1 the south door's.

Observation: uint8 [V, V, 3], the window centred on the agent in MiniGrid's encoding and axes, as in `envs.corridor`; of
other passages nothing is seen. With V = 3 a signal is seen from the first tile only and doors from the last two.
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
    swapped_balls,
)
from expire_span_rl.spaces import Cells

if TYPE_CHECKING:
    from expire_span_rl.envs.rendering import Strip

SUCCESS_SHARE = 0.95
FEWEST_JUNCTIONS = 20
LARGEST_LENGTH = 100
LARGEST_HOLD = 10**6

GROUPS = ("1", "2", "3-4", "5-8", "9-16", "17-32", "33-64", "65+")
"""Junctions are also counted by the number of signals since the episode's start: K groups."""
_GROUP_ENDS = np.array([1, 2, 4, 8, 16, 32, 64])


def tile(x: int, y: int, passage_length: int, north: int, signal: int | None) -> tuple[int, int, int]:
    """What stands on tile (x, y) of a passage: `north` is the north door's colour (0 red, 1 blue), `signal` the colour
    of the signal at its start, or None."""
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
        min_hold, max_hold: for how many junctions a signal holds, drawn per signal, both included. With long holds an
            agent that has missed a signal and learns from its rewards alone comes closer to success.
        view_size: V, odd. With V = 3 signal and doors are never seen together.
        max_steps: truncates the episode.

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
        super().__init__(num_envs)
        self.passage = np.zeros(num_envs, np.int64)  # which one, counted from 0
        self.x = np.zeros(num_envs, np.int64)
        self.north = np.zeros(num_envs, np.int64)  # the north door's colour, 0 red, 1 blue
        self.signal = np.zeros(num_envs, np.int64)  # the latest, 0 red, 1 blue
        self.shown = np.zeros(num_envs, bool)  # whether it stands at the start of this passage
        self.hold = np.zeros(num_envs, np.int64)  # for how many junctions more it holds
        self.signals = np.zeros(num_envs, np.int64)  # so far
        self.correct_in = np.zeros((num_envs, len(GROUPS)), np.int64)
        self.junctions_in = np.zeros((num_envs, len(GROUPS)), np.int64)
        self._fewest = max(1, min(FEWEST_JUNCTIONS, max_steps // passage_length))
        self._windows = _window_table(passage_length, view_size // 2)  # [windows, V * V * 3]

    def begin(self, rows: np.ndarray) -> None:
        for state in (self.passage, self.hold, self.signals, self.correct_in, self.junctions_in):
            state[rows] = 0
        self._enter(rows)

    def _enter(self, rows: np.ndarray) -> None:
        """The agents `rows` [R] stand at the start of their passages; where no signal holds any more, a new one
        does."""
        north, signal, hold = self.uniform(rows, 3, first=3 * self.passage[rows])  # [R] each
        new = self.hold[rows] == 0
        drawn = self.min_hold + (hold * (self.max_hold - self.min_hold + 1)).astype(np.int64)
        self.x[rows] = 0
        self.north[rows] = north < 0.5
        self.signal[rows] = np.where(new, signal < 0.5, self.signal[rows])
        self.hold[rows] = np.where(new, drawn, self.hold[rows])
        self.shown[rows] = new
        self.signals[rows] += new

    def advance(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        last = self.passage_length - 1
        door = np.where(self.x == last, STEP_Y[actions], 0)  # [B]: y of the door that is taken, or 0
        self.x = (self.x + STEP_X[actions]).clip(0, last)
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
        """`is_success`, `correct_share` (0 without a junction), `signals` so far, the numbers of `correct` doors and of
        `junctions`, and both for each of `GROUPS`: `correct_1`, `junctions_1`, ..., `junctions_65+`."""
        correct, junctions = self.correct_in.sum(1), self.junctions_in.sum(1)
        share = correct / junctions.clip(1)
        told = {
            "is_success": (share >= SUCCESS_SHARE) & (junctions >= self._fewest),
            "correct_share": share,
            "signals": self.signals.copy(),
            "correct": correct,
            "junctions": junctions,
        }
        for k, group in enumerate(GROUPS):
            told[f"correct_{group}"] = self.correct_in[:, k].copy()
            told[f"junctions_{group}"] = self.junctions_in[:, k].copy()
        return told

    def decisions(self) -> np.ndarray:
        """Between the doors."""
        return self.x == self.passage_length - 1

    def facts(self) -> np.ndarray:
        """Each signal is a fact of its own."""
        return np.where(self.shown & (self.x < self.view_size // 2), self.signals, -1)

    @staticmethod
    def swap_observation(image: np.ndarray) -> np.ndarray:
        """A copy of the observations [..., V, V, 3] in which a red signal is blue and a blue one red: what if?"""
        return swapped_balls(image)

    def strip(self, row: int) -> Strip:
        """The agent's passage, its view lit. Columns count on from one passage to the next."""
        from expire_span_rl.envs.rendering import Strip

        x, north, signal, shown = (int(getattr(self, name)[row]) for name in ("x", "north", "signal", "shown"))
        first = int(self.passage[row]) * (self.passage_length + 2)  # of the passage, its wall or signal

        def encoded(column: int, line: int) -> tuple[int, int, int]:
            return tile(column - first - 1, line, self.passage_length, north, signal if shown else None)

        last = first + self.passage_length + 1
        return Strip(encoded, (first, last), self.passage_length + 2, (first + 1 + x, 0), self.view_size // 2)


def _window_index(x: Any, north: Any, signal: Any) -> Any:
    """The table's row for an agent on tile x; signal: 0 for none in the passage, 1 for a red, 2 for a blue one."""
    return (x * 2 + north) * 3 + signal


def _window_table(passage_length: int, r: int) -> np.ndarray:
    """Every window there is: uint8 [windows, V * V * 3], in the order of `_window_index`."""
    around, signals = range(-r, r + 1), (None, 0, 1)
    table = np.zeros((passage_length * 6, 2 * r + 1, 2 * r + 1, 3), np.uint8)
    for x, north, signal in np.ndindex(passage_length, 2, 3):
        window = [[tile(x + dx, dy, passage_length, north, signals[signal]) for dy in around] for dx in around]
        table[_window_index(x, north, signal)] = np.asarray(window)
    return table.reshape(len(table), -1)


class SwitchEnv(SingleEnv, core=Switch):
    """`gym.make("Switch-v0")`."""


class SwitchVectorEnv(BatchedVectorEnv, core=Switch):
    """`gym.make_vec("Switch-v0", num_envs)`."""
