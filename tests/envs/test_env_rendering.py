"""Pictures: which columns of a long corridor are shown, and that tiles are MiniGrid's."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from minigrid.core.grid import Grid
from minigrid.core.world_object import Ball, Door, Wall

from expire_span_rl import envs
from expire_span_rl.envs.corridor import CorridorEnv
from expire_span_rl.envs.rendering import STRIP_COLUMNS, STRIP_TILE, strip_columns
from expire_span_rl.envs.tiles import BALL, DOOR, EAST, EMPTY, NORTH, SOUTH, WALL


@given(st.integers(3, 500), st.data())
def test_a_strip_shows_the_agent_and_both_ends(length, data):
    x = data.draw(st.integers(0, length - 1))
    columns = strip_columns(-1, length, x, STRIP_COLUMNS)
    shown = [column for column in columns if column is not None]
    assert shown == sorted(set(shown))
    assert {-1, 0, 1, x, length - 2, length - 1, length} <= set(shown)
    assert len(columns) == min(length + 2, STRIP_COLUMNS)
    for left, right in pairwise(columns):
        assert left is None or right is None or right == left + 1  # what is left out is left out at a gap
    for i, column in enumerate(columns):
        if column is None:
            assert columns[i + 1] - columns[i - 1] > 1
    if len(columns) == STRIP_COLUMNS:  # the agent's neighbours are there too
        assert {max(x - 1, -1), x + 1} <= set(shown)


def test_an_observation_is_drawn_with_minigrids_tiles():
    image = np.array([[WALL, BALL[0], BALL[1]], [EMPTY, DOOR[0], DOOR[1]], [(0, 0, 0), (99, 0, 0), EMPTY]], np.uint8)
    picture = envs.render_observation(image, tile_size=12)
    assert picture.shape == (36, 36, 3) and picture.dtype == np.uint8
    things = [[Wall(), Ball("red"), Ball("blue")], [None, Door("red"), Door("blue")], ["unseen", None, None]]
    for column in range(3):
        for line in range(3):
            tile = picture[line * 12 : line * 12 + 12, column * 12 : column * 12 + 12]
            thing = things[column][line]
            expected = np.zeros_like(tile) if thing == "unseen" else Grid.render_tile(thing, tile_size=12)
            np.testing.assert_array_equal(tile, expected.astype(np.uint8))  # MiniGrid cuts fractions off too


def tile_of(picture: np.ndarray, column: int, line: int) -> np.ndarray:
    """The pixels of one tile."""
    return picture[line * STRIP_TILE : (line + 1) * STRIP_TILE, column * STRIP_TILE : (column + 1) * STRIP_TILE]


def centre(picture: np.ndarray, column: int, line: int) -> list[int]:
    """The colour in the middle of a tile."""
    return tile_of(picture, column, line)[STRIP_TILE // 2, STRIP_TILE // 2].tolist()


def test_a_picture_tells_ball_agent_doors_and_the_way_out():
    env = CorridorEnv(render_mode="rgb_array", min_length=4, max_length=6)
    env.reset(seed=2)
    core = env.core
    length, blue = int(core.length[0]), int(core.ball[0])
    picture = env.render()
    assert picture.shape == (3 * STRIP_TILE, 8 * STRIP_TILE, 3)
    red, _, blue_part = centre(picture, 0, 1)
    assert (blue_part > red) if blue else (red > blue_part)
    assert centre(picture, 1, 1)[0] == 255  # MiniGrid's agent is red
    dark, lit = Grid.render_tile(None), Grid.render_tile(None, highlight=True)
    for column, expected in ((2, lit), (3, dark)):  # with a view of 3, the agent sees one tile ahead
        np.testing.assert_array_equal(tile_of(picture, column, 1), expected.astype(np.uint8))
    for _ in range(length - 1):
        env.step(EAST)
    env.step(NORTH if core.door[0] < 0 else SOUTH)
    after = env.render()
    assert after.shape == picture.shape
    door = Door(["red", "blue"][blue], is_open=True)
    np.testing.assert_array_equal(
        tile_of(after, length, 1 + int(core.door[0])),
        Grid.render_tile(door, agent_dir=0, highlight=True).astype(np.uint8),
    )


def test_pictures_have_one_size_whatever_the_length_drawn():
    env = CorridorEnv(render_mode="rgb_array", min_length=3, max_length=60)
    shapes = set()
    for seed in range(12):
        env.reset(seed=seed)
        shapes.add(env.render().shape)
    assert shapes == {(3 * STRIP_TILE, STRIP_COLUMNS * STRIP_TILE, 3)}
