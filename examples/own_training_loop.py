"""The memory module alone in a PPO loop of your own: a Transformer with Expire-Span between an encoder and heads.

    PYTHONPATH=. python examples/own_training_loop.py       # about a minute

T steps, B environments. A memory is a value: a rollout begins with one memory and ends with another, and the module
itself holds no state. Acting goes step by step. Learning takes the whole rollout at once, and computes the same.
"""

from __future__ import annotations

import sys
from typing import NamedTuple

import gymnasium as gym
import torch
from my_envs import Recall
from torch import Tensor, nn
from torch.distributions import Categorical

from expire_span_rl.policies.memory.expire_span import ExpireSpan
from expire_span_rl.policies.settings import ExpireSpanConfig, TransformerConfig
from expire_span_rl.policies.transformer import Transformer

T = 42
B = 32
WIDTH = 32
HEADS = 2
GAMMA = 0.99
LAMBDA = 0.9
CLIP = 0.2
EPOCHS = 3
SUCCESS_TARGET = 0.95


class Agent(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(5 + 13 + 1, WIDTH)
        core = TransformerConfig(width=WIDTH, num_heads=HEADS, num_layers=1, qk_norm=False)
        span = ExpireSpanConfig(span_model="sigmoid", max_span=64, ramp=4)  # the paper's spans, which have no state
        self.memory = Transformer(core, lambda: ExpireSpan(WIDTH, HEADS, span))
        self.policy = nn.Linear(WIDTH, 4)
        self.value = nn.Linear(WIDTH, 1)
        nn.init.zeros_(self.policy.weight)
        nn.init.zeros_(self.value.weight)

    def heads(self, features):
        return Categorical(logits=self.policy(features)), self.value(features)[..., 0]


class Rollout(NamedTuple):
    """[T,B] each; the observations are encoded, [T,B,19]."""

    x: Tensor
    start: Tensor
    action: Tensor
    log_prob: Tensor
    value: Tensor
    reward: Tensor
    end: Tensor


def encode(observation):
    """The environments' nested observation -> [B,19]."""
    suit = torch.as_tensor(observation["card"]["suit"])
    rank = torch.as_tensor(observation["card"]["rank"])
    asked = torch.as_tensor(observation["asked"]).float()
    return torch.cat([torch.eye(5)[suit], torch.eye(13)[rank], asked], -1)


@torch.no_grad()
def collect(agent, envs, observation, start, acting):
    """One rollout. Returns it, the value of the observation after it [B], that observation, and its `start` [B]."""
    steps = []
    for _ in range(T):
        x = encode(observation)
        distribution, value = agent.heads(agent.memory.step(agent.encoder(x), acting, start))
        action = distribution.sample()
        observation, reward, terminated, truncated, _ = envs.step(action.numpy())
        end = torch.as_tensor(terminated | truncated)
        reward = torch.as_tensor(reward).float()
        log_prob = distribution.log_prob(action)
        steps.append(Rollout(x, start, action, log_prob=log_prob, value=value, reward=reward, end=end))
        start = end
    # `memory.value` reads the memory and writes nothing.
    features = agent.memory.value(agent.encoder(encode(observation)), acting, torch.arange(B))
    _, next_value = agent.heads(features)
    rollout = Rollout(**{name: torch.stack([getattr(step, name) for step in steps]) for name in Rollout._fields})
    return rollout, next_value, observation, start


def estimate_advantages(rollout, next_value):
    """Generalised advantage estimation: [T,B]. Nothing follows the end of an episode, since Recall always terminates. A
    truncated episode would need the value of its final observation instead."""
    advantages = torch.zeros(T, B)
    advantage = torch.zeros(B)
    for t in reversed(range(T)):
        is_continuing = ~rollout.end[t]
        delta = rollout.reward[t] + GAMMA * next_value * is_continuing - rollout.value[t]
        advantage = delta + GAMMA * LAMBDA * advantage * is_continuing
        advantages[t] = advantage
        next_value = rollout.value[t]
    return advantages


def compute_loss(agent, rollout, memory, advantages, pressure):
    """The loss of one parallel pass over the rollout, from the memory that it began with."""
    returns = advantages + rollout.value
    advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    no_final_features = torch.zeros(0, WIDTH)
    no_final_steps = (torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))
    features = agent.encoder(rollout.x)
    out = agent.memory.unroll(features, memory, rollout.start, no_final_features, no_final_steps, pressure=pressure)
    distribution, values = agent.heads(out.features)
    ratio = (distribution.log_prob(rollout.action) - rollout.log_prob).exp()
    policy_loss = -torch.minimum(ratio * advantages, ratio.clamp(1 - CLIP, 1 + CLIP) * advantages).mean()
    value_loss = (values - returns).square().mean()
    # `out.loss` is the loss of the spans.
    return policy_loss + 0.5 * value_loss - 0.01 * distribution.entropy().mean() + out.loss


def main(updates: int = 120) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    envs = gym.vector.SyncVectorEnv([Recall] * B, autoreset_mode=gym.vector.AutoresetMode.SAME_STEP)
    agent = Agent()
    # The parameters of the spans learn some ten times as fast as the rest.
    span_parameters = [p for name, p in agent.named_parameters() if ".kind." in name]
    parameters = [p for name, p in agent.named_parameters() if ".kind." not in name]
    optimizer = torch.optim.Adam([{"params": parameters}, {"params": span_parameters, "lr": 0.03}], lr=3e-3)
    observation, _ = envs.reset(seed=0)
    memory = agent.memory.initial_memory(B)
    start = torch.ones(B, dtype=torch.bool)
    pressure = 0.0  # of forgetting, 0 to 1: none before the task is learned
    for update in range(1, updates + 1):
        acting = agent.memory.begin(memory, horizon=T, in_rollout=True)  # so that `unroll` computes the same
        rollout, next_value, observation, start = collect(agent, envs, observation, start, acting)
        advantages = estimate_advantages(rollout, next_value)
        for _ in range(EPOCHS):
            optimizer.zero_grad()
            compute_loss(agent, rollout, memory, advantages, pressure).backward()
            nn.utils.clip_grad_norm_(parameters, 0.5)
            nn.utils.clip_grad_norm_(span_parameters, 0.5)
            optimizer.step()
        memory = acting.memory()  # only the live memories: expired ones are removed
        success = float(rollout.reward.sum() / rollout.end.sum())
        pressure = 1.0 if success > SUCCESS_TARGET else 0.0
        if update % 20 == 0:
            # At a rollout's end all episodes have just ended, so these are the memories of a whole episode.
            print(f"update {update}: {success:.0%} right, {memory.live().float().mean():.0f} live memories")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
