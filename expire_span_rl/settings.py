"""The settings of a training: which there are, their defaults, and checks of their values. The same from the command
line and from Python.

Nothing here imports torch, so that a command line answers at once.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, cast, get_args, get_origin, get_type_hints

from tyro.conf import UseAppendAction, arg

from expire_span_rl.agents import AGENTS, ForgettingConfig
from expire_span_rl.checks import (
    check_above_zero,
    check_at_least,
    check_at_most,
    check_seed,
    choice,
    flag,
    is_number,
    nearest,
    quoted,
    shown,
)
from expire_span_rl.policies import KINDS, core_config

ENCODERS = ("auto", "cells")
VECTORIZATIONS = ("auto", "sync", "async")
SNAPSHOTS = ("thinned", "all")
LARGEST_FLOAT = 10**308
LARGEST_INT = 2**63 - 1
MOST = 60  # characters of a value or a name that a message repeats
MOST_EPISODES = 10**6  # of an evaluation on the way
MAX_STEPS = 10_000  # the longest episode that is evaluated or shown, unless the user allows longer ones

_PORTAL = {
    "shifted_heads": 2, "action_gain": 5.0, "observation_prediction_coef": 0.3, "final_ent_coef": 0.001,
}  # fmt: skip
_COPY = {"sharpness": 2.0, "use_lift": 32.0, "use_coef": 5.0, "num_envs": 64, "total_timesteps": 1_000_000}
_COLLISION = {"sharpness": 2.0, "num_envs": 64, "total_timesteps": 4_000_000}
_TEXT = {
    "num_layers": 4, "width": 128, "shifted_heads": 2, "sharpness": 2.0, "initial_limit": 128, "max_span": 512,
    "loss_tolerance": 0.01, "num_envs": 16, "num_steps": 128, "num_minibatches": 2, "total_timesteps": 4_000_000,
}  # fmt: skip
TUNED: dict[tuple[str, str], dict[str, Any]] = {
    ("Portal-v0", "ppo"): {**_PORTAL, "learning_rate": 1.5e-3},
    ("Portal-v0", "impala"): {**_PORTAL, "learning_rate": 1e-3},
    ("TMaze-v0", "ppo"): {"gating": True},
    ("TMaze-v0", "impala"): {"gating": True},
    ("Copy-v0", "supervised"): _COPY,
    ("Collision-v0", "supervised"): _COLLISION,
    ("Text-v0", "supervised"): _TEXT,
}
"""Defaults that an environment and an agent need instead of the settings' own (docs/results.md says what they are
worth)."""
UNSCALED = ("Corridor-v0", "Portal-v0", "Switch-v0")
"""Tasks of ours that were measured without the defaults of all others (docs/results.md)."""
OTHERS: dict[str, Any] = {"normalize_rewards": True, "amsgrad": False}
"""Defaults where rewards may have any scale."""


def tuned(env: str, agent: str) -> dict[str, Any]:
    """The defaults that differ from the settings' own in an environment, for an agent."""
    return {**({} if env in UNSCALED else OTHERS), **TUNED.get((env, agent), {})}


@dataclass(frozen=True)
class RunConfig:
    env: str = "Corridor-v0"
    """Environment id: Corridor-v0, Portal-v0, Switch-v0, TMaze-v0, Copy-v0, Collision-v0, Text-v0 or any that Gymnasium knows.
    package:Id and path/to/file.py:Id import that package or file first."""
    imports: Annotated[UseAppendAction[tuple[str, ...]], arg(name="import")] = ()
    """Python module, or path of a file, to import first since it registers environments."""
    env_kwargs: str = "{}"
    """Keyword arguments of the environment, as a JSON object."""
    wrap: UseAppendAction[tuple[str, ...]] = ()
    """Makes the episodes longer: stretch=10, episodes=4, fresh_episodes=4 or occlude=5-9/20."""
    memory: str = "expire_span"
    """What the agent remembers with."""
    agent: str = "ppo"
    """Learning algorithm."""
    total_timesteps: int = 3_000_000
    """Environment steps of the training, rounded up to whole rollouts."""
    num_envs: int = 128
    """Environments that are stepped together."""
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
    environment says so, else as pictures."""
    normalize_observations: bool = True
    """Subtract from float observations their running mean, and divide by their running standard deviation."""
    vectorization: str = "auto"
    """How environments are stepped. auto: as a batch where the environment can be, else one after the other. sync: one
    after the other. async: each in a process of its own."""
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
    """Environment steps between two evaluations on the way: fresh episodes with the environment's own settings and the
    most likely actions. The run then keeps a policy that passed one, if any did, else the last. 0: none."""
    n_eval_episodes: int = 100
    """Episodes of an evaluation on the way."""
    torch_threads: int = 1
    """CPU threads that PyTorch uses."""
    device: str = "auto"
    """Where the policy runs: cpu, cuda, or auto (a GPU if there is one)."""
    memory_image_every: int = 50
    """Updates between two pictures in TensorBoard of what the policy remembers in an episode. 0: none."""
    progress_bar: bool = True
    """Show the progress on stderr."""
    quiet: bool = False
    """Leave out what is said before the training begins of its size, memory and files, and of its speed."""

    def __post_init__(self):
        check_at_least(self, total_timesteps=1, num_envs=1, checkpoint_every=1, torch_threads=1)
        check_at_least(self, eval_every=0, n_eval_episodes=1)
        check_at_most(self, n_eval_episodes=MOST_EPISODES)
        check_at_least(self, memory_image_every=0, env_timeout=0)
        check_above_zero(self, "checkpoint_minutes")
        check_seed(self)
        choice("--encoder", self.encoder, ENCODERS)
        choice("--keep-snapshots", self.keep_snapshots, SNAPSHOTS)
        choice("--vectorization", self.vectorization, VECTORIZATIONS)


def run_parts(memory: str, agent: str) -> tuple[type, ...]:
    """The dataclasses whose fields are the settings of a run. Raises ValueError, one line, for an unknown kind or
    agent."""
    algorithm = AGENTS.describe(choice("--agent", agent, AGENTS))
    if algorithm.network is not None:
        return (RunConfig, algorithm.Config)
    kind = KINDS.describe(choice("--memory", memory, KINDS))
    pressure = [ForgettingConfig] if kind.presses else []
    return (RunConfig, algorithm.Config, *pressure, kind.Config, core_config(memory))


def length_flag(config: Mapping[str, Any]) -> tuple[str, int]:
    """The flag that says how long a run trains, and the environment steps of one of its units."""
    if AGENTS.describe(config["agent"]).supervised:
        return "--total-blocks", config["num_steps"] * config["num_envs"]
    return "--total-timesteps", 1


def part(config: type, settings: Mapping[str, Any]) -> Any:
    """A component's own config out of flat settings. Its checks raise ValueError, one line."""
    return config(**{f.name: settings[f.name] for f in dataclasses.fields(config) if f.name in settings})


def defaults(memory: str, env: str, agent: str) -> dict[str, Any]:
    """The default of every setting of such a run, by name."""
    values = {f.name: f.default for own in run_parts(memory, agent) for f in dataclasses.fields(own)}
    network = AGENTS.describe(agent).network
    values |= {name: value for name, value in tuned(env, agent).items() if name in values}
    return {**values, "memory": memory if network is None else network, "env": env, "agent": agent}


def resolve(
    memory: str = RunConfig.memory, env: str = RunConfig.env, agent: str = RunConfig.agent, **settings: Any
) -> dict[str, Any]:
    """All settings of a run, flat and JSON-able: those given, and the defaults of this memory kind, environment and
    agent; beside them `training_kwargs`, what training sets differently from the environment's own defaults.

    memory: the kind; an agent that brings its own policy takes none but the name of its network.
    settings: as the flags of train_rl.py, with underscores; `env_kwargs` may be a dict.
    Raises ValueError, one line, for an unknown setting, with the nearest one, and for a value of a wrong type or range.
    """
    network = AGENTS.describe(choice("--agent", agent, AGENTS)).network
    if network is not None and memory not in (RunConfig.memory, network):
        raise ValueError(f"--memory: expected none, since {agent} brings its own policy, {network}, got {memory!r}")
    parts = run_parts(memory, agent)
    known = defaults(memory, env, agent)
    hints = {name: hint for own in parts for name, hint in field_hints(own).items()}
    for name in settings.keys() - known.keys():
        raise _unknown(name, known, memory, agent)
    given = {name: _checked(name, value, hints[name]) for name, value in settings.items()}
    config = {**known, **given}
    check(config)
    from expire_span_rl.envs import training_kwargs  # Gymnasium takes a while, and a misspelled flag needs none

    return {**config, "training_kwargs": training_kwargs(env)}


def check(config: Mapping[str, Any]) -> None:
    """Raises ValueError, one line, for a value out of its range, or values that do not go together."""
    for own in run_parts(config["memory"], config["agent"]):
        part(own, config)
    budget, ramp = config.get("memory_budget", 0), config.get("ramp", 0)
    if 0 < budget <= ramp:
        raise ValueError(
            f"--memory-budget: expected more than --ramp ({ramp}), below which live memory cannot fall, got {budget}"
        )


LATER: dict[str, Any] = {
    "imports": (), "wrap": (), "encoder": "auto", "normalize_observations": False, "vectorization": "auto",
    "checkpoint_minutes": 5.0, "keep_snapshots": "all", "memory_image_every": 0, "quiet": False,
    "adam_beta2": None, "reward_prediction_coef": None, "observation_prediction_coef": None, "full_evidence": None,
    "span_bias_lr_scale": None, "use_lift": None, "action_gain": None, "shifted_heads": None, "gating": None,
    "num_actors": None, "ray_address": None, "refresh_memory": None, "trace_lambda": None, "env_timeout": None,
    "normalize_rewards": False, "amsgrad": True, "span_model": "sigmoid", "initial_limit": None,
    "eval_every": 0, "n_eval_episodes": None, "layer_norm": False, "sharpness": None, "rest_coef": None,
    "fixed_pressure": None, "loss_tolerance": None, "min_radius": None, "max_radius": None, "max_phase": None,
}  # fmt: skip
"""Settings that there were not from the first run on, with what runs without them did; None: as their default says."""


def complete(config: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The settings of a run that was saved, with those that were added since. source: where they come from. Raises
    ValueError, one line, for one that is missing, or of a wrong type."""
    full = dict(config)
    for own in run_parts(config["memory"], config["agent"]):
        defaults = {f.name: f.default for f in dataclasses.fields(own)}
        for name, hint in field_hints(own).items():
            if name not in config:
                if name not in LATER:
                    raise ValueError(f"{source}: expected {name!r} among the settings of the run, which is missing")
                full[name] = defaults[name] if LATER[name] is None else LATER[name]
                continue
            try:
                full[name] = _checked(name, config[name], hint)
            except ValueError as error:
                raise ValueError(f"{source}: {error}") from None
    training_kwargs = config.get("training_kwargs", {})
    if not isinstance(training_kwargs, dict):
        raise ValueError(f"{source}: training_kwargs: expected an object, got {shown(repr(training_kwargs), MOST)}")  # noqa: TRY004, as for all settings
    return full


@functools.cache
def field_hints(config: type) -> dict[str, Any]:
    """The types of a dataclass's fields by name, without what the command line adds to them."""
    hints = get_type_hints(config)
    return {f.name: hints[f.name] for f in dataclasses.fields(config)}


def _unknown(name: str, known: Mapping[str, Any], memory: str, agent: str) -> ValueError:
    """The error for a setting that there is not, with the nearest there is, or with the kinds or agents that have
    it."""
    having = [kind for kind in KINDS if _has(name, kind, agent)] or [
        other for other in AGENTS if _has(name, memory, other)
    ]
    if having:
        return ValueError(
            f"unknown setting {quoted(name, MOST)} of {memory} memory and {agent}: {', '.join(having)} would have it"
        )
    near = nearest(name, known)
    hint = f"did you mean {near!r}?" if near else "expected one of the flags of train_rl.py (--help), with underscores"
    return ValueError(f"unknown setting {quoted(name, MOST)}: {hint}")


def _has(name: str, memory: str, agent: str) -> bool:
    return memory in KINDS and any(name in field_hints(own) for own in run_parts(memory, agent))


def _checked(name: str, value: Any, hint: Any) -> Any:
    """`value` as the field of that type holds it. Raises ValueError, one line, for one of another type."""
    if isinstance(hint, types.UnionType):
        if value is None and type(None) in get_args(hint):
            return None
        (hint,) = (kind for kind in get_args(hint) if kind is not type(None))
    if name == "env_kwargs" and isinstance(value, Mapping):
        return _json(name, value)
    if get_origin(hint) is tuple:
        if isinstance(value, (list, tuple)) and all(isinstance(one, str) for one in value):
            return tuple(value)
        wanted = "a list of strings"
    elif hint is bool:
        if isinstance(value, bool):
            return value
        wanted = "True or False"
    elif hint in (int, float):
        wanted = "a whole number" if hint is int else "a number"
        number = cast(Any, value)
        fits = not isinstance(number, int) or abs(number) < LARGEST_FLOAT
        if hint is int and is_number(number) and not abs(number) <= LARGEST_INT:
            wanted, fits = "a whole number below 2^63", False
        if is_number(number) and fits and (hint is float or (math.isfinite(number) and number == int(number))):
            return hint(number)
    else:
        wanted = "a string"
        if isinstance(value, str):
            return value
    raise ValueError(f"{flag(name)}: expected {wanted}, got {shown(repr(value), MOST)}")


def _json(name: str, value: Mapping[str, Any]) -> str:
    try:
        return json.dumps(dict(value), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{flag(name)}: expected what JSON can hold, got {shown(repr(value), MOST)} ({error})"
        ) from None
