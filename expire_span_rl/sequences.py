"""The tasks of train_sequence.py: the environment and the flags of each, and a run's settings from these flags.

Nothing here imports torch, so that a command line answers at once.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from expire_span_rl.checks import check_at_least, check_fractions, choice, flag
from expire_span_rl.settings import Settings, defaults, resolve, tuned

AGENT = "supervised"
SPAN_LOSSES = ("learned", "paper")
PAPER_LOSS: dict[str, Any] = {"span_model": "sigmoid", "use_coef": 0.0, "fixed_pressure": 1.0}
"""The settings of `--span-loss paper`: bounded spans, with a fixed span penalty from the first update on. Only the
task's gradient acts against the penalty."""
_NOT_BESIDE_PAPER_LOSS = (
    "forgetting", "pressure_rise", "success_slack", "full_evidence", "initial_limit",
    "use_lift", "use_share", "use_enough", "min_use_coef", "use_margin", "renew_every", "time_skips", "time_gaps",
    "attention_cost",
)  # fmt: skip
"""Settings that steer forgetting by the answers, or spans by what is used. Beside `--span-loss paper` they stay as they
are without a flag."""


@dataclass(frozen=True)
class SequenceConfig:
    """Flags of every task."""

    task: str = "copy"
    """The task. copy: repeat a string after a delay. collision: in which quadrant did moving particles of two colours
    last meet? text: predict the next character."""
    total_blocks: int = 0
    """Updates of the training. Each learns from one block: --num-steps steps of all --num-envs streams. 0: as many as
    the task needs."""

    def __post_init__(self):
        check_at_least(self, total_blocks=0)


@dataclass(frozen=True)
class SpanLossConfig:
    """Flags of memory kinds that predict spans."""

    span_loss: str = "learned"
    """The loss that spans learn from. learned: the ages at which memories were last used, as long as the answers stay
    right. paper: a fixed span penalty, --span-coef, from the first update on, against the gradient of the task. It
    sets --span-model sigmoid and --use-coef 0, and refuses other values of these. --no-forgetting is refused, too, as
    are --pressure-rise, --success-slack, --full-evidence and --initial-limit, unless they say what the default is."""

    def __post_init__(self):
        choice("--span-loss", self.span_loss, SPAN_LOSSES)


@dataclass(frozen=True)
class CopyConfig:
    """Flags of --task copy."""

    env: ClassVar[str] = "Copy-v0"

    delay: int = 128
    """Longest delay in training, which draws delays log-uniformly from 1 on. An evaluation always has this delay."""
    length: int = 20
    """Symbols of the string."""
    vocabulary: int = 10
    """Number of different symbols."""
    place: bool = True
    """Show the place in the string beside the symbol. --no-place: hide it, as in the paper, so that a policy has to
    count. It then needs more --num-positions than --length."""

    def __post_init__(self):
        check_at_least(self, delay=1, length=1, vocabulary=2)


@dataclass(frozen=True)
class CollisionConfig:
    """Flags of --task collision."""

    env: ClassVar[str] = "Collision-v0"

    stream_length: int = 512
    """Steps of the longest stream. Training draws lengths uniformly from 1 on. An evaluation always has this length."""
    grid: int = 16
    """Cells of a side of the grid, an even number."""
    colours: int = 5
    """Number of different colours of the particles."""
    question_share: float = 1.0
    """Probability of a question at each step."""
    present_share: float = 0.4
    """Probability that a question is about the particles' present colours. Otherwise it is about any two."""

    def __post_init__(self):
        check_at_least(self, stream_length=1, grid=4, colours=1)
        check_fractions(self, "question_share", "present_share")


@dataclass(frozen=True)
class TextConfig:
    """Flags of --task text."""

    env: ClassVar[str] = "Text-v0"

    file: str = ""
    """Path of a text file in UTF-8, or of a folder of text files. Default: Python's standard library."""
    stream_length: int = 8192
    """Characters of the longest piece of the text. Training draws lengths uniformly from 1 on. An evaluation always has
    this length."""

    def __post_init__(self):
        check_at_least(self, stream_length=1)


TASKS: dict[str, type] = {"copy": CopyConfig, "collision": CollisionConfig, "text": TextConfig}
"""The config of each task. Its fields are the flags, and `env` is the environment."""


def sequence_settings(settings: Mapping[str, Any]) -> Settings:
    """All settings of a run (`settings.resolve`) from those of the command line: `task`, the task's own flags,
    `memory`, `total_blocks`, and settings of the run by name. Raises ValueError, one line."""
    run_settings = dict(settings)
    task = run_settings.pop("task")
    memory = run_settings.pop("memory")
    total_blocks = run_settings.pop("total_blocks")
    SequenceConfig(task, total_blocks)  # checks the values
    config_class = TASKS[choice("--task", task, TASKS)]
    env_kwargs = {field.name: run_settings.pop(field.name) for field in dataclasses.fields(config_class)}
    config_class(**env_kwargs)  # checks the values
    if run_settings.pop("span_loss", SPAN_LOSSES[0]) == "paper":
        run_settings |= PAPER_LOSS
    _check_span_limits(run_settings, env_kwargs)
    if "file" in env_kwargs:
        # An absolute path, since the run may be resumed from another folder.
        env_kwargs["file"] = os.path.abspath(env_kwargs["file"]) if env_kwargs["file"] else ""
        _check_text(env_kwargs["file"], run_settings["num_steps"])
    total_timesteps = total_blocks * run_settings["num_steps"] * run_settings["num_envs"]
    total_timesteps = total_timesteps or tuned(config_class.env, AGENT)["total_timesteps"]
    return resolve(
        memory, config_class.env, AGENT, env_kwargs=env_kwargs, total_timesteps=total_timesteps, **run_settings
    )


def check_span_loss(settings: Mapping[str, Any], given: Collection[str]) -> None:
    """Raises ValueError, one line, for a setting that the user gave and that has another value with `--span-loss
    paper`. settings: as of `sequence_settings`; given: the names of those that the user gave."""
    if settings.get("span_loss") != "paper":
        return
    usual = defaults(settings["memory"], TASKS[settings["task"]].env, AGENT)
    fixed = PAPER_LOSS | {name: usual[name] for name in _NOT_BESIDE_PAPER_LOSS}
    for name, value in fixed.items():
        if name in given and settings[name] != value:
            expected, got = (_on_command_line(name, number) for number in (value, settings[name]))
            raise ValueError(f"--span-loss paper: expected {expected}, got {got}")


def _on_command_line(name: str, value: Any) -> str:
    """A setting as the user types it."""
    if isinstance(value, bool):
        return flag(name) if value else f"--no-{flag(name)[2:]}"
    return f"{flag(name)} {value:g}" if isinstance(value, float) else f"{flag(name)} {value}"


def _check_span_limits(run_settings: Mapping[str, Any], env_kwargs: Mapping[str, Any]) -> None:
    """Raises ValueError, one line, if a limit of the memory kind's spans is too short for the delay and the string."""
    if "delay" not in env_kwargs:
        return
    needed_span = env_kwargs["delay"] + env_kwargs["length"]
    for name in ("max_span", "initial_limit"):
        limit = run_settings.get(name, 0)
        if 0 < limit < needed_span:
            raise ValueError(
                f"--delay: expected at most {limit - env_kwargs['length']:,} with {flag(name)} {limit:,}, got "
                f"{env_kwargs['delay']:,}; {flag(name)} {needed_span:,} would be long enough"
            )


def _check_text(path: str, num_steps: int) -> None:
    """Raises ValueError, one line, for a text that cannot be read, or whose training part is shorter than a block."""
    # Imported here, so that the message for a misspelled flag need not wait for NumPy.
    from expire_span_rl.envs.characters import read_characters, standard_library

    try:
        characters = read_characters(path or standard_library(), "train")
    except ValueError as error:
        raise ValueError(f"--{error}") from None
    if len(characters) <= num_steps:
        raise ValueError(
            f"--file: expected more than {num_steps} characters for training (--num-steps), got {len(characters)}"
        )
