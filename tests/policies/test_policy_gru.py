"""The recurrent control against torch.nn.GRUCell, one environment and one step at a time. T steps, B environments."""

from __future__ import annotations

import pytest
import torch
from policy_cases import CORES, SPEC, act, experience, make_policy
from torch import nn

from expire_span_rl.policies import ActorCritic, PolicyConfig, core_config
from expire_span_rl.policies.memory import Memory
from expire_span_rl.policies.transformer.layer import TransformerConfig


class Reference:
    """Two GRUCells of PyTorch with the policy's weights, for one environment."""

    def __init__(self, policy: ActorCritic):
        self.policy, self.cells = policy, [nn.GRUCell(16, 16).double() for _ in range(2)]
        for cell, theirs in zip(self.cells, policy.core.cells):
            cell.load_state_dict(theirs.state_dict())
        self.hidden = [torch.zeros(16, dtype=torch.float64) for _ in self.cells]

    def step(self, observation: dict, keep: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits and value; the hidden state goes on if `keep`."""
        x, hidden = self.policy.encoder({key: value[None] for key, value in observation.items()})[0], []
        for cell, h in zip(self.cells, self.hidden):
            x = cell(x, h)
            hidden.append(x)
        if keep:
            self.hidden = hidden
        return self.policy.policy_head(x), self.policy.value_head(x)[0]


@torch.no_grad()
def test_unroll_and_steps_are_the_loop():
    """Two rollouts with the state carried over, resets and final observations anywhere: logits, values, values of final
    observations, and the state afterwards."""
    generator, policy = torch.Generator().manual_seed(0), make_policy("gru")
    memory, references = policy.initial_memory(3), [Reference(policy) for _ in range(3)]
    for steps in (9, 14):
        given = experience(generator, steps, 3)
        out = policy.unroll(given.observation, memory, given.start, given.final_observation, given.final_at)
        acted = act(policy, memory, given)
        for b, reference in enumerate(references):
            for t in range(steps):
                if given.start[t, b]:
                    reference.hidden = [torch.zeros_like(h) for h in reference.hidden]
                logits, value = reference.step({key: entry[t, b] for key, entry in given.observation.items()})
                for ours in (out, acted):
                    torch.testing.assert_close(ours.logits[t, b], logits, rtol=0, atol=1e-12)
                    torch.testing.assert_close(ours.values[t, b], value, rtol=0, atol=1e-12)
                for f in torch.nonzero((given.final_at[0] == t) & (given.final_at[1] == b)).flatten():
                    final = {key: entry[f] for key, entry in given.final_observation.items()}
                    for ours in (out, acted):
                        value = reference.step(final, keep=False)[1]
                        torch.testing.assert_close(ours.final_values[f], value, rtol=0, atol=1e-12)
            torch.testing.assert_close(acted.memory.state[b], torch.stack(reference.hidden), rtol=0, atol=1e-12)
        memory = acted.memory


def test_gradients_are_those_of_the_loop():
    """Through time, up to the last reset; every weight."""
    policy = make_policy("gru")
    given = experience(torch.Generator().manual_seed(1), 8, 2, 0.2)
    policy.unroll(given.observation, policy.initial_memory(2), given.start).logits.square().sum().backward()
    ours = {name: parameter.grad.clone() for name, parameter in policy.core.named_parameters()}
    references, total = [Reference(policy) for _ in range(2)], 0.0
    for b, reference in enumerate(references):
        for t in range(8):
            if given.start[t, b]:
                reference.hidden = [torch.zeros_like(h) for h in reference.hidden]
            total += reference.step({key: entry[t, b] for key, entry in given.observation.items()})[0].square().sum()
    total.backward()
    for name, gradient in ours.items():
        layer, weight = name.removeprefix("cells.").split(".")
        theirs = sum(getattr(reference.cells[int(layer)], weight).grad for reference in references)
        torch.testing.assert_close(gradient, theirs, rtol=1e-9, atol=1e-9)


def test_its_memory_is_its_hidden_state():
    """No slots to count or to look at; two layers of 16 numbers in float64 take 256 bytes, whatever happened; rows and
    files keep them; an inspection has logits and values but no layers."""
    policy, generator = make_policy("gru"), torch.Generator().manual_seed(2)
    given = experience(generator, 5, 4)
    acted = act(policy, policy.draw(policy.initial_memory(4), generator), given, horizon=1)
    memory = acted.memory
    assert memory.live() is None and acted.live == []
    assert memory.bytes().tolist() == policy.initial_memory(4).bytes().tolist() == [256] * 4
    picked = memory.rows(torch.tensor([2, 0, 2]))
    assert torch.equal(picked.state, memory.state[[2, 0, 2]]) and torch.equal(picked.time, memory.time[[2, 0, 2]])
    again = Memory.from_tensors(memory.to_tensors())
    assert torch.equal(again.state, memory.state) and torch.equal(again.time, memory.time) and again.layers == ()
    logits, values, layers = policy.inspect(given.observation, policy.initial_memory(4), given.start)
    torch.testing.assert_close(logits, acted.logits, rtol=0, atol=1e-12)
    assert values.shape == (5, 4) and layers == ()


def test_acting_does_not_touch_the_memory_it_began_with():
    policy = make_policy("gru")
    given = experience(torch.Generator().manual_seed(3), 5, 2, 0)
    memory = policy.initial_memory(2)
    act(policy, memory, given)
    assert (memory.state == 0).all() and memory.time.tolist() == [0, 0]


def test_a_core_of_another_kind_is_refused():
    """Attention heads mean nothing to a GRU: neither its config nor its flags have them."""
    with pytest.raises(
        TypeError, match="^core: expected a RecurrentConfig for memory kind gru, got a TransformerConfig$"
    ):
        ActorCritic(PolicyConfig(SPEC, 4, "gru", core=TransformerConfig()))
    with pytest.raises(ValueError, match="^--num-layers: expected at least 1, got 0$"):
        core_config("gru")(num_layers=0)
    assert type(ActorCritic(PolicyConfig(SPEC, 4, "gru")).config.core) is type(CORES["gru"])
