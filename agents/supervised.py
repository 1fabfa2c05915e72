"""Learning from what is right: cross-entropy of the right actions, over blocks of long streams.

T time steps, B streams, b of them in a minibatch.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from expire_span_rl.agents.blocks import Answers, Block, BlockSource, answers_of
from expire_span_rl.agents.entries import TARGETS, AgentInputs
from expire_span_rl.agents.learner import Learner, means
from expire_span_rl.agents.settings import SupervisedConfig


class Supervised(Learner):
    """One pass over each block, a step of the optimiser per minibatch."""

    Config = SupervisedConfig
    learns_from: ClassVar[str] = TARGETS

    def make_source(self, inputs: AgentInputs) -> BlockSource:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Where its blocks come from."""
        return BlockSource(inputs.env, self.policy, self.config.num_steps, inputs.env_seed)

    def update(self, block: Block, progress: float, pressure: float) -> dict[str, float]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Learns from a block, and fills in its `answers`. progress, pressure: as `Learner.update`'s. Returns figures
        for the log: accuracy and bits (-log2 p of the right action) are means over what was asked. Raises NotFinite,
        and whatever `check_deadline` raises, in the midst of it (`backup`)."""
        rate = self._set_rates(progress, pressure)["learning_rate"]
        figures: list[dict[str, Tensor]] = []
        parts: list[Answers] = []
        minibatches: list[Tensor] = []
        for rows in self._minibatches(block):
            minibatches.append(rows)
            figures.append(self._learn_part(block.rows(rows), pressure, parts))
        back = torch.argsort(torch.cat(minibatches))
        right = torch.cat([part.right for part in parts], 1)[:, back]
        surprise = torch.cat([part.surprise for part in parts], 1)[:, back]
        memory = self.policy.join_memories([part.memory for part in parts], minibatches)
        block.answers = Answers(memory, right, surprise)
        asked = {}
        if block.asked.any():
            asked["train/accuracy"] = float(right[block.asked].float().mean())
            asked["train/bits"] = float(surprise[block.asked].mean()) / math.log(2)
        return {**means(figures), **asked, "train/learning_rate": rate}

    def _learn_part(self, part: Block, pressure: float, answers: list[Answers]) -> dict[str, Tensor]:
        """One optimiser step on a minibatch, whose answers are appended. Returns figures, scalars each."""
        out = self.policy.unroll(part.observation, part.memory, part.episode_start, pressure=pressure, keep=True)
        answered = answers_of(self.policy, out, part)
        answer_loss, rest_loss = _mean(answered.surprise, part.asked), _mean(answered.surprise, ~part.asked)
        loss = answer_loss + self.config.rest_coef * rest_loss + out.memory_loss
        norm = self._step_down(loss, part.observation, {"logits": out.logits, "memory loss": out.memory_loss})
        answers.append(replace(answered, surprise=answered.surprise.detach()))
        return {
            "train/loss": answer_loss.detach(),
            "train/rest_loss": rest_loss.detach(),
            "train/memory_loss": out.memory_loss.detach(),
            "train/grad_norm": norm,
        }


def _mean(values: Tensor, where: Tensor) -> Tensor:
    """The mean of the values where `where` is True; 0 if that is nowhere."""
    return (values * where).sum() / where.sum().clamp(min=1)
