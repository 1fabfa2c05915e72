"""How far back an advantage reaches: lambda of generalised advantage estimation, chosen while training.

A large lambda credits an action with everything that comes after it, and with its noise. Where the reward follows the
action at once, a small one learns from less noise. Which one is best is read from the policy's gradient: the direction
of its estimate under each lambda is compared with the expected direction under a lambda of 1.

T time steps, b environments, P outputs of the policy head, D features, L lambdas, the largest one last.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from expire_span_rl.protocols import PolicyActions

REFERENCE = 1.0
"""The lambda whose expected gradient is aimed at. Values then enter only at a rollout's end. With less, an error that
the values have in common in all environments is taken for a certain direction, and a small lambda follows it best."""
SMALLER = (0.0, 0.25, 0.5, 0.75)
"""The lambdas that are compared with the largest one, as far as they are smaller."""
KEPT = 0.98
"""What is left of an update in the averages after each later one."""
FEWEST = 10
"""Updates before a smaller lambda than the largest is chosen."""
MARGIN = 1.1
"""How many times the cosine of a smaller lambda must be that of the largest. Otherwise it is not worth its bias."""
CERTAINTY = 2.0
"""How many standard errors above 0 the mean of a smaller lambda's <G, g> must be. Where nothing can be learned yet, all
are noise, and the largest lambda keeps what comes late."""
_TINY = 1e-30


class AdaptiveLambda:
    """Compares lambdas by the gradient of the policy head's weights, and chooses one for each update.

    Let G be the estimate of that gradient from a rollout with one lambda, and g the expected one with `REFERENCE`. The
    expected cosine of the angle between them is E<G, g> / (|g| sqrt(E|G|^2)) in good approximation. The largest one
    wins. <G, g> is estimated without bias by products of the parts that different environments have in the two
    estimates, since these are independent of each other. Environments that share randomness make it too large for all
    lambdas alike.
    """

    def __init__(self, largest: float):
        self.lambdas = (*(smaller for smaller in SMALLER if smaller < largest), largest)
        self.averages = torch.zeros(3, len(self.lambdas), dtype=torch.float64)
        """Of <G, g>, of |G|^2 and of <G, g>^2, in units of the noise with `REFERENCE`."""
        self.weight = 0.0
        """Of all updates in the averages."""
        self.squared_weights = 0.0
        """The sum of the squares of the weights of single updates."""
        self.value = largest
        """The lambda of the next update."""

    def begin(self, advantages: Tensor, scores: Tensor) -> Comparison:
        """The comparison of an update. advantages: [L+1,T,B] of its rollout with each lambda, then with `REFERENCE`;
        scores: [T,B,P], gradient of the log-probabilities of its actions by the policy head's outputs
        (`log_prob_gradient`)."""
        return Comparison(advantages - advantages.mean((1, 2), keepdim=True), scores)

    def end(self, comparison: Comparison) -> dict[str, float]:
        """Adds an update to the averages, and chooses. Returns metrics. On a GPU this is a wait."""
        products = comparison.products()
        if products is not None:
            self.averages = KEPT * self.averages.to(products.device) + (1 - KEPT) * products
            self.weight = KEPT * self.weight + (1 - KEPT)
            self.squared_weights = KEPT**2 * self.squared_weights + (1 - KEPT) ** 2
        used, self.value = self.value, self._best()
        return {"train/gae_lambda": used}

    def _best(self) -> float:
        """The lambda with the largest cosine, if it is certainly better than the largest lambda."""
        if self.weight <= 1 - KEPT**FEWEST:
            return self.lambdas[-1]
        products, squares, squared_products = (self.averages / self.weight).tolist()
        # In units of |g|, which is the same for all.
        cosines = [p / max(s, _TINY) ** 0.5 for p, s in zip(products, squares, strict=True)]
        best = max(range(len(cosines)), key=cosines.__getitem__)
        updates = self.weight**2 / self.squared_weights  # of equal weight that would be as much worth
        variance = max(squared_products[best] - products[best] ** 2, 0.0) / (updates - 1)
        is_certain = products[best] > CERTAINTY * variance**0.5
        is_better = cosines[best] > max(MARGIN * cosines[-1], 0.0)
        return self.lambdas[best] if is_certain and is_better else self.lambdas[-1]

    def state_dict(self) -> dict[str, Tensor]:
        """The state, for `load_state_dict`."""
        numbers = {"weight": self.weight, "squared_weights": self.squared_weights, "value": self.value}
        return {
            "averages": self.averages,
            **{name: torch.tensor(number, dtype=torch.float64) for name, number in numbers.items()},
        }

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Continues from `state_dict`. One that has no squared products, of an earlier version, gives only the lambda
        of the next update: the averages begin anew. Raises ValueError for one of other lambdas."""
        averages, expected = tensors["averages"], self.averages.shape
        if averages.shape[1:] != expected[1:]:
            raise ValueError(f"adaptive lambda: expected averages {list(expected)}, got {list(averages.shape)}")
        value = float(tensors["value"])
        if value not in self.lambdas:
            raise ValueError(f"adaptive lambda: expected one of {self.lambdas}, got {value}")
        self.value = value
        if averages.shape == expected:
            self.averages = averages
            self.weight, self.squared_weights = float(tensors["weight"]), float(tensors["squared_weights"])


class Comparison:
    """The gradients of one update's rollout with each of K lambdas, environment by environment. The others are compared
    with the last one."""

    def __init__(self, advantages: Tensor, scores: Tensor):
        self._advantages = advantages  # [K,T,B] of mean 0
        self._scores = scores  # [T,B,P]
        nothing = torch.zeros((), dtype=torch.float64, device=scores.device)
        self._sum = nothing  # [K,P,D+1] of the environments so far
        self._products = nothing  # [K] within environments
        self._noise = nothing  # sum of the squares of environments with the last lambda
        self._rows = 0

    @torch.no_grad()
    def add(self, features: Tensor, rows: Tensor) -> None:
        """Adds the environments `rows`, int64 [b]. features: [T,b,D] from which the policy head computes."""
        inputs = torch.cat([features, torch.ones_like(features[..., :1])], -1).transpose(0, 1)  # [b,T,D+1]
        weighted = (self._advantages[:, :, rows, None] * self._scores[:, rows]).permute(0, 2, 3, 1)  # [K,b,P,T]
        gradients = torch.matmul(weighted, inputs).double()  # [K,b,P,D+1]
        last = gradients[-1]
        self._sum = self._sum + gradients.sum(1)
        self._products = self._products + (gradients * last).sum((1, 2, 3))
        self._noise = self._noise + last.square().sum()
        self._rows += len(rows)

    def products(self) -> Tensor | None:
        """[3,K-1] for the averages; None for fewer than two environments."""
        if self._rows < 2:
            return None
        total = self._sum
        among = (total * total[-1]).sum((1, 2)) - self._products
        among = among * self._rows / (self._rows - 1)  # as if all pairs counted
        noise = self._noise.clamp(min=_TINY)
        among, squares = among / noise, total.square().sum((1, 2)) / noise
        return torch.stack([among, squares, among.square()])[:, :-1]


def log_prob_gradient(actions: PolicyActions, parameters: Tensor, taken: Tensor) -> Tensor:
    """[T,B,P]: the gradient of the log-probabilities of the actions `taken`, [T,B] or [T,B,N], by the policy head's
    outputs, with which their distribution's parameters [T,B, ...] begin."""
    with torch.enable_grad():
        leaf = parameters.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(actions.log_prob(leaf, taken).sum(), leaf)
    return gradient[..., : actions.num_outputs]
