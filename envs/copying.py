"""Copying (Hochreiter and Schmidhuber, 1997; as in the Expire-Span paper): give a string back after a long delay.

    step            0 .. N-1       N .. N+D-1    N+D .. 2N+D-1
    observation     the string     noise         a query for the next symbol
    right action    silence        silence       the string again, symbol by symbol

N is the string's length. D is the delay, drawn per episode. Noise is drawn from the same symbols. The observation also
shows the place in the string, both when the string is shown and when it is queried. Attention knows ages of a few steps
only, so a symbol must be found by the place that is remembered with it. The reward is the share of right answers. It is
paid at the last step, so that no reward reveals earlier whether an answer was right. Names: B environments, R rows.

Observation: int64 [2], the symbol (the number of symbols for a query) and the place (N in the noise). With
`place=False` it is the symbol alone, int64 [1], as in the paper.
Actions: the symbols, and the number of symbols for silence.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from gymnasium import spaces

from expire_span_rl.envs.core import DISTRIBUTIONS, MOST_STEPS, EnvCore, counter_uniform, draw_integers
from expire_span_rl.envs.core_adapters import BatchedVectorEnv, SingleEnv
from expire_span_rl.envs.errors import expect_choice, expect_int
from expire_span_rl.envs.tiles import EMPTY, GOAL, WALL, symbol_tile

if TYPE_CHECKING:
    from expire_span_rl.envs.rendering import Strip

LARGEST_VOCABULARY = 64
LONGEST_STRING = 1000


class Copying(EnvCore):
    """B strings at once.

    Args:
        delay: the longest delay, in steps.
        min_delay: the shortest delay, in steps; 0: `delay`, so that all delays are equal.
        delay_distribution: "uniform" or "log_uniform", P(D) ~ log((D + 1) / D).
        length: symbols of the string.
        vocabulary: the number of different symbols.
        place: show the place beside the symbol.

    Raises EnvError for a value out of range.
    """

    metadata: ClassVar[dict[str, Any]] = {
        **EnvCore.metadata,
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
        self.longest_episode = self.longest + 2 * self.length
        super().__init__(num_envs)
        self.delay = np.full(num_envs, self.longest)
        self.string = np.zeros((num_envs, self.length), np.int64)
        self.right = np.zeros(num_envs, np.int64)

    def begin(self, rows: np.ndarray) -> None:
        draws = self.uniform(rows, 1 + self.length)  # [1 + N, R]
        self.delay[rows] = draw_integers(draws[0], self.shortest, self.longest, self.distribution)
        self.string[rows] = (draws[1:].T * self.vocabulary).astype(np.int64)
        self.right[rows] = 0

    def advance(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        place = self.steps - 1 - self.length - self.delay  # place of this step's answer
        self.right += (place >= 0) & (actions == self._symbol_at(place))
        terminated = place == self.length - 1
        reward = np.where(terminated, self.right / self.length, 0.0)
        return reward, terminated, np.zeros_like(terminated)

    def observe(self) -> np.ndarray:
        place = self._place()
        symbol = np.where(self.steps < self.length, self._symbol_at(place), self._noise())
        symbol = np.where(self.decisions(), self.vocabulary, symbol)
        return np.stack([symbol, place] if self.shows_place else [symbol], 1)  # [B,2] or [B,1]

    def final_info(self) -> dict[str, np.ndarray]:
        """`is_success` (every answer is right), `right` (right answers), `asked` (queries) and `delay`."""
        num_queries = np.full(self.num_envs, self.length)
        return {
            "is_success": self.right == num_queries,
            "right": self.right.copy(),
            "asked": num_queries,
            "delay": self.delay.copy(),
        }

    def target(self) -> np.ndarray:
        """The queried symbol, or silence."""
        return np.where(self.decisions(), self._symbol_at(self._place()), self.vocabulary)

    def decisions(self) -> np.ndarray:
        """At each query."""
        return self.steps >= self.length + self.delay

    def facts(self) -> np.ndarray:
        """Each symbol of the string is a separate fact."""
        return np.where(self.steps < self.length, self.steps, -1)

    def strip(self, row: int) -> Strip:
        """The episode from left to right, a column per step, as symbols. Goals mark the queries."""
        from expire_span_rl.envs.rendering import Strip

        first_query = self.length + int(self.delay[row])
        end = first_query + self.length

        def code_at(column: int, line: int) -> tuple[int, int, int]:
            if line:
                return WALL
            if column < self.length:
                return symbol_tile(int(self.string[row, max(column, 0)]))
            return GOAL if first_query <= column < end else EMPTY

        return Strip(
            code_at,
            span=(0, end - 1),
            max_columns=2 * self.length + self.longest,
            agent=(min(int(self.steps[row]), end - 1), 0),
            reach=0,
        )

    def _place(self) -> np.ndarray:
        """[B]: the place in the string that is shown or queried; N in the noise."""
        query = self.steps - self.length - self.delay
        place = np.where(self.steps < self.length, self.steps, np.where(query >= 0, query, self.length))
        return place.clip(max=self.length)

    def _symbol_at(self, place: np.ndarray) -> np.ndarray:
        """[B]: the string's symbols at places [B]; an arbitrary symbol where the string has no such place."""
        return self.string[np.arange(self.num_envs), place.clip(0, self.length - 1)]

    def _noise(self) -> np.ndarray:
        """[B]: the noise of this step. Its draws follow those of `begin`."""
        draw = self.steps + 1 + self.length
        return (counter_uniform(self.seed, self.episode, draw) * self.vocabulary).astype(np.int64)


class CopyingEnv(SingleEnv, core=Copying):
    """`gym.make("Copy-v0")`."""


class CopyingVectorEnv(BatchedVectorEnv, core=Copying):
    """`gym.make_vec("Copy-v0", num_envs)`."""
