"""Pictures: the columns that the strip of a long corridor shows, and MiniGrid's tiles."""

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
    visible = [column for column in columns if column is not None]
    assert visible == sorted(set(visible))
    assert {-1, 0, 1, x, length - 2, length - 1, length} <= set(visible)
    assert len(columns) == min(length + 2, STRIP_COLUMNS)
    for left, right in pairwise(columns):
        assert left is None or right is None or right == left + 1  # columns are missing only at gaps
    for i, column in enumerate(columns):
        if column is None:
            assert columns[i + 1] - columns[i - 1] > 1
    if len(columns) == STRIP_COLUMNS:  # the columns beside the agent are visible too
        assert {max(x - 1, -1), x + 1} <= set(visible)


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
            np.testing.assert_array_equal(tile, expected.astype(np.uint8))  # MiniGrid drops fractions too


def tile_of(picture: np.ndarray, column: int, line: int) -> np.ndarray:
    """The pixels of one tile."""
    return picture[line * STRIP_TILE : (line + 1) * STRIP_TILE, column * STRIP_TILE : (column + 1) * STRIP_TILE]


def centre(picture: np.ndarray, column: int, line: int) -> list[int]:
    """The colour in the middle of a tile."""
    return tile_of(picture, column, line)[STRIP_TILE // 2, STRIP_TILE // 2].tolist()


def test_a_picture_shows_the_ball_the_agent_and_the_open_door():
    env = CorridorEnv(render_mode="rgb_array", min_length=4, max_length=6)
    env.reset(seed=2)
    core = env.core
    length = int(core.length[0])
    is_blue = int(core.ball[0])
    picture = env.render()
    assert picture.shape == (3 * STRIP_TILE, 8 * STRIP_TILE, 3)
    red, _, blue_part = centre(picture, 0, 1)
    assert (blue_part > red) if is_blue else (red > blue_part)
    assert centre(picture, 1, 1)[0] == 255  # MiniGrid's agent is red
    dark_tile = Grid.render_tile(None)
    lit_tile = Grid.render_tile(None, highlight=True)
    for column, expected in ((2, lit_tile), (3, dark_tile)):  # with a view of 3, the agent sees one tile ahead
        np.testing.assert_array_equal(tile_of(picture, column, 1), expected.astype(np.uint8))
    for _ in range(length - 1):
        env.step(EAST)
    env.step(NORTH if core.door[0] < 0 else SOUTH)
    last_picture = env.render()
    assert last_picture.shape == picture.shape
    door = Door(["red", "blue"][is_blue], is_open=True)
    np.testing.assert_array_equal(
        tile_of(last_picture, length, 1 + int(core.door[0])),
        Grid.render_tile(door, agent_dir=0, highlight=True).astype(np.uint8),
    )


def test_pictures_of_all_lengths_have_one_size():
    env = CorridorEnv(render_mode="rgb_array", min_length=3, max_length=60)
    shapes = set()
    for seed in range(12):
        env.reset(seed=seed)
        shapes.add(env.render().shape)
    assert shapes == {(3 * STRIP_TILE, STRIP_COLUMNS * STRIP_TILE, 3)}
