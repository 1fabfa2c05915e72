"""Pictures in MiniGrid's own tiles.

Names: V view size, N columns; codes are MiniGrid's (object, colour, state), images are indexed [column, line].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from minigrid.core.constants import OBJECT_TO_IDX
from minigrid.core.grid import Grid
from minigrid.core.world_object import WorldObj

STRIP_COLUMNS = 25
STRIP_TILE = 32
_END = 3  # columns at each end of a cut strip, which are always shown
_EAST = 0  # MiniGrid's direction of the triangle


def render_tiles(
    codes: np.ndarray, tile_size: int, agent: tuple[int, int] | None = None, lit: np.ndarray | None = None
) -> np.ndarray:
    """Draws codes uint8 [columns, lines, 3] as a picture uint8 [lines * tile_size, columns * tile_size, 3].

    Draws the agent on tile `agent` and lightens the tiles of the bool mask `lit` [columns, lines]. Unseen tiles are
    black. A code that MiniGrid does not know is drawn as an empty tile.
    """
    columns, lines, _ = codes.shape
    picture = np.zeros((lines * tile_size, columns * tile_size, 3), np.uint8)
    for column, line in np.ndindex(columns, lines):
        kind, colour, state = (int(part) for part in codes[column, line])
        has_agent = (column, line) == agent
        if not has_agent and kind == OBJECT_TO_IDX["unseen"]:
            continue
        y = line * tile_size
        x = column * tile_size
        picture[y : y + tile_size, x : x + tile_size] = Grid.render_tile(
            _decode((kind, colour, state)),
            _EAST if has_agent else None,
            bool(lit is not None and lit[column, line]),
            tile_size,
        )
    return picture


def _decode(code: tuple[int, int, int]) -> WorldObj | None:
    """MiniGrid's object for a code; None (an empty tile) for a code that MiniGrid does not know."""
    try:
        return WorldObj.decode(*code)
    except (KeyError, AssertionError):
        return None


def render_observation(image: np.ndarray, tile_size: int = 16) -> np.ndarray:
    """Draws an observation window uint8 [V, V, 3] as uint8 [V * tile_size, V * tile_size, 3], without the agent."""
    return render_tiles(np.asarray(image), tile_size)


def strip_columns(first: int, last: int, x: int, width: int) -> list[int | None]:
    """The columns, of `first`..`last`, that a strip of `width` shows when the agent is in column x. None is a gap.

    All columns if they fit (then the list may be shorter than `width`), else both ends and a section around x.
    """
    if last - first < width:
        return list(range(first, last + 1))
    low = first + _END
    high = last - _END
    section_width = width - 2 * _END
    start = min(max(x - section_width // 2, low), high - section_width + 1)
    section: list[int | None] = list(range(start, start + section_width))
    if start > low:
        section[0] = None
    if start + section_width - 1 < high:
        section[-1] = None
    return [*range(first, low), *section, *range(high + 1, last + 1)]


@dataclass(frozen=True)
class Place:
    """An agent's position in the world, and the part of the world that the picture shows. In tiles."""

    agent: tuple[int, int]  # column and line of the world
    columns: list[int | None]  # the world's columns in the picture, left to right; None for a gap
    tile_size: int  # pixels


@dataclass(frozen=True)
class Strip:
    """A world of three lines (-1, 0, 1), drawn as a strip of constant size. A world that does not fit is cut."""

    code_at: Callable[[int, int], tuple[int, int, int]]  # the code of tile (x, y)
    span: tuple[int, int]  # the first and last column of the world
    max_columns: int  # the columns of the longest world; the strip is as wide, up to STRIP_COLUMNS
    agent: tuple[int, int]  # its tile (x, y)
    reach: int  # tiles up to this distance from the agent are lit
    sight: tuple[int, int] | None = None  # the first and last column that can be lit; None: all columns

    @property
    def width(self) -> int:
        """The columns of the picture."""
        return min(self.max_columns, STRIP_COLUMNS)

    def place(self) -> Place:
        """The agent's position. Lines count from 0 here."""
        columns = strip_columns(*self.span, self.agent[0], self.width)
        return Place((self.agent[0], self.agent[1] + 1), columns, STRIP_TILE)

    def picture(self) -> np.ndarray:
        """uint8 [3 * STRIP_TILE, width * STRIP_TILE, 3]. The rest of the strip beside a short world is black, and
        three dots mark a gap."""
        columns = self.place().columns
        x, y = self.agent
        codes = np.zeros((self.width, 3, 3), np.uint8)
        lit = np.zeros((self.width, 3), bool)
        for i, column in enumerate(columns):
            if column is not None:
                codes[i] = np.asarray([self.code_at(column, line - 1) for line in range(3)])
                if self.sight is None or self.sight[0] <= column <= self.sight[1]:
                    lit[i] = [max(abs(column - x), abs(line - 1 - y)) <= self.reach for line in range(3)]
        picture = render_tiles(codes, STRIP_TILE, (columns.index(x), y + 1), lit)
        for i, column in enumerate(columns):
            if column is None:
                _draw_gap(picture, i)
        return picture


def _draw_gap(picture: np.ndarray, column: int) -> None:
    """Draws three dots on a column of a strip's picture."""
    middle = STRIP_TILE * 3 // 2
    radius = STRIP_TILE // 16
    for part in (1, 2, 3):
        centre = column * STRIP_TILE + part * STRIP_TILE // 4
        picture[middle - radius : middle + radius, centre - radius : centre + radius] = 160


class Window:
    """A window on the screen for `render_mode="human"`."""

    def __init__(self, fps: int) -> None:
        import pygame

        self._pygame = pygame
        self._fps = fps
        pygame.display.init()
        self._clock = pygame.time.Clock()
        self._screen = None

    def draw(self, picture: np.ndarray) -> None:
        """Shows `picture` uint8 [height, width, 3] and waits until the next frame is due."""
        pygame = self._pygame
        if self._screen is None:
            self._screen = pygame.display.set_mode((picture.shape[1], picture.shape[0]))
        pygame.surfarray.blit_array(self._screen, picture.swapaxes(0, 1))
        pygame.event.pump()
        pygame.display.flip()
        self._clock.tick(self._fps)

    def close(self) -> None:
        self._pygame.display.quit()
