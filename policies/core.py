"""What a recurrent core is: the part of a policy that remembers.

T time steps, B environments, F final observations, C slots, D width, H heads, L layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from expire_span_rl import protocols

if TYPE_CHECKING:
    from expire_span_rl.policies.memory.state import Memory


@dataclass(frozen=True)
class LayerInspection:
    """Slots and attention of one layer in an unroll. The C slots are those merged in the rollout, those of the memory,
    then the rollout's own."""

    coordinate: Tensor  # [B,C] step at which the slot was written; negative in memory, minus infinity if dead
    covers: Tensor  # int64 [B,C] number of steps that the slot stands for, the last at its coordinate; 1 if not merged
    slot_features: Tensor | None  # [B,C] the kind's number for each slot (Expire-Span: its span in steps)
    visible: Tensor  # [B,T,C] bool
    attention: Tensor  # [B,H,T,C] weights


@dataclass(frozen=True)
class CoreOutput:
    """Features of an unroll, and what learning and inspection need besides them."""

    features: Tensor  # [T,B,D]
    final_features: Tensor  # [F,D]
    loss: Tensor  # scalar, of the memory kind
    layers: tuple[LayerInspection, ...] = ()  # empty unless asked for
    memory: Memory | None = None  # after the last step, without gradient, as in acting; None unless asked for


class Acting(protocols.Acting, Protocol):
    """A memory to act on. The caller owns it, and `step` writes into it."""

    def memory(self) -> Memory:
        """The memory after the last step."""
        ...


class MemoryCore(Protocol):
    """What an ActorCritic asks of its core. The Transformer is one, with a memory kind per layer. The recurrent cores
    are others."""

    layers: Any  # the layers with a memory kind and slots; empty for a core without any

    def initial_memory(self, batch_size: int) -> Memory: ...

    def draw(self, memory: Memory, generator: torch.Generator | None, *, noiseless: bool = False) -> Memory: ...

    def begin(self, memory: Memory, horizon: int, into: Any = None, *, in_rollout: bool = False) -> Acting: ...

    def step(self, x: Tensor, acting: Any, episode_start: Tensor) -> Tensor: ...

    def value(self, x: Tensor, acting: Any, rows: Tensor) -> Tensor: ...

    def unroll(
        self,
        x: Tensor,
        memory: Memory,
        episode_start: Tensor,
        final_x: Tensor,
        final_at: tuple[Tensor, Tensor],
        *,
        pressure: float = 0.0,
        details: bool = False,
        keep: bool = False,
    ) -> CoreOutput: ...
