"""The fast view of MiniGrid: the same observations as MiniGrid's own, and only where they are MiniGrid's own."""

from __future__ import annotations

import copy

import gymnasium as gym
import minigrid  # noqa: F401, it registers its environments
import numpy as np
import pytest
from minigrid.core.grid import Grid
from minigrid.minigrid_env import MiniGridEnv

from expire_span_rl.envs.gym_adapter import adapt
from expire_span_rl.envs.minigrid_view import gen_obs, speed_up

STEPS = 40
IDS = [id for id in gym.registry if id.startswith(("MiniGrid-", "BabyAI-")) and "WFC" not in id]


def minigrid_env(id: str = "MiniGrid-DoorKey-6x6-v0", **kwargs) -> MiniGridEnv:
    return gym.make(id, disable_env_checker=True, **kwargs).unwrapped


def assert_same(fast: dict, slow: dict) -> None:
    assert fast["image"].dtype == slow["image"].dtype
    assert np.array_equal(fast["image"], slow["image"])
    assert {**fast, "image": None} == {**slow, "image": None}
    assert fast["image"].flags.writeable


@pytest.mark.parametrize("id", IDS)
def test_every_environment_shows_the_same(id: str) -> None:
    slow, fast = minigrid_env(id), minigrid_env(id)
    assert speed_up(fast)
    rng = np.random.default_rng(0)
    assert_same(fast.reset(seed=3)[0], slow.reset(seed=3)[0])
    for _ in range(STEPS):
        action = int(rng.integers(slow.action_space.n))
        (fast_observation, *fast_rest), (slow_observation, *slow_rest) = fast.step(action), slow.step(action)
        assert_same(fast_observation, slow_observation)
        assert fast_rest == slow_rest
        if fast_rest[1] or fast_rest[2]:
            assert_same(fast.reset()[0], slow.reset()[0])


@pytest.mark.parametrize("direction", range(4))
@pytest.mark.parametrize("through", [False, True])
@pytest.mark.parametrize("size", [3, 9])
def test_each_place_and_direction_and_what_is_carried(direction: int, through: bool, size: int) -> None:
    env = minigrid_env(see_through_walls=through, agent_view_size=size)
    env.reset(seed=1)
    key = next(cell for cell in env.grid.grid if cell is not None and cell.type == "key")
    env.agent_dir = direction
    for carrying in (None, key):
        env.carrying = carrying
        for place in np.ndindex(env.width, env.height):  # walls and corners too
            env.agent_pos = place
            assert_same(gen_obs(env), MiniGridEnv.gen_obs(env))


def test_the_adapter_uses_it_and_reads_the_world_as_it_is_now() -> None:
    env = adapt(gym.make("MiniGrid-DoorKey-6x6-v0"))
    inner = env.unwrapped
    assert inner.gen_obs.__func__ is gen_obs
    env.reset(seed=0)
    inner.grid.set(*(int(x) for x in inner.front_pos), None)  # whatever was there is gone
    assert inner.gen_obs()["image"][3, 5].tolist() == [1, 0, 0]


def test_a_copy_sees_its_own_world() -> None:
    env = minigrid_env()
    speed_up(env)
    env.reset(seed=0)
    twin = copy.deepcopy(env)
    env.step(env.actions.left)
    assert twin.gen_obs()["direction"] != env.gen_obs()["direction"]


def test_an_own_view_is_kept() -> None:
    class OwnView(type(minigrid_env())):
        def get_view_exts(self, agent_view_size=None):
            return super().get_view_exts(agent_view_size)

    class OwnGrid(Grid):
        def slice(self, topX, topY, width, height):
            return Grid(width, height)  # empty

    env = OwnView()
    assert not speed_up(env)
    assert "gen_obs" not in vars(env)
    assert not speed_up(gym.make("CartPole-v1"))

    env = minigrid_env()
    assert speed_up(env)
    assert not speed_up(env)  # once is enough
    env.reset(seed=0)
    assert (env.gen_obs()["image"][..., 0] > 1).any()
    env.grid.__class__ = OwnGrid
    assert (env.gen_obs()["image"][..., 0] == 1).all()
