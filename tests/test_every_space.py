"""Every observation space and every action space, nested two deep: an agent trains for two updates, is evaluated, saved
and loaded, plays as it did before, and its memories are shown on a page."""

from __future__ import annotations

import functools
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from minigrid.core.mission import MissionSpace

import expire_span_rl as es

PARTS: dict[str, spaces.Space] = {
    "number": spaces.Box(-1, 1, (), np.float32),
    "vector": spaces.Box(-5, 300, (3,), np.float64),
    "matrix": spaces.Box(-np.inf, np.inf, (2, 3), np.float32),
    "whole_numbers": spaces.Box(-2, 7, (3,), np.int64),
    "many_whole_numbers": spaces.Box(0, 2**31 - 1, (2,), np.int32),
    "flags": spaces.Box(0, 1, (3,), np.bool_),
    "bytes": spaces.Box(0, 255, (4,), np.uint8),
    "picture": spaces.Box(0, 255, (16, 12, 3), np.uint8),
    "channels_first": spaces.Box(0, 255, (2, 40, 40), np.uint8),
    "grey": spaces.Box(0, 255, (12, 16), np.uint8),
    "discrete": spaces.Discrete(4),
    "discrete_from_3": spaces.Discrete(4, start=3),
    "huge_discrete": spaces.Discrete(10**6, start=-5),
    "multi_discrete": spaces.MultiDiscrete([[2, 3], [4, 2]], start=[[0, 1], [-1, 0]]),
    "multi_binary": spaces.MultiBinary([2, 2]),
    "text": spaces.Text(12),
    "mission": MissionSpace(lambda colour: f"go to the {colour} ball", [["red", "blue"]]),
}
OBSERVATIONS = {
    **PARTS,
    **{
        f"tuple_of_{name}": spaces.Tuple((spaces.Discrete(2), spaces.Dict({"x": part}))) for name, part in PARTS.items()
    },
    "everything": spaces.Dict({"inner": spaces.Dict(PARTS), "pair": spaces.Tuple((PARTS["text"], PARTS["vector"]))}),
    "masked": spaces.Dict({"observation": PARTS["vector"], "action_mask": spaces.Box(0, 1, (4,), np.int8)}),
}
ACTIONS: dict[str, spaces.Space] = {
    "discrete": spaces.Discrete(4),
    "discrete_from_-1": spaces.Discrete(4, start=-1),
    "multi_discrete": spaces.MultiDiscrete([3, 2]),
    "multi_discrete_matrix": spaces.MultiDiscrete([[3, 2], [2, 2]], start=[[1, 0], [0, -1]]),
    "multi_binary": spaces.MultiBinary(3),
    "box": spaces.Box(-2, 2, (2,), np.float32),
    "box_matrix": spaces.Box(np.array([[0.0], [-np.inf]]), np.array([[np.inf], [5.0]]), dtype=np.float64),
}


class Anything(gym.Env):
    """Random observations of a space; episodes of 3 to 8 steps; every action must be in its space, and be allowed."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}

    def __init__(self, observation: str = "vector", action: str = "discrete"):
        self.observation_space, self.action_space = OBSERVATIONS[observation], ACTIONS[action]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self.observation_space.seed(int(self.np_random.integers(2**31)))
        self.left = int(self.np_random.integers(3, 9))
        return self._observe(), {}

    def step(self, action: Any):
        assert self.action_space.contains(action), action
        assert self.mask is None or self.mask[int(action)] == 1
        self.left -= 1
        reward = float(np.sum(np.asarray(action, float)).clip(-3, 3))
        return self._observe(), reward, self.left == 0, False, {"note": "done", "is_success": reward > 0}

    def _observe(self) -> Any:
        observation, self.mask = self.observation_space.sample(), None
        if isinstance(observation, dict) and "action_mask" in observation:
            observation["action_mask"][int(self.np_random.integers(4))] = 1
            self.mask = observation["action_mask"]
        return observation


def test_every_action_space_has_a_case():
    from expire_span_rl.policies.actions import ACTIONS as REGISTERED
    from expire_span_rl.policies.actions import action_spec
    from expire_span_rl.policies.encoders import ENCODERS

    kinds = {action_spec(space)["kind"] for space in ACTIONS.values()}
    assert kinds == REGISTERED.keys()
    read = small(functools.partial(Anything, "everything")).policy.config.observation
    assert {entry["kind"] for entry in read.values()} | {"mask", "cells"} == ENCODERS.keys()


def small(make: Any, memory: str = "expire_span", agent: Any = es.PPO) -> Any:
    return agent(memory, make, num_envs=4, num_steps=8, num_minibatches=2, width=16, seed=3, torch_threads=1)


def actions_of(policy: Any, make: Any, steps: int = 20) -> list[np.ndarray]:
    """What a policy does in two environments, wrapped; most likely actions, predicted step by step."""
    env = es.make_vec_env(make, 2)
    observation, _ = env.reset(seed=9)
    state, start, done = None, np.ones(2, bool), []
    for _ in range(steps):
        actions, state = policy.predict(observation, state, start, deterministic=True)
        done.append(actions)
        observation, _, terminated, truncated, _ = env.step(actions)
        start = terminated | truncated
    env.close()
    return done


@pytest.mark.parametrize(
    "observation, action, agent",
    [
        *((name, "discrete", es.PPO) for name in OBSERVATIONS),
        *(
            ("everything" if i % 2 else "vector", name, agent)
            for i, agent in enumerate((es.PPO, es.IMPALA))
            for name in ACTIONS
        ),
    ],
)
def test_it_trains_evaluates_is_saved_loaded_and_shown(observation, action, agent, tmp_path):
    make = functools.partial(Anything, observation, action)
    model = small(make, agent=agent)
    before = {name: tensor.detach().clone() for name, tensor in model.policy.named_parameters()}
    model.learn(2 * 8 * 4)
    after = dict(model.policy.named_parameters())
    assert model.num_timesteps == 64 and model.metrics["train/skipped_updates"] == 0
    assert all(torch.isfinite(tensor).all() for tensor in model.policy.state_dict().values())
    assert not torch.equal(after["policy_head.weight"], before["policy_head.weight"])
    figures = es.evaluate(model, make, episodes=6, num_envs=3)
    assert figures["episodes"] == 6 and 3 <= figures["mean_episode_length"] <= 8
    model.save(tmp_path / "p.safetensors")
    loaded = es.load(tmp_path / "p.safetensors")
    again = es.evaluate(loaded, make, episodes=6, num_envs=3)
    timed = {"path", "acting_steps_per_second"}
    assert {k: v for k, v in again.items() if k not in timed} == {k: v for k, v in figures.items() if k not in timed}
    for one, other in zip(actions_of(model.policy, make), actions_of(loaded, make), strict=True):
        np.testing.assert_array_equal(one, other)
    if action.startswith("box"):
        assert not torch.equal(after["actions.log_std"], before["actions.log_std"])
    page = es.show(loaded, make, seed=1)
    page.save(tmp_path / "memory.html")
    assert "<html" in (tmp_path / "memory.html").read_text()[:200] and "iframe" in page._repr_html_()
    model.close()


@pytest.mark.parametrize("observation", OBSERVATIONS)
def test_predict_takes_the_environments_own_observation(observation):
    """A policy that acts on an environment as it is does what it does on the wrapped one, told the rewards: the state
    has the previous action."""
    make = functools.partial(Anything, observation)
    policy = small(make).policy
    with torch.no_grad():
        torch.nn.init.normal_(policy.policy_head.weight)
    taken = []
    for env in (make(), es.make_env(make)):
        current, _ = env.reset(seed=5)
        state, reward, over, actions = None, None, False, []
        while not over:
            action, state = policy.predict(current, state, [state is None], deterministic=True, reward=reward)
            current, reward, terminated, truncated, _ = env.step(action)
            over = terminated or truncated
            actions.append(int(action))
        taken.append(actions)
    assert taken[0] == taken[1] and len(taken[0]) >= 3
