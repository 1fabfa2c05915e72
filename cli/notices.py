"""Our warnings on a command line: one line each, without the place in our code."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator
from typing import Any

from expire_span_rl.cli.errors import one_line
from expire_span_rl.messages import hear


@contextlib.contextmanager
def plain_warnings() -> Iterator[None]:
    """Within, warnings of this package's own classes are `warning: message` on stderr; others stay as they are. A
    message of several lines, such as one with a traceback, shows its first line; the log gets all of it."""
    show = warnings.showwarning

    def show_line(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        if category.__module__.startswith("expire_span_rl."):
            text = f"warning: {message}"
            print(one_line(text.partition("\n")[0]), file=sys.stderr)
            hear(text)
        else:
            show(message, category, *place, **more)

    warnings.showwarning = show_line
    try:
        yield
    finally:
        warnings.showwarning = show
