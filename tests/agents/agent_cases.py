"""Probe tasks whose right value and policy are known, and small learners for them. B environments.

The probes are registered with Gymnasium. `envs.make_vec_env` makes them by their id, as any other environment.
"""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from torch import nn

from expire_span_rl import envs
from expire_span_rl.agents import AGENTS, ForgettingConfig, Trainer
from expire_span_rl.agents.checkpoint import checkpoint_bytes, load_checkpoint
from expire_span_rl.agents.rollout import Rollout
from expire_span_rl.policies import KINDS, ActorCritic, core_config
from expire_span_rl.policies.actions import make_actions
from expire_span_rl.policies.transformer.layer import TransformerConfig

SMALL = {
    "expire_span": {"max_span": 16, "ramp": 4},
    "transformer_xl": {"window": 16},
    "adaptive_span": {"max_span": 16, "ramp": 4},
    # Two steps after a cue, the cue is compressed.
    "compressive": {"window": 0, "compression_rate": 2, "compressed_window": 4},
}
"""Settings of memory kinds. Other kinds have their default settings."""


class Probe(gym.Env):
    """Episodes of `steps` steps. A subclass gives observations and rewards. `cue`, 0 or 1, is random in each
    episode."""

    observation_space: spaces.Space = spaces.Box(-1, 1, (1,), np.float32)
    action_space = spaces.Discrete(2)
    steps: ClassVar[int] = 1

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.cue = int(self.np_random.integers(2))
        self.t = 0
        return self.observe(), {}

    def step(self, action):
        reward, is_wrong = self.reward(int(action))
        self.t += 1
        is_over = is_wrong or self.t == self.steps
        return self.observe(), reward, is_over, False, {"is_success": reward > 0} if is_over else {}

    def observe(self):
        return np.ones(1, np.float32)

    def reward(self, action: int) -> tuple[float, bool]:
        """The reward of step `self.t`, and whether the episode ends at once."""
        raise NotImplementedError


class ConstantReward(Probe):
    """One step, reward 1 for any action: the value is 1."""

    def reward(self, action):
        return 1.0, False


class DelayedReward(Probe):
    """Two steps, reward 1 for the second: values gamma and 1. The observation says which step it is."""

    steps = 2

    def observe(self):
        return np.array([self.t], np.float32)

    def reward(self, action):
        return float(self.t == 1), False


class RightAction(Probe):
    """One step, reward 1 for action 2 of 3."""

    action_space = spaces.Discrete(3)

    def reward(self, action):
        return float(action == 2), False


class Scaled(RightAction):
    """`RightAction` with a reward of `size` instead of 1."""

    def __init__(self, size: float = 1.0):
        self.size = size

    def reward(self, action):
        return self.size * float(action == 2), False


class ActionByObservation(Probe):
    """One step, reward 1 for the action that the observation, -1 or 1, asks for."""

    def observe(self):
        return np.array([2 * self.cue - 1], np.float32)

    def reward(self, action):
        return float(action == self.cue), False


class Recall(Probe):
    """Three steps. The cue is in the first observation only, and the last action must match it. Until then only action
    0 is allowed, so that the previous action in the observation cannot carry the cue. Without memory no policy is
    better than 50%."""

    observation_space = spaces.Discrete(4)  # the cue, then 2 at the second step and 3 at the last
    steps = 3

    def observe(self):
        return np.int64(self.cue if self.t == 0 else min(self.t, 2) + 1)

    def reward(self, action):
        is_last = self.t == self.steps - 1
        return float(is_last and action == self.cue), not is_last and action != 0


class RightNumbers(Probe):
    """One step, and a reward of a third for each of three numbers that is right. The right numbers are 2 (of 0 to 2),
    the cue, and 1 (of 1 and 2)."""

    observation_space = spaces.Discrete(2)
    action_space = spaces.MultiDiscrete([3, 2, 2], start=[0, 0, 1])

    def observe(self):
        return np.int64(self.cue)

    def step(self, action):
        reward = float(np.mean(np.asarray(action) == (2, self.cue, 1)))
        return self.observe(), reward, True, False, {"is_success": reward == 1}


class RightSwitches(Probe):
    """One step, and a reward of a half for each of two switches that is right. The first must be on, and the second as
    the observation says."""

    action_space = spaces.MultiBinary(2)

    def observe(self):
        return np.array([self.cue], np.float32)

    def step(self, action):
        reward = float(np.mean(np.asarray(action) == (1, self.cue)))
        return self.observe(), reward, True, False, {"is_success": reward == 1}


class RightReals(Probe):
    """One step with two numbers. The first, from 0 to 10, should be 7 or 2 as the observation says. The second, at
    least -1, should be -1. It is a success if both are within 1."""

    action_space = spaces.Box(np.array([0, -1], np.float32), np.array([10, np.inf], np.float32))

    def observe(self):
        return np.array([self.cue], np.float32)

    def step(self, action):
        error = np.abs(np.asarray(action, float) - (7 if self.cue else 2, -1))
        reward = float(-error.clip(max=10).mean() / 5)
        return self.observe(), reward, True, False, {"is_success": bool(error.max() < 1)}


class Forbidden(Probe):
    """Two steps, reward 1 for the only action that the mask in the info allows: the cue, then 2. Any other action ends
    the episode."""

    observation_space = spaces.Box(-1, 1, (1,), np.float32)
    action_space = spaces.Discrete(3)
    steps = 2

    def reset(self, *, seed=None, options=None):
        observation, _ = super().reset(seed=seed)
        return observation, self.mask()

    def mask(self):
        return {"action_mask": np.eye(3, dtype=np.int8)[self.cue if self.t == 0 else 2]}

    def step(self, action):
        is_right = self.mask()["action_mask"][action] == 1
        self.t += 1
        is_over = not is_right or self.t == self.steps
        return self.observe(), float(is_right), is_over, False, {**self.mask(), "is_success": bool(is_right)}


PROBES = (
    ConstantReward,
    DelayedReward,
    RightAction,
    ActionByObservation,
    Recall,
    RightNumbers,
    RightSwitches,
    RightReals,
    Forbidden,
    Scaled,
)
for _probe in PROBES:
    if f"Probe{_probe.__name__}-v0" not in gym.registry:
        gym.register(f"Probe{_probe.__name__}-v0", entry_point=_probe)


def make_policy(
    env: gym.vector.VectorEnv, kind: str, seed: int = 0, heads: float = 0.0, layers: int = 1, **settings
) -> ActorCritic:
    """A policy for `env` of width 32 with two attention heads. heads: standard deviation of the weights of the policy
    and value heads and of the memory kind; 0 leaves them as they are. settings: of the memory kind, in addition to
    those of SMALL."""
    small = {"num_heads": 2, "num_positions": 4} if core_config(kind) is TransformerConfig else {}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        policy = ActorCritic.for_spaces(
            env.single_observation_space,
            env.single_action_space,
            memory=kind,
            memory_config=KINDS[kind].Config(**{**SMALL.get(kind, {}), **settings}),
            core=core_config(kind)(width=32, num_layers=layers, **small),
        )
        if heads:
            kind_parameters = [p for layer in policy.core.layers for p in layer.kind.parameters()]
            for weight in (policy.policy_head.weight, policy.value_head.weight, *kind_parameters):
                torch.nn.init.normal_(weight, std=heads)
    return policy


def make_trainer(
    id: str,
    kind: str,
    updates: int,
    *,
    num_envs: int = 32,
    seed: int = 0,
    forgetting: ForgettingConfig | None = None,
    env_kwargs: dict | None = None,
    agent: str = "ppo",
    **settings,
) -> Trainer:
    """A trainer with settings that learn quickly, from rewards as they are and without forgetting by default. settings:
    of the agent."""
    env = envs.make_vec_env(id, num_envs, **(env_kwargs or {}))
    policy = make_policy(env, kind, seed)
    quick = {"num_steps": 12, "learning_rate": 3e-3, "ent_coef": 0.01, "final_ent_coef": 0.0, "num_minibatches": 2}
    quick |= {"normalize_rewards": False}
    quick |= {"clip_coef": 0.2, "update_epochs": 4} if agent == "ppo" else {}
    config = AGENTS[agent].Config(**{**quick, **settings})
    learner = AGENTS[agent].load()(policy, config, num_envs, seed)
    total = updates * config.num_steps * num_envs
    forgetting = forgetting or ForgettingConfig(forgetting=False)
    return Trainer(env, policy, learner, forgetting, total=total, seed=seed)


def train_until_learned(trainer: Trainer, id: str, success: float = 1.0) -> float:
    """Updates `trainer` until its policy has `success` or more in 200 episodes of `id`, which is looked at every 20
    updates, or until its training is over. Returns the success in 200 episodes."""
    while not trainer.done:
        trainer.update()
        if trainer.updates % 20 == 0 and play(trainer.policy, id, 200).mean() >= success:
            break
    return play(trainer.policy, id, 200).mean()


def play(policy: ActorCritic, id: str, episodes: int, num_envs: int = 50, **env_kwargs) -> np.ndarray:
    """Success in the first `episodes // num_envs` episodes of each environment, with deterministic actions."""
    env = envs.make_vec_env(id, num_envs, **env_kwargs)
    observation, _ = env.reset(seed=10_000)
    state = None
    start = np.ones(num_envs, bool)
    remaining = np.full(num_envs, episodes // num_envs)
    success = []
    while remaining.any():
        actions, state = policy.predict(observation, state, start, deterministic=True)
        observation, _, terminated, truncated, infos = env.step(actions)
        start = terminated | truncated
        counts = start & (remaining > 0)
        for row in np.flatnonzero(counts):
            success.append(float(infos["final_info"]["is_success"][row]))
        remaining -= counts
    return np.array(success)


def through_a_file(state: tuple[dict[str, torch.Tensor], dict[str, Any]], directory: Path) -> tuple[dict, dict]:
    """The state after it was saved to a checkpoint and loaded."""
    file = directory / "state.safetensors"
    file.write_bytes(checkpoint_bytes(*state))
    return load_checkpoint(file)


P = 0.75
"""Probability of action 0 under a policy with logits [ln 3, 0]."""
Q = 0.25
"""Probability of action 1."""
LN3 = math.log(3)


class Rows:
    """A memory that holds nothing but the indices of its environments."""

    def __init__(self, indices: torch.Tensor):
        self.indices = indices

    def rows(self, indices: torch.Tensor) -> Rows:
        return Rows(self.indices[indices])

    def oldest(self) -> torch.Tensor:
        return torch.zeros_like(self.indices)


class Table(nn.Module):
    """A policy with one distribution and one value for all observations. `span` stands for the memory kind's own
    parameters. `minibatches` has the environments of each unroll. drift: numbers to add to the logit of action 0, one
    per unroll. predicted: the reward predicted for each action."""

    def __init__(
        self,
        logits: tuple[float, ...] = (LN3, 0.0),
        value: float = 0.5,
        drift: list[float] | None = None,
        predicted: tuple[float, float] = (0.0, 0.0),
    ):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits, dtype=torch.float64))
        self.value = nn.Parameter(torch.tensor(value, dtype=torch.float64))
        self.span = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
        self.minibatches: list[list[int]] = []
        self.drift = drift
        self.predicted = torch.tensor(predicted, dtype=torch.float64)
        self.actions = make_actions({"kind": "discrete", "n": len(logits)})

    def predicted_rewards(self, rewards, actions):
        return (rewards * self.actions.encode(actions, rewards.dtype)).sum(-1)

    def mean_predicted_rewards(self, rewards, params):
        return (rewards * self.actions.mean_encoding(params)).sum(-1)

    def observe(self, observation):
        """Does nothing, since there is nothing to normalise."""

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        return [
            {"params": [self.logits, self.value], "lr": learning_rate, "scale": 1.0, "span_parameters": False},
            {"params": [self.span], "lr": learning_rate * 0.1, "scale": 0.1, "span_parameters": True},
        ]

    def unroll(self, observation, memory, episode_start, final=None, final_at=None, *, pressure=0.0):
        """An unroll whose memory loss is pressure * span."""
        assert observation["id"][0].tolist() == memory.indices.tolist()
        drift = torch.tensor([self.drift[len(self.minibatches)] if self.drift else 0.0, 0.0])
        self.minibatches.append(memory.indices.tolist())
        logits = (self.logits + drift).expand(*episode_start.shape, 2)  # [T,b,A]
        return SimpleNamespace(
            logits=logits,
            values=self.value.expand(episode_start.shape),
            final_values=self.value.expand(0 if final is None else len(final_at[0])),
            memory_loss=pressure * self.span,
            rewards=self.predicted.expand_as(logits),
        )


def make_rollout(rewards: list[list[float]], actions: list[list[int]], probabilities: list[list[float]]) -> Rollout:
    """[T,B] steps that are each an episode. Values are 0, so that rewards are the returns and the advantages.
    probabilities: of the actions, under the policy that acted."""
    reward = torch.tensor(rewards, dtype=torch.float64)
    action = torch.tensor(actions)
    p = torch.tensor(probabilities, dtype=torch.float64)
    always = torch.ones_like(action, dtype=torch.bool)
    empty = torch.zeros(0).long()
    is_action = torch.nn.functional.one_hot(action, 2).bool()
    ids = torch.arange(reward.shape[1]).expand(reward.shape)
    return Rollout(
        observation={"id": ids},
        episode_start=always,
        actions=action,
        logits=torch.where(is_action, p[..., None], 1 - p[..., None]).log(),
        values=torch.zeros_like(reward),
        next_values=torch.zeros_like(reward),
        rewards=reward,
        terminated=always,
        truncated=~always,
        reward_outputs=torch.zeros(*action.shape, 2, dtype=torch.float64),
        novelty=~always,
        memory=Rows(ids[0]),
        final_observation={"id": empty},
        final_at=(empty, empty),
    )
