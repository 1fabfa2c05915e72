"""The commands of the documentation, read out of its pages."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from script_cases import ROOT

PAGES = sorted([*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md"), ROOT / "pretrained" / "README.md"])
FENCE = re.compile(r"^```(\w*)(?: title=\"([^\"]*)\")?\n(.*?)^```", re.MULTILINE | re.DOTALL)
LOOP = re.compile(r"^for (\w+) in ([^;\n]+);?\s*do\b(.*?)\bdone\b", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"(?<!`)`((?:python3? |make |pip )[^`]+)`(?!`)")


class Block(NamedTuple):
    """A fenced block: its language, the file that it is or is a part of, and its text."""

    language: str
    title: str
    text: str


def page_name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    return [Block(*found.groups(default="")) for found in FENCE.finditer(page.read_text())]


def commands(text: str) -> list[str]:
    """The commands of a `sh` block, without comments. Continued lines are joined. Of a loop only the first round is
    left."""
    text = text.replace("\\\n", " ")

    def first_round(loop: re.Match[str]) -> str:
        name, values, body = loop.groups()
        return body.replace(f"${name}", values.split()[0]).replace(";", "\n")

    lines = [re.sub(r"(^|\s)#.*", "", line).strip() for line in LOOP.sub(first_round, text).splitlines()]
    return [line for line in lines if line]


def inline_commands(page: Path) -> list[str]:
    """The commands in running text and tables."""
    return [" ".join(found.split()) for found in INLINE.findall(FENCE.sub("", page.read_text()))]
