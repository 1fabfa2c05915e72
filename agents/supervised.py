"""Supervised learning: cross-entropy of the right actions, over blocks of long streams.

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
    """One pass over each block, with one optimiser step per minibatch."""

    Config = SupervisedConfig
    learns_from: ClassVar[str] = TARGETS

    def make_source(self, inputs: AgentInputs) -> BlockSource:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Where its blocks come from."""
        return BlockSource(inputs.env, self.policy, self.config.num_steps, inputs.env_seed)

    def update(self, block: Block, progress: float, pressure: float) -> dict[str, float]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Learns from a block, and sets its `answers`. progress, pressure: as `Learner.update`'s. Returns metrics for
        the log. Accuracy and bits (-log2 p of the right action) are means over the steps that ask for an answer. Raises
        NotFinite, and whatever `check_deadline` raises. The update is then half done, and must be taken back
        (`backup`)."""
        rate = self._set_rates(progress, pressure)["learning_rate"]
        metrics: list[dict[str, Tensor]] = []
        answers: list[Answers] = []
        minibatches: list[Tensor] = []
        for rows in self._minibatches(block):
            minibatches.append(rows)
            metrics.append(self._step(block.rows(rows), pressure, answers))
        # Put the streams back in the block's order.
        order = torch.argsort(torch.cat(minibatches))
        is_right = torch.cat([part.is_right for part in answers], 1)[:, order]
        surprise = torch.cat([part.surprise for part in answers], 1)[:, order]
        memory = self.policy.join_memories([part.memory for part in answers], minibatches)
        self.check_finite()  # what an update that is taken back answered must not count
        block.answers = Answers(memory, is_right, surprise)
        answer_metrics = {}
        if block.is_query.any():
            answer_metrics["train/accuracy"] = float(is_right[block.is_query].float().mean())
            answer_metrics["train/bits"] = float(surprise[block.is_query].mean()) / math.log(2)
        return {**means(metrics), **answer_metrics, "train/learning_rate": rate}

    def _step(self, part: Block, pressure: float, answers: list[Answers]) -> dict[str, Tensor]:
        """One optimiser step on a minibatch. Appends its answers to `answers`. Returns metrics, scalars each."""
        out = self.policy.unroll(part.observation, part.memory, part.episode_start, pressure=pressure, keep=True)
        part_answers = answers_of(self.policy, out, part)
        answer_loss = _mean(part_answers.surprise, part.is_query)
        rest_loss = _mean(part_answers.surprise, ~part.is_query)
        loss = answer_loss + self.config.rest_coef * rest_loss + out.memory_loss
        norm = self._optimize(loss, part.observation, {"logits": out.logits, "memory loss": out.memory_loss})
        answers.append(replace(part_answers, surprise=part_answers.surprise.detach()))
        return {
            "train/loss": answer_loss.detach(),
            "train/rest_loss": rest_loss.detach(),
            "train/memory_loss": out.memory_loss.detach(),
            "train/grad_norm": norm,
        }


def _mean(values: Tensor, where: Tensor) -> Tensor:
    """The mean of the values where `where` is True. 0 if it is nowhere True."""
    return (values * where).sum() / where.sum().clamp(min=1)
