"""The questions that a memory kind answers.

B environments, L layers, S slots of a layer, N query steps, C slots that a query may look at, D model width, H heads.
A slot holds the input of one layer at one step; its age at a query is the number of steps since then.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from expire_span_rl.policies.settings import TransformerConfig


@dataclass(frozen=True)
class Merging:
    """Blocks of `size` slots, counted from the start of the episode, become one slot each, which is what a query sees
    instead of its members from `delay` + 1 steps after the last of them on."""

    size: int
    delay: int

    def clock(self, birth: Tensor) -> Tensor:
        """Clock of the first query that sees no longer a slot born at `birth` but what its block became."""
        return (torch.div(birth, self.size, rounding_mode="floor") + 1) * self.size + self.delay

    def due(self, clock: Tensor) -> Tensor:
        """Is a query at this clock the first that sees a merged slot?"""
        return (clock >= self.size + self.delay) & ((clock - self.delay) % self.size == 0)


@dataclass(frozen=True)
class Lives:
    """What became of C slots in a rollout, [B,C] each. Ages are in steps."""

    used_here: Tensor  # the largest age at which attention used the slot in this rollout, -1: never
    last_use: Tensor  # the largest age at which it ever did, 0: never
    age: Tensor  # at the first query after the rollout, or after the slot's episode
    ended: Tensor  # bool: the slot's episode ended in this rollout
    exists: Tensor  # bool; False too where it is not known whether the slot was used before the rollout
    slot_features: Tensor | None  # what the kind's `describe` says of the slots


class MemoryKind(nn.Module):
    """How one layer remembers. One instance per layer; attention itself is the Transformer's.

    A kind answers: what a query sees (`visibility`), what that costs (`loss`), which slots become one in the course of
    time (`merging`), and what survives a rollout (`survives`). It is told which slots there are, so that it can rank
    them.
    `describe` turns each slot's hidden vector into the numbers those questions need, once per slot and rollout.
    """

    Config: ClassVar[type]  # a frozen dataclass; its fields are command-line flags
    CoreConfig: ClassVar[type] = TransformerConfig
    stores: ClassVar[bool] = True  # False: it keeps no slots
    supports_forgetting: ClassVar[bool] = False
    """True: `loss` heeds the pressure, so that live memories can be brought down; the kind's own parameters then learn
    at a rate in proportion to it, by plain Adam."""

    def __init__(self, width: int, num_heads: int, config: Any):
        super().__init__()
        self.config = config

    def learning_rate_scale(self, name: str) -> float:
        """Learning rate of the kind's own parameter `name` as a multiple of the policy's, at full pressure if it
        supports_forgetting."""
        return 1.0

    def describe(self, normed: Tensor, span_limit: Tensor) -> Tensor | None:
        """Numbers per slot from its normalised hidden vector [B,C,D] -> [B,C], or None. span_limit: [B,K]."""
        return None

    def visibility(
        self, age: Tensor, slot_features: Tensor | None, exists: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        """What a query sees. age: [B,N,C] >= 0 of the slots that exist for it; slot_features: [B,C] or None; exists:
        bool [B,N,C], the slots of the query's own episode that were written by then, its own among them, and not merged
        or removed.

        Returns (visible [B,N,C] bool, to any head, or None for all; additive score term, [B,N,C] if the heads share it,
        else [B,H,N,C], or None for zero). Where a slot is not visible the term does not matter.
        """
        return None, None

    def seen(self, age: Tensor, exists: Tensor, slot_features: Tensor | None) -> tuple[Tensor, Tensor]:
        """`visibility` of the slots that exist for the query, `exists` [B,N,C] bool, as attention wants it: (seen
        [B,N,C], additive term [B,N,C] or [B,H,N,C], minus infinity for what is not seen)."""
        visible, term = self.visibility(age, slot_features, exists)
        seen = exists if visible is None else exists & visible
        if term is None:
            term = torch.zeros((), dtype=age.dtype, device=age.device)
        return seen, torch.where(seen[:, None] if term.ndim == 4 else seen, term, -math.inf)

    def survives(self, age: Tensor, slot_features: Tensor | None, alive: Tensor) -> Tensor:
        """[B,C] bool: will a query of this age [B,C] still see the slot, of those that are alive, bool [B,C]? False is
        final: the slot is removed, so it must hold for all queries after that one too. What dead slots get does not
        matter."""
        return torch.ones_like(age, dtype=torch.bool)

    # Extension: for the few kinds that merge slots

    @property
    def merging(self) -> Merging | None:
        """Which slots become one, and when; None if none do."""
        return None

    def merge(self, blocks: Tensor) -> Tensor:
        """What blocks of hidden vectors [..., c, D] become: [..., D]. Where a member was removed there are zeros."""
        raise NotImplementedError

    def merge_loss(
        self, read: Callable[[Tensor], tuple[Tensor, Tensor]], queries: Tensor, blocks: Tensor, seen: Tensor
    ) -> Tensor | None:
        """What `merge` learns from. The task teaches it nothing: attention sees merged slots detached.

        read: hidden vectors [B,C,D] -> the layer's keys and values [B,H,C,d]; queries: [B,H,T,d], without gradient,
        like the weights in `read`; blocks: [B,E,c,D] members of the slots merged in this rollout; seen: [B,T,E] bool.
        """
        return None

    def figures(self, normed: Tensor) -> dict[str, float]:
        """Figures for the log, of slots with normalised hidden vectors [N,D]."""
        return {}

    def draw(self, batch_size: int, generator: torch.Generator | None = None) -> Tensor:
        """[B,K] random numbers that hold for one training rollout, the same for acting and learning."""
        return torch.zeros(batch_size, 0)

    def use_lift(self) -> float | None:
        """How many times the attention of the average other slot some head must give one for it to count as used; None
        if `loss` does not ask."""
        return None

    def tracks_use(self) -> bool:
        """Whether memories are to carry the clock of their last use along in the next training rollout."""
        return False

    def release(self) -> None:
        """Called between two rollouts once the task was learned: from here on memories may be kept for as long as they
        are needed."""

    def used(self, weights: Tensor, visible: Tensor) -> Tensor:
        """Whether attention used the slots: weights [B,H,...,C], of `visible` [B,...,1] slots -> bool [B,...,C]."""
        lift = self.use_lift() or math.inf
        return weights.amax(1) > lift / (lift + visible - 1)  # w / (1 - w) * others > lift, solved for w

    def loss(
        self, normed: Tensor, new: Tensor, lives: Lives | None, span_limit: Tensor, pressure: float
    ) -> Tensor | None:
        """The kind's loss. normed: [B,C,D]; new: [B,C] bool, written in this rollout; lives: what became of the slots,
        None without pressure or for a kind without `use_lift`; span_limit: [B,K]; pressure: the controller's, in [-1, 1]."""
        return None
