"""Gates in the residual stream: the paper's equations in loops, and that nothing else depends on gates."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from policy_cases import CORE, CORES, SMALL, act, experience, make_policy, poison_dead_slots
from safetensors import safe_open
from safetensors.torch import save_file

from expire_span_rl.policies import KINDS, load_policy, save_policy
from expire_span_rl.policies.transformer.gating import Gate

GATED = replace(CORE, gating=True)
ATTENTION = [kind for kind in KINDS if CORES[kind] is CORE]


@torch.no_grad()
def test_a_gate_is_the_papers_equations():
    """One number at a time; xavier weights, random inputs."""
    gate, width = Gate(3).double(), 3
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(2, width, dtype=torch.float64, generator=generator) for _ in range(2))
    w_r, w_z, w_g = gate.computed.weight.split(width)
    u_r, u_z = gate.given.weight.split(width)
    u_g, b_g = gate.reset.weight, gate.bias
    for row in range(2):
        r = [1 / (1 + math.exp(-float(w_r[i] @ y[row] + u_r[i] @ x[row]))) for i in range(width)]
        reset_x = torch.tensor([r[i] * float(x[row, i]) for i in range(width)], dtype=torch.float64)
        for i in range(width):
            z = 1 / (1 + math.exp(-float(w_z[i] @ y[row] + u_z[i] @ x[row] - b_g[i])))
            h = math.tanh(float(w_g[i] @ y[row] + u_g[i] @ reset_x))
            assert float(gate(x, y)[row, i]) == pytest.approx((1 - z) * float(x[row, i]) + z * h, abs=1e-12)


@torch.no_grad()
def test_a_fresh_gate_keeps_most_of_what_it_was_given():
    """With the bias 2 it takes sigmoid(-2), 12%, of the new value if its inputs have no influence."""
    gate = Gate(4)
    gate.given.weight.zero_()
    gate.reset.weight.zero_()
    torch.testing.assert_close(gate(torch.ones(4), torch.zeros(4)), torch.full((4,), 0.8808), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ATTENTION)
def test_acting_equals_learning_with_gates(kind):
    """Every attention kind and the memoryless one. All gates get gradients."""
    generator = torch.Generator().manual_seed(1)
    policy = make_policy(kind, SMALL.get(kind, ({},))[0], core=GATED)
    memory = policy.draw(policy.initial_memory(3), generator)
    memory = poison_dead_slots(act(policy, memory, experience(generator, 11, 3)).memory)
    rollout = experience(generator, 9, 3)
    acting_output = act(policy, memory, rollout)
    out = policy.unroll(rollout.observation, memory, rollout.start, rollout.final_observation, rollout.final_at)
    torch.testing.assert_close(out.logits, acting_output.logits, rtol=0, atol=1e-9)
    torch.testing.assert_close(out.final_values, acting_output.final_values, rtol=0, atol=1e-9)
    out.logits.square().sum().backward()
    gates = [p for name, p in policy.named_parameters() if ".gates." in name]
    assert len(gates) == 2 * 2 * 4 and all(p.grad.abs().max() > 0 for p in gates)


def test_policy_files_from_before_there_were_gates_still_load(tmp_path):
    """A config without the flag means no gates. With the flag the policy is loaded with its gates."""
    plain, gated = make_policy("expire_span", dtype=torch.float32), make_policy("expire_span", core=GATED)
    assert not any("gates" in name for name in plain.state_dict())
    path = tmp_path / "p.safetensors"
    save_policy(plain, path, {"env": "Corridor-v0"})
    with safe_open(path, "pt") as file:
        weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, it is no dict
        header = json.loads(file.metadata()["policy"])
    assert header["config"]["core"].pop("gating") is False
    save_file(weights, path, {"policy": json.dumps(header)})
    assert load_policy(path)[0].config.core == CORE
    save_policy(gated.float(), path, {})
    loaded, _ = load_policy(path)
    assert loaded.config.core == GATED
    assert torch.equal(loaded.core.layers[1].gates[0].bias, gated.core.layers[1].gates[0].bias)
