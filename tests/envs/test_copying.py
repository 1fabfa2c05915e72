"""Copying's batched rules against a plain transcription, one step and environment at a time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expire_span_rl import envs
from expire_span_rl.envs.copying import Copying


class PlainCopying:
    """The whole stream written down before it begins; noise is taken from the core, which alone draws it."""

    def __init__(self, string: list[int], delay: int, vocabulary: int):
        n, silence = len(string), vocabulary
        self.places = [*range(n), *[n] * delay, *range(n)]
        self.symbols = [*string, *[None] * delay, *[silence] * n]
        self.targets = [silence] * (n + delay) + string
        self.asked = [False] * (n + delay) + [True] * n
        self.right, self.t = 0, 0

    def step(self, action: int) -> tuple[float, bool]:
        if self.asked[self.t]:
            self.right += action == self.targets[self.t]
        self.t += 1
        over = self.t == len(self.targets)
        return (self.right / sum(self.asked) if over else 0.0), over


@settings(deadline=None, max_examples=50)
@given(
    length=st.integers(1, 4),
    delay=st.integers(1, 6),
    vocabulary=st.integers(2, 4),
    seed=st.integers(0, 10**6),
    place=st.booleans(),
    data=st.data(),
)
def test_the_core_is_the_plain_task(length, delay, vocabulary, seed, place, data):
    core = Copying(3, delay=delay, min_delay=1, length=length, vocabulary=vocabulary, place=place)
    rows = np.arange(3)
    core.reset(rows, seed + rows)

    def fresh(row: int) -> PlainCopying:
        return PlainCopying(core.string[row].tolist(), int(core.delay[row]), vocabulary)

    plain = [fresh(row) for row in rows]
    ended = 0
    for _ in range(2 * (2 * length + delay)):
        seen = core.observe()
        assert core.target().tolist() == [one.targets[one.t] for one in plain]
        assert core.decisions().tolist() == [one.asked[one.t] for one in plain]
        assert core.facts().tolist() == [one.t if one.t < length else -1 for one in plain]
        for row, one in enumerate(plain):
            assert core.single_observation_space.contains(seen[row])
            assert seen[row, 1:].tolist() == ([one.places[one.t]] if place else [])
            symbol = one.symbols[one.t]
            assert seen[row, 0] == symbol if symbol is not None else 0 <= seen[row, 0] < vocabulary
        actions = np.array(data.draw(st.lists(st.integers(0, vocabulary), min_size=3, max_size=3)))
        if data.draw(st.booleans()):
            actions = core.target()
        reward, terminated, truncated = core.step(actions)
        outcome = [one.step(int(action)) for one, action in zip(plain, actions, strict=True)]
        assert [*zip(reward.tolist(), terminated.tolist(), strict=True)] == outcome and not truncated.any()
        said = core.final_info()
        for row in np.flatnonzero(terminated):
            assert said["right"][row] == plain[row].right and said["asked"][row] == length
            assert said["is_success"][row] == (plain[row].right == length) and said["delay"][row] == core.delay[row]
        if terminated.any():
            core.reset(np.flatnonzero(terminated))
            plain = [fresh(row) if terminated[row] else one for row, one in enumerate(plain)]
            ended += terminated.sum()
    assert ended >= 3


def test_strings_noise_and_delays_are_spread_evenly():
    core, rows = Copying(4000, delay=64, min_delay=1, delay_distribution="log_uniform"), np.arange(4000)
    core.reset(rows, rows)
    np.testing.assert_allclose(np.bincount(core.string.ravel(), minlength=10) / core.string.size, 0.1, atol=0.01)
    assert core.delay.min() == 1 and core.delay.max() == 64
    np.testing.assert_allclose((core.delay <= 7).mean(), np.log(8) / np.log(65), atol=0.03)  # half of the octaves
    for _ in range(20):
        core.step(core.target())
    noise = core.observe()[core.delay > 1, 0]
    np.testing.assert_allclose(np.bincount(noise, minlength=10) / len(noise), 0.1, atol=0.03)


def test_a_fixed_delay_is_the_default_and_training_draws_delays():
    env = envs.make_vec_env("Copy-v0", 8, delay=5)
    env.reset(seed=0)
    assert env.unwrapped.core.delay.tolist() == [5] * 8 and env.memory_horizon == 25
    assert envs.training_kwargs("Copy-v0") == {"min_delay": 1, "delay_distribution": "log_uniform"}


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"delay": 0}, "^delay: expected a whole number from 1 to 1000000000, got 0$"),
        ({"delay": 3, "min_delay": 4}, "^min_delay: expected a whole number from 0 to 3, got 4$"),
        ({"vocabulary": 1}, "^vocabulary: expected a whole number from 2 to 64, got 1$"),
        ({"length": 0}, "^length: expected a whole number from 1 to 1000, got 0$"),
        ({"delay_distribution": "log"}, "^delay_distribution: expected one of 'uniform', 'log_uniform', got 'log'$"),
        ({"place": 2}, "^place: expected one of True, False, got 2$"),
    ],
)
def test_values_out_of_range_are_told_in_one_line(kwargs, message):
    with pytest.raises(ValueError, match=message):
        envs.make_env("Copy-v0", **kwargs)
