"""Adaptive-Span (Sukhbaatar et al., ACL 2019, arXiv 1905.07799): every head learns how far back it looks.

B environments, H heads, C slots, N query steps.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from expire_span_rl.policies.memory.kind import Lives, MemoryKind
from expire_span_rl.policies.settings import UNKNOWN_MAX_SPAN, AdaptiveSpanConfig


class AdaptiveSpan(MemoryKind):
    """A span z_h in (0, S_max) per head, the same for all content.

    The soft mask m_h = clip((R + z_h - age) / R, 0, 1) (equation 5) enters attention as log m_h. A slot is removed when
    the head with the longest span no longer sees it.
    """

    Config = AdaptiveSpanConfig
    supports_forgetting = True

    def __init__(self, width: int, num_heads: int, config: AdaptiveSpanConfig):
        super().__init__(width, num_heads, config if config.max_span else replace(config, max_span=UNKNOWN_MAX_SPAN))
        # Spans go through a sigmoid. At the ends of a clamp the gradient would vanish for good.
        self.logit = nn.Parameter(torch.full((num_heads,), math.log(config.initial_span / (1 - config.initial_span))))

    def spans(self) -> Tensor:
        """z [H], in steps."""
        return self.config.max_span * torch.sigmoid(self.logit)

    def _mask(self, age: Tensor, spans: Tensor) -> Tensor:
        return (1 + (spans - age) / self.config.ramp).clamp(0, 1)

    def visibility(self, age: Tensor, slot_features: Tensor | None, exists: Tensor) -> tuple[Tensor, Tensor]:
        spans = self.spans()
        mask = self._mask(age[:, None], spans[:, None, None])  # [B,H,N,C]
        in_head = mask > 0
        term = torch.where(in_head, torch.log(torch.where(in_head, mask, 1)), -math.inf)
        return self._mask(age, spans.max()) > 0, term

    def survives(self, age: Tensor, slot_features: Tensor | None, alive: Tensor) -> Tensor:
        return self._mask(age, self.spans().max()) > 0

    def metrics(self, normed: Tensor) -> dict[str, float]:
        spans = self.spans().detach()
        return {"span_mean": float(spans.mean()), "span_max": float(spans.max())}

    def learning_rate_scale(self, name: str) -> float:
        return self.config.span_lr_scale

    def loss(self, normed: Tensor, is_new: Tensor, lives: Lives | None, noise: Tensor, pressure: float) -> Tensor:
        """pressure * alpha * mean over heads of z_h / S_max (section 3, as a fraction of the longest span).

        Negative pressure lengthens spans. The gradient of the task, which comes through the ramp, works against the
        span penalty. The size of the pressure therefore also sets the weight of the penalty against the task.
        """
        return self.config.span_coef * pressure * torch.sigmoid(self.logit).mean()
