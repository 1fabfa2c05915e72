"""What a recurrent core gives back. T time steps, B environments, F final observations, C slots, D width, H heads."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class LayerInspection:
    """What one layer did in an unroll. C slots: those that came into being, those of the memory, then the rollout's."""

    coordinate: Tensor  # [B,C] step at which the slot was written; negative in memory, minus infinity if dead
    covers: Tensor  # int64 [B,C] steps that the slot stands for, the last of which is its coordinate: 1 if not merged
    described: Tensor | None  # [B,C] the kind's number per slot (Expire-Span: its span in steps)
    visible: Tensor  # [B,T,C] bool
    attention: Tensor  # [B,H,T,C] weights


@dataclass(frozen=True)
class CoreOutput:
    """Features of an unroll, and what learning and looking need beside them."""

    features: Tensor  # [T,B,D]
    final_features: Tensor  # [F,D]
    loss: Tensor  # scalar, of the memory kind
    layers: tuple[LayerInspection, ...] = ()
