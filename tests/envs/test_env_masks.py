"""Action masks: given in the observation, in the info or by a method, they become the same entry."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from env_cases import ACTIONS, Batch, Counter, Maker, Patched
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.vector.utils import batch_space

from expire_span_rl import envs
from expire_span_rl.envs.masks import ActionMasks
from expire_span_rl.spaces import Mask, SpaceError, mask_size

MASKED = ["discrete", "discrete_from_minus_1", "multi_discrete", "multi_discrete_matrix", "multi_binary"]
SOURCES = ["observation", "info", "method"]


class Masked(Counter):
    """Gives an action mask. For each number of an action, all values are allowed except one, which depends on the
    step."""

    def __init__(self, source: str, action_space: spaces.Space = ACTIONS["discrete"], mask: Any = None, **kwargs: Any):
        super().__init__(action_space=action_space, **kwargs)
        self.source = source
        self.mask = mask
        size = mask_size(action_space) or 2
        if source == "observation":
            self.observation_space = spaces.Dict(
                {"clock": self.observation_space, "action_mask": spaces.MultiBinary(size)}
            )
        if source == "method":
            self.action_masks = self.allowed

    def allowed(self) -> Any:
        if self.mask is not None and self.t:
            return self.mask
        space = self.action_space
        allowed = []
        nvec = space.nvec.ravel() if isinstance(space, spaces.MultiDiscrete) else [getattr(space, "n", 2)]
        sizes = [2] * int(np.prod(space.shape)) if isinstance(space, spaces.MultiBinary) else nvec
        for size in sizes:
            part = np.ones(int(size), bool)
            part[self.t % int(size)] = False
            allowed.append(part)
        return np.concatenate(allowed)

    def observe(self) -> Any:
        clock = super().observe()
        return {"clock": clock, "action_mask": np.int8(self.allowed())} if self.source == "observation" else clock

    def info(self) -> dict:
        return {"action_mask": self.allowed()} if self.source == "info" else {}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("name", MASKED)
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_mask_becomes_the_same_entry_from_every_source(source, name, wrapped):
    def make():
        env = Masked(source, ACTIONS[name], length=3)
        return gym.wrappers.TimeLimit(env, 100) if wrapped else env

    vector = envs.make_vec_env(make, 2)
    single = envs.wrap_env(make())
    size = {"discrete": 3, "discrete_from_minus_1": 3, "multi_discrete": 7, "multi_discrete_matrix": 14}.get(name, 6)
    assert vector.single_observation_space["action_mask"] == Mask(size)
    assert vector.single_observation_space == single.observation_space
    observation, _ = vector.reset(seed=0)
    reference = Masked("info", ACTIONS[name])
    vector.action_space.seed(0)
    for t in range(1, 8):
        reference.t = (t - 1) % 3
        for b in range(2):
            assert observation["action_mask"][b].tolist() == reference.allowed().tolist()
        assert observation["action_mask"].dtype == np.int8
        observation, _, terminated, _, infos = vector.step(vector.action_space.sample())
        assert vector.observation_space.contains(observation)
        if terminated[0]:
            reference.t = 3
            final_mask = [1] * size if source == "method" else reference.allowed().tolist()  # which is not asked then
            assert infos["final_obs"]["action_mask"][0].tolist() == final_mask
            assert "action_mask" not in infos["final_info"]


@pytest.mark.parametrize("source", SOURCES)
def test_a_mask_without_an_allowed_action_is_an_error(source):
    """Except at the end of an episode, where no action follows: there the mask becomes one that allows all."""
    vector = envs.make_vec_env(lambda: Masked(source, length=1, mask=np.zeros(3, np.int8)), 2)
    vector.reset(seed=0)
    *_, infos = vector.step(np.zeros(2, int))
    assert infos["final_obs"]["action_mask"].tolist() == [[1, 1, 1]] * 2
    with pytest.raises(
        envs.EnvError, match="^Masked: action_mask: expected at least one action that is allowed, got none$"
    ):
        envs.make_vec_env(lambda: Masked(source, mask=np.zeros(3, np.int8)), 2)


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_a_method_is_not_asked_for_the_mask_of_an_episode_that_is_over(vectorization):
    """An environment may refuse to answer then."""
    vector = envs.make_vec_env(Maker(Refusing, source="method", length=2), 2, vectorization=vectorization)
    observation, _ = vector.reset(seed=0)
    for _ in range(5):
        observation, _, terminated, _, infos = vector.step(observation["action_mask"].argmax(-1))
        if terminated.any():
            assert infos["final_obs"]["action_mask"].tolist() == [[1, 1, 1]] * 2
    vector.close()


class Refusing(Masked):
    """Raises an error when it is asked for a mask after its episode."""

    def allowed(self) -> Any:
        if self.t >= self.length:
            raise RuntimeError("the game is over")
        return super().allowed()


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.ones(4), "expected 3 numbers, got float64[4]"),
        (np.array([1, 2, 0]), "expected zeros and ones, got 2"),
        (np.array([1, np.nan, 0]), "expected zeros and ones, got nan"),
        ("yes", "expected 3 numbers, got <U3[]"),
        (np.zeros(3), "expected at least one action that is allowed, got none"),
    ],
)
def test_an_invalid_mask_is_an_error(mask, message):
    with pytest.raises(SpaceError) as caught:
        ActionMasks(spaces.Discrete(3))(mask)
    assert str(caught.value) == f"action_mask: {message}"


def test_a_mask_must_allow_a_value_of_every_number_of_an_action():
    masks = ActionMasks(spaces.MultiDiscrete([2, 3]))
    assert masks(np.array([1, 0, 0, 1, 1], bool)).tolist() == [1, 0, 0, 1, 1]
    assert masks((np.array([1, 0]), np.array([0, 1, 1]))).tolist() == [1, 0, 0, 1, 1]  # a Tuple of masks
    with pytest.raises(SpaceError, match="allowed for number 1 of the action, got none$"):
        masks([1, 1, 0, 0, 0])
    assert masks.allowed_action(np.array([0, 1, 0, 0, 1])).tolist() == [1, 2]
    assert ActionMasks(spaces.Discrete(3, start=-1)).allowed_action(np.array([0, 1, 1])) == 0


@pytest.mark.parametrize("source", SOURCES)
def test_continuous_actions_have_no_mask(source):
    def make():
        return Masked(source, ACTIONS["box"], mask=np.ones(2))

    for call in (lambda: envs.make_env(make), lambda: envs.make_vec_env(make, 2)):
        with pytest.raises(
            envs.EnvError, match="^Masked: action mask: expected an action space of whole numbers, got a mask"
        ):
            call()


def test_the_mask_of_taxi_and_of_long_trajectories():
    """Distraction and occlusion hide the observation, but not the mask."""
    reference = envs.make_vec_env("Taxi-v4", 2)
    for wrap in ("stretch=2", "occlude=0-99"):
        vector = envs.make_vec_env("Taxi-v4", 2, wraps=[wrap])
        observation, _ = vector.reset(seed=0)
        expected, _ = reference.reset(seed=0)
        np.testing.assert_array_equal(observation["action_mask"], expected["action_mask"])
        actions = expected["action_mask"].argmax(-1)
        expected, *_ = reference.step(actions)
        observation, *_ = vector.step(actions)
        np.testing.assert_array_equal(observation["action_mask"], expected["action_mask"])
        assert 0 < observation["action_mask"].sum() < 12


@pytest.mark.parametrize("source", ["observation", "info"])
def test_masks_of_a_batch(source):
    vector = envs.wrap_vec_env(Batch(masks=source))
    assert list(vector.single_observation_space)[:3] == ["action_mask", "clock", "n"]
    observation, _ = vector.reset(seed=0)
    clock = np.zeros(3, int)
    for _ in range(9):
        allowed = observation["action_mask"]
        assert (allowed.argmin(-1) == clock % 3).all() and (allowed.sum(-1) == 2).all()
        observation, _, terminated, _, infos = vector.step(allowed.argmax(-1))
        clock += 1
        if source == "observation" and terminated.any():
            assert (infos["final_obs"]["action_mask"].argmin(-1) == clock % 3)[terminated].all()
        clock[terminated] = 0


@pytest.mark.parametrize("vector_class", [SyncVectorEnv, AsyncVectorEnv])
def test_a_gymnasium_vector_whose_environments_have_the_method_is_refused(vector_class):
    vector = vector_class([Maker(Masked, source="method")] * 2, autoreset_mode=AutoresetMode.SAME_STEP)
    with pytest.raises(envs.EnvError, match="VectorEnv: action_masks: expected a function that makes one environment"):
        envs.wrap_vec_env(vector)
    vector.close()


@pytest.mark.parametrize("vector_class", [SyncVectorEnv, AsyncVectorEnv])
def test_a_gymnasium_vector_whose_environments_have_the_method_may_give_masks_in_its_infos(vector_class):
    made = vector_class([Maker(Both, source="info", length=3)] * 2, autoreset_mode=AutoresetMode.SAME_STEP)
    vector = envs.wrap_vec_env(made)
    observation, _ = vector.reset(seed=0)
    for clock in (0, 1, 2, 0, 1):
        assert (observation["action_mask"] == (np.arange(3) != clock)).all()
        observation, *_ = vector.step(observation["action_mask"].argmax(-1))
    vector.close()


class Both(Masked):
    """Gives the masks of its infos by the method, too."""

    def action_masks(self) -> Any:
        return self.allowed()


def _after_steps(actions="discrete"):
    return Patched("info", lambda env: {"action_mask": np.ones(3)} if env.t else {}, action_space=ACTIONS[actions])


def _batch_after_steps(actions="discrete"):
    vector = Batch(masks="info")
    vector._masks = lambda: {"action_mask": np.ones((3, 3))} if vector.steps else {}
    vector.single_action_space = ACTIONS[actions]
    vector.action_space = batch_space(ACTIONS[actions], 3)
    return vector


@pytest.mark.parametrize("make", [_after_steps, _batch_after_steps])
def test_masks_that_only_steps_give_are_refused(make):
    """The first action of an episode would have none."""
    with pytest.raises(envs.EnvError, match="^(Patched|Batch): info: expected 'action_mask' in that of a reset too, "):
        envs.make_env(make) if make is _after_steps else envs.wrap_vec_env(make())


def test_infos_of_continuous_actions_may_call_anything_after_steps_an_action_mask():
    """It cannot be a mask, so that nothing is missing after a reset."""
    batch = _batch_after_steps("box")
    batch.step = lambda actions: Batch.step(batch, np.zeros(3))
    for space in (
        envs.make_env(lambda: _after_steps("box")).observation_space,
        envs.make_vec_env(lambda: _after_steps("box"), 2).single_observation_space,
        envs.wrap_vec_env(batch).single_observation_space,
    ):
        assert "action_mask" not in space.spaces


def test_makers_of_masked_environments_work_in_processes():
    vector = envs.make_vec_env(Maker(Masked, source="info"), 2, vectorization="async")
    observation, _ = vector.reset(seed=0)
    assert observation["action_mask"].tolist() == [[0, 1, 1]] * 2
    assert vector.step(np.ones(2, int))[0]["action_mask"].tolist() == [[1, 0, 1]] * 2
    vector.close()
