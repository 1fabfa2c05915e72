"""PPO (Schulman et al., 2017, arXiv 1707.06347) over whole sequences: a minibatch has all steps of some environments.

T time steps, B environments, b of them in a minibatch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from expire_span_rl.agents.action_baseline import ActionBaseline
from expire_span_rl.agents.adaptive_lambda import REFERENCE, AdaptiveLambda, Comparison, log_prob_gradient
from expire_span_rl.agents.learner import Learner, LossWeights, explained_variance, means
from expire_span_rl.agents.returns import gae
from expire_span_rl.agents.rollout import Rollout
from expire_span_rl.agents.settings import PPOConfig
from expire_span_rl.protocols import HasState, LearningPolicy

MOST_KL = 4.0
"""A step is taken back if it brings the approximate KL divergence above this multiple of `target_kl`."""


class KLLimit:
    """Takes optimiser steps back that lead too far from the policy that acted.

    Once a task is solved, gradients are small and mostly noise, which Adam scales up to full steps. A policy that is
    almost deterministic can then be lost in a single one. The optimiser's averages stay as they are: parameters move
    on in the same direction, but less far.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, limit: float, check: Callable[[], None]):
        """limit: the largest approximate KL divergence that is accepted; check: raises an error for weights that
        diverged, which must not be taken back in silence."""
        self.undone = 0
        """How many times steps were taken back: single ones on a CPU, those of an epoch together on a GPU."""
        self._parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self._optimizer = optimizer
        self._limit = limit
        self._check = check
        self._accepted: list[Tensor] = []

    @torch.no_grad()
    def accepts(self, kl: Tensor) -> bool:
        """Whether the parameters are near enough; kl: scalar. If not, those that were accepted last are put back, and
        the learning rates are halved for the rest of the update. The first parameters, and those that were put back,
        are always accepted. On a GPU this is a wait."""
        # What is not finite is left to the check of the loss, which names it.
        if not self._accepted or not self._limit < float(kl) < math.inf:
            self._accepted = [parameter.clone() for parameter in self._parameters]
            return True
        self._check()
        for parameter, value in zip(self._parameters, self._accepted, strict=True):
            parameter.copy_(value)
        self._accepted = []
        for group in self._optimizer.param_groups:
            group["lr"] /= 2
        self.undone += 1
        return False


@dataclass(frozen=True)
class Targets:
    """What the steps of a rollout or a minibatch teach."""

    advantages: Tensor  # [T,B] normalised
    returns: Tensor  # [T,B] targets of the values
    scale: Tensor  # scalar by which advantages were divided
    baseline: ActionBaseline | None

    def rows(self, indices: Tensor) -> Targets:
        """Those of the environments `indices`, int64 [b]."""
        return replace(self, advantages=self.advantages[:, indices], returns=self.returns[:, indices])


class PPO(Learner):
    """Several epochs over each rollout, with a clipped policy loss."""

    Config = PPOConfig
    supports_action_baseline = True

    def __init__(self, policy: LearningPolicy, config: PPOConfig, num_envs: int, seed: int, horizon: int | None = None):
        super().__init__(policy, config, num_envs, seed, horizon)
        self.adaptive_lambda = AdaptiveLambda(config.gae_lambda) if config.adaptive_lambda else None

    @property
    def _statistics(self) -> Mapping[str, HasState]:
        adaptive = {} if self.adaptive_lambda is None else {"adaptive_lambda": self.adaptive_lambda}
        return {**super()._statistics, **adaptive}

    def _learn(self, rollout: Rollout, weights: LossWeights) -> dict[str, float]:
        """Learns in up to `update_epochs` epochs over a rollout. Ends after an epoch whose mean KL divergence exceeds
        `target_kl`. Steps that lead much further are taken back: on a CPU each is checked, on a GPU those of an epoch
        together. Returns metrics, most of them means over the optimiser steps."""
        config = self.config
        baseline = self._action_baseline(
            rollout, rollout.reward_outputs, rollout.logits, rollout.values, rollout.next_values
        )
        advantages, returns, comparison = self._advantages(rollout, baseline)
        advantages, scale = self._normalize_advantages(advantages)
        targets = Targets(advantages, returns, scale, baseline)
        old_log_probs = self.policy.actions.log_prob(rollout.logits, rollout.actions)  # [T,B]
        kl_limit = KLLimit(self.optimizer, MOST_KL * config.target_kl, self.check_finite)
        steps: list[dict[str, Tensor]] = []
        checked_rows = torch.empty(0, dtype=torch.int64)
        epochs = 0
        for _ in range(config.update_epochs):
            epoch_kls: list[Tensor] = []
            for number, rows in enumerate(self._minibatches(rollout)):
                minibatch = rollout.rows(rows, finals=False)
                out, log_ratio = self._unroll(minibatch, old_log_probs[:, rows], weights)
                epoch_kls.append(_approx_kl(log_ratio.detach()))
                if comparison is not None and epochs == 0:
                    comparison.add(out.features.detach(), rows)
                checked_rows = rows if number == 0 else checked_rows
                is_checked = number == 0 or rows.device.type == "cpu"
                if is_checked and not kl_limit.accepts(epoch_kls[-1]):
                    del out, log_ratio  # with their graph, before the next one
                    continue
                step = self._step(minibatch, out, log_ratio, targets.rows(rows), weights)
                steps.append({**step, "train/approx_kl": epoch_kls[-1]})
            epochs += 1
            if float(torch.stack(epoch_kls).mean()) > config.target_kl:
                break
        self._check_last_step(
            kl_limit, rollout.rows(checked_rows, finals=False), old_log_probs[:, checked_rows], weights
        )
        rollout_metrics = {
            "train/advantage_std": scale,
            "train/explained_variance": explained_variance(rollout.values, returns),
        }
        if baseline is not None:
            rollout_metrics["train/action_baseline_explained"] = baseline.explained
        metrics = {**means([*steps, rollout_metrics]), "train/epochs": epochs, "train/undone_steps": kl_limit.undone}
        if self.adaptive_lambda is not None and comparison is not None:
            metrics |= self.adaptive_lambda.end(comparison)
        return metrics

    def _advantages(
        self, rollout: Rollout, baseline: ActionBaseline | None
    ) -> tuple[Tensor, Tensor, Comparison | None]:
        """(advantages with this update's lambda, targets of the values with --gae-lambda, [T,B] each; the comparison of
        lambdas, None if there is none)."""
        config, adaptive = self.config, self.adaptive_lambda

        def with_lambda(gae_lambda: float) -> tuple[Tensor, Tensor]:
            return gae(
                rollout.rewards if baseline is None else baseline.rewards,
                rollout.values,
                rollout.next_values,
                rollout.terminated,
                rollout.truncated,
                gamma=config.gamma,
                gae_lambda=gae_lambda,
            )

        advantages, returns = with_lambda(config.gae_lambda)
        if adaptive is None:
            return advantages, returns, None
        smaller = [with_lambda(gae_lambda)[0] for gae_lambda in adaptive.lambdas[:-1]]
        by_lambda = torch.stack([*smaller, advantages, with_lambda(REFERENCE)[0]])
        scores = log_prob_gradient(self.policy.actions, rollout.logits, rollout.actions)
        comparison = adaptive.begin(by_lambda, scores)
        return by_lambda[adaptive.lambdas.index(adaptive.value)], returns, comparison

    def _unroll(self, minibatch: Rollout, old_log_probs: Tensor, weights: LossWeights) -> tuple[Any, Tensor]:
        """The unroll of a minibatch, and log(new / old probability) of its actions, [T,b]. old_log_probs: [T,b] of the
        policy that acted."""
        out = self.policy.unroll(
            minibatch.observation, minibatch.memory, minibatch.episode_start, pressure=weights.pressure
        )
        return out, self.policy.actions.log_prob(out.logits, minibatch.actions) - old_log_probs

    @torch.no_grad()
    def _check_last_step(
        self, kl_limit: KLLimit, minibatch: Rollout, old_log_probs: Tensor, weights: LossWeights
    ) -> None:
        """Takes the last step back if it led too far, measured on one minibatch; old_log_probs: as for `_unroll`."""
        kl_limit.accepts(_approx_kl(self._unroll(minibatch, old_log_probs, weights)[1]))

    def _step(
        self,
        minibatch: Rollout,
        out: Any,
        log_ratio: Tensor,
        targets: Targets,
        weights: LossWeights,
    ) -> dict[str, Tensor]:
        """One optimiser step on a minibatch. out, log_ratio: of `_unroll`; targets: of the minibatch. Returns metrics,
        scalars each."""
        clip = self.config.clip_coef
        ratio, advantages = log_ratio.exp(), targets.advantages
        policy_loss = -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages).mean()
        if targets.baseline is not None:
            objective = targets.baseline.objective(self.policy, minibatch.reward_outputs, out.logits)
            policy_loss = policy_loss - objective / targets.scale
        metrics = self._descend(minibatch, out, policy_loss, targets.returns, weights)
        with torch.no_grad():
            metrics["train/clip_fraction"] = ((ratio - 1).abs() > clip).float().mean()
        return metrics


def _approx_kl(log_ratio: Tensor) -> Tensor:
    """The KL divergence of the new policy from the old one, estimated from log(new / old probability) of actions that
    the old one drew: a scalar (Schulman, 2020, joschu.net/blog/kl-approx.html)."""
    return (log_ratio.exp() - 1 - log_ratio).mean()
