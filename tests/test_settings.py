"""The settings of a run, the same from the command line and from Python."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys

import numpy as np
import pytest
from script_cases import ROOT

from expire_span_rl.agents import AGENTS, REWARDS, ForgettingConfig
from expire_span_rl.agents.settings import ImpalaConfig, PPOConfig, SB3Config
from expire_span_rl.checks import env_keywords
from expire_span_rl.cli.settings import parse_config
from expire_span_rl.policies import KINDS
from expire_span_rl.saved_settings import complete
from expire_span_rl.settings import PRESETS, TUNED, RunConfig, Settings, defaults, parts_of, resolve, run_parts, tuned

OURS = [name for name, entry in AGENTS.items() if entry.takes_memory_kind and entry.learns_from == REWARDS]
BASELINES = [name for name, entry in AGENTS.items() if not entry.takes_memory_kind]


@pytest.mark.parametrize("agent", OURS)
@pytest.mark.parametrize("memory", KINDS)
def test_the_command_line_and_python_have_the_same_settings(memory, agent):
    for env in ("Corridor-v0", "Portal-v0", "CartPole-v1"):
        settings = resolve(memory, env, agent)
        assert parse_config(["--memory", memory, "--agent", agent, "--env", env]) == settings
        usual = settings.flat()
        assert usual.keys() == {*defaults(memory, env, agent), "training_kwargs"}
        expected = tuned(env, agent)
        assert {name: usual[name] for name in expected.keys() & usual.keys()} == {
            name: value for name, value in expected.items() if name in usual
        }
        assert usual["normalize_rewards"] and not usual["amsgrad"]
        assert json.loads(json.dumps(usual)).keys() == usual.keys()
    flags = ["--seed", "7", "--num-envs", "1e2", "--learning-rate", "0.5", "--wrap", "episodes=2", "--import", "os"]
    given = {"seed": np.int64(7), "num_envs": 100.0, "learning_rate": 0.5, "wrap": ["episodes=2"], "imports": ("os",)}
    flags += ["--no-progress-bar", "--env-kwargs", '{"max_length": 9}', "--memory", memory, "--agent", agent]
    given |= {"progress_bar": False, "env_kwargs": {"max_length": 9}}
    assert parse_config(flags) == resolve(memory, agent=agent, **given)
    assert type(resolve(memory, agent=agent, **given).run.seed) is int


@pytest.mark.parametrize(("name", "value"), [("renew_every", 8), ("time_skips", 0.5), ("time_gaps", 0.1)])
def test_a_new_run_refuses_what_bounded_spans_do_not_use(name, value):
    """0 and the default are accepted. A policy or run that was saved with another value, such as an earlier default,
    goes on."""
    flags = [f"--{name.replace('_', '-')}", str(value), "--span-model"]
    with pytest.raises(ValueError, match=f"^{flags[0]}: expected --span-model survival with it$"):
        parse_config([*flags, "sigmoid"])
    assert parse_config([*flags, "survival"]).flat()[name] == value
    usual = resolve(span_model="sigmoid").flat()
    assert resolve(span_model="sigmoid", **{name: usual[name]}).flat() == usual
    assert resolve(span_model="sigmoid", **{name: 0}).flat()[name] == 0
    saved = {**usual, name: value}
    assert Settings.from_flat(saved).flat() == saved


LEARNING = {entry.Config for entry in AGENTS.values()} | {ForgettingConfig}
IN_FLOAT32 = {
    **dict.fromkeys((PPOConfig, ImpalaConfig), ("advantage_std_floor", "clip_coef", "rho_clip", "c_clip")),
    SB3Config: ("learning_rate", "clip_range"),
}
"""Settings that PyTorch takes as float32: with 1e300, the first update of each failed. With 1e31 none did."""
FRACTIONS = ("gamma", "gae_lambda", "trace_lambda", "adam_beta2", "fixed_pressure", "success_target")


@pytest.mark.parametrize("config", sorted(LEARNING, key=lambda config: config.__name__))
def test_a_number_that_float32_cannot_hold_is_refused_by_its_flag(config):
    """Its first update would fail, after --overwrite removed the old run. Other settings have no limit but infinity."""
    for field in dataclasses.fields(config):
        if "float" not in str(field.type):
            continue
        flag = f"--{field.name.replace('_', '-')}"
        fraction = field.name in FRACTIONS
        refused = [math.inf, math.nan] if field.name != "rho_clip" else [math.nan]
        large = {} if field.name != "c_clip" else {"rho_clip": math.inf}
        if field.name in IN_FLOAT32.get(config, ()) or fraction:
            refused.append(1e300)
        else:
            assert getattr(config(**large, **{field.name: 1e300}), field.name) == 1e300
        if not fraction:
            assert getattr(config(**large, **{field.name: 1e31}), field.name) == 1e31
        for value in refused:
            with pytest.raises(ValueError, match=f"^{flag}: expected .*, got {value}$".replace("+", r"\+")):
                config(**large, **{field.name: value})


def test_importance_weights_may_have_no_limit():
    """V-trace without clipping, also in a run that is resumed."""
    settings = resolve(agent="impala", rho_clip=math.inf, max_grad_norm=1e31)
    saved = complete(json.loads(json.dumps(settings.flat())), "config.json")
    assert Settings.from_flat(saved).agent == settings.agent and settings.agent.rho_clip == math.inf


@pytest.mark.parametrize(
    "flags, expected",
    [
        ([], 128),
        (["--total-timesteps", "1e6"], 128),  # 122 updates
        (["--total-timesteps", "819200"], 128),  # 100 updates
        (["--total-timesteps", "819199"], 64),
        (["--total-timesteps", "300000"], 32),
        (["--total-timesteps", "150000"], 16),
        (["--total-timesteps", "1000"], 16),
        (["--total-timesteps", "819200", "--num-steps", "128"], 64),
        (["--total-timesteps", "150000", "--num-envs", "128"], 128),
        (["--total-timesteps", "150000", "--num-envs=200"], 200),
    ],
)
def test_short_trainings_have_enough_updates(flags, expected):
    """The default of --num-envs follows the length of the training, for every agent; a given number stays."""
    given = {name[2:].replace("-", "_"): float(value) for name, value in zip(flags[::2], flags[1::2], strict=False)}
    for agent in (*OURS, *BASELINES):
        settings = parse_config([*flags, "--agent", agent])
        assert settings.run.num_envs == expected
        if not any("=" in flag for flag in flags):
            assert resolve(agent=agent, **given) == settings
        assert Settings.from_flat(settings.flat()) == settings, "a resumed run keeps its number"


@pytest.mark.parametrize("agent", BASELINES)
def test_a_baselines_network_stands_for_the_memory_kind(agent):
    (network,) = AGENTS[agent].memory_names(KINDS)
    assert resolve(agent=agent).run.memory == resolve(network, agent=agent).run.memory == network
    assert resolve(agent=agent) == parse_config(["--agent", agent])
    with pytest.raises(ValueError, match=f"--memory: leave it out, since {agent} brings its own policy, {network}"):
        resolve("gru", agent=agent)


def test_a_components_own_config_is_among_the_settings():
    settings = resolve("transformer_xl", window=9, width=32)
    entry = KINDS["transformer_xl"]
    assert settings.memory == entry.Config(window=9) and settings.network == entry.CoreConfig(width=32)
    assert run_parts("transformer_xl", "ppo") == (RunConfig, PPOConfig, entry.Config, entry.CoreConfig)
    assert settings.run == dataclasses.replace(RunConfig(), memory="transformer_xl")


@pytest.mark.parametrize("agent", AGENTS)
@pytest.mark.parametrize("memory", KINDS)
def test_flat_settings_and_parts_are_the_same(memory, agent):
    """From one to the other and back, as JSON too; parts that a run does not have are None."""
    settings = resolve(memory if AGENTS[agent].takes_memory_kind else RunConfig.memory, agent=agent, seed=5)
    assert Settings.from_flat(settings.flat()) == settings
    saved = json.loads(json.dumps(settings.flat()))
    assert Settings.from_flat(complete(saved, "config.json")) == settings
    assert settings.replace(seed=6).flat() == {**settings.flat(), "seed": 6}
    entry = AGENTS[agent]
    kind = KINDS[settings.run.memory] if entry.takes_memory_kind else None
    expected = {"run": RunConfig, "agent": entry.Config, "forgetting": None, "memory": None, "network": None}
    if kind is not None:
        expected |= {"memory": kind.Config, "network": kind.CoreConfig}
        expected["forgetting"] = ForgettingConfig if kind.supports_forgetting else None
    found = {name: getattr(settings, name) for name in expected}
    assert {name: None if part is None else type(part) for name, part in found.items()} == expected
    assert parts_of(settings.run.memory, agent) == {name: part for name, part in expected.items() if part is not None}


def test_a_saved_run_with_wraps_was_in_one_process_whatever_it_says():
    """Its settings are refused today."""
    saved = {**resolve("expire_span", wrap=("stretch=2",)).flat(), "vectorization": "async"}
    assert complete(json.loads(json.dumps(saved)), "config.json")["vectorization"] == "auto"


def test_a_saved_run_with_wraps_in_two_places_goes_on_with_those_of_the_flag():
    """A new one is refused."""
    both = {"wrap": ("stretch=2",), "env_kwargs": '{"wraps": ["episodes=2"], "max_length": 9}'}
    with pytest.raises(ValueError, match="^--wrap: expected wraps here or as"):
        resolve("gru", **both)
    saved = resolve("gru").replace(**both)
    assert env_keywords(saved.run) == {"wraps": ["stretch=2"], "max_length": 9}


def test_a_replaced_setting_must_be_one_of_the_run():
    with pytest.raises(ValueError, match="^unknown setting 'window' of expire_span memory and ppo: transformer_xl"):
        resolve().replace(window=4)
    with pytest.raises(ValueError, match="^unknown setting 'sede': did you mean 'seed'"):
        resolve().replace(sede=4)


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"num_envs": 0}, "--num-envs: expected at least 1, got 0"),
        (
            {"memory_budget": 8.0},
            r"--memory-budget: expected more than --ramp \(8\), below which live memory cannot fall, got 8.0",
        ),
        ({"seed": 2**31}, r"--seed: expected 0 to 2\^31 - 1, got 2147483648"),
        ({"loss_tolerance": 0.01}, "--loss-tolerance: expected 0 with ppo, which learns from rewards, got 0.01"),
        ({"clip_coef": 0.0}, "--clip-coef: expected more than 0, got 0.0"),
        ({"encoder": "cell"}, "--encoder: expected one of auto, cells, plain, got 'cell'; did you mean 'cells'"),
    ],
)
def test_what_a_config_file_says_is_checked_too(changed, message):
    with pytest.raises(ValueError, match=message):
        resolve().replace(**changed)


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


def test_no_task_has_its_own_scale_of_rewards_and_observations_or_its_own_optimizer():
    """One setting for all tasks: what a task of ours may set beside it says nothing of these."""
    general = {"normalize_rewards", "normalize_observations", "normalize_cells", "impute_cells"}
    general |= {"amsgrad", "adam_beta2"}
    assert not any(general & names.keys() for names in TUNED.values())
    assert tuned("CartPole-v1", "ppo") == {}
    assert tuned("TMaze-v0", "ppo") == {"gating": True}


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_sets_what_the_user_does_not(preset):
    usual, others = defaults("expire_span", "Switch-v0", "ppo"), PRESETS[preset]
    flat = resolve(env="Switch-v0", preset=preset).flat()
    assert {name for name in usual if flat[name] != usual[name]} - {"preset"} == others.keys()
    assert flat["preset"] == preset and flat.items() >= others.items()
    mine = {"ramp": 5, "attention_cost": 0.5, "use_coef": 20.0}
    chosen = resolve(env="Switch-v0", preset=preset, **mine)
    assert chosen.flat() == {**flat, **mine}
    arguments = ["--env", "Switch-v0", "--preset", preset]
    assert parse_config(arguments) == resolve(env="Switch-v0", preset=preset)
    assert parse_config([*arguments, "--ramp", "5", "--attention-cost=0.5", "--use_coef", "20"]) == chosen
    assert complete({**flat, "memory": "expire_span"}, "config.json")["preset"] == preset


@pytest.mark.parametrize("name", ["memory", "agent", "preset"])
@pytest.mark.parametrize("value", [3, None, ["few_memories"]])
def test_a_name_that_is_no_text_is_refused(name, value):
    with pytest.raises(ValueError, match=f"^--{name}: expected one of "):
        resolve(**{name: value})


def test_a_preset_is_told_as_the_flags_that_it_stands_for(capsys):
    with pytest.raises(SystemExit):
        parse_config(["--preset", "few_memories", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    flags = " ".join(f"--{name.replace('_', '-')} {value:g}" for name, value in PRESETS["few_memories"].items())
    assert f"({flags})" in told and "--env Corridor-v0 --preset few_memories." in told
    assert all(preset in told for preset in PRESETS)


@pytest.mark.parametrize(
    "memory, agent, told",
    [
        ("gru", "ppo", "expected --memory expire_span with it, got gru"),
        ("adaptive_span", "impala", "expected --memory expire_span with it, got adaptive_span"),
        ("expire_span", "sb3-ppo", "expected --agent ppo or impala or supervised with it, got sb3-ppo"),
    ],
)
def test_a_preset_is_refused_where_it_sets_nothing(memory, agent, told):
    assert resolve(memory, agent=agent, preset="none") == resolve(memory, agent=agent)
    with pytest.raises(ValueError, match=f"^--preset few_memories: {told}$"):
        resolve(memory, agent=agent, preset="few_memories")


@pytest.mark.parametrize(
    "arguments, owners",
    [
        (["--memory", "gru", "--window", "5"], "--memory transformer_xl, --memory compressive"),
        (["--memory", "transformer_xl", "--ramp=4"], "--memory expire_span, --memory adaptive_span"),
        (["--memory", "gru", "--no-forgetting"], "--memory expire_span, --memory adaptive_span"),
        (["--agent", "impala", "--update_epochs", "4"], "--agent ppo"),
    ],
)
def test_a_flag_of_another_kind_or_agent_is_known(arguments, owners):
    flag = next(argument for argument in arguments[2:]).split("=")[0].replace("_", "-")
    with pytest.raises(ValueError, match=f"^unknown flag {flag} with --memory .*: {owners} would have it$"):
        parse_config(arguments)
