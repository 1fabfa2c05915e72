"""Policy files: a loaded policy equals the saved one, and other files are refused with one line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from policy_cases import CORES, SMALL
from safetensors import safe_open
from safetensors.torch import save_file

from expire_span_rl import envs
from expire_span_rl.policies import KINDS, ActorCritic, PolicyFileError, load_policy, save_policy

INFO = {"env": "Corridor-v0", "env_kwargs": {"max_length": 20}, "agent": "ppo", "note": [1, 2.5, None]}


def corridor_policy(kind: str, seed: int = 0) -> ActorCritic:
    """A small float32 policy for corridors with random weights."""
    env = envs.make_vec_env("Corridor-v0", 1)
    policy = ActorCritic.for_spaces(
        env.single_observation_space,
        env.single_action_space,
        memory=kind,
        memory_config=KINDS[kind].Config(**SMALL.get(kind, ({},))[0]),
        core=CORES[kind],
    )
    generator = torch.Generator().manual_seed(seed)
    for parameter in policy.parameters():
        parameter.data.normal_(std=0.5, generator=generator)
    return policy


def play(policy: ActorCritic, deterministic: bool, steps: int = 50) -> np.ndarray:
    """The actions of `steps` steps in three corridors: [steps, 3]."""
    env = envs.make_vec_env("Corridor-v0", 3, max_length=6, max_steps=17)
    observation, _ = env.reset(seed=0)
    state, start, actions = None, np.ones(3, bool), []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(steps):
            action, state = policy.predict(observation, state, start, deterministic)
            observation, _, terminated, truncated, _ = env.step(action)
            start = terminated | truncated
            actions.append(action)
    return np.array(actions)


@pytest.mark.parametrize("kind", KINDS)
def test_a_loaded_policy_acts_like_the_saved_one(kind, tmp_path):
    """The same config, info, weights, and 50 actions, most likely or sampled. A run directory means its
    policy.safetensors."""
    policy = corridor_policy(kind)
    file = tmp_path / "new" / "policy.safetensors"
    save_policy(policy, file, INFO)
    for path in (file, str(file), file.parent):
        loaded, info = load_policy(path)
        assert info == INFO
        assert loaded.config.to_json() == policy.config.to_json()
        assert not loaded.training
        for name, tensor in policy.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], tensor)
    np.testing.assert_array_equal(play(loaded, True), play(policy, True))
    sampled = play(policy, False)
    np.testing.assert_array_equal(play(loaded, False), sampled)
    assert not np.array_equal(play(corridor_policy(kind, seed=1), False), sampled)


def test_other_weights_can_be_saved_than_the_policy_has_now(tmp_path):
    policy, best = corridor_policy("none"), corridor_policy("none", seed=1)
    save_policy(policy, tmp_path / "p.safetensors", INFO, best.state_dict())
    loaded, _ = load_policy(tmp_path / "p.safetensors")
    assert torch.equal(loaded.policy_head.weight, best.policy_head.weight)
    assert not torch.equal(loaded.policy_head.weight, policy.policy_head.weight)


@pytest.fixture
def saved(tmp_path) -> Path:
    save_policy(corridor_policy("expire_span"), tmp_path / "p.safetensors", INFO)
    return tmp_path / "p.safetensors"


def read_file(path: Path) -> tuple[dict[str, torch.Tensor], dict]:
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, json.loads(file.metadata()["policy"])  # noqa: SIM118


def refusal(path: Path) -> str:
    """The message with which `load_policy` refuses `path`: one line that begins with it."""
    with pytest.raises(PolicyFileError) as caught:
        load_policy(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: expected ") and "\n" not in message
    return message.removeprefix(f"{path}: ")


def test_what_is_no_policy_file_is_refused(saved, tmp_path):
    """A missing file, an empty directory, an empty file, a text, half a policy, and other safetensors files."""
    assert refusal(tmp_path / "missing") == "expected a policy file or a run directory, found nothing there"
    (tmp_path / "run").mkdir()
    assert "run directory with policy.safetensors" in refusal(tmp_path / "run")
    content = saved.read_bytes()
    for i, data in enumerate((b"", b"import os", content[:7], content[: len(content) // 2], content[:-1])):
        path = tmp_path / f"{i}.safetensors"
        path.write_bytes(data)
        assert refusal(path).startswith("expected a whole safetensors file, could not read it (")
    for i, metadata in enumerate((None, {"policy": "{}"}, {"policy": "[]"}, {"policy": "not JSON"}, {"format": "pt"})):
        path = tmp_path / f"foreign_{i}.safetensors"
        save_file({"x": torch.zeros(2)}, path, metadata)
        assert refusal(path) == "expected a policy saved by this toolkit, got another safetensors file"


def test_a_file_from_before_survival_curves_has_the_papers_spans(tmp_path):
    """Files of November 2026 and earlier: their config does not say how spans are predicted."""
    policy = corridor_policy("expire_span")
    assert policy.config.memory_config.span_model == "sigmoid"
    save_policy(policy, tmp_path / "p.safetensors", INFO)
    weights, header = read_file(tmp_path / "p.safetensors")
    for name in ("span_model", "initial_limit"):
        del header["config"]["memory_config"][name]
    save_file(weights, tmp_path / "p.safetensors", {"policy": json.dumps(header)})
    loaded, _ = load_policy(tmp_path / "p.safetensors")
    assert loaded.config.memory_config == policy.config.memory_config
    assert np.array_equal(play(loaded, True), play(policy, True))


def test_a_newer_version_is_refused(saved):
    weights, header = read_file(saved)
    save_file(weights, saved, {"policy": json.dumps({**header, "version": header["version"] + 1})})
    version = header["version"]
    assert refusal(saved) == f"expected format version {version} or older, got {version + 1}: update the toolkit"


@pytest.mark.parametrize(
    "path, value",
    [
        (("memory",), "lstm"),
        (("memory",), "transformer_xl"),
        (("memory",), None),
        (("actions", "n"), 5),
        (("actions", "n"), "4.5"),
        (("actions", "n"), 10**30),
        (("actions",), None),
        (("actions", "kind"), "sound"),
        (("observation",), []),
        (("observation", "image", "kind"), "sound"),
        (("observation", "image", "shape"), [5, 5, 3]),
        (("observation", "image", "shape"), []),
        (("core",), "x"),
        (("core", "width"), -16),
        (("core", "width"), 15),
        (("core", "num_heads"), 0),
        (("core", "num_layers"), 3),
        (("core", "colour"), 1),
        (("memory_config", "ramp"), 0),
        (("memory_config", "ramp"), "8"),
        (("memory_config", "initial_span"), 2.0),
        (("memory_config",), None),
    ],
)
def test_a_config_that_was_tampered_with_is_refused(saved, path, value):
    """Values of a wrong type, out of range, unknown, or in contradiction to the weights."""
    weights, header = read_file(saved)
    inner = header["config"]
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    save_file(weights, saved, {"policy": json.dumps(header)})
    assert refusal(saved).startswith("expected a config and weights that belong together (")


def test_a_class_that_a_file_names_is_not_imported(saved):
    weights, header = read_file(saved)
    header["config"]["features_extractor"] = "os.system"
    save_file(weights, saved, {"policy": json.dumps(header)})
    with pytest.raises(
        PolicyFileError, match=r"expected features_extractor, the policy's own, os\.system, which a file"
    ):
        load_policy(saved)


def test_a_policy_of_the_first_version_still_loads(saved):
    """Its config has the number of its actions, which were Discrete."""
    weights, header = read_file(saved)
    config = header["config"]
    old = {
        **{key: value for key, value in config.items() if key not in ("actions", "features_extractor")},
        "num_actions": 4,
    }
    save_file(weights, saved, {"policy": json.dumps({**header, "version": 1, "config": old})})
    assert load_policy(saved)[0].config == load_policy(saved)[0].config.__class__.from_json(config)


def test_a_header_too_deep_to_read_is_refused(saved):
    save_file({"x": torch.zeros(2)}, saved, {"policy": "[" * 100_000})
    assert refusal(saved) == "expected a policy saved by this toolkit, got another safetensors file"


def test_weights_that_were_tampered_with_are_refused(saved):
    """One tensor missing, one too many, one of another shape."""
    weights, header = read_file(saved)
    name = "policy_head.weight"
    for changed in (
        {key: value for key, value in weights.items() if key != name},
        {**weights, "extra": torch.zeros(1)},
        {**weights, name: torch.zeros(5, 16)},
    ):
        save_file(changed, saved, {"policy": json.dumps(header)})
        assert refusal(saved).startswith("expected a config and weights that belong together (")


def test_a_file_survives_a_write_that_fails(saved, tmp_path, monkeypatch):
    """If renaming or flushing fails, the old policy is whole, and no other file remains."""
    before = saved.read_bytes()
    for name in ("replace", "fsync"):

        def fail(*arguments):
            raise OSError("no space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, name, fail)
            with pytest.raises(OSError, match="^no space left on device$"):
                save_policy(corridor_policy("none", seed=1), saved, INFO)
        assert saved.read_bytes() == before
        assert list(tmp_path.iterdir()) == [saved]
    save_policy(corridor_policy("none", seed=1), saved, {})
    assert load_policy(saved)[0].config.memory == "none"
