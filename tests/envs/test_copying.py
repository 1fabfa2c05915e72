"""Copying's batched rules against a slow reference, one step and environment at a time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expire_span_rl import envs
from expire_span_rl.envs.copying import Copying


class PlainCopying:
    """The lists of all steps of an episode. Noise has no symbol here, since only the core draws it."""

    def __init__(self, string: list[int], delay: int, vocabulary: int):
        n = len(string)
        silence = vocabulary
        self.places = [*range(n), *[n] * delay, *range(n)]
        self.symbols = [*string, *[None] * delay, *[silence] * n]
        self.targets = [silence] * (n + delay) + string
        self.is_query = [False] * (n + delay) + [True] * n
        self.right = 0
        self.t = 0

    def step(self, action: int) -> tuple[float, bool]:
        if self.is_query[self.t]:
            self.right += action == self.targets[self.t]
        self.t += 1
        terminated = self.t == len(self.targets)
        return (self.right / sum(self.is_query) if terminated else 0.0), terminated


@settings(deadline=None, max_examples=50)
@given(
    length=st.integers(1, 4),
    delay=st.integers(1, 6),
    vocabulary=st.integers(2, 4),
    seed=st.integers(0, 10**6),
    place=st.booleans(),
    data=st.data(),
)
def test_the_core_agrees_with_the_reference(length, delay, vocabulary, seed, place, data):
    core = Copying(3, delay=delay, min_delay=1, length=length, vocabulary=vocabulary, place=place)
    rows = np.arange(3)
    core.reset(rows, seed + rows)

    def make_reference(row: int) -> PlainCopying:
        return PlainCopying(core.string[row].tolist(), int(core.delay[row]), vocabulary)

    references = [make_reference(row) for row in rows]
    num_episodes = 0
    for _ in range(2 * (2 * length + delay)):
        observation = core.observe()
        assert core.target().tolist() == [reference.targets[reference.t] for reference in references]
        assert core.decisions().tolist() == [reference.is_query[reference.t] for reference in references]
        assert core.facts().tolist() == [reference.t if reference.t < length else -1 for reference in references]
        for row, reference in enumerate(references):
            assert core.single_observation_space.contains(observation[row])
            assert observation[row, 1:].tolist() == ([reference.places[reference.t]] if place else [])
            symbol = observation[row, 0]
            expected = reference.symbols[reference.t]
            assert symbol == expected if expected is not None else 0 <= symbol < vocabulary
        actions = np.array(data.draw(st.lists(st.integers(0, vocabulary), min_size=3, max_size=3)))
        if data.draw(st.booleans()):
            actions = core.target()
        reward, terminated, truncated = core.step(actions)
        outcome = [reference.step(int(action)) for reference, action in zip(references, actions, strict=True)]
        assert [*zip(reward.tolist(), terminated.tolist(), strict=True)] == outcome and not truncated.any()
        info = core.final_info()
        for row in np.flatnonzero(terminated):
            right = references[row].right
            assert info["right"][row] == right and info["asked"][row] == length
            assert info["is_success"][row] == (right == length) and info["delay"][row] == core.delay[row]
        if terminated.any():
            core.reset(np.flatnonzero(terminated))
            references = [
                make_reference(row) if terminated[row] else reference for row, reference in enumerate(references)
            ]
            num_episodes += terminated.sum()
    assert num_episodes >= 3


def test_strings_noise_and_delays_have_their_distributions():
    core = Copying(4000, delay=64, min_delay=1, delay_distribution="log_uniform")
    rows = np.arange(4000)
    core.reset(rows, rows)
    np.testing.assert_allclose(np.bincount(core.string.ravel(), minlength=10) / core.string.size, 0.1, atol=0.01)
    assert core.delay.min() == 1 and core.delay.max() == 64
    np.testing.assert_allclose((core.delay <= 7).mean(), np.log(8) / np.log(65), atol=0.03)  # half of the octaves
    for _ in range(20):
        core.step(core.target())
    noise = core.observe()[core.delay > 1, 0]
    np.testing.assert_allclose(np.bincount(noise, minlength=10) / len(noise), 0.1, atol=0.03)


def test_the_delay_is_fixed_by_default_and_drawn_in_training():
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
def test_values_out_of_range_give_an_error_of_one_line(kwargs, message):
    with pytest.raises(ValueError, match=message):
        envs.make_env("Copy-v0", **kwargs)
