"""The shipped policies do what pretrained/README.md says of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from expire_span_rl.envs import load_environment
from expire_span_rl.evaluation import evaluate
from expire_span_rl.policies import load_policy

FOLDER = Path(__file__).parents[1] / "pretrained"
LEAST = {
    "corridor-expire_span": 0.95,
    "corridor-transformer_xl": 0.95,
    "corridor-adaptive_span": 0.95,
    "corridor-compressive": 0.95,
    "corridor-none": 0.3,
    "memory_s17_random-expire_span": 0.95,
    "portal-expire_span": 0.95,
    "portal-transformer_xl": 0.95,
    "portal-adaptive_span": 0.95,
    "portal-compressive": 0.95,
    "portal-gru": 0.2,
    "repeat_previous_medium-expire_span": 0.95,
    "tmaze_1500-expire_span": 0.95,
}
"""Success on 100 episodes, or 20 long ones, of the environment that the policy was trained in, or the return where
there is none."""


def test_every_policy_is_described():
    shipped = {file.stem for file in FOLDER.glob("*.safetensors")}
    assert shipped == set(LEAST)
    told = (FOLDER / "README.md").read_text()
    assert all(f"| {name} |" in told for name in shipped)


@pytest.mark.parametrize("name", LEAST)
def test_a_shipped_policy_succeeds_as_told(name):
    policy, info = load_policy(FOLDER / f"{name}.safetensors")
    env = info["env"]
    if ":" in env:  # of a package that need not be installed
        pytest.importorskip(env.split(":")[0])
        env = load_environment(env)
    result = evaluate(policy, env, info["env_kwargs"], 20 if name.startswith("tmaze") else 100)
    has_success = result["success_rate"] is not None
    assert result["success_rate" if has_success else "mean_return"] >= LEAST[name]
    if name == "corridor-none":  # the control is at chance
        assert result["success_rate"] <= 0.7
    if name == "corridor-expire_span":  # trained on up to 200
        far = evaluate(policy, info["env"], {"min_length": 1000, "max_length": 1000}, 20)
        assert far["success_rate"] == 1 and max(far["live_memories_mean"]) < 12
        stretched = evaluate(policy, info["env"], {"max_length": 30, "wraps": ["stretch=10"]}, 20)
        assert stretched["success_rate"] == 1 and max(stretched["live_memories_mean"]) < 12
    if name.startswith("memory_s17"):  # of 17 observations on average
        assert max(result["held_at_end"]) < 0.15 and max(result["live_memories_mean"]) < 3
    if name.startswith("tmaze"):  # of 1,501 observations
        assert max(result["live_memories_mean"]) <= 16
    if name == "portal-gru":  # does not solve it
        assert result["success_rate"] <= 0.6
    elif name.startswith("portal"):
        assert result["memory_efficiency"] >= 0.8
