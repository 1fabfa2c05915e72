"""The questions that a memory kind answers.

B environments, T time steps, N query steps, C slots that a query may look at, D model width, H heads, d head width, K
random numbers of a rollout, E merged slots, c members of a block. A slot holds the input of one layer at one step.
Its age at a query is the number of steps since then.
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
    """Blocks of `size` slots, counted from the start of the episode, become one slot each. From `delay` + 1 steps after
    the last member on, a query sees this slot instead of the members."""

    size: int
    delay: int

    def clock(self, birth: Tensor) -> Tensor:
        """Clock of the first query that sees the merged slot instead of the slot born at `birth`."""
        return (torch.div(birth, self.size, rounding_mode="floor") + 1) * self.size + self.delay

    def due(self, clock: Tensor) -> Tensor:
        """Whether a query at this clock is the first that sees a merged slot."""
        return (clock >= self.size + self.delay) & ((clock - self.delay) % self.size == 0)


@dataclass(frozen=True)
class Lives:
    """What became of C slots in a rollout, [B,C] each. Ages are in steps."""

    use_in_rollout: Tensor  # the largest age at which attention used the slot in this rollout; -1: never
    last_use: Tensor  # the largest age at which attention ever used it; 0: never
    first_age: Tensor  # its age after the rollout before; 0 if it was written in this one
    final_age: Tensor  # its age at the first query after the rollout, or after the slot's episode
    ended: Tensor  # bool: the slot's episode ended in this rollout
    exists: Tensor  # bool; also False if it is unknown whether the slot was used before the rollout
    slot_features: Tensor | None  # the kind's numbers of the slots (`MemoryKind.describe`)


class MemoryKind(nn.Module):
    """How one layer remembers. There is one instance per layer. Attention itself belongs to the Transformer.

    A kind answers what a query sees (`visibility`), what that costs (`loss`), which slots become one over time
    (`merging`), and what survives a rollout (`survives`). It gets the existing slots, so that it can rank them.
    `describe` computes from each slot's hidden vector the numbers that the answers need, once per slot and rollout.
    """

    Config: ClassVar[type]  # a frozen dataclass; its fields are command-line flags
    CoreConfig: ClassVar[type] = TransformerConfig
    stores: ClassVar[bool] = True  # False: it keeps no slots
    supports_forgetting: ClassVar[bool] = False
    """True: `loss` follows the pressure, which can lower the number of live memories. The kind's own parameters then
    learn at a rate in proportion to the pressure, by plain Adam."""

    def __init__(self, width: int, num_heads: int, config: Any):
        super().__init__()
        self.config = config

    def learning_rate_scale(self, name: str) -> float:
        """Learning rate of the kind's own parameter `name`, as a multiple of the policy's. For a kind that
        supports_forgetting it holds at full pressure."""
        return 1.0

    def describe(self, normed: Tensor, noise: Tensor) -> Tensor | None:
        """The slot features: a number per slot from its normalised hidden vector, [B,C,D] -> [B,C], or None.
        noise: [B,K], of `draw`."""
        return None

    def describe_renewed(self, normed: Tensor, noise: Tensor, known_need: Tensor) -> Tensor | None:
        """`describe` of slots that are known to have been needed at the ages `known_need` [B,C], 0 if never. Asked
        only of a kind with `renew_every`."""
        return self.describe(normed, noise)

    def visibility(
        self, age: Tensor, slot_features: Tensor | None, exists: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        """What a query sees.

        age: [B,N,C], at least 0 for slots that exist, with `time_gaps` added; slot_features: [B,C] or None; exists:
        bool [B,N,C], the slots of the query's own episode that were written by then, its own among them, and not merged
        or removed.

        Returns (visible to any head, bool [B,N,C], or None for all; additive score term, or None for zero). The term is
        [B,N,C] if the heads share it, else [B,H,N,C]. Where a slot is not visible, the term does not matter.
        """
        return None, None

    def attention_bias(self, age: Tensor, exists: Tensor, slot_features: Tensor | None) -> tuple[Tensor, Tensor]:
        """`visibility` in the form that attention needs, of slots that exist for the query, bool [B,N,C].

        Returns (visible [B,N,C], additive term [B,N,C] or [B,H,N,C]); the term is minus infinity for invisible slots.
        """
        visible, term = self.visibility(age, slot_features, exists)
        visible = exists if visible is None else exists & visible
        if term is None:
            term = torch.zeros((), dtype=age.dtype, device=age.device)
        return visible, torch.where(visible[:, None] if term.ndim == 4 else visible, term, -math.inf)

    def survives(self, age: Tensor, slot_features: Tensor | None, alive: Tensor) -> Tensor:
        """Whether a query of this age still sees the slot, bool [B,C]. age: [B,C]; alive: bool [B,C].

        False is final: the slot is removed, so False must hold for all later queries too. The answer for dead slots
        does not matter.
        """
        return torch.ones_like(age, dtype=torch.bool)

    # Extension: for the few kinds that merge slots

    @property
    def merging(self) -> Merging | None:
        """Which slots become one, and when; None if none do."""
        return None

    def merge(self, blocks: Tensor) -> Tensor:
        """The merged slots [..., D] of blocks of hidden vectors [..., c, D]. Removed members are zeros."""
        raise NotImplementedError

    def merge_loss(
        self, read: Callable[[Tensor], tuple[Tensor, Tensor]], queries: Tensor, blocks: Tensor, visible: Tensor
    ) -> Tensor | None:
        """The loss that trains `merge`. The task does not train it: attention sees merged slots detached.

        read: hidden vectors [B,C,D] -> the layer's keys and values [B,H,C,d], whose weights get no gradient; queries:
        [B,H,T,d], without gradient; blocks: [B,E,c,D], members of the slots merged in this rollout; visible: bool
        [B,T,E].
        """
        return None

    # Learning

    def metrics(self, normed: Tensor) -> dict[str, float]:
        """Metrics for the log, of slots with normalised hidden vectors [N,D]."""
        return {}

    def draw(self, batch_size: int, generator: torch.Generator | None = None, *, noiseless: bool = False) -> Tensor:
        """The random numbers [B,K] of one training rollout, the same for acting and learning. K is 0 if there are
        none. noiseless: without training noise, but as many."""
        return torch.zeros(batch_size, 0)

    def skipped_steps(self, noise: Tensor) -> Tensor | None:
        """Steps [B] of the environments' clocks that are skipped before the rollout for which `noise` [B,K] was drawn.
        None if time is never skipped."""
        return None

    def time_gaps(self, noise: Tensor) -> Tensor | None:
        """Steps [B] that `visibility` gets added to the ages of all slots but the query's own, in the rollout for which
        `noise` [B,K] was drawn, as if so much time had been skipped right before each query. Clocks, relative
        positions, ages of use and `survives` have the true ages. None for 0."""
        return None

    def use_lift(self) -> float | None:
        """How many times the average attention of the other slots some head must give a slot for it to count as used.
        None if `loss` does not need to know."""
        return None

    def use_share(self) -> float:
        """The least share of a head's attention that counts as use."""
        return 0.0

    def use_enough(self) -> float:
        """A share of a head's attention that counts as use however many slots the query sees, at least `use_share`."""
        return 1.0

    def tracks_use(self) -> bool:
        """Whether memories carry the clock of their last use in the next training rollout."""
        return False

    def renew_every(self) -> int:
        """Steps of the environment's clock between two times at which the slot features are computed again, from what
        was used until then (`describe_renewed`). In training it happens at the start of each rollout instead. 0:
        never."""
        return 0

    def observe_needs(self) -> None:
        """Called between two rollouts once the task was learned. From then on `loss` learns how long memories are
        needed."""

    def release(self) -> None:
        """Called between two rollouts once that is known. From then on memories may be kept for as long as they are
        needed."""

    def bind(self) -> None:
        """Called between two rollouts where that harms. Memories are kept as before `release`, and `loss` goes on
        learning."""

    def tighten(self, share: float) -> None:
        """Called after each update between `release` and `bind`. Moves by a share of the way from where few memories
        that are needed expire to where more do. share: negative for the way back."""

    @property
    def can_skip_time(self) -> bool:
        """Whether `skipped_steps` or `time_gaps` are ever other than 0 after `release`. In the last one of
        `CONTROL_EVERY` environments they must be 0."""
        return False

    def keep_time(self) -> None:
        """Called between two rollouts where skipped time harms. From then on they must be 0."""

    def unreleased_reach(self) -> float | None:
        """Steps after which every memory is gone while `release` has not been called; None after it, and for a kind
        that needs no release."""
        return None

    def is_used(self, weights: Tensor, num_visible: Tensor) -> Tensor:
        """Whether attention used the slots, bool [B,...,C]. weights: [B,H,...,C]; num_visible: [B,...,1], the number of
        slots that the query sees."""
        lift = self.use_lift() or math.inf
        least = lift / (num_visible + (lift - 1))  # w / (1 - w) * others > lift, solved for w
        return weights.amax(1) > least.clamp(min=self.use_share(), max=self.use_enough())

    def attention_cost(self, weights: Tensor, age: Tensor, pressure: float) -> Tensor | None:
        """A loss on what queries attend to, a scalar, or None. weights: [B,H,N,C], with a gradient; age: [B,N,C];
        pressure: the controller's, in [-1, 1]."""
        return None

    def loss(
        self, normed: Tensor, is_new: Tensor, lives: Lives | None, noise: Tensor, pressure: float
    ) -> Tensor | None:
        """The kind's loss, a scalar, or None.

        normed: [B,C,D]; is_new: bool [B,C], written in this rollout; lives: what became of the slots, None without
        pressure or for a kind without `use_lift`; noise: [B,K]; pressure: the controller's, in [-1, 1].
        """
        return None
