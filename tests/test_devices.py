"""--device: what is named, and with `auto` the faster one, which is measured."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium import spaces

from expire_span_rl import devices
from expire_span_rl.building import _Builder, build
from expire_span_rl.devices import Workload, choose_device, random_observation, update_seconds
from expire_span_rl.envs import make_vec_env
from expire_span_rl.policies import ActorCritic
from expire_span_rl.preflight import preflight
from expire_span_rl.settings import resolve
from expire_span_rl.spaces import Mask

WORK = Workload(num_envs=6, num_steps=5, num_minibatches=2, epochs=2)


@pytest.fixture
def gpu(monkeypatch):
    """A machine with a GPU, as far as PyTorch is asked for one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


def test_what_is_named_is_taken_and_nothing_is_measured(gpu):
    for name in ("cpu", "cuda", "cuda:1"):
        assert choose_device(name, seconds_on=pytest.fail) == devices.Device(name, "")
    with pytest.raises(ValueError, match="^--device: expected cpu, cuda or auto, got 'tpu'$"):
        choose_device("tpu")


def test_auto_is_the_cpu_where_there_is_no_gpu():
    assert str(choose_device("auto", seconds_on=pytest.fail)) == "cpu (there is no GPU)"


@pytest.mark.parametrize("cpu, cuda, faster", [(0.5, 0.125, "cuda"), (0.125, 0.5, "cpu")])
def test_auto_is_what_takes_fewer_seconds(cpu, cuda, faster, gpu):
    device = choose_device("auto", {"cpu": cpu, "cuda": cuda}.__getitem__)
    reason = f"an update takes about {cpu:.2g} s on the CPU, {cuda:.2g} s on the GPU"
    assert str(device) == f"{faster} ({reason})"
    assert choose_device("auto").name == "cuda"  # what cannot be measured, as the packages that are compared with us


@pytest.mark.parametrize("kind", ["expire_span", "compressive", "gru", "none"])
def test_an_update_is_measured_and_nothing_changes(kind):
    env = make_vec_env("Corridor-v0", 6)
    policy = ActorCritic.for_spaces(env.single_observation_space, env.single_action_space, memory=kind)
    weights = copy.deepcopy(policy.state_dict())
    random_state = torch.random.get_rng_state()
    assert 0 < update_seconds(policy, env, WORK) < 60
    assert torch.equal(torch.random.get_rng_state(), random_state)
    assert all(torch.equal(value, weights[name]) for name, value in policy.state_dict().items())
    assert all(parameter.grad is None for parameter in policy.parameters())


def test_a_gpu_that_fails_leaves_the_cpu(gpu):
    def seconds_on(device):
        if device == "cuda":
            raise RuntimeError("CUDA out of memory. " + "x" * 300)
        return 0.5

    device = choose_device("auto", seconds_on)
    assert device.name == "cpu" and device.reason.startswith("the GPU failed: ") and len(device.reason) < 130


def test_an_estimate_goes_with_the_work(monkeypatch):
    """A rollout takes 1 s here and 0.01 s for each environment, a minibatch 1 s."""
    monkeypatch.setattr(devices, "_last_seconds", lambda run, device: (run(), 1.0)[1])
    env = make_vec_env("Corridor-v0", 6)
    policy = ActorCritic.for_spaces(env.single_observation_space, env.single_action_space)
    assert update_seconds(policy, env, WORK) == 1 + 2 * 2
    assert update_seconds(policy, env, replace(WORK, acts=False)) == 2 * 2
    monkeypatch.setattr(devices, "MEASURED_ROWS", 4)
    assert update_seconds(policy, env, replace(WORK, num_envs=16, acts=False)) == 2 * 2 * 2  # 4 of 8 rows
    batches = []
    begin = policy.begin
    monkeypatch.setattr(
        policy, "begin", lambda memory, *a, **kw: batches.append(len(memory.time)) or begin(memory, *a, **kw)
    )
    monkeypatch.setattr(devices, "_last_seconds", lambda run, device: (run(), 1 + batches[-1] / 100)[1])
    monkeypatch.setattr(devices, "MEASURED_ENVS", (2, 4))
    assert devices.acting_seconds(policy, env, replace(WORK, num_envs=100)) == pytest.approx(1 + 1.00)
    assert set(batches) == {2, 4}


@pytest.mark.parametrize(
    "flags, expected",
    [
        ({}, Workload(8, 64, 8, 2)),
        ({"agent": "impala"}, Workload(8, 64, 8, 1)),
        ({"agent": "impala", "num_actors": 2}, Workload(8, 64, 8, 1, acts=False)),
        ({"agent": "impala", "ray_address": "auto"}, Workload(8, 64, 8, 1, acts=False)),
        ({"agent": "supervised", "env": "Copy-v0"}, Workload(8, 64, 8, 1, acts=False)),
    ],
)
def test_what_an_update_does(flags, expected):
    settings = resolve(num_envs=8, **{"num_steps": 64, "num_minibatches": 8, **flags})
    said = []
    builder = _Builder(settings, make_vec_env(settings.run.env, 8), None, None, said.append)
    assert builder.workload() == expected
    assert 0 < builder.update_seconds("cpu") < 60 and "timed on cpu" in said[0]


def test_all_actions_are_allowed_in_random_observations():
    class Env:
        single_observation_space = spaces.Dict({"x": spaces.Box(0, 1, (2,), np.float32), "mask": Mask(3)})

    observation = random_observation(Env, 2)
    assert observation["x"].shape == (2, 2) and observation["mask"].tolist() == [[1, 1, 1]] * 2


def test_a_training_says_which_device_it_took_and_why(gpu, monkeypatch, tmp_path):
    monkeypatch.setattr(_Builder, "update_seconds", lambda self, device: {"cpu": 0.25, "cuda": 0.5}[device])
    settings = resolve(num_envs=8, num_steps=8, run_dir=str(tmp_path / "run"))
    run = build(settings, times_devices=True)
    assert run.policy.device.type == "cpu"
    reason = "an update takes about 0.25 s on the CPU, 0.5 s on the GPU"
    assert f"  device   cpu ({reason}), 1 thread" in preflight(run, tmp_path)
    run.device = devices.Device("cuda", reason)
    assert f"  device   cuda ({reason}), products in TF32, 1 thread" in preflight(run, tmp_path)

    run.trainer.close()


def test_only_a_gpu_gets_tf32():
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32
    try:
        matmul.allow_tf32 = False
        devices.allow_tf32("cpu")
        assert not matmul.allow_tf32
        devices.allow_tf32("cuda:1")
        assert matmul.allow_tf32 and torch.backends.mkldnn.matmul.fp32_precision != "tf32"
    finally:
        matmul.allow_tf32 = before


def test_what_is_built_without_being_asked_to_measures_nothing(gpu, monkeypatch):
    monkeypatch.setattr(_Builder, "update_seconds", pytest.fail)
    settings = resolve(num_envs=8, num_steps=8)
    builder = _Builder(settings, make_vec_env("Corridor-v0", 8), None, None, print)
    assert builder.choose_device().name == "cuda"
