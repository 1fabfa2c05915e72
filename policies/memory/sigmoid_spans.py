"""Spans as in the paper: bounded, and learned by a quantile regression of the age of last use.

B environments, C slots, D model width.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from expire_span_rl.policies.memory.kind import Lives
from expire_span_rl.policies.settings import UNKNOWN_MAX_SPAN, ExpireSpanConfig

MAX_NEED = 0.99  # fraction of L_max that a memory can need at most
MAX_LEVEL = math.log(MAX_NEED / (1 - MAX_NEED))  # the span predictor's output, whose sigmoid is MAX_NEED


class SigmoidSpans(nn.Linear):
    """e = L_max * sigmoid(w . h + b) (Expire-Span paper, equation 3)."""

    rate = 1.0  # learning rate as a multiple of the config's
    tracks_use = False  # the uses within the rollout are enough

    def __init__(self, width: int, config: ExpireSpanConfig):
        super().__init__(width, 1)
        self.config = config
        self.max_span = config.max_span or UNKNOWN_MAX_SPAN
        nn.init.zeros_(self.weight)
        nn.init.constant_(self.bias, math.log(config.initial_span / (1 - config.initial_span)))

    def forward(self, normed: Tensor) -> Tensor:
        """Spans [B,C] in steps of memories with normalised hidden vectors [B,C,D]."""
        return self.max_span * torch.sigmoid(super().forward(normed).squeeze(-1))

    def draw(self, batch_size: int, generator: torch.Generator | None, noiseless: bool) -> Tensor:
        """[B,1]: with span dropout the fractions of L_max that limit spans, also if noiseless, since the span loss
        reckons with them; [B,0] without."""
        if not self.config.span_dropout:
            return torch.zeros(batch_size, 0)
        device = None if generator is None else generator.device
        return torch.rand(batch_size, 1, generator=generator, device=device)

    def limited(self, spans: Tensor, noise: Tensor) -> Tensor:
        """The spans [B,C] within the limits that were drawn."""
        return torch.minimum(spans, noise * self.max_span) if noise.shape[1] else spans

    def skipped_steps(self, noise: Tensor) -> Tensor | None:
        """None: time is never skipped."""
        return None

    def time_gaps(self, noise: Tensor) -> Tensor | None:
        """None: memories never look older."""
        return None

    def observe_needs(self) -> None:
        """Changes nothing: needs are always observed."""

    def release(self) -> None:
        """Changes nothing: L_max always bounds spans."""

    def bind(self) -> None:
        """Changes nothing: L_max always bounds spans."""

    def tighten(self, share: float) -> None:
        """Changes nothing: --use-coef stays."""

    def metrics(self) -> dict[str, float]:
        """None."""
        return {}

    can_skip_time: ClassVar[bool] = False

    def keep_time(self) -> None:
        """Changes nothing: time is never skipped."""

    def unreleased_reach(self) -> float | None:
        """None: there is nothing to release."""
        return None

    def loss(self, normed: Tensor, is_new: Tensor, lives: Lives | None, pressure: float) -> Tensor:
        """A quantile regression of the age of last use. Arguments are `MemoryKind.loss`'s, `normed` detached.

        It is a span penalty on new memories (the paper's loss, equation 7) and a retention hinge on used ones:

        penalty = sign(pressure) * mean_new(s(e))
        hinge = use_coef * sum_used(max(0, s((1 + margin) * last use + 1) - s(e))) / number of new memories

        Together they are the pinball loss of the (1 - 1 / use_coef) quantile of what is needed. Both train the span
        predictor only: the hidden vectors are detached. Negative pressure lengthens spans. The size of the pressure
        sets the size of the predictor's steps (`agents.learner`), not the quantile.

        s(e) is e / L_max up to one half. Beyond it the sigmoid flattens, and s continues along its steepest slope.
        Otherwise spans near L_max would stay there: where the sigmoid is flat there is no gradient. The penalty ends
        below one step, and the lengthening beyond 0.99 L_max, so that levels do not diverge.

        The gradient of the weights comes from what distinguishes a memory from the average new memory of its row. The
        gradient of the bias comes from what all memories share. The hidden vectors of many useless memories and of the
        few useful ones point in much the same direction. Otherwise the penalty on the many would lower the spans of the
        few too, long before the weights had learned the difference.

        Without pressure there is no loss at all. An untrained policy's attention falls on memories of all ages, and the
        hinge alone would drive every span to L_max, where the sigmoid is flat.
        """
        if pressure == 0:
            return normed.new_zeros(())
        # Levels of the spans, in value weight . normed + bias.
        weights = is_new[..., None]
        average = (normed * weights).sum(1, keepdim=True) / weights.sum(1, keepdim=True).clamp(min=1)  # [B,1,D]
        weight, bias = self.weight[0], self.bias
        level = (normed - average) @ weight + average @ weight.detach() + bias  # [B,C]
        # The span penalty.
        min_level = -math.log(self.max_span)  # of a span of about one step
        penalized = _linear_beyond_half(level.clamp(min=min_level) if pressure > 0 else level.clamp(max=MAX_LEVEL))
        loss = math.copysign(1, pressure) * penalized.masked_fill(~is_new, 0).sum()
        # The retention hinge.
        if lives is not None:
            last_use = lives.use_in_rollout
            need = (last_use * (1 + self.config.use_margin) + 1) / self.max_span
            need = _linear_beyond_half(torch.logit(need.clamp(1e-6, MAX_NEED)))
            missing = (need - _linear_beyond_half(level)).clamp(min=0).masked_fill(last_use <= 0, 0)
            loss = loss + self.config.use_coef * missing.sum()
        return loss / is_new.sum().clamp(min=1)


def _linear_beyond_half(level: Tensor) -> Tensor:
    """Fractions of L_max by their level, as the loss uses them: the sigmoid up to one half, and from there on its
    steepest slope."""
    return torch.where(level > 0, 0.5 + level / 4, torch.sigmoid(level))
