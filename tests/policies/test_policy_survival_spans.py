"""Spans from survival curves: the observed lives of memories, the likelihood, and what is learned from it.

B environments, C slots, H heads, T queries.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from policy_cases import act, experience, make_policy

from expire_span_rl.policies.memory.expire_span import PREDICTORS
from expire_span_rl.policies.memory.kind import Lives
from expire_span_rl.policies.memory.survival_spans import PATIENCE, SurvivalSpans
from expire_span_rl.policies.settings import SPAN_MODELS, ExpireSpanConfig

SETTINGS = {
    "initial_limit": 20, "ramp": 3, "use_lift": 1.5, "use_share": 0.08, "use_margin": 0.25, "use_coef": 9.0,
    "span_coef": 0.6, "time_skips": 0.0, "time_gaps": 0.0,
}  # fmt: skip


def spans_of(logits: list[float], **settings) -> SurvivalSpans:
    """A predictor of these logits for any memory, those of the later bins -50."""
    spans = SurvivalSpans(2, ExpireSpanConfig(**settings))
    with torch.no_grad():
        spans.bias.fill_(-50.0)
        spans.bias[: len(logits)] = torch.tensor(logits)
    return spans


@pytest.mark.parametrize(
    "logits, span",
    [
        ([], math.inf),  # nothing ever ends
        ([math.log(99)], 1.0),  # S(1) = 1 / 100
        ([math.log(9), math.log(9)], 2.0),  # S(1) = 1 / 10, S(2) = 1 / 100
        ([math.log(9), math.log(9999)], 1.25),  # 10^-1, then a quarter of the way to 10^-5
        ([-50, -50, -50, math.log(9999)], 4 + 4 / 2),  # bin [4, 8): 10^-4 at its end, 10^-2 in the middle
        ([math.log(9), math.log(8.9)], math.inf),  # not quite
    ],
)
def test_the_span_is_where_the_survival_curve_falls_below_one_in_use_coef(logits, span):
    spans = spans_of(logits)
    spans.release()
    assert spans(torch.zeros(1, 1, 2)).item() == pytest.approx(span, rel=1e-5)


@pytest.mark.parametrize(
    "num_visible, share, enough, is_used",
    [
        (3, 0.79, 1.0, False),  # eight times the average of the other two, 10.5%, would be 84%
        (3, 0.81, 1.0, True),
        (3, 0.26, 0.25, True),
        (3, 0.24, 0.25, False),
        (30, 0.21, 0.25, False),  # 8 / 37, less than is enough
        (30, 0.22, 0.25, True),
        (900, 0.09, 0.25, False),  # less than the least share
        (900, 0.11, 0.25, True),
    ],
)
def test_a_share_counts_as_use_by_its_multiple_of_the_others_or_if_it_is_enough(num_visible, share, enough, is_used):
    settings = {"use_lift": 8.0, "use_share": 0.1, "use_enough": enough}
    kind = make_policy("expire_span", {**SETTINGS, **settings}).core.layers[0].kind
    weights = torch.tensor([[[[share, 0.0]], [[0.0, 0.0]]]])  # two heads, one query, two slots
    assert kind.is_used(weights, torch.full((1, 1, 1), num_visible)).tolist() == [[[is_used, False]]]


@pytest.mark.parametrize(
    "ramp, shares", [(0, [[1, 1, 1, 0, 0], [1, 0, 0, 0, 0]]), (2, [[1, 1, 1, 0.6, 0.1], [1, 0.6, 0.1, 0, 0]])]
)
def test_without_a_ramp_a_memory_is_gone_when_its_span_is_over(ramp, shares):
    """Spans of 2.2 and 0.2 steps, at ages 0 to 4. A query always sees its own memory."""
    kind = make_policy("expire_span", {**SETTINGS, "ramp": ramp}).core.layers[0].kind
    age, spans = torch.arange(5.0).expand(2, 5), torch.tensor([2.2, 0.2])
    visible, bias = kind.visibility(age[:, :, None], spans[:, None], torch.ones(2, 1, dtype=torch.bool))
    expected = torch.tensor(shares, dtype=torch.float32)
    torch.testing.assert_close(torch.where(visible, bias.exp(), 0)[..., 0], expected)
    assert torch.equal(kind.survives(age, spans[:, None], torch.ones(2, 5, dtype=torch.bool)), expected > 0)


def test_spans_are_limited_until_the_task_was_learned():
    memory = torch.zeros(1, 1, 2)
    for settings, initial_span, released_span in (
        ({"initial_limit": 30}, 30, math.inf),
        ({"initial_limit": 30, "max_span": 100}, 30, 100),
        ({"initial_limit": 30, "max_span": 20}, 20, 20),
        ({}, 512, math.inf),
    ):
        spans = spans_of([], **settings)
        assert spans(memory).item() == initial_span
        spans.release()
        assert spans(memory).item() == released_span
        assert not spans_of([], **settings).tracks_use and spans.tracks_use
        loaded = spans_of([], **settings)
        loaded.load_state_dict(spans.state_dict())
        assert loaded(memory).item() == released_span


def used_ages(layer, b: int, coordinate: int, column: int, until: int) -> list[int]:
    """The ages at which a query of some head, at a step before `until`, gave the slot 1.5 times the average attention
    of the others that it saw, and 8% of all."""
    ages = []
    for t in range(max(coordinate, 0), until):
        num_others = int(layer.visible[b, t].sum()) - 1
        weights = [float(weight) for weight in layer.attention[b, :, t, column]]
        if any(num_others and weight / (1 - weight) * num_others > 1.5 and weight > 0.08 for weight in weights):
            ages.append(t - coordinate)
    return ages


def test_what_became_of_every_memory(monkeypatch):
    """Over three rollouts, with episodes that end in and between them: the age of each memory's last use so far, which
    acting carries along, its final age, and whether its episode ended."""
    policy = make_policy("expire_span", SETTINGS)
    losses: list[tuple] = []
    for layer in policy.core.layers:
        monkeypatch.setattr(layer.kind, "loss", lambda *rollout: losses.append(rollout))
    generator = torch.Generator().manual_seed(0)
    memory = policy.initial_memory(3)
    last_use: list[dict[tuple[int, int], int]] = [{}, {}]  # by layer, of (row, step at which it was written)
    first_step = carried = ended_between = ended_within = 0
    for steps in (11, 14, 9):
        memory = policy.draw(memory, None)
        rollout = experience(generator, steps, 3, start_probability=0.06)
        rollout.start[0, 1] = True
        _, _, inspected = policy.inspect(rollout.observation, memory, rollout.start)
        losses.clear()
        policy.unroll(rollout.observation, memory, rollout.start, pressure=1.0)
        for layer, ages, layer_memory, (_, new_slots, lives, _, _) in zip(
            inspected, last_use, memory.layers, losses, strict=True
        ):
            layer_memory = layer_memory.padded(new_slots.shape[1] - steps)
            num_columns = layer.coordinate.shape[1]
            for b in range(3):
                for c in range(new_slots.shape[1]):
                    is_new = c >= new_slots.shape[1] - steps
                    coordinate = (
                        c - new_slots.shape[1] + steps if is_new else int(layer_memory.birth[b, c] - memory.time[b])
                    )
                    assert bool(new_slots[b, c]) == is_new and bool(lives.exists[b, c]) == (
                        is_new or bool(layer_memory.alive[b, c])
                    )
                    if not lives.exists[b, c]:
                        continue
                    ends = [t for t in range(max(coordinate + 1, 0), steps) if rollout.start[t, b]]
                    until = ends[0] if ends else steps
                    column = c - new_slots.shape[1] + num_columns
                    key = (b, first_step + coordinate)
                    earlier_age = ages.get(key, 0)
                    ages_in_rollout = [] if until == 0 else used_ages(layer, b, coordinate, column, until)
                    ages[key] = max([earlier_age, *ages_in_rollout])
                    assert int(lives.use_in_rollout[b, c]) == max(ages_in_rollout, default=-1)
                    assert int(lives.last_use[b, c]) == ages[key]
                    assert int(lives.first_age[b, c]) == max(0, -coordinate)
                    assert int(lives.final_age[b, c]) == until - coordinate and bool(lives.ended[b, c]) == bool(ends)
                    carried += earlier_age > max(ages_in_rollout, default=-1)
                    ended_between += until == 0
                    ended_within += 0 < until < steps
        memory, first_step = act(policy, memory, rollout).memory, first_step + steps
    assert carried > 20 and ended_between > 5 and ended_within > 20


def test_nothing_is_concluded_from_uses_that_were_not_recorded(monkeypatch):
    """Memories from before spans were released count only if they were used since."""
    policy = make_policy("expire_span", SETTINGS)
    generator = torch.Generator().manual_seed(2)
    memory = act(policy, policy.initial_memory(3), experience(generator, 8, 3)).memory
    assert all(layer.last_use is None for layer in memory.layers)
    memory = policy.draw(memory, None)
    losses: list[Lives] = []
    for layer in policy.core.layers:
        monkeypatch.setattr(layer.kind, "loss", lambda normed, new_slots, lives, *rest: losses.append(lives))
    rollout = experience(generator, 9, 3, start_probability=0)
    policy.unroll(rollout.observation, memory, rollout.start, pressure=1.0)
    counts = [0, 0]
    for lives, layer_memory in zip(losses, memory.layers, strict=True):
        past = lives.exists.shape[1] - 9
        alive = layer_memory.padded(past).alive
        is_used = lives.use_in_rollout[:, :past] > 0
        assert torch.equal(lives.exists[:, :past], alive & is_used) and lives.exists[:, past:].all()
        counts = [counts[0] + int((alive & is_used).sum()), counts[1] + int((alive & ~is_used).sum())]
    assert min(counts) > 0


@pytest.mark.parametrize("pressure", [1.0, 0.3, -0.5])
def test_the_loss_in_plain_loops(pressure):
    """Under pressure of any size: the negative log-likelihood of the lives that ended, and of memories that live on but
    went unused for long. Under negative pressure: the cumulative hazards of the new memories, divided by
    use_coef. Both per new memory."""
    kind = make_policy("expire_span", SETTINGS, seed=3).core.layers[0].kind
    kind.release()
    generator = torch.Generator().manual_seed(1)
    shape = (8, 80)
    normed = torch.randn(*shape, 16, dtype=torch.float64, generator=generator)
    new_slots = torch.rand(shape, generator=generator) < 0.3
    age = torch.randint(1, 90, shape, generator=generator).double()
    last_use = (age * torch.rand(shape, dtype=torch.float64, generator=generator) ** 3).floor()
    flags = [torch.rand(shape, generator=generator) < chance for chance in (0.4, 0.9)]
    spans = kind.span(normed)
    spans[:, ::2] = math.inf
    first_age = (age - 20).clamp(min=0)
    lives = Lives(last_use, last_use, first_age, age, *flags, spans)
    logits = normed @ kind.span.weight.T + kind.span.bias
    expected, counts = 0.0, {"last": 0, "censored": 0, "living": 0, "unused": 0, "counted before": 0}
    for b in range(shape[0]):
        for c in range(shape[1]):
            hazards = torch.sigmoid(logits[b, c]).tolist()
            if pressure < 0:
                expected -= sum(math.log(1 - h) for h in hazards) * bool(new_slots[b, c]) / 9  # use_coef
                continue
            reach = float(spans[b, c]) + 3
            need = 1.25 * float(last_use[b, c]) if last_use[b, c] > 3 else 0.0
            watched = min(float(age[b, c]) - 1, reach)
            ended = bool(lives.ended[b, c]) or age[b, c] >= reach
            known_at = max(PATIENCE * need + 1, 20)  # the initial limit
            if not lives.exists[b, c] or not (ended or watched >= known_at):
                counts["living"] += 1
                continue
            if first_age[b, c] - 1 >= known_at:
                counts["counted before"] += 1
                continue
            k = 0 if need < 1 else int(math.log2(need)) + 1
            expected -= sum(math.log(1 - h) for h in hazards[:k])
            is_last = watched >= PATIENCE * need + 1
            expected -= math.log(hazards[k]) if is_last else 0.0
            counts["last" if is_last else "censored"] += 1
            counts["unused"] += not ended
    assert pressure < 0 or min(counts.values()) >= 3
    loss = kind.loss(normed, new_slots, lives, torch.zeros(8, 0), pressure)
    assert float(loss.detach()) == pytest.approx(0.6 * expected / int(new_slots.sum()), rel=1e-6)


def test_what_expires_unseen_counts_as_unused():
    """Without a ramp and with spans below a step, memories expire before any query sees them. They count as a use in
    the first bin, which shortens spans further, but only down to UNSEEN_SPAN. The newest memory of an episode that
    ended had not been seen, and has not expired. Nothing is known of it."""
    kind = make_policy("expire_span", {**SETTINGS, "ramp": 0}, seed=3).core.layers[0].kind
    kind.observe_needs()
    kind.release()
    shape = (1, 3)
    spans, ended = torch.tensor([[0.8, 0.6, 0.8]]), torch.tensor([[False, False, True]])
    unused, exists = torch.zeros(shape), torch.ones(shape, dtype=torch.bool)
    lives = Lives(unused - 1, unused, unused, unused + 1, ended, exists, spans)
    need, is_counted, is_last = kind.span._needs(lives)
    assert need.tolist() == [[0, 0, 0]] and is_counted.all()
    assert is_last.tolist() == [[True, False, False]]
    normed = torch.randn(1, 3, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    kind.loss(normed, exists, lives, torch.zeros(1, 0), 1.0).backward()
    assert kind.span.bias.grad[0] < 0 and not kind.span.bias.grad[1:].any()


def learn_spans(needs: dict[int, tuple[list[float], list[float]]], steps: int = 1500) -> list[float]:
    """Spans after learning from three kinds of memory, one-hot. needs: by kind, the ages of last uses, and the ages of
    memories that were in use when their episode ended."""
    spans = SurvivalSpans(3, ExpireSpanConfig(ramp=1, use_margin=0.0))
    spans.release()
    rows = [
        (kind, age, is_last) for kind, ages in needs.items() for is_last in (True, False) for age in ages[not is_last]
    ]
    normed = torch.eye(3)[torch.tensor([kind for kind, _, _ in rows])][None] * 3
    need = torch.tensor([[age for _, age, _ in rows]])
    age = torch.tensor([[age * (3 if is_last else 1) + (2 if is_last else 1) for _, age, is_last in rows]])
    all_set = torch.ones(1, len(rows), dtype=torch.bool)
    optimizer = torch.optim.Adam(
        [{"params": [spans.weight], "lr": 1.5e-3}, {"params": [spans.bias], "lr": 1.5e-2}], betas=(0.9, 0.99)
    )
    for _ in range(steps):
        optimizer.zero_grad()
        lives = Lives(need, need, age * 0, age, all_set, all_set, spans(normed))
        spans.loss(normed, all_set, lives, 1.0).backward()
        optimizer.step()
    return spans(torch.eye(3)[None] * 3)[0].tolist()


def test_what_is_in_use_when_episodes_end_is_kept_for_good_unless_its_like_was_seen_to_be_of_no_more_use():
    """Of a hundred dull memories none is used; of three precious ones all are in use whenever an episode ends; of
    twenty that are replaced, one is in use at the end and the others were last used at up to 40 steps."""
    replaced = [float(age) for age in range(2, 40, 2)]
    dull, precious, outdated = learn_spans({0: ([0.0] * 100, []), 1: ([], [50.0, 120.0, 200.0]), 2: (replaced, [30.0])})
    assert dull <= 1 and precious == math.inf and 32 <= outdated <= 64


def test_every_span_model_that_can_be_named_is_there():
    assert tuple(PREDICTORS) == SPAN_MODELS


def test_only_the_span_predictor_learns_from_it():
    policy = make_policy("expire_span", {**SETTINGS, "max_span": 6})
    generator = torch.Generator().manual_seed(1)
    memory = act(policy, policy.draw(policy.initial_memory(3), None), experience(generator, 12, 3)).memory
    rollout = experience(generator, 9, 3)
    policy.unroll(rollout.observation, memory, rollout.start, pressure=0.5).memory_loss.backward()
    learned_names = {name for name, p in policy.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert learned_names == {f"core.layers.{i}.kind.span.{name}" for i in range(2) for name in ("weight", "bias")}


def test_the_last_use_travels_with_the_memory():
    """Rows, padding, and both forms in which memories are sent and saved keep it, and the need that is known."""
    policy = make_policy("expire_span", SETTINGS)
    memory = policy.draw(policy.initial_memory(4), None)
    memory = act(policy, memory, experience(torch.Generator().manual_seed(5), 15, 4)).memory
    memory = policy.draw(memory)
    assert any((layer.known_need > 0).any() for layer in memory.layers)
    read_back = [type(memory).from_tensors(tensors) for tensors in (memory.to_tensors(), memory.packed())]
    for layer, *copies in zip(memory.layers, *(copy.layers for copy in read_back), strict=True):
        assert layer.last_use is not None and (layer.last_use >= layer.birth)[layer.alive].all()
        for copy in copies:
            assert copy.last_use is not None
            assert torch.equal(copy.last_use[copy.alive], layer.last_use[layer.alive])
            assert torch.equal(copy.known_need[copy.alive], layer.known_need[layer.alive])
        chosen = layer.rows(torch.tensor([2, 0]))
        assert chosen.last_use is not None and torch.equal(chosen.last_use[chosen.alive], torch.cat([
            layer.last_use[row][layer.alive[row]] for row in (2, 0)
        ]))  # fmt: skip
        assert layer.padded(30).last_use is not None
    forgetful = replace(memory, layers=tuple(replace(layer, last_use=None) for layer in memory.layers))
    assert all(layer.last_use is not None for layer in policy.draw(forgetful, None).layers)
