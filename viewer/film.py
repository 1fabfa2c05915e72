"""Pictures packed for the page and the MP4.

A film is an atlas of square tiles, each of which is kept once. For each frame it has the tiles that changed since the
frame before. So a gridworld's pictures cost as much as its grid would, and any other pictures no more than what moves.
"""

from __future__ import annotations

import base64
import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from PIL import Image

from expire_span_rl.envs.rendering import Place
from expire_span_rl.viewer.panels import SEEN_TILE, observation_pictures
from expire_span_rl.viewer.play import core_of

TILE = 32  # pixels; MiniGrid's tiles in `render`
MAX_SIDE = 1024  # pixels; larger frames lose every second pixel, or more
MAX_TILES = 6000  # different ones; with more, frames are made smaller, and at last fewer
MAX_LETTERS = 200  # of an environment's error
MAX_SEEN_TILES = 24_000  # different ones of all observations, which are smaller
ATLAS_COLUMNS = 64

__all__ = [
    "Atlas",
    "Film",
    "agent_place",
    "cut_tiles",
    "join_tiles",
    "observation_pictures",
    "pack_observations",
    "png_url",
]


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
        """JSON-able: `size`, `columns`, and `png`, a data URL of all tiles in one picture."""
        count = max(1, len(self))
        columns = min(count, ATLAS_COLUMNS)
        sheet = np.zeros((-(-count // columns) * columns, self.size, self.size, 3), np.uint8)
        sheet[: len(self)] = self.tiles()
        return {"size": self.size, "columns": columns, "png": png_url(join_tiles(sheet, columns))}


def png_url(picture: np.ndarray) -> str:
    """uint8 [height, width, 3] as a data URL."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "png", optimize=picture.size < 4_000_000)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def cut_tiles(picture: np.ndarray, size: int) -> np.ndarray:
    """uint8 [height, width, 3] -> tiles [n, size, size, 3], line by line. Tiles at the right and at the bottom are
    filled up with black."""
    height, width, _ = picture.shape
    picture = np.pad(picture, np.array([(0, -height % size), (0, -width % size), (0, 0)]))
    rows = picture.shape[0] // size
    columns = picture.shape[1] // size
    return picture.reshape(rows, size, columns, size, 3).swapaxes(1, 2).reshape(-1, size, size, 3)


def join_tiles(tiles: np.ndarray, columns: int) -> np.ndarray:
    """The inverse of `cut_tiles`: the picture of which these are the tiles."""
    size = tiles.shape[1]
    return tiles.reshape(-1, columns, size, size, 3).swapaxes(1, 2).reshape(-1, columns * size, 3)


class Film:
    """Call it before each action: it keeps what the environment renders, and where the agent is if that is known.

    `trouble` says in one line why there is no picture although the environment has `render_mode` rgb_array. It is None
    if there is a picture.
    """

    def __init__(self) -> None:
        self.places: list[Place | None] = []
        self.trouble: str | None = None
        self._atlas = Atlas(TILE)
        self._changes: list[list[int]] = []
        self._tiles = np.zeros(0, int)  # of the latest frame
        self._shape = (0, 0)  # pixels: height, width
        self._stride = 1  # 2: every second frame is kept, and so on
        self._is_reduced = False  # whether frames are smaller than what was rendered
        self._count = 0  # frames so far

    def __call__(self, env: gym.Env) -> None:
        self.places.append(agent_place(env))
        if self.trouble is not None or getattr(env, "render_mode", None) != "rgb_array":
            return
        frame = self._render(env)
        if frame is None:
            self._clear()
            return
        step = -(-max(frame.shape[:2]) // MAX_SIDE)
        self._is_reduced |= step > 1
        self._add(frame[::step, ::step])
        while len(self._atlas) > MAX_TILES:
            self._shrink()

    def _render(self, env: gym.Env) -> np.ndarray | None:
        """What the environment renders, uint8 [height, width, 3]. If it is no picture: None, and `trouble` says why.

        Raises DependencyNotInstalled for a missing package, which the user has to install.
        """
        try:
            picture = env.render()
        except gym.error.DependencyNotInstalled:
            raise
        except Exception as error:  # noqa: BLE001, pictures are optional: the episode is shown without
            self.trouble = f"render: {type(error).__name__}: {' '.join(str(error).split())}"[:MAX_LETTERS]
            return None
        if isinstance(picture, np.ndarray) and picture.dtype == np.uint8 and picture.size:
            if picture.ndim == 2:
                return np.repeat(picture[..., None], 3, 2)
            if picture.ndim == 3 and picture.shape[2] in (3, 4):
                return picture[..., :3]
        kind = f"{picture.dtype}{list(picture.shape)}" if isinstance(picture, np.ndarray) else type(picture).__name__
        self.trouble = f"render: expected a picture, uint8 [height, width, 3], got {kind}"
        return None

    def _clear(self) -> None:
        """Removes all frames: if some steps had no picture, frames and steps would no longer agree."""
        self._atlas = Atlas(TILE)
        self._changes = []
        self._count = 0

    def _add(self, frame: np.ndarray) -> None:
        if not self._changes:
            self._shape = frame.shape[:2]
            self._tiles = np.full(len(cut_tiles(frame, TILE)), -1)
        self._count += 1
        if (self._count - 1) % self._stride:
            self._changes.append([])
            return
        height, width = self._shape
        if frame.shape[:2] != self._shape:  # the window of some environments changes: all get the first frame's size
            frame = np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BOX))
        tiles = np.array([self._atlas.add(tile) for tile in cut_tiles(frame, TILE)])
        changed = np.flatnonzero(tiles != self._tiles)
        self._changes.append(np.stack([changed, tiles[changed]], 1).ravel().tolist())
        self._tiles = tiles

    def _shrink(self) -> None:
        """Halves the size of the film or, if it is small already, the number of its frames."""
        height, width = self._shape
        is_small = max(height, width) <= 128
        smaller = Film()
        smaller._stride = 2 * self._stride if is_small else self._stride
        self._is_reduced |= not is_small
        for frame in self.frames():
            smaller._add(frame if is_small else frame[::2, ::2])
        for name in ("_atlas", "_changes", "_tiles", "_shape", "_stride", "_count"):
            setattr(self, name, getattr(smaller, name))

    def frames(self) -> Iterator[np.ndarray]:
        """The frames as they are kept, uint8 [height, width, 3] each."""
        height, width = self._shape
        atlas = self._atlas.tiles()
        tiles = np.zeros(-(-height // TILE) * -(-width // TILE), int)
        for changes in self._changes:
            tiles[changes[::2]] = changes[1::2]
            yield join_tiles(atlas[tiles], -(-width // TILE))[:height, :width]

    def packed(self) -> dict[str, Any] | None:
        """JSON-able: the atlas, `height` and `width` in pixels, and `changes` (of each frame: place, tile, place, tile,
        ...). None without frames.

        `places` has the agent's column and line in the world at each step. `shown` has the world's columns that the
        picture shows, -1 for those of the step before. Both are None where they are not known.
        """
        if not self._changes:
            return None
        height, width = self._shape
        # Places are in cells of TILE pixels, which a smaller picture does not have.
        has_places = not self._is_reduced and all(p is not None and p.tile_size == TILE for p in self.places)
        columns = [place.columns if place is not None else None for place in self.places]
        repeats = [i > 0 and columns[i] == columns[i - 1] for i in range(len(columns))]
        agents = [list(place.agent) for place in self.places if place is not None]
        changed_columns = [-1 if repeat else column for repeat, column in zip(repeats, columns, strict=True)]
        return {
            **self._atlas.packed(),
            "height": height,
            "width": width,
            "changes": self._changes,
            "places": agents if has_places else None,
            "shown": changed_columns if has_places else None,
        }


def agent_place(env: gym.Env) -> Place | None:
    """Where the agent is in the picture that `env` renders. None if it is not known."""
    core = core_of(env)
    inner: Any = env.unwrapped
    if core is not None:
        return core.place(0)
    minigrid = sys.modules.get("minigrid.minigrid_env")
    if minigrid is None or not isinstance(inner, minigrid.MiniGridEnv) or inner.agent_pov:
        return None
    x, y = (int(part) for part in inner.agent_pos)
    return Place((x, y), list(range(inner.grid.width)), int(inner.tile_size))


def pack_observations(
    observations: Sequence[Mapping[str, np.ndarray]], spec: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """JSON-able: the atlas of tiles, `width` and `height` in pixels, `wide` and `tall` in tiles.

    `looks` has the tiles of each different observation, line by line, and `which` the look of each step. The pictures
    are those of `observation_pictures`. They are made smaller if they have too many different tiles.
    """
    pictures = observation_pictures(observations, spec)
    while True:
        atlas = Atlas(SEEN_TILE)
        looks: dict[tuple[int, ...], int] = {}  # the number of each
        which = []
        for picture in pictures:
            look = tuple(atlas.add(tile) for tile in cut_tiles(picture, SEEN_TILE))
            which.append(looks.setdefault(look, len(looks)))
        height, width, _ = pictures[0].shape
        if len(atlas) <= MAX_SEEN_TILES or max(height, width) <= 2 * SEEN_TILE:
            break
        half = max(1, width // 2), max(1, height // 2)
        pictures = [np.asarray(Image.fromarray(picture).resize(half, Image.Resampling.BOX)) for picture in pictures]
    return {
        **atlas.packed(),
        "width": width,
        "height": height,
        "wide": -(-width // SEEN_TILE),
        "tall": -(-height // SEEN_TILE),
        "looks": [list(look) for look in looks],
        "which": which,
    }
