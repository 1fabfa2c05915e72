"""Definitions shared by the tasks on MiniGrid tiles: moves, the codes of common tiles, and the check of a view size.

A code is MiniGrid's (object, colour, state). Moves are numbered north, east, south, west; y grows to the south.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from minigrid.core.constants import COLOR_TO_IDX, OBJECT_TO_IDX, STATE_TO_IDX

from expire_span_rl.envs.errors import EnvError, expect_int

NORTH, EAST, SOUTH, WEST = range(4)
ACTION_NAMES = ("north", "east", "south", "west")
STEP_X = np.array([0, 1, 0, -1])
STEP_Y = np.array([-1, 0, 1, 0])

COLOURS = np.array(["red", "blue"])
"""The colours of doors, balls and signals. Tasks number them 0 and 1."""
EMPTY = (OBJECT_TO_IDX["empty"], 0, 0)
GOAL = (OBJECT_TO_IDX["goal"], COLOR_TO_IDX["green"], 0)
WALL = (OBJECT_TO_IDX["wall"], COLOR_TO_IDX["grey"], 0)
BALL = tuple((OBJECT_TO_IDX["ball"], COLOR_TO_IDX[c], 0) for c in COLOURS)
DOOR = tuple((OBJECT_TO_IDX["door"], COLOR_TO_IDX[c], STATE_TO_IDX["closed"]) for c in COLOURS)

_SYMBOLS = [
    (OBJECT_TO_IDX[kind], colour, 0) for kind in ("ball", "key", "box", "floor") for colour in range(len(COLOR_TO_IDX))
]

LARGEST_VIEW = 31  # tables of windows grow with the second to fourth power of the view


def expect_view_size(value: Any) -> int:
    """`value` if it is an odd view size in range. Raises EnvError otherwise."""
    expect_int("view_size", value, 3, LARGEST_VIEW)
    if value % 2 == 0:
        raise EnvError(f"view_size: expected an odd number, so that the agent is in the middle, got {value}")
    return value


def swap_balls(image: np.ndarray) -> np.ndarray:
    """A copy of codes uint8 [..., 3] in which a red ball is blue and a blue one red."""
    swapped = image.copy()
    is_ball = image[..., 0] == OBJECT_TO_IDX["ball"]
    for old, new in (BALL, BALL[::-1]):
        swapped[is_ball & (image[..., 1] == old[1]), 1] = new[1]
    return swapped


def symbol_tile(symbol: int) -> tuple[int, int, int]:
    """The code that stands for a symbol: a kind of object and a colour. There are 24 codes; symbol 24 repeats symbol
    0."""
    return _SYMBOLS[symbol % len(_SYMBOLS)]


def open_door(code: tuple[int, int, int]) -> tuple[int, int, int]:
    """The code of the same door, open."""
    kind, colour, _ = code
    return (kind, colour, STATE_TO_IDX["open"])
