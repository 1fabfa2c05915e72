"""Small policies and random experience that the tests of policies share. T time steps, B environments, F finals.

`CASES` runs over the registry: a new memory kind is covered with its default Config, or with settings put in `SMALL`,
short enough that memories expire within a test.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from expire_span_rl.policies import KINDS, ActorCritic, Memory, PolicyConfig, core_config
from expire_span_rl.policies.transformer.layer import TransformerConfig

SPEC = {
    "image": {"kind": "cells", "shape": [3, 3, 3]},
    "previous_action": {"kind": "discrete", "n": 5},
    "previous_reward": {"kind": "vector", "shape": []},
}
CORE = TransformerConfig(width=16, num_layers=2, num_heads=2, num_positions=6, shifted_heads=1, age_values=1.5)
CORES = {
    kind: CORE if core_config(kind) is TransformerConfig else core_config(kind)(width=16, num_layers=2)
    for kind in KINDS
}
SMALL = {
    "expire_span": (
        {"span_model": "sigmoid", "max_span": 24, "ramp": 5},
        {"span_model": "sigmoid", "max_span": 24, "ramp": 5, "span_dropout": True},
        {"initial_limit": 24, "ramp": 5, "use_lift": 1.5, "use_share": 0.05, "renew_every": 7, "time_gaps": 0.3},
        {"max_span": 12, "ramp": 1},
        {
            "initial_limit": 24, "ramp": 0, "use_lift": 1.5, "use_share": 0.05, "use_enough": 0.3, "min_use_coef": 2.0,
            "time_gaps": 0.3,
        },
    ),
    "transformer_xl": ({"window": 9}, {"window": 2}),
    "adaptive_span": ({"max_span": 14, "ramp": 4}, {"max_span": 12, "ramp": 1}),
    "compressive": (
        {"window": 3, "compression_rate": 2, "compressed_window": 3},
        {"window": 0, "compression_rate": 4, "compressed_window": 5},
        {"window": 6, "compression_rate": 3, "compressed_window": 1},
    ),
}
CASES = [
    pytest.param(kind, settings, id=f"{kind}-{i}")
    for kind in KINDS
    for i, settings in enumerate(SMALL.get(kind, ({},)))
]


def make_policy(
    kind: str,
    settings: dict | None = None,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    core: TransformerConfig | None = None,
) -> ActorCritic:
    """A policy whose weights are all random, also those of the heads. Those of the memory kind are widely spread."""
    settings = SMALL.get(kind, ({},))[0] if settings is None else settings
    config = PolicyConfig(SPEC, 4, kind, KINDS[kind].Config(**settings), core or CORES[kind], time_aware_value=True)
    policy = ActorCritic(config).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        of_ages = torch.Generator().manual_seed(seed)  # so that all else is the same with and without vectors by age
        for name, parameter in policy.named_parameters():
            own = of_ages if name.endswith("age_values") else generator
            parameter.copy_(torch.randn(parameter.shape, generator=own) * 0.4)
        for layer in policy.core.layers:
            for parameter in layer.kind.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
            layer.kind.release()
    return policy


def observations(generator: torch.Generator, *shape: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Random observations, entries [*shape, ...]."""
    cells = [torch.randint(0, n, (*shape, 3, 3), dtype=torch.uint8, generator=generator) for n in (11, 6, 4)]
    return {
        "image": torch.stack(cells, -1),
        "previous_action": torch.randint(0, 5, shape, generator=generator),
        "previous_reward": torch.randn(shape, generator=generator).to(dtype),
    }


@dataclass(frozen=True)
class Experience:
    """The arguments of `unroll` besides the memory."""

    observation: dict[str, Tensor]  # [T,B, ...]
    start: Tensor  # [T,B]
    final_observation: dict[str, Tensor]  # [F, ...]
    final_at: tuple[Tensor, Tensor]

    def columns(self, rows: Tensor) -> Experience:
        """The chosen environments."""
        t, b = self.final_at
        place = {int(row): i for i, row in enumerate(rows)}
        in_rows = torch.tensor([int(row) in place for row in b], dtype=torch.bool)
        return Experience(
            {key: value[:, rows] for key, value in self.observation.items()},
            self.start[:, rows],
            {key: value[in_rows] for key, value in self.final_observation.items()},
            (t[in_rows], torch.tensor([place[int(row)] for row in b[in_rows]], dtype=torch.int64)),
        )


def experience(
    generator: torch.Generator,
    steps: int,
    batch: int,
    start_probability: float = 0.1,
    final_probability: float = 0.15,
    dtype: torch.dtype = torch.float64,
) -> Experience:
    """Random observations, episode starts and final observations anywhere."""
    t, b = torch.nonzero(torch.rand(steps, batch, generator=generator) < final_probability).T
    shuffled = torch.randperm(len(t), generator=generator)  # final observations come in any order
    start = torch.rand(steps, batch, generator=generator) < start_probability
    final = observations(generator, len(t), dtype=dtype)
    return Experience(observations(generator, steps, batch, dtype=dtype), start, final, (t[shuffled], b[shuffled]))


@dataclass(frozen=True)
class ActingOutput:
    """Outputs of acting, and the memory after it."""

    logits: Tensor  # [T,B,A]
    values: Tensor  # [T,B]
    rewards: Tensor  # [T,B,G]
    final_values: Tensor  # [F]
    live: list[Tensor]  # T of [B,L]; empty for a kind without slots
    memory: Memory


def act(
    policy: ActorCritic, memory: Memory, rollout: Experience, horizon: int | None = None, in_rollout: bool = True
) -> ActingOutput:
    """`begin` and one `step` per observation; `begin` again every `horizon` steps."""
    steps = len(rollout.start)
    horizon = horizon or steps
    logits, values, rewards, live = [], [], [], []
    final_values = torch.full((len(rollout.final_at[0]),), float("nan"), dtype=policy.value_head.weight.dtype)
    acting = policy.begin(memory, horizon, in_rollout=in_rollout)
    for t in range(steps):
        if acting.full:
            acting = policy.begin(acting.memory(), horizon, in_rollout=in_rollout)
        step_observation = {key: value[t] for key, value in rollout.observation.items()}
        for outputs, output in zip(
            (logits, values, rewards),
            policy.step_with_rewards(step_observation, acting, rollout.start[t]),
            strict=True,
        ):
            outputs.append(output)
        if acting.live is not None:
            live.append(acting.live)
        finals = torch.nonzero(rollout.final_at[0] == t).squeeze(1)
        if len(finals):
            final = {key: value[finals] for key, value in rollout.final_observation.items()}
            final_values[finals] = policy.value(final, acting, rollout.final_at[1][finals])
    outputs = [torch.stack(steps) for steps in (logits, values, rewards)]
    return ActingOutput(*outputs, final_values, live, acting.memory())


def check_acting_equals_learning(policy: ActorCritic) -> None:
    """Through several rollouts, each with numbers of its own drawn, with compactions on the way and episodes that
    end."""
    generator = torch.Generator().manual_seed(1)
    memory = policy.initial_memory(5)
    for _ in range(3):
        memory = policy.draw(memory, generator)
        rollout = experience(generator, 8, 5)
        out = act(policy, memory, rollout, horizon=3)
        unrolled = policy.unroll(
            rollout.observation, memory, rollout.start, rollout.final_observation, rollout.final_at
        )
        torch.testing.assert_close(unrolled.logits, out.logits, rtol=0, atol=1e-9)
        torch.testing.assert_close(unrolled.rewards, out.rewards, rtol=0, atol=1e-9)
        torch.testing.assert_close(unrolled.final_values, out.final_values, rtol=0, atol=1e-9)
        memory = out.memory


def poison_dead_slots(memory: Memory) -> Memory:
    """The same memory with NaN in every dead slot and a nonsensical birth there."""
    layers = tuple(
        replace(
            layer,
            hidden=torch.where(layer.alive[..., None], layer.hidden, float("nan")),
            birth=torch.where(layer.alive, layer.birth, 12345),
        )
        for layer in memory.layers
    )
    return replace(memory, layers=layers)


def act_as_learned(policy: ActorCritic, memory: Memory, rollout: Experience) -> ActingOutput:
    """`act`, whose outputs and memory must be those of an unroll."""
    out = act(policy, memory, rollout)
    unrolled = policy.unroll(
        rollout.observation, memory, rollout.start, rollout.final_observation, rollout.final_at, keep=True
    )
    torch.testing.assert_close(unrolled.logits, out.logits, rtol=0, atol=1e-9)
    torch.testing.assert_close(unrolled.final_values, out.final_values, rtol=0, atol=1e-9)
    assert unrolled.memory is not None
    for learned, acted in zip(unrolled.memory.layers, out.memory.layers, strict=True):
        assert torch.equal(learned.birth[learned.alive], acted.birth[acted.alive])
        assert (learned.last_use is None) == (acted.last_use is None)
        if learned.last_use is not None and acted.last_use is not None:
            assert torch.equal(learned.last_use[learned.alive], acted.last_use[acted.alive])
    return out
