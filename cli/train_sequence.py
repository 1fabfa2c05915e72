"""The command line of train_sequence.py. See docs/sequence.md, or --help."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from expire_span_rl import cli
from expire_span_rl.agents import AGENTS, TARGETS, ForgettingConfig, SupervisedConfig
from expire_span_rl.checks import quoted, shown
from expire_span_rl.cli.fields import flags_of, plain_dataclass
from expire_span_rl.cli.notices import plain_warnings
from expire_span_rl.cli.settings import import_named, refuse_others_flags, resumed_config, saved_config
from expire_span_rl.policies import KINDS, core_config
from expire_span_rl.sequences import (
    AGENT,
    SPAN_LOSSES,
    TASKS,
    SequenceConfig,
    SpanLossConfig,
    check_span_loss,
    sequence_settings,
)
from expire_span_rl.settings import SNAPSHOTS, RunConfig, Settings, length_flag, run_parts, tuned

_HIDDEN = (
    "agent", "encoder", "env", "env_kwargs", "env_timeout", "fixed_pressure", "impute_cells",
    "normalize_cells", "normalize_observations", "preset", "total_timesteps", "vectorization", "wrap",
)  # fmt: skip
"""Settings without a flag: the task determines them, or they do not apply to supervised learning."""
_IMPORT = {
    "group": "memory",
    "help": "Python module, or path of a file, to import first since it registers memory kinds.",
}
"""What --help says of --import here, where environments of one's own cannot be chosen."""
_CHOICES = {"memory": KINDS, "task": TASKS, "keep_snapshots": SNAPSHOTS, "span_loss": SPAN_LOSSES}
_DESCRIPTION = """
Trains a policy's memory on sequences, by supervision. Long streams are learned in blocks, and memory passes from block
to block. The run directory is like that of train_rl.py, so that evaluate.py and visualize.py can read it.

The flags and their defaults depend on --task and --memory. These are the flags of {selection}.
"""
_EXAMPLES = ("--seed 2", "--delay 1024 --memory transformer_xl --window 2048", "--resume runs/x --total-blocks 1e3")


def main() -> None:
    arguments = sys.argv[1:]
    resume = cli.value_of("resume", arguments)
    if not resume or resume.startswith("-"):  # no folder: `parse_sequence` reports it
        settings = parse_sequence(arguments)
    else:
        settings = resumed_sequence(resume, arguments)
    # Imported here, so that the message for a misspelled flag need not wait a second for torch.
    from expire_span_rl.training import train

    with plain_warnings():
        train(settings)


def parse_sequence(arguments: list[str]) -> Settings:
    """All settings of a new run from the command line's arguments. Raises ValueError, one line."""
    task = cli.choice("--task", cli.value_of("task", arguments) or SequenceConfig.task, TASKS)
    import_named(arguments)
    memory = cli.choice("--memory", cli.value_of("memory", arguments) or RunConfig.memory, KINDS)
    _check_task_flags(task, arguments)
    _check_memory_flags(task, memory, arguments)
    env = TASKS[task].env
    configs = sequence_parts(task, memory)
    groups = {
        SupervisedConfig: "learning",
        ForgettingConfig: "forgetting",
        SpanLossConfig: "forgetting",
        KINDS[memory].Config: "memory",
        core_config(memory): "network",
        SequenceConfig: "run",
        TASKS[task]: "run",
    }
    flags = flags_of(cli.joined(*configs, defaults=tuned(env, AGENT), groups=groups, choices=_CHOICES))
    flags = [dataclasses.replace(flag, **_IMPORT) if flag.field == "imports" else flag for flag in flags]
    flag_class = plain_dataclass(flag for flag in flags if flag.field not in _HIDDEN)
    description = _DESCRIPTION.format(selection=f"--task {task} --memory {memory}")
    settings = dataclasses.asdict(cli.parse(flag_class, arguments, description, _EXAMPLES))
    typed = {cli.flag_of(argument) for argument in arguments if argument.startswith("--")}
    check_span_loss(settings, [flag.field for flag in flags if typed.intersection(flag.names)])
    return sequence_settings(settings)


def sequence_parts(task: str, memory: str) -> tuple[type, ...]:
    """The dataclasses whose fields are the flags of train_sequence.py for a task and a memory kind."""
    span_parts = [SpanLossConfig] if hasattr(KINDS[memory].Config, "span_model") else []
    return (SequenceConfig, TASKS[task], *run_parts(memory, AGENT), *span_parts)


def resumed_sequence(resume: str, arguments: Sequence[str]) -> Settings:
    """All settings of the run in the folder `resume`. The command line may change --total-blocks (0: the run keeps its
    own), and whatever train_rl.py --resume may change. Raises ValueError, one line."""
    saved = saved_config(Path(resume))
    if saved["agent"] not in AGENTS or AGENTS[saved["agent"]].learns_from != TARGETS:
        raise cli.UsageError(
            f"--resume: expected a run of train_sequence.py, but {shown(resume)} is one of train_rl.py --agent "
            f"{quoted(saved['agent'], 60)}, which train_rl.py --resume continues"
        )
    typed = cli.arguments_of("total-blocks", arguments)
    if not typed:
        return resumed_config(resume, list(arguments), in_blocks=True)
    config = cli.parse(SequenceConfig, typed, "")  # the last one counts
    settings = resumed_config(resume, cli.arguments_without("total-blocks", arguments), in_blocks=True)
    if not config.total_blocks:
        return settings
    _, block_size = length_flag(settings)
    return settings.replace(total_timesteps=config.total_blocks * block_size)


def _check_task_flags(task: str, arguments: Sequence[str]) -> None:
    """Raises UsageError, one line, for a flag that other tasks have and `task` does not."""
    task_flags = set(cli.flag_names(TASKS[task]))
    for argument in arguments:
        name = cli.flag_of(argument) if argument.startswith("--") else ""
        tasks = [task_name for task_name, config in TASKS.items() if name in cli.flag_names(config)]
        if tasks and name not in task_flags:
            raise cli.UsageError(f"{name}: expected only with --task {' or '.join(tasks)}, got --task {task}")


def _check_memory_flags(task: str, memory: str, arguments: Sequence[str]) -> None:
    """Raises UsageError, one line, for a flag that only other memory kinds have."""
    by_kind = {
        kind: [flag for part in sequence_parts(task, kind) for flag in flags_of(part) if flag.field not in _HIDDEN]
        for kind in KINDS
    }
    names = {kind: {name for flag in flags for name in flag.names} for kind, flags in by_kind.items()}

    def owners_of(field: str) -> list[tuple[str, str]]:
        return [("memory", kind) for kind, flags in by_kind.items() if field in {flag.field for flag in flags}]

    refuse_others_flags(arguments, names[memory], set().union(*names.values()), f"--memory {memory}", owners_of)
