"""Object collision's batched rules against a plain transcription, one step and stream at a time."""

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
    """One stream, number by number: draws have the core's numbers, everything else is written down again."""

    def __init__(self, seed: int, episode: int, shortest: int, longest: int, **rules):
        self.seed, self.episode, self.rules = seed, episode, rules
        self.t = self.right = self.asked = self.meetings = 0
        side, colours = rules["grid"] - 1, rules["colours"]
        self.length = shortest + int(self.draw(0) * (longest - shortest + 1))
        self.places = [[self.exact(self.draw(1 + 2 * p + axis) * side) for axis in (0, 1)] for p in (0, 1)]
        self.moves = [self.velocity(5 + 2 * p) for p in (0, 1)]
        self.particle_colours = [int(self.draw(9 + p) * colours) for p in (0, 1)]
        self.history: list[tuple[int, int, int]] = []
        self.look()

    def draw(self, number: int) -> float:
        return float(counter_uniform(np.array([self.seed]), np.array([self.episode]), np.array([number]))[0])

    @staticmethod
    def exact(number: float) -> float:
        return round(number * 2**20) / 2**20

    def velocity(self, number: int) -> list[float]:
        radius, angle = math.sqrt(-2 * math.log(1 - self.draw(number))), 2 * math.pi * self.draw(number + 1)
        return [self.rules["speed"] * self.exact(radius * turn) for turn in (math.cos(angle), math.sin(angle))]

    def look(self) -> None:
        """What there is to see now: a meeting, and a question."""
        first = 11 + 264 * self.t
        self.cells = [[math.floor(number + 0.5) for number in place] for place in self.places]
        self.met = self.cells[0] == self.cells[1]
        if self.met:
            self.meetings += 1
            line, column = self.cells[0]
            half = self.rules["grid"] / 2
            self.history.append((*self.particle_colours, 2 * (line >= half) + (column >= half)))
        colours = self.rules["colours"]
        self.question = [colours, colours]
        if self.draw(first + 4) < self.rules["question_share"]:
            self.question = [int(self.draw(first + 6 + p) * colours) for p in (0, 1)]
            if self.draw(first + 5) < self.rules["present_share"]:
                self.question = list(self.particle_colours)
        matches = [quadrant for *pair, quadrant in self.history if pair == self.question]
        self.target = matches[-1] if matches else 4

    def described(self) -> str:
        if not self.met:
            return "two particles apart"
        first, second = (("red", "green", "blue")[colour] for colour in self.particle_colours)
        quadrant = ("upper left", "upper right", "lower left", "lower right")[self.history[-1][2]]
        return f"meeting of {first} and {second}, {quadrant}"

    def step(self, action: int) -> tuple[float, bool]:
        self.asked += self.target != 4
        self.right += self.target != 4 and action == self.target
        self.t += 1
        first, side = 11 + 264 * self.t, self.rules["grid"] - 1
        for p in (0, 1):
            attempt = 0
            while not all(0 < a + b < side for a, b in zip(self.places[p], self.moves[p], strict=True)):
                self.moves[p] = self.velocity(first + 8 + 128 * p + 2 * attempt)
                attempt += 1
            self.places[p] = [a + b for a, b in zip(self.places[p], self.moves[p], strict=True)]
        for p in (0, 1):
            if self.draw(first + p) < self.rules["colour_change"]:
                self.particle_colours[p] = int(self.draw(first + 2 + p) * self.rules["colours"])
        self.look()
        over = self.t >= self.length
        return (self.right / self.asked if over and self.asked else 0.0), over


@settings(deadline=None, max_examples=25)
@given(
    grid=st.sampled_from([4, 6, 16]),
    colours=st.integers(1, 3),
    colour_change=st.sampled_from([0.0, 0.05, 1.0]),
    question_share=st.sampled_from([0.5, 1.0]),
    seed=st.integers(0, 10**6),
)
def test_the_core_is_the_plain_task(grid, colours, colour_change, question_share, seed):
    rules = {"grid": grid, "colours": colours, "speed": 0.5, "colour_change": colour_change}
    rules |= {"question_share": question_share, "present_share": 0.4}
    core, rows = Collision(3, stream_length=50, min_stream_length=20, **rules), np.arange(3)
    core.reset(rows, seed + rows)
    plain = [PlainCollision(seed + row, 0, 20, 50, **rules) for row in rows]
    generator = np.random.default_rng(seed)
    ended = meetings = 0
    for _ in range(120):
        seen = core.observe()
        assert core.single_observation_space.contains(seen[0])
        assert core.target().tolist() == [one.target for one in plain]
        assert core.decisions().tolist() == [one.target != 4 for one in plain]
        assert core.facts().tolist() == [one.meetings - 1 if one.met else -1 for one in plain]
        for row, one in enumerate(plain):
            cells = [[*one.cells[p], one.particle_colours[p]] for p in (0, 1)]
            assert seen[row].tolist() == [*cells[0], *cells[1], *one.question]
            assert core.describe(row) == one.described()
        actions = generator.integers(5, size=3)
        reward, terminated, truncated = core.step(actions)
        outcome = [one.step(int(action)) for one, action in zip(plain, actions, strict=True)]
        assert [*zip(reward.tolist(), terminated.tolist(), strict=True)] == outcome and not truncated.any()
        said = core.final_info()
        for row in np.flatnonzero(terminated):
            one = plain[row]
            assert [said[name][row] for name in ("right", "asked", "length")] == [one.right, one.asked, one.length]
            assert said["is_success"][row] == (one.right == one.asked)
        if terminated.any():
            ended += terminated.sum()
            meetings += sum(plain[row].meetings for row in np.flatnonzero(terminated))
            core.reset(np.flatnonzero(terminated))
            plain = [
                PlainCollision(seed + row, one.episode + 1, 20, 50, **rules) if terminated[row] else one
                for row, one in enumerate(plain)
            ]
    assert ended >= 3 and (meetings > 0 or grid > 4)


def test_particles_move_as_published():
    """Uniform starts, normal velocities of 0.5 cells, and a meeting every 250 steps."""
    core, rows = Collision(2000, stream_length=1000), np.arange(2000)
    core.reset(rows, rows)
    np.testing.assert_allclose(core.location.mean((0, 1)), 7.5, atol=0.3)
    np.testing.assert_allclose(core.velocity.std(), 0.5, atol=0.01)
    np.testing.assert_allclose(np.bincount(core.colour.ravel()) / 4000, 0.2, atol=0.03)
    met = 0
    for _ in range(200):
        core.step(core.target())
        met += int(core.met.sum())
        assert ((core.location > 0) & (core.location < 15)).all()
    assert 0.0035 < met / (200 * 2000) < 0.0045


def test_who_is_right_at_every_question_gets_the_whole_reward_and_who_is_silent_none():
    for answer, expected in ((True, 1.0), (False, 0.0)):
        core, rows = Collision(8, grid=4, stream_length=60), np.arange(8)
        core.reset(rows, rows)
        for _ in range(60):
            reward, terminated, _ = core.step(core.target() if answer else np.full(8, 4))
        assert terminated.all() and (core.asked > 0).all() and reward.tolist() == [expected] * 8
        assert core.final_info()["is_success"].tolist() == [answer] * 8


def test_a_particle_that_finds_no_velocity_heads_for_the_middle():
    core = Collision(1, grid=4, speed=1000)
    core.reset(np.arange(1), np.arange(1))
    for _ in range(20):
        core.step(core.target())
        assert ((core.location > 0) & (core.location < 3)).all()


def test_the_previous_answer_is_hidden_and_training_draws_lengths():
    """What was right before is an answer to a question that may come again."""
    single, vector = envs.make_env("Collision-v0"), envs.make_vec_env("Collision-v0", 2)
    single.reset(seed=0)
    vector.reset(seed=0)
    assert single.step(1)[0]["previous_action"] == 5
    assert vector.step([1, 2])[0]["previous_action"].tolist() == [5, 5]
    long = envs.make_vec_env("Collision-v0", 2, wraps=["stretch=2"])
    long.reset(seed=0)
    assert long.step([1, 2])[0]["previous_action"].tolist() == [5, 5]
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
def test_values_out_of_range_are_told_in_one_line(kwargs, message):
    with pytest.raises(ValueError, match=message):
        envs.make_env("Collision-v0", **kwargs)
