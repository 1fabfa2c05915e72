"""Object collision (Sukhbaatar et al., 2021, the Expire-Span paper): in which quadrant did two colours meet last?

Two particles move on a grid and change their colours now and then. They meet when they are in the same cell. At every
step a pair of colours is asked for: the quadrant of the last meeting of a first particle of the one colour with a
second particle of the other. Where the pair has not met yet, nothing is asked and silence is right.

    a step       velocities that would leave the grid are drawn anew; the particles move; each changes its colour with
                 probability `colour_change`; a meeting is noted; the next question is drawn
    a question   with probability `present_share` the colours that the particles have now, else any two

The rules and their numbers are those of the generator that the authors published (facebookresearch/
transformer-sequential), except that one step shows what there are eight tokens, and that a stream ends after
`stream_length` steps. Velocities are normal, with a standard deviation of `speed` cells per step and axis.

Names: B environments, R rows, P = 2 particles, C colours. Observation: int64 [8], for each particle its line, column
and colour, then the two colours of the question (C where none is asked). Actions: the four quadrants (upper left, upper
right, lower left, lower right), and silence. The reward, the share of right answers, comes with the last step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from gymnasium import spaces
from minigrid.core.constants import COLOR_TO_IDX, OBJECT_TO_IDX

from expire_span_rl.envs.core import MOST_STEPS, Core, counter_uniform, drawn_between
from expire_span_rl.envs.errors import EnvError, expect_int, expect_number
from expire_span_rl.envs.faces import BatchedVectorEnv, SingleEnv
from expire_span_rl.envs.tiles import EMPTY

if TYPE_CHECKING:
    from expire_span_rl.envs.rendering import Place

SILENCE = 4
LARGEST_GRID = 64
MOST_ATTEMPTS = 64
"""To draw a velocity that stays on the grid. After them a particle heads for the middle."""
COLOURS = ("red", "green", "blue", "purple", "yellow", "grey")
_BEGIN = 11  # numbers that `begin` draws, the stream's length first
_STEP = 8 + 2 * 2 * MOST_ATTEMPTS  # numbers that a step may draw: see `_numbers` and `_bounce`
_TILE = 16  # pixels of a cell in the picture


class Collision(Core):
    """B streams at once.

    Args:
        grid: cells of a side, an even number.
        colours: different colours; a particle may have the other's.
        stream_length: steps of the longest stream.
        min_stream_length: of the shortest; 0: as `stream_length`, so that all are alike. Lengths are uniform.
        speed: standard deviation of velocities, in cells per step and axis.
        colour_change: probability with which a particle's colour is drawn anew, per step.
        question_share: probability of a question, per step.
        present_share: probability that a question is about the present colours of the particles.

    Raises EnvError for a value out of range.
    """

    metadata: ClassVar[dict[str, Any]] = {
        **Core.metadata,
        "difficulty_key": "length",
        "hides_previous_action": True,
        "ratios": {"accuracy": ("right", "asked")},
        "action_names": ("upper left", "upper right", "lower left", "lower right", "silence"),
        "observation_names": (
            "first line", "first column", "first colour", "second line", "second column", "second colour",
            "asked first colour", "asked second colour",
        ),
    }  # fmt: skip
    state_fields = (
        "length", "location", "velocity", "colour", "last", "question", "meetings", "met", "right", "asked",
    )  # fmt: skip

    def __init__(
        self,
        num_envs: int,
        *,
        grid: int = 16,
        colours: int = 5,
        stream_length: int = 500,
        min_stream_length: int = 0,
        speed: float = 0.5,
        colour_change: float = 0.05,
        question_share: float = 1.0,
        present_share: float = 0.4,
    ) -> None:
        self.grid = expect_int("grid", grid, 4, LARGEST_GRID)
        if grid % 2:
            raise EnvError(f"grid: expected an even number, so that there are quadrants, got {grid}")
        self.colours = expect_int("colours", colours, 1, len(COLOURS))
        self.longest = expect_int("stream_length", stream_length, 1, MOST_STEPS)
        self.shortest = expect_int("min_stream_length", min_stream_length, 0, stream_length) or self.longest
        self.speed = expect_number("speed", speed, 0)
        self.colour_change = _expect_share("colour_change", colour_change)
        self.question_share = _expect_share("question_share", question_share)
        self.present_share = _expect_share("present_share", present_share)
        of_particle = [self.grid, self.grid, self.colours]
        self.single_observation_space = spaces.MultiDiscrete([*of_particle, *of_particle, *[self.colours + 1] * 2])
        self.single_action_space = spaces.Discrete(SILENCE + 1)
        # A pair meets about once in so many steps.
        self.memory_horizon = min(self.longest, self.colours**2 * self.grid**2)
        super().__init__(num_envs)
        self.length = np.full(num_envs, self.longest)
        self.location = np.zeros((num_envs, 2, 2))  # [B,P,2] line and column, from 0 to grid - 1
        self.velocity = np.zeros((num_envs, 2, 2))
        self.colour = np.zeros((num_envs, 2), np.int64)
        self.last = np.zeros((num_envs, self.colours, self.colours), np.int64)  # quadrant, SILENCE before any meeting
        self.question = np.zeros((num_envs, 2), np.int64)
        self.meetings = np.zeros(num_envs, np.int64)
        self.met = np.zeros(num_envs, bool)  # now
        self.right = np.zeros(num_envs, np.int64)
        self.asked = np.zeros(num_envs, np.int64)

    def begin(self, rows: np.ndarray) -> None:
        draws = self.uniform(rows, _BEGIN).T  # [R,11]
        self.length[rows] = drawn_between(draws[:, 0], self.shortest, self.longest, "uniform")
        self.location[rows] = _exact(draws[:, 1:5].reshape(-1, 2, 2) * (self.grid - 1))
        self.velocity[rows] = self.speed * _normal(draws[:, 5:9].reshape(-1, 2, 2))
        self.colour[rows] = draws[:, 9:11] * self.colours
        self.last[rows] = SILENCE
        for name in ("meetings", "right", "asked"):
            getattr(self, name)[rows] = 0
        self._meet(rows)
        self._ask(rows, self._numbers(rows))

    def advance(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        asked = self.decisions()
        self.asked += asked
        self.right += asked & (actions == self.target())
        rows = np.arange(self.num_envs)
        numbers = self._numbers(rows)
        self._bounce()
        self.location += self.velocity
        changes = numbers[:2].T < self.colour_change  # [B,P]
        self.colour[changes] = (numbers[2:4].T[changes] * self.colours).astype(np.int64)
        self._meet(rows)
        self._ask(rows, numbers)
        terminated = self.steps >= self.length
        reward = np.where(terminated & (self.asked > 0), self.right / self.asked.clip(min=1), 0.0)
        return reward, terminated, np.zeros_like(terminated)

    def observe(self) -> np.ndarray:
        particles = np.concatenate([self._cells(), self.colour[..., None]], 2)  # [B,P,3]
        return np.concatenate([particles.reshape(self.num_envs, 6), self.question], 1)  # [B,8]

    def final_info(self) -> dict[str, np.ndarray]:
        """`is_success` (every answer was right), `right` of `asked` answers, and the stream's `length`."""
        return {
            "is_success": self.right == self.asked,
            "right": self.right.copy(),
            "asked": self.asked.copy(),
            "length": self.length.copy(),
        }

    def target(self) -> np.ndarray:
        """The quadrant that is asked for, or silence."""
        first, second = self.question.clip(max=self.colours - 1).T
        answer = self.last[np.arange(self.num_envs), first, second]
        return np.where(self.question[:, 0] < self.colours, answer, SILENCE)

    def decisions(self) -> np.ndarray:
        """Where a pair is asked for that has met."""
        return self.target() != SILENCE

    def facts(self) -> np.ndarray:
        """Each meeting is a fact of its own."""
        return np.where(self.met, self.meetings - 1, -1)

    def describe(self, row: int) -> str:
        """Of a meeting the colours and the quadrant."""
        if not self.met[row]:
            return "two particles apart"
        first, second = self.colour[row]
        quadrant = self.metadata["action_names"][self.last[row, first, second]]
        return f"meeting of {COLOURS[first]} and {COLOURS[second]}, {quadrant}"

    def render(self, row: int) -> np.ndarray:
        """The grid with both particles, and below it the two colours of the question."""
        from expire_span_rl.envs.rendering import render_tiles

        codes = np.zeros((self.grid, self.grid + 1, 3), np.uint8)
        codes[:, : self.grid] = EMPTY
        for (line, column), colour in zip(self._cells()[row], self.colour[row], strict=True):
            codes[column, line] = OBJECT_TO_IDX["ball"], COLOR_TO_IDX[COLOURS[colour]], 0
        for place, colour in enumerate(self.question[row]):
            if colour < self.colours:
                codes[place, self.grid] = OBJECT_TO_IDX["box"], COLOR_TO_IDX[COLOURS[colour]], 0
        return render_tiles(codes, _TILE)

    def place(self, row: int) -> Place | None:
        return None

    def _cells(self) -> np.ndarray:
        """[B,P,2]: the line and column of the cells that the particles are in."""
        return np.floor(self.location + 0.5).astype(np.int64)

    def _numbers(self, rows: np.ndarray) -> np.ndarray:
        """The draws [8,R] of a step: whether and into what each particle changes its colour, whether there is a
        question, whether it is an easy one, and its colours."""
        return self.uniform(rows, 8, _BEGIN + self.steps[rows] * _STEP)

    def _bounce(self) -> None:
        """Draws the velocities anew that would leave the grid, until they do not."""
        row, particle = np.nonzero(self._leaves(self.location + self.velocity))
        for attempt in range(MOST_ATTEMPTS):
            if not len(row):
                return
            first = _BEGIN + self.steps[row] * _STEP + 8 + 2 * (MOST_ATTEMPTS * particle + attempt)
            draws = counter_uniform(self.seed[row], self.episode[row], first + np.arange(2)[:, None])  # [2,N]
            self.velocity[row, particle] = self.speed * _normal(draws.T)
            leaves = self._leaves(self.location[row, particle] + self.velocity[row, particle])
            row, particle = row[leaves], particle[leaves]
        self.velocity[row, particle] = ((self.grid - 1) / 2 - self.location[row, particle]) / self.grid

    def _leaves(self, location: np.ndarray) -> np.ndarray:
        """bool [...]: is the location [...,2] on the border or beyond it?"""
        return ((location <= 0) | (location >= self.grid - 1)).any(-1)

    def _meet(self, rows: np.ndarray) -> None:
        """Notes the meetings of this step in `rows` [R]."""
        cells = self._cells()[rows]  # [R,P,2]
        met = (cells[:, 0] == cells[:, 1]).all(-1)
        self.met[rows] = met
        self.meetings[rows] += met
        quadrant = (cells[met, 0] * 2 // self.grid) @ np.array([2, 1])
        first, second = self.colour[rows[met]].T
        self.last[rows[met], first, second] = quadrant

    def _ask(self, rows: np.ndarray, numbers: np.ndarray) -> None:
        """Draws the question of this step in `rows` [R] from `_numbers`."""
        pair = np.where(numbers[5] < self.present_share, self.colour[rows].T, numbers[6:8] * self.colours)  # [2,R]
        self.question[rows] = np.where(numbers[4] < self.question_share, pair, self.colours).T


def _normal(draws: np.ndarray) -> np.ndarray:
    """Two normal numbers [...,2] from two uniform ones in [0, 1) (Box and Muller, 1958)."""
    radius, angle = np.sqrt(-2 * np.log1p(-draws[..., 0])), 2 * np.pi * draws[..., 1]
    return _exact(np.stack([radius * np.cos(angle), radius * np.sin(angle)], -1))


def _exact(numbers: np.ndarray) -> np.ndarray:
    """Rounded to multiples of 2^-20: their sums are exact, and the last bits of a machine's logarithm do not matter."""
    return np.round(numbers * 2**20) / 2**20


def _expect_share(name: str, value: Any) -> float:
    """`value` as a float if it is a number from 0 to 1. Raises EnvError otherwise."""
    if expect_number(name, value, 0) > 1:
        raise EnvError(f"{name}: expected a number from 0 to 1, got {value!r}")
    return float(value)


class CollisionEnv(SingleEnv, core=Collision):
    """`gym.make("Collision-v0")`."""


class CollisionVectorEnv(BatchedVectorEnv, core=Collision):
    """`gym.make_vec("Collision-v0", num_envs)`."""
