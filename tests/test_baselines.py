"""The third-party baselines through train_rl.py and evaluate.py: trained, saved, loaded, continued, refused in one line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from script_cases import call

import evaluate
import train_rl
from expire_span_rl import envs
from expire_span_rl.building import build
from expire_span_rl.cli.settings import parse_config
from expire_span_rl.envs.sb3_adapter import SB3VecEnv
from expire_span_rl.policies import load_policy
from expire_span_rl.policies.sb3 import FlatVecEnv

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
    """Its steps give the logits of Stable-Baselines3's own network, through ends of episodes."""
    monkeypatch.chdir(tmp_path)
    assert call(train_rl, ["--agent", agent, *SMALL], monkeypatch) == 0
    assert call(train_rl, ["--resume", "x", "--no-progress-bar"], monkeypatch) == 0
    assert call(evaluate, ["x", "--episodes", "8", "--torch-threads", "1", "--json", "out.json"], monkeypatch) == 0
    told = json.loads(Path("out.json").read_text())["policies"][0]
    assert (told["memory"], told["agent"]) == (AGENTS[agent], agent) and AGENTS[agent] in capsys.readouterr().out

    policy, _ = load_policy("x")
    env = envs.make_vec_env("Corridor-v0", 4, max_length=6, max_steps=9)
    theirs = FlatVecEnv(
        SB3VecEnv(envs.make_vec_env("Corridor-v0", 4, max_length=6, max_steps=9)),
        policy.config.observation,
        policy.config.actions,
    )
    observation, _ = env.reset(seed=[5, 6, 7, 8])
    theirs.seed(5)
    flat, acting, start, ends = theirs.reset(), policy.begin(policy.initial_memory(4), 1), np.ones(4, bool), 0
    state = (torch.zeros(1, 4, 64), torch.zeros(1, 4, 64))
    rng = np.random.default_rng(0)
    for _ in range(30):
        ours = {key: torch.as_tensor(value) for key, value in observation.items()}
        logits = policy.step(ours, acting, torch.as_tensor(start))[0]
        inputs = {key: torch.as_tensor(value) for key, value in flat.items()}
        with torch.no_grad():
            if agent == "sb3-ppo":
                distribution = policy.network.get_distribution(inputs)
            else:
                distribution, state = policy.network.get_distribution(inputs, state, torch.as_tensor(start).float())
        torch.testing.assert_close(logits.log_softmax(-1), distribution.distribution.logits)
        observation, *_, infos = env.step(actions := rng.choice([1, 1, 1, 0, 2], 4))
        flat, _, start, told = theirs.step(actions)
        for row in np.flatnonzero(start):
            for key, value in told[row]["terminal_observation"].items():
                np.testing.assert_array_equal(value, np.float32(infos["final_obs"][key][row]).reshape(-1))
        ends += start.sum()
    assert ends > 10


@pytest.mark.parametrize("agent", AGENTS)
def test_a_baseline_goes_on_where_it_was_interrupted(agent):
    """Weights, Adam's state, counters and schedule; with episodes that it has not had."""
    config = parse_config(["--agent", agent, *SMALL, "--learning-rate", "0.01", "--ent-coef", "0.07"])
    config["total_timesteps"] = 512
    trainer, again = (build({**config, "seed": seed}).trainer for seed in (1, 1))
    first = {key: value.copy() for key, value in again.algorithm._last_obs.items()}
    trainer.update()
    trainer.update()
    tensors, figures = trainer.state()
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    assert again.load_state(tensors, json.loads(json.dumps(figures))) is False
    loaded, known = again.state()
    assert known == figures and figures["timesteps"] == 256 and loaded.keys() == tensors.keys()
    for name, tensor in loaded.items():
        torch.testing.assert_close(tensor, tensors[name], rtol=0, atol=0)
    assert any(name.startswith("optimizer/") and name.endswith("exp_avg_sq") for name in tensors)
    assert any((value != first[key]).any() for key, value in again.algorithm._last_obs.items())
    told = again.update()
    assert again.timesteps == 384 and not again.done
    assert told["train/learning_rate"] == pytest.approx(0.01 * (1 - 256 / 512))
    assert again.algorithm.ent_coef == 0.07


def test_what_is_not_installed_is_told_in_one_line_and_leaves_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in [m for m in sys.modules if m.startswith("sb3_contrib")] + ["sb3_contrib", "sb3_contrib.common"]:
        monkeypatch.setitem(sys.modules, name, None)
    assert call(train_rl, ["--agent", "sb3-recurrent-ppo", *SMALL], monkeypatch) == 2
    error = capsys.readouterr().err
    assert "pip install 'expire-span-rl[baselines]'" in error and error.count("\n") == 1
    assert call(train_rl, ["--agent", "sb3-ppo", "--memory", "gru", *SMALL], monkeypatch) == 2
    assert "--memory: expected none, since sb3-ppo brings its own policy" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
