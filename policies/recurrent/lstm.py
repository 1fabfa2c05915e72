"""The recurrent control of most papers: an LSTM (Hochreiter and Schmidhuber, 1997) instead of a Transformer.

B environments, N rows, T time steps, L layers, D width, F final observations, n sequences of a batch, m steps of the
longest. A state is the hidden vectors h of all layers, then their cells c: [N,2L,D].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from expire_span_rl.policies.recurrent.core import LayerNorms, RecurrentCore, reset_state
from expire_span_rl.policies.recurrent.segments import cut_segments
from expire_span_rl.policies.settings import LSTMConfig, RecurrentConfig


class LSTM(RecurrentCore):
    """L stacked LSTM layers. A rollout is cut at its episode starts, and the segments run in PyTorch's fused kernel.

    The forget gate's bias begins at 1 (Jozefowicz et al., 2015). The weights of each gate begin orthogonal.
    """

    Config = LSTMConfig
    CoreConfig = RecurrentConfig

    def __init__(self, config: RecurrentConfig, memory_config: LSTMConfig):
        super().__init__(2 * config.num_layers, config.width)
        lstms = [nn.LSTM(config.width, config.width) for _ in range(config.num_layers)]
        self.lstms = cast(Sequence[nn.LSTM], nn.ModuleList(lstms))
        self.norms = LayerNorms(config.num_layers, config.width, memory_config.layer_norm)
        for lstm in self.lstms:
            for name, parameter in lstm.named_parameters():
                gates = parameter.detach().chunk(4)  # input, forget, cell, output
                for gate in gates:
                    (nn.init.orthogonal_ if name.startswith("weight") else nn.init.zeros_)(gate)
                if name.startswith("bias_ih"):
                    nn.init.ones_(gates[1])

    def advance(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One step: x [N,D], state [N,2L,D] -> features [N,D], and the state after it [N,2L,D]."""
        if not len(x):  # PyTorch's kernel refuses an empty batch
            return x, state
        features, next_state = self._run(x[None], state)
        return features[0], next_state

    def run_rollout(
        self,
        x: Tensor,
        state: Tensor,
        episode_start: Tensor,
        final_x: Tensor,
        final_at: tuple[Tensor, Tensor],
        *,
        keep: bool,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """As `RecurrentCore.run_rollout`.

        The kernel returns the cells of the last step only. Final observations therefore run at the end of their
        segments, and the state that `keep` asks for is computed step by step, without gradient.
        """
        segments = cut_segments(episode_start, final_at)
        inputs = torch.cat([x.flatten(0, 1), final_x])  # [T*B+F,D]
        outputs = []
        for batch in segments.batches:
            initial = torch.where(batch.continues[:, None, None], state[batch.row], 0)  # [n,2L,D]
            outputs.append(self._run(inputs[batch.source], initial)[0].flatten(0, 1))  # [m*n,D]
        features = torch.cat(outputs)[segments.place]  # [T*B+F,D]
        steps = episode_start.numel()
        last_state = self._last_state(x, state, episode_start) if keep else None
        return features[:steps].unflatten(0, episode_start.shape), features[steps:], last_state

    @torch.no_grad()
    def _last_state(self, x: Tensor, state: Tensor, episode_start: Tensor) -> Tensor:
        """The state [B,2L,D] after the steps x [T,B,D], computed step by step: the kernel's state includes the
        padding."""
        for x_t, start in zip(x, episode_start, strict=True):
            _, state = self.advance(x_t, reset_state(state, start))
        return state

    def _run(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Sequences x [T,N,D] that begin with the state [N,2L,D] -> features [T,N,D], and the state after them
        [N,2L,D]."""
        hidden, cells = state.transpose(0, 1).contiguous().chunk(2)  # [L,N,D] each
        layers: list[Tensor] = []
        for i, lstm in enumerate(self.lstms):
            x, pair = lstm(self.norms(x, i), (hidden[i : i + 1], cells[i : i + 1]))
            layers.append(torch.stack(pair))  # [2,1,N,D]
        states = torch.cat(layers, 1).flatten(0, 1)  # [2L,N,D]: h of all layers, then c
        return self.norms(x, len(self.lstms)), states.transpose(0, 1)
