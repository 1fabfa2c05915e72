"""Shows our docstrings in the API reference: lines `name: what it is` as a list of parameters, and the comments beside
fields as their descriptions."""

from __future__ import annotations

import re
from typing import Any

from griffe import Attribute, Class, Docstring, Extension, Function

START = re.compile(r"^(\*{0,2}[a-z_]\w*(?:, \*{0,2}[a-z_]\w*)*): ")
COMMENT = re.compile(r"\s#\s(?!type:|fmt:|noqa)(.*)$")


class Parameters(Extension):
    """Changes docstrings before they are shown."""

    def on_function(self, *, func: Function, **kwargs: Any) -> None:
        if func.docstring is not None:
            names = {parameter.name for parameter in func.parameters}
            func.docstring.value = with_list(func.docstring.value, names)

    def on_class(self, *, cls: Class, **kwargs: Any) -> None:
        if cls.docstring is not None:
            cls.docstring.value = with_list(cls.docstring.value, set(cls.members))

    def on_attribute(self, *, attr: Attribute, **kwargs: Any) -> None:
        """A field without a docstring has the comment beside it."""
        comment = COMMENT.search(attr.lines[-1]) if attr.docstring is None and attr.lines else None
        if comment is not None and attr.parent is not None and attr.parent.is_class:
            attr.docstring = Docstring(comment[1], parent=attr)


def with_list(text: str, names: set[str]) -> str:
    """The docstring with a list item for each line that begins with some of `names` and a colon.

    The lines that follow belong to the item, up to a blank line. In an item, `; name: ` begins the next one, and a
    sentence with Raises ends the list.
    """
    known = "|".join(sorted(map(re.escape, names), key=len, reverse=True))
    breaks = re.compile(rf"; (?=(?:{known}): )|(?<=\.) (?=Raises )") if names else re.compile(r"(?<=\.) (?=Raises )")
    lines, inside = [], False
    for line in text.splitlines():
        for part in breaks.split(line) if inside or begins_item(line, names) else [line]:
            if begins_item(part, names):
                name, _, meaning = part.partition(": ")
                lines += [*([] if inside else [""]), f"- `{name}`: {meaning}"]
                inside = True
            elif inside and part.strip() and not part.startswith("Raises"):
                lines.append(f"    {part.strip()}")
            else:
                lines += [*([""] if inside else []), part]
                inside = False
    return "\n".join(lines)


def begins_item(line: str, names: set[str]) -> bool:
    """Whether a line begins with some of `names` and a colon."""
    start = START.match(line)
    return start is not None and all(name.strip("* ") in names for name in start[1].split(","))
