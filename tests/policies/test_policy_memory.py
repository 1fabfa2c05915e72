"""Memory between rollouts: rows, sizes, removal of parts, and that a row with many memories costs the others
nothing."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from policy_cases import CORE, SMALL, act, experience, make_policy, observations, poison_dead_slots

from expire_span_rl.policies import KINDS, Memory
from expire_span_rl.policies.memory import LayerMemory

LONG = {
    "expire_span": {"span_model": "sigmoid", "max_span": 400, "ramp": 4},
    "transformer_xl": {"window": 200},
    "adaptive_span": {"max_span": 400, "ramp": 4},
    "compressive": {"window": 12, "compression_rate": 3, "compressed_window": 100},
}
SLOTS = [kind for kind in KINDS if make_policy(kind).initial_memory(1).live() is not None]


def hoarding_memory(kind: str, batch: int):
    """A policy with long memories, and 60 steps in which only row 1 never begins a new episode."""
    policy = make_policy(kind, LONG.get(kind, SMALL.get(kind, ({},))[0]))
    generator = torch.Generator().manual_seed(0)
    rollout = experience(generator, 60, batch, 0)
    rollout.start[::4] = True
    rollout.start[1:, 1] = False
    memory = policy.draw(policy.initial_memory(batch), generator)
    return policy, generator, memory, rollout


@pytest.mark.parametrize("batch", [3, 24])
@pytest.mark.parametrize("kind", KINDS)
def test_a_hoarding_row_leaves_the_others_alone(kind, batch):
    """Row 1 keeps 60 steps, the others at most 4. Without row 1 the others have the same outputs, live counts and
    memory sizes, in acting and learning."""
    policy, generator, memory, rollout = hoarding_memory(kind, batch)
    others = torch.tensor([b for b in range(batch) if b != 1])
    others_rollout = rollout.columns(others)
    crowded, others_output = act(policy, memory, rollout, 20), act(policy, memory.rows(others), others_rollout, 20)
    for name in ("logits", "values"):
        torch.testing.assert_close(getattr(crowded, name)[:, others], getattr(others_output, name), rtol=0, atol=1e-12)
    in_others = torch.isin(rollout.final_at[1], others)
    torch.testing.assert_close(crowded.final_values[in_others], others_output.final_values, rtol=0, atol=1e-12)
    for left, right in zip(crowded.live, others_output.live, strict=True):
        assert torch.equal(left[others], right)
    if crowded.live:
        assert crowded.live[-1][1].min() > 5 * crowded.live[-1][others].max()
        assert torch.equal(crowded.memory.live()[others], others_output.memory.live())
    for left, right in zip(crowded.memory.rows(others).layers, others_output.memory.layers, strict=True):
        assert left.hidden.shape == right.hidden.shape
    assert torch.equal(crowded.memory.bytes()[others], others_output.memory.bytes())

    following = experience(generator, 9, batch, final_probability=0.5)
    others_rollout = following.columns(others)
    left, right = (
        policy.unroll(x.observation, poison_dead_slots(memory), x.start, x.final_observation, x.final_at)
        for x, memory in ((following, crowded.memory), (others_rollout, others_output.memory))
    )
    in_others = torch.isin(following.final_at[1], others)
    assert 0 < in_others.sum() < len(in_others)
    torch.testing.assert_close(left.final_values[in_others], right.final_values, rtol=0, atol=1e-12)
    torch.testing.assert_close(left.logits[:, others], right.logits, rtol=0, atol=1e-12)
    torch.testing.assert_close(left.values[:, others], right.values, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_the_rows(kind):
    """`rows` gives environments in the requested order, also repeated ones, trimmed to the largest of them. The
    policy's outputs for them are those of these rows in the whole memory."""
    policy, generator, memory, rollout = hoarding_memory(kind, 6)
    memory = act(policy, memory, rollout).memory
    chosen = torch.tensor([4, 0, 4, 2])
    part = memory.rows(chosen)
    assert torch.equal(part.time, memory.time[chosen]) and torch.equal(part.noise, memory.noise[chosen])
    assert torch.equal(part.bytes(), memory.bytes()[chosen])
    for whole, layer in zip(memory.layers, part.layers, strict=True):
        size = int(whole.alive[chosen].sum(1).max())
        assert layer.hidden.shape == (4, size, CORE.width) and layer.birth.shape == layer.alive.shape == (4, size)
        assert size < whole.alive.shape[1]
        for row, b in enumerate(chosen):
            for name in ("hidden", "birth"):
                actual, expected_values = (
                    getattr(layer, name)[row, layer.alive[row]],
                    getattr(whole, name)[b, whole.alive[b]],
                )
                assert torch.equal(actual, expected_values)
    following = experience(generator, 3, 6)
    observation = {key: value[:, chosen] for key, value in following.observation.items()}
    out = policy.unroll(observation, part, following.start[:, chosen])
    whole = policy.unroll(following.observation, memory, following.start)
    torch.testing.assert_close(out.logits, whole.logits[:, chosen], rtol=0, atol=1e-12)


def handmade() -> Memory:
    """Two environments, two layers of three and two slots of width 4."""
    generator = torch.Generator().manual_seed(0)
    alive = torch.tensor([[True, True, True], [False, False, True]])
    layers = tuple(
        LayerMemory(
            torch.randn(2, n, 4, generator=generator),
            torch.arange(n, dtype=torch.int32).repeat(2, 1) + 5,
            alive[:, 3 - n :],
        )
        for n in (3, 2)
    )
    return Memory(layers, torch.tensor([8, 8], dtype=torch.int32), torch.zeros(2, 0))


def test_live_and_bytes():
    """A live slot takes its vector (4 float32), its birth (int32) and its flag: 21 bytes. Padding is not counted."""
    memory = handmade()
    assert memory.live().tolist() == [[3, 2], [1, 1]]
    assert memory.bytes().tolist() == [5 * 21, 2 * 21]
    smaller = memory.remove_slots(0, torch.tensor([[True, False, True], [False, False, False]]))
    assert smaller.bytes().tolist() == [3 * 21, 2 * 21]
    assert memory.rows(torch.tensor([1])).layers[0].hidden.shape == (1, 1, 4)
    assert memory.rows(torch.tensor([], dtype=torch.int64)).layers[0].hidden.shape == (0, 0, 4)


def test_remove_slots_and_replace_slots_change_what_they_say_and_only_that():
    memory = handmade()
    slots = torch.tensor([[False, True, False], [True, False, True]])
    before = {name: tensor.clone() for name, tensor in memory.to_tensors().items()}
    smaller = memory.remove_slots(0, slots).to_tensors()
    assert smaller["0/alive"].tolist() == [[True, False, True], [False, False, False]]
    hidden = torch.full((2, 3, 4), 7.0)
    other = memory.replace_slots(0, slots, hidden).to_tensors()
    assert torch.equal(other["0/hidden"][slots], hidden[slots])
    assert torch.equal(other["0/hidden"][~slots], before["0/hidden"][~slots])
    for name, tensor in before.items():
        assert torch.equal(memory.to_tensors()[name], tensor)  # the original is as it was
        assert name == "0/alive" or torch.equal(smaller[name], tensor)
        assert name == "0/hidden" or torch.equal(other[name], tensor)


@pytest.mark.parametrize("kind", KINDS)
def test_a_memory_stays_what_it_was_while_acting_goes_on(kind):
    policy = make_policy(kind)
    generator = torch.Generator().manual_seed(0)
    acting = policy.begin(act(policy, policy.initial_memory(2), experience(generator, 9, 2, 0)).memory, 8)
    policy.step(observations(generator, 2), acting, torch.zeros(2, dtype=torch.bool))
    memory = acting.memory()
    before = {name: tensor.clone() for name, tensor in memory.to_tensors().items()}
    for _ in range(5):
        policy.step(observations(generator, 2), acting, torch.zeros(2, dtype=torch.bool))
    for name, tensor in memory.to_tensors().items():
        assert torch.equal(tensor, before[name]), name


def test_tensors_round_trip():
    memory = handmade()
    read_back = Memory.from_tensors(memory.to_tensors()).to_tensors()
    assert read_back.keys() == memory.to_tensors().keys()
    assert all(torch.equal(read_back[name], tensor) for name, tensor in memory.to_tensors().items())


@pytest.mark.parametrize("kind", SLOTS)
def test_a_policy_without_a_memory_behaves_as_if_it_never_was(kind):
    """`remove_slots` gives the outputs of tensors without these slots, `replace_slots` those of tensors with the other
    vectors. Both outputs differ from those with the whole memory."""
    policy = make_policy(kind)
    generator = torch.Generator().manual_seed(2)
    memory = act(policy, policy.draw(policy.initial_memory(1), generator), experience(generator, 12, 1, 0)).memory
    rollout = experience(generator, 4, 1, 0)
    layer = memory.layers[1]
    size = layer.alive.shape[1]
    slots = torch.zeros(1, size, dtype=torch.bool)
    slots[0, [size - 1, size - 3]] = True
    keep = ~slots[0]
    cut = replace(layer, hidden=layer.hidden[:, keep], birth=layer.birth[:, keep], alive=layer.alive[:, keep])
    changed_hidden = layer.hidden.clone()
    changed_hidden[slots] = 2.5
    changed = [
        (memory.remove_slots(1, slots), replace(memory, layers=(memory.layers[0], cut))),
        (
            memory.replace_slots(1, slots, torch.full_like(layer.hidden, 2.5)),
            replace(memory, layers=(memory.layers[0], replace(layer, hidden=changed_hidden))),
        ),
    ]
    whole = act(policy, memory, rollout).logits
    for actual, expected in changed:
        logits, expected_logits = act(policy, actual, rollout).logits, act(policy, expected, rollout).logits
        torch.testing.assert_close(logits, expected_logits, rtol=0, atol=1e-12)
        assert not torch.allclose(logits, whole)
        torch.testing.assert_close(
            policy.unroll(rollout.observation, actual, rollout.start).logits, expected_logits, rtol=0, atol=1e-9
        )


def test_rows_keep_every_live_slot_after_a_removal():
    """`rows` of a memory `remove_slots` its youngest slot still has the two older ones."""
    smaller = handmade().remove_slots(0, torch.tensor([[False, False, True], [False, False, False]]))
    assert smaller.live().tolist() == [[2, 2], [1, 1]]
    assert smaller.rows(torch.tensor([0])).live().tolist() == [[2, 2]]


@pytest.mark.parametrize("kind", SLOTS)
def test_learning_equals_acting_after_a_removal(kind):
    """With enough rows to be unrolled in groups."""
    policy = make_policy(kind)
    generator = torch.Generator().manual_seed(3)
    memory = act(policy, policy.draw(policy.initial_memory(20), generator), experience(generator, 9, 20, 0)).memory
    slots = torch.zeros_like(memory.layers[0].alive)
    slots[:, -2:] = True
    rollout = experience(generator, 3, 20, 0)
    expected = act(policy, memory.remove_slots(0, slots), rollout).logits
    out = policy.unroll(rollout.observation, memory.remove_slots(0, slots), rollout.start)
    torch.testing.assert_close(out.logits, expected, rtol=0, atol=1e-9)


def ragged() -> Memory:
    """Three environments with two, none and one live memories, a dead one between the two; clocks 9, 0 and 4."""
    hidden = torch.arange(9.0).reshape(3, 3, 1).expand(-1, -1, 2).clone()
    birth = torch.tensor([[2, 5, 7], [0, 0, 0], [0, 0, 3]])
    alive = torch.tensor([[True, False, True], [False] * 3, [False, False, True]])
    layer = LayerMemory(hidden, birth, alive)
    return Memory((layer,), torch.tensor([9, 0, 4]), torch.zeros(3, 0))


def test_packed_has_the_live_only_and_is_read_again():
    packed = ragged().packed()
    assert packed["0/hidden"][:, 0].tolist() == [0, 2, 8] and packed["0/birth"].tolist() == [2, 7, 3]
    assert packed["0/count"].tolist() == [2, 0, 1]
    layer = Memory.from_tensors(packed).layers[0]
    assert layer.alive.tolist() == [[True, True], [False, False], [False, True]]
    assert layer.hidden[layer.alive][:, 0].tolist() == [0, 2, 8] and layer.birth[layer.alive].tolist() == [2, 7, 3]
    assert torch.equal(ragged().live(), Memory.from_tensors(packed).live())


def test_the_age_of_the_oldest():
    """9 - 2, none, 4 - 3; without slots the clock, or 0."""
    assert ragged().oldest().tolist() == [7, 0, 1]
    empty = Memory((), torch.tensor([9, 0]), torch.zeros(2, 0))
    assert empty.oldest().tolist() == [0, 0]
    assert Memory((), torch.tensor([9, 0]), torch.zeros(2, 0), torch.zeros(2, 1, 3)).oldest().tolist() == [9, 0]


def test_drift_by_hand():
    """The memories of births 7 and 3 are (2, 2) and (8, 8); theirs are half as long again and the same. The one of
    birth 2 is too old to count, and one that only they have does not either."""
    in_others, expected_values = ragged(), ragged()
    expected_values.layers[0].hidden[0, 2] *= 1.5
    expected_values.layers[0].hidden[0, 0] += 100
    expected_values.layers[0].alive[1, 2] = True
    assert in_others.drift(expected_values, 3) == pytest.approx((0.5 + 0) / 2)
    assert in_others.drift(in_others, 100) == 0 and math.isnan(in_others.drift(expected_values, 0))
