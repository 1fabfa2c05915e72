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
class Looked:
    """What one query of one layer saw: by step of the memory, its attention weights per head and its span."""

    attention: dict[int, list[float]]
    spans: dict[int, float]


class Reference:
    """The policy for one environment. `mask(age, span, config)` is the soft mask of the memory kind."""

    def __init__(self, policy: ActorCritic, mask):
        self.weights = {name: value.numpy() for name, value in policy.state_dict().items()}
        self.config, self.mask = policy.config.memory_config, mask
        self.slots: list[list[Slot]] = [[] for _ in range(CORE.num_layers)]
        self.clock = self.steps = 0

    def step(self, observation, start: bool) -> tuple[np.ndarray, float, list[Looked]]:
        """Logits, value, and what each layer looked at."""
        if start:
            self.slots, self.clock = [[] for _ in self.slots], 0
        features, looked = self._features(observation, self.clock, keep=True)
        self.clock, self.steps = self.clock + 1, self.steps + 1
        return *self._heads(features), looked

    def final_value(self, observation) -> float:
        """The value of what would come next; it is not remembered."""
        return self._heads(self._features(observation, self.clock, keep=False)[0])[1]

    def survivors(self, layer: int) -> list[Slot]:
        """The memories that the next query sees."""
        heads = range(CORE.num_heads)
        slots = self._remembered(layer, self.clock)
        return [slot for slot in slots if any(self._mask(layer, slot, self.clock, head) > 0 for head in heads)]

    def _remembered(self, layer: int, clock: int) -> list[Slot]:
        """What there is to see for a query, itself not counted unless it is kept."""
        return self.slots[layer]

    def _features(self, observation, clock: int, keep: bool) -> tuple[np.ndarray, list[Looked]]:
        x, looked = self._encoded(observation), []
        for i in range(CORE.num_layers):
            own = Slot(x, clock, self.steps)
            if keep:
                self.slots[i].append(own)
            slots = self._remembered(i, clock) if keep else [*self._remembered(i, clock), own]
            attended, seen = self._attended(i, x, slots, clock)
            looked.append(seen)
            x = x + self._linear(f"core.layers.{i}.out", attended)
            inner = self._norm(f"core.layers.{i}.feed_forward.0", x)
            inner = np.maximum(self._linear(f"core.layers.{i}.feed_forward.1", inner), 0)
            x = x + self._linear(f"core.layers.{i}.feed_forward.3", inner)
        return self._norm("core.norm", x), looked

    def _attended(self, i: int, x: np.ndarray, slots: list[Slot], clock: int) -> tuple[np.ndarray, Looked]:
        """Weights m * exp(s) / sum(m * exp(s)) with s = (q . k + q . p_age) / sqrt(d) + bias_age, head by head."""
        name, width = f"core.layers.{i}", CORE.width // CORE.num_heads
        positions, by_age = self.weights[f"{name}.positions"], self.weights[f"{name}.age_bias"]
        to_key, to_value = np.split(self.weights[f"{name}.key_value.weight"], 2)
        query = self.weights[f"{name}.query.weight"] @ self._norm(f"{name}.norm", x)
        seen = Looked({}, {})
        heads = []
        shares: list[list[float]] = [[] for _ in slots]
        for head in range(CORE.num_heads):
            part = slice(head * width, (head + 1) * width)
            weights, values = [], []
            for slot in slots:
                normed = self._norm(f"{name}.norm", slot.hidden)
                age = clock - slot.clock
                score = query[part] @ (to_key @ normed)[part]
                if age < len(positions):
                    score += query[part] @ positions[age] + math.sqrt(width) * by_age[head, age]
                weights.append(self._mask(i, slot, clock, head) * math.exp(score / math.sqrt(width)))
                values.append((to_value @ normed)[part])
            total = sum(weights)
            heads.append(sum(weight / total * value for weight, value in zip(weights, values, strict=True)))
            for share, weight in zip(shares, weights, strict=True):
                share.append(weight / total)
        for slot, share in zip(slots, shares, strict=True):
            if any(weight > 0 for weight in share):
                seen.attention[slot.step] = share
                seen.spans[slot.step] = self._span(i, slot)
        return np.concatenate(heads), seen

    def _mask(self, i: int, slot: Slot, clock: int, head: int) -> float:
        return self.mask(clock - slot.clock, self._span(i, slot), self.config)

    def _span(self, i: int, slot: Slot) -> float:
        """Of the normalised memory; nan for a kind without spans. Sigmoid: e = L_max * sigmoid(w . h + b). Survival: the
        age at which the product of all 1 - sigmoid(w_k . h + b_k) falls to 1 / use_coef, bins [0, 1), [1, 2), [2, 4),
        ...; within a bin it falls exponentially."""
        name = f"core.layers.{i}"
        if f"{name}.kind.span.weight" not in self.weights:
            return math.nan
        z = self._linear(f"{name}.kind.span", self._norm(f"{name}.norm", slot.hidden))
        if self.config.span_model == "sigmoid":
            return self.config.max_span / (1 + math.exp(-z[0]))
        longest = self.config.max_span or math.inf
        needed, lower, upper = 1.0, 0.0, 1.0
        for k in range(len(z)):
            still = needed / (1 + math.exp(z[k]))
            if still <= 1 / self.config.use_coef:
                part = math.log(needed * self.config.use_coef) / math.log(needed / still)
                return min(lower + part * (upper - lower), longest)
            needed, lower, upper = still, upper, 2 * upper
        return longest

    def _encoded(self, observation) -> np.ndarray:
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

    def _heads(self, features: np.ndarray) -> tuple[np.ndarray, float]:
        return self._linear("policy_head", features), float(self._linear("value_head", features)[0])

    def _linear(self, name: str, x: np.ndarray) -> np.ndarray:
        return self.weights[f"{name}.weight"] @ x + self.weights[f"{name}.bias"]

    def _norm(self, name: str, x: np.ndarray) -> np.ndarray:
        x = (x - x.mean()) / math.sqrt(((x - x.mean()) ** 2).mean() + 1e-5)
        return x * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]


def expire_span_mask(age: int, span: float, config) -> float:
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
    for reference, query, _, seen in compared(policy, [Reference(policy, MASKS[kind]) for _ in range(2)], (14, 17)):
        masks = [expire_span_mask(query.step - step, e, policy.config.memory_config)
                 for step, e in seen.spans.items() if not math.isnan(e)]  # fmt: skip
        partly_masked += sum(0 < mask < 1 for mask in masks)
        expired += reference.clock - len(seen.attention)
    assert (kind != "expire_span" or partly_masked > (50 if case < 3 else 0)) and (kind == "none" or expired > 50)


class Query(NamedTuple):
    """Step t of a rollout of environment b; `step` is never reset."""

    t: int
    b: int
    step: int


def compared(
    policy: ActorCritic, references: list[Reference], lengths: tuple[int, ...]
) -> Iterator[tuple[Reference, Query, Any, Looked]]:
    """Rollouts of these lengths with memory carried over, resets and final observations, one reference an environment.
    Asserts after every query and rollout that both agree, and yields for every layer of every query (reference, query,
    the layer's inspection, what the reference saw). The assertions come as the iterator goes on: exhaust it."""
    generator, batch = torch.Generator().manual_seed(0), len(references)
    memory, begun = policy.initial_memory(batch), 0
    for steps in lengths:
        given = experience(generator, steps, batch, start_probability=0.03)
        out = policy.unroll(given.observation, memory, given.start, given.final_observation, given.final_at)
        _, _, layers = policy.inspect(given.observation, memory, given.start)
        for b, reference in enumerate(references):
            for t in range(steps):
                logits, value, looked = reference.step(row(given.observation, t, b), bool(given.start[t, b]))
                np.testing.assert_allclose(out.logits[t, b].detach(), logits, rtol=0, atol=1e-9)
                np.testing.assert_allclose(out.values[t, b].detach(), value, rtol=0, atol=1e-9)
                for f in torch.nonzero((given.final_at[0] == t) & (given.final_at[1] == b)).flatten():
                    final = reference.final_value(row(given.final_observation, f))
                    np.testing.assert_allclose(out.final_values[f].detach(), final, rtol=0, atol=1e-9)
                for layer, seen in zip(layers, looked, strict=True):
                    assert_same_look(layer, b, t, begun, seen)
                    yield reference, Query(t, b, begun + t), layer, seen
        memory = act(policy, memory, given).memory
        assert_same_memory(memory, references)
        begun += steps


def assert_same_look(layer, b: int, t: int, begun: int, seen: Looked) -> None:
    """The layer's inspection at query (t, b) against the reference's; rollouts begin at the step `begun`."""
    columns = torch.nonzero(layer.visible[b, t]).flatten()
    columns = columns[layer.coordinate[b, columns].argsort()]  # slots that came into being are not in order
    steps = [int(layer.coordinate[b, c]) + begun for c in columns]
    assert steps == sorted(seen.attention)
    hidden = torch.nonzero(~layer.visible[b, t]).flatten()
    assert (layer.attention[b, :, t, hidden] == 0).all()
    for c, step in zip(columns, steps, strict=True):
        np.testing.assert_allclose(layer.attention[b, :, t, c], seen.attention[step], rtol=0, atol=1e-9)
        if layer.slot_features is not None:
            np.testing.assert_allclose(layer.slot_features[b, c], seen.spans[step], rtol=0, atol=1e-9)


def assert_same_memory(memory: Memory, references: list[Reference]) -> None:
    """What survives is what the next query of each environment will see, oldest first, and its hidden vectors."""
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


def acted(policy: ActorCritic, memory: Memory, steps: int, seed: int = 0) -> tuple[Experience, Memory, list]:
    given = experience(torch.Generator().manual_seed(seed), steps, 2, start_probability=0)
    out = act(policy, memory, given)
    return given, out.memory, [live.tolist() for live in out.live]


@pytest.mark.parametrize("span, ramp, oldest", [(6.5, 3, 9), (6.5, 1, 7), (0.5, 1, 1), (3.2, 8, 11)])
def test_a_memory_lives_for_its_span_and_the_ramp(span, ramp, oldest):
    """A memory with span e and ramp R is seen at every age below e + R, and at no other: spans 6.5 and ramp 3 leave the
    9 latest of 20 steps in memory, and a query sees these and itself."""
    policy = with_span(make_policy("expire_span", {"span_model": "sigmoid", "max_span": 24, "ramp": ramp}), span)
    _, memory, live = acted(policy, policy.initial_memory(2), 20)
    assert live == [[[min(t, oldest) + 1] * 2] * 2 for t in range(20)]
    assert memory.live().tolist() == [[oldest] * 2] * 2
    for layer in memory.layers:
        assert layer.birth[layer.alive].view(2, -1).tolist() == [list(range(20 - oldest, 20))] * 2


def test_a_dead_memory_stays_dead():
    """Weights that would let memories live for longer later do not bring back what is gone; those still there are
    judged by today's weights: longer spans keep them, shorter ones remove them."""
    policy = with_span(make_policy("expire_span", {"span_model": "sigmoid", "max_span": 1000, "ramp": 2}), 4.5)
    _, memory, _ = acted(policy, policy.initial_memory(2), 20)
    assert memory.live().tolist() == [[6, 6]] * 2  # births 14 to 19
    with_span(policy, 900.0)
    given, later, live = acted(policy, memory, 5, seed=1)
    assert live == [[[6 + t + 1] * 2] * 2 for t in range(5)]
    assert later.layers[0].birth.tolist() == [list(range(14, 25))] * 2
    _, _, layers = policy.inspect(given.observation, memory, given.start)
    coordinates = layers[0].coordinate[0]
    assert coordinates[coordinates > -math.inf].tolist() == [-6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4]
    with_span(policy, 1.5)
    assert acted(policy, later, 1)[2] == [[[4, 4]] * 2]  # ages 0 to 3 < 1.5 + 2


def test_a_window_is_counted_in_steps_of_the_environment():
    """Transformer-XL sees ages up to and including its window; a reset empties it."""
    policy = make_policy("transformer_xl", {"window": 4})
    given = experience(torch.Generator().manual_seed(0), 12, 2, start_probability=0)
    given = replace(given, start=given.start.clone())
    given.start[8, 1] = True
    out = act(policy, policy.initial_memory(2), given)
    live = torch.stack(out.live)[..., 0]
    assert live[:, 0].tolist() == [1, 2, 3, 4] + [5] * 8
    assert live[:, 1].tolist() == [1, 2, 3, 4] + [5] * 4 + [1, 2, 3, 4]
    assert out.memory.layers[1].birth[0].tolist() == [8, 9, 10, 11]
    assert out.memory.layers[1].birth[1].tolist() == [0, 1, 2, 3]
    assert out.memory.time.tolist() == [12, 4]
