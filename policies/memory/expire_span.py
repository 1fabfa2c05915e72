"""Expire-Span (Sukhbaatar et al., ICML 2021, arXiv 2105.06548): every memory gets a learned span and then expires.

B environments, C slots, N query steps, D model width.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from expire_span_rl.policies.memory.kind import MemoryKind
from expire_span_rl.policies.settings import UNKNOWN_MAX_SPAN, ExpireSpanConfig

LONGEST_NEED = 0.99  # fraction of L_max that a memory can need at most
LONGEST_LEVEL = math.log(LONGEST_NEED / (1 - LONGEST_NEED))  # of the span predictor's output, whose sigmoid that is


class ExpireSpan(MemoryKind):
    """Span e = L_max * sigmoid(w.h + b) per memory, shared by the heads (equation 3); soft mask
    m = clip(1 + (e - age) / R, 0, 1) (equations 4 and 5), which enters attention as log m."""

    Config = ExpireSpanConfig
    presses = True

    def __init__(self, width: int, num_heads: int, config: ExpireSpanConfig):
        super().__init__(width, num_heads, config if config.max_span else replace(config, max_span=UNKNOWN_MAX_SPAN))
        self.span = nn.Linear(width, 1)
        nn.init.zeros_(self.span.weight)
        nn.init.constant_(self.span.bias, math.log(config.initial_span / (1 - config.initial_span)))

    def describe(self, normed: Tensor, drawn: Tensor) -> Tensor:
        """Spans [B,C] in steps."""
        spans = self.config.max_span * torch.sigmoid(self.span(normed).squeeze(-1))
        if self.config.span_dropout and drawn.shape[1]:
            spans = torch.minimum(spans, drawn[:, :1] * self.config.max_span)
        return spans

    def _mask(self, age: Tensor, spans: Tensor) -> Tensor:
        return (1 + (spans - age) / self.config.ramp).clamp(0, 1)

    def visibility(self, age: Tensor, described: Tensor, exists: Tensor) -> tuple[Tensor, Tensor]:
        mask = self._mask(age, described[:, None])  # [B,N,C]
        visible = mask > 0
        return visible, torch.log(torch.where(visible, mask, 1))

    def survives(self, age: Tensor, described: Tensor, alive: Tensor) -> Tensor:
        return self._mask(age, described) > 0

    def figures(self, normed: Tensor) -> dict[str, float]:
        spans = self.describe(normed[None], normed.new_zeros(1, 0))
        return {"span_mean": float(spans.mean())} if spans.numel() else {}

    def draw(self, batch_size: int, generator: torch.Generator | None = None) -> Tensor:
        if not self.config.span_dropout:
            return super().draw(batch_size, generator)
        return torch.rand(batch_size, 1, generator=generator, device=None if generator is None else generator.device)

    def use_lift(self) -> float | None:
        return self.config.use_lift if self.config.use_coef > 0 else None

    def learning_rate_scale(self, name: str) -> float:
        return self.config.span_bias_lr_scale if name.endswith("bias") else self.config.span_lr_scale

    def loss(self, normed: Tensor, new: Tensor, last_use: Tensor | None, drawn: Tensor, pressure: float) -> Tensor:
        """Charge on new memories, defence of used ones: quantile regression of the age of last use.

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
        normed = normed.detach()
        fresh = new[..., None]
        average = (normed * fresh).sum(1, keepdim=True) / fresh.sum(1, keepdim=True).clamp(min=1)  # [B,1,D]
        weight, bias = self.span.weight[0], self.span.bias
        level = (normed - average) @ weight + average @ weight.detach() + bias  # [B,C], in value weight . normed + bias
        spans = _unflattened(level)
        shortest = -math.log(self.config.max_span)  # the level of a span of about one step
        pressed = _unflattened(level.clamp(min=shortest) if pressure > 0 else level.clamp(max=LONGEST_LEVEL))
        loss = math.copysign(1, pressure) * pressed.masked_fill(~new, 0).sum()
        if last_use is not None:
            needed = (last_use * (1 + self.config.use_margin) + 1) / self.config.max_span
            needed = _unflattened(torch.logit(needed.clamp(1e-6, LONGEST_NEED)))
            short = (needed - spans).clamp(min=0).masked_fill(last_use <= 0, 0)
            loss = loss + self.config.use_coef * short.sum()
        return loss * self.config.span_coef / new.sum().clamp(min=1)


def _unflattened(level: Tensor) -> Tensor:
    """Fractions of L_max by their level, as the loss sees them: the sigmoid below one half, and on at its steepest
    above."""
    return torch.where(level > 0, 0.5 + level / 4, torch.sigmoid(level))
