"""The settings of a training: which there are, their defaults, and checks of their values. The same from the command
line and from Python.

On the outside settings are flat: flags, keywords of `es.PPO`, config.json. Inside they are one `Settings` object, with
the settings of each component in a dataclass of its own. Nothing here imports torch, so that a command line answers at
once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import UseAppendAction, arg

from expire_span_rl.agents import AGENTS, TARGETS, ForgettingConfig
from expire_span_rl.checks import (
    MOST_THREADS,
    check_above_zero,
    check_at_least,
    check_at_most,
    check_seed,
    check_wraps,
    choice,
    nearest,
    quoted,
)
from expire_span_rl.policies import KINDS
from expire_span_rl.policies.settings import FLOAT32, PRECISIONS, check_used
from expire_span_rl.setting_values import LONGEST_SHOWN, converted, field_types

ENCODERS = ("auto", "cells", "plain")
VECTORIZATIONS = ("auto", "sync", "async")
SNAPSHOTS = ("thinned", "all")
MOST_EPISODES = 10**6  # of an evaluation on the way
MAX_STEPS = 10_000  # the longest episode that is evaluated or shown, unless the user allows longer ones

_PLACES = {"novelty_coef": 0.0, "position_dropout": 0.1, "uniform_heads": 0.0, "age_values": 0.0}
_PORTAL = {
    **_PLACES, "shifted_heads": 2, "action_gain": 5.0, "observation_prediction_coef": 0.3, "final_ent_coef": 0.001,
    "sharpen_beyond": 50,
}  # fmt: skip
_SWITCH = {**_PLACES, "newest_first": 4.0}
_SEQUENCE = {
    "sharpness": 2.0,
    "num_positions": 16,
    "age_gain": 0.0,
    "age_values": 0.0,
    "uniform_heads": 0.0,
}  # with which these tasks were measured
_COPY = {**_SEQUENCE, "use_lift": 32.0, "use_coef": 5.0, "num_envs": 64, "total_timesteps": 1_000_000}
_COLLISION = {**_SEQUENCE, "num_envs": 64, "total_timesteps": 4_000_000}
_TEXT = {
    **_SEQUENCE, "num_layers": 4, "width": 128, "shifted_heads": 2, "initial_limit": 128, "max_span": 512,
    "loss_tolerance": 0.01, "num_envs": 16, "num_steps": 128, "num_minibatches": 2, "total_timesteps": 4_000_000,
}  # fmt: skip
TUNED: dict[tuple[str, str], dict[str, Any]] = {
    ("Portal-v0", "ppo"): {**_PORTAL, "learning_rate": 1.5e-3},
    ("Portal-v0", "impala"): {**_PORTAL, "learning_rate": 1e-3},
    ("Switch-v0", "ppo"): {"newest_first": 4.0},
    ("Switch-v0", "impala"): _SWITCH,
    ("TMaze-v0", "ppo"): {"gating": True},
    ("TMaze-v0", "impala"): {"gating": True},
    ("Copy-v0", "supervised"): _COPY,
    ("Collision-v0", "supervised"): _COLLISION,
    ("Text-v0", "supervised"): _TEXT,
}
"""Defaults that an environment and an agent need instead of the settings' own (docs/results.md says what they are
worth)."""


PRESETS: dict[str, dict[str, Any]] = {
    "none": {},
    "few_memories": {"ramp": 0, "use_coef": 30.0, "use_enough": 0.1, "attention_cost": 0.3, "min_use_coef": 1.3},
}
"""By the name of --preset: defaults that go together. What a user sets is left as it is."""


LEAST_UPDATES = 100
"""A training without --num-envs has at least so many updates, if LEAST_ENVS environments are few enough for that. In
128 environments CartPole-v1 had 19 updates within 150,000 steps, and no seed came to a return of 475. In 32, three of
five seeds did (docs/results/other_tasks.md)."""
LEAST_ENVS = 16
"""The fewest environments that the default of --num-envs may be."""


def tuned(env: str, agent: str, preset: str = "none") -> dict[str, Any]:
    """The defaults that differ from the settings' own in an environment, for an agent, with a preset. Raises
    ValueError, one line, for an unknown preset."""
    return {**TUNED.get((env, agent), {}), **PRESETS[choice("--preset", preset, PRESETS)]}


def default_num_envs(total_timesteps: int, num_steps: int) -> int:
    """The default of --num-envs: RunConfig's, halved until rollouts of `num_steps` make LEAST_UPDATES updates, but no
    fewer than LEAST_ENVS."""
    number = RunConfig.num_envs
    while number > LEAST_ENVS and number * num_steps * LEAST_UPDATES > total_timesteps:
        number //= 2
    return number


@dataclass(frozen=True)
class RunConfig:
    """The settings that all runs share."""

    env: str = "Corridor-v0"
    """Environment id: Corridor-v0, Portal-v0, Switch-v0, TMaze-v0, Copy-v0, Collision-v0, Text-v0 or any that Gymnasium
    knows. package:Id and path/to/file.py:Id import that package or file first."""
    imports: Annotated[UseAppendAction[tuple[str, ...]], arg(name="import")] = ()
    """Python module, or path of a file, to import first since it registers environments or memory kinds."""
    env_kwargs: str = "{}"
    """Keyword arguments of the environment, as a JSON object."""
    wrap: UseAppendAction[tuple[str, ...]] = ()
    """Makes episodes longer (stretch=10, episodes=4 or fresh_episodes=4), or hides steps of them (occlude=5-9/20) or
    numbers of the observation (hide=1,3)."""
    memory: str = "expire_span"
    """What the agent remembers with."""
    agent: str = "ppo"
    """Learning algorithm."""
    preset: str = "none"
    """Other defaults for some flags, together. few_memories: hold what episodes of the training need, and little else
    (--ramp 0 --use-coef 30 --use-enough 0.1 --attention-cost 0.3 --min-use-coef 1.3)."""
    total_timesteps: int = 3_000_000
    """Environment steps of the training, rounded up to whole rollouts."""
    num_envs: int = 128
    """Environments that are stepped together. Default: 128, or 64, 32 or 16 where a short training
    would otherwise have fewer than 100 updates."""
    seed: int = 1
    """Seed of everything random: weights, environments, actions and minibatches."""
    run_dir: str = ""
    """Folder of the run. Default: runs/<env>-<memory>-<agent>-<seed>."""
    overwrite: bool = False
    """Replace the run directory if it exists."""
    resume: str = ""
    """Continue the run in this folder from its newest whole checkpoint, with its own settings. Beside it only the flags
    that --resume FOLDER --help lists."""
    encoder: str = "auto"
    """How images are read. cells: uint8 images of three channels as MiniGrid's cells. auto: as cells only if the
    environment says so, else as pictures or numbers. plain: never as cells, except those of the toolkit's
    own tasks, whose spaces say so."""
    normalize_observations: bool = True
    """Subtract from float observations their running mean, and divide by their running standard deviation."""
    normalize_cells: bool = True
    """Take from each possible content of a MiniGrid cell how often it was seen there, and divide by its standard
    deviation. What is always the same then counts for nothing, and the one rare object among a hundred walls for
    much."""
    impute_cells: bool = True
    """Read a MiniGrid cell that shows what training never showed at its place as what is usual there. Otherwise it
    reads as noise, since nothing was learned about it."""
    vectorization: str = "auto"
    """How environments are stepped. auto: as a batch where the environment can be, else one after the other. sync: one
    after the other. async: each in a process of its own, not with --wrap."""
    env_timeout: float = 0.0
    """Seconds that a step or a reset of an environment may take before it counts as failed. Native code that hangs is
    only ended in processes of its own (--vectorization async, --num-actors). 0: any time."""
    checkpoint_every: int = 500_000
    """Environment steps between two checkpoints, each with a snapshot of the policy."""
    checkpoint_minutes: float = 5.0
    """Minutes after which there is a checkpoint however few steps there were, without a snapshot."""
    keep_snapshots: str = "thinned"
    """Which snapshots of the policy stay in checkpoints/. thinned: the last five, and before them one in each range of
    steps that is twice as long as the range after it."""
    eval_every: int = 0
    """Environment steps between two evaluations on the way: episodes that no training and no other evaluation has, with
    the environment's own settings and the most likely actions. The run then keeps a policy that met the success target
    both in training and in an evaluation, if any did, else the last. 0: none."""
    n_eval_episodes: int = 100
    """Episodes of an evaluation on the way."""
    precision: str = FLOAT32
    """Type of the products with weights in encoder and core. bf16: bfloat16, for GPUs that compute it faster. Weights,
    memory, attention, losses and the state of GRU and LSTM stay in float32, and a saved policy acts in float32."""
    torch_threads: int = 1
    """CPU threads that PyTorch uses."""
    device: str = "auto"
    """Where the policy runs: cpu, cuda, or auto (the faster one, which is measured if there is a GPU)."""
    memory_image_every: int = 50
    """Updates between two pictures in TensorBoard of what the policy remembers in an episode. 0: none."""
    progress_bar: bool = True
    """Show the progress on stderr."""
    quiet: bool = False
    """Leave out what is said before the training begins of its size, memory and files, and of its speed."""

    def __post_init__(self):
        check_at_least(self, total_timesteps=1, num_envs=1, checkpoint_every=1, torch_threads=1)
        check_at_least(self, eval_every=0, n_eval_episodes=1)
        check_at_most(self, n_eval_episodes=MOST_EPISODES, torch_threads=MOST_THREADS)
        check_at_least(self, memory_image_every=0, env_timeout=0)
        check_above_zero(self, "checkpoint_minutes")
        check_seed(self)
        choice("--preset", self.preset, PRESETS)
        choice("--encoder", self.encoder, ENCODERS)
        choice("--precision", self.precision, PRECISIONS)
        choice("--keep-snapshots", self.keep_snapshots, SNAPSHOTS)
        choice("--vectorization", self.vectorization, VECTORIZATIONS)
        if self.wrap and self.vectorization == "async":
            raise ValueError("--vectorization: expected auto or sync with --wrap, got async")


def parts_of(memory: str, agent: str) -> dict[str, type]:
    """The dataclasses whose fields are the settings of such a run, by the part of `Settings` that they are. Raises
    ValueError, one line, for an unknown memory kind or agent."""
    entry = AGENTS[choice("--agent", agent, AGENTS)]
    parts: dict[str, type] = {"run": RunConfig, "agent": entry.Config}
    if not entry.takes_memory_kind:
        return parts
    kind = KINDS[choice("--memory", memory, KINDS)]
    if kind.supports_forgetting:
        parts["forgetting"] = ForgettingConfig
    return {**parts, "memory": kind.Config, "network": kind.CoreConfig}


def run_parts(memory: str, agent: str) -> tuple[type, ...]:
    """The dataclasses of `parts_of`."""
    return tuple(parts_of(memory, agent).values())


def part(config: type, flat: Mapping[str, Any]) -> Any:
    """A component's own config from flat settings; what they lack has the field's default. Raises ValueError, one
    line, for a value out of its range."""
    return config(**{field.name: flat[field.name] for field in dataclasses.fields(config) if field.name in flat})


@dataclass(frozen=True)
class Settings:
    """All settings of a run, checked. The parts are those of `parts_of`; a run without a part has None there.

    Raises ValueError, one line, for values that do not go together.
    """

    run: RunConfig
    """What all runs share: environment, names of memory kind and agent, seed, files, machine."""
    agent: Any
    """The agent's `Config`: how the policy learns."""
    forgetting: ForgettingConfig | None = None
    """Forgetting; None for a memory that cannot be made smaller."""
    memory: Any = None
    """The memory kind's `Config`; None for an agent that brings its own policy."""
    network: Any = None
    """The `CoreConfig` of the memory kind; None for an agent that brings its own policy."""
    training_kwargs: Mapping[str, Any] | None = None
    """Keyword arguments of the environment that training sets; None: those of today (old runs have none)."""
    folder: str = ""
    """Folder from which files of environments and imports are named, that in which a resumed run was started; "": the
    current one."""

    def __post_init__(self):
        budget = 0 if self.forgetting is None else self.forgetting.memory_budget
        ramp = getattr(self.memory, "ramp", 0)
        if 0 < budget <= ramp:
            raise ValueError(
                f"--memory-budget: expected more than --ramp ({ramp}), below which live memory cannot fall, "
                f"got {budget}"
            )
        tolerance = 0 if self.forgetting is None else self.forgetting.loss_tolerance
        if tolerance and AGENTS[self.run.agent].learns_from != TARGETS:
            raise ValueError(
                f"--loss-tolerance: expected 0 with {self.run.agent}, which learns from rewards, got {tolerance}"
            )

    @classmethod
    def from_flat(cls, flat: Mapping[str, Any]) -> Settings:
        """The settings in a flat mapping, as `flat` gives it. What is missing has its field's default, and names that
        are no settings of such a run are left out. Raises ValueError, one line."""
        run = part(RunConfig, flat)
        parts = {name: part(config, flat) for name, config in parts_of(run.memory, run.agent).items()}
        return cls(**parts, training_kwargs=flat.get("training_kwargs"), folder=folder_of(flat))

    def flat(self) -> dict[str, Any]:
        """All settings by name, JSON-able: what config.json has."""
        parts = [self.run, self.agent, self.forgetting, self.memory, self.network]
        flat = {
            field.name: getattr(config, field.name)
            for config in parts
            if config is not None
            for field in dataclasses.fields(config)
        }
        flat |= {} if self.training_kwargs is None else {"training_kwargs": dict(self.training_kwargs)}
        return {**flat, "folder": self.folder} if self.folder else flat

    def importable_names(self) -> tuple[str, tuple[str, ...]]:
        """The names of the environment and of the imports as they can be imported in any folder."""
        return whole_path(self.run.env, self.folder), tuple(whole_path(name, self.folder) for name in self.run.imports)

    def replace(self, **changes: Any) -> Settings:
        """The same settings but for these, by name. Raises ValueError, one line, for a name or a value that will not
        do."""
        settings = Settings.from_flat({**self.flat(), **changes})
        unknown = changes.keys() - settings.flat().keys() - {"training_kwargs"}
        for name in unknown:
            raise _unknown_setting(name, settings.flat(), self.run.memory, self.run.agent)
        return settings


def folder_of(flat: Mapping[str, Any]) -> str:
    """The folder that a saved run was started in; "" for a run from before November 2026, whose settings lack it."""
    folder = flat.get("folder")
    return folder if isinstance(folder, str) else ""


def whole_path(name: str, folder: str) -> str:
    """The name of an environment or of an import, with the path from `folder` on if it names a Python file."""
    path, colon, id = name.rpartition(":") if ".py:" in name else (name, "", "")
    return f"{Path(folder) / path}{colon}{id}" if folder and path.endswith(".py") else name


def length_flag(settings: Settings) -> tuple[str, int]:
    """The flag that sets how long a run trains, and the environment steps of one of its units."""
    if AGENTS[settings.run.agent].learns_from == TARGETS:
        return "--total-blocks", settings.agent.num_steps * settings.run.num_envs
    return "--total-timesteps", 1


def memory_name(memory: str, agent: str) -> str:
    """The name of the policy's memory: the kind, or the network of an agent that brings its own policy. Raises
    ValueError, one line, for an unknown kind or agent, and for a kind where the agent takes none."""
    entry = AGENTS[choice("--agent", agent, AGENTS)]
    names = entry.memory_names(KINDS)
    if entry.takes_memory_kind:
        return choice("--memory", memory, names)
    if memory in (RunConfig.memory, *names):
        return names[0]
    raise no_memory_kind(memory, agent)


def no_memory_kind(memory: str, agent: str) -> ValueError:
    """The error for a memory kind that was given to an agent that brings its own policy."""
    (network,) = AGENTS[agent].memory_names(KINDS)
    return ValueError(f"--memory: leave it out, since {agent} brings its own policy, {network}; got {memory!r}")


def defaults(memory: str, env: str, agent: str, preset: str = RunConfig.preset) -> dict[str, Any]:
    """The default of every setting of such a run, by name. Raises ValueError, one line, for a preset of settings that
    such a run lacks."""
    values = {field.name: field.default for config in run_parts(memory, agent) for field in dataclasses.fields(config)}
    values |= {name: value for name, value in tuned(env, agent, preset).items() if name in values}
    if not PRESETS[preset].keys() <= values.keys():
        raise _wrong_preset(preset, memory, agent)
    return {**values, "memory": memory_name(memory, agent), "env": env, "agent": agent, "preset": preset}


def resolve(
    memory: str = RunConfig.memory,
    env: str = RunConfig.env,
    agent: str = RunConfig.agent,
    preset: str = RunConfig.preset,
    **settings: Any,
) -> Settings:
    """All settings of a run: those given, and the defaults of this memory kind, environment, agent and preset.

    memory: the kind; an agent that brings its own policy takes none but the name of its network.
    settings: as the flags of train_rl.py, with underscores; `env_kwargs` may be a dict.
    Raises ValueError, one line, for an unknown setting, with the nearest one, and for a value of a wrong type or range.
    """
    memory_name(memory, agent)
    usual = defaults(memory, env, agent, preset)
    for name in settings.keys() - usual.keys():
        raise _unknown_setting(name, usual, memory, agent)
    types = {name: kind for config in run_parts(memory, agent) for name, kind in field_types(config).items()}
    changes = {name: converted(name, value, types[name]) for name, value in settings.items()}
    resolved = Settings.from_flat({**usual, **changes})
    check_wraps(resolved.run)
    check_used(resolved.memory)
    if "num_envs" not in changes and usual["num_envs"] == RunConfig.num_envs:
        number = default_num_envs(resolved.run.total_timesteps, resolved.agent.num_steps)
        resolved = resolved.replace(num_envs=number)
    from expire_span_rl.envs import training_kwargs  # Gymnasium takes a while, and a misspelled flag needs none

    return dataclasses.replace(resolved, training_kwargs=training_kwargs(env))


def _wrong_preset(preset: str, memory: str, agent: str) -> ValueError:
    """The error for a preset of settings that a run with this memory kind and agent lacks."""

    def has_all(kind: str, entry: str) -> bool:
        return all(_has(name, kind, entry) for name in PRESETS[preset])

    kinds = [kind for kind in KINDS if has_all(kind, agent)]
    agents = [entry for entry in AGENTS if has_all(RunConfig.memory, entry)]
    expected, got = (f"--memory {' or '.join(kinds)}", memory) if kinds else (f"--agent {' or '.join(agents)}", agent)
    return ValueError(f"--preset {preset}: expected {expected} with it, got {got}")


def _unknown_setting(name: str, names: Mapping[str, Any], memory: str, agent: str) -> ValueError:
    """The error for an unknown setting, with the nearest of `names`, or with the kinds or agents that have it."""
    owners = [owner for _, owner in owners_of(name, memory, agent)]
    if owners:
        return ValueError(
            f"unknown setting {quoted(name, LONGEST_SHOWN)} of {memory} memory and {agent}: "
            f"{', '.join(owners)} would have it"
        )
    near = nearest(name, names)
    hint = f"did you mean {near!r}?" if near else "expected one of the flags of train_rl.py (--help), with underscores"
    return ValueError(f"unknown setting {quoted(name, LONGEST_SHOWN)}: {hint}")


def owners_of(name: str, memory: str, agent: str) -> list[tuple[str, str]]:
    """Who has a setting that a run with this memory kind and agent lacks: ("memory", a kind) for every kind with this
    agent, else ("agent", an agent) for every agent with this kind."""
    kinds = [("memory", kind) for kind in KINDS if _has(name, kind, agent)]
    return kinds or [("agent", entry) for entry in AGENTS if _has(name, memory, entry)]


def _has(name: str, memory: str, agent: str) -> bool:
    """Whether a run with this memory kind and agent has a setting of that name."""
    return memory in KINDS and any(name in field_types(config) for config in run_parts(memory, agent))
