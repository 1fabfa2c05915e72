"""What `predict` refuses: numbers outside their space, masks that allow nothing, wrong starts and rewards."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from policy_cases import make_policy

from expire_span_rl.policies import ActorCritic
from expire_span_rl.spaces import Cells, Mask

WHOLE = {
    "digits": gym.spaces.MultiDiscrete([3, 4], start=[1, 0]),
    "flags": gym.spaces.MultiBinary(2),
    "codes": gym.spaces.Box(0, 5, (3,), np.int8),
    "picture": gym.spaces.Box(0, 255, (8, 8, 3), np.uint8),
    "cells": Cells(2, 1),
    "cue": gym.spaces.Discrete(3),
}


@pytest.fixture(scope="module")
def whole_policy() -> ActorCritic:
    """Reads whole numbers of all kinds."""
    return ActorCritic.for_spaces(gym.spaces.Dict(WHOLE), gym.spaces.Discrete(2), memory="none")


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("digits", [4, 0], "expected a number from 1 to 3, got 4"),
        ("digits", [[1, 0], [1, -1]], "expected a number from 0 to 3, got -1"),
        ("digits", [1.5, 0], "expected whole numbers, got 1.5"),
        ("flags", [0, 2], "expected a number from 0 to 1, got 2"),
        ("codes", [0, 0, 6], "expected a number from 0 to 5, got 6"),
        ("picture", np.full((8, 8, 3), 0.5), "expected whole numbers, got 0.5"),
        ("picture", np.full((8, 8, 3), 256), "expected a number from 0 to 255, got 256"),
        ("cells", np.array([[[10, 5, 3]], [[0, 6, 0]]], np.uint8), "expected a number from 0 to 5, got 6"),
        ("cue", 0.5, "expected whole numbers, got 0.5"),
    ],
)
def test_whole_numbers_outside_their_space_are_refused(whole_policy, name, value, message):
    observation = {key: space.sample() for key, space in WHOLE.items()}
    state = whole_policy.predict(observation)[1]
    if np.ndim(value) > len(WHOLE[name].shape):
        observation = {key: np.stack([value, value]) for key, value in observation.items()}
    with pytest.raises(ValueError, match=f"^observation '{name}': {message}$"):
        whole_policy.predict({**observation, name: value}, state)


def test_whole_numbers_at_the_bounds_are_read_whatever_their_type(whole_policy):
    low = {"digits": [1, 0], "flags": [0, 0], "codes": [0] * 3, "picture": np.zeros((8, 8, 3)), "cue": 0.0,
           "cells": np.zeros((2, 1, 3))}  # fmt: skip
    high = {"digits": [3, 3.0], "flags": np.ones(2, bool), "codes": [5] * 3, "picture": np.full((8, 8, 3), 255.0),
            "cue": 2, "cells": torch.tensor([[[10, 5, 3]] * 1] * 2)}  # fmt: skip
    for observation in (low, high):
        assert whole_policy.predict(observation)[0] in (0, 1)


@pytest.mark.parametrize(
    "action_space, masks, message",
    [
        (gym.spaces.Discrete(3), [0, 0, 0], ""),
        (gym.spaces.MultiDiscrete([2, 3]), [1, 1, 0, 0, 0], " for number 1 of the action"),
        (gym.spaces.MultiBinary(2), [[1, 1, 1, 1], [0, 0, 1, 1]], " for number 0 of the action in environment 1"),
    ],
)
def test_a_mask_that_allows_nothing_is_refused(action_space, masks, message):
    seen = {"seen": gym.spaces.Box(-1, 1, (2,)), "action_mask": Mask(np.shape(masks)[-1])}
    policy = ActorCritic.for_spaces(gym.spaces.Dict(seen), action_space, memory="none")
    observation = np.zeros((*np.shape(masks)[:-1], 2))
    with pytest.raises(ValueError, match=f"^action_masks: expected at least one allowed action{message}, got none$"):
        policy.predict(observation, action_masks=np.array(masks))
    with pytest.raises(ValueError, match="^observation 'action_mask': expected a number from 0 to 1, got 2$"):
        policy.predict(observation, action_masks=np.full_like(masks, 2))
    policy.predict(observation, action_masks=np.ones_like(masks))


@pytest.mark.parametrize("other", [[0, 1, 0], [0, 0, 0]], ids=["another goes on", "all have ended"])
def test_a_vector_loop_goes_on_where_an_episode_has_ended_with_a_mask_of_zeros(other):
    """As Gymnasium's NEXT_STEP vectors give it: the environment ignores the action. Others keep their masks."""
    seen = {"seen": gym.spaces.Box(-1, 1, (2,)), "action_mask": Mask(3)}
    policy = ActorCritic.for_spaces(gym.spaces.Dict(seen), gym.spaces.Discrete(3), memory="none")
    masks, state = np.array([other, [0, 0, 0]], np.int8), None
    actions = []
    for _ in range(30):
        action, state = policy.predict(np.zeros((2, 2)), state, action_masks=masks)
        actions.append(action)
    assert {int(action[0]) for action in actions} == ({1} if any(other) else {0, 1, 2})
    assert {int(action[1]) for action in actions} == {0, 1, 2}
    assert masks.tolist() == [other, [0, 0, 0]]


@pytest.mark.parametrize("shape", [(), (1,)])
def test_one_start_and_one_reward_count_for_all_environments(shape):
    policy = make_policy("gru", dtype=torch.float32)
    own = {"image": (np.arange(2 * 27) % 4).astype(np.uint8).reshape(2, 3, 3, 3)}
    for is_start in (True, False):
        results = []
        for size in (shape, (2,)):
            _, state = policy.predict(own, deterministic=True)
            starts, rewards = np.full(size, is_start).tolist(), np.full(size, 0.5).tolist()
            results.append(policy.predict(own, state, starts, deterministic=True, reward=rewards))
        (actions, state), (expected, expected_state) = results
        assert actions.tolist() == expected.tolist()
        assert state.reward.tolist() == expected_state.reward.tolist()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            {"episode_start": np.zeros(3, bool)},
            r"episode_start: expected a truth value, or 2, one for each environment, got an array of shape \(3,\)",
        ),
        ({"episode_start": "no"}, "episode_start: .*, got 'no'"),
        ({"episode_start": ["a", "b"]}, r"episode_start: .*, got \['a', 'b'\]"),
        ({"episode_start": np.array(["a", "b"])}, r"episode_start: .*, got array\(\['a', 'b'\].*"),
        (
            {"reward": [1.0, 2.0, 3.0]},
            r"reward: expected a number, or 2, one for each environment, got \[1.0, 2.0, 3.0\]",
        ),
        ({"reward": np.zeros((2, 1))}, r"reward: .*, got an array of shape \(2, 1\)"),
        ({"reward": "much"}, "reward: .*, got 'much'"),
        ({"reward": [[1], [2, 3]]}, r"reward: .*, got \[\[1\], \[2, 3\]\]"),
        ({"reward": np.nan}, "reward: expected finite numbers of float32, got nan"),
        ({"reward": [0.0, 1e300]}, r"reward: expected finite numbers of float32, got 1e\+300"),
    ],
)
def test_starts_and_rewards_that_do_not_fit_are_refused_and_the_state_still_serves(arguments, message):
    policy = make_policy("gru", dtype=torch.float32)
    own, starts = {"image": np.zeros((2, 3, 3, 3), np.uint8)}, np.array([False, True])
    _, state = policy.predict(own, deterministic=True)
    with pytest.raises(ValueError, match=f"^{message}$"):
        policy.predict(own, state, **arguments)
    expected = policy.predict(own, state, starts, deterministic=True, reward=[1, 2])[0]
    _, state = policy.predict(own, deterministic=True)
    again = policy.predict(own, state, torch.tensor(starts), deterministic=True, reward=torch.tensor([1.0, 2.0]))[0]
    assert expected.tolist() == again.tolist()
