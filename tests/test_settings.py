"""The settings of a run, the same from the command line and from Python."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
from script_cases import ROOT

from expire_span_rl.agents import AGENTS
from expire_span_rl.cli.settings import parse_config
from expire_span_rl.policies import KINDS
from expire_span_rl.settings import UNSCALED, RunConfig, check, defaults, part, resolve, run_parts, tuned

OURS = [agent for agent in AGENTS if AGENTS.describe(agent).network is None and not AGENTS.describe(agent).supervised]
BASELINES = [agent for agent in AGENTS if AGENTS.describe(agent).network is not None]


@pytest.mark.parametrize("agent", OURS)
@pytest.mark.parametrize("memory", KINDS)
def test_the_command_line_and_python_have_the_same_settings(memory, agent):
    for env in ("Corridor-v0", "Portal-v0", "CartPole-v1"):
        usual = resolve(memory, env, agent)
        assert parse_config(["--memory", memory, "--agent", agent, "--env", env]) == usual
        assert usual.keys() == {*defaults(memory, env, agent), "training_kwargs"}
        expected = tuned(env, agent)
        assert {name: usual[name] for name in expected.keys() & usual.keys()} == {
            name: value for name, value in expected.items() if name in usual
        }
        assert usual["normalize_rewards"] == (env == "CartPole-v1") != usual["amsgrad"]
        assert json.loads(json.dumps(usual)).keys() == usual.keys()
    flags = ["--seed", "7", "--num-envs", "1e2", "--learning-rate", "0.5", "--wrap", "episodes=2", "--import", "os"]
    given = {"seed": np.int64(7), "num_envs": 100.0, "learning_rate": 0.5, "wrap": ["episodes=2"], "imports": ("os",)}
    flags += ["--no-progress-bar", "--env-kwargs", '{"max_length": 9}', "--memory", memory, "--agent", agent]
    given |= {"progress_bar": False, "env_kwargs": {"max_length": 9}}
    assert parse_config(flags) == resolve(memory, agent=agent, **given)
    assert type(resolve(memory, agent=agent, **given)["seed"]) is int


@pytest.mark.parametrize("agent", BASELINES)
def test_a_baselines_network_stands_for_the_memory_kind(agent):
    network = AGENTS.describe(agent).network
    assert resolve(agent=agent)["memory"] == resolve(network, agent=agent)["memory"] == network
    assert resolve(agent=agent) == parse_config(["--agent", agent])
    with pytest.raises(ValueError, match=f"--memory: expected none, since {agent} brings its own policy, {network}"):
        resolve("gru", agent=agent)


def test_a_components_own_config_is_among_the_settings():
    config = resolve("transformer_xl", window=9, width=32)
    memory, core = KINDS.describe("transformer_xl").Config, KINDS.describe("transformer_xl").CoreConfig
    assert part(memory, config).window == 9 and part(core, config).width == 32
    assert set(run_parts("transformer_xl", "ppo")) >= {RunConfig, memory, core}
    assert part(RunConfig, config) == dataclasses.replace(RunConfig(), memory="transformer_xl")


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"num_envs": 0}, "--num-envs: expected at least 1, got 0"),
        (
            {"memory_budget": 8.0},
            r"--memory-budget: expected more than --ramp \(8\), below which live memory cannot fall, got 8.0",
        ),
        ({"seed": 2**31}, r"--seed: expected 0 to 2\^31 - 1, got 2147483648"),
        ({"clip_coef": 0.0}, "--clip-coef: expected more than 0, got 0.0"),
        ({"encoder": "cell"}, "--encoder: expected one of auto, cells, got 'cell'; did you mean 'cells'"),
    ],
)
def test_what_a_config_file_says_is_checked_too(changed, message):
    with pytest.raises(ValueError, match=message):
        check({**resolve(), **changed})


def test_they_are_there_at_once():
    """Without torch, Gymnasium and MiniGrid; in less than half a second of CPU time."""
    code = """
import sys, time
import expire_span_rl.settings
expire_span_rl.settings.defaults("expire_span", "Corridor-v0", "ppo")
print(time.process_time(), sorted({"torch", "gymnasium", "minigrid", "stable_baselines3"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    seconds, packages = done.stdout.split(maxsplit=1)
    assert float(seconds) < 0.5 and packages == "[]\n"


def test_rewards_are_scaled_in_all_tasks_but_those_that_were_measured_without():
    from expire_span_rl.envs import env_ids

    own = {id: tuned(id, "ppo").get("normalize_rewards", False) for id in env_ids()}
    assert [id for id, scaled in own.items() if not scaled] == list(UNSCALED) == env_ids()[:3]
    assert tuned("CartPole-v1", "ppo") == {"normalize_rewards": True, "amsgrad": False}
    assert tuned("TMaze-v0", "ppo") == {"normalize_rewards": True, "amsgrad": False, "gating": True}
