"""Pictures packed for the page, and the MP4. Square tiles that occur more than once are kept once: a film is an atlas of
tiles and, per frame, which of its tiles changed since the frame before. So what a gridworld draws costs as much as its
grid would, and anything else no more than what moves.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from PIL import Image

from expire_span_rl.envs import render_observation
from expire_span_rl.envs.rendering import Place

TILE = 32  # pixels; MiniGrid's tiles in `render`
WIDEST = 1024  # pixels: larger frames lose every second pixel, or more
MOST_TILES = 6000  # where an episode has more different ones, its frames are made smaller, and at last fewer
ATLAS_COLUMNS = 64
SEEN_TILE = 16  # pixels of a cell of an observation


class Atlas:
    """Square tiles of `size` pixels, each kept once."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._index: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self._index)

    def add(self, tile: np.ndarray) -> int:
        """The number of the tile uint8 [size, size, 3]."""
        return self._index.setdefault(tile.tobytes(), len(self._index))

    def tiles(self) -> np.ndarray:
        """uint8 [n, size, size, 3], by number."""
        return np.frombuffer(b"".join(self._index), np.uint8).reshape(-1, self.size, self.size, 3)

    def packed(self) -> dict[str, Any]:
        """JSON-able: `size`, `columns`, and `png`, all tiles in one picture, as a data URL."""
        count = max(1, len(self))
        columns = min(count, ATLAS_COLUMNS)
        sheet = np.zeros((-(-count // columns) * columns, self.size, self.size, 3), np.uint8)
        sheet[: len(self)] = self.tiles()
        return {"size": self.size, "columns": columns, "png": png_url(joined(sheet, columns))}


def png_url(picture: np.ndarray) -> str:
    """uint8 [height, width, 3] as a data URL."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "png", optimize=picture.size < 4_000_000)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def cut(picture: np.ndarray, size: int) -> np.ndarray:
    """uint8 [height, width, 3] -> tiles [n, size, size, 3], line by line; black to the right and below."""
    height, width, _ = picture.shape
    picture = np.pad(picture, ((0, -height % size), (0, -width % size), (0, 0)))
    rows, columns = picture.shape[0] // size, picture.shape[1] // size
    return picture.reshape(rows, size, columns, size, 3).swapaxes(1, 2).reshape(-1, size, size, 3)


def joined(tiles: np.ndarray, columns: int) -> np.ndarray:
    """What `cut` made, put together again."""
    size = tiles.shape[1]
    return tiles.reshape(-1, columns, size, size, 3).swapaxes(1, 2).reshape(-1, columns * size, 3)


class Film:
    """Call it before each action: it keeps what the environment renders, and where the agent is if that is known."""

    def __init__(self) -> None:
        self.places: list[Place | None] = []
        self._atlas, self._changes = Atlas(TILE), []
        self._tiles = np.zeros(0, int)  # of the latest frame
        self._shape = (0, 0)  # pixels: height, width
        self._every, self._count = 1, 0  # frames kept: each, or each second, ...; frames seen

    def __call__(self, env: gym.Env) -> None:
        self.places.append(place(env))
        if env.render_mode != "rgb_array":
            return
        frame = np.asarray(env.render())[..., :3].astype(np.uint8, copy=False)
        step = -(-max(frame.shape[:2]) // WIDEST)
        self._add(frame[::step, ::step])
        while len(self._atlas) > MOST_TILES:
            self._coarser()

    def _add(self, frame: np.ndarray) -> None:
        if not self._changes:
            self._shape, self._tiles = frame.shape[:2], np.full(len(cut(frame, TILE)), -1)
        self._count += 1
        if (self._count - 1) % self._every:
            self._changes.append([])
            return
        height, width = self._shape
        if frame.shape[:2] != self._shape:  # the window of some environments changes: the first frame's size holds
            frame = np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BOX))
        tiles = np.array([self._atlas.add(tile) for tile in cut(frame, TILE)])
        changed = np.flatnonzero(tiles != self._tiles)
        self._changes.append(np.stack([changed, tiles[changed]], 1).ravel().tolist())
        self._tiles = tiles

    def _coarser(self) -> None:
        """The same film at half the size, or, if it is small already, with half the frames."""
        height, width = self._shape
        small = max(height, width) <= 128
        kept = Film()
        kept._every = 2 * self._every if small else self._every
        for frame in self.frames():
            kept._add(frame if small else frame[::2, ::2])
        for name in ("_atlas", "_changes", "_tiles", "_shape", "_every", "_count"):
            setattr(self, name, getattr(kept, name))

    def frames(self) -> Iterator[np.ndarray]:
        """The frames as they are kept, uint8 [height, width, 3] each."""
        height, width = self._shape
        atlas = self._atlas.tiles()
        tiles = np.zeros(-(-height // TILE) * -(-width // TILE), int)
        for changes in self._changes:
            tiles[changes[::2]] = changes[1::2]
            yield joined(atlas[tiles], -(-width // TILE))[:height, :width]

    def packed(self) -> dict[str, Any] | None:
        """JSON-able: the atlas, `height` and `width` in pixels, `changes` (per frame: place, tile, place, tile, ...),
        `places` (per step: the agent's column and line in the world, or None), `shown` (per step: the world's columns
        that the picture shows, None where that is not known), `tile_size`. None without frames."""
        if not self._changes:
            return None
        height, width = self._shape
        known = all(place is not None and place.tile_size == TILE for place in self.places)
        columns = [place.columns if place is not None else None for place in self.places]
        same = [i > 0 and columns[i] == columns[i - 1] for i in range(len(columns))]
        return {
            **self._atlas.packed(), "height": height, "width": width, "changes": self._changes,
            "places": [list(place.agent) for place in self.places] if known else None,
            # -1: as at the step before
            "shown": [-1 if s else c for s, c in zip(same, columns, strict=True)] if known else None,
        }  # fmt: skip


def place(env: gym.Env) -> Place | None:
    """Where the agent is in the picture that `env` renders; None if not known."""
    inner = env.unwrapped
    if hasattr(inner, "core"):
        return inner.core.place(0)
    position, grid = getattr(inner, "agent_pos", None), getattr(inner, "grid", None)
    if position is None or grid is None or getattr(inner, "agent_pov", False):
        return None
    return Place((int(position[0]), int(position[1])), list(range(grid.width)), int(inner.tile_size))


def observation_pictures(observations: Sequence[dict[str, np.ndarray]], cells: bool) -> list[np.ndarray]:
    """A picture of each observation, uint8 [height, width, 3] with cells of SEEN_TILE pixels. cells: there is an "image" in
    MiniGrid's code; other observations are heat maps of all their numbers, each between its smallest and its largest of
    the episode."""
    if cells:
        known: dict[bytes, np.ndarray] = {}
        for observation in observations:
            key = observation["image"].tobytes()
            if key not in known:
                known[key] = render_observation(observation["image"], SEEN_TILE)
        return [known[observation["image"].tobytes()] for observation in observations]
    table = np.stack([np.concatenate([np.ravel(o[key]).astype(float) for key in o]) for o in observations])
    table = np.nan_to_num(table, posinf=0, neginf=0)
    low, high = table.min(0), table.max(0)
    levels = np.round(15 * (table - low) / np.where(high > low, high - low, 1)).astype(int)  # [T, n]
    wide = int(np.ceil(np.sqrt(levels.shape[1])))
    grids = np.pad(levels, ((0, 0), (0, -levels.shape[1] % wide))).reshape(len(levels), -1, wide)
    return [HEAT[grid].repeat(SEEN_TILE, 0).repeat(SEEN_TILE, 1) for grid in grids]


def pack_observations(observations: Sequence[dict[str, np.ndarray]], cells: bool) -> dict[str, Any]:
    """JSON-able: the atlas of cells, `wide` and `tall` in cells, `looks` (cells of each different observation, line by
    line) and `which` (per step: its look). The pictures are those of `observation_pictures`."""
    atlas, looks, which = Atlas(SEEN_TILE), {}, []
    for picture in observation_pictures(observations, cells):
        look = tuple(atlas.add(tile) for tile in cut(picture, SEEN_TILE))
        which.append(looks.setdefault(look, len(looks)))
    tall, wide = picture.shape[0] // SEEN_TILE, picture.shape[1] // SEEN_TILE
    return {**atlas.packed(), "wide": wide, "tall": tall, "looks": [list(look) for look in looks], "which": which}


_LEVEL = np.linspace(0, 1, 16)[:, None]
HEAT = (np.array([16, 24, 48]) * (1 - _LEVEL) + np.array([250, 214, 120]) * _LEVEL).astype(np.uint8)  # [16, 3]
