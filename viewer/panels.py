"""Observations as pictures: MiniGrid's cells as its tiles, pictures as they are, matrices as heat maps. An observation
without any of these is one heat map of all its numbers. Several pictures stand side by side.

T observations, n numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from expire_span_rl.envs import render_observation
from expire_span_rl.policies.encoders.picture import BRIGHTEST
from expire_span_rl.spaces import PREVIOUS_ACTION, PREVIOUS_REWARD

SEEN_TILE = 16  # pixels of a cell of an observation, unless there are many
MAX_SIDE = 128  # pixels of a side of a picture or a heat map; larger ones are made smaller
LONG_EPISODE = 2000  # steps; in longer episodes pictures are smaller, since all of them are in memory at once
MAX_SIDE_OF_LONG = 64  # MAX_SIDE in such an episode
MIN_SIDE = 64  # pixels; a smaller picture is drawn with larger pixels
MIN_MATRIX = 4  # numbers of a side; narrower ones are not drawn as a matrix
GAP = 4  # pixels between two panels


def is_panel(entry: Mapping[str, Any]) -> bool:
    """Whether an entry of an observation's spec is shown as a picture of its own."""
    shape = entry.get("shape", [])
    matrix = len(shape) == 2 and min(shape) >= MIN_MATRIX and entry["kind"] in ("vector", "integers")
    return entry["kind"] in ("cells", "picture") or matrix


def observation_pictures(
    observations: Sequence[Mapping[str, np.ndarray]], spec: Mapping[str, Mapping[str, Any]]
) -> list[np.ndarray]:
    """A picture of each observation, uint8 [height, width, 3], all of one size. spec: of the policy's observation."""
    max_side = MAX_SIDE if len(observations) <= LONG_EPISODE else MAX_SIDE_OF_LONG
    panels = []
    for name, entry in spec.items():
        if not is_panel(entry) or name in (PREVIOUS_ACTION, PREVIOUS_REWARD):
            continue
        values = [observation[name] for observation in observations]
        if entry["kind"] == "cells":
            panels.append(_tiles(values))
        elif entry["kind"] == "picture":
            pictures = [as_rgb(_brightened(value, entry), entry["channels"] == "last") for value in values]
            panels.append([_resize(picture, max_side) for picture in pictures])
        else:
            panels.append(_heat_maps(np.stack(values), max_side))
    if panels:
        return panels[0] if len(panels) == 1 else [_side_by_side(parts) for parts in zip(*panels, strict=True)]
    table = np.stack(
        [np.concatenate([np.ravel(o[name]).astype(float) for name in spec]) for o in observations]
    )  # [T,n]
    width = int(np.ceil(np.sqrt(table.shape[1])))
    padding = -table.shape[1] % width
    return _heat_maps(table, max_side, (-1, width), padding)


def _brightened(value: np.ndarray, entry: Mapping[str, Any]) -> np.ndarray:
    """A picture, uint8 of any shape, whose largest possible number is 255."""
    brightest = entry.get("brightest", BRIGHTEST)
    if brightest == BRIGHTEST:
        return value
    return (value.astype(np.uint16) * BRIGHTEST // brightest).clip(0, BRIGHTEST).astype(np.uint8)


def as_rgb(value: np.ndarray, channels_last: bool) -> np.ndarray:
    """A picture uint8 [height, width], [height, width, channels] or [channels, height, width] -> [height, width, 3].

    Channels may be several frames, of which the last is shown. It is in colour if their number is a multiple of 3. A
    fourth channel that is opaque everywhere is left out.
    """
    if value.ndim == 3:
        value = value if channels_last else np.moveaxis(value, 0, 2)
        count = value.shape[2]
        if count == 4 and (value[..., 3] == 255).all():
            return np.ascontiguousarray(value[..., :3])
        if count % 3 == 0:
            return np.ascontiguousarray(value[..., -3:])
        value = value[..., -1]
    return np.repeat(value[..., None], 3, 2)


def _tiles(images: Sequence[np.ndarray]) -> list[np.ndarray]:
    """MiniGrid's cells, each different image drawn once."""
    pictures: dict[bytes, np.ndarray] = {}
    for image in images:
        if image.tobytes() not in pictures:
            pictures[image.tobytes()] = render_observation(image, SEEN_TILE)
    return [pictures[image.tobytes()] for image in images]


def _resize(picture: np.ndarray, max_side: int) -> np.ndarray:
    """The picture with larger pixels if it is smaller than MIN_SIDE, or averaged so that it is no larger than
    `max_side`."""
    side = max(picture.shape[:2])
    if side > max_side:
        height, width = (max(1, round(length * max_side / side)) for length in picture.shape[:2])
        return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BOX))
    times = max(1, MIN_SIDE // side)
    return picture.repeat(times, 0).repeat(times, 1)


def _heat_maps(
    numbers: np.ndarray, max_side: int, shape: tuple[int, ...] | None = None, padding: int = 0
) -> list[np.ndarray]:
    """Heat maps of numbers [T, ...], each number between its smallest and its largest of the episode.

    shape: of one map, if it is not that of the numbers. padding: how many numbers must be added to fill it.
    """
    values = np.nan_to_num(numbers.astype(float), posinf=0, neginf=0)
    low = values.min(0)
    high = values.max(0)
    levels = np.round(15 * ((values - low) / np.where(high > low, high - low, 1))).astype(np.uint8)  # [T, ...]
    if shape is not None:
        levels = np.pad(levels, np.array([(0, 0), (0, padding)])).reshape(len(levels), *shape)
    times = max(1, min(SEEN_TILE, max_side // max(levels.shape[1:])))
    if times > 1:
        return [HEAT[grid].repeat(times, 0).repeat(times, 1) for grid in levels]
    return [_resize(HEAT[grid], max_side) for grid in levels]


def _side_by_side(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """One picture of several, black between and below them."""
    height = max(len(picture) for picture in pictures)
    parts = [np.pad(picture, np.array([(0, height - len(picture)), (0, GAP), (0, 0)])) for picture in pictures]
    return np.concatenate(parts, 1)[:, :-GAP]


_LEVEL = np.linspace(0, 1, 16)[:, None]
HEAT = (np.array([16, 24, 48]) * (1 - _LEVEL) + np.array([250, 214, 120]) * _LEVEL).astype(np.uint8)  # [16, 3]
