"""The memory alone, in a PPO of one's own: a Transformer with Expire-Span between one's own encoder and heads.

    PYTHONPATH=. python examples/own_training_loop.py       # about a minute

T steps of B environments. A memory is a value: it goes into a rollout and comes out of it. The module keeps nothing.
Acting goes step by step. Learning sees the whole rollout at once, and computes the same.
"""

from __future__ import annotations

import sys

import gymnasium as gym
import torch
from my_envs import Recall
from torch import nn
from torch.distributions import Categorical

from expire_span_rl.policies.memory.expire_span import ExpireSpan
from expire_span_rl.policies.settings import ExpireSpanConfig, TransformerConfig
from expire_span_rl.policies.transformer import Transformer

T, B, WIDTH, HEADS = 42, 32, 32, 2
GAMMA, LAMBDA, CLIP = 0.99, 0.9, 0.2


class Agent(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(5 + 13 + 1, WIDTH)
        core = TransformerConfig(width=WIDTH, num_heads=HEADS, num_layers=1)
        span = ExpireSpanConfig(span_model="sigmoid", max_span=64, ramp=4)  # the paper's spans: no state to keep
        self.memory = Transformer(core, lambda: ExpireSpan(WIDTH, HEADS, span))
        self.policy, self.value = nn.Linear(WIDTH, 4), nn.Linear(WIDTH, 1)
        nn.init.zeros_(self.policy.weight)
        nn.init.zeros_(self.value.weight)

    def heads(self, features):
        return Categorical(logits=self.policy(features)), self.value(features)[..., 0]


def encoded(observation):
    """The environments' nested observation -> [B,19]."""
    suit, rank = (torch.as_tensor(observation["card"][name]) for name in ("suit", "rank"))
    asked = torch.as_tensor(observation["asked"]).float()
    return torch.cat([torch.eye(5)[suit], torch.eye(13)[rank], asked], -1)


def advantages_of(rewards, values, ends, next_value):
    """Generalised advantage estimation: [T,B]. Nothing follows where an episode `ends` [T,B]: Recall always terminates.
    A truncated episode would need the value of its final observation instead."""
    advantages, advantage = torch.zeros(T, B), torch.zeros(B)
    for t in reversed(range(T)):
        delta = rewards[t] + GAMMA * next_value * ~ends[t] - values[t]
        advantages[t] = advantage = delta + GAMMA * LAMBDA * advantage * ~ends[t]
        next_value = values[t]
    return advantages


def main(updates: int = 120) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    envs = gym.vector.SyncVectorEnv([Recall] * B, autoreset_mode=gym.vector.AutoresetMode.SAME_STEP)
    agent = Agent()
    # The parameters of the spans learn some ten times as fast as the rest.
    spans = [p for name, p in agent.named_parameters() if ".kind." in name]
    others = [p for name, p in agent.named_parameters() if ".kind." not in name]
    optimizer = torch.optim.Adam([{"params": others}, {"params": spans, "lr": 0.03}], lr=3e-3)
    no_finals = torch.zeros(0, WIDTH), (torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))
    observation, _ = envs.reset(seed=0)
    memory, start = agent.memory.initial_memory(B), torch.ones(B, dtype=torch.bool)
    pressure = 0.0  # to forget, 0 to 1: none before the task is learned
    for update in range(1, updates + 1):
        steps, acting = [], agent.memory.begin(memory, horizon=T)
        with torch.no_grad():
            for _ in range(T):
                x = encoded(observation)
                distribution, value = agent.heads(agent.memory.step(agent.encoder(x), acting, start))
                action = distribution.sample()
                observation, reward, terminated, truncated, _ = envs.step(action.numpy())
                end = torch.as_tensor(terminated | truncated)
                reward = torch.as_tensor(reward).float()
                steps.append((x, start, action, distribution.log_prob(action), value, reward, end))
                start = end
            # The value of what comes next: `value` reads the memory and writes nothing.
            following = agent.memory.value(agent.encoder(encoded(observation)), acting, torch.arange(B))
            next_value = agent.heads(following)[1]
        x, starts, actions, old_log_probs, values, rewards, ends = (torch.stack(part) for part in zip(*steps))
        advantages = advantages_of(rewards, values, ends, next_value)
        returns = advantages + values
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        for _ in range(3):
            # One parallel pass over the rollout, from the memory that it began with. `out.loss` is that of the spans.
            out = agent.memory.unroll(agent.encoder(x), memory, starts, *no_finals, pressure=pressure)
            distribution, new_values = agent.heads(out.features)
            ratio = (distribution.log_prob(actions) - old_log_probs).exp()
            policy_loss = -torch.minimum(ratio * advantages, ratio.clamp(1 - CLIP, 1 + CLIP) * advantages).mean()
            value_loss = (new_values - returns).square().mean()
            loss = policy_loss + 0.5 * value_loss - 0.01 * distribution.entropy().mean() + out.loss
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(others, 0.5)
            nn.utils.clip_grad_norm_(spans, 0.5)
            optimizer.step()
        memory = acting.memory()  # the live memories alone: what has expired is removed
        success = float(rewards.sum() / ends.sum())
        pressure = 1.0 if success > 0.95 else 0.0
        if update % 20 == 0:
            # At a rollout's end all episodes have just ended, so these are the memories of a whole episode.
            print(f"update {update}: {success:.0%} right, {memory.live().float().mean():.0f} live memories")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
