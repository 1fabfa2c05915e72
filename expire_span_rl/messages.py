"""Messages of a training: lines on stderr, above the progress bar, and in whatever listens (run.log)."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

from tqdm import tqdm

Listener = Callable[[str], None]
_listeners: list[Listener] = []


def say(text: str) -> None:
    """Writes a line to stderr, and to all listeners."""
    with contextlib.suppress(OSError, ValueError):  # a terminal that is gone must not end a training
        tqdm.write(text, file=sys.stderr)
    hear(text)


def hear(text: str) -> None:
    """Writes a line to all listeners only, since stderr has it already."""
    for listener in _listeners:
        listener(text)


@contextlib.contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Within, `listener` gets every message."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)
