"""Copying (Hochreiter and Schmidhuber, 1997; as in the Expire-Span paper): give a string back after a long delay.

    step       0 .. N-1        N .. N+D-1       N+D .. 2N+D-1
    shown      the string      noise            that a symbol is asked for
    right      to be silent    to be silent     the string again, symbol by symbol

N is the string's length, D the delay, drawn per episode. Noise is drawn from the same symbols. The place in the string
is shown beside the symbol, in the string and where it is asked for: attention knows ages of a few steps only, so that
a symbol must be found again by what is remembered with it. The reward, the share of right answers, comes with the last
step, so that nobody is told on the way whether an answer was right. Names: B environments, R rows.

Observation: int64 [2], the symbol (one more than the last where one is asked for) and the place (N in the noise).
Without `place` it is the symbol alone, int64 [1], as in the paper.
Actions: the symbols, and one more than the last for silence.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from gymnasium import spaces

from expire_span_rl.envs.core import DISTRIBUTIONS, MOST_STEPS, Core, counter_uniform, drawn_between
from expire_span_rl.envs.errors import expect_choice, expect_int
from expire_span_rl.envs.faces import BatchedVectorEnv, SingleEnv
from expire_span_rl.envs.tiles import EMPTY, GOAL, WALL, symbol_tile

if TYPE_CHECKING:
    from expire_span_rl.envs.rendering import Strip

LARGEST_VOCABULARY, LONGEST_STRING = 64, 1000


class Copying(Core):
    """B strings at once.

    Args:
        delay: the longest delay, in steps.
        min_delay: the shortest; 0: as `delay`, so that all are alike.
        delay_distribution: "uniform" or "log_uniform", P(D) ~ log((D + 1) / D).
        length: symbols of the string.
        vocabulary: different symbols.
        place: show the place beside the symbol.

    Raises EnvError for a value out of range.
    """

    metadata: ClassVar[dict[str, Any]] = {
        **Core.metadata,
        "difficulty_key": "delay",
        "ratios": {"accuracy": ("right", "asked")},
    }
    state_fields = ("delay", "string", "right")

    def __init__(
        self,
        num_envs: int,
        *,
        delay: int = 64,
        min_delay: int = 0,
        delay_distribution: str = "uniform",
        length: int = 20,
        vocabulary: int = 10,
        place: bool = True,
    ) -> None:
        self.longest = expect_int("delay", delay, 1, MOST_STEPS)
        self.shortest = expect_int("min_delay", min_delay, 0, delay) or self.longest
        self.distribution = expect_choice("delay_distribution", delay_distribution, DISTRIBUTIONS)
        self.length = expect_int("length", length, 1, LONGEST_STRING)
        self.vocabulary = expect_int("vocabulary", vocabulary, 2, LARGEST_VOCABULARY)
        self.shows_place = expect_choice("place", place, (True, False))
        sizes = [self.vocabulary + 1, self.length + 1]
        self.single_observation_space = spaces.MultiDiscrete(sizes if self.shows_place else sizes[:1])
        self.single_action_space = spaces.Discrete(self.vocabulary + 1)
        self.memory_horizon = self.longest + self.length
        super().__init__(num_envs)
        self.delay = np.full(num_envs, self.longest)
        self.string = np.zeros((num_envs, self.length), np.int64)
        self.right = np.zeros(num_envs, np.int64)

    def begin(self, rows: np.ndarray) -> None:
        draws = self.uniform(rows, 1 + self.length)  # [1 + N, R]
        self.delay[rows] = drawn_between(draws[0], self.shortest, self.longest, self.distribution)
        self.string[rows] = (draws[1:].T * self.vocabulary).astype(np.int64)
        self.right[rows] = 0

    def advance(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        place = self.steps - 1 - self.length - self.delay  # of the answer just given
        self.right += (place >= 0) & (actions == self._symbol_at(place))
        terminated = place == self.length - 1
        reward = np.where(terminated, self.right / self.length, 0.0)
        return reward, terminated, np.zeros_like(terminated)

    def observe(self) -> np.ndarray:
        place = self._place()
        symbol = np.where(self.steps < self.length, self._symbol_at(place), self._noise())
        shown = np.where(self.decisions(), self.vocabulary, symbol)
        return np.stack([shown, place] if self.shows_place else [shown], 1)  # [B,2] or [B,1]

    def final_info(self) -> dict[str, np.ndarray]:
        """`is_success` (every answer was right), `right` of `asked` answers, and `delay`."""
        asked = np.full(self.num_envs, self.length)
        return {
            "is_success": self.right == asked,
            "right": self.right.copy(),
            "asked": asked,
            "delay": self.delay.copy(),
        }

    def target(self) -> np.ndarray:
        """The symbol that is asked for, or silence."""
        return np.where(self.decisions(), self._symbol_at(self._place()), self.vocabulary)

    def decisions(self) -> np.ndarray:
        """Where a symbol is asked for."""
        return self.steps >= self.length + self.delay

    def facts(self) -> np.ndarray:
        """Each symbol of the string is a fact of its own."""
        return np.where(self.steps < self.length, self.steps, -1)

    def strip(self, row: int) -> Strip:
        """The stream from left to right, as symbols; goals are where one is asked for."""
        from expire_span_rl.envs.rendering import Strip

        first_answer = self.length + int(self.delay[row])
        last = first_answer + self.length

        def encoded(column: int, line: int) -> tuple[int, int, int]:
            if line:
                return WALL
            if column < self.length:
                return symbol_tile(int(self.string[row, max(column, 0)]))
            return GOAL if first_answer <= column < last else EMPTY

        most = 2 * self.length + self.longest
        return Strip(encoded, (0, last - 1), most, (min(int(self.steps[row]), last - 1), 0), 0)

    def _place(self) -> np.ndarray:
        """[B]: in the string, or where it is asked for; N in the noise."""
        asked = self.steps - self.length - self.delay
        place = np.where(self.steps < self.length, self.steps, np.where(asked >= 0, asked, self.length))
        return place.clip(max=self.length)

    def _symbol_at(self, place: np.ndarray) -> np.ndarray:
        """[B]: the string's symbols at places [B], any symbol where there is no such place."""
        return self.string[np.arange(self.num_envs), place.clip(0, self.length - 1)]

    def _noise(self) -> np.ndarray:
        """[B]: the noise of this step, drawn after the numbers of `begin`."""
        draw = self.steps + 1 + self.length
        return (counter_uniform(self.seed, self.episode, draw) * self.vocabulary).astype(np.int64)


class CopyingEnv(SingleEnv, core=Copying):
    """`gym.make("Copy-v0")`."""


class CopyingVectorEnv(BatchedVectorEnv, core=Copying):
    """`gym.make_vec("Copy-v0", num_envs)`."""
