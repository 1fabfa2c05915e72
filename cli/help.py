"""The text of --help: plain and grouped, the most used flags at the top, no line over 80 columns."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import MISSING
from typing import Any

from expire_span_rl.cli.fields import Flag

WIDTH = 80
_INDENT = " " * 6
_NO_BREAK = "\u00a0"  # a default stays on the line of its word
GROUPS: dict[str, tuple[str, ...]] = {
    "run": (
        "env", "memory", "agent", "preset", "total_timesteps", "episodes", "num_envs", "seed", "run_dir", "resume",
        "stochastic", "max_steps", "audit",
    ),
    "environment": (
        "env_kwargs", "wrap", "imports", "encoder", "normalize_observations", "normalize_cells", "impute_cells",
        "vectorization", "env_timeout",
    ),
    "memory": (),
    "forgetting": (),
    "learning": (),
    "network": (),
    "output and machine": (
        "out", "json", "plot", "png", "video", "overwrite", "checkpoint_every", "checkpoint_minutes", "keep_snapshots",
        "eval_every", "n_eval_episodes", "memory_image_every", "progress_bar", "quiet", "device", "precision",
        "torch_threads",
    ),
}  # fmt: skip
"""The groups in their order, and the fields that each begins with. A field that is named nowhere, or has another
`Flag.group`, goes by that."""
_REST = "more"  # the group of fields that neither GROUPS nor their own group places
_PLACEHOLDERS = {
    "env": "ID", "env_kwargs": "JSON", "hard_env_kwargs": "JSON", "imports": "MODULE", "wrap": "WRAP",
    "run_dir": "FOLDER", "resume": "FOLDER", "ray_address": "HOST:PORT",
    "out": "FILE", "json": "FILE", "plot": "FILE", "png": "FILE", "video": "FILE",
}  # fmt: skip
_COMMON = (
    ("-h, --help", "Show this help and exit."),
    ("--version", "Print the version and exit."),
    ("--print-completion SHELL", "Print a script that completes these flags in bash, zsh or fish, and exit."),
)


def help_text(program: str, flags: Sequence[Flag], description: str, examples: Sequence[str] = ()) -> str:
    """The whole help. examples: arguments that are worth trying, without the program's name."""
    positional = [flag for flag in flags if flag.is_positional]
    usage = " ".join(
        [program, *(_placeholder(flag) + (" ..." if flag.takes_many else "") for flag in positional), "[flags]"]
    )
    parts = [f"usage: {usage}", *(_paragraphs(description))]
    if examples:
        parts.append("\n".join(["examples:", *(_example(f"{program} {example}".rstrip()) for example in examples)]))
    if positional:
        parts.append("\n".join(["arguments:", *(_entry(_placeholder(flag), flag.help) for flag in positional)]))
    for title, members in grouped([flag for flag in flags if not flag.is_positional]).items():
        parts.append("\n".join([f"{title}:", *(_entry(_heading(flag), _explanation(flag)) for flag in members)]))
    parts.append("\n".join(["help:", *(_entry(heading, text) for heading, text in _COMMON)]))
    return "\n\n".join(parts) + "\n"


def grouped(flags: Sequence[Flag]) -> dict[str, list[Flag]]:
    """The flags by title, both in the order in which the help lists them."""
    by_name = {flag.field: flag for flag in flags}
    out: dict[str, list[Flag]] = {}
    for title, names in GROUPS.items():
        leading = [by_name[name] for name in names if name in by_name and by_name[name].group in (None, title)]
        out[title] = leading + [flag for flag in flags if flag.field not in names and flag.group == title]
    placed = {flag.field for members in out.values() for flag in members}
    for flag in flags:
        if flag.field not in placed:
            out.setdefault(flag.group or _REST, []).append(flag)
    return {title: members for title, members in out.items() if members}


def _heading(flag: Flag) -> str:
    """The flag with what stands for its value."""
    if flag.is_switch:
        return ", ".join(flag.names)
    return f"{flag.name} {_placeholder(flag)}" + (
        f" [{_placeholder(flag)} ...]" if flag.takes_many and not flag.is_repeated else ""
    )


def _placeholder(flag: Flag) -> str:
    """What stands for the value of a flag or an argument."""
    if flag.metavar:
        return flag.metavar
    if flag.is_positional:
        return flag.field.upper()
    if flag.choices:
        return "NAME"
    return _PLACEHOLDERS.get(flag.field) or {int: "N", float: "X"}.get(flag.element, "TEXT")


def _explanation(flag: Flag) -> str:
    """What the flag does, its choices, whether it may come several times, and its default."""
    notes = []
    if flag.choices:
        notes.append(f"one of {', '.join(flag.choices)}")
    if flag.is_repeated:
        notes.append("may be given several times")
    if flag.default is MISSING:
        notes.append("required")
    elif (
        flag.default not in ("", ()) or "default:" not in flag.help.lower()
    ):  # else the sentence says what stands for nothing
        notes.append(f"default:{_NO_BREAK}{_default(flag.default)}")
    return f"{flag.help} ({'; '.join(notes)})".strip() if notes else flag.help


def _default(value: Any) -> str:
    """A default as a user would type it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if value in ("", ()):
        return "none"
    if isinstance(value, (tuple, list)):
        return " ".join(map(_default, value))
    return f"{value:_}" if isinstance(value, int) and value >= 10_000 else str(value)


def _entry(heading: str, text: str) -> str:
    """A flag, and below it what it does."""
    return "\n".join([_wrap(heading, "  ", _INDENT), _wrap(text, _INDENT, _INDENT)])


def _example(command: str) -> str:
    """A command that can be copied, with a backslash at the end of each line but the last."""
    whole = re.sub(
        r"'[^']*'", lambda quoted: quoted[0].replace(" ", _NO_BREAK), command
    )  # quotes would keep a backslash
    lines = textwrap.wrap(
        whole,
        WIDTH - 2,
        initial_indent="  ",
        subsequent_indent="    ",
        break_on_hyphens=False,
        break_long_words=False,
    )
    return " \\\n".join(lines).replace(_NO_BREAK, " ")


def _paragraphs(text: str) -> list[str]:
    """Each paragraph on lines of at most WIDTH characters; indented ones are commands, one a line."""
    blocks = [block.strip("\n") for block in re.split(r"\n\s*\n", textwrap.dedent(text).strip())]
    return [_commands(block) if block.startswith(" ") else _wrap(block, "", "") for block in blocks if block]


def _commands(block: str) -> str:
    """Commands as they are, each wrapped where it is too long."""
    lines = re.sub(r"\\\n\s*", "", block).splitlines()
    return "\n".join(_example(" ".join(line.split())) for line in lines)


def _wrap(text: str, indent: str, later_indent: str) -> str:
    """The text on lines of at most WIDTH characters."""
    line = re.sub(r"[ \n\t]+", " ", text).strip()
    lines = textwrap.fill(line, WIDTH, initial_indent=indent, subsequent_indent=later_indent, break_on_hyphens=False)
    return lines.replace(_NO_BREAK, " ")
