"""Object collision (Sukhbaatar et al., 2021, the Expire-Span paper): in which quadrant did two colours last meet?

Two particles move on a grid and sometimes change their colours. They meet when they are in the same cell. A step may
ask about a pair of colours. The answer is the quadrant of the last meeting at which the first particle had the first
colour and the second particle had the second colour. If the pair has not met yet, or if there is no question, silence
is right. Such a step does not count as a question.

    a step       1. Velocities that would leave the grid are drawn again.
                 2. The particles move.
                 3. Each particle changes its colour with probability `colour_change`.
                 4. A meeting is recorded.
                 5. The next question is drawn.
    a question   asks about the particles' present colours with probability `present_share`, otherwise about any two

The rules and their numbers are those of the generator that the authors published (facebookresearch/
transformer-sequential), with two differences. One step shows what takes eight tokens there. A stream ends after
`stream_length` steps. Velocities are normal, with a standard deviation of `speed` cells per step and axis.

Names: B environments, R rows, P = 2 particles, C colours, N velocities that are drawn again.

Observation: int64 [8], the line, column and colour of each particle, then the two colours of the question (C and C if
there is no question).
Actions: the four quadrants (upper left, upper right, lower left, lower right), and silence.
Reward: the share of right answers, at the last step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from gymnasium import spaces
from minigrid.core.constants import COLOR_TO_IDX, OBJECT_TO_IDX

from expire_span_rl.envs.core import MOST_STEPS, EnvCore, counter_uniform, draw_integers
from expire_span_rl.envs.core_adapters import BatchedVectorEnv, SingleEnv
from expire_span_rl.envs.errors import EnvError, expect_int, expect_number
from expire_span_rl.envs.tiles import EMPTY

if TYPE_CHECKING:
    from expire_span_rl.envs.rendering import Place

SILENCE = 4
LARGEST_GRID = 64
MAX_ATTEMPTS = 64
"""Attempts to draw a velocity that stays on the grid. If all fail, the particle moves towards the middle."""
COLOURS = ("red", "green", "blue", "purple", "yellow", "grey")
_BEGIN_DRAWS = 11
"""Random numbers of `begin`: the stream's length, two locations, two velocities and two colours."""
_EVENT_DRAWS = 8
"""Random numbers of a step's colour changes and question (`_draw_events`)."""
_STEP_DRAWS = _EVENT_DRAWS + 2 * 2 * MAX_ATTEMPTS
"""Random numbers that a step may use: those of the events, then two per particle and attempt (`_redraw_velocities`)."""
_TILE = 16  # pixels of a cell's side in the picture


class Collision(EnvCore):
    """B streams at once.

    Args:
        grid: cells of a side, an even number.
        colours: the number of different colours. Both particles may have the same colour.
        stream_length: steps of the longest stream.
        min_stream_length: steps of the shortest stream; 0: `stream_length`, so that all lengths are equal. Lengths are
            uniform.
        speed: standard deviation of velocities, in cells per step and axis.
        colour_change: probability per step that a particle's colour is drawn again.
        question_share: probability of a question per step.
        present_share: probability that a question is about the present colours of the particles.

    Raises EnvError for a value out of range.
    """

    metadata: ClassVar[dict[str, Any]] = {
        **EnvCore.metadata,
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
        particle_sizes = [self.grid, self.grid, self.colours]
        question_sizes = [self.colours + 1, self.colours + 1]
        self.single_observation_space = spaces.MultiDiscrete([*particle_sizes, *particle_sizes, *question_sizes])
        self.single_action_space = spaces.Discrete(SILENCE + 1)
        # A pair of colours meets about once in colours^2 * grid^2 steps.
        self.longest_episode = self.longest
        self.memory_horizon = min(self.longest, self.colours**2 * self.grid**2)
        super().__init__(num_envs)
        self.length = np.full(num_envs, self.longest)
        self.location = np.zeros((num_envs, 2, 2))  # [B,P,2] line and column, from 0 to grid - 1
        self.velocity = np.zeros((num_envs, 2, 2))
        self.colour = np.zeros((num_envs, 2), np.int64)
        self.last = np.zeros((num_envs, self.colours, self.colours), np.int64)
        """The quadrant of each pair's last meeting. SILENCE before the first one."""
        self.question = np.zeros((num_envs, 2), np.int64)
        self.meetings = np.zeros(num_envs, np.int64)
        self.met = np.zeros(num_envs, bool)  # whether the particles meet at this step
        self.right = np.zeros(num_envs, np.int64)
        self.asked = np.zeros(num_envs, np.int64)

    def begin(self, rows: np.ndarray) -> None:
        draws = self.uniform(rows, _BEGIN_DRAWS).T  # [R,11]
        self.length[rows] = draw_integers(draws[:, 0], self.shortest, self.longest, "uniform")
        self.location[rows] = _round(draws[:, 1:5].reshape(-1, 2, 2) * (self.grid - 1))
        self.velocity[rows] = self.speed * _normal(draws[:, 5:9].reshape(-1, 2, 2))
        self.colour[rows] = (draws[:, 9:11] * self.colours).astype(np.int64)
        self.last[rows] = SILENCE
        self.meetings[rows] = 0
        self.right[rows] = 0
        self.asked[rows] = 0
        self._record_meetings(rows)
        self._set_questions(rows, self._draw_events(rows))

    def advance(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        is_decision = self.decisions()
        self.asked += is_decision
        self.right += is_decision & (actions == self.target())
        rows = np.arange(self.num_envs)
        draws = self._draw_events(rows)
        self._redraw_velocities()
        self.location += self.velocity
        change_draws = draws[:2].T  # [B,P]
        changes = change_draws < self.colour_change
        self.colour[changes] = (draws[2:4].T[changes] * self.colours).astype(np.int64)
        self._record_meetings(rows)
        self._set_questions(rows, draws)
        terminated = self.steps >= self.length
        reward = np.where(terminated & (self.asked > 0), self.right / self.asked.clip(min=1), 0.0)
        return reward, terminated, np.zeros_like(terminated)

    def observe(self) -> np.ndarray:
        particles = np.concatenate([self._cells(), self.colour[..., None]], 2)  # [B,P,3]
        return np.concatenate([particles.reshape(self.num_envs, 6), self.question], 1)  # [B,8]

    def final_info(self) -> dict[str, np.ndarray]:
        """`is_success` (every answer is right; none where nothing was asked), `right` (right answers), `asked`
        (questions that count), and `length` (steps of the stream)."""
        return {
            "is_success": self.right == self.asked,
            "_is_success": self.asked > 0,
            "right": self.right.copy(),
            "asked": self.asked.copy(),
            "length": self.length.copy(),
        }

    def target(self) -> np.ndarray:
        """The quadrant of the last meeting of the question's pair, or silence."""
        first_colour, second_colour = self.question.clip(max=self.colours - 1).T
        answer = self.last[np.arange(self.num_envs), first_colour, second_colour]
        return np.where(self.question[:, 0] < self.colours, answer, SILENCE)

    def decisions(self) -> np.ndarray:
        """Whether the question's pair has met."""
        return self.target() != SILENCE

    def facts(self) -> np.ndarray:
        """Each meeting is a separate fact."""
        return np.where(self.met, self.meetings - 1, -1)

    def describe(self, row: int) -> str:
        """The colours and the quadrant of a meeting."""
        if not self.met[row]:
            return "two particles apart"
        first_colour, second_colour = self.colour[row]
        quadrant = self.metadata["action_names"][self.last[row, first_colour, second_colour]]
        return f"meeting of {COLOURS[first_colour]} and {COLOURS[second_colour]}, {quadrant}"

    def render(self, row: int) -> np.ndarray:
        """The grid with both particles, and below it the two colours of the question."""
        from expire_span_rl.envs.rendering import render_tiles

        codes = np.zeros((self.grid, self.grid + 1, 3), np.uint8)
        codes[:, : self.grid] = EMPTY
        for (line, column), colour in zip(self._cells()[row], self.colour[row], strict=True):
            codes[column, line] = OBJECT_TO_IDX["ball"], COLOR_TO_IDX[COLOURS[colour]], 0
        for column, colour in enumerate(self.question[row]):
            if colour < self.colours:
                codes[column, self.grid] = OBJECT_TO_IDX["box"], COLOR_TO_IDX[COLOURS[colour]], 0
        return render_tiles(codes, _TILE)

    def place(self, row: int) -> Place | None:
        return None

    def _cells(self) -> np.ndarray:
        """[B,P,2]: the line and column of the cells that the particles are in."""
        return np.floor(self.location + 0.5).astype(np.int64)

    def _draw_events(self, rows: np.ndarray) -> np.ndarray:
        """Random numbers of the present step in `rows` [R]: float64 [8,R] in [0, 1).

        By index: 0 and 1 decide whether each particle changes its colour, 2 and 3 are the new colours, 4 decides
        whether there is a question, 5 whether it is about the present colours, and 6 and 7 are its colours otherwise.
        """
        return self.uniform(rows, _EVENT_DRAWS, _BEGIN_DRAWS + self.steps[rows] * _STEP_DRAWS)

    def _redraw_velocities(self) -> None:
        """Draws each velocity that would leave the grid again, until it stays on the grid."""
        rows, particles = np.nonzero(self._leaves_grid(self.location + self.velocity))  # [N] each
        for attempt in range(MAX_ATTEMPTS):
            if not len(rows):
                return
            first_draw = _BEGIN_DRAWS + self.steps[rows] * _STEP_DRAWS + _EVENT_DRAWS
            first_draw = first_draw + 2 * (MAX_ATTEMPTS * particles + attempt)
            draws = counter_uniform(self.seed[rows], self.episode[rows], first_draw + np.arange(2)[:, None])  # [2,N]
            self.velocity[rows, particles] = self.speed * _normal(draws.T)
            leaves = self._leaves_grid(self.location[rows, particles] + self.velocity[rows, particles])
            rows = rows[leaves]
            particles = particles[leaves]
        # A small step towards the middle never leaves the grid.
        self.velocity[rows, particles] = ((self.grid - 1) / 2 - self.location[rows, particles]) / self.grid

    def _leaves_grid(self, location: np.ndarray) -> np.ndarray:
        """Whether locations [...,2] are on the grid's border or beyond it: bool [...]."""
        return np.any((location <= 0) | (location >= self.grid - 1), axis=-1)

    def _record_meetings(self, rows: np.ndarray) -> None:
        """Records the meetings of the present step in `rows` [R]."""
        cells = self._cells()[rows]  # [R,P,2]
        meets = (cells[:, 0] == cells[:, 1]).all(-1)
        self.met[rows] = meets
        self.meetings[rows] += meets
        quadrant = (cells[meets, 0] * 2 // self.grid) @ np.array([2, 1])
        first_colour, second_colour = self.colour[rows[meets]].T
        self.last[rows[meets], first_colour, second_colour] = quadrant

    def _set_questions(self, rows: np.ndarray, draws: np.ndarray) -> None:
        """Sets the questions of the present step in `rows` [R] from the draws of `_draw_events` [8,R]."""
        pair = np.where(draws[5] < self.present_share, self.colour[rows].T, draws[6:8] * self.colours)  # [2,R]
        self.question[rows] = np.where(draws[4] < self.question_share, pair, self.colours).T


def _normal(draws: np.ndarray) -> np.ndarray:
    """Two normal numbers [...,2] from two uniform ones in [0, 1) (Box and Muller, 1958)."""
    radius = np.sqrt(-2 * np.log1p(-draws[..., 0]))
    angle = 2 * np.pi * draws[..., 1]
    return _round(np.stack([radius * np.cos(angle), radius * np.sin(angle)], -1))


def _round(numbers: np.ndarray) -> np.ndarray:
    """Numbers rounded to multiples of 2^-20. Sums of these are exact. Machines whose logarithms differ in the last bits
    give the same results."""
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
