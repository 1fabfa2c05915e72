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
    *,
    gamma: float,
    gae_lambda: float,
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al., 2016, equations 11 and 16): (advantages, returns), [T,B] each.

    All tensors are [T,B]. next_values: the value of the observation that followed each step in the same episode. After
    a truncation that is the final observation. After a termination it is ignored. No advantage flows back over the end
    of an episode. Raises ValueError for shapes that differ.
    """
    shapes = {tuple(x.shape) for x in (rewards, values, next_values, terminated, truncated)}
    if len(shapes) != 1 or rewards.ndim != 2:
        raise ValueError(f"gae: expected five tensors [T,B] of one shape, got {sorted(shapes)}")
    delta = td_errors(rewards, values, next_values, terminated, gamma)
    decay = gamma * gae_lambda * (~(terminated | truncated)).to(values.dtype)
    advantages = backward_trace(delta, decay)
    return advantages, advantages + values


def td_errors(rewards: Tensor, values: Tensor, next_values: Tensor, terminated: Tensor, gamma: float) -> Tensor:
    """Errors of temporal differences, [T,B]: reward and discounted next value, less the value. Arguments as for
    `gae`."""
    return rewards + gamma * next_values.masked_fill(terminated, 0) - values


def vtrace(
    rewards: Tensor,
    values: Tensor,
    next_values: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    *,
    log_ratios: Tensor,
    gamma: float,
    trace_lambda: float = 1.0,
    rho_clip: float = 1.0,
    c_clip: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """V-trace (Espeholt et al., 2018, section 4.1): (advantages rho_s (r_s + gamma v_{s+1} - V(x_s)), corrected values
    v_s), [T,B] each.

    All tensors are [T,B].

    - values, next_values: the learner's. next_values is as for `gae`, and ignored after a termination.
    - log_ratios: log pi(a|x) - log mu(a|x), of the learner's policy pi and the actor's mu.
    - rho_clip: largest ratio rho. It decides which policy's values are learned.
    - c_clip: largest ratio c. It decides how far corrections reach back.
    - trace_lambda: as in remark 2.

    Nothing flows back over the end of an episode. Raises ValueError for shapes that differ.
    """
    shapes = {tuple(x.shape) for x in (rewards, values, next_values, terminated, truncated, log_ratios)}
    if len(shapes) != 1 or rewards.ndim != 2:
        raise ValueError(f"vtrace: expected six tensors [T,B] of one shape, got {sorted(shapes)}")
    ratios = log_ratios.exp()
    rho = ratios.clamp(max=rho_clip)
    c = trace_lambda * ratios.clamp(max=c_clip)
    discount = gamma * (~(terminated | truncated)).to(values.dtype)  # 0 at the end of an episode
    delta = rho * td_errors(rewards, values, next_values, terminated, gamma)
    corrections = backward_trace(delta, discount * c)  # v_s - V(x_s)
    next_corrections = torch.cat([corrections[1:], torch.zeros_like(corrections[:1])])
    return delta + rho * discount * next_corrections, corrections + values


def backward_trace(delta: Tensor, decay: Tensor) -> Tensor:
    """x with x_t = delta_t + decay_t x_{t+1}, where x_T = 0. All are [T,B]."""
    trace = torch.empty_like(delta)
    following = torch.zeros_like(delta[0])
    for t in range(len(delta) - 1, -1, -1):
        following = torch.addcmul(delta[t], decay[t], following, out=trace[t])
    return trace
