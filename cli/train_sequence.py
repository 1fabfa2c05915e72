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
from expire_span_rl.cli.settings import resumed_config, saved_config
from expire_span_rl.policies import KINDS, core_config
from expire_span_rl.sequences import AGENT, SPAN_LOSSES, TASKS, SequenceConfig, SpanLossConfig, sequence_settings
from expire_span_rl.settings import SNAPSHOTS, RunConfig, Settings, length_flag, run_parts, tuned

_HIDDEN = (
    "agent", "encoder", "env", "env_kwargs", "env_timeout", "fixed_pressure", "imports", "normalize_observations",
    "total_timesteps", "vectorization", "wrap",
)  # fmt: skip
"""Settings of a run that the task gives, or that mean nothing here."""
_CHOICES = {"memory": KINDS, "task": TASKS, "keep_snapshots": SNAPSHOTS, "span_loss": SPAN_LOSSES}
_DESCRIPTION = """
Trains a policy's memory on sequences, by supervision: long streams in blocks, between which memory flows. The run
directory is train_rl.py's; evaluate.py and visualize.py take it as it is.

Which flags there are, and their defaults, depends on --task and --memory. These are the flags of {chosen}.
"""
_EXAMPLES = ("--seed 2", "--delay 1024 --memory transformer_xl --window 2048", "--resume runs/x --total-blocks 1e3")


def main() -> None:
    arguments = sys.argv[1:]
    resume = cli.value_of("resume", arguments)
    if resume is None or resume.startswith("-"):  # a flag in its place is refused
        settings = parse_sequence(arguments)
    else:
        settings = resumed_sequence(resume, arguments)
    from expire_span_rl.training import train  # torch takes a second, which a misspelled flag need not wait for

    with plain_warnings():
        train(settings)


def parse_sequence(arguments: list[str]) -> Settings:
    """All settings of a run. Raises ValueError, one line."""
    task = cli.choice("--task", cli.value_of("task", arguments) or SequenceConfig.task, TASKS)
    memory = cli.choice("--memory", cli.value_of("memory", arguments) or RunConfig.memory, KINDS)
    _check_task_flags(task, arguments)
    env = TASKS[task].env
    parts = sequence_parts(task, memory)
    groups = {
        SupervisedConfig: "learning",
        ForgettingConfig: "forgetting",
        SpanLossConfig: "forgetting",
        KINDS[memory].Config: "memory",
        core_config(memory): "network",
        SequenceConfig: "run",
        TASKS[task]: "run",
    }
    flags = flags_of(cli.joined(*parts, defaults=tuned(env, AGENT), groups=groups, choices=_CHOICES))
    offered = plain_dataclass(flag for flag in flags if flag.field not in _HIDDEN)
    description = _DESCRIPTION.format(chosen=f"--task {task} --memory {memory}")
    return sequence_settings(dataclasses.asdict(cli.parse(offered, arguments, description, _EXAMPLES)))


def sequence_parts(task: str, memory: str) -> tuple[type, ...]:
    """The dataclasses whose fields are the flags of train_sequence.py for a task and a memory kind."""
    spans = [SpanLossConfig] if hasattr(KINDS[memory].Config, "span_model") else []
    return (SequenceConfig, TASKS[task], *run_parts(memory, AGENT), *spans)


def resumed_sequence(resume: str, arguments: Sequence[str]) -> Settings:
    """All settings of the run in the folder `resume`, with what the command line changes of them: --total-blocks, and
    what train_rl.py --resume takes. Raises ValueError, one line."""
    saved = saved_config(Path(resume))
    if saved["agent"] not in AGENTS or AGENTS[saved["agent"]].learns_from != TARGETS:
        raise cli.UsageError(
            f"--resume: expected a run of train_sequence.py, {shown(resume)} is one of train_rl.py --agent "
            f"{quoted(saved['agent'], 60)}, which goes on with train_rl.py --resume"
        )
    blocks = cli.value_of("total-blocks", arguments)
    if blocks is None:
        return resumed_config(resume, list(arguments), in_blocks=True)
    rest = list(arguments)
    place = next(i for i, argument in enumerate(rest) if cli.flag_of(argument) == "--total-blocks")
    del rest[place : place + (1 if "=" in rest[place] else 2)]
    given = cli.parse(SequenceConfig, ["--total-blocks", blocks], "")
    settings = resumed_config(resume, rest, in_blocks=True)
    _, block_size = length_flag(settings)
    return settings.replace(total_timesteps=given.total_blocks * block_size)


def _check_task_flags(task: str, arguments: Sequence[str]) -> None:
    """Raises UsageError for a flag that another task has and this one has not."""
    own = {name for name in cli.flag_names(TASKS[task])}
    for argument in arguments:
        name = cli.flag_of(argument) if argument.startswith("--") else ""
        having = [other for other, config in TASKS.items() if name in cli.flag_names(config)]
        if having and name not in own:
            raise cli.UsageError(f"{name}: expected only with --task {' or '.join(having)}, got --task {task}")
