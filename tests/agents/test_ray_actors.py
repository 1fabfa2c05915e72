"""Actors on Ray: training on two nodes while an actor is killed, environments that raise, Ctrl-C, and bad input.

The tests are skipped where Ray is not installed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import script_cases
import torch
from agent_cases import make_policy, play
from script_cases import ROOT, call

pytest.importorskip("ray")
import train_rl
from expire_span_rl.agents import ForgettingConfig, Impala, ImpalaConfig, Trainer, ray_actors
from expire_span_rl.agents.checkpoint import load_checkpoint
from expire_span_rl.agents.long_episodes import RUNNING
from expire_span_rl.agents.rollout import RolloutsEnded
from expire_span_rl.envs import make_vec_env, vec_env_maker
from expire_span_rl.policies import KINDS, ActorCritic

IMPALA = ["--agent", "impala"]
SMALL = [*script_cases.SMALL, *script_cases.FORGETFUL, "--width", "16"]


def blocks(pid: int, signum: int) -> bool:
    """Whether a process has blocked a signal."""
    mask = re.search(r"^SigBlk:\s*(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return bool(mask and int(mask[1], 16) >> (signum - 1) & 1)


def processes_with(word: str) -> list[int]:
    """The processes, other than this one, that have `word` in their command line or environment."""
    pids = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                text = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
            except OSError:  # the process has ended meanwhile
                continue
            if word.encode() in text:
                pids.append(int(entry.name))
    return pids


def test_two_nodes_train_and_one_actor_is_killed():
    """Actors on both nodes of a cluster train on a short corridor. One actor's process is killed during the training.
    One line says so, with the count, and training still reaches 95%."""
    import ray
    from ray.cluster_utils import Cluster

    from expire_span_rl.agents.ray_actors import ActorPool

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    lines: list[str] = []
    corridor = {"max_length": 8}
    env = make_vec_env("Corridor-v0", 64, **corridor)
    torch.manual_seed(0)
    policy = ActorCritic.for_spaces(
        env.single_observation_space,
        env.single_action_space,
        memory="expire_span",
        memory_config=KINDS["expire_span"].Config(max_span=32),
    )
    config = ImpalaConfig(num_steps=32, num_actors=2, num_minibatches=2)  # see docs/scaling.md, small rollouts
    maker = vec_env_maker("Corridor-v0", 64, **corridor)
    pool = ActorPool(maker, policy, config.num_steps, seed=0, num_actors=2, address=cluster.address, say=lines.append)
    agent = Impala(policy, config, num_envs=64, seed=0)
    forgetting = ForgettingConfig(forgetting=False)
    trainer = Trainer(env, policy, agent, forgetting, total=1_000_000, seed=0, source=pool)
    try:
        nodes = {node["NodeID"] for node in ray.nodes()}
        lags = set()
        drifts = []
        killed, solved = None, False
        while not (trainer.done or solved):
            metrics = trainer.update()
            lags.add(metrics["actors/policy_lag"])
            drifts += [metrics["actors/memory_drift"]] if "actors/memory_drift" in metrics else []
            assert 0 <= metrics["actors/queue_occupancy"] <= 1 and 0 <= metrics["actors/idle_share"] < 1
            assert metrics["actors/rollout_bytes"] > 32 * 64 * 10
            if trainer.updates == 10:
                killed = pool.incarnations[1]
                os.kill(int(killed.split("-")[0]), signal.SIGKILL)
            # Not at once: a policy that learns from old rollouts may be worse after a step, and recover.
            if len(trainer.window.recent) == 1000 and pool.restarts and metrics["rollout/success_rate"] > 0.98:
                solved = play(policy, "Corridor-v0", 400, **corridor).mean() >= 0.95
        assert solved and trainer.window.num_actors == 2
        assert pool.restarts == 1 and pool.incarnations[1] != killed
        assert lines == ["actor 1 died and was restarted by Ray (restart 1 of this training)"]
        assert len(nodes) == 2 and max(lags) >= 1 and drifts and min(drifts) > 0
    finally:
        trainer.close()
        cluster.shutdown()


@pytest.fixture
def breaking() -> str:
    """The id of an environment that raises in its third step. It is registered in this process only."""

    class Breaking(gym.Env):
        observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)
        action_space = gym.spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.steps = 0
            return np.zeros(1, np.float32), {}

        def step(self, action):
            self.steps += 1
            if self.steps == 3:
                raise ZeroDivisionError("the floor gave way")
            return np.zeros(1, np.float32), 0.0, False, False, {}

    gym.register("ProbeBreaking-v0", entry_point=Breaking)
    yield "ProbeBreaking-v0"
    del gym.registry["ProbeBreaking-v0"]


def test_an_environment_that_raises_stops_the_training_at_the_fifth_time(breaking, tmp_path, monkeypatch, capsys):
    """Each failure gives one line, and a traceback in run.log. At the end there are one line, exit code 1, a
    checkpoint, and Ray's logs in the run directory."""
    arguments = [*IMPALA, *SMALL, "--env", breaking, "--num-actors", "1", "--run-dir", str(tmp_path / "x")]
    assert call(train_rl, arguments, monkeypatch) == 1
    output = capsys.readouterr().err
    failures = re.findall(
        r"^actor 0 failed, ZeroDivisionError in step \(.+:\d+\) \(time \d of 5\): (.*)$", output, re.MULTILINE
    )
    assert len(failures) == 5  # the name of the file is lost when the class is pickled
    message = r"ProbeBreaking-v0, environment 0, episode 0 \(seed \d+\), step 3: ZeroDivisionError: the floor gave way"
    assert all(re.fullmatch(message, failure) for failure in failures)
    assert "Traceback" not in output and "(time 5 of 5)" in output
    last_line = output.strip().splitlines()[-1]
    assert last_line.startswith("error: actors failed 5 times by ZeroDivisionError in step")
    assert last_line.endswith("the floor gave way")
    assert (tmp_path / "x" / "run.log").read_text().count("ZeroDivisionError: the floor gave way") >= 5
    _, metadata = load_checkpoint(tmp_path / "x" / "checkpoint.safetensors")
    assert metadata["counters"]["timesteps"] == 0
    assert list((tmp_path / "x" / "ray").glob("raylet*"))


@pytest.mark.parametrize(
    ("signum", "code", "message"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated (SIGTERM)")],
    ids=["ctrl-c", "SIGTERM"],
)
def test_a_signal_writes_a_checkpoint_and_ends_all_within_ten_seconds(signum, code, message, tmp_path):
    """The signal goes to the whole process group, as from a terminal or a scheduler. Nothing of Ray remains, and the
    run can be continued."""
    # Ray's sockets need a short path. The processes have it in their environment.
    temporary = tempfile.mkdtemp(prefix="t-", dir="/tmp")
    run_dir = tmp_path / "x"
    arguments = [*IMPALA, *SMALL, "--num-actors", "1", "--run-dir", str(run_dir)]
    command = [sys.executable, str(ROOT / "train_rl.py"), *arguments]
    # PyTorch has its own cache, which is not removed.
    environment = {**os.environ, "TMPDIR": temporary, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor")}
    process = subprocess.Popen(
        command, env=environment, start_new_session=True, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    )
    try:
        table = run_dir / "progress.csv"
        start_time = time.monotonic()
        while not (table.is_file() and len(table.read_text().splitlines()) > 3):
            assert process.poll() is None and time.monotonic() - start_time < 90
            time.sleep(0.1)
        processes = processes_with(temporary)
        assert len(processes) > 3  # the learner, Ray's own, and the actor
        own = [pid for pid in processes if Path(f"/proc/{pid}/comm").read_text().strip() in ("raylet", "gcs_server")]
        assert len(own) == 2 and all(blocks(pid, signum) for pid in own)  # a driver without its raylet ends at once
        signal_time = time.monotonic()
        os.killpg(process.pid, signum)
        _, output = process.communicate(timeout=60)
        others = os.getloadavg()[0] / (os.cpu_count() or 1)  # where more runs than there are cores, all take longer
        assert time.monotonic() - signal_time < 10 * max(1.0, others)
        assert process.returncode == code, output
        assert output.strip().splitlines()[-1] == f"error: {message}"
        time.sleep(0.5)
        assert processes_with(temporary) == [] and list(Path(temporary).iterdir()) == []
        _, metadata = load_checkpoint(run_dir / "checkpoint.safetensors")
        assert metadata["counters"]["timesteps"] > 0
        assert json.loads((run_dir / "config.json").read_text())["num_actors"] == 1
    finally:
        process.kill()
        shutil.rmtree(temporary, ignore_errors=True)


def test_ray_that_is_ended_by_the_same_signal_is_an_interruption(monkeypatch):
    """An error of Ray is raised as it is, unless the training was asked to stop meanwhile."""
    monkeypatch.setattr(ray_actors, "SIGNAL_WITHIN", 0.2)
    pool = object.__new__(ray_actors.ActorPool)
    pool.stop = threading.Event()

    def fail() -> None:
        raise ConnectionError("Ray is gone")

    monkeypatch.setattr(pool, "_send_requests", fail)
    with pytest.raises(ConnectionError, match="^Ray is gone$"):
        pool.collect()
    timer = threading.Timer(0.05, pool.stop.set)
    timer.start()
    with pytest.raises(RolloutsEnded, match="^interrupted$"):
        pool.collect()
    timer.join()


def refused(arguments: list[str], monkeypatch, capsys, folder: Path) -> str:
    """The one line with which train_rl.py refuses the arguments. The exit code is 2, and nothing is written."""
    monkeypatch.chdir(folder)
    assert call(train_rl, [*([] if "--agent" in arguments else IMPALA), *SMALL, *arguments], monkeypatch) == 2
    error = capsys.readouterr().err
    line = error.strip().splitlines()[-1]
    assert line.startswith("error: ") and list(folder.iterdir()) == []
    return line


def test_more_actors_than_cpus_are_refused(monkeypatch, capsys, tmp_path):
    line = refused(["--num-actors", "5000"], monkeypatch, capsys, tmp_path)
    assert line.startswith("error: --num-actors: expected at most the ") and line.endswith("1 node(s), got 5000")


def test_an_environment_that_cannot_be_pickled_is_refused(monkeypatch, capsys, tmp_path):
    lock = threading.Lock()

    class Locked(gym.Env):
        observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)
        action_space = gym.spaces.Discrete(2)
        attribute = lock

        def reset(self, *, seed=None, options=None):
            return np.zeros(1, np.float32), {}

        def step(self, action):
            return np.zeros(1, np.float32), 0.0, False, False, {}

    gym.register("ProbeLocked-v0", entry_point=Locked)
    try:
        line = refused(["--num-actors", "1", "--env", "ProbeLocked-v0"], monkeypatch, capsys, tmp_path)
    finally:
        del gym.registry["ProbeLocked-v0"]
    assert "environment: expected one that can be pickled" in line and "lock" in line


def test_an_address_that_does_not_answer_is_refused(monkeypatch, capsys, tmp_path):
    """A port that takes the connection and never answers."""
    from expire_span_rl.agents import ray_cluster

    monkeypatch.setattr(ray_cluster, "ANSWER_WITHIN", 6.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        line = refused(["--ray-address", f"127.0.0.1:{port}"], monkeypatch, capsys, tmp_path)
    assert line == f"error: --ray-address: expected a Ray cluster at 127.0.0.1:{port}, got no answer within 6 seconds"


@pytest.mark.parametrize("version", [None, "2.9.0"])
def test_another_ray_or_none_is_refused(version, monkeypatch, capsys, tmp_path):
    import importlib.metadata

    def installed(name: str) -> str:
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(importlib.metadata, "version", installed)
    for name in ("ray_actors", "ray_cluster"):
        monkeypatch.delitem(sys.modules, f"expire_span_rl.agents.{name}", raising=False)
    line = refused(["--num-actors", "1"], monkeypatch, capsys, tmp_path)
    assert line == (
        "error: --num-actors and --ray-address: expected ray 2.60 or newer (pip install 'expire-span-rl[ray]'), got "
        f"{version or 'no ray'}"
    )


def test_the_oldest_version_is_that_of_the_extra():
    from expire_span_rl.agents.ray_cluster import OLDEST_RAY

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["optional-dependencies"]["ray"] == [f"ray>={OLDEST_RAY}"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--num-actors", "-1"], "--num-actors: expected at least 0, got -1"),
        (["--refresh-memory", "64"], "--refresh-memory: expected --num-actors or --ray-address with it, got neither"),
        (["--agent", "ppo", "--num-actors", "1"], "unknown flag --num-actors"),
    ],
)
def test_wrong_settings_are_refused(arguments, message, monkeypatch, capsys, tmp_path):
    assert message in refused(arguments, monkeypatch, capsys, tmp_path)


def test_refreshing_replaces_the_memory_of_the_actor():
    """The learner's encoder has changed. The rollout's memory is then the one that the learner's weights compute from
    the last rollout's observations."""
    from expire_span_rl.agents.ray_actors import ActorPool
    from expire_span_rl.agents.transport import recompute_memory

    env = make_vec_env("Corridor-v0", 4, min_length=40, max_length=40)
    policy = make_policy(env, "transformer_xl")
    maker = vec_env_maker("Corridor-v0", 4, min_length=40, max_length=40)
    pools = []
    try:
        pool = ActorPool(maker, policy, num_steps=8, seed=0, num_actors=1, refresh=8)
        pools.append(pool)
        pool.collect()
        with torch.no_grad():
            for parameter in policy.encoder.parameters():
                parameter *= 1.5
        deliveries = []
        receive = pool._receive
        pool._receive = lambda: deliveries.append(receive()) or deliveries[-1]
        rollout, _ = pool.collect()
        expected = recompute_memory(policy, deliveries[0].context)
        assert torch.equal(rollout.memory.live(), expected.live()) and int(expected.live().min()) == 8
        for layer, expected_layer in zip(rollout.memory.layers, expected.layers, strict=True):
            assert torch.equal(layer.hidden, expected_layer.hidden)
        assert pool.metrics()["actors/memory_drift"] > 0.05
    finally:
        for pool in pools:
            pool.close()


def test_actors_report_episodes_that_take_long():
    """Each of four once, as soon as its actor has been told so."""
    from expire_span_rl.agents.ray_actors import ActorPool

    corridor = {"min_length": 200, "max_length": 200}
    env = make_vec_env("Corridor-v0", 4, **corridor)
    pool = ActorPool(vec_env_maker("Corridor-v0", 4, **corridor), make_policy(env, "none"), 8, seed=0, num_actors=1)
    try:
        pool.long_after = 20
        episodes = [episode for _ in range(8) for episode in pool.collect()[1]]
    finally:
        pool.close()
    assert [RUNNING in episode for episode in episodes] == [True] * 4
