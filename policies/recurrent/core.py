"""What the recurrent cores share: a memory that is a hidden state of fixed size.

B environments, N rows, T time steps, S vectors of a state, D width, F final observations, R chosen environments.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from expire_span_rl.policies.core import CoreOutput
from expire_span_rl.policies.memory.state import Memory, elapsed_steps, hidden_state


@dataclass
class RecurrentActing:
    """A hidden state to act on. The caller owns it; `step` writes into it. It is never full: nothing accumulates."""

    state: Tensor  # [B,S,D]
    time: Tensor  # [B] clock of the observation that comes next
    noise: Tensor  # [B,0]
    live: None = None
    full: ClassVar[bool] = False

    def memory(self) -> Memory:
        """The hidden state after the last step."""
        return Memory((), self.time, self.noise, self.state)


class RecurrentCore(nn.Module):
    """A core (`policies.core.MemoryCore`) whose memory is a hidden state of S vectors.

    A subclass gives `advance`, one step. It may replace `unroll_states`, or all of `run_rollout`, if a rollout can run
    faster than step by step.
    """

    CoreConfig: ClassVar[type]
    Config: ClassVar[type]
    stores: ClassVar[bool] = False  # no slots: there are no memories to count or to inspect
    supports_forgetting: ClassVar[bool] = False
    layers: ClassVar[tuple[()]] = ()  # no layer has slots

    def __init__(self, num_states: int, width: int):
        """num_states: S, the vectors of a state; width: D, the length of each."""
        super().__init__()
        self.num_states = num_states
        self.width = width

    @abstractmethod
    def advance(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One step: x [N,D], state [N,S,D] -> features [N,D], and the state after it [N,S,D]."""

    def unroll_states(
        self, x: Tensor, state: Tensor, episode_start: Tensor, final_at: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """T steps: x [T,B,D], state [B,S,D], episode_start [T,B] bool -> features [T,B,D], and the states [F,S,D] after
        the steps `final_at` = (t, b), int64 [F] each."""
        features, states = [], []
        for x_t, start in zip(x, episode_start, strict=True):
            feature, state = self.advance(x_t, reset_state(state, start))
            features.append(feature)
            states.append(state)
        return torch.stack(features), torch.stack(states)[final_at]

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
        """A rollout that begins with the state [B,S,D]; the other arguments are `unroll`'s.

        Returns (features [T,B,D], final features [F,D], with `keep` the state [B,S,D] after the last step).
        """
        steps, batch = episode_start.shape
        if keep:  # the states after the last step come behind those that final observations follow
            rows = torch.arange(batch, device=x.device)
            final_at = (torch.cat([final_at[0], torch.full_like(rows, steps - 1)]), torch.cat([final_at[1], rows]))
        features, states = self.unroll_states(x, state, episode_start, final_at)
        final_features, _ = self.advance(final_x, states[: len(final_x)])
        return features, final_features, states[len(final_x) :] if keep else None

    def initial_memory(self, batch_size: int) -> Memory:
        """Hidden states of zeros, clock 0."""
        weight = next(self.parameters())
        time = torch.zeros(batch_size, dtype=torch.int32, device=weight.device)
        state = weight.new_zeros(batch_size, self.num_states, self.width)
        return Memory((), time, weight.new_zeros(batch_size, 0), state)

    def draw(self, memory: Memory, generator: torch.Generator | None, *, noiseless: bool = False) -> Memory:
        """`memory`: nothing is drawn."""
        return memory

    def begin(self, memory: Memory, horizon: int, into: Any = None, *, in_rollout: bool = False) -> RecurrentActing:
        """A hidden state to act on, for any number of steps."""
        return RecurrentActing(hidden_state(memory), memory.time.clone(), memory.noise)

    def step(self, x: Tensor, acting: RecurrentActing, episode_start: Tensor) -> Tensor:
        """One time step: x [B,D], episode_start [B] bool -> features [B,D]. Writes into `acting`."""
        features, acting.state = self.advance(x, reset_state(acting.state, episode_start))
        acting.time = acting.time.masked_fill(episode_start, 0) + 1
        return features

    def value(self, x: Tensor, acting: RecurrentActing, rows: Tensor) -> Tensor:
        """Features [R,D] of observations x [R,D] that follow the last step in the environments `rows` [R]. Nothing is
        written into `acting`."""
        return self.advance(x, acting.state[rows])[0]

    def unroll(
        self,
        x: Tensor,
        memory: Memory,
        episode_start: Tensor,
        final_x: Tensor,
        final_at: tuple[Tensor, Tensor],
        *,
        pressure: float = 0.0,
        details: bool = False,
        keep: bool = False,
    ) -> CoreOutput:
        """A rollout: x [T,B,D], episode_start [T,B] bool, final_x [F,D], final_at (t, b) int64 [F] each.

        keep: give the memory after the last step, too. The loss is 0, and there are no layers to inspect.
        """
        state = hidden_state(memory)
        features, final_features, last_state = self.run_rollout(x, state, episode_start, final_x, final_at, keep=keep)
        last_memory = None if last_state is None else memory_after(memory, episode_start, last_state)
        return CoreOutput(features, final_features, x.new_zeros(()), memory=last_memory)


def reset_state(state: Tensor, episode_start: Tensor) -> Tensor:
    """The state [B,S,D] with zeros where an episode starts [B]."""
    return state.masked_fill(episode_start[:, None, None], 0)


def memory_after(memory: Memory, episode_start: Tensor, state: Tensor) -> Memory:
    """The memory after T steps that began with `memory`. episode_start: [T,B]; state: [B,S,D] after the last step."""
    time = elapsed_steps(memory.time, episode_start)[-1] + 1
    return Memory((), time.to(memory.time.dtype), memory.noise, state.detach())


class LayerNorms(nn.Module):
    """Layer normalisation of the inputs of L layers and of the heads. Changes nothing if not `enabled`."""

    def __init__(self, num_layers: int, width: int, enabled: bool):
        super().__init__()
        count = num_layers + 1 if enabled else 0
        self.norms: Any = nn.ModuleList([nn.LayerNorm(width) for _ in range(count)])

    def forward(self, x: Tensor, index: int) -> Tensor:
        """x [..., D] -> the input [..., D] of layer `index`; index L: of the heads."""
        return self.norms[index](x) if self.norms else x
