"""IMPALA (Espeholt et al., 2018, arXiv 1802.01561): one pass over each rollout. V-trace corrects for the difference
between the weights that acted and the weights that learn.

T time steps, B environments, b of them in a minibatch, F final observations.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from expire_span_rl.agents.learner import Learner, LossWeights, explained_variance, means
from expire_span_rl.agents.returns import vtrace
from expire_span_rl.agents.rollout import Rollout
from expire_span_rl.agents.settings import ImpalaConfig

AGE_LIMITS = {"0": 0, "1_to_64": 64, "65_to_256": 256, "above_256": math.inf}
"""Ranges of memory ages by which the clipped share is reported: the largest age of each, in steps."""
CLIPPED_BY_AGE = "train/clipped_share/memory_age_"
"""Prefix of these metrics' names."""
CLIP_TOLERANCE = 1.01
"""An importance weight counts as clipped if clipping lowers it by more than 1%. Rounding alone puts half of the weights
above 1."""


class Impala(Learner):
    """Uses each minibatch once. Its targets are computed with the weights that it then changes."""

    Config = ImpalaConfig
    supports_action_baseline = True

    @property
    def needs_reward_outputs(self) -> bool:
        """False: they are computed anew, with the weights that learn."""
        return False

    def _learn(self, rollout: Rollout, weights: LossWeights) -> dict[str, float]:
        metrics = means([self._step(rollout.rows(rows), weights) for rows in self._minibatches(rollout)])
        # A range of ages that no memory had is left out.
        return {name: x for name, x in metrics.items() if not (name.startswith(CLIPPED_BY_AGE) and math.isnan(x))}

    def _step(self, part: Rollout, weights: LossWeights) -> dict[str, Tensor]:
        """One optimiser step on a minibatch. Returns metrics, scalars each."""
        config = self.config
        out = self.policy.unroll(
            part.observation,
            part.memory,
            part.episode_start,
            part.final_observation,
            part.final_at,
            pressure=weights.pressure,
        )
        log_probs = self.policy.actions.log_prob(out.logits, part.actions)  # [T,b]
        with torch.no_grad():
            log_ratios = log_probs - self.policy.actions.log_prob(part.logits, part.actions)
            following = next_values(out.values, out.final_values, part.final_at)
            rho = log_ratios.exp().clamp(max=config.rho_clip)
            # Its predictions are not learned from these steps yet.
            baseline = self._action_baseline(part, out.rewards, out.logits, out.values, following, rho)
            advantages, targets = vtrace(
                part.rewards if baseline is None else baseline.rewards,
                out.values,
                following,
                part.terminated,
                part.truncated,
                log_ratios=log_ratios,
                gamma=config.gamma,
                trace_lambda=config.trace_lambda,
                rho_clip=config.rho_clip,
                c_clip=config.c_clip,
            )
            # The mean is weighted by the importance weights. An action that the learner would hardly take must have
            # no weight, else its probability is pushed down without end.
            advantages, scale = self._normalize_advantages(advantages - rho * advantages.mean() / rho.mean())
        policy_loss = -(log_probs * advantages).mean()
        if baseline is not None:
            policy_loss = policy_loss - baseline.objective(self.policy, out.rewards, out.logits) / scale
        metrics = self._descend(part, out, policy_loss, targets, weights)
        with torch.no_grad():
            if baseline is not None:
                metrics["train/action_baseline_explained"] = baseline.explained
            metrics |= self._ratio_metrics(log_ratios, part)
            metrics["train/advantage_std"] = scale
            metrics["train/explained_variance"] = explained_variance(out.values, targets)
        return metrics

    def _ratio_metrics(self, log_ratios: Tensor, part: Rollout) -> dict[str, Tensor]:
        """Metrics of the learner's probabilities over the actor's, scalars each. log_ratios: [T,b]."""
        rho_clip = self.config.rho_clip
        ratio = log_ratios.exp()
        clipped = (ratio > CLIP_TOLERANCE * rho_clip).float()
        return clipped_share_by_age(clipped, part) | {
            "train/approx_kl": (ratio - 1 - log_ratios).mean(),
            "train/clipped_share": clipped.mean(),
            "train/importance_weight": ratio.clamp(max=rho_clip).mean(),
        }


def clipped_share_by_age(clipped: Tensor, part: Rollout) -> dict[str, Tensor]:
    """The mean of `clipped` [T,b] by the age of the oldest memory that the row began with and still has. The weights of
    that time computed the memory. NaN for a range without memories."""
    age = part.memory.oldest() * (part.episode_start.cumsum(0) == 0)  # [T,b]
    shares = {}
    previous_limit = -1
    for name, limit in AGE_LIMITS.items():
        in_range = (age > previous_limit) & (age <= limit)
        shares[f"{CLIPPED_BY_AGE}{name}"] = (clipped * in_range).sum() / torch.where(
            in_range.any(), in_range.sum(), math.nan
        )
        previous_limit = limit
    return shares


def next_values(values: Tensor, final_values: Tensor, final_at: tuple[Tensor, Tensor]) -> Tensor:
    """The value of the next observation in the same episode, [T,B]. It is the next step's value, or the final
    observation's where the trace was cut. After a termination it is meaningless (0 at the rollout's end)."""
    shifted = torch.cat([values[1:], torch.zeros_like(values[:1])])
    shifted[final_at] = final_values
    return shifted
