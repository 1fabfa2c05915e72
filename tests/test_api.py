"""The Python interface: what it takes, what it gives, and what it says where it will not."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from script_cases import ROOT, call, log
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

import evaluate as evaluate_script
import expire_span_rl as es
import train_rl
from expire_span_rl.env_objects import reference
from expire_span_rl.policies import ActorCritic

SMALL = {"num_envs": 8, "num_steps": 16, "torch_threads": 1, "device": "cpu"}
SHORT = {"max_length": 6}
ROLLOUT = 128


class Recall(gym.Env):
    """Shows 0 or 1, then nothing twice, and pays 1 for the action that names it."""

    observation_space, action_space = gym.spaces.Discrete(3), gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.shown, self.time = int(self.np_random.integers(2)), 0
        return self.shown, {}

    def step(self, action):
        self.time += 1
        over = self.time == 3
        return 2, float(over and action == self.shown), over, False, {"is_success": bool(over and action == self.shown)}


@pytest.fixture
def model():
    made = es.PPO("expire_span", "Corridor-v0", env_kwargs=SHORT, memory_budget=20, **SMALL)
    yield made
    made.close()


def test_the_package_is_imported_at_once():
    """Torch comes with what needs it."""
    code = (
        "import sys, expire_span_rl as es; "
        "print(es.__version__, sorted({'torch', 'numpy', 'gymnasium'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == f"{es.__version__} []\n"
    assert {"PPO", "IMPALA", "evaluate", "load", "show", "make_env", "make_vec_env"} <= set(dir(es))
    with pytest.raises(AttributeError, match="has no attribute 'A2C'"):
        es.A2C  # noqa: B018


def test_a_model_learns_in_whole_rollouts_and_goes_on(model):
    before = torch.cat([p.detach().flatten() for p in model.policy.parameters()])
    assert model.learn(total_timesteps=200) is model
    assert model.num_timesteps == 2 * ROLLOUT == model.metrics["time/total_timesteps"]
    assert (torch.cat([p.detach().flatten() for p in model.policy.parameters()]) != before).any()
    assert model.learn(total_timesteps=1).num_timesteps == 3 * ROLLOUT


def test_schedules_run_over_all_calls_of_learn(model):
    """Linear from 1e-3 to 0: the third of four updates begins in the middle, and an update more at three quarters of
    five."""
    model.learn(2 * ROLLOUT)
    rates = []
    model.learn(2 * ROLLOUT, callback=lambda m: rates.append(m.metrics["train/learning_rate"]))
    assert rates == pytest.approx([0.5e-3, 0.25e-3])
    model.learn(ROLLOUT, callback=lambda m: rates.append(m.metrics["train/learning_rate"]))
    assert rates[2] == pytest.approx(0.2e-3)


def test_a_callback_sees_every_update_and_ends_the_training(model):
    seen = []

    def callback(given):
        assert given is model
        seen.append(given.num_timesteps)
        return len(seen) < 3

    model.learn(10 * ROLLOUT, callback=callback)
    assert seen == [ROLLOUT, 2 * ROLLOUT, 3 * ROLLOUT]
    model.learn(ROLLOUT, callback=lambda given: None)  # which is no False
    assert model.num_timesteps == 4 * ROLLOUT


def test_what_a_callback_saves_says_how_long_it_was_trained(model, tmp_path):
    model.learn(2 * ROLLOUT, callback=lambda m: m.save(tmp_path / f"{m.num_timesteps}.safetensors"))
    for timesteps in (ROLLOUT, 2 * ROLLOUT):
        assert es.load(tmp_path / f"{timesteps}.safetensors").info["timesteps"] == timesteps


def test_training_is_that_of_the_command_line(tmp_path, monkeypatch):
    """The same settings and seed: the same weights and figures."""
    flags = [
        "--num-envs",
        8,
        "--num-steps",
        16,
        "--torch-threads",
        1,
        "--device",
        "cpu",
        "--memory",
        "gru",
        "--seed",
        3,
    ]
    flags += [
        "--env-kwargs",
        json.dumps(SHORT),
        "--total-timesteps",
        256,
        "--no-progress-bar",
        "--learning-rate",
        "0.002",
    ]
    assert call(train_rl, [*flags, "--run-dir", tmp_path / "script"], monkeypatch) == 0
    model = es.PPO("gru", env_kwargs=SHORT, seed=3, learning_rate=0.002, **SMALL).learn(256, run_dir=tmp_path / "api")
    for name, tensor in es.load(tmp_path / "script").state_dict().items():
        torch.testing.assert_close(model.policy.state_dict()[name], tensor, rtol=0, atol=0)
    rows = [log(tmp_path / name) for name in ("script", "api")]
    assert [row["train/value_loss"] for row in rows[0]] == [row["train/value_loss"] for row in rows[1]]


def test_a_run_directory_grows_with_its_model_and_belongs_to_it(tmp_path, model):
    run = tmp_path / "run"
    model.learn(ROLLOUT, run_dir=run)
    model.learn(ROLLOUT, run_dir=run)
    assert [float(row["time/total_timesteps"]) for row in log(run)] == [ROLLOUT, 2 * ROLLOUT]
    assert json.loads((run / "config.json").read_text())["total_timesteps"] == 2 * ROLLOUT
    assert es.load(run).info == {
        "env": "Corridor-v0", "env_kwargs": SHORT, "agent": "ppo", "seed": 1, "timesteps": 2 * ROLLOUT,
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"^--run-dir: expected a new directory"):
        es.PPO("gru", **SMALL).learn(ROLLOUT, run_dir=run)


def test_a_run_directory_may_be_named_in_several_ways(tmp_path, model, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model.learn(ROLLOUT, run_dir=tmp_path / "run")
    for name in ("run", "./run/", "run/../run"):
        model.learn(ROLLOUT, run_dir=name)
    assert len(log(tmp_path / "run")) == 4


def test_a_policy_replaces_no_file_of_a_run(tmp_path, model):
    run = tmp_path / "run"
    model.learn(ROLLOUT, run_dir=run)
    for name in (
        "config.json",
        "policy.safetensors",
        "checkpoint.safetensors",
        "checkpoints/policy_000000000.safetensors",
    ):
        before = (run / name).read_bytes() if (run / name).exists() else None
        with pytest.raises(ValueError, match="^path: expected another file than a run's own, got ") as caught:
            model.save(run / name)
        assert "\n" not in str(caught.value)
        assert before == ((run / name).read_bytes() if (run / name).exists() else None)
    model.save(run / "mine.safetensors")
    assert es.load(run / "mine.safetensors").info["timesteps"] == ROLLOUT


def test_a_saved_policy_acts_as_the_model_did(tmp_path, model):
    model.learn(ROLLOUT).save(tmp_path / "p.safetensors")
    policy = es.load(tmp_path / "p.safetensors")
    env = es.make_vec_env("Corridor-v0", 4, **SHORT)
    observation, _ = env.reset(seed=1)
    states, start = [None, None], np.ones(4, bool)
    for _ in range(20):
        actions = []
        for i, actor in enumerate((model, policy)):
            action, states[i] = actor.predict(observation, states[i], start, deterministic=True)
            actions.append(action)
        np.testing.assert_array_equal(*actions)
        observation, _, terminated, truncated, _ = env.step(actions[0])
        start = terminated | truncated
    assert policy.info["timesteps"] == ROLLOUT and policy.info["env"] == "Corridor-v0"
    model.save(tmp_path / "best.safetensors", best=True)  # none has met the target yet: the latest
    assert es.load(tmp_path / "best.safetensors").info["timesteps"] == ROLLOUT


def test_impala_is_an_agent_too():
    model = es.IMPALA("gru", "Corridor-v0", env_kwargs=SHORT, c_clip=0.5, **SMALL).learn(ROLLOUT)
    assert model.num_timesteps == ROLLOUT and model.policy.info["agent"] == "impala"


def test_logs_of_actors_go_to_the_run_directory_that_learn_was_last_given(tmp_path):
    """Without one they go nowhere, also not to the directory that train_rl.py would have written."""
    model = es.IMPALA("expire_span", "Corridor-v0", **SMALL)
    model.learn(1)
    assert model._run.trainer.log_dir is None
    for name in ("x", "y"):
        model.learn(1, run_dir=tmp_path / name)
    model.learn(1)
    model.close()
    assert model._run.trainer.collector.log_dir == tmp_path / "y"


def test_evaluate_gives_what_the_script_writes(tmp_path, monkeypatch):
    path = ROOT / "pretrained/corridor-expire_span.safetensors"
    arguments = [path, "--episodes", 40, "--seed", 2, "--torch-threads", 1, "--json", tmp_path / "out.json"]
    assert call(evaluate_script, arguments, monkeypatch) == 0
    (written,) = json.loads((tmp_path / "out.json").read_text())["policies"]
    for policy in (path, es.load(path)):
        figures = es.evaluate(policy, episodes=40, seed=2)
        timed = {"path", "acting_steps_per_second"}
        assert figures.keys() == written.keys()
        assert {key: figures[key] for key in figures.keys() - timed} == {
            key: written[key] for key in written.keys() - timed
        }
    assert figures["success_rate"] == 1 and figures["memory"] == "expire_span"
    torch.manual_seed(5)
    es.evaluate(policy, episodes=2)
    drawn = float(torch.rand(()))  # as if nothing had been evaluated
    torch.manual_seed(5)
    assert float(torch.rand(())) == drawn
    longer = es.evaluate(path, "Corridor-v0", episodes=10, env_kwargs={"min_length": 50, "max_length": 50})
    assert longer["mean_episode_length"] == 50
    with pytest.raises(RuntimeError, match="Corridor-v0, environment 0: expected an episode of at most 5 steps"):
        es.evaluate(path, episodes=2, max_steps=5, env_kwargs={"min_length": 50, "max_length": 50})
    with pytest.raises(
        RuntimeError, match=r"^Corridor-v0: expected an episode of at most 5 steps, .*max_steps in Python"
    ):
        es.show(path, max_steps=5, env_kwargs={"min_length": 50, "max_length": 50})


def test_show_is_a_page_in_a_notebook_and_in_files(tmp_path):
    shown = es.show(ROOT / "pretrained/corridor-expire_span.safetensors", seed=3, env_kwargs={"max_length": 9})
    frame = shown._repr_html_()
    assert frame.startswith('<iframe srcdoc="&lt;!doctype html&gt;') and frame.endswith("</iframe>")
    assert '"' not in frame[len('<iframe srcdoc="') : frame.index('" style=')]
    (episode,) = shown.numbers["episodes"]
    assert (episode["seed"], episode["env"]) == (3, "Corridor-v0")
    for ending, beginning in ((".html", b"<!doctype html>"), (".png", b"\x89PNG"), (".json", b"{"), (".svg", b"<?xml")):
        shown.save(tmp_path / f"memory{ending}")
        assert (tmp_path / f"memory{ending}").read_bytes().startswith(beginning)
    with pytest.raises(ValueError, match=r"expected a file name that ends in \.html or"):
        shown.save(tmp_path / "memory.gif")
    assert repr(shown) == f'<Showing of 1 episode, {shown.title}; save("memory.html") writes the page>'


@pytest.mark.parametrize("seed", [1.5, None, -1, True, "3", 2**63])
def test_a_seed_is_a_whole_number(seed, model):
    for play in (es.evaluate, es.show):
        with pytest.raises(
            ValueError, match=r"^seed: expected a whole number from 0 to 2\^(31|63) - 1, got "
        ) as caught:
            play(model, episodes=1, seed=seed)
        assert "\n" not in str(caught.value)
    assert es.show(model, seed=np.int64(2**62), audit=0).numbers["episodes"][0]["seed"] == 2**62


def _same_step(id: str, num_envs: int):
    options = {"autoreset_mode": AutoresetMode.SAME_STEP}
    return gym.make_vec(id, num_envs=num_envs, vectorization_mode="sync", vector_kwargs=options)


ENVIRONMENTS = {
    "class": (lambda: Recall, {"num_envs": 4}, "Recall", ""),
    "function": (lambda: lambda: Recall(), {"num_envs": 4}, "environment", ""),
    "instance": (Recall, {"num_envs": 1}, "Recall", ""),
    "made by Gymnasium": (lambda: gym.make("CartPole-v1"), {"num_envs": 1}, "CartPole-v1", "CartPole-v1"),
    "vector": (lambda: _same_step("CartPole-v1", 3), {}, "CartPole-v1", "CartPole-v1"),
    "vector of ours": (lambda: es.make_vec_env("Corridor-v0", 3), {}, "Corridor-v0", "Corridor-v0"),
}


@pytest.mark.parametrize("case", ENVIRONMENTS)
def test_environments_that_are_no_ids(case, tmp_path):
    """They train, evaluate and are shown; a policy's file names those that Gymnasium can make again."""
    make, settings, name, reference_id = ENVIRONMENTS[case]
    env = make()
    model = es.PPO("gru", env, num_steps=16, torch_threads=1, device="cpu", **settings).learn(16)
    number = settings.get("num_envs", 3)
    assert model.num_timesteps == 16 * number
    figures = es.evaluate(model, env, episodes=3)
    assert figures["episodes"] == 3 and figures["agent"] == "ppo"
    model.save(tmp_path / "p.safetensors")
    policy = es.load(tmp_path / "p.safetensors")
    assert policy.info["env"] == reference_id
    assert es.evaluate(policy, env, episodes=3)["mean_return"] == figures["mean_return"]
    if reference_id:
        assert es.evaluate(policy, episodes=3)["episodes"] == 3
    else:
        with pytest.raises(ValueError, match="--env: expected an environment id"):
            es.evaluate(policy)
    if isinstance(env, gym.vector.VectorEnv):
        with pytest.raises(TypeError, match="got a VectorEnv"):
            es.show(model, env)
    else:
        assert es.show(model, env).numbers["episodes"][0]["env"] == name


def _limited(id: str, steps: int):
    options = {"autoreset_mode": AutoresetMode.SAME_STEP}
    return gym.make_vec(id, 2, vectorization_mode="sync", vector_kwargs=options, max_episode_steps=steps)


def _wrapped_vector(id: str):
    return gym.wrappers.vector.TransformReward(_same_step(id, 2), lambda reward: reward)


REFERENCES = {
    "plain": (lambda: gym.make("CartPole-v1"), "CartPole-v1", {}),
    "limit": (lambda: gym.make("CartPole-v1", max_episode_steps=5), "CartPole-v1", {"max_episode_steps": 5}),
    "limit of make_env": (lambda: es.make_env("CartPole-v1", max_episode_steps=5), "CartPole-v1",
                          {"max_episode_steps": 5}),
    "limit of a vector": (lambda: _limited("CartPole-v1", 5), "CartPole-v1", {"max_episode_steps": 5}),
    "no limit": (lambda: gym.make("CartPole-v1", max_episode_steps=-1), "CartPole-v1", {"max_episode_steps": -1}),
    "wrapper": (lambda: gym.wrappers.TransformReward(gym.make("CartPole-v1"), float), "", {}),
    "wrapper of a vector": (lambda: _wrapped_vector("CartPole-v1"), "", {}),
    "task": (lambda: gym.make("Corridor-v0", max_length=6), "Corridor-v0", SHORT),
    "limit of a task": (lambda: gym.make("Corridor-v0", max_episode_steps=5), "", {}),
    "limit of a vector of tasks": (lambda: _limited("Corridor-v0", 5), "", {}),
}  # fmt: skip


@pytest.mark.parametrize("case", REFERENCES)
def test_the_reference_of_an_environment_makes_its_like_or_is_empty(case):
    make, env, kwargs = REFERENCES[case]
    assert reference(make()) == {"env": env, "env_kwargs": kwargs}


def test_evaluation_has_the_time_limit_of_the_environment_that_trained():
    model = es.PPO("none", gym.make("CartPole-v1", max_episode_steps=5), num_envs=1, num_steps=4, device="cpu")
    assert es.evaluate(model, episodes=5)["mean_episode_length"] == 5


def test_environments_of_es_make_env_are_taken_as_they_are():
    """Wrapped once already."""
    made, small = (lambda: es.make_env("Corridor-v0", **SHORT)), {"num_envs": 2, "num_steps": 16, "device": "cpu"}
    model = es.PPO("gru", made, **small).learn(32)
    plain = es.PPO("gru", "Corridor-v0", env_kwargs=SHORT, num_envs=2, num_steps=16, device="cpu")
    assert model.policy.config.observation == plain.policy.config.observation
    env = es.make_env("Corridor-v0", **SHORT)
    assert es.PPO("gru", env, num_envs=1, num_steps=16, device="cpu").learn(16).num_timesteps == 16


class Ten(Recall):
    """Its episodes have ten steps."""

    def step(self, action):
        observation, reward, _, _, _ = super().step(action)
        return observation % 3, reward, self.time == 10, False, {}


def _vector_of(*functions):
    return gym.vector.SyncVectorEnv(functions, autoreset_mode=AutoresetMode.SAME_STEP)


def _vector_of_tens():
    return _vector_of(Ten, Ten)


PLAYED = {
    "evaluate": (Ten, lambda model, env, older: es.evaluate(model, env, episodes=2)),
    "evaluate in a vector": (_vector_of_tens, lambda model, env, older: es.evaluate(model, env, episodes=2)),
    "evaluate a policy, in wrappers": (
        Ten,
        lambda model, env, older: es.evaluate(model.policy, gym.wrappers.TimeLimit(env, 7), episodes=2),
    ),
    "evaluate in one of a vector": (
        _vector_of_tens,
        lambda model, env, older: es.evaluate(model, env.envs[1], episodes=2),
    ),
    "evaluate in a vector around it": (
        Ten,
        lambda model, env, older: es.evaluate(model, _vector_of(lambda: env), episodes=1),
    ),
    "show": (Ten, lambda model, env, older: es.show(model, env)),
    "a new model": (Ten, lambda model, env, older: es.PPO("none", env, num_envs=1, num_steps=3)),
    "an older model": (Ten, lambda model, env, older: older.learn(3)),
}


@pytest.mark.parametrize("case", PLAYED)
def test_playing_in_the_environment_of_a_model_does_not_spoil_its_training(case):
    """It begins new episodes."""
    make, play = PLAYED[case]
    env = make()
    settings = {} if isinstance(env, gym.vector.VectorEnv) else {"num_envs": 1}
    older, model = (es.PPO("none", env, num_steps=steps, device="cpu", **settings) for steps in (3, 4))
    model.learn(4)
    play(model, env, older)
    model.learn(40)
    assert model.metrics["rollout/ep_len_mean"] == 10


def test_playing_in_another_environment_of_the_class_leaves_a_training_alone():
    model = es.PPO("none", _vector_of_tens(), num_envs=2, num_steps=4, device="cpu").learn(8)
    for env in (Ten(), _vector_of_tens()):
        es.evaluate(model, env, episodes=2)
        assert not model._run.trainer.collector._needs_reset


class Doubled(BaseFeaturesExtractor):
    def __init__(self, observation_space, features_dim=5, scale=2.0):
        super().__init__(observation_space, features_dim)
        self.scale, self.linear = scale, torch.nn.Linear(4, features_dim)

    def forward(self, observation):
        part = observation["observation"] if isinstance(observation, dict) else observation
        return self.linear(self.scale * part.float())


def test_a_features_extractor_reads_the_observations():
    given = {"features_extractor_class": Doubled, "features_extractor_kwargs": {"features_dim": 7}}
    model = es.PPO("gru", "CartPole-v1", **given, **SMALL)
    (own,) = [module for module in model.policy.modules() if isinstance(module, Doubled)]
    before = own.linear.weight.detach().clone()
    model.learn(ROLLOUT)
    assert own.linear.weight.shape == (7, 4) and (own.linear.weight != before).any()
    assert isinstance(model.policy, ActorCritic)
    with pytest.raises(ValueError, match="features_extractor_class: expected one"):
        es.PPO("gru", features_extractor_kwargs={"features_dim": 7})


REFUSED = {
    "misspelled": ({"learning_rat": 1e-3}, "unknown setting 'learning_rat': did you mean 'learning_rate'?"),
    "of another kind": (
        {"window": 3},
        "unknown setting 'window' of expire_span memory and ppo: transformer_xl, compressive",
    ),
    "of another agent": ({"rho_clip": 2.0}, "unknown setting 'rho_clip' of expire_span memory and ppo: impala would"),
    "nothing like it": ({"zzz": 3}, "unknown setting 'zzz': expected one of the flags of train_rl.py"),
    "of learn": ({"total_timesteps": 3}, "total_timesteps: expected as an argument of learn"),
    "of the command line": ({"resume": "x"}, "resume: expected no such setting"),
    "memory": ({"memory": "expirespan"}, "--memory: expected one of expire_span, .*did you mean 'expire_span'"),
    "range": ({"gamma": 2}, "--gamma: expected 0 to 1, got 2.0"),
    "budget": ({"memory_budget": 3}, r"--memory-budget: expected more than --ramp \(8\)"),
    "whole number": ({"num_envs": 8.5}, "--num-envs: expected a whole number, got 8.5"),
    "whole number that fits nowhere": ({"width": 10**40}, r"--width: expected a whole number below 2\^63, got 1000"),
    "whole number as text": ({"num_envs": "8"}, "--num-envs: expected a whole number, got '8'"),
    "number": ({"learning_rate": "fast"}, "--learning-rate: expected a number, got 'fast'"),
    "flag": ({"forgetting": 1}, "--forgetting: expected True or False, got 1"),
    "text": ({"device": 0}, "--device: expected a string, got 0"),
    "list": ({"wrap": "episodes=2"}, "--wrap: expected a list of strings, got 'episodes=2'"),
    "JSON": ({"env_kwargs": {"a": {1}}}, "--env-kwargs: expected what JSON can hold"),
    "unknown id": ({"env": "Coridor-v0"}, "unknown environment 'Coridor-v0': .*did you mean 'Corridor-v0'"),
    "one that exists": (
        {"env": Recall()},
        r"env: expected a function that makes one, such as Recall, for 128 environments",
    ),
    "another number": (
        {"env": _same_step("CartPole-v1", 2), "num_envs": 3},
        "num_envs: expected 2, as the VectorEnv has",
    ),
    "autoreset": (
        {"env": gym.make_vec("CartPole-v1", 2)},
        "expected a VectorEnv in SAME_STEP autoreset, got NEXT_STEP",
    ),
    "keywords": ({"env": Recall, "env_kwargs": {"a": 1}}, "env_kwargs: expected an environment id with it"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_will_not_do_is_told_in_one_line(case):
    settings, message = REFUSED[case]
    with pytest.raises(ValueError, match=message) as error:
        es.PPO(**settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("episodes", [0, -1, 1.5, "3", True])
def test_numbers_that_count_nothing_are_told_by_their_names(episodes):
    path = ROOT / "pretrained/corridor-none.safetensors"
    for call_ in (es.evaluate, es.show):
        with pytest.raises(ValueError, match=rf"^episodes: expected a whole number of at least 1, got {episodes!r}$"):
            call_(path, episodes=episodes)
    with pytest.raises(ValueError, match="^audit: expected a whole number of at least 0, got -1$"):
        es.show(path, audit=-1)
    for steps in (math.inf, "100", None):
        with pytest.raises(ValueError, match="^total_timesteps: expected a number of at least 1, got"):
            es.PPO("gru", "Corridor-v0", env_kwargs=SHORT, **SMALL).learn(steps)


def test_a_device_that_is_not_there_is_no_fault_of_the_file():
    path = ROOT / "pretrained/corridor-none.safetensors"
    for call_ in (es.load, es.evaluate):
        with pytest.raises(ValueError, match="^--device: expected .*, got 'gpu'$"):
            call_(path, device="gpu")
    assert es.load(path, device="auto").config.memory == "none"


def test_a_share_of_success_is_counted_as_it_is():
    class Part(gym.Env):
        observation_space = spaces.Box(-1, 1, (1,), np.float32)
        action_space = spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            return np.zeros(1, np.float32), {}

        def step(self, action):
            return np.zeros(1, np.float32), 1.0, True, False, {"is_success": 0.25}

    figures = es.evaluate(es.PPO("gru", Part, **SMALL), Part, episodes=20)
    assert figures["success_rate"] == 0.25
    low, high = figures["success_rate_ci95"]
    assert 0.1 < low < 0.25 < high < 0.5


def test_what_is_no_environment_and_no_policy():
    with pytest.raises(TypeError, match="env: expected an id, an environment, a VectorEnv, or a function"):
        es.PPO("gru", 3)
    path = ROOT / "pretrained/corridor-none.safetensors"
    for call_ in (es.evaluate, es.show):
        with pytest.raises(TypeError, match="env: expected an id, an environment, a VectorEnv, or a function"):
            call_(path, 3)
        with pytest.raises(ValueError, match="env_kwargs: expected an environment id with it"):
            call_(path, Recall, env_kwargs={"a": 1})
        with pytest.raises(ValueError, match=r"corridor-none\.safetensors: expected an environment with observation"):
            call_(path, Recall)
    with pytest.raises(TypeError, match="policy: expected a policy, a model or the path"):
        es.evaluate(3)
    with pytest.raises(ValueError, match="expected a policy file or a run directory, found nothing there"):
        es.load("nowhere")
    with pytest.raises(ValueError, match="total_timesteps: expected a number of at least 1, got 0"):
        es.PPO("gru", **SMALL).learn(0)


def test_what_the_policy_cannot_see_is_said_before_training(capsys):
    class Spoken(Recall):
        observation_space = gym.spaces.Dict(
            {"card": gym.spaces.Discrete(3), "graph": gym.spaces.Graph(gym.spaces.Discrete(2), None)}
        )

        def reset(self, **options):
            card, info = super().reset(**options)
            return {"card": card, "graph": self.observation_space["graph"].sample()}, info

        def step(self, action):
            card, *rest = super().step(action)
            return {"card": card, "graph": self.observation_space["graph"].sample()}, *rest

    es.PPO("gru", Spoken, **SMALL)
    assert capsys.readouterr().err == "Spoken: not seen by the policy, since no encoder reads it: graph (a Graph)\n"


def test_docstrings_say_what_the_interface_is():
    for name in ("PPO", "IMPALA", "Model", "evaluate", "load", "show", "make_env", "make_vec_env"):
        assert len(getattr(es, name).__doc__) > 30
    assert Path(es.__file__).name == "__init__.py"


def test_a_policy_of_a_features_extractor_is_loaded_with_its_class(tmp_path):
    """The file names the class and holds its weights, but brings no code."""
    from stable_baselines3.common.torch_layers import FlattenExtractor

    model = es.PPO("gru", "CartPole-v1", features_extractor_class=FlattenExtractor, **SMALL).learn(32)
    model.save(tmp_path / "p.safetensors")
    with pytest.raises(
        ValueError, match=r"expected features_extractor, the policy's own, .*FlattenExtractor, which a file"
    ):
        es.load(tmp_path / "p.safetensors")
    loaded = es.load(tmp_path / "p.safetensors", features_extractor_class=FlattenExtractor)
    observation = np.array([0.1, 0.2, 0.3, 0.4], np.float32)
    actions = [policy.predict(observation, deterministic=True)[0] for policy in (model.policy, loaded)]
    assert actions[0] == actions[1]
    for name, weight in loaded.state_dict().items():
        assert torch.equal(weight, model.policy.state_dict()[name])


class Celled(Recall):
    """Its picture holds cells, which nobody but its user knows."""

    observation_space = gym.spaces.Box(0, 255, (3, 3, 3), np.uint8)

    def reset(self, **options):
        return np.full((3, 3, 3), 1 + super().reset(**options)[0], np.uint8), {}

    def step(self, action):
        return np.zeros((3, 3, 3), np.uint8), *super().step(action)[1:]


def _celled_vector():
    return gym.vector.SyncVectorEnv([Celled] * 2, autoreset_mode=AutoresetMode.SAME_STEP)


@pytest.mark.parametrize("made", [lambda: Celled, lambda: lambda: Celled(), Celled, _celled_vector])
def test_cells_on_demand_of_environments_that_are_no_ids(made, tmp_path):
    """Evaluation, pictures and loading read them as the training did."""
    from stable_baselines3.common.torch_layers import FlattenExtractor

    env = made()
    number = {"num_envs": 1} if isinstance(env, gym.Env) else {"num_envs": 2}
    settings = {**number, "num_steps": 16, "device": "cpu", "encoder": "cells"}
    model = es.PPO("none", env, **settings)
    assert model.policy.config.observation["image"]["kind"] == "cells"
    assert es.evaluate(model, env, episodes=2)["mean_episode_length"] == 3
    if not isinstance(env, gym.vector.VectorEnv):
        assert len(es.show(model, env).numbers["episodes"]) == 1
    with pytest.raises(ValueError, match="expected an environment with observation 'image' cells .*, Recall has "):
        es.evaluate(model, Recall, episodes=2)
    given = {"features_extractor_class": FlattenExtractor}
    model = es.PPO("none", env, **given, **settings)
    model.save(tmp_path / "p.safetensors")
    loaded = es.load(tmp_path / "p.safetensors", env=env, **given)
    assert loaded.config.observation == model.policy.config.observation


def test_the_reference_of_an_environment_says_that_it_has_cells():
    gym.register("Celled-v0", Celled)
    try:
        model = es.PPO("none", gym.make("Celled-v0"), num_envs=1, num_steps=16, device="cpu", encoder="cells")
        assert model.policy.info["env_kwargs"] == {"encoder": "cells"}
        assert reference(es.make_env("Celled-v0", encoder="cells"))["env_kwargs"] == {"encoder": "cells"}
        assert es.evaluate(model, episodes=2)["mean_episode_length"] == 3
    finally:
        del gym.registry["Celled-v0"]


def test_a_policy_trained_in_a_vector_of_minigrid_is_evaluated_by_the_id_and_older_ones_in_the_vector():
    vector = _same_step("MiniGrid-Empty-5x5-v0", 2)
    for encoder, kind in (("auto", "cells"), ("plain", "vector")):  # older ones read it as plain numbers
        model = es.PPO("none", vector, num_steps=4, device="cpu", encoder=encoder)
        assert model.policy.config.observation["image"]["kind"] == kind
        for env in (None, vector):
            assert es.evaluate(model.policy, env, episodes=2)["episodes"] == 2


def _makes_celled():
    return es.make_env(Celled, encoder="cells", env_timeout=60)


@pytest.mark.parametrize("env", [_makes_celled, _makes_celled()])
def test_the_encoder_and_the_limit_of_es_make_env_are_kept(env):
    number = {"num_envs": 1} if isinstance(env, gym.Env) else {"num_envs": 2}
    model = es.PPO("none", env, num_steps=4, device="cpu", **number)
    assert model.policy.config.observation["image"]["kind"] == "cells"
    made = model._run.trainer.env.unwrapped.envs[0]
    assert (made.adaptation.encoder, made.adaptation.timeout) == ("cells", 60)
    assert es.evaluate(model, env, episodes=2)["mean_episode_length"] == 3
    assert len(es.show(model, env).numbers["episodes"]) == 1
    read = es.make_env(lambda: es.make_env(Celled, encoder="cells")).observation_space["image"]
    assert read.encoder == "cells"


def test_an_environment_that_cannot_be_made_is_named():
    class Broken(Recall):
        def __init__(self):
            raise RuntimeError("the licence is missing")

    with pytest.raises(ValueError, match="^Broken: RuntimeError: the licence is missing$"):
        es.PPO("none", Broken, num_envs=2)


def test_evaluations_on_the_way_need_an_id(tmp_path, monkeypatch):
    """An evaluation cannot make an environment again of which only the class is known. This is said before anything is
    trained."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="^--eval-every: expected an environment id, from which evaluations can make"):
        es.PPO("expire_span", Recall, num_envs=4, eval_every=64)
