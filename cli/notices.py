"""Warnings of ours on a command line: a line each, without the place in our code that a user cannot mend."""

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
    """Within, warnings of this package's own classes are `warning: message` on stderr; others stay as they are. Of a
    message of several lines, such as one with a traceback, the first is shown, and all of it is for the log."""
    show = warnings.showwarning

    def shown(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        if category.__module__.startswith("expire_span_rl."):
            text = f"warning: {message}"
            print(one_line(text.partition("\n")[0]), file=sys.stderr)
            hear(text)
        else:
            show(message, category, *place, **more)

    warnings.showwarning = shown
    try:
        yield
    finally:
        warnings.showwarning = show
