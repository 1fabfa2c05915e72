"""The third-party baselines through train_rl.py and evaluate.py: trained, saved, loaded, continued, refused in one
line."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from script_cases import call

import evaluate
import train_rl
from expire_span_rl import envs
from expire_span_rl.agents.guard import TrainingEnded
from expire_span_rl.building import build
from expire_span_rl.cli.settings import parse_config
from expire_span_rl.envs.sb3_adapter import SB3VecEnv
from expire_span_rl.policies import load_policy
from expire_span_rl.policies.sb3 import FlatVecEnv, flat, unflat

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
    flattened, acting, start, ends = theirs.reset(), policy.begin(policy.initial_memory(4), 1), np.ones(4, bool), 0
    state = (torch.zeros(1, 4, 64), torch.zeros(1, 4, 64))
    rng = np.random.default_rng(0)
    for _ in range(30):
        ours = {key: torch.as_tensor(value) for key, value in observation.items()}
        logits = policy.step(ours, acting, torch.as_tensor(start))[0]
        inputs = {key: torch.as_tensor(value) for key, value in flattened.items()}
        with torch.no_grad():
            if agent == "sb3-ppo":
                distribution = policy.network.get_distribution(inputs)
            else:
                distribution, state = policy.network.get_distribution(inputs, state, torch.as_tensor(start).float())
        torch.testing.assert_close(logits.log_softmax(-1), distribution.distribution.logits)
        observation, *_, infos = env.step(actions := rng.choice([1, 1, 1, 0, 2], 4))
        flattened, _, start, told = theirs.step(actions)
        for row in np.flatnonzero(start):
            for key, value in told[row]["terminal_observation"].items():
                np.testing.assert_array_equal(value, np.float32(infos["final_obs"][key][row]).reshape(-1))
        ends += start.sum()
    assert ends > 10


@pytest.mark.parametrize("agent", AGENTS)
def test_a_baseline_predicts_what_it_does_in_steps(agent):
    """For the environment's own observations, with the state that it hands back; untold rewards are 0."""
    run = build(parse_config(["--agent", agent, *SMALL]))
    run.trainer.close()
    policy = run.policy
    wrapped = envs.make_env("Corridor-v0", max_length=6, max_steps=9)
    own = gym.make("Corridor-v0", max_length=6, max_steps=9)
    observation, plain = wrapped.reset(seed=3)[0], own.reset(seed=3)[0]
    acting, state, start, reward = policy.begin(policy.initial_memory(1), 1), None, True, 0.0
    for step in range(30):
        tensors = {key: torch.as_tensor(np.asarray(value)[None]) for key, value in observation.items()}
        expected = policy.actions.mode(policy.step(tensors, acting, torch.tensor([start]))[0])
        told = {} if step < 3 else {"reward": reward}  # the first rewards are 0
        action, state = policy.predict(plain, state, np.array([start]), deterministic=True, **told)
        assert action == policy.actions.to_env(expected)[0]
        observation, reward, terminated, truncated, _ = wrapped.step(action)
        plain = own.step(action)[0]
        if start := terminated or truncated:
            observation, plain = wrapped.reset()[0], own.reset()[0]
    with pytest.raises(ValueError, match="^observation 'image': expected an array of shape"):
        policy.predict(np.zeros((2, 2)))


@pytest.mark.parametrize("agent", AGENTS)
def test_a_baselines_state_continues_identically(agent):
    """Environments, draws, the LSTM's state and the latest episodes too."""
    config = parse_config(["--agent", agent, *SMALL, "--total-timesteps", "640"])
    trainer, again = (build(config).trainer for _ in range(2))
    for _ in range(3):
        trainer.update()
    tensors, known = trainer.state()
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    expected = [trainer.update() for _ in range(2)]
    assert again.load_state(tensors, json.loads(json.dumps(known))) is True
    continued = [again.update() for _ in range(2)]
    untimed = [{name: value for name, value in row.items() if "time/" not in name} for row in expected + continued]
    assert untimed[:2] == untimed[2:] and untimed[0] != untimed[1] and "rollout/success_rate" in untimed[0]
    last, again_last = trainer.state()[0], again.state()[0]
    assert last.keys() == again_last.keys()
    assert [name for name in last if not torch.equal(last[name], again_last[name])] == []


@pytest.mark.parametrize("agent", AGENTS)
def test_an_update_that_is_broken_off_changes_nothing(agent, monkeypatch):
    """In the midst of a rollout, when the environments have made a step of which nobody took note."""
    config = parse_config(["--agent", agent, *SMALL, "--total-timesteps", "640"])
    trainer, undisturbed = (build(config).trainer for _ in range(2))
    trainer.update()
    before = {name: tensor.clone() for name, tensor in trainer.state()[0].items()}
    known = json.loads(json.dumps(trainer.state()[1]))
    calls = itertools.count()

    def check() -> None:
        if next(calls) == 7:
            raise TrainingEnded("asked to stop")

    monkeypatch.setattr(trainer._deadline, "check", check)
    with pytest.raises(TrainingEnded):
        trainer.update()
    tensors, after = trainer.state()
    assert [name for name in before if not torch.equal(before[name], tensors[name])] == [] and after == known
    expected = trainer.update()
    undisturbed.load_state(before, known)
    found = undisturbed.update()
    assert {n: v for n, v in expected.items() if "time/" not in n} == {
        n: v for n, v in found.items() if "time/" not in n
    }


@pytest.mark.parametrize("agent", AGENTS)
def test_a_baseline_goes_on_where_environments_cannot_save_their_state(agent):
    """Weights, Adam's state, counters and schedule; with episodes that it has not had."""
    config = parse_config(["--agent", agent, *SMALL, "--learning-rate", "0.01", "--ent-coef", "0.07"])
    settings = config.replace(total_timesteps=512, env="CartPole-v1", env_kwargs="{}", training_kwargs=None)
    trainer, again = (build(settings).trainer for _ in range(2))
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
    assert "--memory: leave it out, since sb3-ppo brings its own policy" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


class Everything(gym.Env):
    """Nested observations of every kind, one of them words, and actions of a space; five steps."""

    observation_space = spaces.Dict({
        "text": spaces.Text(12), "picture": spaces.Box(0, 255, (12, 12, 3), np.uint8), "huge": spaces.Discrete(10**9),
        "pair": spaces.Tuple((spaces.MultiDiscrete([2, 3]), spaces.Box(50, 70, (2,)))),
        "count": spaces.Discrete(4, start=1),
    })  # fmt: skip

    def __init__(self, action: str = "box"):
        self.action_space = {
            "box": spaces.Box(np.array([0.0, -4.0]), np.array([10.0, 4.0]), dtype=np.float64),
            "multi_discrete": spaces.MultiDiscrete([3, 2], start=[1, 0]),
            "multi_binary": spaces.MultiBinary(2),
            "discrete": spaces.Discrete(3, start=-1),
        }[action]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(int(self.np_random.integers(2**31)))
        self.left = 5
        return self.observation_space.sample(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.left -= 1
        return self.observation_space.sample(), float(np.sum(action)), self.left == 0, False, {}


gym.register("BaselineEverything-v0", entry_point=Everything)


@pytest.mark.parametrize("action", ["box", "multi_discrete", "multi_binary", "discrete"])
@pytest.mark.parametrize("agent", AGENTS)
def test_a_baseline_reads_and_acts_in_every_space(agent, action, tmp_path, monkeypatch):
    """Its policy gives, from the file, the logits that its network gave in training; floats are normalised by what was
    seen."""
    monkeypatch.chdir(tmp_path)
    command = ["--agent", agent, *SMALL, "--env", "BaselineEverything-v0", "--env-kwargs", f'{{"action": "{action}"}}']
    assert call(train_rl, command, monkeypatch) == 0
    assert call(evaluate, ["x", "--episodes", "6", "--num-envs", "3", "--torch-threads", "1"], monkeypatch) == 0
    weights = load_policy("x")[0].state_dict()
    (mean,) = (value for name, value in weights.items() if name.endswith("mean") and len(value) == 2)
    assert ((mean > 55) & (mean < 65)).all()


def test_whole_numbers_are_the_same_behind_a_flat_observation():
    """float32 holds whole numbers up to 2^24 only; words and huge Discretes are larger."""
    for entry, value in (
        ({"kind": "words", "shape": [3]}, torch.tensor([[2**32, 2**24 + 1, 0], [7, 2**31 - 1, 3]])),
        ({"kind": "discrete", "n": 10**9, "start": -5}, torch.tensor([-5, 2**24 + 1, 10**9 - 6])),
        ({"kind": "discrete", "n": 5}, torch.tensor([0, 4])),
        ({"kind": "picture", "shape": [2, 2, 1]}, torch.randint(256, (2, 2, 2, 1))),
    ):
        columns = flat(entry, value)
        assert columns.dtype == torch.float32 and columns.ndim == 2
        assert torch.equal(unflat(entry, columns).long(), value)
