"""Probe tasks whose right value and policy are known, and small learners for them. B environments.

The probes are reached as any foreign environment is, by `envs.make_vec_env` and their id.
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
    "compressive": {"window": 0, "compression_rate": 2, "compressed_window": 4},  # two steps on a cue is compressed
}
"""Settings of memory kinds; one that is not here gets its default Config."""


class Probe(gym.Env):
    """Episodes of `steps` steps; a subclass gives observations and rewards, and `cue`, 0 or 1, is drawn per episode."""

    observation_space: spaces.Space = spaces.Box(-1, 1, (1,), np.float32)
    action_space = spaces.Discrete(2)
    steps: ClassVar[int] = 1

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.cue, self.t = int(self.np_random.integers(2)), 0
        return self.observe(), {}

    def step(self, action):
        reward, wrong = self.reward(int(action))
        self.t += 1
        over = wrong or self.t == self.steps
        return self.observe(), reward, over, False, {"is_success": reward > 0} if over else {}

    def observe(self):
        return np.ones(1, np.float32)

    def reward(self, action: int) -> tuple[float, bool]:
        """Of the step `self.t`, and whether the episode ends at once."""
        raise NotImplementedError


class ConstantReward(Probe):
    """One step, reward 1, whatever is done: the value is 1."""

    def reward(self, action):
        return 1.0, False


class DelayedReward(Probe):
    """Two steps, reward 1 for the second: values gamma and 1, told apart by the observation."""

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
    """Three steps: the cue is in the first observation only, the last action must match it. Until then only action 0 is
    allowed, so that the previous action, which is part of the observation, cannot carry the cue: without memory no
    policy can do better than 50%."""

    observation_space = spaces.Discrete(4)  # the cue, then 2 at the second step and 3 at the last
    steps = 3

    def observe(self):
        return np.int64(self.cue if self.t == 0 else min(self.t, 2) + 1)

    def reward(self, action):
        last = self.t == self.steps - 1
        return float(last and action == self.cue), not last and action != 0


class RightNumbers(Probe):
    """One step, a reward of a third for each of three numbers that is right: 2 of 3 values, the cue, and 1 from 1
    on."""

    observation_space = spaces.Discrete(2)
    action_space = spaces.MultiDiscrete([3, 2, 2], start=[0, 0, 1])

    def observe(self):
        return np.int64(self.cue)

    def step(self, action):
        reward = float(np.mean(np.asarray(action) == (2, self.cue, 1)))
        return self.observe(), reward, True, False, {"is_success": reward == 1}


class RightSwitches(Probe):
    """One step, a reward of a half for each of two switches that is right: on, and as the observation."""

    action_space = spaces.MultiBinary(2)

    def observe(self):
        return np.array([self.cue], np.float32)

    def step(self, action):
        reward = float(np.mean(np.asarray(action) == (1, self.cue)))
        return self.observe(), reward, True, False, {"is_success": reward == 1}


class RightReals(Probe):
    """One step. Of two numbers, from 0 to 10 and of at least -1, the first should be 7 or 2 as the observation says and
    the second at its bound: success within 1 of both."""

    action_space = spaces.Box(np.array([0, -1], np.float32), np.array([10, np.inf], np.float32))

    def observe(self):
        return np.array([self.cue], np.float32)

    def step(self, action):
        off = np.abs(np.asarray(action, float) - (7 if self.cue else 2, -1))
        return self.observe(), float(-off.clip(max=10).mean() / 5), True, False, {"is_success": bool(off.max() < 1)}


class Forbidden(Probe):
    """Two steps, reward 1 for the only action that the mask in the info allows, the cue or 2; another ends the
    episode."""

    observation_space = spaces.Box(-1, 1, (1,), np.float32)
    action_space = spaces.Discrete(3)
    steps = 2

    def reset(self, *, seed=None, options=None):
        observation, _ = super().reset(seed=seed)
        return observation, self.allowed()

    def allowed(self):
        return {"action_mask": np.eye(3, dtype=np.int8)[self.cue if self.t == 0 else 2]}

    def step(self, action):
        right = self.allowed()["action_mask"][action] == 1
        self.t += 1
        over = not right or self.t == self.steps
        return self.observe(), float(right), over, False, {**self.allowed(), "is_success": bool(right)}


PROBES = (
    ConstantReward, DelayedReward, RightAction, ActionByObservation, Recall, RightNumbers, RightSwitches, RightReals, Forbidden, Scaled,
)  # fmt: skip
for _probe in PROBES:
    if f"Probe{_probe.__name__}-v0" not in gym.registry:
        gym.register(f"Probe{_probe.__name__}-v0", entry_point=_probe)


def make_policy(
    env: gym.vector.VectorEnv, kind: str, seed: int = 0, heads: float = 0.0, layers: int = 1, **settings
) -> ActorCritic:
    """A policy for `env` of width 32 with two heads; `heads`: standard deviation of the heads' weights and the memory
    kind's own, which are as they begin if 0; `settings`: of the memory kind, beside those of SMALL."""
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
            own = [p for layer in policy.core.layers for p in layer.kind.parameters()]
            for weight in (policy.policy_head.weight, policy.value_head.weight, *own):
                torch.nn.init.normal_(weight, std=heads)
    return policy


def make_trainer(
    id: str,
    kind: str,
    updates: int,
    num_envs: int = 32,
    seed: int = 0,
    forgetting: ForgettingConfig | None = None,
    env_kwargs: dict | None = None,
    agent: str = "ppo",
    **settings,
) -> Trainer:
    """A trainer of quick settings without forgetting; `settings`: of the agent."""
    env = envs.make_vec_env(id, num_envs, **(env_kwargs or {}))
    policy = make_policy(env, kind, seed)
    quick = {"num_steps": 12, "learning_rate": 3e-3, "ent_coef": 0.01, "final_ent_coef": 0.0, "num_minibatches": 2}
    quick |= {"clip_coef": 0.2, "update_epochs": 4} if agent == "ppo" else {}
    config = AGENTS[agent].Config(**{**quick, **settings})
    learner = AGENTS[agent].load()(policy, config, num_envs, seed)
    total = updates * config.num_steps * num_envs
    return Trainer(env, policy, learner, forgetting or ForgettingConfig(forgetting=False), total, seed)


def played(policy: ActorCritic, id: str, episodes: int, num_envs: int = 50, **env_kwargs) -> np.ndarray:
    """Success (or return, where there is no success) of each environment's first `episodes // num_envs` episodes,
    deterministic."""
    env = envs.make_vec_env(id, num_envs, **env_kwargs)
    observation, _ = env.reset(seed=10_000)
    state, start = None, np.ones(num_envs, bool)
    left, out = np.full(num_envs, episodes // num_envs), []
    while left.any():
        actions, state = policy.predict(observation, state, start, deterministic=True)
        observation, _, terminated, truncated, infos = env.step(actions)
        start = terminated | truncated
        for row in np.flatnonzero(start & (left > 0)):
            out.append(float(infos["final_info"]["is_success"][row]))
        left -= start & (left > 0)
    return np.array(out)


def through_a_file(state: tuple[dict[str, torch.Tensor], dict[str, Any]], directory: Path) -> tuple[dict, dict]:
    """The state as a checkpoint brings it back: what is only in memory does not survive."""
    file = directory / "state.safetensors"
    file.write_bytes(checkpoint_bytes(*state))
    return load_checkpoint(file)


P, Q = 0.75, 0.25  # the probabilities of actions 0 and 1 under a policy with logits [ln 3, 0]
LN3 = math.log(3)


class Rows:
    """A memory that knows only whose it is."""

    def __init__(self, indices: torch.Tensor):
        self.indices = indices

    def rows(self, indices: torch.Tensor) -> Rows:
        return Rows(self.indices[indices])

    def oldest(self) -> torch.Tensor:
        return torch.zeros_like(self.indices)


class Table(nn.Module):
    """One distribution and one value for all observations; `span` stands for the memory kind's own parameters. `seen`
    has the environments of each minibatch; `drift`, if given, is added to the logit of action 0, call by call."""

    def __init__(self, logits: tuple[float, ...] = (LN3, 0.0), value: float = 0.5, drift: list[float] | None = None):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits, dtype=torch.float64))
        self.value = nn.Parameter(torch.tensor(value, dtype=torch.float64))
        self.span = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
        self.seen: list[list[int]] = []
        self.drift = drift
        self.actions = make_actions({"kind": "discrete", "n": len(logits)})

    def predicted_rewards(self, rewards, actions):
        return (rewards * self.actions.encode(actions, rewards.dtype)).sum(-1)

    def observe(self, observation):
        """There is nothing to normalise."""

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        return [
            {"params": [self.logits, self.value], "lr": learning_rate, "scale": 1.0, "span_parameters": False},
            {"params": [self.span], "lr": learning_rate * 0.1, "scale": 0.1, "span_parameters": True},
        ]

    def unroll(self, observation, memory, episode_start, final=None, final_at=None, pressure=0.0) -> SimpleNamespace:
        """The memory loss is pressure * span."""
        assert observation["id"][0].tolist() == memory.indices.tolist()
        drift = torch.tensor([self.drift[len(self.seen)] if self.drift else 0.0, 0.0])
        self.seen.append(memory.indices.tolist())
        logits = (self.logits + drift).expand(*episode_start.shape, 2)  # [T,b,A]
        nothing = torch.zeros_like(logits)  # what an auxiliary loss may ask for
        return SimpleNamespace(
            logits=logits,
            values=self.value.expand(episode_start.shape),
            final_values=self.value.expand(0 if final is None else len(final_at[0])),
            memory_loss=pressure * self.span,
            rewards=nothing,
        )


def make_rollout(rewards: list[list[float]], actions: list[list[int]], acted: list[list[float]]) -> Rollout:
    """[T,B] steps that are each an episode, values 0, so that rewards are the returns and the advantages; `acted`: the
    probability that the acting policy gave the action taken."""
    reward = torch.tensor(rewards, dtype=torch.float64)
    action = torch.tensor(actions)
    p = torch.tensor(acted, dtype=torch.float64)
    zero, yes, none = torch.zeros_like(reward), torch.ones_like(action, dtype=torch.bool), torch.zeros(0).long()
    chosen = torch.nn.functional.one_hot(action, 2).bool()
    logits = torch.where(chosen, p[..., None], 1 - p[..., None]).log()
    ids = torch.arange(reward.shape[1]).expand(reward.shape)
    return Rollout(
        {"id": ids}, yes, action, logits, zero, zero, reward, yes, ~yes, Rows(ids[0]), {"id": none}, (none, none)
    )
