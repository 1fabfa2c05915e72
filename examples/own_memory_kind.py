"""A memory kind of your own, registered from outside: a window in which the score of a memory falls with its age.

    PYTHONPATH=. python examples/own_memory_kind.py       # half a minute
    python train_rl.py --import examples/own_memory_kind.py --memory alibi --env examples/my_envs.py:Recall-v0

It is attention with linear biases (ALiBi; Press et al., ICLR 2022, arXiv 2108.12409). The example compares it with a
window that is too short for the task. B environments, N queries, C memories, H heads.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

import expire_span_rl as es
from expire_span_rl.policies.memory import KINDS, MemoryKind


@dataclass(frozen=True)
class ALiBiConfig:
    """Each field is a setting in Python and a flag of train_rl.py. The text below a field is the flag's help."""

    window: int = 64
    """Steps for which a memory stays visible."""
    steepest: float = 0.25
    """Score that each step of age costs in the first head. In each further head it costs a quarter of that."""

    def __post_init__(self):
        if self.window < 1:
            raise ValueError(f"--window: expected at least 1, got {self.window}")


class ALiBi(MemoryKind):
    Config = ALiBiConfig

    def __init__(self, width: int, num_heads: int, config: ALiBiConfig):
        super().__init__(width, num_heads, config)
        slopes = config.steepest * 0.25 ** torch.arange(num_heads)  # [H]
        self.register_buffer("slopes", slopes[:, None, None], persistent=False)

    def visibility(self, age: Tensor, slot_features: Tensor | None, exists: Tensor) -> tuple[Tensor, Tensor]:
        """age [B,N,C] -> (whether a slot is visible [B,N,C], the term added to each head's scores [B,H,N,C])."""
        return age <= self.config.window, -self.slopes * age[:, None]

    def survives(self, age: Tensor, slot_features: Tensor | None, alive: Tensor) -> Tensor:
        """age [B,C] -> whether this query or a later one can see the slot, [B,C]. Other slots are removed for good."""
        return age <= self.config.window


KINDS["alibi"] = ALiBi


def main(total_timesteps: int = 100_000) -> None:
    from my_envs import Recall

    task = partial(Recall, delay=10)
    for memory, window in (("alibi", 16), ("transformer_xl", 8)):
        model = es.PPO(memory, task, window=window, num_envs=64, num_layers=1, learning_rate=3e-3)
        model.learn(total_timesteps)
        result = es.evaluate(model, task, episodes=200)
        live = result["live_memories_max"][0]
        print(f"{memory} with a window of {window}: {result['success_rate']:.0%} right, at most {live} live memories")
        model.close()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
