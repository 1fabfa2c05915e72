"""Vector environments of other packages, which step a batch by themselves."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from env_cases import Batch, Counter, Maker, Patched, Stranger
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from expire_span_rl import envs
from expire_span_rl.envs.infos import plain_column
from expire_span_rl.envs.sb3_adapter import SB3VecEnv
from expire_span_rl.spaces import Flattener, SpaceError


def test_a_vector_environment_of_another_package():
    """Flat entries, plain infos, no shaping, and the final observations of episodes that ended."""
    vector = envs.wrap_vec_env(Batch())
    assert list(vector.single_observation_space) == ["inner/clock", "inner/n", "previous_action", "previous_reward"]
    observation, _ = vector.reset(seed=2**40)
    assert vector.env.env.seed < 2**31
    clock = np.zeros(3, int)
    for step in range(12):
        actions = np.full(3, step % 3)
        observation, reward, terminated, _, infos = vector.step(actions)
        assert vector.observation_space.contains(observation)
        clock += 1
        done = clock == [2, 3, 4]
        np.testing.assert_array_equal(terminated, done)
        np.testing.assert_array_equal(reward, clock)
        assert "ragged" not in infos and "shaping" not in infos
        np.testing.assert_array_equal(infos["speed"], clock * 0.5)
        if done.any():
            final = infos["final_obs"]
            np.testing.assert_array_equal(final["inner/clock"][done, 0], clock[done])
            np.testing.assert_array_equal(final["inner/n"][done], 1 + clock[done])
            np.testing.assert_array_equal(final["previous_reward"][done], clock[done])
            np.testing.assert_array_equal(infos["final_info"]["is_success"][done], step % 3 == 1)
            assert "shaping" not in infos["final_info"]
        clock[done] = 0
        np.testing.assert_array_equal(observation["inner/clock"][:, 0], clock)
        np.testing.assert_array_equal(observation["previous_action"], np.where(done, 3, actions))


FAULTS = [
    ({"at": 1, "value": np.array([1.0, np.nan, 1.0])},
     "environment 1, step 4 after the reset: reward: expected a finite "),
    ({"at": 1, "value": np.zeros(2)}, "step 4 after the reset: reward: expected 3 numbers, got float64[2]"),
    ({"at": 2, "value": None}, "step 4 after the reset: step: expected 3 flags, got object[]"),
    ({"at": 0, "value": {"inner": {"clock": np.zeros((3, 1), np.float32), "n": np.array([1, 1, 10])}}},
     ("environment 2, step 4 after the reset: observation 'inner/n': "
      "expected numbers in its space Discrete(9, start=1), got 10")),
    ({"at": 1, "value": [1.0, [2.0], 3.0]}, "step 4 after the reset: reward: expected 3 numbers, got object[]"),
    ({"at": 3, "value": [True, [True]]}, "step 4 after the reset: step: expected 3 flags, got object[]"),
    ({"at": 4, "value": None}, "step 4 after the reset: step: expected infos as a dict, got NoneType"),
    ({"at": 4, "value": {"x": np.ones(3), "_x": True}}, "step 4 after the reset: infos['_x']: expected 3 flags, "),
    ({"at": 4, "value": {"final_obs": [{}] * 3}}, "infos['final_obs']: expected one batch of 3 observations, or an "),
    ({"at": 4, "value": {"final_obs": {"inner": {"clock": np.ones((1, 1)), "n": np.ones(1, int)}}}},
     "environment 0, step 4 after the reset: infos['final_obs']: expected one batch of 3 observations"),
    ({"at": 4, "value": {"final_obs": np.array([None])}},
     "infos['final_obs']: expected one batch of 3 observations, or an array of so many objects, got object[1]"),
    ({"at": 0, "value": {"inner": {"n": np.ones(3, int)}}}, "observation 'inner/clock': expected such a part, "),
]  # fmt: skip


@pytest.mark.parametrize(("fault", "message"), FAULTS)
def test_a_fault_of_a_vector_environment_is_an_error(fault, message):
    vector = envs.wrap_vec_env(Batch(**fault))
    vector.reset(seed=0)
    for _ in range(3):
        vector.step(np.zeros(3, int))
    with pytest.raises(envs.EnvironmentFailed) as caught:
        vector.step(np.zeros(3, int))
    assert str(caught.value).startswith("Batch") and message in str(caught.value)


@pytest.mark.parametrize("result", [0, {}, (0, None), (0, {}, {})])
def test_a_reset_that_gives_no_observation_and_infos_is_an_error(result):
    batch = Batch()
    later = envs.wrap_vec_env(Batch())
    later.env.env.reset = batch.reset = lambda **_: result
    with pytest.raises(envs.EnvError, match=r"^Batch: reset: expected \(observation, info\), got "):
        envs.wrap_vec_env(batch)
    with pytest.raises(envs.EnvironmentFailed, match=r"^Batch, reset: reset: expected \(observation, info\), got "):
        later.reset(seed=0)


@pytest.mark.parametrize("masks", [np.ones((2, 3)), {"a": 1}, 7])
def test_a_mask_for_fewer_environments_than_there_are_is_an_error(masks):
    batch = Batch(masks="info")
    batch._masks = lambda: {"action_mask": masks}
    with pytest.raises(envs.EnvError, match="^Batch: action_mask: expected a mask for each of 3 environments, got "):
        envs.wrap_vec_env(batch)


def test_texts_of_a_batch_are_as_many_as_environments():
    flatten = Flattener(spaces.Text(9))
    for texts in (None, ("a",), "ab", ("a", 1)):
        with pytest.raises(SpaceError, match="^observation 'observation': expected text, got "):
            flatten.batched(texts, 2)
    assert flatten.batched(("a", "b"), 2)["observation"].shape == (2, 9)


class _Own(Batch):
    def __init__(self, num_envs, masks=None):
        super().__init__(num_envs, masks)


def test_an_environments_own_vector_form_is_used_if_it_can_reset_in_the_same_step():
    gym.register("Own-v0", Counter, vector_entry_point=_Own)
    try:
        assert isinstance(envs.make_vec_env("Own-v0", 3).unwrapped, Batch)
        assert not isinstance(envs.make_vec_env("Own-v0", 3, vectorization="sync").unwrapped, Batch)
        limited = envs.make_vec_env("Own-v0", 3, max_episode_steps=2)  # which a batch does not take
        limited.reset(seed=0)
        limited.step(np.zeros(3, int))
        assert limited.step(np.zeros(3, int))[3].all()
        gym.registry["Own-v0"].max_episode_steps = 7
        assert not isinstance(envs.make_vec_env("Own-v0", 3).unwrapped, Batch)
        gym.registry["Own-v0"].max_episode_steps = None
        gym.registry["Own-v0"].kwargs = {"length": 2}
        assert envs.make_vec_env("Own-v0", 3).unwrapped.get_attr("length") == (2, 2, 2)
    finally:
        del gym.registry["Own-v0"]
    assert len(envs.make_vec_env("CartPole-v1", 2).unwrapped.envs) == 2  # its own resets in the next step


@pytest.mark.parametrize("parts", [[object()] * 3, 3])
def test_an_attribute_called_envs_means_nothing_in_a_vector_of_another_author(parts):
    batch = Batch()
    batch.envs = parts
    vector = envs.wrap_vec_env(batch)
    vector.reset(seed=0)
    assert "action_mask" not in vector.single_observation_space.spaces and vector.memory_horizon is None
    assert SB3VecEnv(vector).get_attr("envs") == [parts] * 3


@pytest.mark.parametrize("state", [{"mean": {"x": 1.0}}, {"mean": np.zeros(3)}])
def test_a_state_that_a_vector_of_another_author_saves_is_not_taken_for_that_of_its_episodes(state):
    """After an update that failed, all environments begin new episodes."""
    batch = Batch()
    batch.state_dict, batch.load_state_dict = (lambda: state), (lambda state: None)
    vector = envs.wrap_vec_env(batch)
    assert vector.state_dict() == {}
    with pytest.raises(envs.EnvError, match="^environment state: expected none for .*, got "):
        vector.load_state_dict(state)
    own = envs.make_vec_env("Corridor-v0", 3)
    own.reset(seed=0)
    assert own.state_dict().keys() == own.unwrapped.state_dict().keys() != set()


def _ending(vector, **infos):
    """The infos of the third step of `vector`, where `infos` replace those of episodes that end."""
    step = vector.step

    def replaced(actions):
        *result, own = step(actions)
        return *result, {**own, **(infos if "final_obs" in own else {})}

    vector.step = replaced
    wrapped = envs.wrap_vec_env(vector)
    wrapped.reset(seed=0)
    for _ in range(3):
        *_, last = wrapped.step(np.zeros(3, int))
    return last


def test_infos_of_a_vector_may_be_lists():
    final_info = {"is_success": [False, True, None], "_is_success": [False, True, False], "word": ["a", "b", "c"]}
    infos = _ending(Batch(), final_info=final_info, cards=[1, 2, 3], parts=[[1], [2], [3]])["final_info"]
    assert infos["is_success"].tolist() == [False, True, False] and infos["is_success"].dtype == bool
    assert infos["_is_success"].tolist() == [False, True, False] and infos["word"].tolist() == ["a", "b", "c"]
    infos = _ending(Batch(), cards=[1, 2, 3], parts=[[1], [2], [3]])
    assert infos["cards"].tolist() == [1, 2, 3] and "parts" not in infos


@pytest.mark.parametrize(
    ("final_info", "name", "expected"),
    [
        ([{"is_success": True}] * 3, "", "a dict of columns with 3 values each, got list"),
        ({"is_success": True}, "['is_success']", "a list or an array with a value for each of 3 environments, "),
        ({"is_success": np.ones(2)}, "['is_success']", "a list or an array with a value for each of 3 environments, "),
    ],
)
def test_a_success_that_nobody_could_read_is_refused(final_info, name, expected):
    with pytest.raises(envs.EnvironmentFailed) as caught:
        _ending(Batch(), final_info=final_info)
    start = f"Batch, environment 0, step 2 after the reset: infos['final_info']{name}: expected {expected}"
    assert str(caught.value).startswith(start)


VECTORS = [gym.vector.SyncVectorEnv, gym.vector.AsyncVectorEnv]
"""Gymnasium's own."""


def _gymnasium_vector(vector_class, make):
    return vector_class([make] * 2, autoreset_mode=gym.vector.AutoresetMode.SAME_STEP)


def test_infos_that_gymnasium_keeps_as_objects_are_passed_on():
    """NumPy's flags, and texts. What is neither is left out, row by row."""
    told = [np.bool_(True), "text", np.float32(0.5), None, [1]]

    def info(env):
        return {"is_success": np.bool_(env.t == 2), "word": "text", "ragged": None, "mixed": told[env.t]}

    make = Maker(Patched, method="info", replacement=info, length=2)
    vector = envs.wrap_vec_env(_gymnasium_vector(gym.vector.SyncVectorEnv, make))
    _, infos = vector.reset(seed=0)
    assert infos["word"].tolist() == ["text"] * 2 and infos["mixed"].dtype == bool and "ragged" not in infos
    vector.step(np.zeros(2, int))
    *_, infos = vector.step(np.zeros(2, int))
    final_info = infos["final_info"]
    assert final_info["is_success"].tolist() == [True] * 2 and final_info["is_success"].dtype == bool
    assert final_info["_is_success"].tolist() == [True] * 2
    values, mask = plain_column(np.array(told, object), np.array([True, False, True, True, True]))
    assert values.tolist() == [1, 0, 0.5, 0, 0] and mask.tolist() == [True, False, True, False, False]
    values, _ = plain_column(np.array(told, object), np.ones(5, bool))
    assert values.tolist()[:3] == [True, "text", 0.5]


@pytest.mark.parametrize("kind", ["Sync", "Async", "batch"])
def test_shaping_of_tasks_in_a_users_wrappers_is_not_in_the_previous_reward(kind):
    def make():
        return gym.wrappers.TransformReward(gym.make("Portal-v0", **kwargs), float)

    kwargs = {"progress_reward": 0.5, "min_rooms": 5, "max_rooms": 5}
    if kind == "batch":
        vector = gym.wrappers.vector.RecordEpisodeStatistics(gym.make_vec("Portal-v0", 2, **kwargs))
    else:
        vector = _gymnasium_vector(getattr(gym.vector, f"{kind}VectorEnv"), make)
    vector = envs.wrap_vec_env(vector)
    vector.reset(seed=0)
    vector.action_space.seed(0)
    paid = []
    for _ in range(200):
        observation, reward, *_ = vector.step(vector.action_space.sample())
        assert observation["previous_reward"].max() == 0
        paid.append(reward.max())
    vector.close()
    assert max(paid) == 0.5


@pytest.mark.parametrize("vector_class", VECTORS)
def test_the_memory_horizon_of_gymnasiums_vectors_is_that_of_their_environments(vector_class):
    for make, expected in ((Maker(Stranger), None), (Maker(_Horizon), 40), (_corridor, 30)):
        vector = envs.wrap_vec_env(_gymnasium_vector(vector_class, make))
        assert vector.memory_horizon == expected
        vector.close()
    with pytest.raises(envs.EnvError, match="memory_horizon: expected a whole number of steps of at least 1, or None"):
        envs.wrap_vec_env(_gymnasium_vector(vector_class, Maker(_Horizon, horizon="long")))
    batch = Batch()
    batch.memory_horizon = 7
    assert envs.wrap_vec_env(batch).memory_horizon == 7


class _Horizon(Stranger):
    def __init__(self, horizon=40):
        super().__init__()
        self.memory_horizon = horizon


def _corridor():
    return gym.make("Corridor-v0", max_length=30)


@pytest.mark.parametrize("has_wrapper", [False, True])
@pytest.mark.parametrize(
    "id, vector_class", [*((id, SyncVectorEnv) for id in envs.env_ids()), ("Corridor-v0", AsyncVectorEnv)]
)
def test_a_time_limit_around_a_task_in_gymnasiums_vector_ends_episodes_that_count(id, has_wrapper, vector_class):
    """As no success, with what the task says of them, as where a function makes each environment."""

    def make():
        env = gym.wrappers.TimeLimit(gym.make(id), 2)
        return gym.wrappers.TransformReward(env, lambda reward: reward) if has_wrapper else env

    vector = envs.wrap_vec_env(vector_class([make] * 2, autoreset_mode=AutoresetMode.SAME_STEP))
    last_infos = []
    for env in (vector, envs.make_vec_env(make, 2, vectorization="sync")):
        env.reset(seed=0)
        env.step(np.zeros(2, int))
        *_, truncated, infos = env.step(np.zeros(2, int))
        env.close()
        assert truncated.all() and not np.any(infos["final_info"].get("is_success", False))
        last_infos.append({name: column.tolist() for name, column in infos["final_info"].items()})
    assert last_infos[0] == last_infos[1] and vector.metadata["difficulty_key"] in last_infos[0]
