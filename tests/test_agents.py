"""What every agent of the registry must do: a new one is covered the moment it is registered."""

from __future__ import annotations

import json

import pytest
import torch

import expire_span_rl as es
from expire_span_rl import training
from expire_span_rl.agents import AGENTS, REWARDS, TARGETS, AgentEntry, LearnerEntry, SupervisedConfig, TrainingLoop
from expire_span_rl.agents.learner import Learner
from expire_span_rl.agents.ppo import PPO
from expire_span_rl.building import Run, build
from expire_span_rl.policies import KINDS, load_policy
from expire_span_rl.settings import RunConfig, Settings, resolve

ENVIRONMENTS = {REWARDS: ("TMaze-v0", {"length": 2}), TARGETS: ("Copy-v0", {"delay": 4, "length": 2})}
"""A short task by what an agent learns from."""
UPDATES = 4
SMALLER = {"num_envs": 8, "num_steps": 16, "num_minibatches": 2, "batch_size": 64, "width": 16, "num_heads": 2}


def small(agent: str, **changes: object) -> Settings:
    """Settings of a short run: those of SMALLER that such a run has."""
    env, kwargs = ENVIRONMENTS[AGENTS[agent].learns_from]
    settings = resolve(RunConfig.memory, env, agent)
    sizes = {name: value for name, value in SMALLER.items() if name in settings.flat()}
    total = UPDATES * SMALLER["num_envs"] * SMALLER["num_steps"]
    return settings.replace(
        **sizes, env_kwargs=json.dumps(kwargs), total_timesteps=total, progress_bar=False, quiet=True, **changes
    )


def metrics_of(run: Run) -> list[dict[str, float]]:
    """The metrics of the updates that are missing, without those of speed."""
    rows = []
    while not run.trainer.done:
        rows.append({name: value for name, value in run.trainer.update().items() if not name.startswith("time/")})
    return rows


@pytest.mark.parametrize("agent", AGENTS)
def test_it_builds_and_an_update_trains(agent):
    run = build(small(agent))
    assert isinstance(run.trainer, TrainingLoop)
    before = {name: tensor.clone() for name, tensor in run.policy.state_dict().items()}
    metrics = run.trainer.update()
    assert run.trainer.timesteps == run.trainer.rollout_size == 128 and run.trainer.updates == 1
    assert metrics["time/total_timesteps"] == 128 and not run.trainer.done
    assert any(not torch.equal(tensor, before[name]) for name, tensor in run.policy.state_dict().items())
    assert run.policy.config.memory in AGENTS[agent].memory_names(KINDS)
    run.trainer.close()


@pytest.mark.parametrize("agent", AGENTS)
def test_a_run_is_saved_loaded_and_evaluated(agent, tmp_path):
    path = training.train(small(agent, run_dir=str(tmp_path / "x")))
    policy, info = load_policy(path)
    assert (info["agent"], info["timesteps"]) == (agent, 512) and json.loads((path / "config.json").read_text())
    result = es.evaluate(str(path), episodes=8, num_envs=4)
    assert (result["agent"], result["memory"]) == (agent, policy.config.memory)
    assert result["episodes"] == 8 and 0 <= result["success_rate"] <= 1
    again = es.evaluate(policy, info["env"], episodes=8, num_envs=4, env_kwargs=info["env_kwargs"])
    timing = {"path", "agent", "acting_steps_per_second"}
    assert {k: v for k, v in again.items() if k not in timing} == {k: v for k, v in result.items() if k not in timing}


@pytest.mark.parametrize("agent", AGENTS)
def test_a_run_goes_on_as_if_it_had_not_been_interrupted(agent):
    """Half of the updates, the state, and the other half in a trainer of its own: the same metrics and weights."""
    whole = build(small(agent))
    expected = metrics_of(whole)
    first = build(small(agent))  # seeds what Stable-Baselines3 draws from
    rows = []
    for _ in range(UPDATES // 2):
        rows.append({name: value for name, value in first.trainer.update().items() if not name.startswith("time/")})
    tensors, metadata = first.trainer.state()
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    second = build(small(agent))
    assert second.trainer.load_state(tensors, json.loads(json.dumps(metadata))) is True
    assert second.trainer.timesteps == 256
    rows += metrics_of(second)
    assert json.dumps(rows) == json.dumps(expected)  # as text, since some metrics are no numbers yet
    weights = second.policy.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in whole.policy.state_dict().items())


def test_successes_that_are_shares_stay_shares():
    trainer = build(small("sb3-ppo")).trainer
    trainer.algorithm.ep_success_buffer.extend([0.25, True])
    restored = build(small("sb3-ppo")).trainer
    restored.load_state(*trainer.state())
    assert list(restored.algorithm.ep_success_buffer) == [0.25, 1.0]


@pytest.mark.parametrize("agent", AGENTS)
def test_an_entry_says_what_its_class_says(agent):
    """Attributes that are read before the class is imported; baselines have them in their entry alone."""
    entry = AGENTS[agent]
    assert isinstance(entry, AgentEntry) and entry.is_builtin
    assert entry.learns_from in ENVIRONMENTS and entry.load().__name__ == entry.class_name
    if entry.takes_memory_kind:
        assert entry.load().Config is entry.Config and entry.load().learns_from == entry.learns_from
        assert entry.memory_names(KINDS) == tuple(KINDS)


class Own(PPO):
    """A user's own agent."""

    Config = PPO.Config


class Copying(Learner):
    """A user's own agent that learns from targets."""

    Config = SupervisedConfig
    learns_from = TARGETS


def test_a_class_of_the_users_own_becomes_an_entry(monkeypatch):
    monkeypatch.setitem(AGENTS, "own", Own)
    monkeypatch.setitem(AGENTS, "copying", Copying)
    entry = AGENTS["own"]
    assert entry == LearnerEntry(Own, Config=PPO.Config, learns_from=REWARDS) and entry.load() is Own
    assert entry.class_name == "Own" and not entry.is_builtin and entry.takes_memory_kind
    assert AGENTS["copying"].learns_from == TARGETS
    run = build(small("own"))
    reference = build(small("ppo", gating=False))  # a default of this task for the toolkit's own agents
    assert type(run.trainer.agent) is Own
    for built in (run, reference):
        built.trainer.update()
    weights = reference.policy.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in run.policy.state_dict().items())


@pytest.mark.parametrize("value", [dict, "ppo", object()])
def test_what_is_no_learner_is_refused(value):
    with pytest.raises(TypeError, match="^AGENTS: expected a Learner, which is a class, or an AgentEntry, got "):
        AGENTS["mine"] = value
    assert "mine" not in AGENTS
