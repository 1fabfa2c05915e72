"""Spans without an end: how long a memory is needed, learned as a survival curve.

B environments, C slots, D model width, K bins of age.

A memory's last use may fall into any of K bins of age: [0, 1), [1, 2), [2, 4), [4, 8), ... up to 2**24 steps, where
float32 stops counting single steps. Its hazards h_k = sigmoid(w_k . h + b_k) are the probabilities that it falls into
bin k, given that it does not come before (discrete-time survival analysis: Singer and Willett, 1993). The memory is
still needed at age a with probability S(a), the product of 1 - h_k over the bins before a, in part for the bin that
holds a. The span is the age at which S falls to 1 / use_coef, and infinite if it never does: then the memory is kept for
good. docs/forgetting.md derives the loss.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expire_span_rl.policies.memory.kind import Lives
from expire_span_rl.policies.settings import UNKNOWN_MAX_SPAN, ExpireSpanConfig

FIRST_LOGIT = -4.0  # of all hazards at the start: no memory is known to become useless
LONGEST = 24  # the last bin ends at 2 to this power
PATIENCE = 2.0
"""A use is taken for the last one if the memory was then watched until it was this many times as old, without another.
Otherwise more uses may have been to come: the need is right-censored."""


def bin_edges() -> Tensor:
    """[K+1]: 0, 1, 2, 4, 8, ..."""
    return torch.tensor([0.0, *(2.0**k for k in range(LONGEST + 1))])


class SurvivalSpans(nn.Module):
    """Spans from the hazards of the last use. Until `release` all spans are `initial_limit` steps long."""

    rate = 2.0  # of learning, as a multiple of the config's: these logits have further to go than a sigmoid's level
    edges: Tensor
    released: Tensor

    def __init__(self, width: int, config: ExpireSpanConfig):
        super().__init__()
        self.config = config
        self.longest = config.max_span or math.inf
        self.initial_limit = float(min(config.initial_limit or UNKNOWN_MAX_SPAN, self.longest))
        self.register_buffer("edges", bin_edges(), persistent=False)
        self.register_buffer("released", torch.tensor(0.0))  # 1 from `release` on
        bins = len(self.edges) - 1
        self.weight = nn.Parameter(torch.zeros(bins, width))
        self.bias = nn.Parameter(torch.full((bins,), FIRST_LOGIT))

    def release(self) -> None:
        """From here on spans are as long as their memories are needed, and --max-span bounds them if it is set."""
        self.released.fill_(1.0)

    @property
    def tracks_use(self) -> bool:
        """Whether the ages of last use are needed: nothing is learned before `release`."""
        return bool(self.released)

    def known_unreleased(self) -> bool:
        """Whether all spans are sure to be `initial_limit`; a GPU is not asked, since that would be to wait for it."""
        return self.released.device.type == "cpu" and not self.released

    @torch.no_grad()
    def forward(self, normed: Tensor) -> Tensor:
        """Spans [B,C] in steps of memories with normalised hidden vectors [B,C,D]; infinity for those kept for good.
        They get no gradient: what is needed teaches them, not what the task makes of the ramp."""
        if self.known_unreleased():
            return normed.new_full(normed.shape[:-1], self.initial_limit)
        steps = F.softplus(F.linear(normed, self.weight, self.bias))  # [B,C,K] -log(1 - h_k)
        hazard = steps.cumsum(-1)  # -log S at the end of each bin
        threshold = math.log(self.config.use_coef)
        k = (hazard < threshold).sum(-1, keepdim=True)  # the bin in which S falls to 1 / use_coef
        inside = k.clamp(max=len(self.edges) - 2)
        step = steps.gather(-1, inside)
        part = (threshold - hazard.gather(-1, inside) + step) / step
        lower, upper = self.edges[inside], self.edges[inside + 1]
        spans = torch.where(k == inside, lower + part * (upper - lower), math.inf).squeeze(-1)
        return torch.where(self.released > 0, spans.clamp(max=self.longest), self.initial_limit)

    def loss(self, normed: Tensor, new: Tensor, lives: Lives | None, pressure: float) -> Tensor:
        """Mean over the new memories of a rollout; arguments are `MemoryKind.loss`'s, `normed` detached.

        Under pressure it is the negative log-likelihood of what was seen of the memories whose life ended in this
        rollout, because their episode ended or they expired. One that was last used at age u and then watched until it
        was PATIENCE times as old contributes -log h_k - sum_{i<k} log(1 - h_i), where k is the bin of u. Of any other
        the need is right-censored, known to be u at least: it contributes the sum alone. Uses within the ramp do not
        count, since every memory lives as long.

        Below 0, when success was lost, it is the cumulative hazard of the new memories, so that all spans grow.

        The weights get the gradient of what tells a memory from its row's average new one, the bias that of what all
        share (docs/forgetting.md).
        """
        if pressure == 0 or lives is None or not self.tracks_use:
            return normed.new_zeros(())
        fresh = new[..., None]
        average = (normed * fresh).sum(1) / fresh.sum(1).clamp(min=1)  # [B,D]
        common = F.linear(average, self.weight.detach(), self.bias)  # [B,K]
        number = new.sum().clamp(min=1)
        if pressure < 0:
            row, slot, counts = _chosen(new)
            hazard = F.softplus(self._logits(normed[row, slot], average[row], common[row])).sum(-1)
            return (hazard * counts).sum() / number
        need, ended, is_last = self._observed(lives)
        row, slot, counts = _chosen(ended)
        logits = self._logits(normed[row, slot], average[row], common[row])  # [N,K]
        loss = self._negative_log_likelihood(logits, need[row, slot], is_last[row, slot])
        return (loss * counts).sum() / number

    def _logits(self, normed: Tensor, average: Tensor, common: Tensor) -> Tensor:
        """Of memories [N,D], with the averages [N,D] of their rows and what the bias and these give, [N,K]."""
        return F.linear(normed - average, self.weight) + common

    def _observed(self, lives: Lives) -> tuple[Tensor, Tensor, Tensor]:
        """What was seen of the memories: the age of the last use, with a margin, as far as it matters; bool, whether
        their life ended in this rollout; bool, whether that use is taken for the last one. [B,C] each."""
        assert lives.slot_features is not None
        reach = lives.slot_features + self.config.ramp
        ended = lives.exists & (lives.ended | (lives.age >= reach))
        watched = torch.minimum(lives.age - 1, reach)
        matters = lives.last_use > self.config.ramp
        need = torch.where(matters, lives.last_use * (1 + self.config.use_margin), 0)
        return need, ended, ended & (watched >= PATIENCE * need + 1)

    def _negative_log_likelihood(self, logits: Tensor, need: Tensor, is_last: Tensor) -> Tensor:
        """[N] nats, of logits [N,K]."""
        k = torch.bucketize(need, self.edges[1:-1], right=True)[:, None]  # [N,1]
        before = torch.arange(logits.shape[-1], device=logits.device) < k
        survived = F.softplus(logits).masked_fill(~before, 0).sum(-1)
        died = F.softplus(-logits.gather(-1, k)).squeeze(-1)
        return survived + died.masked_fill(~is_last, 0)


def _chosen(mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Row and column of the chosen entries of a mask [B,C], and which of these count, [N] each. On a GPU all entries
    are taken, and those that are not chosen do not count: how many there are would have to be asked for."""
    if not mask.is_cuda:
        row, column = torch.nonzero(mask, as_tuple=True)
        return row, column, torch.ones_like(row, dtype=torch.bool)
    row, column = torch.cartesian_prod(*(torch.arange(n, device=mask.device) for n in mask.shape)).unbind(1)
    return row, column, mask.flatten()
