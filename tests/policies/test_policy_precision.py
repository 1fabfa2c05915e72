"""Products with weights in bfloat16: what is rounded, and what stays in float32."""

import pytest
import torch
from policy_cases import CASES, act, experience, make_policy

from expire_span_rl.policies import load_policy, save_policy
from expire_span_rl.policies.precision import Linear

B, T = 4, 9


def test_a_product_rounds_its_inputs():
    """Forward and backward, as products in float64 of what is rounded. The results are rounded once more."""
    torch.manual_seed(0)
    layer, x = Linear(64, 8), torch.randn(5, 64, requires_grad=True)
    layer.reduced = True
    rounded = [tensor.detach().bfloat16().double() for tensor in (x, layer.weight, layer.bias)]
    y = layer(x)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y.double(), torch.nn.functional.linear(*rounded), rtol=2**-8, atol=1e-2)
    grad = torch.randn(5, 8)
    y.backward(grad)
    torch.testing.assert_close(x.grad.double(), grad.bfloat16().double() @ rounded[1], rtol=2**-8, atol=1e-2)
    assert x.grad.dtype == layer.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("kind, settings", CASES)
def test_outputs_memory_and_gradients_stay_in_float32(kind, settings):
    """Outputs differ from those in float32, and by little."""
    generator = torch.Generator().manual_seed(1)
    policy = make_policy(kind, settings, torch.float32)
    rollout = experience(generator, T, B, dtype=torch.float32)
    memory = policy.draw(policy.initial_memory(B), generator)
    plain = policy.unroll(rollout.observation, memory, rollout.start).logits.detach()
    policy.precision = "bf16"
    out = policy.unroll(rollout.observation, memory, rollout.start)
    difference = (out.logits - plain).abs().max()
    assert 1e-4 < difference < 0.05 * plain.abs().max()
    (out.logits.sum() + out.memory_loss).backward()
    after = act(policy, memory, rollout).memory.to_tensors()
    tensors = {**after, **{name: p.grad for name, p in policy.named_parameters() if p.grad is not None}}
    tensors |= {"logits": out.logits, "values": out.values, "loss": out.memory_loss}
    assert not [name for name, tensor in tensors.items() if tensor.dtype in (torch.bfloat16, torch.float64)]
    policy.precision = "float32"
    assert torch.equal(policy.unroll(rollout.observation, memory, rollout.start).logits, plain)


def test_a_saved_policy_is_loaded_in_float32(tmp_path):
    policy = make_policy("expire_span", dtype=torch.float32)
    policy.precision = "bf16"
    save_policy(policy, tmp_path / "x.safetensors", {"env": "Corridor-v0"})
    loaded, _ = load_policy(tmp_path / "x.safetensors")
    assert loaded.precision == "float32" and not any(getattr(part, "reduced", False) for part in loaded.modules())
