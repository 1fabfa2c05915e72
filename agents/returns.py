"""Returns and advantages: pure functions of tensors. T time steps, B environments."""

from __future__ import annotations

import torch
from torch import Tensor


def gae(
    rewards: Tensor,
    values: Tensor,
    next_values: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    gamma: float,
    gae_lambda: float,
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al., 2016, equations 11 and 16): (advantages, returns), [T,B] each.

    All arguments [T,B]. next_values: the value of the observation that followed each step in the same episode, so the
    final observation's where it was truncated; after a termination it counts for nothing. No advantage flows back over
    the end of an episode. Raises ValueError for shapes that differ.
    """
    shapes = {tuple(x.shape) for x in (rewards, values, next_values, terminated, truncated)}
    if len(shapes) != 1 or rewards.ndim != 2:
        raise ValueError(f"gae: expected five tensors [T,B] of one shape, got {sorted(shapes)}")
    delta = rewards + gamma * next_values.masked_fill(terminated, 0) - values
    decay = gamma * gae_lambda * (~(terminated | truncated)).to(values.dtype)
    advantages = torch.empty_like(values)
    following = torch.zeros_like(values[0])
    for t in range(len(rewards) - 1, -1, -1):
        following = delta[t] + decay[t] * following
        advantages[t] = following
    return advantages, advantages + values
