"""The attention kinds against a transcription of the papers in plain loops: one environment, one step, one head and one
memory at a time, no batch, no padding, no bias of minus infinity. Everything in float64, agreement to 1e-9."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from policy_cases import CORE, SMALL, SPEC, Experience, act, experience, make_policy

from expire_span_rl.policies import ActorCritic, Memory

OBJECTS, COLOURS, STATES = 11, 6, 4  # that MiniGrid's encoding has


@dataclass
class Slot:
    """A memory of one layer."""

    hidden: np.ndarray
    clock: int  # of its environment, when it was written
    step: int  # never reset; rollouts lie on this axis


@dataclass
class Look:
    """The memories that one query of one layer saw: by step, the attention weights per head and the span."""

    attention: dict[int, list[float]]
    spans: dict[int, float]


class Reference:
    """The policy for one environment. `mask(age, span, config)` is the soft mask of the memory kind."""

    def __init__(self, policy: ActorCritic, mask):
        self.weights = {name: value.numpy() for name, value in policy.state_dict().items()}
        self.config, self.mask = policy.config.memory_config, mask
        self.slots: list[list[Slot]] = [[] for _ in range(CORE.num_layers)]
        self.clock = self.steps = 0

    def step(self, observation, start: bool) -> tuple[np.ndarray, float, list[Look]]:
        """Logits, value, and the memories that each layer saw."""
        if start:
            self.slots, self.clock = [[] for _ in self.slots], 0
        features, looks = self._features(observation, self.clock, keep=True)
        clock = self.clock
        self.clock, self.steps = self.clock + 1, self.steps + 1
        return self._linear("policy_head", features), self._value(features, clock), looks

    def final_value(self, observation) -> float:
        """The value of an observation that comes next and is not remembered."""
        return self._value(self._features(observation, self.clock, keep=False)[0], self.clock)

    def survivors(self, layer: int) -> list[Slot]:
        """The memories that the next query sees."""
        heads = range(CORE.num_heads)
        slots = self._slots_for(layer, self.clock)
        return [slot for slot in slots if any(self._mask(layer, slot, self.clock, head) > 0 for head in heads)]

    def _slots_for(self, layer: int, clock: int) -> list[Slot]:
        """The slots that exist for a query. Its own is among them only if it is kept."""
        return self.slots[layer]

    def _features(self, observation, clock: int, keep: bool) -> tuple[np.ndarray, list[Look]]:
        x, looks = self._encode(observation), []
        for i in range(CORE.num_layers):
            query_slot = Slot(x, clock, self.steps)
            if keep:
                self.slots[i].append(query_slot)
            slots = self._slots_for(i, clock) if keep else [*self._slots_for(i, clock), query_slot]
            attended, look = self._attend(i, x, slots, clock)
            looks.append(look)
            x = x + self._linear(f"core.layers.{i}.out", attended)
            inner = self._norm(f"core.layers.{i}.feed_forward.0", x)
            inner = np.maximum(self._linear(f"core.layers.{i}.feed_forward.1", inner), 0)
            x = x + self._linear(f"core.layers.{i}.feed_forward.3", inner)
        return self._norm("core.norm", x), looks

    def query_and_key(self, i: int, head: int, hidden: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """One head's query and key of a hidden vector. Both have the norm sharpness * sqrt(d / 3), the query times its
        head's gain."""
        name, size = f"core.layers.{i}", CORE.width // CORE.num_heads
        part = slice(head * size, (head + 1) * size)
        normed = self._norm(f"{name}.norm", hidden)
        query = self.weights[f"{name}.query.weight"][part] @ normed
        key = self.weights[f"{name}.key_value.weight"][part] @ normed
        length = CORE.sharpness * math.sqrt(size / 3)
        gain = self.weights[f"{name}.query_gain"][head, 0]
        return gain * length * query / np.linalg.norm(query), length * key / np.linalg.norm(key)

    def _attend(self, i: int, x: np.ndarray, slots: list[Slot], clock: int) -> tuple[np.ndarray, Look]:
        """Weights m * exp(s) / sum(m * exp(s)) with s = (q . k + q . p_age) / sqrt(d) + bias_age, of values v + r_age,
        head by head."""
        name, width = f"core.layers.{i}", CORE.width // CORE.num_heads
        positions, by_age = self.weights[f"{name}.positions"], CORE.age_gain * self.weights[f"{name}.age_bias"]
        to_value = np.split(self.weights[f"{name}.key_value.weight"], 2)[1]
        age_values = CORE.age_values * self.weights[f"{name}.age_values"]  # [H,P,d]
        look = Look({}, {})
        heads = []
        shares: list[list[float]] = [[] for _ in slots]
        for head in range(CORE.num_heads):
            part = slice(head * width, (head + 1) * width)
            query, _ = self.query_and_key(i, head, x)
            weights, values = [], []
            for slot in slots:
                normed = self._norm(f"{name}.norm", slot.hidden)
                age = clock - slot.clock
                score = query @ self.query_and_key(i, head, slot.hidden)[1]
                value = (to_value @ normed)[part]
                if age < len(positions):
                    value = value + age_values[head, age]
                    score += query @ positions[age] + math.sqrt(width) * by_age[head, age]
                weights.append(self._mask(i, slot, clock, head) * math.exp(score / math.sqrt(width)))
                values.append(value)
            total = sum(weights)
            heads.append(sum(weight / total * value for weight, value in zip(weights, values, strict=True)))
            for share, weight in zip(shares, weights, strict=True):
                share.append(weight / total)
        for slot, share in zip(slots, shares, strict=True):
            if any(weight > 0 for weight in share):
                look.attention[slot.step] = share
                look.spans[slot.step] = self._span(i, slot)
        return np.concatenate(heads), look

    def _mask(self, i: int, slot: Slot, clock: int, head: int) -> float:
        return self.mask(clock - slot.clock, self._span(i, slot), self.config)

    def _span(self, i: int, slot: Slot) -> float:
        """Of the normalised memory; nan for a kind without spans. Sigmoid: e = L_max * sigmoid(w . h + b). Survival:
        the age at which the product of all 1 - sigmoid(w_k . h + b_k) falls to 1 / use_coef, bins [0, 1), [1, 2), [2,
        4), ...; within a bin it falls exponentially."""
        name = f"core.layers.{i}"
        if f"{name}.kind.span.weight" not in self.weights:
            return math.nan
        z = self._linear(f"{name}.kind.span", self._norm(f"{name}.norm", slot.hidden))
        if self.config.span_model == "sigmoid":
            return self.config.max_span / (1 + math.exp(-z[0]))
        longest = self.config.max_span or math.inf
        survival, lower, upper = 1.0, 0.0, 1.0
        for k in range(len(z)):
            next_survival = survival / (1 + math.exp(z[k]))
            if next_survival <= 1 / self.config.use_coef:
                part = math.log(survival * self.config.use_coef) / math.log(survival / next_survival)
                return min(lower + part * (upper - lower), longest)
            survival, lower, upper = next_survival, upper, 2 * upper
        return longest

    def _encode(self, observation) -> np.ndarray:
        """One-hot object, colour and state of every cell, one-hot action, reward; two layers."""
        assert list(SPEC) == ["image", "previous_action", "previous_reward"]
        features: list[float] = []
        for row in observation["image"].tolist():
            for cell in row:
                for number, size in zip(cell, (OBJECTS, COLOURS, STATES), strict=True):
                    features += [float(number == n) for n in range(size)]
        action = int(observation["previous_action"])
        features += [float(action == n) for n in range(SPEC["previous_action"]["n"])]
        features.append(float(observation["previous_reward"]))
        return self._linear("encoder.mix", np.maximum(self._linear("encoder.project", np.array(features)), 0))

    def _value(self, features: np.ndarray, clock: int) -> float:
        """w . features + b, and the output of a layer of rectified units that also reads sines and cosines of the
        clock, of periods 64, 128, ..., 65,536."""
        angles = [2 * math.pi * clock / (64 * 2**k) for k in range(11)]
        times = np.array([*map(math.sin, angles), *map(math.cos, angles)])
        hidden = self._linear("elapsed_value.features", features) + self.weights["elapsed_value.clock.weight"] @ times
        correction = self.weights["elapsed_value.out.weight"] @ np.maximum(hidden, 0)
        return float(self._linear("value_head", features)[0] + correction[0])

    def _linear(self, name: str, x: np.ndarray) -> np.ndarray:
        return self.weights[f"{name}.weight"] @ x + self.weights[f"{name}.bias"]

    def _norm(self, name: str, x: np.ndarray) -> np.ndarray:
        x = (x - x.mean()) / math.sqrt(((x - x.mean()) ** 2).mean() + 1e-5)
        return x * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]


def expire_span_mask(age: int, span: float, config) -> float:
    if config.ramp == 0:
        return float(age < span)
    return min(max(1 + (span - age) / config.ramp, 0.0), 1.0)


MASKS = {
    "expire_span": expire_span_mask,
    "transformer_xl": lambda age, span, config: float(age <= config.window),
    "none": lambda age, span, config: float(age == 0),
}


def row(observation: dict, *place) -> dict:
    return {key: value[place] for key, value in observation.items()}


@pytest.mark.parametrize("kind, case", [*((kind, 0) for kind in MASKS), ("expire_span", 2), ("expire_span", 3)])
def test_unroll_is_the_reference(kind, case):
    """Two rollouts with memory carried from one to the other, resets and final observations: logits, values, values of
    final observations, and per layer exactly which memories every query sees, with what attention and which spans."""
    policy = make_policy(kind, SMALL[kind][case] if kind in SMALL else None)
    partly_masked = expired = 0
    for reference, query, _, look in compare(policy, [Reference(policy, MASKS[kind]) for _ in range(2)], (14, 17)):
        masks = [expire_span_mask(query.step - step, e, policy.config.memory_config)
                 for step, e in look.spans.items() if not math.isnan(e)]  # fmt: skip
        partly_masked += sum(0 < mask < 1 for mask in masks)
        expired += reference.clock - len(look.attention)
    assert (kind != "expire_span" or partly_masked > (50 if case < 3 else 0)) and (kind == "none" or expired > 50)


class Query(NamedTuple):
    """Step t of a rollout of environment b; `step` is never reset."""

    t: int
    b: int
    step: int


def compare(
    policy: ActorCritic, references: list[Reference], lengths: tuple[int, ...]
) -> Iterator[tuple[Reference, Query, Any, Look]]:
    """Rollouts of these lengths with memory carried over, resets and final observations, and a reference for each
    environment. Asserts after every query and rollout that both agree.

    Yields (reference, query, the layer's inspection, the reference's look) for every layer of every query. The iterator
    must be exhausted, since it asserts as it runs.
    """
    generator, batch = torch.Generator().manual_seed(0), len(references)
    memory, first_step = policy.initial_memory(batch), 0
    for steps in lengths:
        rollout = experience(generator, steps, batch, start_probability=0.03)
        out = policy.unroll(rollout.observation, memory, rollout.start, rollout.final_observation, rollout.final_at)
        _, _, layers = policy.inspect(rollout.observation, memory, rollout.start)
        for b, reference in enumerate(references):
            for t in range(steps):
                logits, value, looks = reference.step(row(rollout.observation, t, b), bool(rollout.start[t, b]))
                np.testing.assert_allclose(out.logits[t, b].detach(), logits, rtol=0, atol=1e-9)
                np.testing.assert_allclose(out.values[t, b].detach(), value, rtol=0, atol=1e-9)
                for f in torch.nonzero((rollout.final_at[0] == t) & (rollout.final_at[1] == b)).flatten():
                    final = reference.final_value(row(rollout.final_observation, f))
                    np.testing.assert_allclose(out.final_values[f].detach(), final, rtol=0, atol=1e-9)
                for layer, look in zip(layers, looks, strict=False):
                    assert_same_look(layer, b, t, first_step, look)
                    yield reference, Query(t, b, first_step + t), layer, look
        memory = act(policy, memory, rollout).memory
        assert_same_memory(memory, references)
        first_step += steps


def assert_same_look(layer, b: int, t: int, first_step: int, look: Look) -> None:
    """The layer's inspection at query (t, b) against the reference's; rollouts begin at the step `first_step`."""
    columns = torch.nonzero(layer.visible[b, t]).flatten()
    columns = columns[layer.coordinate[b, columns].argsort()]  # merged slots are not in order
    steps = [int(layer.coordinate[b, c]) + first_step for c in columns]
    assert steps == sorted(look.attention)
    hidden = torch.nonzero(~layer.visible[b, t]).flatten()
    assert (layer.attention[b, :, t, hidden] == 0).all()
    for c, step in zip(columns, steps, strict=True):
        np.testing.assert_allclose(layer.attention[b, :, t, c], look.attention[step], rtol=0, atol=1e-9)
        if layer.slot_features is not None:
            np.testing.assert_allclose(layer.slot_features[b, c], look.spans[step], rtol=0, atol=1e-9)


def assert_same_memory(memory: Memory, references: list[Reference]) -> None:
    """The memory holds what the next query of each environment sees, oldest first, with its hidden vectors."""
    for i, layer in enumerate(memory.layers):
        for b, reference in enumerate(references):
            survivors = reference.survivors(i)
            alive = layer.alive[b]
            assert layer.birth[b, alive].tolist() == [slot.clock for slot in survivors]
            expected = np.array([slot.hidden for slot in survivors]).reshape(-1, CORE.width)
            np.testing.assert_allclose(layer.hidden[b, alive], expected, rtol=0, atol=1e-9)
        assert memory.time.tolist() == [reference.clock for reference in references]
        assert layer.alive.shape[1] == layer.alive.sum(1).max()  # compacted: no larger than the largest row


# Expiry


def with_span(policy: ActorCritic, span: float) -> ActorCritic:
    """Every memory's span is `span`, in both layers."""
    fraction = span / policy.config.memory_config.max_span
    with torch.no_grad():
        for layer in policy.core.layers:
            layer.kind.span.weight.zero_()
            layer.kind.span.bias.fill_(math.log(fraction / (1 - fraction)))
    return policy


def act_steps(policy: ActorCritic, memory: Memory, steps: int, seed: int = 0) -> tuple[Experience, Memory, list]:
    rollout = experience(torch.Generator().manual_seed(seed), steps, 2, start_probability=0)
    out = act(policy, memory, rollout)
    return rollout, out.memory, [live.tolist() for live in out.live]


@pytest.mark.parametrize("span, ramp, oldest", [(6.5, 3, 9), (6.5, 1, 7), (0.5, 1, 1), (3.2, 8, 11)])
def test_a_memory_lives_for_its_span_and_the_ramp(span, ramp, oldest):
    """A memory with span e and ramp R is visible at exactly the ages below e + R. Spans of 6.5 and a ramp of 3 leave
    the 9 latest of 20 steps in memory. A query sees these and itself."""
    policy = with_span(make_policy("expire_span", {"span_model": "sigmoid", "max_span": 24, "ramp": ramp}), span)
    _, memory, live = act_steps(policy, policy.initial_memory(2), 20)
    assert live == [[[min(t, oldest) + 1] * 2] * 2 for t in range(20)]
    assert memory.live().tolist() == [[oldest] * 2] * 2
    for layer in memory.layers:
        assert layer.birth[layer.alive].view(2, -1).tolist() == [list(range(20 - oldest, 20))] * 2


def test_a_dead_memory_stays_dead():
    """Weights with longer spans do not bring removed memories back. Live memories follow today's weights: longer spans
    keep them, shorter spans remove them."""
    policy = with_span(make_policy("expire_span", {"span_model": "sigmoid", "max_span": 1000, "ramp": 2}), 4.5)
    _, memory, _ = act_steps(policy, policy.initial_memory(2), 20)
    assert memory.live().tolist() == [[6, 6]] * 2  # births 14 to 19
    with_span(policy, 900.0)
    rollout, later_memory, live = act_steps(policy, memory, 5, seed=1)
    assert live == [[[6 + t + 1] * 2] * 2 for t in range(5)]
    assert later_memory.layers[0].birth.tolist() == [list(range(14, 25))] * 2
    _, _, layers = policy.inspect(rollout.observation, memory, rollout.start)
    coordinates = layers[0].coordinate[0]
    assert coordinates[coordinates > -math.inf].tolist() == [-6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4]
    with_span(policy, 1.5)
    assert act_steps(policy, later_memory, 1)[2] == [[[4, 4]] * 2]  # ages 0 to 3 < 1.5 + 2


def test_a_window_is_counted_in_steps_of_the_environment():
    """Transformer-XL sees ages up to and including its window; a reset empties it."""
    policy = make_policy("transformer_xl", {"window": 4})
    rollout = experience(torch.Generator().manual_seed(0), 12, 2, start_probability=0)
    rollout = replace(rollout, start=rollout.start.clone())
    rollout.start[8, 1] = True
    out = act(policy, policy.initial_memory(2), rollout)
    live = torch.stack(out.live)[..., 0]
    assert live[:, 0].tolist() == [1, 2, 3, 4] + [5] * 8
    assert live[:, 1].tolist() == [1, 2, 3, 4] + [5] * 4 + [1, 2, 3, 4]
    assert out.memory.layers[1].birth[0].tolist() == [8, 9, 10, 11]
    assert out.memory.layers[1].birth[1].tolist() == [0, 1, 2, 3]
    assert out.memory.time.tolist() == [12, 4]
