"""Expire-Span (Sukhbaatar et al., ICML 2021, arXiv 2105.06548): every memory gets a learned span and then expires.

B environments, C slots, N query steps, D model width. A module of its own predicts and learns the spans:
`survival_spans` or, as in the paper, `sigmoid_spans`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from expire_span_rl.policies.memory.kind import Lives, MemoryKind
from expire_span_rl.policies.memory.sigmoid_spans import SigmoidSpans
from expire_span_rl.policies.memory.survival_spans import SurvivalSpans
from expire_span_rl.policies.settings import ExpireSpanConfig

PREDICTORS: dict[str, type[SurvivalSpans | SigmoidSpans]] = {"survival": SurvivalSpans, "sigmoid": SigmoidSpans}


class ExpireSpan(MemoryKind):
    """A span e per memory, shared by the heads. The soft mask m = clip(1 + (e - age) / R, 0, 1) (equations 4 and 5)
    enters attention as log m. Without a ramp, R = 0, m is 1 at ages below e, and then 0."""

    Config = ExpireSpanConfig
    supports_forgetting = True

    def __init__(self, width: int, num_heads: int, config: ExpireSpanConfig):
        super().__init__(width, num_heads, config)
        self.span = PREDICTORS[config.span_model](width, config)

    def describe(self, normed: Tensor, noise: Tensor) -> Tensor:
        """Spans [B,C] in steps."""
        return self.span.limited(self.span(normed), noise)

    def describe_renewed(self, normed: Tensor, noise: Tensor, known_need: Tensor) -> Tensor:
        """Spans [B,C] of memories that were needed at the ages `known_need` [B,C]."""
        assert isinstance(self.span, SurvivalSpans)
        return self.span.limited(self.span(normed, known_need), noise)

    def _mask(self, age: Tensor, spans: Tensor) -> Tensor:
        if self.config.ramp == 0:
            return (age < spans).to(spans.dtype)
        return (1 + (spans - age) / self.config.ramp).clamp(0, 1)

    def visibility(self, age: Tensor, slot_features: Tensor, exists: Tensor) -> tuple[Tensor, Tensor]:
        mask = self._mask(age, slot_features[:, None])  # [B,N,C]
        visible = mask > 0
        return visible, torch.log(torch.where(visible, mask, 1))

    def survives(self, age: Tensor, slot_features: Tensor, alive: Tensor) -> Tensor:
        return self._mask(age, slot_features) > 0

    def metrics(self, normed: Tensor) -> dict[str, float]:
        """span_mean: of the finite spans of these live memories [N,D]; kept_for_good: the share of infinite ones;
        use_coef: if it moves."""
        spans = self.describe(normed[None], normed.new_zeros(1, 0))
        if not spans.numel():
            return {}
        finite = spans[torch.isfinite(spans)]
        mean = {"span_mean": float(finite.mean())} if finite.numel() else {}
        return {**mean, "kept_for_good": 1 - finite.numel() / spans.numel(), **self.span.metrics()}

    def draw(self, batch_size: int, generator: torch.Generator | None = None, *, noiseless: bool = False) -> Tensor:
        return self.span.draw(batch_size, generator, noiseless)

    def skipped_steps(self, noise: Tensor) -> Tensor | None:
        return self.span.skipped_steps(noise)

    def time_gaps(self, noise: Tensor) -> Tensor | None:
        return self.span.time_gaps(noise)

    def use_lift(self) -> float | None:
        return self.config.use_lift if self.config.use_coef > 0 else None

    def use_share(self) -> float:
        return self.config.use_share

    def use_enough(self) -> float:
        return self.config.use_enough

    def tracks_use(self) -> bool:
        return self.span.tracks_use

    def learning_rate_scale(self, name: str) -> float:
        scale = self.config.span_bias_lr_scale if name.endswith("bias") else self.config.span_lr_scale
        return scale * self.span.rate

    def renew_every(self) -> int:
        return self.config.renew_every if self.tracks_use() else 0

    def observe_needs(self) -> None:
        self.span.observe_needs()

    def release(self) -> None:
        self.span.release()

    def bind(self) -> None:
        self.span.bind()

    def tighten(self, share: float) -> None:
        self.span.tighten(share)

    @property
    def can_skip_time(self) -> bool:
        return self.span.can_skip_time

    def keep_time(self) -> None:
        self.span.keep_time()

    def unreleased_reach(self) -> float | None:
        return self.span.unreleased_reach()

    def attention_cost(self, weights: Tensor, age: Tensor, pressure: float) -> Tensor | None:
        """--attention-cost times the number of memories that a rollout uses, per query. A memory older than the ramp
        counts as the largest share of attention that it gets, from any head and query. None until spans follow needs:
        what is still being learned may have to look at many memories first."""
        cost = self.config.attention_cost * pressure
        if cost <= 0 or self.unreleased_reach() is not None:
            return None
        is_old = age > self.config.ramp
        largest = (weights * is_old[:, None]).amax((1, 2))  # [B,C]
        return cost * largest.sum(-1).mean() / weights.shape[2]

    def loss(self, normed: Tensor, is_new: Tensor, lives: Lives | None, noise: Tensor, pressure: float) -> Tensor:
        """The span predictor's loss, times --span-coef. It trains the predictor only: hidden vectors are detached."""
        return self.config.span_coef * self.span.loss(normed.detach(), is_new, lives, pressure)
