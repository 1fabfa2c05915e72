"""IMPALA (Espeholt et al., 2018, arXiv 1802.01561): one pass over each rollout, corrected by V-trace for the difference
between the weights that acted and those that learn.

T time steps, B environments, A actions, F observations after which a trace is cut; a minibatch is a set of b environments.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from agents.learner import Learner, LearnerConfig, Weights, check_fractions, explained_variance, log_prob, means
from agents.returns import vtrace
from agents.rollout import Rollout

CUT = 1.01  # a weight counts as clipped if that lowers it by more than 1%: rounding alone puts half of them above 1


@dataclass(frozen=True)
class ImpalaConfig(LearnerConfig):
    num_minibatches: int = 4
    """Minibatches of a rollout, each a set of environments that is used once."""
    trace_lambda: float = 0.9
    """Lambda of the V-trace targets (remark 2 of the paper, which has 1)."""
    rho_clip: float = 1.0
    """Clipping of the importance weights that decide whose values are learned."""
    c_clip: float = 1.0
    """Clipping of the importance weights that decide how far back corrections reach."""

    def __post_init__(self):
        super().__post_init__()
        check_fractions(self, "trace_lambda")
        if not self.c_clip > 0:
            raise ValueError(f"--c-clip: expected more than 0, got {self.c_clip}")
        if not self.rho_clip >= self.c_clip:
            raise ValueError(f"--rho-clip: expected at least --c-clip ({self.c_clip}), got {self.rho_clip}")


class Impala(Learner):
    """Each minibatch is used once, and its targets are made with the weights that it then changes."""

    Config = ImpalaConfig

    def _learn(self, rollout: Rollout, weights: Weights) -> dict[str, float]:
        return means([self._step(rollout.rows(rows), weights) for rows in self._minibatches(rollout)])

    def _step(self, part: Rollout, weights: Weights) -> dict[str, float]:
        """One optimiser step on a minibatch."""
        config = self.config
        out = self.policy.unroll(
            part.observation,
            part.memory,
            part.episode_start,
            part.final_observation,
            part.final_at,
            pressure=weights.pressure,
        )
        log_p = log_prob(out.logits, part.actions)  # [T,b]
        with torch.no_grad():
            log_ratio = log_p - log_prob(part.logits, part.actions)
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
            scaled, scale = self._scaled(advantages)
        figures = self._descend(part, out, -(log_p * scaled).mean(), targets, weights)
        with torch.no_grad():
            ratio = log_ratio.exp()
            return figures | {
                "train/approx_kl": float((ratio - 1 - log_ratio).mean()),
                "train/clipped_share": float((ratio > CUT * config.rho_clip).float().mean()),
                "train/importance_weight": float(ratio.clamp(max=config.rho_clip).mean()),
                "train/advantage_std": float(scale),
                "train/explained_variance": explained_variance(out.values, targets),
            }


def following(values: Tensor, final_values: Tensor, final_at: tuple[Tensor, Tensor]) -> Tensor:
    """The value of the observation that followed each step in the same episode, [T,B]: the next step's, or the final
    observation's where the trace was cut; 0 after a termination at the rollout's end, elsewhere it then means nothing."""
    shifted = torch.cat([values[1:], torch.zeros_like(values[:1])])
    shifted[final_at] = final_values
    return shifted
