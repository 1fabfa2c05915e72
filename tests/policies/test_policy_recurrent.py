"""The recurrent cores against the equations of their papers, one environment and one step at a time.

T steps, B environments, S vectors of a state, D width.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from policy_cases import CORES, SPEC, act, experience, make_policy
from torch import Tensor, sigmoid, tanh
from torch.nn.functional import gelu, layer_norm

from expire_span_rl.policies import ActorCritic, PolicyConfig, core_config, load_policy
from expire_span_rl.policies.memory import Memory
from expire_span_rl.policies.recurrent.segments import cut_segments
from expire_span_rl.policies.transformer.layer import TransformerConfig

ROOT = Path(__file__).resolve().parents[2]


def normed(core, i: int, x: Tensor) -> Tensor:
    """x [D] as layer i reads it."""
    norms = core.norms.norms
    return layer_norm(x, x.shape, norms[i].weight, norms[i].bias) if len(norms) else x


def gru_step(core, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Cho et al. (2014), with PyTorch's reset gate after the product."""
    states = []
    for i, (cell, h) in enumerate(zip(core.cells, state, strict=True)):
        x_r, x_z, x_n = (cell.weight_ih @ normed(core, i, x) + cell.bias_ih).chunk(3)
        h_r, h_z, h_n = (cell.weight_hh @ h + cell.bias_hh).chunk(3)
        r, z = sigmoid(x_r + h_r), sigmoid(x_z + h_z)
        x = (1 - z) * tanh(x_n + r * h_n) + z * h
        states.append(x)
    return normed(core, len(states), x), torch.stack(states)


def lstm_step(core, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Hochreiter and Schmidhuber (1997) with a forget gate (Gers et al., 2000)."""
    hidden, cells = [], []
    for i, (lstm, h, c) in enumerate(zip(core.lstms, *state.chunk(2), strict=True)):
        gates = lstm.weight_ih_l0 @ normed(core, i, x) + lstm.bias_ih_l0 + lstm.weight_hh_l0 @ h + lstm.bias_hh_l0
        input_gate, forget_gate, candidate, output_gate = gates.chunk(4)
        cells.append(sigmoid(forget_gate) * c + sigmoid(input_gate) * tanh(candidate))
        x = sigmoid(output_gate) * tanh(cells[-1])
        hidden.append(x)
    return normed(core, len(hidden), x), torch.stack([*hidden, *cells])


def lru_step(core, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Orvieto et al. (2023), equations 1 to 4 and 8, with B and C as complex matrices."""
    real, imaginary = [], []
    for unit, re, im in zip(core.units, *state.chunk(2), strict=True):
        size, phase = torch.exp(-torch.exp(unit.nu_log)), torch.exp(unit.theta_log)
        rotation = torch.complex(size * torch.cos(phase), size * torch.sin(phase))
        b = torch.complex(unit.encode.weight[0::2], unit.encode.weight[1::2])
        c = torch.complex(unit.decode.weight[:, 0::2], -unit.decode.weight[:, 1::2])
        u = layer_norm(x, x.shape, unit.norm.weight, unit.norm.bias)
        s = rotation * torch.complex(re, im) + torch.exp(unit.gamma_log) * (b @ u.to(b.dtype))
        y = (c @ s).real + unit.skip * u
        value, gate = (unit.mix.weight @ gelu(y) + unit.mix.bias).chunk(2)
        x = x + value * sigmoid(gate)
        real.append(s.real)
        imaginary.append(s.imag)
    return layer_norm(x, x.shape, core.norm.weight, core.norm.bias), torch.stack([*real, *imaginary])


STEPS = {"gru": gru_step, "lstm": lstm_step, "lru": lru_step}
KINDS = [(kind, {"layer_norm": norm}) for kind in ("gru", "lstm") for norm in (False, True)] + [("lru", {})]
recurrent = pytest.mark.parametrize(("kind", "settings"), KINDS, ids=[f"{k}-{s}" for k, s in KINDS])


class Reference:
    """The loop, for one environment."""

    def __init__(self, policy: ActorCritic, kind: str):
        self.policy, self.advance = policy, partial(STEPS[kind], policy.core)
        self.reset()

    def reset(self) -> None:
        self.state = self.policy.initial_memory(1).state[0]
        self.clock = 0

    def step(self, observation: dict, keep: bool = True) -> tuple[Tensor, Tensor]:
        """Logits and value; the state goes on if `keep`."""
        x = self.policy.encoder({key: value[None] for key, value in observation.items()})[0]
        features, state = self.advance(x, self.state)
        correction = self.policy.elapsed_value(features, torch.tensor(self.clock))
        if keep:
            self.state = state
            self.clock += 1
        return self.policy.policy_head(features), self.policy.value_head(features)[0] + correction


@recurrent
@torch.no_grad()
def test_unroll_and_steps_are_the_loop(kind, settings):
    """Two rollouts with the state carried over, resets and final observations anywhere: logits, values, values of final
    observations, and the state afterwards."""
    generator, policy = torch.Generator().manual_seed(0), make_policy(kind, settings)
    memory, references = policy.initial_memory(3), [Reference(policy, kind) for _ in range(3)]
    for steps in (9, 14):
        rollout = experience(generator, steps, 3)
        out = policy.unroll(rollout.observation, memory, rollout.start, rollout.final_observation, rollout.final_at)
        acting_output = act(policy, memory, rollout)
        for b, reference in enumerate(references):
            for t in range(steps):
                if rollout.start[t, b]:
                    reference.reset()
                logits, value = reference.step({key: entry[t, b] for key, entry in rollout.observation.items()})
                for actual in (out, acting_output):
                    torch.testing.assert_close(actual.logits[t, b], logits, rtol=0, atol=1e-12)
                    torch.testing.assert_close(actual.values[t, b], value, rtol=0, atol=1e-12)
                for f in torch.nonzero((rollout.final_at[0] == t) & (rollout.final_at[1] == b)).flatten():
                    final = {key: entry[f] for key, entry in rollout.final_observation.items()}
                    for actual in (out, acting_output):
                        value = reference.step(final, keep=False)[1]
                        torch.testing.assert_close(actual.final_values[f], value, rtol=0, atol=1e-12)
            torch.testing.assert_close(acting_output.memory.state[b], reference.state, rtol=0, atol=1e-12)
        memory = acting_output.memory


@recurrent
def test_gradients_are_those_of_the_loop(kind, settings):
    """Of every weight: through time up to the last reset, and from final observations."""
    policy = make_policy(kind, settings)
    rollout = experience(torch.Generator().manual_seed(1), 8, 2, 0.2, 0.5)
    weights = dict(policy.core.named_parameters())
    out = policy.unroll(
        rollout.observation, policy.initial_memory(2), rollout.start, rollout.final_observation, rollout.final_at
    )
    actual = torch.autograd.grad(out.logits.square().sum() + out.final_values.square().sum(), list(weights.values()))
    total = 0.0
    for b in range(2):
        reference = Reference(policy, kind)
        for t in range(8):
            if rollout.start[t, b]:
                reference.reset()
            total += reference.step({key: entry[t, b] for key, entry in rollout.observation.items()})[0].square().sum()
            for f in torch.nonzero((rollout.final_at[0] == t) & (rollout.final_at[1] == b)).flatten():
                final = {key: entry[f] for key, entry in rollout.final_observation.items()}
                total += reference.step(final, keep=False)[1].square()
    assert len(rollout.final_at[0]) > 1
    expected = torch.autograd.grad(total, list(weights.values()))
    for name, gradient, reference_gradient in zip(weights, actual, expected, strict=True):
        torch.testing.assert_close(gradient, reference_gradient, rtol=1e-9, atol=1e-9, msg=name)


@recurrent
def test_its_memory_is_its_hidden_state(kind, settings):
    """There are no slots to count or to inspect. A vector of 16 numbers in float64 always takes 128 bytes. Rows and
    files keep the state. An inspection has logits and values but no layers."""
    policy, generator = make_policy(kind, settings), torch.Generator().manual_seed(2)
    rollout = experience(generator, 5, 4)
    acting_output = act(policy, policy.draw(policy.initial_memory(4), generator), rollout, horizon=1)
    memory = acting_output.memory
    size = 128 * {"gru": 2}.get(kind, 4)  # two layers
    assert memory.live() is None and acting_output.live == []
    assert memory.bytes().tolist() == policy.initial_memory(4).bytes().tolist() == [size] * 4
    chosen = memory.rows(torch.tensor([2, 0, 2]))
    assert torch.equal(chosen.state, memory.state[[2, 0, 2]]) and torch.equal(chosen.time, memory.time[[2, 0, 2]])
    loaded = Memory.from_tensors(memory.to_tensors())
    assert torch.equal(loaded.state, memory.state) and torch.equal(loaded.time, memory.time) and loaded.layers == ()
    logits, values, layers = policy.inspect(rollout.observation, policy.initial_memory(4), rollout.start)
    torch.testing.assert_close(logits, acting_output.logits, rtol=0, atol=1e-12)
    assert values.shape == (5, 4) and layers == ()


@recurrent
def test_acting_does_not_touch_the_memory_it_began_with(kind, settings):
    policy = make_policy(kind, settings)
    rollout = experience(torch.Generator().manual_seed(3), 5, 2, 0)
    memory = policy.initial_memory(2)
    act(policy, memory, rollout)
    assert (memory.state == 0).all() and memory.time.tolist() == [0, 0]


@pytest.mark.parametrize("kind", STEPS)
def test_a_core_of_another_kind_is_refused(kind):
    """A recurrent core has no attention heads, neither in its config nor in its flags."""
    expected = core_config(kind).__name__
    with pytest.raises(TypeError, match=f"^core: expected a {expected} for memory kind {kind}, got a TransformerConf"):
        ActorCritic(PolicyConfig(SPEC, 4, kind, core=TransformerConfig()))
    with pytest.raises(ValueError, match="^--num-layers: expected at least 1, got 0$"):
        core_config(kind)(num_layers=0)
    assert type(ActorCritic(PolicyConfig(SPEC, 4, kind)).config.core) is type(CORES[kind])


def test_an_lstm_begins_by_remembering():
    """A forget gate's bias of 1, all others 0, and each gate's weights orthogonal."""
    (lstm,) = ActorCritic(PolicyConfig(SPEC, 4, "lstm")).core.lstms
    bias = lstm.bias_ih_l0 + lstm.bias_hh_l0
    assert [gate.unique().tolist() for gate in bias.chunk(4)] == [[0], [1], [0], [0]]
    for gate in (*lstm.weight_ih_l0.chunk(4), *lstm.weight_hh_l0.chunk(4)):
        torch.testing.assert_close(gate @ gate.T, torch.eye(64), rtol=0, atol=1e-5)


def test_a_policy_from_before_there_was_layer_norm_has_none():
    """The shipped GRU of 0.1 still loads; its outputs are those that version 0.1 gave."""
    policy, _ = load_policy(ROOT / "pretrained" / "portal-gru.safetensors")
    assert policy.config.memory_config.layer_norm is False
    x = torch.linspace(-1, 1, 4 * 3 * policy.config.core.width).reshape(4, 3, -1)
    start = torch.zeros(4, 3, dtype=torch.bool)
    start[2, 1] = True
    nowhere = (torch.zeros(0, dtype=torch.int64),) * 2
    features = policy.core.unroll(x, policy.initial_memory(3), start, x[0, :0], nowhere).features
    assert features.sum().item() == pytest.approx(-23.515859, abs=1e-4)
    assert features[3, 1, :3].tolist() == pytest.approx([-0.8001098, -0.0104263, 0.5683451], abs=1e-5)


# Cutting a rollout into segments


@pytest.mark.parametrize("seed", range(20))
def test_segments_hold_every_step_once_and_in_order(seed):
    """Every output follows exactly the steps since its episode's start. Final observations may follow any step, and
    several may follow the same one."""
    generator = torch.Generator().manual_seed(seed)
    steps, batch, finals = 1 + seed, 1 + seed % 5, seed % 7
    start = torch.rand(steps, batch, generator=generator) < (0.3, 0.02)[seed % 2]
    final_t = torch.randint(steps, (finals,), generator=generator)
    final_b = torch.randint(batch, (finals,), generator=generator)
    segments = cut_segments(start, (final_t, final_b))
    columns, continues, rows = [], [], []
    for part in segments.batches:
        positions, numbers = torch.meshgrid(*map(torch.arange, part.source.shape), indexing="ij")
        columns += [
            part.source[: p + 1, n].tolist() for p, n in zip(positions.flatten(), numbers.flatten(), strict=True)
        ]
        continues += part.continues.repeat(len(part.source)).tolist()
        rows += part.row.repeat(len(part.source)).tolist()
    for result, place in enumerate(segments.place.tolist()):
        final = result >= steps * batch
        t, b = (
            (int(final_t[result - steps * batch]), int(final_b[result - steps * batch]))
            if final
            else divmod(result, batch)
        )
        begin = max([0, *(s for s in range(t + 1) if start[s, b])])
        assert columns[place] == [s * batch + b for s in range(begin, t + 1)] + [result] * final
        assert continues[place] == (begin == 0 and not start[0, b]) and rows[place] == b
