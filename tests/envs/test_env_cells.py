"""Recognising images of MiniGrid's cells: by the environment and its wrappers, or by the user's setting."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from env_cases import Maker, Patched, Stranger
from gymnasium import spaces
from gymnasium.vector.utils import batch_space
from minigrid import wrappers
from minigrid.core import constants
from minigrid.envs import EmptyEnv

from expire_span_rl import envs
from expire_span_rl.cli.fields import field_docs
from expire_span_rl.envs import errors
from expire_span_rl.settings import RunConfig
from expire_span_rl.spaces import Cells, Words


class Passes(gym.ObservationWrapper):
    """A user's wrapper that does not change the image."""

    def __init__(self, env):
        super().__init__(env)
        self.observation_space = spaces.Dict({**env.observation_space.spaces, "x": spaces.Discrete(2)})

    def observation(self, observation):
        return {**observation, "x": 1}


class Scrambles(gym.ObservationWrapper):
    """A user's wrapper that keeps the space and changes the meaning of the numbers."""

    def observation(self, observation):
        return {**observation, "image": observation["image"] // 2}


CASES = {
    "bare": (lambda env: env, True),
    "image_only": (wrappers.ImgObsWrapper, True),
    "fully": (wrappers.FullyObsWrapper, True),
    "view_size": (lambda env: wrappers.ViewSizeWrapper(env, agent_view_size=5), True),
    "reseed": (wrappers.ReseedWrapper, True),
    "fully_and_image": (lambda env: wrappers.ImgObsWrapper(wrappers.FullyObsWrapper(env)), True),
    "statistics": (lambda env: gym.wrappers.RecordEpisodeStatistics(env), True),
    "passes": (Passes, True),
    "scrambles": (Scrambles, False),
    "rgb": (lambda env: wrappers.RGBImgPartialObsWrapper(env, tile_size=4), False),
    "rgb_of_the_same_shape": (lambda env: wrappers.RGBImgPartialObsWrapper(env, tile_size=1), False),
    "one_hot": (wrappers.OneHotPartialObsWrapper, False),
    "symbolic": (wrappers.SymbolicObsWrapper, False),
    "rgb_and_image": (lambda env: wrappers.ImgObsWrapper(wrappers.RGBImgObsWrapper(env)), False),
}


@pytest.mark.parametrize(("wrap", "expected"), CASES.values(), ids=CASES)
def test_cells_are_recognised_through_wrappers(wrap, expected):
    def make():
        return wrap(gym.make("MiniGrid-MemoryS7-v0"))

    for env in (envs.make_vec_env(make, 2), envs.make_env(make)):
        space = getattr(env, "single_observation_space", env.observation_space)["image"]
        assert isinstance(space, Cells) == expected
        env.reset(seed=0)


class Halves(gym.vector.VectorWrapper):
    """A user's wrapper of a vector, with another space. (Those of Gymnasium refuse SAME_STEP.)"""

    def __init__(self, env):
        super().__init__(env)
        image = spaces.Box(0, 127, (7, 7, 3), np.uint8)
        self.single_observation_space = spaces.Dict({**env.single_observation_space, "image": image})
        self.observation_space = batch_space(self.single_observation_space, 2)

    def reset(self, **options):
        observation, infos = super().reset(**options)
        return {**observation, "image": observation["image"] // 2}, infos

    def step(self, actions):
        observation, *result = super().step(actions)
        return {**observation, "image": observation["image"] // 2}, *result


VECTORS = {
    "plain": (lambda vector: vector, True),
    "statistics": (gym.wrappers.vector.RecordEpisodeStatistics, True),
    "halves": (Halves, False),
}


@pytest.mark.parametrize(("wrap", "expected"), VECTORS.values(), ids=VECTORS)
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_cells_are_recognised_in_gymnasiums_vectors(kind, wrap, expected):
    options = {"autoreset_mode": gym.vector.AutoresetMode.SAME_STEP}
    if kind == "async":
        options["shared_memory"] = False  # which holds no missions
    vector = envs.wrap_vec_env(wrap(gym.make_vec("MiniGrid-MemoryS7-v0", 2, kind, vector_kwargs=options)))
    assert isinstance(vector.single_observation_space["image"], Cells) == expected
    vector.close()
    rgb = [wrappers.RGBImgPartialObsWrapper]
    vector = envs.wrap_vec_env(gym.make_vec("MiniGrid-MemoryS7-v0", 2, kind, vector_kwargs=options, wrappers=rgb))
    assert not isinstance(vector.single_observation_space["image"], Cells)
    vector.close()


def test_a_user_may_have_cells_read_as_numbers():
    for made in (envs.make_env("MiniGrid-MemoryS7-v0", encoder="plain").observation_space,
                 envs.make_vec_env("MiniGrid-MemoryS7-v0", 2, encoder="plain").single_observation_space):  # fmt: skip
        assert made["image"] == spaces.Box(0, 255, (7, 7, 3), np.uint8) and not isinstance(made["image"], Cells)


@pytest.mark.parametrize("id", ["Corridor-v0", "Portal-v0", "Switch-v0"])
def test_tasks_are_read_as_cells_with_encoder_plain_too_as_the_help_says(id):
    def wrapped():
        return gym.wrappers.TransformReward(gym.make(id), float)

    for made in (envs.make_env(id, encoder="plain"), envs.make_env(wrapped, encoder="plain")):
        assert isinstance(made.observation_space["image"], Cells)
    assert isinstance(envs.make_vec_env(id, 2, encoder="plain").single_observation_space["image"], Cells)
    assert "plain: never as cells, except those of the toolkit's own tasks" in field_docs(RunConfig)["encoder"]


class Own(EmptyEnv):
    """An environment of a user's own."""


TABLES = {"object": "OBJECT_TO_IDX", "colour": "COLOR_TO_IDX", "state": "STATE_TO_IDX"}


@pytest.mark.parametrize("kind", TABLES)
def test_objects_that_cells_cannot_hold_are_seen_before_they_come_into_view(kind, monkeypatch):
    assert isinstance(envs.make_env(Own).observation_space["image"], Cells)
    monkeypatch.setitem(getattr(constants, TABLES[kind]), f"my {kind}", 11)
    monkeypatch.setattr(errors, "_WARNINGS", set())
    with pytest.warns(envs.EnvironmentWarning, match=f"^Own: MiniGrid's {kind} 'my {kind}' has number 11, ") as warned:
        vector = envs.make_vec_env(Own, 2)
    assert len(warned) == 1 and not isinstance(vector.single_observation_space["image"], Cells)
    assert isinstance(envs.make_env("MiniGrid-Empty-5x5-v0").observation_space["image"], Cells)  # it has none of them


def test_missions_are_words_and_the_gridworlds_have_cells():
    space = envs.make_vec_env("BabyAI-GoToLocal-v0", 2).single_observation_space
    assert isinstance(space["mission"], Words) and isinstance(space["image"], Cells)
    observation, _ = envs.make_env("BabyAI-GoToLocal-v0").reset(seed=0)
    assert (observation["mission"] > 0).sum() >= 4 and not observation["mission"][-1]
    for id in ("Corridor-v0", "Portal-v0", "Switch-v0"):
        for env in (envs.make_env(id), envs.make_vec_env(id, 2)):
            assert isinstance(getattr(env, "single_observation_space", env.observation_space)["image"], Cells)


GRID = spaces.Box(0, 255, (5, 4, 3), np.uint8)


def test_a_user_may_declare_that_an_image_holds_cells():
    def grid(env):
        return np.full((5, 4, 3), 3 if env.t < 3 else 9, np.uint8)

    def make():
        env = Patched("observe", grid)
        env.observation_space = GRID
        return env

    assert not isinstance(envs.make_vec_env(make, 2).single_observation_space["image"], Cells)
    vector = envs.make_vec_env(make, 2, encoder="cells")
    assert (
        vector.single_observation_space["image"]
        == Cells(5, 4)
        == envs.make_env(make, encoder="cells").observation_space["image"]
    )
    vector.reset(seed=0)
    vector.step(np.zeros(2, int))
    vector.step(np.zeros(2, int))
    with pytest.raises(envs.EnvironmentFailed, match="observation 'image': expected numbers in its space Cells, got 9"):
        vector.step(np.zeros(2, int))


def test_observations_that_cannot_hold_cells_are_refused():
    with pytest.raises(
        envs.EnvError, match="^encoder: expected one of 'auto', 'cells', 'plain', got 'cell'|: encoder: expected one"
    ):
        envs.make_vec_env("CartPole-v1", 2, encoder="cell")
    with pytest.raises(envs.EnvError, match="^CartPole-v1: encoder: 'cells' needs an entry 'image' of uint8 "):
        envs.make_vec_env("CartPole-v1", 2, encoder="cells")
    picture = Maker(Stranger, observation_space=spaces.Box(0, 255, (5, 4, 4), np.uint8))
    with pytest.raises(envs.EnvError, match="^Stranger: encoder: 'cells' needs"):
        envs.make_env(picture, encoder="cells")
