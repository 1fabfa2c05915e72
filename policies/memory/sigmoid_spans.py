"""Spans as in the paper: bounded, and learned by a quantile regression of the age of last use.

B environments, C slots, D model width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from expire_span_rl.policies.memory.kind import Lives
from expire_span_rl.policies.settings import UNKNOWN_MAX_SPAN, ExpireSpanConfig

LONGEST_NEED = 0.99  # fraction of L_max that a memory can need at most
LONGEST_LEVEL = math.log(LONGEST_NEED / (1 - LONGEST_NEED))  # of the span predictor's output, whose sigmoid that is


class SigmoidSpans(nn.Linear):
    """e = L_max * sigmoid(w . h + b) (Expire-Span paper, equation 3)."""

    rate = 1.0  # of learning, as a multiple of the config's
    tracks_use = False  # uses in the rollout itself are enough

    def __init__(self, width: int, config: ExpireSpanConfig):
        super().__init__(width, 1)
        self.config = config
        self.longest = config.max_span or UNKNOWN_MAX_SPAN
        nn.init.zeros_(self.weight)
        nn.init.constant_(self.bias, math.log(config.initial_span / (1 - config.initial_span)))

    def forward(self, normed: Tensor) -> Tensor:
        """Spans [B,C] in steps of memories with normalised hidden vectors [B,C,D]."""
        return self.longest * torch.sigmoid(super().forward(normed).squeeze(-1))

    def release(self) -> None:
        """L_max bounds spans for ever."""

    def loss(self, normed: Tensor, new: Tensor, lives: Lives | None, pressure: float) -> Tensor:
        """Arguments are `MemoryKind.loss`'s, `normed` detached. Charge on new memories, defence of used ones: quantile regression of the age of last use.

        charge  = sign(pressure) * mean_new(s(e))                                           (the paper's loss, equation 7)
        defence = use_coef * sum_used(max(0, s((1 + margin) * last use + 1) - s(e))) / number of new memories

        s(e) is e / L_max up to one half; beyond, where the sigmoid flattens, s goes on along its steepest slope.
        Otherwise spans near L_max would stay there: what does not change with the level has no gradient. Nothing is
        charged below one step, or lengthened beyond 0.99 L_max: levels do not run away.
        Together they are the pinball loss of the (1 - 1 / use_coef) quantile of what is needed. Both train the span
        predictor only: the hidden vectors are detached here. Negative pressure lengthens spans. How strong the pressure
        is makes the predictor's steps longer or shorter (`agents.learner`), not the quantile.

        The weights get the gradient of what tells a memory from its row's average new one, the bias that of what all
        share. Otherwise the charge on many dull memories would drag the few precious ones down with them, whose hidden
        vectors point much the same way, long before the weights had learned the difference.

        Without pressure nothing is lost, so nothing is defended: an untrained policy's attention falls on memories of
        all ages, and their defence alone would drive every span to L_max, where the sigmoid is flat.
        """
        if pressure == 0:
            return normed.new_zeros(())
        fresh = new[..., None]
        average = (normed * fresh).sum(1, keepdim=True) / fresh.sum(1, keepdim=True).clamp(min=1)  # [B,1,D]
        weight, bias = self.weight[0], self.bias
        level = (normed - average) @ weight + average @ weight.detach() + bias  # [B,C], in value weight . normed + bias
        spans = _unflattened(level)
        shortest = -math.log(self.longest)  # the level of a span of about one step
        pressed = _unflattened(level.clamp(min=shortest) if pressure > 0 else level.clamp(max=LONGEST_LEVEL))
        loss = math.copysign(1, pressure) * pressed.masked_fill(~new, 0).sum()
        if lives is not None:
            last_use = lives.used_here
            needed = (last_use * (1 + self.config.use_margin) + 1) / self.longest
            needed = _unflattened(torch.logit(needed.clamp(1e-6, LONGEST_NEED)))
            short = (needed - spans).clamp(min=0).masked_fill(last_use <= 0, 0)
            loss = loss + self.config.use_coef * short.sum()
        return loss / new.sum().clamp(min=1)


def _unflattened(level: Tensor) -> Tensor:
    """Fractions of L_max by their level, as the loss sees them: the sigmoid below one half, and on at its steepest
    above."""
    return torch.where(level > 0, 0.5 + level / 4, torch.sigmoid(level))
