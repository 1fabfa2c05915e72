"""What a MiniGrid agent sees, computed faster than MiniGrid does it.

Most of a step of MiniGrid is its view: it copies the cells in front of the agent into a new grid, turns that grid up to
four times, and makes a wall for each cell outside the world. Here the rows of the view are read directly from the
world, nearest row first, until nothing more can be seen. With it a step takes about a fifth of the time
(docs/performance.md). Observations are the same, and so is everything else that the environment computes
(`tests/envs/test_minigrid_view.py`).
"""

from __future__ import annotations

import functools
import sys
from types import MethodType
from typing import Any

import gymnasium as gym
import numpy as np

from expire_span_rl.envs.cells import minigrid_class

_OVERRIDABLE = ("gen_obs", "gen_obs_grid", "get_view_exts")
"""The methods of MiniGridEnv that `gen_obs` stands for. An environment with its own version of one keeps it."""


def speed_up(env: gym.Env) -> bool:
    """Gives a MiniGrid environment the fast view. Returns whether it did: not for other environments, and not for
    those that compute their view in their own way."""
    base = minigrid_class(env)
    inner: Any = env.unwrapped
    if base is None:
        return False
    for name in _OVERRIDABLE:
        if name in vars(inner) or getattr(type(inner), name) is not getattr(base, name):
            return False
    inner.gen_obs = MethodType(gen_obs, inner)
    return True


def gen_obs(env: Any) -> dict[str, Any]:
    """The observation of `MiniGridEnv.gen_obs`. image: uint8 [column, row, 3] with the object, its colour and its state
    in each visible cell, and 0 elsewhere. The agent stands in the middle of the last row and looks up."""
    grid = env.grid
    if type(grid) is not sys.modules["minigrid.core.grid"].Grid:  # it may read its cells in another way
        return type(env).gen_obs(env)
    size = env.agent_view_size
    column_bytes = 3 * size
    image = bytearray(size * column_bytes)
    all_columns = (1 << size) - 1
    visible = all_columns if env.see_through_walls else 1 << size // 2  # bit i is column i of the row
    for row in range(size - 1, -1, -1):
        cells = _row_of_cells(env, grid, size, size - 1 - row)
        see_through = all_columns if env.see_through_walls else _see_through(cells)
        shown, visible = _spread(visible, see_through, size)
        if row == size - 1:
            cells[size // 2] = env.carrying  # it is shown at the agent's own place
        for column, cell in enumerate(cells):
            if shown >> column & 1:
                start = column * column_bytes + 3 * row
                image[start : start + 3] = _encode(cell)
        if not visible:
            break
    pixels = np.frombuffer(image, np.uint8).reshape(size, size, 3)
    return {"image": pixels, "direction": env.agent_dir, "mission": env.mission}


_OUTSIDE = object()
"""A cell outside the world. It looks like a wall."""
_EMPTY_CODE = bytes((1, 0, 0))
_WALL_CODE = bytes((2, 5, 0))  # grey


def _see_through(cells: list[Any]) -> int:
    """The cells of a row that do not block sight. Bit i is column i."""
    bits = 0
    for column, cell in enumerate(cells):
        if cell is None or (cell is not _OUTSIDE and cell.see_behind()):
            bits |= 1 << column
    return bits


def _encode(cell: Any) -> bytes:
    """Object, colour and state of a cell, a byte each."""
    if cell is None:
        return _EMPTY_CODE
    return _WALL_CODE if cell is _OUTSIDE else bytes(cell.encode())


def _row_of_cells(env: Any, grid: Any, size: int, distance: int) -> list[Any]:
    """The cells of the view's row `distance` steps in front of the agent, from its left to its right. Outside the world
    they are _OUTSIDE. Directions are MiniGrid's: 0 right, 1 down, 2 left, 3 up."""
    width, height = grid.width, grid.height
    x, y = (int(value) for value in env.agent_pos)
    direction = env.agent_dir
    is_upright = direction % 2 == 1  # the agent looks down or up, so that rows of the view are rows of the world
    sign = 1 if direction < 2 else -1
    if is_upright:
        index, centre, lines = y + sign * distance, x, height
        line = grid.grid[index * width : (index + 1) * width]
    else:
        index, centre, lines = x + sign * distance, y, width
        line = grid.grid[max(index, 0) :: width]
    if not 0 <= index < lines:
        return [_OUTSIDE] * size
    first = centre - size // 2
    cells = [_OUTSIDE] * -first + line[max(first, 0) : first + size]
    cells += [_OUTSIDE] * (size - len(cells))
    return cells if direction in (0, 3) else cells[::-1]  # looking right or up, from the left is from the world's start


@functools.cache
def _spread(visible: int, see_through: int, size: int) -> tuple[int, int]:
    """How sight spreads in a row, then to the next one, as `Grid.process_vis` has it. Bit i is column i.

    visible: what the nearer row lets see of this one; see_through: the cells that do not block sight.
    Returns the visible cells of the row, and those of the next row."""
    ahead = 0
    for column in range(size - 1):
        if visible >> column & see_through >> column & 1:
            visible |= 2 << column
            ahead |= 3 << column
    for column in range(size - 1, 0, -1):
        if visible >> column & see_through >> column & 1:
            visible |= 1 << column - 1
            ahead |= 3 << column - 1
    return visible, ahead
