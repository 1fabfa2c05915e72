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
_END = 3  # columns that always show at each end of a cut strip
_EAST = 0  # MiniGrid's direction of the triangle


def render_tiles(
    codes: np.ndarray, tile_size: int, agent: tuple[int, int] | None = None, lit: np.ndarray | None = None
) -> np.ndarray:
    """Codes uint8 [columns, lines, 3] -> uint8 [lines * tile_size, columns * tile_size, 3].

    Draws the agent on tile `agent` and lightens the tiles of the bool mask `lit` [columns, lines]. Unseen tiles are
    black, and so are codes that MiniGrid does not know.
    """
    columns, lines, _ = codes.shape
    picture = np.zeros((lines * tile_size, columns * tile_size, 3), np.uint8)
    for column, line in np.ndindex(columns, lines):
        kind, colour, state = (int(part) for part in codes[column, line])
        here = (column, line) == agent
        if not here and kind == OBJECT_TO_IDX["unseen"]:
            continue
        picture[line * tile_size : (line + 1) * tile_size, column * tile_size : (column + 1) * tile_size] = (
            Grid.render_tile(
                _decode((kind, colour, state)),
                _EAST if here else None,
                bool(lit is not None and lit[column, line]),
                tile_size,
            )
        )
    return picture


def _decode(code: tuple[int, int, int]) -> WorldObj | None:
    """MiniGrid's object for a code; None (an empty tile) for what it does not know."""
    try:
        return WorldObj.decode(*code)
    except (KeyError, AssertionError):
        return None


def render_observation(image: np.ndarray, tile_size: int = 16) -> np.ndarray:
    """An observation window uint8 [V, V, 3] -> uint8 [V * tile_size, V * tile_size, 3], without the agent in it."""
    return render_tiles(np.asarray(image), tile_size)


def strip_columns(first: int, last: int, x: int, width: int) -> list[int | None]:
    """Which of the columns `first`..`last` a strip of `width` shows when the agent is in column x: None is a gap.

    All of them if they fit (then the list is shorter than `width`), else both ends and a section around x.
    """
    if last - first < width:
        return list(range(first, last + 1))
    inner_first, inner_last, inner = first + _END, last - _END, width - 2 * _END
    start = min(max(x - inner // 2, inner_first), inner_last - inner + 1)
    section: list[int | None] = list(range(start, start + inner))
    if start > inner_first:
        section[0] = None
    if start + inner - 1 < inner_last:
        section[-1] = None
    return [*range(first, inner_first), *section, *range(inner_last + 1, last + 1)]


@dataclass(frozen=True)
class Place:
    """Where an agent is in the world, and which of it the picture shows. In tiles."""

    agent: tuple[int, int]  # column and line of the world
    columns: list[int | None]  # the world's columns that the picture shows, left to right; None for a gap
    tile_size: int  # pixels


@dataclass(frozen=True)
class Strip:
    """A world three lines high (-1, 0, 1) as a strip of constant size, cut where it is longer than fits."""

    encoded: Callable[[int, int], tuple[int, int, int]]  # the code of tile (x, y)
    span: tuple[int, int]  # the first and last column of the world
    most_columns: int  # the most columns any world has; the strip is as wide, up to STRIP_COLUMNS
    agent: tuple[int, int]  # its tile (x, y)
    reach: int  # the tiles within it of the agent are lit
    sight: tuple[int, int] | None = None  # the first and last column that can be seen at all; None for all of them

    def place(self) -> Place:
        """Lines count from 0 here."""
        width = min(self.most_columns, STRIP_COLUMNS)
        columns = strip_columns(*self.span, self.agent[0], width)
        return Place((self.agent[0], self.agent[1] + 1), columns, STRIP_TILE)

    def picture(self) -> np.ndarray:
        """uint8 [3 * STRIP_TILE, columns * STRIP_TILE, 3]; to the right of a short world it is black, and gaps are
        three dots."""
        columns, width, (x, y) = self.place().columns, min(self.most_columns, STRIP_COLUMNS), self.agent
        codes = np.zeros((width, 3, 3), np.uint8)
        lit = np.zeros((width, 3), bool)
        for i, column in enumerate(columns):
            if column is not None:
                codes[i] = np.asarray([self.encoded(column, line - 1) for line in range(3)])
                if self.sight is None or self.sight[0] <= column <= self.sight[1]:
                    lit[i] = [max(abs(column - x), abs(line - 1 - y)) <= self.reach for line in range(3)]
        picture = render_tiles(codes, STRIP_TILE, (columns.index(x), y + 1), lit)
        middle, dot = STRIP_TILE * 3 // 2, STRIP_TILE // 16
        for i, column in enumerate(columns):
            for part in (1, 2, 3) if column is None else ():
                centre = i * STRIP_TILE + part * STRIP_TILE // 4
                picture[middle - dot : middle + dot, centre - dot : centre + dot] = 160
        return picture


class Window:
    """A window on the screen for `render_mode="human"`."""

    def __init__(self, fps: int) -> None:
        import pygame

        self._pygame, self._fps = pygame, fps
        pygame.display.init()
        self._clock = pygame.time.Clock()
        self._screen = None

    def draw(self, picture: np.ndarray) -> None:
        """Shows `picture` uint8 [height, width, 3] and waits for the time of one frame."""
        pygame = self._pygame
        if self._screen is None:
            self._screen = pygame.display.set_mode((picture.shape[1], picture.shape[0]))
        pygame.surfarray.blit_array(self._screen, picture.swapaxes(0, 1))
        pygame.event.pump()
        pygame.display.flip()
        self._clock.tick(self._fps)

    def close(self) -> None:
        self._pygame.display.quit()
