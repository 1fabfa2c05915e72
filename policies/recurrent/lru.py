"""Linear recurrent units instead of a Transformer (LRU; Orvieto et al., 2023, arXiv 2303.06349): a state-space memory.

Lu et al. (2023, arXiv 2303.03982) use S5 layers in reinforcement learning, with resets at episode starts.
N rows, T time steps, B environments of a rollout, L layers, D width, F final observations. A state is the real parts of
all layers, then their imaginary parts: [N,2L,D].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expire_span_rl.policies.precision import Linear
from expire_span_rl.policies.recurrent.core import RecurrentCore
from expire_span_rl.policies.recurrent.scan import linear_scan
from expire_span_rl.policies.settings import LRUConfig, LRUCoreConfig


class LRULayer(nn.Module):
    """x + GLU(GELU(y)), where y = Re(C s) + d * u, u = norm(x) and s_t = lambda * s_{t-1} + gamma * (B u_t).

    lambda = exp(-exp(nu) + i exp(theta)) has an absolute value below 1 for all weights (Orvieto et al., section 3.3).
    gamma = exp(gamma_log) is initialised such that the state has the input's variance (section 3.4).
    """

    def __init__(self, width: int, config: LRUConfig):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        # Uniform on the ring between the two radii (Orvieto et al., lemma 3.2).
        squared = config.min_radius**2 + torch.rand(width) * (config.max_radius**2 - config.min_radius**2)
        self.nu_log = nn.Parameter(torch.log(-0.5 * torch.log(squared)))
        self.theta_log = nn.Parameter(torch.log(config.max_phase * torch.rand(width).clamp(min=1e-3)))
        self.gamma_log = nn.Parameter(0.5 * torch.log1p(-squared))
        self.encode = Linear(width, 2 * width, bias=False)  # B: real and imaginary part of each channel, interleaved
        self.decode = Linear(2 * width, width, bias=False)  # C
        self.skip = nn.Parameter(torch.randn(width))
        self.mix = Linear(width, 2 * width)
        nn.init.normal_(self.encode.weight, std=math.sqrt(1 / (2 * width)))
        nn.init.normal_(self.decode.weight, std=math.sqrt(1 / width))

    def eigenvalues(self) -> Tensor:
        """lambda, complex [D]."""
        return torch.polar(torch.exp(-torch.exp(self.nu_log)), torch.exp(self.theta_log))

    def read(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [..., D] -> u [..., D], and the input of the recurrence, gamma * (B u), complex [..., D]."""
        u = self.norm(x)
        gamma = torch.exp(self.gamma_log).repeat_interleave(2)[:, None]
        parts = self.encode.apply_weights(u, gamma * self.encode.weight)  # [..., 2D]
        return u, torch.view_as_complex(parts.unflatten(-1, (-1, 2)))

    def write(self, x: Tensor, u: Tensor, state: Tensor) -> Tensor:
        """The output [..., D] of x, u [..., D] and the state, complex [..., D]."""
        y = self.decode(torch.view_as_real(state).flatten(-2)) + self.skip * u
        return x + F.glu(self.mix(F.gelu(y)), -1)


class LRU(RecurrentCore):
    """L layers of linear recurrent units. A rollout is a scan over time, parallel over blocks of steps."""

    Config = LRUConfig
    CoreConfig = LRUCoreConfig

    def __init__(self, config: LRUCoreConfig, memory_config: LRUConfig):
        super().__init__(2 * config.num_layers, config.width)
        units = [LRULayer(config.width, memory_config) for _ in range(config.num_layers)]
        self.units = cast(Sequence[LRULayer], nn.ModuleList(units))
        self.norm = nn.LayerNorm(config.width)  # of what the heads read

    def advance(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One step: x [N,D], state [N,2L,D] -> features [N,D], and the state after it [N,2L,D]."""
        states = []
        for unit, previous in zip(self.units, _as_complex(state), strict=True):
            u, inputs = unit.read(x)
            states.append(unit.eigenvalues() * previous + inputs)
            x = unit.write(x, u, states[-1])
        return self.norm(x), _as_real(states)

    def unroll_states(
        self, x: Tensor, state: Tensor, episode_start: Tensor, final_at: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """T steps: x [T,B,D], state [B,2L,D], episode_start [T,B] bool -> features [T,B,D], and the states [F,2L,D]
        after the steps `final_at` = (t, b), int64 [F] each."""
        keep = (~episode_start).to(x.dtype)
        final_states = []
        for unit, initial in zip(self.units, _as_complex(state), strict=True):
            u, inputs = unit.read(x)
            states = linear_scan(unit.eigenvalues(), keep, inputs, initial)
            final_states.append(states[final_at])
            x = unit.write(x, u, states)
        return self.norm(x), _as_real(final_states)


def _as_complex(state: Tensor) -> tuple[Tensor, ...]:
    """The state [N,2L,D] by layer: L tensors, complex [N,D]."""
    return torch.complex(*state.chunk(2, 1)).unbind(1)


def _as_real(layers: Sequence[Tensor]) -> Tensor:
    """L states, complex [..., D] -> [..., 2L, D]."""
    return torch.stack([*(state.real for state in layers), *(state.imag for state in layers)], -2)
