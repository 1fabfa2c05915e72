"""IMPALA (Espeholt et al., 2018, arXiv 1802.01561): one pass over each rollout, corrected by V-trace for the difference
between the weights that acted and those that learn.

T time steps, B environments, F observations after which a trace is cut; a minibatch is a set of b environments.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from expire_span_rl.agents.learner import Learner, Weights, explained_variance, means
from expire_span_rl.agents.returns import vtrace
from expire_span_rl.agents.rollout import Rollout
from expire_span_rl.agents.settings import ImpalaConfig

AGES = {"0": 0, "1_to_64": 64, "65_to_256": 256, "above_256": math.inf}
"""Ages of memories in steps by which figures are told apart: the largest of each."""
SHARES = "train/clipped_share/memory_age_"  # of the figures' names
CUT = 1.01  # a weight counts as clipped if that lowers it by more than 1%: rounding alone puts half of them above 1


class Impala(Learner):
    """Each minibatch is used once, and its targets are made with the weights that it then changes."""

    Config = ImpalaConfig

    def _learn(self, rollout: Rollout, weights: Weights) -> dict[str, float]:
        figures = means([self._step(rollout.rows(rows), weights) for rows in self._minibatches(rollout)])
        # Of ages that no memory had there is nothing to tell.
        return {name: x for name, x in figures.items() if not (name.startswith(SHARES) and math.isnan(x))}

    def _step(self, part: Rollout, weights: Weights) -> dict[str, Tensor]:
        """One optimiser step on a minibatch. Returns figures, scalars each."""
        config = self.config
        out = self.policy.unroll(
            part.observation,
            part.memory,
            part.episode_start,
            part.final_observation,
            part.final_at,
            pressure=weights.pressure,
        )
        log_p = self.policy.actions.log_prob(out.logits, part.actions)  # [T,b]
        with torch.no_grad():
            log_ratio = log_p - self.policy.actions.log_prob(part.logits, part.actions)
            advantages, targets = vtrace(
                part.rewards,
                out.values,
                following(out.values, out.final_values, part.final_at),
                part.terminated,
                part.truncated,
                log_ratio,
                config.gamma,
                config.trace_lambda,
                config.rho_clip,
                config.c_clip,
            )
            # Centred with the importance weights in: what the learner would hardly do must weigh nothing, or it is
            # pushed away without end.
            rho = log_ratio.exp().clamp(max=config.rho_clip)
            scaled, scale = self._scaled(advantages - rho * advantages.mean() / rho.mean())
        figures = self._descend(part, out, -(log_p * scaled).mean(), targets, weights)
        with torch.no_grad():
            ratio = log_ratio.exp()
            clipped = (ratio > CUT * config.rho_clip).float()
            return (
                figures
                | by_age(clipped, part)
                | {
                    "train/approx_kl": (ratio - 1 - log_ratio).mean(),
                    "train/clipped_share": clipped.mean(),
                    "train/importance_weight": ratio.clamp(max=config.rho_clip).mean(),
                    "train/advantage_std": scale,
                    "train/explained_variance": explained_variance(out.values, targets),
                }
            )


def by_age(clipped: Tensor, part: Rollout) -> dict[str, Tensor]:
    """The share of clipped [T,b] by the age of the oldest memory that the row began with and still has: memories were
    computed by the weights of then. NaN where none is of such an age."""
    held = part.memory.oldest() * (part.episode_start.cumsum(0) == 0)  # [T,b]
    shares, above = {}, -1
    for name, limit in AGES.items():
        inside = (held > above) & (held <= limit)
        shares[f"{SHARES}{name}"] = (clipped * inside).sum() / torch.where(inside.any(), inside.sum(), math.nan)
        above = limit
    return shares


def following(values: Tensor, final_values: Tensor, final_at: tuple[Tensor, Tensor]) -> Tensor:
    """The value of the observation that followed each step in the same episode, [T,B]: the next step's, or the final
    observation's where the trace was cut; 0 after a termination at the rollout's end, elsewhere it then means
    nothing."""
    shifted = torch.cat([values[1:], torch.zeros_like(values[:1])])
    shifted[final_at] = final_values
    return shifted
