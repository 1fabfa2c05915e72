"""The contract of a memory kind that ranks its slots: one class and one line of the registry, nothing else knows of
it."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from policy_cases import CORE, SPEC, act, experience, poisoned
from torch import Tensor, nn

from expire_span_rl.policies import KINDS, ActorCritic, PolicyConfig
from expire_span_rl.policies.memory import MemoryKind

BATCH = 5


@dataclass(frozen=True)
class BestConfig:
    keep: int = 3
    """Memories that are kept: those with the highest scores."""


class Best(MemoryKind):
    """Every memory has a score; a query sees itself and the `keep` older memories of the highest scores. A memory that
    is not among them never is again, since more memories only come."""

    Config = BestConfig

    def __init__(self, width: int, num_heads: int, config: BestConfig):
        super().__init__(width, num_heads, config)
        self.score = nn.Linear(width, 1)

    def describe(self, normed: Tensor, span_limit: Tensor) -> Tensor:
        return self.score(normed).squeeze(-1)

    def visibility(self, age: Tensor, slot_features: Tensor, exists: Tensor) -> tuple[Tensor, None]:
        return (age == 0) | self._best(slot_features[:, None], exists & (age > 0)), None

    def survives(self, age: Tensor, slot_features: Tensor, alive: Tensor) -> Tensor:
        return self._best(slot_features, alive)

    def _best(self, scores: Tensor, among: Tensor) -> Tensor:
        """Which of the slots `among` [..., C] have the highest scores [..., C]."""
        scores = torch.where(among, scores, -torch.inf)
        least = scores.topk(min(self.config.keep, scores.shape[-1]), -1).values[..., -1:]
        return among & (scores >= least)


@pytest.fixture
def policy(monkeypatch) -> ActorCritic:
    monkeypatch.setitem(KINDS, "best", Best)
    torch.manual_seed(0)
    made = ActorCritic(PolicyConfig(SPEC, 4, "best", BestConfig(), CORE)).double()
    for head in (made.policy_head, made.value_head):
        nn.init.normal_(head.weight)
    return made


def test_acting_equals_learning(policy):
    """Rollouts of uneven lengths with resets and final observations, NaN in dead slots; whatever the horizon."""
    generator = torch.Generator().manual_seed(3)
    memory = policy.initial_memory(BATCH)
    for steps in (7, 1, 23, 12):
        given = experience(generator, steps, BATCH, start_probability=0.06)
        acted, often = act(policy, memory, given), act(policy, memory, given, horizon=4)
        out = policy.unroll(given.observation, poisoned(memory), given.start, given.final_observation, given.final_at)
        for one in (acted, often):
            torch.testing.assert_close(one.logits, out.logits, rtol=0, atol=1e-9)
            torch.testing.assert_close(one.values, out.values, rtol=0, atol=1e-9)
            torch.testing.assert_close(one.final_values, out.final_values, rtol=0, atol=1e-9)
        memory = acted.memory
        assert memory.live().max() == 3


def test_it_keeps_the_highest_scores(policy):
    """Against a slow transcription: of all memories of an episode, the three highest scores of each layer."""
    given = experience(torch.Generator().manual_seed(4), 20, 2, start_probability=0)
    memory = act(policy, policy.initial_memory(2), given).memory
    _, _, layers = policy.inspect(given.observation, policy.initial_memory(2), given.start)
    for layer, held in zip(layers, memory.layers, strict=True):
        for row in range(2):
            written = layer.slot_features[row, -20:].tolist()
            best = sorted(range(20), key=lambda step: written[step])[-3:]
            assert sorted(held.birth[row, held.alive[row]].tolist()) == sorted(best)


def test_the_own_score_of_a_dead_slot_does_not_count(policy):
    """Removed memories leave their places to others that are there: no query sees fewer than it could."""
    given = experience(torch.Generator().manual_seed(5), 9, BATCH, start_probability=0)
    memory = act(policy, policy.initial_memory(BATCH), given).memory
    gone = memory.remove_slots(0, torch.arange(memory.layers[0].alive.shape[1]) == 2)
    following = experience(torch.Generator().manual_seed(6), 1, BATCH, start_probability=0)
    _, _, layers = policy.inspect(following.observation, gone, following.start)
    assert layers[0].visible[:, 0].sum(1).tolist() == [3] * BATCH  # two that are left, and itself
    assert layers[1].visible[:, 0].sum(1).tolist() == [4] * BATCH
