"""Gates in the residual stream (GTrXL: Parisotto et al., ICML 2020, arXiv 1910.06764, section 3.2). D model width."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from expire_span_rl.policies.precision import Linear

CLOSEDNESS = 2.0
"""Initial bias b_g. A gate begins nearly closed: a layer first passes its input on, and the policy begins as a
memoryless one, which is easy to train."""


class Gate(nn.Module):
    """Adds what a layer computes, y, to its input x, as a GRU updates its state x from an input y:

    r = sigmoid(W_r y + U_r x), z = sigmoid(W_z y + U_z x - b_g), h = tanh(W_g y + U_g (r * x)), result (1 - z) x + z h.
    """

    def __init__(self, width: int):
        super().__init__()
        self.computed = Linear(width, 3 * width, bias=False)  # W_r, W_z, W_g
        self.given = Linear(width, 2 * width, bias=False)  # U_r, U_z
        self.reset = Linear(width, width, bias=False)  # U_g
        self.bias = nn.Parameter(torch.full((width,), CLOSEDNESS))
        for linear in (self.computed, self.given, self.reset):
            for weight in linear.weight.split(width):
                nn.init.xavier_uniform_(weight)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x, y: [..., D] -> [..., D]."""
        width = x.shape[-1]
        w_r, w_z, w_g = self.computed(y).split(width, -1)
        u_r, u_z = self.given(x).split(width, -1)
        z = torch.sigmoid(w_z + u_z - self.bias)
        h = torch.tanh(w_g + self.reset(torch.sigmoid(w_r + u_r) * x))
        return torch.lerp(x, h, z)
