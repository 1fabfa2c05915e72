"""The batched Collision-v0 against a plain transcription of its rules, which steps one stream at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expire_span_rl import envs
from expire_span_rl.envs.collision import Collision
from expire_span_rl.envs.core import counter_uniform


class PlainCollision:
    """The rules for one stream, in plain Python. Random numbers have the same indices as in the batched core; all other
    rules are written again."""

    def __init__(self, seed: int, episode: int, shortest: int, longest: int, **rules):
        self.seed = seed
        self.episode = episode
        self.rules = rules
        self.t = 0
        self.num_right = 0
        self.num_questions = 0
        self.num_meetings = 0
        side = rules["grid"] - 1
        self.length = shortest + int(self.draw(0) * (longest - shortest + 1))
        self.locations = [[self.round(self.draw(1 + 2 * p + axis) * side) for axis in (0, 1)] for p in (0, 1)]
        self.velocities = [self.draw_velocity(5 + 2 * p) for p in (0, 1)]
        self.particle_colours = [int(self.draw(9 + p) * rules["colours"]) for p in (0, 1)]
        self.meetings: list[tuple[int, int, int]] = []  # colour of each particle, quadrant
        self.observe()

    def draw(self, index: int) -> float:
        return float(counter_uniform(np.array([self.seed]), np.array([self.episode]), np.array([index]))[0])

    @staticmethod
    def round(number: float) -> float:
        return round(number * 2**20) / 2**20

    def draw_velocity(self, index: int) -> list[float]:
        radius = math.sqrt(-2 * math.log(1 - self.draw(index)))
        angle = 2 * math.pi * self.draw(index + 1)
        return [self.rules["speed"] * self.round(radius * factor) for factor in (math.cos(angle), math.sin(angle))]

    def observe(self) -> None:
        """Finds the meeting and the question of this step, and the right answer."""
        first_draw = 11 + 264 * self.t
        self.cells = [[math.floor(number + 0.5) for number in location] for location in self.locations]
        self.is_meeting = self.cells[0] == self.cells[1]
        if self.is_meeting:
            self.num_meetings += 1
            line, column = self.cells[0]
            half = self.rules["grid"] / 2
            self.meetings.append((*self.particle_colours, 2 * (line >= half) + (column >= half)))
        colours = self.rules["colours"]
        self.question = [colours, colours]
        if self.draw(first_draw + 4) < self.rules["question_share"]:
            self.question = [int(self.draw(first_draw + 6 + p) * colours) for p in (0, 1)]
            if self.draw(first_draw + 5) < self.rules["present_share"]:
                self.question = list(self.particle_colours)
        quadrants = [quadrant for *pair, quadrant in self.meetings if pair == self.question]
        self.target = quadrants[-1] if quadrants else 4

    def describe(self) -> str:
        if not self.is_meeting:
            return "two particles apart"
        first, second = (("red", "green", "blue")[colour] for colour in self.particle_colours)
        quadrant = ("upper left", "upper right", "lower left", "lower right")[self.meetings[-1][2]]
        return f"meeting of {first} and {second}, {quadrant}"

    def next_location(self, particle: int) -> list[float]:
        pairs = zip(self.locations[particle], self.velocities[particle], strict=True)
        return [location + velocity for location, velocity in pairs]

    def step(self, action: int) -> tuple[float, bool]:
        self.num_questions += self.target != 4
        self.num_right += self.target != 4 and action == self.target
        self.t += 1
        first_draw = 11 + 264 * self.t
        side = self.rules["grid"] - 1
        for p in (0, 1):
            attempt = 0
            while not all(0 < number < side for number in self.next_location(p)):
                self.velocities[p] = self.draw_velocity(first_draw + 8 + 128 * p + 2 * attempt)
                attempt += 1
            self.locations[p] = self.next_location(p)
        for p in (0, 1):
            if self.draw(first_draw + p) < self.rules["colour_change"]:
                self.particle_colours[p] = int(self.draw(first_draw + 2 + p) * self.rules["colours"])
        self.observe()
        is_over = self.t >= self.length
        return (self.num_right / self.num_questions if is_over and self.num_questions else 0.0), is_over


@settings(deadline=None, max_examples=25)
@given(
    grid=st.sampled_from([4, 6, 16]),
    colours=st.integers(1, 3),
    colour_change=st.sampled_from([0.0, 0.05, 1.0]),
    question_share=st.sampled_from([0.5, 1.0]),
    seed=st.integers(0, 10**6),
)
def test_the_core_follows_the_plain_rules(grid, colours, colour_change, question_share, seed):
    rules = {"grid": grid, "colours": colours, "speed": 0.5, "colour_change": colour_change}
    rules |= {"question_share": question_share, "present_share": 0.4}
    core = Collision(3, stream_length=50, min_stream_length=20, **rules)
    rows = np.arange(3)
    core.reset(rows, seed + rows)
    streams = [PlainCollision(seed + row, 0, 20, 50, **rules) for row in rows]
    generator = np.random.default_rng(seed)
    num_ended = 0
    num_meetings = 0
    for _ in range(120):
        check_present_step(core, streams)
        actions = generator.integers(5, size=3)
        reward, terminated, truncated = core.step(actions)
        expected = [stream.step(int(action)) for stream, action in zip(streams, actions, strict=True)]
        assert [*zip(reward.tolist(), terminated.tolist(), strict=True)] == expected and not truncated.any()
        ended_rows = np.flatnonzero(terminated)
        info = core.final_info()
        for row in ended_rows:
            stream = streams[row]
            counts = [stream.num_right, stream.num_questions, stream.length]
            assert [info[name][row] for name in ("right", "asked", "length")] == counts
            assert info["is_success"][row] == (stream.num_right == stream.num_questions)
            assert info["_is_success"][row] == (stream.num_questions > 0)
            num_ended += 1
            num_meetings += stream.num_meetings
            streams[row] = PlainCollision(seed + row, stream.episode + 1, 20, 50, **rules)
        if len(ended_rows):
            core.reset(ended_rows)
    assert num_ended >= 3 and (num_meetings > 0 or grid > 4)


def check_present_step(core: Collision, streams: list[PlainCollision]) -> None:
    """Compares what the core shows at this step with the plain streams."""
    observations = core.observe()
    assert core.single_observation_space.contains(observations[0])
    assert core.target().tolist() == [stream.target for stream in streams]
    assert core.decisions().tolist() == [stream.target != 4 for stream in streams]
    facts = [stream.num_meetings - 1 if stream.is_meeting else -1 for stream in streams]
    assert core.facts().tolist() == facts
    for row, stream in enumerate(streams):
        particles = [[*stream.cells[p], stream.particle_colours[p]] for p in (0, 1)]
        assert observations[row].tolist() == [*particles[0], *particles[1], *stream.question]
        assert core.describe(row) == stream.describe()


def test_particles_move_as_published():
    """Uniform starts, normal velocities of 0.5 cells, and a meeting every 250 steps."""
    core = Collision(2000, stream_length=1000)
    rows = np.arange(2000)
    core.reset(rows, rows)
    np.testing.assert_allclose(core.location.mean((0, 1)), 7.5, atol=0.3)
    np.testing.assert_allclose(core.velocity.std(), 0.5, atol=0.01)
    np.testing.assert_allclose(np.bincount(core.colour.ravel()) / 4000, 0.2, atol=0.03)
    num_meetings = 0
    for _ in range(200):
        core.step(core.target())
        num_meetings += int(core.met.sum())
        assert ((core.location > 0) & (core.location < 15)).all()
    assert 0.0035 < num_meetings / (200 * 2000) < 0.0045


def test_right_answers_to_all_questions_give_reward_1_and_silence_gives_0():
    for is_right, expected in ((True, 1.0), (False, 0.0)):
        core = Collision(8, grid=4, stream_length=60)
        rows = np.arange(8)
        core.reset(rows, rows)
        for _ in range(60):
            reward, terminated, _ = core.step(core.target() if is_right else np.full(8, 4))
        assert terminated.all() and (core.asked > 0).all() and reward.tolist() == [expected] * 8
        assert core.final_info()["is_success"].tolist() == [is_right] * 8


def test_a_stream_that_asked_nothing_says_nothing_of_success():
    """Alone and in a vector."""
    asked_nothing = {"grid": 16, "question_share": 0.0, "stream_length": 3}
    single = envs.make_env("Collision-v0", **asked_nothing)
    single.reset(seed=0)
    infos = [single.step(4)[-1] for _ in range(3)]
    assert infos[-1] == {"right": 0, "asked": 0, "length": 3}
    vector = envs.make_vec_env("Collision-v0", 8, grid=4, stream_length=6)
    vector.reset(seed=0)
    for _ in range(6):
        *_, infos = vector.step(vector.unwrapped.target())
    info = infos["final_info"]
    assert set(info["asked"] > 0) == {True, False}
    np.testing.assert_array_equal(info["_is_success"], info["asked"] > 0)
    assert info["is_success"][info["_is_success"]].all()


def test_a_particle_moves_to_the_middle_if_every_attempted_velocity_leaves_the_grid():
    core = Collision(1, grid=4, speed=1000)
    core.reset(np.arange(1), np.arange(1))
    for _ in range(20):
        core.step(core.target())
        assert ((core.location > 0) & (core.location < 3)).all()


def test_the_previous_action_is_hidden_and_training_draws_lengths():
    """Targets as previous actions would give away the answer to a question that is asked again."""
    single = envs.make_env("Collision-v0")
    vector = envs.make_vec_env("Collision-v0", 2)
    single.reset(seed=0)
    vector.reset(seed=0)
    assert single.step(1)[0]["previous_action"] == 5
    assert vector.step([1, 2])[0]["previous_action"].tolist() == [5, 5]
    stretched = envs.make_vec_env("Collision-v0", 2, wraps=["stretch=2"])
    stretched.reset(seed=0)
    assert stretched.step([1, 2])[0]["previous_action"].tolist() == [5, 5]
    assert envs.training_kwargs("Collision-v0") == {"min_stream_length": 1}
    assert vector.memory_horizon == 500
    assert envs.make_vec_env("Collision-v0", 2, stream_length=10**5).memory_horizon == 6400


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"grid": 3}, "^grid: expected a whole number from 4 to 64, got 3$"),
        ({"grid": 5}, "^grid: expected an even number, so that there are quadrants, got 5$"),
        ({"colours": 7}, "^colours: expected a whole number from 1 to 6, got 7$"),
        ({"stream_length": 0}, "^stream_length: expected a whole number from 1 to 1000000000, got 0$"),
        ({"min_stream_length": 501}, "^min_stream_length: expected a whole number from 0 to 500, got 501$"),
        ({"speed": -1}, "^speed: expected a finite number of at least 0, got -1$"),
        ({"colour_change": 1.5}, "^colour_change: expected a number from 0 to 1, got 1.5$"),
        ({"question_share": "all"}, "^question_share: expected a finite number of at least 0, got 'all'$"),
    ],
)
def test_the_error_for_a_value_out_of_range_is_one_line(kwargs, message):
    with pytest.raises(ValueError, match=message):
        envs.make_env("Collision-v0", **kwargs)
