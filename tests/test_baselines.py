"""The third-party baselines through train_rl.py and evaluate.py: trained, saved, loaded, continued, refused in one line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from test_command_line import call

import envs
import evaluate
import train_rl
from envs.sb3_adapter import SB3VecEnv
from policies import load_policy
from policies.sb3 import FlatVecEnv

SMALL = ["--num-envs", "8", "--num-steps", "16", "--batch-size", "64", "--torch-threads", "1", "--no-progress-bar"]
SMALL += [
    "--env-kwargs",
    '{"max_length": 6}',
    "--total-timesteps",
    "256",
    "--checkpoint-every",
    "128",
    "--run-dir",
    "x",
]
AGENTS = {"sb3-ppo": "sb3-mlp", "sb3-recurrent-ppo": "sb3-lstm"}


@pytest.mark.parametrize("agent", AGENTS)
def test_a_baseline_trains_resumes_and_is_evaluated(agent, tmp_path, monkeypatch, capsys):
    """Its steps give the actions that Stable-Baselines3's own predict gives, through ends of episodes."""
    monkeypatch.chdir(tmp_path)
    assert call(train_rl, ["--agent", agent, *SMALL], monkeypatch) == 0
    assert call(train_rl, ["--resume", "x", "--no-progress-bar"], monkeypatch) == 0
    assert call(evaluate, ["x", "--episodes", "8", "--torch-threads", "1", "--json", "out.json"], monkeypatch) == 0
    told = json.loads(Path("out.json").read_text())["policies"][0]
    assert (told["memory"], told["agent"]) == (AGENTS[agent], agent) and AGENTS[agent] in capsys.readouterr().out

    policy, _ = load_policy("x")
    env = envs.make_vec_env("Corridor-v0", 4, max_length=6, max_steps=9)
    theirs = FlatVecEnv(
        SB3VecEnv(envs.make_vec_env("Corridor-v0", 4, max_length=6, max_steps=9)), policy.config.observation
    )
    observation, _ = env.reset(seed=[5, 6, 7, 8])
    theirs.seed(5)
    flat, acting, state, start = theirs.reset(), policy.begin(policy.initial_memory(4), 1), None, np.ones(4, bool)
    for _ in range(30):
        actions, state = policy.network.predict(flat, state, start, deterministic=True)
        tensors = {key: torch.as_tensor(value) for key, value in observation.items()}
        assert (policy.step(tensors, acting, torch.as_tensor(start))[0].argmax(-1).numpy() == actions).all()
        observation, *_ = env.step(actions)
        flat, _, start, _ = theirs.step(actions)


def test_what_is_not_installed_is_told_in_one_line_and_leaves_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in [m for m in sys.modules if m.startswith("sb3_contrib")] + ["sb3_contrib", "sb3_contrib.common"]:
        monkeypatch.setitem(sys.modules, name, None)
    assert call(train_rl, ["--agent", "sb3-recurrent-ppo", *SMALL], monkeypatch) == 2
    error = capsys.readouterr().err
    assert "pip install -r requirements-baselines.txt" in error and error.count("\n") == 1
    assert call(train_rl, ["--agent", "sb3-ppo", "--memory", "gru", *SMALL], monkeypatch) == 2
    assert "--memory: expected none, since sb3-ppo brings its own policy" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
