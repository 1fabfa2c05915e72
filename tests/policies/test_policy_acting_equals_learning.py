"""Acting equals learning: `begin` and T `step`s give what one `unroll` gives, for every registered memory kind."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from policy_cases import CASES, SMALL, act, experience, make_policy, observations, poisoned

from expire_span_rl.policies import KINDS
from expire_span_rl.policies.transformer import grouping
from expire_span_rl.policies.transformer.grouping import GroupedActing

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("batch", [3, 26])
@pytest.mark.parametrize("kind, settings", CASES)
def test_steps_equal_one_unroll(kind, settings, batch, dtype):
    """Random weights, resets and final observations anywhere, memory carried through rollouts of uneven lengths with
    NaN in its dead slots; 26 rows are unrolled in groups of like memory size, 3 are not. Gradients stay finite."""
    generator = torch.Generator().manual_seed(batch)
    policy = make_policy(kind, settings, dtype)
    memory = policy.initial_memory(batch)
    carried = 0
    for steps in (7, 1, 23, 12):
        given = experience(generator, steps, batch, start_probability=0.06, dtype=dtype)
        memory = poisoned(policy.draw(memory, generator))
        acted = act(policy, memory, given)
        out = policy.unroll(given.observation, memory, given.start, given.final_observation, given.final_at)
        difference = torch.cat(
            [
                (out.logits - acted.logits).flatten(),
                (out.values - acted.values).flatten(),
                out.final_values - acted.final_values,
            ]
        )
        assert float(difference.detach().abs().max()) < TOLERANCE[dtype]  # fails for NaN too
        policy.zero_grad()
        (out.logits.square().sum() + out.values.sum() + out.final_values.square().sum() + out.memory_loss).backward()
        gradients = [p.grad for p in policy.parameters() if p.grad is not None]
        assert gradients and all(gradient.isfinite().all() for gradient in gradients)
        carried += sum(int(layer.alive.sum()) for layer in memory.layers)
        memory = acted.memory
    assert carried > 0 or not KINDS[kind].stores


@pytest.mark.parametrize("kind, settings", CASES)
def test_results_do_not_depend_on_the_horizon(kind, settings):
    """Beginning again every 5 steps, when the expired are removed, gives what 50 steps in one go give, where they are
    masked: outputs, live counts, and the memory afterwards."""
    generator = torch.Generator().manual_seed(1)
    policy = make_policy(kind, settings)
    memory = policy.draw(policy.initial_memory(5), generator)
    given = experience(generator, 50, 5, start_probability=0.03)
    once, often = act(policy, memory, given, 50), act(policy, memory, given, 5)
    for name in ("logits", "values", "final_values"):
        torch.testing.assert_close(getattr(often, name), getattr(once, name), rtol=0, atol=1e-9)
    assert len(once.live) == len(often.live)
    for left, right in zip(once.live, often.live, strict=True):
        assert torch.equal(left, right)
    for left, right in zip(once.memory.layers, often.memory.layers, strict=True):
        assert torch.equal(left.alive, right.alive)
        assert torch.equal(left.birth[left.alive], right.birth[right.alive])
        torch.testing.assert_close(left.hidden[left.alive], right.hidden[right.alive], rtol=0, atol=1e-9)


@pytest.mark.parametrize("pressure", [0.0, 0.7])
@pytest.mark.parametrize("batch", [3, 26])
@pytest.mark.parametrize("kind, settings", CASES)
def test_learning_keeps_the_memory_that_acting_gives(kind, settings, batch, pressure):
    """`unroll(keep=True)` against `begin`, `step`s and `memory()` through rollouts of uneven lengths, with episodes that
    start anywhere: clock, births, last uses and hidden vectors of the same live memories, without gradient."""
    generator = torch.Generator().manual_seed(10 + batch)
    policy = make_policy(kind, settings)
    acted = kept = policy.initial_memory(batch)
    most = 0
    for steps in (7, 1, 23, 12):
        given = experience(generator, steps, batch, start_probability=0.06)
        state = generator.get_state()
        start_memory = policy.draw(kept, generator)
        generator.set_state(state)
        acted = act(policy, policy.draw(acted, generator), given).memory
        out = policy.unroll(given.observation, poisoned(start_memory), given.start, pressure=pressure, keep=True)
        kept = out.memory
        assert torch.equal(kept.time, acted.time) and kept.time.dtype == acted.time.dtype
        assert torch.equal(kept.span_limit, acted.span_limit)
        assert (kept.state is None) == (acted.state is None)
        if acted.state is not None:
            assert not kept.state.requires_grad
            torch.testing.assert_close(kept.state, acted.state, rtol=0, atol=1e-9)
        for left, right in zip(kept.layers, acted.layers, strict=True):
            assert torch.equal(left.alive, right.alive)
            for name in ("birth", "last_use"):
                ours, theirs = getattr(left, name), getattr(right, name)
                assert (ours is None) == (theirs is None)
                if ours is not None:
                    assert ours.dtype == theirs.dtype and torch.equal(ours[left.alive], theirs[left.alive])
            assert not left.hidden.requires_grad
            torch.testing.assert_close(left.hidden[left.alive], right.hidden[right.alive], rtol=0, atol=1e-9)
            most = max(most, int(left.alive.sum()))
    assert most > batch or not KINDS[kind].stores
    assert policy.unroll(given.observation, start_memory, given.start).memory is None


@pytest.mark.parametrize("kind, settings", CASES)
def test_live_memories_are_those_that_the_next_query_sees(kind, settings):
    """`Memory.live()` against what one more step sees, itself not counted, in acting and in learning."""
    generator = torch.Generator().manual_seed(8)
    policy = make_policy(kind, settings)
    memory = policy.initial_memory(6)
    for steps in (9, 16):
        given = experience(generator, steps, 6, start_probability=0.05)
        memory = act(policy, policy.draw(memory, generator), given).memory
    following = experience(generator, 1, 6, start_probability=0)
    if memory.live() is None:
        assert not KINDS[kind].stores
        return
    seen = act(policy, memory, following).live[0] - 1
    inspected = policy.inspect(following.observation, memory, following.start)[2]
    assert torch.equal(memory.live(), seen)
    assert torch.equal(memory.live(), torch.stack([layer.visible[:, 0].sum(1) - 1 for layer in inspected], 1))
    assert memory.live().max() > 0


@pytest.mark.parametrize("kind, settings", CASES)
def test_grouping_rows_changes_nothing_but_the_speed(kind, settings):
    """26 rows in one unroll, which works in groups, against the same rows in two unrolls too small to be grouped:
    outputs, the memory loss and every gradient."""
    generator = torch.Generator().manual_seed(2)
    policy = make_policy(kind, settings)
    memory = policy.draw(policy.initial_memory(26), generator)
    memory = poisoned(act(policy, memory, experience(generator, 9, 26)).memory)
    given = experience(generator, 8, 26)

    def unrolled(rows: torch.Tensor):
        part = given.columns(rows)
        out = policy.unroll(
            part.observation, memory.rows(rows), part.start, part.final_observation, part.final_at, pressure=0.7
        )
        return out, out.logits.square().sum() + out.values.sum() + out.final_values.square().sum()

    def gradients(loss: torch.Tensor) -> list[torch.Tensor | None]:
        return list(torch.autograd.grad(loss, list(policy.parameters()), allow_unused=True))

    everyone, halves = torch.arange(26), torch.randperm(26, generator=generator).split(13)
    whole, whole_loss = unrolled(everyone)
    parts = [unrolled(rows) for rows in halves]
    for rows, (out, _) in zip(halves, parts, strict=True):
        torch.testing.assert_close(whole.logits[:, rows], out.logits, rtol=0, atol=1e-9)
        torch.testing.assert_close(whole.values[:, rows], out.values, rtol=0, atol=1e-9)
        mine = torch.isin(given.final_at[1], rows)
        torch.testing.assert_close(whole.final_values[mine], out.final_values, rtol=0, atol=1e-9)
    part_loss = (parts[0][0].memory_loss + parts[1][0].memory_loss) / 2
    torch.testing.assert_close(whole.memory_loss, part_loss, rtol=1e-6, atol=1e-9)
    expected = gradients(parts[0][1] + parts[1][1] + 100 * part_loss)
    for ours, theirs in zip(gradients(whole_loss + 100 * whole.memory_loss), expected, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("cost", [0, 3, 20, 1000])
@pytest.mark.parametrize("slots", [[], [5], [4, 4, 4], [1, 9, 1, 8, 1, 1], [0, 30, 2, 31, 3, 29, 1], [7, 1, 1, 40, 2]])
def test_groups_take_the_fewest_slots(slots, cost):
    """Against all ways to split the rows, sorted by size, into groups."""
    rows = sorted(range(len(slots)), key=lambda row: slots[row])

    def total(sizes):
        ends = list(itertools.accumulate(sizes))
        parts = [rows[end - size : end] for end, size in zip(ends, sizes, strict=True)]
        return sum(len(part) * max(slots[row] for row in part) + cost for part in parts)

    def splits(count):
        return [[first, *rest] for first in range(1, count + 1) for rest in splits(count - first)] if count else [[]]

    groups = (
        [group.tolist() for group in grouping.groups_of(torch.tensor(slots, dtype=torch.int64), cost)] if slots else []
    )
    assert [row for group in groups for row in group] == rows
    assert total([len(group) for group in groups]) == min(total(sizes) for sizes in splits(len(slots)))


@pytest.mark.parametrize("kind, settings", CASES)
def test_acting_in_groups_changes_nothing_but_the_speed(kind, settings, monkeypatch):
    """26 rows of unlike memories, acted on all at once and in a group for each size: outputs, final values, live counts, and
    what is remembered afterwards."""
    generator = torch.Generator().manual_seed(6)
    policy = make_policy(kind, settings)
    memory = policy.draw(policy.initial_memory(26), generator)
    memory = poisoned(act(policy, memory, experience(generator, 9, 26)).memory)
    given = experience(generator, 12, 26)
    begun = []
    begin = policy.core.begin
    monkeypatch.setattr(policy.core, "begin", lambda *args: begun.append(begin(*args)) or begun[-1])
    once = act(policy, memory, given, 5)
    monkeypatch.setattr(grouping, "ACTING_GROUP", 0)
    apart = act(policy, memory, given, 5)
    grouped = [isinstance(acting, GroupedActing) for acting in begun]
    half = len(grouped) // 2
    assert grouped == [False] * half + [bool(memory.layers)] * half
    for name in ("logits", "values", "final_values"):
        torch.testing.assert_close(getattr(apart, name), getattr(once, name), rtol=0, atol=1e-12)
    for left, right in zip(apart.live, once.live, strict=True):
        assert torch.equal(left, right)
    assert torch.equal(apart.memory.time, once.memory.time)
    for left, right in zip(apart.memory.layers, once.memory.layers, strict=True):
        assert torch.equal(left.alive, right.alive)
        assert torch.equal(left.birth[left.alive], right.birth[right.alive])
        torch.testing.assert_close(left.hidden[left.alive], right.hidden[right.alive], rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind, settings", CASES)
def test_an_episode_start_empties_the_memory_of_its_row_only(kind, settings):
    """After an episode start nothing that was before matters: the outputs are those of a fresh memory. The other rows
    go on as if there had been no reset."""
    generator = torch.Generator().manual_seed(3)
    policy = make_policy(kind, settings)
    memory = policy.draw(policy.initial_memory(4), generator)
    memory = act(policy, memory, experience(generator, 11, 4, 0)).memory
    given = experience(generator, 6, 4, 0)
    reset = replace(given, start=given.start.clone())
    reset.start[0, 1] = True
    fresh = replace(policy.initial_memory(4), span_limit=memory.span_limit)
    for run in (act, _unroll):
        with_reset, without, anew = run(policy, memory, reset), run(policy, memory, given), run(policy, fresh, given)
        for name in ("logits", "values"):
            outputs, kept, expected = (getattr(x, name) for x in (with_reset, without, anew))
            torch.testing.assert_close(outputs[:, 1], expected[:, 1], rtol=0, atol=1e-9)
            others = [0, 2, 3]
            torch.testing.assert_close(outputs[:, others], kept[:, others], rtol=0, atol=1e-9)
            if kind != "none":
                assert not torch.allclose(outputs[:, 1], kept[:, 1])


def _unroll(policy, memory, given):
    return policy.unroll(given.observation, memory, given.start, given.final_observation, given.final_at)


@pytest.mark.parametrize("kind", KINDS)
def test_a_final_observation_is_seen_by_nobody(kind):
    """Other final observations, or none, change neither logits nor values, acting or learning."""
    generator = torch.Generator().manual_seed(4)
    policy = make_policy(kind, SMALL.get(kind, ({},))[0])
    memory = policy.draw(policy.initial_memory(3), generator)
    given = experience(generator, 10, 3)
    assert len(given.final_at[0])
    other = replace(given, final_observation=observations(generator, len(given.final_at[0])))
    none = policy.unroll(given.observation, memory, given.start)
    assert none.final_values.shape == (0,)
    for run in (act, _unroll):
        left, right = run(policy, memory, given), run(policy, memory, other)
        torch.testing.assert_close(left.logits, none.logits, rtol=0, atol=1e-9)
        torch.testing.assert_close(left.logits, right.logits, rtol=0, atol=0)
        assert not torch.allclose(left.final_values, right.final_values)


def test_acting_beyond_the_horizon_is_refused():
    policy = make_policy("transformer_xl")
    acting = policy.begin(policy.initial_memory(2), 1)
    now = observations(torch.Generator(), 2)
    policy.step(now, acting, torch.zeros(2, dtype=torch.bool))
    assert acting.full
    with pytest.raises(ValueError, match="^acting: expected room for a step, got 1 of 1 steps taken$"):
        policy.step(now, acting, torch.zeros(2, dtype=torch.bool))
