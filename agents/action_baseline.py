"""An action-dependent baseline: what the policy itself predicts of the reward of an action.

The policy gradient has a term for every step, the score of the action taken times its advantage. Of the reward in that
advantage, the part that was predicted need not be learned from one drawn action. It is taken out of the rewards, and
the policy is told the predictions for all actions instead. The expectation of the gradient stays the same, whatever is
predicted. Its noise is less where the prediction is good (a control variate, as in Q-Prop: Gu et al., 2017, arXiv
1611.02247; Wu et al., 2018, arXiv 1803.07246), also that of earlier actions, whose advantages contain later rewards.

T time steps, B environments, b of them in a minibatch, G outputs of the reward head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from expire_span_rl.protocols import LearningPolicy


@dataclass(frozen=True)
class ActionBaseline:
    """The baseline of the steps of a rollout or a minibatch."""

    rewards: Tensor  # [T,B] less what was predicted of the action taken, plus the mean over the policy's actions
    share: Tensor  # scalar in [0,1]: how much of the prediction is used
    explained: Tensor  # scalar in [0,1]: the share of the squared TD errors that the baseline takes out

    def objective(self, policy: LearningPolicy, outputs: Tensor, logits: Tensor) -> Tensor:
        """A scalar to be maximised besides the surrogate of the advantages: the mean predicted reward of the policy's
        actions. outputs: [T,b,G] of the reward head, those of `action_baseline`; logits: [T,b,P] of the policy that
        learns."""
        return self.share * policy.mean_predicted_rewards(outputs.detach(), logits).mean()


@torch.no_grad()
def action_baseline(
    policy: LearningPolicy,
    outputs: Tensor,
    logits: Tensor,
    actions: Tensor,
    rewards: Tensor,
    errors: Tensor,
    weights: Tensor | None = None,
) -> ActionBaseline:
    """The baseline of T steps: outputs [T,B,G] of the reward head and logits [T,B,P] of the policy at each step, the
    actions [T,B] or [T,B,N] taken, their rewards [T,B], and the TD errors [T,B] of these rewards.

    weights: [T,B] importance weights of the steps; None: 1 each. The share that is used is the one that leaves least of
    the TD errors, between none of the prediction and all of it.
    """
    weights = torch.ones_like(rewards) if weights is None else weights
    surprise = policy.predicted_rewards(outputs, actions) - policy.mean_predicted_rewards(outputs, logits)  # [T,B]
    weighted, errors = weights * surprise, weights * errors
    tiny = torch.finfo(errors.dtype).tiny  # where nothing is predicted, or nothing is left to predict
    share = ((weighted * errors).sum() / weighted.square().sum().clamp(min=tiny)).clamp(0, 1)
    left = (errors - share * weighted).square().sum()
    explained = 1 - left / errors.square().sum().clamp(min=tiny)
    return ActionBaseline(rewards - share * surprise, share, explained)
