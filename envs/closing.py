"""Closes what was made for something that then fails."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any


@contextlib.contextmanager
def closed_on_error(made: Sequence[Any]) -> Iterator[None]:
    """Closes environments if the block fails. made: those that there are by then. What closing them raises is left out:
    the block's own error says more."""
    try:
        yield
    except BaseException:
        for env in made:
            with contextlib.suppress(Exception):
                env.close()
        raise
