"""What a policy asks of an action space: how outputs become a distribution, and how actions become the environment's.

Policies and learners compute with *canonical* actions. These are whole numbers from 0, or real numbers, which lie in
[-1, 1] if they have two bounds. An action of N numbers has P parameters and F features; `...` stands for any leading
axes, such as T, B.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

FORBIDDEN = -1e8  # logit of a forbidden action: finite, so that 0 * log 0 is 0

MOST_SHARING = 7
"""At most so many actions share the weight of the log barrier. An action among many is then tried as often as one of
seven. With a share for each, 6 of 27 answers of POPGym's CountRecallEasy were never given again."""


class Actions(nn.Module):
    """The actions of one environment. A subclass is one file in `policies.actions` and one line in its `__init__`."""

    num_outputs: int
    """Number of the policy head's outputs."""
    sizes: Sequence[int] = ()
    """How many values each number of an action has; none for real numbers."""
    num_features: int
    """F: number of features that `encode` gives for an action."""
    continuous: ClassVar[bool] = False
    forbidden: ClassVar[float] = FORBIDDEN
    """The parameter of an action that a mask forbids. Its size says nothing about the others."""

    def __init__(self, spec: Mapping[str, Any]):
        """spec: the dict of `spec_of`."""
        super().__init__()
        self.spec = dict(spec)

    @staticmethod
    def spec_of(space: Any) -> dict[str, Any]:
        """The spec of a space: a dict for JSON, from which the same actions can be built again."""
        raise NotImplementedError

    def params(self, outputs: Tensor) -> Tensor:
        """The distribution's parameters [..., P] from the policy head's outputs [..., num_outputs], with which they
        begin."""
        return outputs

    def masked(self, params: Tensor, mask: Tensor) -> Tensor:
        """The parameters [..., P] of the distribution over the allowed actions. mask: [..., P], 0 for a forbidden
        action."""
        return torch.where(mask.bool(), params, FORBIDDEN)

    def sample(self, params: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Random canonical actions: [..., P] -> int64 [...] (one number), int64 or float [..., N]."""
        raise NotImplementedError

    def mode(self, params: Tensor) -> Tensor:
        """The most likely canonical actions."""
        raise NotImplementedError

    def log_prob(self, params: Tensor, actions: Tensor) -> Tensor:
        """[...]: the logarithm of the probability, or density, of canonical actions."""
        raise NotImplementedError

    def entropy(self, params: Tensor) -> Tensor:
        """[...], in nats."""
        raise NotImplementedError

    def log_barrier(self, params: Tensor) -> Tensor:
        """[...], in nats, at most 0: the mean log probability of the allowed actions, plus the logarithm of their
        number. That is minus the KL divergence of the uniform distribution from this one. Its gradient does not vanish
        where an action is all but impossible, as that of the entropy does (Agarwal et al., 2021, arXiv 1908.00261).
        Of more than MOST_SHARING actions it is the sum over MOST_SHARING instead of the mean. Whole numbers only."""
        raise NotImplementedError

    def encode(self, actions: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Features [..., F] of canonical actions. A predicted reward is linear in them."""
        raise NotImplementedError

    def mean_encoding(self, params: Tensor) -> Tensor:
        """[..., F]: the mean of `encode` over actions drawn with `params`."""
        raise NotImplementedError

    def distance(self, params: Tensor, other_params: Tensor) -> Tensor:
        """[...] in [0, 1]: the total variation between two distributions, 1 - prod (1 - d) over independent numbers."""
        raise NotImplementedError

    def marginals(self, params: Tensor) -> Tensor:
        """What the viewer shows of a distribution, one number for each of `labels`: probabilities, or means in the
        environment's units."""
        raise NotImplementedError

    def labels(self) -> list[str]:
        """A name for each number of `marginals`."""
        raise NotImplementedError

    def no_action(self, batch_size: int) -> np.ndarray:
        """The entry "previous_action" at the start of an episode: [B] or [B,N]."""
        raise NotImplementedError

    def to_env(self, actions: Tensor) -> np.ndarray:
        """The environment's actions for canonical actions [B] or [B,N], batch first."""
        raise NotImplementedError


def gumbel_max(logits: Tensor, generator: torch.Generator | None) -> Tensor:
    """A random draw from the softmax over the last axis: int64 [...]."""
    noise = torch.empty_like(logits).exponential_(generator=generator)
    return (logits - noise.log()).argmax(-1)


def log_softmax_of(logits: Tensor, actions: Tensor) -> Tensor:
    """[..., A], int64 [...] -> [...]."""
    return torch.log_softmax(logits, -1).gather(-1, actions[..., None]).squeeze(-1)


def softmax_entropy(logits: Tensor) -> Tensor:
    """[..., A] -> [...], in nats."""
    log_p = torch.log_softmax(logits, -1)
    return -(log_p.exp() * log_p).sum(-1)


def softmax_log_barrier(logits: Tensor) -> Tensor:
    """[..., A] -> [...], in nats: `Actions.log_barrier` of a softmax. Forbidden actions do not count."""
    is_allowed = logits > FORBIDDEN / 2
    log_p = torch.log_softmax(logits, -1).where(is_allowed, 0)
    count = is_allowed.sum(-1)
    return (log_p.sum(-1) + count * count.log()) / count.clamp(max=MOST_SHARING)


def variation(logits: Tensor, other_logits: Tensor) -> Tensor:
    """The total variation between two softmaxes: [..., A] twice -> [...]."""
    return (torch.softmax(logits, -1) - torch.softmax(other_logits, -1)).abs().sum(-1) / 2
