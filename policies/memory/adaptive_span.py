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
    """Span z_h in (0, S_max) per head, the same for all content; soft mask m_h = clip((R + z_h - age) / R, 0, 1)
    (equation 5), which enters attention as log m_h. A slot is gone when the longest head no longer sees it."""

    Config = AdaptiveSpanConfig
    supports_forgetting = True

    def __init__(self, width: int, num_heads: int, config: AdaptiveSpanConfig):
        super().__init__(width, num_heads, config if config.max_span else replace(config, max_span=UNKNOWN_MAX_SPAN))
        # Spans go through a sigmoid, not a clamp, at whose ends the gradient would vanish for good.
        self.logit = nn.Parameter(torch.full((num_heads,), math.log(config.initial_span / (1 - config.initial_span))))

    def spans(self) -> Tensor:
        """z [H], in steps."""
        return self.config.max_span * torch.sigmoid(self.logit)

    def _mask(self, age: Tensor, spans: Tensor) -> Tensor:
        return (1 + (spans - age) / self.config.ramp).clamp(0, 1)

    def visibility(self, age: Tensor, slot_features: Tensor | None, exists: Tensor) -> tuple[Tensor, Tensor]:
        mask = self._mask(age[:, None], self.spans()[:, None, None])  # [B,H,N,C]
        seen = mask > 0
        return self._mask(age, self.spans().max()) > 0, torch.where(
            seen, torch.log(torch.where(seen, mask, 1)), -math.inf
        )

    def survives(self, age: Tensor, slot_features: Tensor | None, alive: Tensor) -> Tensor:
        return self._mask(age, self.spans().max()) > 0

    def figures(self, normed: Tensor) -> dict[str, float]:
        spans = self.spans().detach()
        return {"span_mean": float(spans.mean()), "span_max": float(spans.max())}

    def learning_rate_scale(self, name: str) -> float:
        return self.config.span_lr_scale

    def loss(self, normed: Tensor, new: Tensor, lives: Lives | None, span_limit: Tensor, pressure: float) -> Tensor:
        """pressure * alpha * mean over heads of z_h / S_max (section 3, as a fraction of the longest span). Negative
        pressure lengthens spans; what defends them is the gradient of the task, which comes through the ramp: how
        strong the pressure is therefore also says how the charge stands to the task."""
        return self.config.span_coef * pressure * torch.sigmoid(self.logit).mean()
