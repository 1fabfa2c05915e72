"""Acting equals learning: `begin` and T `step`s give what one `unroll` gives, for every registered memory kind."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from policy_cases import CASES, CORE, CORES, SMALL, act, experience, make_policy, observations, poison_dead_slots

from expire_span_rl.policies import KINDS
from expire_span_rl.policies.transformer import grouping
from expire_span_rl.policies.transformer.grouping import GroupedActing

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
BF16_TOLERANCE = 0.2  # of outputs up to 20


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("batch", [3, 26])
@pytest.mark.parametrize("kind, settings", CASES)
def test_steps_equal_one_unroll(kind, settings, batch, dtype):
    """Random weights, resets and final observations anywhere, memory carried through rollouts of uneven lengths with
    NaN in its dead slots; 26 rows are unrolled in groups of like memory size, 3 are not. Gradients stay finite."""
    check_steps(kind, settings, batch, dtype)


@pytest.mark.parametrize("kind, settings", CASES)
def test_steps_equal_one_unroll_in_bfloat16(kind, settings):
    """The same with products that are rounded to 8 bits, up to that rounding."""
    check_steps(kind, settings, 5, torch.float32, precision="bf16")


@pytest.mark.parametrize("batch", [3, 26])
@pytest.mark.parametrize("kind, settings", [case for case in CASES if CORES[case.values[0]] is CORE])
def test_steps_equal_one_unroll_where_the_newest_counts(kind, settings, batch):
    """The same with --newest-first, for which the order of the slots matters, also of merged ones."""
    check_steps(kind, settings, batch, torch.float64, replace(CORE, newest_first=3.0))


@pytest.mark.parametrize("kind, settings", [case for case in CASES if CORES[case.values[0]] is CORE])
def test_steps_equal_one_unroll_where_attention_sharpens(kind, settings):
    """The same with --sharpen-beyond, for which it matters how many slots each query sees."""
    check_steps(kind, settings, 5, torch.float64, replace(CORE, sharpen_beyond=3))


@pytest.mark.parametrize("seen, factor", [(1, 1.0), (4, 1.0), (5, math.log(5) / math.log(4)), (16, 2.0), (64, 3.0)])
def test_scores_grow_with_the_logarithm_of_the_number_of_slots(seen, factor):
    policy = make_policy("transformer_xl", {"window": 200}, core=replace(CORE, sharpen_beyond=4))
    assert policy.core.layers[0]._sharpening(torch.tensor([[seen]])).item() == pytest.approx(factor)


def check_steps(kind, settings, batch, dtype, core=None, precision="float32"):
    """Compares steps with unrolls (see `test_steps_equal_one_unroll`)."""
    generator = torch.Generator().manual_seed(batch)
    policy = make_policy(kind, settings, dtype, core=core)
    policy.precision = precision
    tolerance = BF16_TOLERANCE if precision == "bf16" else TOLERANCE[dtype]
    memory = policy.initial_memory(batch)
    carried = 0
    for steps in (7, 1, 23, 12):
        rollout = experience(generator, steps, batch, start_probability=0.06, dtype=dtype)
        memory = poison_dead_slots(policy.draw(memory, generator))
        acting_output = act(policy, memory, rollout)
        out = policy.unroll(rollout.observation, memory, rollout.start, rollout.final_observation, rollout.final_at)
        difference = torch.cat(
            [
                (out.logits - acting_output.logits).flatten(),
                (out.values - acting_output.values).flatten(),
                out.final_values - acting_output.final_values,
            ]
        )
        assert float(difference.detach().abs().max()) < tolerance  # fails for NaN too
        policy.zero_grad()
        (out.logits.square().sum() + out.values.sum() + out.final_values.square().sum() + out.memory_loss).backward()
        gradients = [p.grad for p in policy.parameters() if p.grad is not None]
        assert gradients and all(gradient.isfinite().all() for gradient in gradients)
        carried += sum(int(layer.alive.sum()) for layer in memory.layers)
        memory = acting_output.memory
    assert carried > 0 or not KINDS[kind].stores


@pytest.mark.parametrize("in_rollout", [True, False])
@pytest.mark.parametrize("kind, settings", CASES)
def test_results_do_not_depend_on_the_horizon(kind, settings, in_rollout):
    """`begin` every 5 steps removes expired memories; 50 steps at once mask them. Both give the same outputs, live
    counts and memory."""
    generator = torch.Generator().manual_seed(1)
    policy = make_policy(kind, settings)
    memory = policy.draw(policy.initial_memory(5), generator)
    rollout = experience(generator, 50, 5, start_probability=0.03)
    whole_horizon, short_horizon = (act(policy, memory, rollout, horizon, in_rollout) for horizon in (50, 5))
    for name in ("logits", "values", "final_values"):
        torch.testing.assert_close(getattr(short_horizon, name), getattr(whole_horizon, name), rtol=0, atol=1e-9)
    assert len(whole_horizon.live) == len(short_horizon.live)
    for left, right in zip(whole_horizon.live, short_horizon.live, strict=True):
        assert torch.equal(left, right)
    for left, right in zip(whole_horizon.memory.layers, short_horizon.memory.layers, strict=True):
        assert torch.equal(left.alive, right.alive)
        assert torch.equal(left.birth[left.alive], right.birth[right.alive])
        torch.testing.assert_close(left.hidden[left.alive], right.hidden[right.alive], rtol=0, atol=1e-9)


@pytest.mark.parametrize("pressure", [0.0, 0.7])
@pytest.mark.parametrize("batch", [3, 26])
@pytest.mark.parametrize("kind, settings", CASES)
def test_learning_keeps_the_memory_that_acting_gives(kind, settings, batch, pressure):
    """`unroll(keep=True)` against `begin`, `step`s and `memory()`, in rollouts of uneven lengths with episodes that
    start anywhere. The same memories are live, with equal clocks, births, last uses and hidden vectors, without
    gradient."""
    generator = torch.Generator().manual_seed(10 + batch)
    policy = make_policy(kind, settings)
    acting_memory = learning_memory = policy.initial_memory(batch)
    max_live = 0
    for steps in (7, 1, 23, 12):
        rollout = experience(generator, steps, batch, start_probability=0.06)
        state = generator.get_state()
        start_memory = policy.draw(learning_memory, generator)
        generator.set_state(state)
        acting_memory = act(policy, policy.draw(acting_memory, generator), rollout).memory
        out = policy.unroll(
            rollout.observation, poison_dead_slots(start_memory), rollout.start, pressure=pressure, keep=True
        )
        learning_memory = out.memory
        assert (
            torch.equal(learning_memory.time, acting_memory.time)
            and learning_memory.time.dtype == acting_memory.time.dtype
        )
        assert torch.equal(learning_memory.noise, acting_memory.noise)
        assert (learning_memory.state is None) == (acting_memory.state is None)
        if acting_memory.state is not None:
            assert not learning_memory.state.requires_grad
            torch.testing.assert_close(learning_memory.state, acting_memory.state, rtol=0, atol=1e-9)
        for left, right in zip(learning_memory.layers, acting_memory.layers, strict=True):
            assert torch.equal(left.alive, right.alive)
            for name in ("birth", "last_use", "known_need"):
                actual, expected_gradient = getattr(left, name), getattr(right, name)
                assert (actual is None) == (expected_gradient is None)
                if actual is not None:
                    assert actual.dtype == expected_gradient.dtype and torch.equal(
                        actual[left.alive], expected_gradient[left.alive]
                    )
            assert not left.hidden.requires_grad
            torch.testing.assert_close(left.hidden[left.alive], right.hidden[right.alive], rtol=0, atol=1e-9)
            max_live = max(max_live, int(left.alive.sum()))
    assert max_live > batch or not KINDS[kind].stores
    assert policy.unroll(rollout.observation, start_memory, rollout.start).memory is None


@pytest.mark.parametrize("kind, settings", CASES)
def test_live_memories_are_those_that_the_next_query_sees(kind, settings):
    """`Memory.live()` against the memories that one more step sees, itself not counted, in acting and in learning."""
    generator = torch.Generator().manual_seed(8)
    policy = make_policy(kind, settings)
    memory = policy.initial_memory(6)
    for steps in (9, 16):
        rollout = experience(generator, steps, 6, start_probability=0.05)
        memory = act(policy, policy.draw(memory, generator), rollout).memory
    memory = replace(memory, noise=memory.noise[:, :0])  # no gap hides what is live
    following = experience(generator, 1, 6, start_probability=0)
    if memory.live() is None:
        assert not KINDS[kind].stores
        return
    next_live = act(policy, memory, following).live[0] - 1
    inspected = policy.inspect(following.observation, memory, following.start)[2]
    assert torch.equal(memory.live(), next_live)
    assert torch.equal(memory.live(), torch.stack([layer.visible[:, 0].sum(1) - 1 for layer in inspected], 1))
    assert memory.live().max() > 0


@pytest.mark.parametrize("kind, settings", CASES)
def test_grouping_rows_changes_nothing_but_the_speed(kind, settings):
    """26 rows in one unroll, which works in groups, against the same rows in two unrolls too small to be grouped:
    outputs, the memory loss and every gradient."""
    generator = torch.Generator().manual_seed(2)
    policy = make_policy(kind, settings)
    memory = policy.draw(policy.initial_memory(26), generator)
    memory = poison_dead_slots(act(policy, memory, experience(generator, 9, 26)).memory)
    rollout = experience(generator, 8, 26)

    def unroll_rows(rows: torch.Tensor):
        part = rollout.columns(rows)
        out = policy.unroll(
            part.observation, memory.rows(rows), part.start, part.final_observation, part.final_at, pressure=0.7
        )
        return out, out.logits.square().sum() + out.values.sum() + out.final_values.square().sum()

    def gradients(loss: torch.Tensor) -> list[torch.Tensor | None]:
        return list(torch.autograd.grad(loss, list(policy.parameters()), allow_unused=True))

    all_rows, halves = torch.arange(26), torch.randperm(26, generator=generator).split(13)
    whole, whole_loss = unroll_rows(all_rows)
    parts = [unroll_rows(rows) for rows in halves]
    for rows, (out, _) in zip(halves, parts, strict=True):
        torch.testing.assert_close(whole.logits[:, rows], out.logits, rtol=0, atol=1e-9)
        torch.testing.assert_close(whole.values[:, rows], out.values, rtol=0, atol=1e-9)
        in_rows = torch.isin(rollout.final_at[1], rows)
        torch.testing.assert_close(whole.final_values[in_rows], out.final_values, rtol=0, atol=1e-9)
    part_loss = (parts[0][0].memory_loss + parts[1][0].memory_loss) / 2
    torch.testing.assert_close(whole.memory_loss, part_loss, rtol=1e-6, atol=1e-9)
    expected = gradients(parts[0][1] + parts[1][1] + 100 * part_loss)
    for actual, expected_gradient in zip(gradients(whole_loss + 100 * whole.memory_loss), expected, strict=True):
        assert (actual is None) == (expected_gradient is None)
        if actual is not None:
            torch.testing.assert_close(actual, expected_gradient, rtol=1e-6, atol=1e-8)


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
    """26 rows of different memory sizes, all at once and in a group for each size: outputs, final values, live counts,
    and the memory afterwards."""
    generator = torch.Generator().manual_seed(6)
    policy = make_policy(kind, settings)
    memory = policy.draw(policy.initial_memory(26), generator)
    memory = poison_dead_slots(act(policy, memory, experience(generator, 9, 26)).memory)
    rollout = experience(generator, 12, 26)
    actings = []
    begin = policy.core.begin
    monkeypatch.setattr(policy.core, "begin", lambda *args, **kw: actings.append(begin(*args, **kw)) or actings[-1])
    single_output = act(policy, memory, rollout, 5)
    monkeypatch.setattr(grouping, "ACTING_GROUP", 0)
    grouped_output = act(policy, memory, rollout, 5)
    grouped = [isinstance(acting, GroupedActing) for acting in actings]
    half = len(grouped) // 2
    assert grouped == [False] * half + [bool(memory.layers)] * half
    for name in ("logits", "values", "final_values"):
        torch.testing.assert_close(getattr(grouped_output, name), getattr(single_output, name), rtol=0, atol=1e-12)
    for left, right in zip(grouped_output.live, single_output.live, strict=True):
        assert torch.equal(left, right)
    assert torch.equal(grouped_output.memory.time, single_output.memory.time)
    for left, right in zip(grouped_output.memory.layers, single_output.memory.layers, strict=True):
        assert torch.equal(left.alive, right.alive)
        assert torch.equal(left.birth[left.alive], right.birth[right.alive])
        torch.testing.assert_close(left.hidden[left.alive], right.hidden[right.alive], rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind, settings", CASES)
def test_an_episode_start_empties_the_memory_of_its_row_only(kind, settings):
    """After an episode start the outputs are those of a fresh memory. The other rows continue as without the reset."""
    generator = torch.Generator().manual_seed(3)
    policy = make_policy(kind, settings)
    memory = policy.draw(policy.initial_memory(4), generator)
    memory = act(policy, memory, experience(generator, 11, 4, 0)).memory
    rollout = experience(generator, 6, 4, 0)
    reset = replace(rollout, start=rollout.start.clone())
    reset.start[0, 1] = True
    fresh = replace(policy.initial_memory(4), noise=memory.noise)
    for run in (act, _unroll):
        with_reset, no_reset, from_start = (
            run(policy, memory, reset),
            run(policy, memory, rollout),
            run(policy, fresh, rollout),
        )
        for name in ("logits", "values"):
            outputs, continued, expected = (getattr(x, name) for x in (with_reset, no_reset, from_start))
            torch.testing.assert_close(outputs[:, 1], expected[:, 1], rtol=0, atol=1e-9)
            others = [0, 2, 3]
            torch.testing.assert_close(outputs[:, others], continued[:, others], rtol=0, atol=1e-9)
            if kind != "none":
                assert not torch.allclose(outputs[:, 1], continued[:, 1])


def _unroll(policy, memory, rollout):
    return policy.unroll(rollout.observation, memory, rollout.start, rollout.final_observation, rollout.final_at)


@pytest.mark.parametrize("kind", KINDS)
def test_a_final_observation_is_seen_by_nobody(kind):
    """Other final observations, or none, change neither logits nor values, acting or learning."""
    generator = torch.Generator().manual_seed(4)
    policy = make_policy(kind, SMALL.get(kind, ({},))[0])
    memory = policy.draw(policy.initial_memory(3), generator)
    rollout = experience(generator, 10, 3)
    assert len(rollout.final_at[0])
    changed = replace(rollout, final_observation=observations(generator, len(rollout.final_at[0])))
    without_finals = policy.unroll(rollout.observation, memory, rollout.start)
    assert without_finals.final_values.shape == (0,)
    for run in (act, _unroll):
        left, right = run(policy, memory, rollout), run(policy, memory, changed)
        torch.testing.assert_close(left.logits, without_finals.logits, rtol=0, atol=1e-9)
        torch.testing.assert_close(left.logits, right.logits, rtol=0, atol=0)
        assert not torch.allclose(left.final_values, right.final_values)


def test_acting_beyond_the_horizon_is_refused():
    policy = make_policy("transformer_xl")
    acting = policy.begin(policy.initial_memory(2), 1)
    step_observation = observations(torch.Generator(), 2)
    policy.step(step_observation, acting, torch.zeros(2, dtype=torch.bool))
    assert acting.full
    with pytest.raises(ValueError, match="^acting: expected room for a step, got 1 of 1 steps taken$"):
        policy.step(step_observation, acting, torch.zeros(2, dtype=torch.bool))
