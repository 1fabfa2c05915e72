"""Spans without an upper bound: a survival curve is learned of how long a memory is needed.

B environments, C slots, D model width, K bins of age, N chosen memories.

A memory's last use may fall into any of K bins of age: [0, 1), [1, 2), [2, 4), [4, 8), ... up to 2**24 steps, where
float32 stops counting single steps. Its hazard h_k = sigmoid(w_k . h + b_k) is the probability that the last use falls
into bin k, given that it falls into no earlier bin (discrete-time survival analysis: Singer and Willett, 1993). The
memory is still needed at age a with probability S(a): the product of 1 - h_k over the bins before a, and of a part of
the bin that holds a.

The span is the age at which S falls to 1 / use_coef. It is infinite if S never does: the memory is then kept for good.
A memory that was used at age u is known to be needed until then. Its need has the survival curve S(a) / S(u), and its
span is the age at which that falls to 1 / use_coef. Pressure moves use_coef between --use-coef and --min-use-coef.
docs/forgetting.md derives the loss.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expire_span_rl.policies.memory.kind import Lives
from expire_span_rl.policies.settings import UNKNOWN_MAX_SPAN, ExpireSpanConfig
from expire_span_rl.protocols import is_control

INITIAL_LOGIT = -4.0  # of all hazards: at the start no memory is known to become useless
LAST_EXPONENT = 24  # the last bin ends at 2 to this power
OBSERVING, RELEASED, TIME_KEPT = 0.5, 1.0, 2.0
"""Values of `released`: while needs are observed and spans do not follow them (before `release`, or after `bind`), from
`release` on, and from `keep_time` on."""
SKIPPED_RAMPS = 4
"""At most so many ramps of steps (of at least one step each) are skipped at a time, and by so many memories look older
at most. More would not teach more, since a ramp is enough for what was only just seen to expire. What is skipped counts
as watched, as does what a gap hides. Both should be little of what a memory is watched for."""
PATIENCE = 2.0
"""A use counts as the last one if the memory was then watched, without another use, until it was this many times as
old. Otherwise more uses may have followed: the need is right-censored."""

UNSEEN_SPAN = 0.7
"""In steps. Without a ramp, a memory with a span below 1 expires before any query sees it. Were nothing learned of it
from there on, its curve would stay just below 1 / use_coef, and the next small change of the weights would keep it for
good. Were its span to fall further and further, negative pressure would take too long to bring it back."""


def bin_edges() -> Tensor:
    """[K+1]: 0, 1, 2, 4, 8, ..."""
    return torch.tensor([0.0, *(2.0**k for k in range(LAST_EXPONENT + 1))])


class SurvivalSpans(nn.Module):
    """Spans from the hazards of the last use. Until `release`, and after `bind`, all spans are `initial_limit` steps
    long."""

    rate = 2.0
    """Learning rate as a multiple of the config's: these logits have a longer way to go than a sigmoid's input."""
    edges: Tensor
    released: Tensor
    log_use_coef: Tensor | float
    """Of the use_coef that spans are computed with. A tensor if it moves."""

    def __init__(self, width: int, config: ExpireSpanConfig):
        super().__init__()
        self.config = config
        self.max_span = config.max_span or math.inf
        self.initial_limit = float(min(config.initial_limit or UNKNOWN_MAX_SPAN, self.max_span))
        self.register_buffer("edges", bin_edges(), persistent=False)
        self.register_buffer("released", torch.tensor(0.0))
        if config.min_use_coef:
            self.register_buffer("log_use_coef", torch.tensor(math.log(config.use_coef)))
        else:
            self.log_use_coef = math.log(config.use_coef)
        bins = len(self.edges) - 1
        self.weight = nn.Parameter(torch.zeros(bins, width))
        self.bias = nn.Parameter(torch.full((bins,), INITIAL_LOGIT))

    def observe_needs(self) -> None:
        """From now on survival curves are learned. Spans stay `initial_limit` steps long until `release`."""
        self.released.clamp_(min=OBSERVING)

    def release(self) -> None:
        """From now on spans are as long as their memories are needed, up to --max-span if that is set."""
        self.released.clamp_(min=RELEASED)

    def bind(self) -> None:
        """From now on spans are `initial_limit` steps long again, while needs are observed."""
        self.released.fill_(OBSERVING)
        if isinstance(self.log_use_coef, Tensor):
            self.log_use_coef.fill_(math.log(self.config.use_coef))

    def tighten(self, share: float) -> None:
        """After `release`, moves use_coef by a share of the way from --use-coef to --min-use-coef, on a logarithmic
        scale. share: negative for the way back. Does nothing without --min-use-coef."""
        if isinstance(self.log_use_coef, Tensor):
            highest, lowest = math.log(self.config.use_coef), math.log(self.config.min_use_coef)
            step = share * (highest - lowest) * (self.released >= RELEASED)
            self.log_use_coef.sub_(step).clamp_(lowest, highest)

    def metrics(self) -> dict[str, float]:
        """use_coef, if it moves."""
        return {"use_coef": float(self.log_use_coef.exp())} if isinstance(self.log_use_coef, Tensor) else {}

    @property
    def can_skip_time(self) -> bool:
        """Whether time is skipped in some rollouts after `release`."""
        return self.config.time_skips > 0 or self.config.time_gaps > 0

    def keep_time(self) -> None:
        """From now on no time is skipped. Spans are as after `release`."""
        self.released.fill_(TIME_KEPT)

    def unreleased_reach(self) -> float | None:
        """Span and ramp of all memories before `release`; None after it."""
        return self.initial_limit + self.config.ramp if float(self.released) < RELEASED else None

    def draw(self, batch_size: int, generator: torch.Generator | None, noiseless: bool) -> Tensor:
        """[B,2]: steps to skip before a training rollout, and by how many steps memories look older in it. 0 in most
        rows, in those of controls, before `release`, after `keep_time`, and if noiseless. [B,0] if there are never
        any."""
        chances = (self.config.time_skips, self.config.time_gaps)
        if not any(chances):
            return torch.zeros(batch_size, 0)
        device = self.released.device if generator is None else generator.device
        chance, size = torch.rand(2, batch_size, len(chances), generator=generator, device=device)
        steps = 1 + (size * SKIPPED_RAMPS * max(self.config.ramp, 1)).floor()
        is_skipping = (self.released == RELEASED).to(device)
        controls = is_control(torch.arange(batch_size, device=device), batch_size)
        may_skip = is_skipping & ~controls[:, None] & (not noiseless)
        return torch.where((chance < chance.new_tensor(chances)) & may_skip, steps, 0)

    def limited(self, spans: Tensor, noise: Tensor) -> Tensor:
        """The spans [B,C]: nothing that is drawn limits them."""
        return spans

    def skipped_steps(self, noise: Tensor) -> Tensor | None:
        """[B]; None if nothing was drawn."""
        return noise[:, 0] if noise.shape[1] else None

    def time_gaps(self, noise: Tensor) -> Tensor | None:
        """[B]; None if nothing was drawn, or certainly nothing but zeros."""
        return noise[:, 1] if noise.shape[1] and not self.is_known_unreleased() else None

    @property
    def tracks_use(self) -> bool:
        """Whether the ages of last use are needed. Nothing is learned before `observe_needs`."""
        return bool(self.released)

    def is_known_unreleased(self) -> bool:
        """Whether all spans are certainly `initial_limit`. A GPU is not asked, since that would mean waiting for
        it."""
        return self.released.device.type == "cpu" and float(self.released) < RELEASED

    @torch.no_grad()
    def forward(self, normed: Tensor, known_need: Tensor | None = None) -> Tensor:
        """Spans [B,C] in steps of memories with normalised hidden vectors [B,C,D]; infinity for those kept for good.

        known_need: [B,C] age at which each memory is known to have been needed, None for 0. Uses within the ramp do not
        count. Spans get no gradient from the task through the ramp. They learn from `loss` only, that is from how long
        memories are needed.
        """
        if self.is_known_unreleased():
            return normed.new_full(normed.shape[:-1], self.initial_limit)
        bin_hazard = F.softplus(F.linear(normed, self.weight, self.bias))  # [B,C,K] -log(1 - h_k)
        hazard = bin_hazard.cumsum(-1)  # -log S at the end of each bin
        threshold = self.log_use_coef  # -log S at the span
        if known_need is not None:
            threshold = threshold + self._hazard_until(known_need.to(normed.dtype), bin_hazard, hazard)
        k = (hazard < threshold).sum(-1, keepdim=True)  # the bin in which S falls so far; K if none
        in_range = k.clamp(max=len(self.edges) - 2)
        bin_hazard = bin_hazard.gather(-1, in_range)
        fraction = (threshold - hazard.gather(-1, in_range) + bin_hazard) / bin_hazard  # of the bin, at the span
        lower = self.edges.take(in_range)
        width = lower.clamp(min=1)  # of a bin: 1, 1, 2, 4, ...
        spans = torch.addcmul(lower, fraction, width).masked_fill(k != in_range, math.inf).squeeze(-1)
        if math.isfinite(self.max_span):
            spans = spans.clamp(max=self.max_span)
        if self.released.device.type == "cpu":  # released: see above
            return spans
        return torch.where(self.released >= RELEASED, spans, self.initial_limit)

    def _hazard_until(self, age: Tensor, bin_hazard: Tensor, hazard: Tensor) -> Tensor:
        """-log S at the ages [B,C]: [B,C,1]. bin_hazard, hazard: [B,C,K] of the bins, and at their ends."""
        age = torch.where(age > self.config.ramp, age, 0)[..., None]
        k = torch.bucketize(age, self.edges[1:-1], right=True)
        fraction = (age - self.edges[k]) / (self.edges[k + 1] - self.edges[k])
        return hazard.gather(-1, k) - (1 - fraction) * bin_hazard.gather(-1, k)

    def loss(self, normed: Tensor, is_new: Tensor, lives: Lives | None, pressure: float) -> Tensor:
        """A sum over memories, divided by the number of new memories of the rollout. Arguments are `MemoryKind.loss`'s,
        `normed` detached.

        Under positive pressure it is a negative log-likelihood. Each memory counts once: in the rollout in which its
        life ends (its episode ends, or it expires), or in which it has gone unused for so long that its last use is
        taken as known (`_needs`). Let u be the age of its last use, and k the bin of u. If it was then watched until it
        was PATIENCE times as old, it contributes -log h_k - sum_{i<k} log(1 - h_i). Otherwise its need is
        right-censored: at least u. It then contributes the sum alone. Uses within the ramp do not count, since every
        memory lives that long.

        Under negative pressure, when success was lost, it is the cumulative hazard of the new memories divided by
        use_coef, so that all spans grow. An unused memory that is about to expire then pulls as strongly as it pushes
        under positive pressure. With a stronger pull, Adam would take far smaller steps for long afterwards. Before
        `release` it is 0, since spans have no part in the loss of success.

        The gradient of the weights comes from what distinguishes a memory from the average new memory of its row. The
        gradient of the bias comes from what all memories share (docs/forgetting.md).
        """
        if pressure == 0 or lives is None or not self.tracks_use:
            return normed.new_zeros(())
        # What all memories of a row share.
        weights = is_new[..., None]
        average = (normed * weights).sum(1) / weights.sum(1).clamp(min=1)  # [B,D]
        common = F.linear(average, self.weight.detach(), self.bias)  # [B,K]
        num_new = is_new.sum().clamp(min=1)
        if pressure < 0:
            row, slot, counts = _select(is_new)
            hazard = F.softplus(self._logits(normed[row, slot], average[row], common[row])).sum(-1)
            return (hazard * counts).sum() / num_new / self.config.use_coef * (self.released >= RELEASED)
        need, is_counted, is_last = self._needs(lives)
        row, slot, counts = _select(is_counted)
        logits = self._logits(normed[row, slot], average[row], common[row])  # [N,K]
        loss = self._negative_log_likelihood(logits, need[row, slot], is_last[row, slot])
        return (loss * counts).sum() / num_new

    def _logits(self, normed: Tensor, average: Tensor, common: Tensor) -> Tensor:
        """[N,K] of memories [N,D]. average: [N,D], of their rows; common: [N,K], what the bias and the averages
        give."""
        return F.linear(normed - average, self.weight) + common

    def _needs(self, lives: Lives) -> tuple[Tensor, Tensor, Tensor]:
        """How long the memories were needed, [B,C] each.

        Returns (need: the age of the last use plus the margin, 0 if it was within the ramp; is_counted: bool, the
        memory counts in this rollout; is_last: bool, that use counts as the last one).

        A memory that lives on counts as soon as it was watched until it was PATIENCE times as old as at its last use,
        and at least `initial_limit` old, for which time facts may be needed. Otherwise what is kept for good would
        count at the end of its episode only, much later than what expires.

        Without a ramp a memory may expire before any query sees it. It then counts as one that was seen and not used
        while its span is at least UNSEEN_SPAN.
        """
        assert lives.slot_features is not None
        reach = lives.slot_features + self.config.ramp
        expired = ~lives.ended & (lives.final_age >= reach)
        watched = torch.minimum(lives.final_age - 1, reach)
        watched = torch.where(expired & (lives.slot_features >= UNSEEN_SPAN), watched.clamp(min=1), watched)
        beyond_ramp = lives.last_use > self.config.ramp
        need = torch.where(beyond_ramp, lives.last_use * (1 + self.config.use_margin), 0)
        patience = PATIENCE * need + 1
        known_at = patience.clamp(min=self.initial_limit)  # the age until which it must have been watched
        has_counted = lives.first_age - 1 >= known_at
        is_counted = lives.exists & ~has_counted & (lives.ended | expired | (watched >= known_at))
        return need, is_counted, is_counted & (watched >= patience)

    def _negative_log_likelihood(self, logits: Tensor, need: Tensor, is_last: Tensor) -> Tensor:
        """[N] nats, of logits [N,K]."""
        k = torch.bucketize(need, self.edges[1:-1], right=True)[:, None]  # [N,1]
        is_earlier_bin = torch.arange(logits.shape[-1], device=logits.device) < k
        survival = F.softplus(logits).masked_fill(~is_earlier_bin, 0).sum(-1)
        event = F.softplus(-logits.gather(-1, k)).squeeze(-1)
        return survival + event.masked_fill(~is_last, 0)


def _select(mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Row and column of entries of a mask [B,C], and which of these count, [N] each.

    On a CPU they are the entries that are set. On a GPU they are all entries, and those that are not set do not count:
    their number would have to be asked for.
    """
    if not mask.is_cuda:
        row, column = torch.nonzero(mask, as_tuple=True)
        return row, column, torch.ones_like(row, dtype=torch.bool)
    row, column = torch.cartesian_prod(*(torch.arange(n, device=mask.device) for n in mask.shape)).unbind(1)
    return row, column, mask.flatten()
