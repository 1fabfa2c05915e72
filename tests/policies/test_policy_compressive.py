"""Compressive-Transformer against a transcription of the paper in plain loops, and its reconstruction loss.

The reference keeps every step of an episode, and computes for each query which blocks are compressed by then.
B environments, T steps, W the window, c steps of a block, M compressed memories.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import accumulate

import numpy as np
import pytest
import torch
from policy_cases import CORE, ActingOutput, Experience, act, experience, make_policy
from test_policy_references import Reference, Slot, compare, row

from expire_span_rl.policies import ActorCritic, Memory

SETTINGS = {"window": 3, "compression_rate": 2, "compressed_window": 3}
CASES = [SETTINGS, {"window": 0, "compression_rate": 4, "compressed_window": 2},
         {"window": 7, "compression_rate": 3, "compressed_window": 1}]  # fmt: skip


class CompressiveReference(Reference):
    """Block i, the steps i*c to i*c + c - 1 of an episode, is compressed for queries from the step at which all of it
    has left the window: i*c + c + W. The latest M compressed blocks are seen, at the age of their last step."""

    def __init__(self, policy: ActorCritic):
        super().__init__(policy, lambda age, span, config: 1.0)

    def _slots_for(self, layer: int, clock: int) -> list[Slot]:
        blocks = self.compressed_blocks(clock)
        oldest = max(0, blocks - self.config.compressed_window)
        compressed = [self.compressed(layer, i) for i in range(oldest, blocks)]
        return compressed + self.slots[layer][blocks * self.config.compression_rate :]

    def compressed_blocks(self, clock: int) -> int:
        """Number of blocks that are compressed for the query at this step of the episode."""
        blocks = 0
        while clock - (blocks * self.config.compression_rate + self.config.compression_rate - 1) > self.config.window:
            blocks += 1
        return blocks

    def members(self, layer: int, i: int) -> list[Slot]:
        c = self.config.compression_rate
        return self.slots[layer][i * c : i * c + c]

    def compressed(self, layer: int, i: int) -> Slot:
        """The output of a convolution whose kernel is as long as the block: the sum of one product per step."""
        weight = self.weights[f"core.layers.{layer}.kind.convolution.weight"]
        members = self.members(layer, i)
        total = self.weights[f"core.layers.{layer}.kind.convolution.bias"].copy()
        for place, slot in enumerate(members):
            total += weight[:, place * CORE.width : (place + 1) * CORE.width] @ slot.hidden
        return Slot(total, members[-1].clock, members[-1].step)


@pytest.mark.parametrize("settings", CASES)
def test_unroll_is_the_reference(settings):
    """Three rollouts with memory carried over, resets and final observations anywhere: logits, values, values of final
    observations, per layer which memories every query sees with what attention, how many steps each stands for, and
    what survives, compressed vectors included."""
    policy = make_policy("compressive", settings)
    references, config = [CompressiveReference(policy) for _ in range(3)], policy.config.memory_config
    lengths, compressed, carried = (10, 17, 15), 0, 0
    ends = {step - 1 for step in accumulate(lengths)}
    for reference, query, layer, _ in compare(policy, references, lengths):
        blocks = reference.compressed_blocks(reference.clock - 1)
        standing = layer.covers[query.b, layer.visible[query.b, query.t]].tolist()
        assert standing.count(config.compression_rate) == min(blocks, config.compressed_window)
        compressed += blocks
        carried += query.step in ends and reference.compressed_blocks(reference.clock)
    assert compressed > 100 and carried > 6


def act_rollouts(
    policy: ActorCritic, lengths: list[int], starts: list[tuple[int, int]] = ()
) -> tuple[Experience, list[ActingOutput]]:
    """Successive rollouts of these lengths, two environments, with episode starts at (step, environment)."""
    rollout = experience(torch.Generator().manual_seed(3), sum(lengths), 2, 0, 0)
    for t, b in starts:
        rollout.start[t, b] = True
    memory, outputs, begin = policy.initial_memory(2), [], 0
    for steps in lengths:
        end = begin + steps
        part = {key: value[begin:end] for key, value in rollout.observation.items()}
        outputs.append(act(policy, memory, replace(rollout, observation=part, start=rollout.start[begin:end])))
        memory, begin = outputs[-1].memory, end
    return rollout, outputs


def test_blocks_count_from_the_start_of_the_episode():
    """W = 3, c = 2. After 14 steps the blocks that end with steps 5, 7 and 9 are compressed, for any division into
    rollouts. The other environment began anew at step 7: there the blocks end with its own steps 1 and 3."""
    policy = make_policy("compressive", SETTINGS)
    for lengths in ([14], [1] * 14, [5, 5, 4], [6, 1, 7]):
        _, out = act_rollouts(policy, lengths, [(7, 1)])
        for layer in out[-1].memory.layers:
            assert layer.birth[0, layer.alive[0]].tolist() == [5, 7, 9, 10, 11, 12, 13]
            assert layer.birth[1, layer.alive[1]].tolist() == [1, 3, 4, 5, 6]
        assert out[-1].memory.time.tolist() == [14, 7]


def test_live_memories_are_the_recent_and_the_compressed_ones():
    """A query sees itself, the steps since the last compressed block, and at most M compressed blocks. Together they
    are never more than W + c + M."""
    policy = make_policy("compressive", SETTINGS)
    reference = CompressiveReference(policy)
    _, (out,) = act_rollouts(policy, [40])
    for t, live in enumerate(out.live):
        blocks = reference.compressed_blocks(t)
        expected = t + 1 - 2 * blocks + min(blocks, 3)
        assert live.tolist() == [[expected, expected]] * 2
    assert max(int(live.max()) for live in out.live) == 3 + 2 + 3


def test_a_block_of_removed_memories_leaves_nothing_and_a_broken_one_the_rest():
    """Members that an audit removed count as zero vectors. If all were removed, there is no merged slot. Acting and
    learning agree on both, and positions still match the ages."""
    policy = make_policy("compressive", SETTINGS)
    _, (out,) = act_rollouts(policy, [12])
    births = out.memory.layers[0].birth[0].tolist()
    assert births == [3, 5, 7, 8, 9, 10, 11]
    removed = torch.tensor([birth in (8, 9, 11) for birth in births]).expand(2, -1)
    memory = out.memory.remove_slots(0, removed).remove_slots(1, removed)
    rollout = experience(torch.Generator().manual_seed(1), 6, 2, 0)
    acting_output = act(policy, memory, rollout)
    learning_output = policy.unroll(
        rollout.observation, memory, rollout.start, rollout.final_observation, rollout.final_at
    )
    torch.testing.assert_close(learning_output.logits, acting_output.logits, rtol=0, atol=1e-9)
    torch.testing.assert_close(learning_output.final_values, acting_output.final_values, rtol=0, atol=1e-9)
    layer, kind = acting_output.memory.layers[0], policy.core.layers[0].kind
    assert layer.birth[0, layer.alive[0]].tolist() == [11, 13, 14, 15, 16, 17]  # not 9
    block = torch.stack([out.memory.layers[0].hidden[0, births.index(10)], torch.zeros(16)])
    torch.testing.assert_close(layer.hidden[0, layer.alive[0]][0], kind.merge(block).detach(), rtol=0, atol=1e-9)


def reconstruction(
    policy: ActorCritic, memory: Memory, rollout: Experience, references: list[CompressiveReference]
) -> float:
    """The loss in loops. For every query and layer it compares what the heads read from the slots compressed in this
    rollout with what they read from these slots' members, by content alone. It is the mean square over B, T and D, then
    over layers."""
    total, (steps, batch) = 0.0, rollout.start.shape
    for b, reference in enumerate(references):
        earlier_blocks = reference.compressed_blocks(reference.clock)
        for t in range(steps):
            if rollout.start[t, b]:
                earlier_blocks = 0
            reference.step(row(rollout.observation, t, b), bool(rollout.start[t, b]))
            clock = reference.clock - 1
            blocks = reference.compressed_blocks(clock)
            visible_slots = range(max(earlier_blocks, blocks - reference.config.compressed_window), blocks)
            for i in range(CORE.num_layers):
                if len(visible_slots):
                    query = reference.slots[i][clock].hidden
                    members = [slot for block in visible_slots for slot in reference.members(i, block)]
                    new = read(reference, i, query, [reference.compressed(i, block) for block in visible_slots])
                    total += ((new - read(reference, i, query, members)) ** 2).sum()
    return total / (steps * batch * CORE.width) / CORE.num_layers


def read(reference: Reference, i: int, hidden: np.ndarray, slots: list[Slot]) -> np.ndarray:
    """softmax(q . k / sqrt(d)) v, head by head."""
    name, width = f"core.layers.{i}", CORE.width // CORE.num_heads
    to_value = np.split(reference.weights[f"{name}.key_value.weight"], 2)[1]
    normed = [reference._norm(f"{name}.norm", slot.hidden) for slot in slots]
    heads = []
    for head in range(CORE.num_heads):
        part = slice(head * width, (head + 1) * width)
        query, _ = reference.query_and_key(i, head, hidden)
        keys = [reference.query_and_key(i, head, slot.hidden)[1] for slot in slots]
        weights = [math.exp(query @ key / math.sqrt(width)) for key in keys]
        heads.append(sum(w / sum(weights) * (to_value @ x)[part] for w, x in zip(weights, normed, strict=True)))
    return np.concatenate(heads)


@pytest.mark.parametrize("settings", CASES)
def test_the_loss_is_the_reconstruction_of_attention(settings):
    """Against loops, over a rollout that begins with memory and has episode starts; zero if nothing is compressed."""
    policy = make_policy("compressive", settings)
    generator, references = torch.Generator().manual_seed(5), [CompressiveReference(policy) for _ in range(3)]
    rollout = experience(generator, 11, 3, 0.05)
    memory = policy.initial_memory(3)
    for _ in range(2):
        loss = float(policy.unroll(rollout.observation, memory, rollout.start, pressure=0.5).memory_loss.detach())
        expected = reconstruction(policy, memory, rollout, references)
        assert expected > 1e-3 and loss == pytest.approx(expected, rel=1e-6)
        memory = act(policy, memory, rollout).memory
        rollout = experience(generator, 13, 3, 0.05)
    short = experience(generator, 2, 3)
    assert float(policy.unroll(short.observation, policy.initial_memory(3), short.start).memory_loss) == 0


def test_the_loss_trains_the_convolution_and_nothing_else_does():
    """The loss trains no other weight. The task trains all of the core except the convolution."""
    policy = make_policy("compressive", SETTINGS)
    rollout = experience(torch.Generator().manual_seed(1), 14, 3, 0.03)
    convolution = {f"core.layers.{i}.kind.convolution.{name}" for i in range(2) for name in ("weight", "bias")}
    out = policy.unroll(rollout.observation, policy.initial_memory(3), rollout.start, pressure=0.5)
    for loss, expected in (
        (out.memory_loss, convolution),
        (
            out.logits.square().sum() + out.values.sum(),
            {f"core.{name}" for name, _ in policy.core.named_parameters()} - convolution,
        ),
    ):
        policy.zero_grad()
        loss.backward(retain_graph=True)
        reached = {n for n, p in policy.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
        assert {n for n in reached if n.startswith("core.")} == expected
        assert expected != convolution or reached == convolution


def test_a_fresh_convolution_takes_the_mean():
    """An untrained convolution gives the mean of a block's memories."""
    policy = ActorCritic(replace(make_policy("compressive", SETTINGS).config))
    blocks = torch.randn(5, 2, CORE.width)
    torch.testing.assert_close(policy.core.layers[0].kind.merge(blocks), blocks.mean(1))
