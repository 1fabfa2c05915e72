"""Products with weights in bfloat16, for GPUs that compute them faster than in float32.

Weights, memory, attention, normalisation, heads, losses and the optimiser stay in float32: only the inputs of a product
are rounded to bfloat16, of which a number has 8 significant bits.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expire_span_rl.policies.settings import BF16


class Linear(nn.Linear):
    """nn.Linear, in float32 or with its product in bfloat16."""

    reduced = False
    """Whether the product is computed in bfloat16."""

    def forward(self, input: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features], in the type of the input."""
        return self.apply_weights(input, self.weight, self.bias)

    def apply_weights(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """The same with other weights, such as its own without gradients."""
        if not self.reduced:
            return F.linear(x, weight, bias)
        low = torch.bfloat16
        return F.linear(x.to(low), weight.to(low), None if bias is None else bias.to(low)).to(x.dtype)


def set_precision(module: nn.Module, precision: str) -> None:
    """Sets the precision, one of `PRECISIONS`, of all products with weights within a module that can have either."""
    for part in module.modules():
        if isinstance(part, Linear):
            part.reduced = precision == BF16
