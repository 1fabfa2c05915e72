"""The recurrent control: a GRU (Cho et al., 2014, arXiv 1406.1078) instead of a Transformer. Its memory is its hidden
state.

N rows, L layers, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from expire_span_rl.policies.recurrent.core import LayerNorms, RecurrentCore
from expire_span_rl.policies.settings import GRUConfig, RecurrentConfig


class GRU(RecurrentCore):
    """L stacked GRU layers, parallel over environments, one step after the other.

    On a CPU PyTorch's fused GRU is no faster than its cell, and it cannot start an episode inside a rollout.
    """

    Config = GRUConfig
    CoreConfig = RecurrentConfig

    def __init__(self, config: RecurrentConfig, memory_config: GRUConfig):
        super().__init__(config.num_layers, config.width)
        cells = [nn.GRUCell(config.width, config.width) for _ in range(config.num_layers)]
        self.cells = cast(Sequence[nn.GRUCell], nn.ModuleList(cells))
        self.norms = LayerNorms(config.num_layers, config.width, memory_config.layer_norm)
        for cell in self.cells:
            for weight in (cell.weight_ih, cell.weight_hh):
                for gate in weight.chunk(3):
                    nn.init.orthogonal_(gate)
            nn.init.zeros_(cell.bias_ih)
            nn.init.zeros_(cell.bias_hh)

    def advance(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One step: x [N,D], state [N,L,D] -> features [N,D], and the hidden state of each layer after it [N,L,D]."""
        layers = []
        for i, (cell, hidden) in enumerate(zip(self.cells, state.unbind(1), strict=True)):
            x = cell(self.norms(x, i), hidden)
            layers.append(x)
        return self.norms(x, len(self.cells)), torch.stack(layers, 1)
