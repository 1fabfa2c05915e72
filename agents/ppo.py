"""PPO (Schulman et al., 2017, arXiv 1707.06347) over whole sequences: a minibatch has all steps of some environments.

T time steps, B environments, b of them in a minibatch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from expire_span_rl.agents.learner import Learner, LossWeights, explained_variance, means
from expire_span_rl.agents.returns import gae
from expire_span_rl.agents.rollout import Rollout
from expire_span_rl.agents.settings import PPOConfig


class PPO(Learner):
    """Several epochs over each rollout, with a clipped policy loss."""

    Config = PPOConfig

    def _learn(self, rollout: Rollout, weights: LossWeights) -> dict[str, float]:
        """Learns in up to `update_epochs` epochs over a rollout. Ends after an epoch whose mean KL divergence exceeds
        `target_kl`. Returns metrics, most of them means over the optimiser steps."""
        config = self.config
        advantages, returns = gae(
            rollout.rewards,
            rollout.values,
            rollout.next_values,
            rollout.terminated,
            rollout.truncated,
            gamma=config.gamma,
            gae_lambda=config.gae_lambda,
        )
        advantages, scale = self._normalize_advantages(advantages)
        old_log_probs = self.policy.actions.log_prob(rollout.logits, rollout.actions)  # [T,B]
        steps: list[dict[str, Tensor]] = []
        epochs = 0
        for _ in range(config.update_epochs):
            steps_before = len(steps)
            for rows in self._minibatches(rollout):
                minibatch = rollout.rows(rows, finals=False)
                step = self._step(minibatch, advantages[:, rows], returns[:, rows], old_log_probs[:, rows], weights)
                steps.append(step)
            epochs += 1
            epoch_kl = torch.stack([step["train/approx_kl"] for step in steps[steps_before:]]).mean()
            if float(epoch_kl) > config.target_kl:
                break
        rollout_metrics = {
            "train/advantage_std": scale,
            "train/explained_variance": explained_variance(rollout.values, returns),
        }
        return {**means([*steps, rollout_metrics]), "train/epochs": epochs}

    def _step(
        self, minibatch: Rollout, advantages: Tensor, returns: Tensor, old_log_probs: Tensor, weights: LossWeights
    ) -> dict[str, Tensor]:
        """One optimiser step on a minibatch. advantages, returns: [T,b]; old_log_probs: [T,b] log-probabilities of the
        actions under the policy that acted. Returns metrics, scalars each."""
        clip = self.config.clip_coef
        out = self.policy.unroll(
            minibatch.observation, minibatch.memory, minibatch.episode_start, pressure=weights.pressure
        )
        log_ratio = self.policy.actions.log_prob(out.logits, minibatch.actions) - old_log_probs  # [T,b]
        ratio = log_ratio.exp()
        policy_loss = -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages).mean()
        metrics = self._descend(minibatch, out, policy_loss, returns, weights)
        with torch.no_grad():
            metrics["train/approx_kl"] = (ratio - 1 - log_ratio).mean()
            metrics["train/clip_fraction"] = ((ratio - 1).abs() > clip).float().mean()
        return metrics
