"""Pictures packed for the page, and the MP4. Square tiles that occur more than once are kept once: a film is an atlas
of tiles and, per frame, which of its tiles changed since the frame before. So what a gridworld draws costs as much as
its grid would, and anything else no more than what moves.
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
WIDEST = 1024  # pixels: larger frames lose every second pixel, or more
MOST_TILES = 6000  # where an episode has more different ones, its frames are made smaller, and at last fewer
MOST_LETTERS = 200  # of an environment's error
MOST_SEEN = 24_000  # tiles of all observations, which are smaller
ATLAS_COLUMNS = 64

__all__ = ["Atlas", "Film", "cut", "joined", "observation_pictures", "pack_observations", "place", "png_url"]


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
    picture = np.pad(picture, np.array([(0, -height % size), (0, -width % size), (0, 0)]))
    rows, columns = picture.shape[0] // size, picture.shape[1] // size
    return picture.reshape(rows, size, columns, size, 3).swapaxes(1, 2).reshape(-1, size, size, 3)


def joined(tiles: np.ndarray, columns: int) -> np.ndarray:
    """What `cut` made, put together again."""
    size = tiles.shape[1]
    return tiles.reshape(-1, columns, size, size, 3).swapaxes(1, 2).reshape(-1, columns * size, 3)


class Film:
    """Call it before each action: it keeps what the environment renders, and where the agent is if that is known.

    `trouble`: in one line, why there is no picture although the environment has `render_mode` rgb_array; None if there
    is."""

    def __init__(self) -> None:
        self.places: list[Place | None] = []
        self.trouble: str | None = None
        self._atlas, self._changes = Atlas(TILE), []
        self._tiles = np.zeros(0, int)  # of the latest frame
        self._shape = (0, 0)  # pixels: height, width
        self._every, self._count = 1, 0  # frames kept: each, or each second, ...; frames seen

    def __call__(self, env: gym.Env) -> None:
        self.places.append(place(env))
        if self.trouble is not None or getattr(env, "render_mode", None) != "rgb_array":
            return
        frame = self._drawn(env)
        if frame is None:
            self._forget()
            return
        step = -(-max(frame.shape[:2]) // WIDEST)
        self._add(frame[::step, ::step])
        while len(self._atlas) > MOST_TILES:
            self._coarser()

    def _drawn(self, env: gym.Env) -> np.ndarray | None:
        """What the environment renders, uint8 [height, width, 3]; None, with `trouble` told, if it is no picture. A
        missing package is the user's to install: DependencyNotInstalled is raised."""
        try:
            drawn = env.render()
        except gym.error.DependencyNotInstalled:
            raise
        except Exception as error:  # noqa: BLE001, drawing is extra: the episode is shown without
            self.trouble = f"render: {type(error).__name__}: {' '.join(str(error).split())}"[:MOST_LETTERS]
            return None
        if isinstance(drawn, np.ndarray) and drawn.dtype == np.uint8 and drawn.size:
            if drawn.ndim == 2:
                return np.repeat(drawn[..., None], 3, 2)
            if drawn.ndim == 3 and drawn.shape[2] in (3, 4):
                return drawn[..., :3]
        given = f"{drawn.dtype}{list(drawn.shape)}" if isinstance(drawn, np.ndarray) else type(drawn).__name__
        self.trouble = f"render: expected a picture, uint8 [height, width, 3], got {given}"
        return None

    def _forget(self) -> None:
        """No frames: some steps without a picture would put the film out of step."""
        self._atlas, self._changes, self._count = Atlas(TILE), [], 0

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
        agents = [list(place.agent) for place in self.places if place is not None]
        return {
            **self._atlas.packed(), "height": height, "width": width, "changes": self._changes,
            "places": agents if known else None,
            # -1: as at the step before
            "shown": [-1 if s else c for s, c in zip(same, columns, strict=True)] if known else None,
        }  # fmt: skip


def place(env: gym.Env) -> Place | None:
    """Where the agent is in the picture that `env` renders; None if not known."""
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
    """JSON-able: the atlas of tiles, `width` and `height` in pixels, `wide` and `tall` in tiles, `looks` (tiles of each
    different observation, line by line) and `which` (per step: its look). The pictures are those of
    `observation_pictures`, smaller where they have too many different tiles."""
    pictures = observation_pictures(observations, spec)
    while True:
        atlas, looks, which = Atlas(SEEN_TILE), {}, []
        for picture in pictures:
            look = tuple(atlas.add(tile) for tile in cut(picture, SEEN_TILE))
            which.append(looks.setdefault(look, len(looks)))
        height, width, _ = pictures[0].shape
        if len(atlas) <= MOST_SEEN or max(height, width) <= 2 * SEEN_TILE:
            break
        half = max(1, width // 2), max(1, height // 2)
        pictures = [np.asarray(Image.fromarray(one).resize(half, Image.Resampling.BOX)) for one in pictures]
    return {
        **atlas.packed(), "width": width, "height": height, "wide": -(-width // SEEN_TILE), "tall": -(-height // SEEN_TILE),
        "looks": [list(look) for look in looks], "which": which,
    }  # fmt: skip
