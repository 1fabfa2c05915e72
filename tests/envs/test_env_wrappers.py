"""Previous action and reward: values, single against vector form, toolkit tasks and other packages' environments."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import SyncVectorEnv

from expire_span_rl import envs
from expire_span_rl.envs.env_wrappers import PreviousActionReward, VectorPreviousActionReward

B = 3
OTHER_PACKAGES = ["CartPole-v1", "MiniGrid-MemoryS7-v0", "FrozenLake-v1", "Pendulum-v1", "Blackjack-v1", "Taxi-v4"]


def assert_row(batched: dict, row: int, single: dict) -> None:
    assert batched.keys() == single.keys()
    for key, value in single.items():
        assert batched[key].dtype == np.asarray(value).dtype, key
        np.testing.assert_array_equal(batched[key][row], value)


@pytest.mark.parametrize("id", [*envs.env_ids(), *OTHER_PACKAGES])
def test_vector_form_is_the_single_form(id):
    """Each environment of a vector against a single one that the test resets: values, final observations, spaces."""
    vector = envs.make_vec_env(id, B)
    singles = [envs.make_env(id) for _ in range(B)]
    assert vector.single_observation_space == singles[0].observation_space
    vector.action_space.seed(0)
    observation, _ = vector.reset(seed=4)
    for row, env in enumerate(singles):
        assert_row(observation, row, env.reset(seed=4 + row)[0])
    endings = 0
    for _ in range(1100):
        actions = vector.action_space.sample()
        observation, reward, terminated, truncated, infos = vector.step(actions)
        assert vector.observation_space.contains(observation)
        for row, env in enumerate(singles):
            expected, *outcome, info = env.step(actions[row])
            assert [reward[row], terminated[row], truncated[row]] == outcome
            assert env.observation_space.contains(expected)
            if terminated[row] or truncated[row]:
                endings += 1
                assert infos["_final_obs"][row]
                assert_row(infos["final_obs"], row, expected)
                for key, value in info.items():
                    assert infos["final_info"][key][row] == value
                expected, _ = env.reset()
            assert_row(observation, row, expected)
    assert endings > 0


def test_previous_action_and_reward_by_value():
    vector = envs.make_vec_env("Corridor-v0", 2, min_length=3, max_length=3)
    observation, _ = vector.reset(seed=0)
    assert list(observation) == ["image", "previous_action", "previous_reward"]
    assert observation["image"].shape == (2, 3, 3, 3) and observation["image"].dtype == np.uint8
    assert (observation["previous_action"].dtype, observation["previous_reward"].dtype) == (np.int64, np.float32)
    assert observation["previous_action"].tolist() == [4, 4]
    assert observation["previous_reward"].tolist() == [0, 0]
    for _ in range(2):
        observation, *_ = vector.step(np.array([1, 3]))
        assert observation["previous_action"].tolist() == [1, 3]
    right = 0 if vector.unwrapped.core.door[0] < 0 else 2
    observation, reward, terminated, _, infos = vector.step(np.array([right, 1]))
    assert (reward.tolist(), terminated.tolist()) == ([1, 0], [True, False])
    final = infos["final_obs"]
    assert (final["previous_action"][0], final["previous_reward"][0]) == (right, 1)
    assert observation["previous_action"].tolist() == [4, 1]
    assert observation["previous_reward"].tolist() == [0, 0]


def test_the_final_observation_has_the_reward_of_the_last_step():
    vector = envs.make_vec_env("Corridor-v0", 1, min_length=3, max_length=3)
    rewards = []
    for action in (0, 2):
        vector.reset(seed=0)
        for move in (1, 1, action):
            *_, infos = vector.step(np.array([move]))
        rewards.append(float(infos["final_obs"]["previous_reward"][0]))
    assert sorted(rewards) == [0, 1]


def test_keys_of_the_observation():
    keys = {id: list(envs.make_env(id).observation_space) for id in OTHER_PACKAGES}
    previous = ["previous_action", "previous_reward"]
    assert sorted(keys["CartPole-v1"]) == ["observation", *previous]
    assert sorted(keys["FrozenLake-v1"]) == ["observation", *previous]
    assert sorted(keys["MiniGrid-MemoryS7-v0"]) == ["direction", "image", "mission", *previous]


class Shifted(gym.Env):
    """Its actions begin at 5. Its observation is the action."""

    observation_space = spaces.Box(0, 9, (1,), np.float32)
    action_space = spaces.Discrete(3, start=5)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action):
        return np.array([action], np.float32), 0.5, False, False, {}


def test_actions_that_do_not_begin_at_zero_are_counted_from_zero():
    single = PreviousActionReward(Shifted())
    vector = VectorPreviousActionReward(SyncVectorEnv([Shifted], autoreset_mode="SameStep"))
    assert single.reset()[0]["previous_action"] == 3 == vector.reset()[0]["previous_action"][0]
    assert single.step(7)[0]["previous_action"] == 2 == vector.step(np.array([7]))[0]["previous_action"][0]
    assert single.step(7)[0]["previous_reward"] == 0.5


def test_the_wrapper_saves_and_restores_the_state():
    vector, restored = (envs.make_vec_env("Corridor-v0", B) for _ in range(2))
    vector.reset(seed=0)
    vector.step(np.array([1, 1, 1]))
    restored.reset(seed=7)
    restored.load_state_dict(vector.state_dict())
    for action in (1, 3, 1, 1):
        observation, *_ = vector.step(np.full(B, action))
        restored_observation, *_ = restored.step(np.full(B, action))
        for key, value in observation.items():
            np.testing.assert_array_equal(value, restored_observation[key])
    assert vector.memory_horizon == 200

    stateless = envs.make_vec_env("CartPole-v1", 1)
    assert stateless.state_dict() == {} and stateless.memory_horizon is None
    stateless.load_state_dict({})
    with pytest.raises(envs.EnvError, match=r"^environment state: expected none for SyncEnvs.*, got \['steps'\]$"):
        stateless.load_state_dict({"steps": np.zeros(1)})


def test_invalid_environments_and_resets_are_refused():
    next_step = SyncVectorEnv([lambda: gym.make("CartPole-v1")])
    with pytest.raises(envs.EnvError, match="^autoreset_mode: expected SAME_STEP, got AutoresetMode.NEXT_STEP$"):
        VectorPreviousActionReward(next_step)
    with pytest.raises(
        envs.EnvError,
        match="^CartPole-v1: observation space: expected no part called 'previous_action', since the policy adds one ",
    ):
        PreviousActionReward(envs.make_env("CartPole-v1"))
    vector = envs.make_vec_env("Corridor-v0", B)
    with pytest.raises(envs.EnvError, match="^reset_mask: expected a reset of all environments, got a mask$"):
        vector.reset(options={"reset_mask": np.ones(B, bool)})
