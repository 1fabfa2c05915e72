"""The recurrent control: a GRU (Cho et al., 2014, arXiv 1406.1078) instead of a Transformer. Its memory is its hidden
state.

N, B environments, T time steps, L layers, D width, F final observations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from expire_span_rl.policies.core import CoreOutput
from expire_span_rl.policies.memory.state import Memory, hidden_state
from expire_span_rl.policies.settings import GRUConfig, RecurrentConfig


@dataclass
class RecurrentActing:
    """A hidden state to act on. The caller owns it; `step` writes into it. It is never full: nothing accumulates."""

    state: Tensor  # [B,L,D]
    time: Tensor  # [B] clock of the observation that comes next
    drawn: Tensor  # [B,0]
    live: None = None
    full: ClassVar[bool] = False

    def memory(self) -> Memory:
        """The hidden state after the last step."""
        return Memory((), self.time, self.drawn, self.state)


class GRU(nn.Module):
    """L stacked GRU layers, parallel over environments, one step after the other. Same methods as the Transformer."""

    Config = GRUConfig
    CoreConfig = RecurrentConfig
    stores: ClassVar[bool] = False  # no slots: there are no memories to count or to look at
    presses: ClassVar[bool] = False
    layers: ClassVar[tuple[()]] = ()  # none with slots

    def __init__(self, config: RecurrentConfig, memory_config: GRUConfig):
        super().__init__()
        cells = [nn.GRUCell(config.width, config.width) for _ in range(config.num_layers)]
        self.cells = cast(Sequence[nn.GRUCell], nn.ModuleList(cells))
        for cell in self.cells:
            for weight in (cell.weight_ih, cell.weight_hh):
                for gate in weight.chunk(3):
                    nn.init.orthogonal_(gate)
            nn.init.zeros_(cell.bias_ih)
            nn.init.zeros_(cell.bias_hh)

    def initial_memory(self, batch_size: int) -> Memory:
        """Hidden states of zeros, clock 0."""
        weight = self.cells[0].weight_hh
        time = torch.zeros(batch_size, dtype=torch.int32, device=weight.device)
        state = weight.new_zeros(batch_size, len(self.cells), weight.shape[1])
        return Memory((), time, weight.new_zeros(batch_size, 0), state)

    def draw(self, memory: Memory, generator: torch.Generator | None) -> Memory:
        """`memory`: nothing is drawn."""
        return memory

    def begin(self, memory: Memory, horizon: int, into: Any = None) -> RecurrentActing:
        """Ready to act, for as many steps as one likes."""
        return RecurrentActing(hidden_state(memory), memory.time.clone(), memory.drawn)

    def step(self, x: Tensor, acting: RecurrentActing, episode_start: Tensor) -> Tensor:
        """One time step: x [B,D], episode_start [B] bool -> features [B,D]. Writes into `acting`."""
        acting.state = self._advanced(x, _emptied(acting.state, episode_start))
        acting.time = acting.time.masked_fill(episode_start, 0) + 1
        return acting.state[:, -1]

    def value(self, x: Tensor, acting: RecurrentActing, rows: Tensor) -> Tensor:
        """Features [R,D] of observations x [R,D] that follow the last step in the environments `rows` [R]; `acting` is
        not written."""
        return self._advanced(x, acting.state[rows])[:, -1]

    def unroll(
        self,
        x: Tensor,
        memory: Memory,
        episode_start: Tensor,
        final_x: Tensor,
        final_at: tuple[Tensor, Tensor],
        pressure: float = 0.0,
        details: bool = False,
        keep: bool = False,
    ) -> CoreOutput:
        """A rollout: x [T,B,D], episode_start [T,B] bool, final_x [F,D], final_at (t, b) int64 [F] each. There is no
        loss of the memory's own and nothing to look at. keep: give the memory after the last step, too."""
        state, states = hidden_state(memory), []
        for now, start in zip(x, episode_start):
            state = self._advanced(now, _emptied(state, start))
            states.append(state)
        after = torch.stack(states)  # [T,B,L,D]
        finals = self._advanced(final_x, after[final_at])
        kept = None
        if keep:
            kept = Memory((), _clock_after(memory.time, episode_start), memory.drawn, after[-1].detach())
        return CoreOutput(after[:, :, -1], finals[:, -1], x.new_zeros(()), memory=kept)

    def _advanced(self, x: Tensor, state: Tensor) -> Tensor:
        """x: [N,D]; state: [N,L,D] -> the state one step later; its last layer is what the heads read."""
        layers = []
        for cell, hidden in zip(self.cells, state.unbind(1)):
            x = cell(x, hidden)
            layers.append(x)
        return torch.stack(layers, 1)


def _clock_after(time: Tensor, episode_start: Tensor) -> Tensor:
    """[B]: the clock after the steps of episode_start [T,B], at the first of which it is `time` [B]."""
    for start in episode_start:
        time = time.masked_fill(start, 0) + 1
    return time


def _emptied(state: Tensor, episode_start: Tensor) -> Tensor:
    """The state [B,L,D], zero where an episode starts [B]."""
    return state.masked_fill(episode_start[:, None, None], 0)
