"""The flags of train_rl.py: those of the chosen memory kind and agent, and of what all runs share."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from expire_span_rl import cli
from expire_span_rl.agents import AGENTS
from expire_span_rl.checks import quoted, shown
from expire_span_rl.cli.fields import flags_of, plain_dataclass
from expire_span_rl.policies import KINDS, NETWORKS
from expire_span_rl.saved_settings import complete
from expire_span_rl.settings import (
    ENCODERS,
    PRESETS,
    SNAPSHOTS,
    VECTORIZATIONS,
    RunConfig,
    Settings,
    folder_of,
    no_memory_kind,
    owners_of,
    parts_of,
    resolve,
    run_parts,
    tuned,
    whole_path,
)

_CHOICES = {
    "memory": KINDS, "agent": AGENTS, "preset": PRESETS, "encoder": ENCODERS, "vectorization": VECTORIZATIONS,
    "keep_snapshots": SNAPSHOTS,
}  # fmt: skip
_TITLES = {"agent": "learning", "forgetting": "forgetting", "memory": "memory", "network": "network"}
"""By part of `Settings`: its title in --help. The run's own flags are placed by name (`cli.help.GROUPS`)."""
RESUMABLE = ("device", "torch_threads", "num_actors", "progress_bar", "quiet", "total_timesteps", "learning_rate")
"""Settings that may be other ones when a run is resumed. All but the last two are of this start only."""
_DESCRIPTION = """
Trains an agent that remembers. The run directory gets the trained policy (policy.safetensors), checkpoints, and logs
for TensorBoard. evaluate.py and visualize.py take the run directory as it is.

Which flags there are, and their defaults, depends on --memory, --agent, --env and --preset. These are the flags of
{chosen}.
"""
_EXAMPLES = (
    "--total-timesteps 1e6",
    "--env Switch-v0 --memory gru --seed 2",
    "--env my_envs.py:Recall-v0 --memory-budget 20 --run-dir runs/recall",
)


def parse_config(arguments: list[str]) -> Settings:
    """All settings of a run. Raises ValueError, one line."""
    values = {name: cli.value_of(name, arguments) for name in ("memory", "agent", "env", "preset")}
    memory, agent, env, preset = (
        getattr(RunConfig, name) if value is None else value for name, value in values.items()
    )
    import_named(arguments)
    cli.choice("--memory", memory, KINDS)
    takes_memory_kind = AGENTS[cli.choice("--agent", agent, AGENTS)].takes_memory_kind
    if values["memory"] is not None and not takes_memory_kind:
        raise no_memory_kind(memory, agent)
    # A completion script is for every memory kind and agent; all else is for the chosen ones.
    completes = cli.value_of("print-completion", arguments) is not None
    parts = _every_part() if completes else run_parts(memory, agent)
    _check_owners(arguments, memory, agent)
    flags = cli.joined(*parts, defaults=tuned(env, agent, preset), groups=help_groups(), choices=_CHOICES)
    chosen = f"--agent {agent} --env {env}" + (f" --preset {preset}" if values["preset"] is not None else "")
    if takes_memory_kind:
        chosen = f"--memory {memory} {chosen}"
    settings = cli.parse(flags, arguments, _DESCRIPTION.format(chosen=chosen), _EXAMPLES)
    given = dataclasses.asdict(settings)
    if cli.value_of("num-envs", arguments) is None:
        del given["num_envs"]  # its default depends on other settings
    return resolve(**given)


def import_named(arguments: Sequence[str]) -> None:
    """Imports what --import names, before flags are read: it may register a memory kind, which has its own flags."""
    if modules := cli.values_of("import", arguments):
        from expire_span_rl.envs import import_modules  # Gymnasium takes a while, and --help needs none

        import_modules(modules)


def _check_owners(arguments: Iterable[str], memory: str, agent: str) -> None:
    """Raises UsageError, one line, for a flag that only other memory kinds or agents have."""
    chosen = {name for part in run_parts(memory, agent) for name in cli.flag_names(part)}
    selection = f"--memory {memory} --agent {agent}"
    refuse_others_flags(arguments, chosen, flag_names(), selection, lambda name: owners_of(name, memory, agent))


def refuse_others_flags(
    arguments: Iterable[str],
    chosen: Collection[str],
    known: Collection[str],
    selection: str,
    owners_of: Callable[[str], Iterable[tuple[str, str]]],
) -> None:
    """Raises UsageError, one line, for a flag that is not among the `chosen`, but is known.

    selection: the flags that chose. owners_of: by a field's name, the flags that would bring it: their names and
    values."""
    for flag in (cli.flag_of(argument) for argument in arguments if argument.startswith("--")):
        if flag not in chosen and flag in known:
            name = flag.removeprefix("--").removeprefix("no-").replace("-", "_")
            owners = ", ".join(f"--{part} {owner}" for part, owner in owners_of(name))
            where = f": {owners} would have it" if owners else ""
            raise cli.UsageError(f"unknown flag {flag} with {selection}{where}")


def _every_part(kinds: Iterable[str] = KINDS) -> list[type]:
    """The dataclasses whose fields are settings of some run with one of these memory kinds."""
    return list(dict.fromkeys(part for kind in kinds for agent in AGENTS for part in run_parts(kind, agent)))


def help_groups() -> dict[type, str]:
    """By dataclass: the title under which --help lists its flags."""
    runs = [parts_of(kind, agent) for kind in KINDS for agent in AGENTS]
    return {config: _TITLES[name] for parts in runs for name, config in parts.items() if name in _TITLES}


def flag_names(memory: str | None = None) -> list[str]:
    """Every flag that some agent has with this memory kind, with any kind if None."""
    parts = _every_part(KINDS if memory is None else [memory])
    return list(dict.fromkeys(name for part in parts for name in cli.flag_names(part)))


def saved_config(run_dir: Path) -> dict[str, Any]:
    """The flat settings with which the run in that directory was made. Raises UsageError, one line, if it has none."""
    file = run_dir / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except OSError:
        raise cli.UsageError(f"{shown(run_dir)}: expected a run directory with config.json, found none there") from None
    except (ValueError, RecursionError):
        raise cli.UsageError(f"{file}: expected the settings of a run, could not read them") from None
    if not isinstance(config, dict) or not any(name in config for name in ("env", "memory", "agent")):
        raise cli.UsageError(f"{file}: expected the settings of a run, got something else")
    for name in ("env", "memory", "agent"):
        if not isinstance(config.get(name), str):
            got = f"got {shown(repr(config[name]), 60)}" if name in config else "which is missing"
            raise cli.UsageError(f"{file}: expected {name!r} among the settings of the run, {got}"[:500])
    imports = config.get("imports", [])
    if not isinstance(imports, list) or not all(isinstance(module, str) for module in imports):
        raise cli.UsageError(f"{file}: imports: expected a list of strings")
    return config


def resumed_config(resume: str, arguments: list[str], in_blocks: bool = False) -> Settings:
    """All settings of the run in the folder `resume`, with what the command line changes of them.

    in_blocks: the run takes --total-blocks instead of --total-timesteps, which the caller has read from the arguments.
    Raises ValueError, one line.
    """
    fields = tuple(field for field in RESUMABLE if not (in_blocks and field == "total_timesteps"))
    _check_resumable(arguments, fields, ["--total-blocks"] if in_blocks else [])
    folder = Path(resume)
    config = saved_config(folder)
    from expire_span_rl.envs import import_modules  # Gymnasium takes a while, and --help of a new run needs none

    # The user's own modules, from the start of the run. Files are named from the folder that it was started in.
    import_modules(whole_path(name, folder_of(config)) for name in config.get("imports", ()))
    cli.choice("--memory", config["memory"], [*KINDS, *NETWORKS])
    config = complete(config, str(folder / "config.json"))
    flags = cli.joined(*run_parts(config["memory"], config["agent"]), defaults=config)
    offered = [flag for flag in flags_of(flags) if flag.field in (*fields, "resume")]
    description = f"Continues the run in {resume}. Its settings are its own, but for these."
    if in_blocks:
        description += " --total-blocks NUMBER trains on, up to this number of blocks in all (0: as many as before)."
    changes = dataclasses.asdict(cli.parse(plain_dataclass(offered), arguments, description, (f"--resume {resume}",)))
    return Settings.from_flat({**config, **changes, "resume": resume, "run_dir": resume, "overwrite": False})


def _check_resumable(arguments: list[str], fields: Sequence[str], flags: Sequence[str]) -> None:
    """Raises UsageError, one line, for a flag that a resumed run does not take. fields: the settings that it takes;
    flags: flags that it takes besides."""
    allowed = [*(name for field in fields for name in _names(field)), *flags]
    always = ["--resume", "--help", "--version", "--print-completion"]
    for argument in arguments:
        if argument.startswith("--") and cli.flag_of(argument) not in (*allowed, *always):
            cli.check_flag(argument, flag_names())
            raise cli.UsageError(
                f"--resume: expected no other flags than {', '.join(allowed)}, since the run's own settings are used, "
                f"got {quoted(argument, 60)}"
            )


def _names(field: str) -> list[str]:
    """The flags of a field: a switch has two."""
    name = f"--{field.replace('_', '-')}"
    return [name, f"--no-{name[2:]}"] if field in ("progress_bar", "quiet") else [name]
