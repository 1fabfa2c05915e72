"""Shows our docstrings' lines `name: what it is` as a list of parameters in the API reference."""

from __future__ import annotations

import re
from typing import Any

from griffe import Class, Extension, Function

START = re.compile(r"^(\*{0,2}[a-z_]\w*(?:, \*{0,2}[a-z_]\w*)*)(?: \[[^\]]*\])?: ")


class Parameters(Extension):
    """Makes one list item of each line that begins with names and a colon, and of the lines that go on from it."""

    def on_function(self, *, func: Function, **kwargs: Any) -> None:
        if func.docstring is not None:
            names = {parameter.name for parameter in func.parameters}
            func.docstring.value = with_list(func.docstring.value, names)

    def on_class(self, *, cls: Class, **kwargs: Any) -> None:
        if cls.docstring is not None:
            cls.docstring.value = with_list(cls.docstring.value, set(cls.members))


def with_list(text: str, names: set[str]) -> str:
    """The docstring with its lines about `names` as list items."""
    lines, inside = [], False
    for line in text.splitlines():
        start = START.match(line)
        about = start is not None and all(name.strip("* ") in names for name in start[1].split(","))
        if about and start is not None:
            lines += [*([] if inside else [""]), f"- `{start[1]}`{line[len(start[1]) :]}"]
            inside = True
        elif inside and line.strip() and not line.startswith("Raises"):
            lines.append(f"    {line.strip()}")
        else:
            lines += [*([""] if inside else []), line]
            inside = False
    return "\n".join(lines)
