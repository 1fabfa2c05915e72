"""The contract of a memory kind that ranks its slots. It is one class and one line of the registry."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from policy_cases import CORE, SPEC, act, experience, poison_dead_slots
from torch import Tensor, nn

from expire_span_rl.policies import KINDS, ActorCritic, PolicyConfig
from expire_span_rl.policies.memory import MemoryKind

BATCH = 5


@dataclass(frozen=True)
class BestConfig:
    keep: int = 3
    """Number of memories that are kept, those with the highest scores."""


class Best(MemoryKind):
    """Every memory has a score. A query sees itself and the `keep` older memories with the highest scores.

    A memory that is not among them never is again: new memories only add competitors.
    """

    Config = BestConfig

    def __init__(self, width: int, num_heads: int, config: BestConfig):
        super().__init__(width, num_heads, config)
        self.score = nn.Linear(width, 1)

    def describe(self, normed: Tensor, noise: Tensor) -> Tensor:
        return self.score(normed).squeeze(-1)

    def visibility(self, age: Tensor, slot_features: Tensor, exists: Tensor) -> tuple[Tensor, None]:
        return (age == 0) | self._best(slot_features[:, None], exists & (age > 0)), None

    def survives(self, age: Tensor, slot_features: Tensor, alive: Tensor) -> Tensor:
        return self._best(slot_features, alive)

    def _best(self, scores: Tensor, among: Tensor) -> Tensor:
        """Which of the slots `among` [..., C] have the highest scores [..., C]."""
        scores = torch.where(among, scores, -torch.inf)
        threshold = scores.topk(min(self.config.keep, scores.shape[-1]), -1).values[..., -1:]
        return among & (scores >= threshold)


@pytest.fixture
def policy(monkeypatch) -> ActorCritic:
    monkeypatch.setitem(KINDS, "best", Best)
    torch.manual_seed(0)
    ranking_policy = ActorCritic(PolicyConfig(SPEC, 4, "best", BestConfig(), CORE)).double()
    for head in (ranking_policy.policy_head, ranking_policy.value_head):
        nn.init.normal_(head.weight)
    return ranking_policy


def test_acting_equals_learning(policy):
    """Rollouts of uneven lengths with resets and final observations, NaN in dead slots, and two horizons."""
    generator = torch.Generator().manual_seed(3)
    memory = policy.initial_memory(BATCH)
    for steps in (7, 1, 23, 12):
        rollout = experience(generator, steps, BATCH, start_probability=0.06)
        acting_output, short_horizon = act(policy, memory, rollout), act(policy, memory, rollout, horizon=4)
        out = policy.unroll(
            rollout.observation, poison_dead_slots(memory), rollout.start, rollout.final_observation, rollout.final_at
        )
        for output in (acting_output, short_horizon):
            torch.testing.assert_close(output.logits, out.logits, rtol=0, atol=1e-9)
            torch.testing.assert_close(output.values, out.values, rtol=0, atol=1e-9)
            torch.testing.assert_close(output.final_values, out.final_values, rtol=0, atol=1e-9)
        memory = acting_output.memory
        assert memory.live().max() == 3


def test_it_keeps_the_highest_scores(policy):
    """Against a slow transcription: of all memories of an episode, the three highest scores of each layer."""
    rollout = experience(torch.Generator().manual_seed(4), 20, 2, start_probability=0)
    memory = act(policy, policy.initial_memory(2), rollout).memory
    _, _, layers = policy.inspect(rollout.observation, policy.initial_memory(2), rollout.start)
    for layer, layer_memory in zip(layers, memory.layers, strict=True):
        for row in range(2):
            scores = layer.slot_features[row, -20:].tolist()
            best = sorted(range(20), key=lambda step: scores[step])[-3:]
            assert sorted(layer_memory.birth[row, layer_memory.alive[row]].tolist()) == sorted(best)


def test_the_own_score_of_a_dead_slot_does_not_count(policy):
    """Other live memories take the places of removed ones: a query sees as many as it can."""
    rollout = experience(torch.Generator().manual_seed(5), 9, BATCH, start_probability=0)
    memory = act(policy, policy.initial_memory(BATCH), rollout).memory
    smaller = memory.remove_slots(0, torch.arange(memory.layers[0].alive.shape[1]) == 2)
    following = experience(torch.Generator().manual_seed(6), 1, BATCH, start_probability=0)
    _, _, layers = policy.inspect(following.observation, smaller, following.start)
    assert layers[0].visible[:, 0].sum(1).tolist() == [3] * BATCH  # two remain, and itself
    assert layers[1].visible[:, 0].sum(1).tolist() == [4] * BATCH
