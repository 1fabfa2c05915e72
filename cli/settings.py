"""The settings of a training: its flags, those of the chosen memory kind and agent, and what an environment needs beside them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from expire_span_rl import cli
from expire_span_rl.agents import AGENTS, ForgettingConfig
from expire_span_rl.envs import training_kwargs
from expire_span_rl.policies import KINDS, core_config

_PORTAL = {
    "shifted_heads": 2, "action_gain": 5.0, "observation_prediction_coef": 0.3, "final_ent_coef": 0.001,
    "span_dropout": True, "use_margin": 3.0,
}  # fmt: skip
TUNED: dict[tuple[str, str], dict[str, Any]] = {
    ("Portal-v0", "ppo"): {**_PORTAL, "learning_rate": 1.5e-3},
    ("Portal-v0", "impala"): {**_PORTAL, "learning_rate": 1e-3},
}
"""Defaults that an environment and an agent need instead of the flags' own (docs/results.md says what they are worth)."""


@dataclass(frozen=True)
class RunConfig:
    env: str = "Corridor-v0"
    """Environment id: Corridor-v0, Portal-v0, Switch-v0 or any Gymnasium id with Discrete actions."""
    env_kwargs: str = "{}"
    """Keyword arguments of the environment, a JSON object."""
    wrap: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Makes long trajectories of the episodes: stretch=10, episodes=4, fresh_episodes=4, occlude=5-9/20."""
    memory: str = "expire_span"
    """Memory kind."""
    agent: str = "ppo"
    """Learning algorithm."""
    total_timesteps: int = 3_000_000
    """Environment steps, rounded up to whole rollouts."""
    num_envs: int = 128
    """Environments stepped together."""
    seed: int = 1
    """Seed of weights, environments, actions and minibatches."""
    run_dir: str = ""
    """Where the run is written. Default: runs/<env>-<memory>-<agent>-<seed>."""
    overwrite: bool = False
    """Replace a run directory that exists."""
    resume: str = ""
    """Continue the run in this directory from its checkpoint; its config is used, other flags are refused."""
    checkpoint_every: int = 500_000
    """Environment steps between two checkpoints."""
    torch_threads: int = 2
    """CPU threads of PyTorch."""
    device: str = "auto"
    """cpu, cuda, or auto: a GPU where there is one."""
    memory_image_every: int = 50
    """Updates between two pictures, in TensorBoard, of what the policy remembers in an evaluation episode. 0: none."""
    progress_bar: bool = True
    """Show progress on stderr."""

    def __post_init__(self):
        cli.check_at_least(self, total_timesteps=1, num_envs=1, checkpoint_every=1, torch_threads=1)
        cli.check_at_least(self, memory_image_every=0)
        cli.check_seed(self)


def parse_config(arguments: list[str]) -> dict[str, Any]:
    """All settings of a run, flat. The flags are those of the chosen memory kind and agent, and of what all runs share;
    beside them `training_kwargs`, what training sets differently from the environment's own defaults. Raises UsageError,
    one line."""
    config = _own_config(arguments)
    return {**config, "training_kwargs": training_kwargs(config["env"])}


def _own_config(arguments: list[str]) -> dict[str, Any]:
    """The flags alone."""
    given = {name: cli.value_of(name, arguments) for name in ("memory", "agent", "env")}
    memory, agent, env = (getattr(RunConfig, name) if value is None else value for name, value in given.items())
    cli.choice("--memory", memory, KINDS)
    cli.choice("--agent", agent, AGENTS)
    tuned = TUNED.get((env, agent))
    if AGENTS.describe(agent).network is not None:
        return _baseline_config(agent, arguments, tuned)
    flags = cli.joined(*_parts(memory, agent), defaults=tuned)
    depends = f"--memory ({', '.join(KINDS)}) and --agent ({', '.join(AGENTS)}), their defaults on --env too"
    description = f"Trains a policy with {memory} memory by {agent} on {env}. Flags depend on {depends}."
    return dataclasses.asdict(cli.parse(flags, arguments, description))


def flag_names(memory: str | None = None) -> list[str]:
    """Every flag that some agent has with this memory kind, with any kind if None."""
    kinds = KINDS if memory is None else [memory]
    parts = dict.fromkeys(part for kind in kinds for agent in AGENTS for part in _parts(kind, agent))
    return list(dict.fromkeys(name for part in parts for name in cli.flag_names(part)))


def _parts(memory: str, agent: str) -> tuple[type, ...]:
    """The configs whose settings are a run's."""
    algorithm, kind = AGENTS.describe(agent), KINDS.describe(memory)
    if algorithm.network is not None:
        return (RunConfig, algorithm.Config)
    pressure = [ForgettingConfig] if kind.presses else []
    return (RunConfig, algorithm.Config, *pressure, kind.Config, core_config(memory))


def _baseline_config(agent: str, arguments: list[str], tuned: Mapping[str, Any] | None) -> dict[str, Any]:
    """`_own_config` for an agent that brings its own policy, whose name stands for the memory kind."""
    network = AGENTS.describe(agent).network
    if (memory := cli.value_of("memory", arguments)) is not None:
        raise cli.UsageError(f"--memory: expected none, since {agent} brings its own policy, {network}, got {memory!r}")
    flags = cli.joined(*_parts(RunConfig.memory, agent), defaults=tuned)
    return {**dataclasses.asdict(cli.parse(flags, arguments, f"Trains the baseline {agent}.")), "memory": network}


def saved_config(run_dir: Path) -> dict[str, Any]:
    """The settings with which the run in that directory was made. Raises UsageError, one line, if it has none."""
    try:
        config = json.loads((run_dir / "config.json").read_text())
    except OSError:
        raise cli.UsageError(f"{run_dir}: expected a run directory with config.json, found none there") from None
    except ValueError:
        raise cli.UsageError(
            f"{run_dir / 'config.json'}: expected the settings of a run, could not read them"
        ) from None
    if not isinstance(config, dict) or not {"env", "memory", "agent"} <= config.keys():
        raise cli.UsageError(f"{run_dir / 'config.json'}: expected the settings of a run, got something else")
    return config
