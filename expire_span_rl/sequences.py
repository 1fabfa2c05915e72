"""The tasks of train_sequence.py: which environment each is, its flags, and what they make of a run's settings.

Nothing here imports torch, so that a command line answers at once.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from expire_span_rl.checks import check_at_least, check_fractions, choice, flag
from expire_span_rl.settings import Settings, resolve, tuned

AGENT = "supervised"
SPAN_LOSSES = ("learned", "paper")
PAPER_LOSS: dict[str, Any] = {"span_model": "sigmoid", "use_coef": 0.0, "fixed_pressure": 1.0}
"""What `--span-loss paper` sets: bounded spans, charged from the first update on, which only the task defends."""


@dataclass(frozen=True)
class SequenceConfig:
    task: str = "copy"
    """What is learned: copy, a string is to be given back after a delay; collision, in which quadrant two colours of
    moving particles met last; text, which character comes next."""
    total_blocks: int = 0
    """Updates of the training: blocks of --num-steps steps of all --num-envs streams. 0: what the task needs."""

    def __post_init__(self):
        check_at_least(self, total_blocks=0)


@dataclass(frozen=True)
class SpanLossConfig:
    """Of memory kinds whose spans are predicted."""

    span_loss: str = "learned"
    """What teaches spans. learned: the ages of last use, while the answers stay right. paper: a fixed charge,
    --span-coef, from the first update on, against the gradients of the task."""

    def __post_init__(self):
        choice("--span-loss", self.span_loss, SPAN_LOSSES)


@dataclass(frozen=True)
class CopyConfig:
    env: ClassVar[str] = "Copy-v0"

    delay: int = 128
    """Longest delay in training, where delays are log-uniform from 1 on; an evaluation has this delay."""
    length: int = 20
    """Symbols of the string."""
    vocabulary: int = 10
    """Different symbols."""
    place: bool = True
    """Show the place in the string beside the symbol. --no-place: as in the paper, where a policy has to count; it
    needs more --num-positions than --length."""

    def __post_init__(self):
        check_at_least(self, delay=1, length=1, vocabulary=2)


@dataclass(frozen=True)
class CollisionConfig:
    env: ClassVar[str] = "Collision-v0"

    stream_length: int = 512
    """Steps of the longest stream. Training draws lengths from 1 on, evenly; in an evaluation all have this length."""
    grid: int = 16
    """Cells of a side of the grid, an even number."""
    colours: int = 5
    """Different colours of the particles."""
    question_share: float = 1.0
    """Probability of a question at each step."""
    present_share: float = 0.4
    """Probability that a question is about the particles' present colours; else it is about any two."""

    def __post_init__(self):
        check_at_least(self, stream_length=1, grid=4, colours=1)
        check_fractions(self, "question_share", "present_share")


@dataclass(frozen=True)
class TextConfig:
    env: ClassVar[str] = "Text-v0"

    file: str = ""
    """Path of a text file in UTF-8, or of a folder of them. Default: Python's standard library."""
    stream_length: int = 8192
    """Characters of the longest piece that is read. Training draws lengths from 1 on, evenly; in an evaluation all have
    this length."""

    def __post_init__(self):
        check_at_least(self, stream_length=1)


TASKS: dict[str, type] = {"copy": CopyConfig, "collision": CollisionConfig, "text": TextConfig}
"""The flags of each task; `env` is its environment."""


def sequence_settings(settings: Mapping[str, Any]) -> Settings:
    """All settings of a run (`settings.resolve`) from those of the command line: `task`, the task's own flags,
    `memory`, `total_blocks`, and settings of the run by name. Raises ValueError, one line."""
    given = dict(settings)
    SequenceConfig(given["task"], given["total_blocks"])
    task, memory, blocks = (given.pop(name) for name in ("task", "memory", "total_blocks"))
    flags = TASKS[choice("--task", task, TASKS)]
    own = {field.name: given.pop(field.name) for field in dataclasses.fields(flags)}
    flags(**own)
    if given.pop("span_loss", SPAN_LOSSES[0]) == "paper":
        given |= PAPER_LOSS
    _check_reach(given, own)
    if "file" in own:
        own["file"] = os.path.abspath(own["file"]) if own["file"] else ""  # a run may go on from another folder
        _check_text(own["file"], given["num_steps"])
    total = blocks * given["num_steps"] * given["num_envs"]
    total = total or tuned(flags.env, AGENT)["total_timesteps"]
    return resolve(memory, flags.env, AGENT, env_kwargs=own, total_timesteps=total, **given)


def _check_reach(given: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Raises ValueError, one line, for a delay that no memory can last for."""
    if "delay" not in own:
        return
    needed = own["delay"] + own["length"]
    for name in ("max_span", "initial_limit"):
        if 0 < given.get(name, 0) < needed:
            raise ValueError(
                f"--delay: expected at most {given[name] - own['length']:,} with {flag(name)} {given[name]:,}, got "
                f"{own['delay']:,}; {flag(name)} {needed:,} reaches it"
            )


def _check_text(path: str, num_steps: int) -> None:
    """Raises ValueError, one line, for a text that cannot be read, or is shorter than a block."""
    from expire_span_rl.envs.characters import read_characters, standard_library  # a misspelled flag needs no NumPy

    try:
        characters = read_characters(path or standard_library(), "train")
    except ValueError as error:
        raise ValueError(f"--{error}") from None
    if len(characters) <= num_steps:
        raise ValueError(
            f"--file: expected more than {num_steps} characters for training (--num-steps), got {len(characters)}"
        )
