"""PPO (Schulman et al., 2017, arXiv 1707.06347) over whole sequences: a minibatch is a set of environments.

T time steps, B environments.
"""

from __future__ import annotations

import torch
from torch import Tensor

from expire_span_rl.agents.learner import Learner, Weights, explained_variance, means
from expire_span_rl.agents.returns import gae
from expire_span_rl.agents.rollout import Rollout
from expire_span_rl.agents.settings import PPOConfig


class PPO(Learner):
    """Some epochs over each rollout."""

    Config = PPOConfig

    def _learn(self, rollout: Rollout, weights: Weights) -> dict[str, float]:
        config = self.config
        advantages, returns = gae(
            rollout.rewards,
            rollout.values,
            rollout.next_values,
            rollout.terminated,
            rollout.truncated,
            config.gamma,
            config.gae_lambda,
        )
        advantages, scale = self._scaled(advantages)
        acted = self.policy.actions.log_prob(rollout.logits, rollout.actions)
        steps: list[dict[str, Tensor]] = []
        epochs = 0
        for _ in range(config.update_epochs):
            before = len(steps)
            for rows in self._minibatches(rollout):
                part = rollout.rows(rows, finals=False)
                steps.append(self._step(part, advantages[:, rows], returns[:, rows], acted[:, rows], weights))
            epochs += 1
            if float(torch.stack([step["train/approx_kl"] for step in steps[before:]]).mean()) > config.target_kl:
                break
        once = {"train/advantage_std": scale, "train/explained_variance": explained_variance(rollout.values, returns)}
        return {**means([*steps, once]), "train/epochs": epochs}

    def _step(
        self, part: Rollout, advantages: Tensor, returns: Tensor, acted: Tensor, weights: Weights
    ) -> dict[str, Tensor]:
        """One optimiser step on a minibatch; acted: [T,b] log-probabilities of the policy that acted."""
        clip = self.config.clip_coef
        out = self.policy.unroll(part.observation, part.memory, part.episode_start, pressure=weights.pressure)
        log_ratio = self.policy.actions.log_prob(out.logits, part.actions) - acted  # [T,b]
        ratio = log_ratio.exp()
        policy_loss = -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages).mean()
        figures = self._descend(part, out, policy_loss, returns, weights)
        with torch.no_grad():
            figures["train/approx_kl"] = (ratio - 1 - log_ratio).mean()
            figures["train/clip_fraction"] = ((ratio - 1).abs() > clip).float().mean()
        return figures
