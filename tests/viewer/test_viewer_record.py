"""The numbers of the page against plain loops, and its packed pictures."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise

import gymnasium as gym
import imageio.v2 as imageio
import numpy as np
import pytest
from minigrid.envs import EmptyEnv
from viewer_cases import STORING, make_policy, play_steps

from expire_span_rl.envs import make_env, render_observation
from expire_span_rl.policies import KINDS
from expire_span_rl.viewer import film as film_module
from expire_span_rl.viewer.audit import audit
from expire_span_rl.viewer.film import (
    SEEN_TILE,
    TILE,
    Atlas,
    Film,
    agent_place,
    cut_tiles,
    join_tiles,
    observation_pictures,
    pack_observations,
)
from expire_span_rl.viewer.play import look
from expire_span_rl.viewer.record import numbers_of, record
from expire_span_rl.viewer.video import WIDE, scenes, video


def numbers(kind: str, steps: int = 40) -> dict:
    policy = make_policy(kind)
    episode = play_steps(policy, steps)
    lives = look(policy, episode)
    return record(
        policy,
        episode,
        lives,
        names=["n", "e", "s", "w"],
        about={"env": "x"},
        audit=audit(policy, episode, lives, 1, swap=None),
    )


def test_small_rewards_add_up_to_their_return():
    """-1/1499 at each of 1,499 steps, as in a T-maze, and one reward that is large."""
    policy = make_policy("gru")
    rewards = np.array([*[-1 / 1499] * 1499, 123456.75])
    data = numbers_of(policy, replace(play_steps(policy, 3), rewards=rewards), ["n", "e", "s", "w"])
    assert data["returns"][1498] == -1 and data["returns"][0] == data["rewards"][0] == -0.00066711141
    assert sum(data["rewards"][:1499]) == pytest.approx(-1, abs=1e-6)
    assert data["return"] == data["returns"][-1] == 123455.75
    unknown = numbers_of(policy, replace(play_steps(policy, 3), rewards=np.array([1.0, np.nan, 1.0])), list("nesw"))
    assert unknown["rewards"] == [1, None, 1] and unknown["returns"] == [1, None, None] and unknown["return"] is None


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_the_record_of_any_kind_is_json_and_its_sums_are_right(kind):
    data = json.loads(json.dumps(numbers(kind), allow_nan=False))
    assert len(data["probabilities"]) == len(data["values"]) == len(data["audit"]["influence"]) == data["steps"] == 40
    assert all(sum(row) == pytest.approx(1, abs=3e-4) for row in data["probabilities"])
    assert data["return"] == pytest.approx(sum(data["rewards"]))
    assert len(data["layers"]) == (2 if KINDS[kind].stores else 0)
    memory = make_policy(kind).initial_memory(1)
    if KINDS[kind].stores:
        sizes = zip(data["layers"], memory.slot_bytes(), strict=True)
        mean_bytes = sum(np.mean(layer["live"]) * size for layer, size in sizes)
        assert data["state_bytes"] == pytest.approx(mean_bytes, abs=0.5) and data["state_bytes"] > 0
    else:
        assert data["state_bytes"] == int(memory.bytes()[0])
    oldest = 0
    for layer in data["layers"]:
        for t in range(40):
            live_steps = [w for w in range(t + 1) if layer["end"][w] > t]
            oldest = max([oldest, *(t - w for w in live_steps)])
            assert layer["remembered"][t] == len(live_steps)
            slots = {
                w if layer["merged"] is None or layer["merged"][w] > t else -1 - w // layer["merge_size"]
                for w in live_steps
            }
            assert layer["live"][t] == len(slots)
            now = layer["attention"][t]
            assert set(now["to"]) <= {*live_steps} and now["to"] == sorted(now["to"])
            for head in now["weights"]:
                assert sum(head) <= 1.001 + 0.001 * len(head)
            if kind != "adaptive_span" and len(now["to"]) == len(live_steps):
                assert all(sum(head) == pytest.approx(1, abs=0.001 * len(head)) for head in now["weights"])
    if KINDS[kind].stores:
        assert data["transformer_xl"] == {"window": oldest, "live": [min(t, oldest) + 1 for t in range(40)]}
    else:
        assert data["transformer_xl"] is None


@pytest.mark.parametrize("kind", STORING)
def test_expiry_is_the_end_that_a_longer_episode_shows(kind):
    """The prediction beyond the end of a short episode agrees with a longer one."""
    short, long = numbers(kind, 20), numbers(kind, 60)
    for now, later in zip(short["layers"], long["layers"]):
        beyond = 0
        for w in range(20):
            end = later["end"][w] if later["end"][w] < 60 else None
            assert now["expires"][w] == later["expires"][w]
            if end is not None:
                assert now["expires"][w] == end
                beyond += now["end"][w] == 20 < end
        assert beyond or kind == "expire_span"
        if kind == "expire_span":  # the mask is 0 from age span + ramp on
            for w, span in enumerate(now["span"]):  # which is rounded to a tenth
                assert now["expires"][w] - w in {math.ceil(span + 3 - 0.05), math.ceil(span + 3 + 0.05)}


# Pictures


def frames_of(packed: dict) -> list[np.ndarray]:
    """The frames as the page's script puts them together."""
    import base64
    import io

    from PIL import Image

    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(packed["png"].split(",")[1]))))
    size, wide = packed["size"], -(-packed["width"] // packed["size"])
    tall, frames = -(-packed["height"] // size), []
    frame = np.zeros((tall * size, wide * size, 3), np.uint8)
    for changes in packed["changes"]:
        for at, tile in zip(changes[::2], changes[1::2]):
            y, x = at // wide * size, at % wide * size
            top, left = tile // packed["columns"] * size, tile % packed["columns"] * size
            frame[y : y + size, x : x + size] = sheet[top : top + size, left : left + size]
        frames.append(frame[: packed["height"], : packed["width"]].copy())
    return frames


@pytest.mark.parametrize("env_id", ["Corridor-v0", "Portal-v0", "Switch-v0", "MiniGrid-MemoryS7-v0", "CartPole-v1"])
def test_the_film_gives_back_what_was_rendered(env_id):
    env, film, rendered = make_env(env_id, render_mode="rgb_array"), Film(), []
    env.reset(seed=1)
    for t in range(12):
        film(env)
        rendered.append(env.render())
        if any(env.step(t % env.action_space.n)[2:4]):
            break
    packed = json.loads(json.dumps(film.packed()))
    for packed_frame, again, frame in zip(film.frames(), frames_of(packed), rendered, strict=True):
        np.testing.assert_array_equal(packed_frame, frame)
        np.testing.assert_array_equal(again, frame)
    assert (packed["places"] is None) == (env_id == "CartPole-v1")


@pytest.mark.parametrize("env_id", ["Corridor-v0", "Portal-v0", "Switch-v0", "MiniGrid-MemoryS7-v0"])
def test_the_agent_stands_where_the_place_says(env_id):
    """Only the agent's tile has MiniGrid's red triangle."""
    env = make_env(env_id, render_mode="rgb_array")
    env.reset(seed=4)
    for t in range(40):
        where, frame = agent_place(env), env.render()
        x, y = where.columns.index(where.agent[0]) * TILE, where.agent[1] * TILE
        tile = frame[y : y + TILE, x : x + TILE]
        assert tile.shape == (TILE, TILE, 3)
        red = (tile[..., 0] > 200) & (tile[..., 1] < 120) & (tile[..., 2] < 120)
        assert red.mean() > 0.15
        if any(env.step((1, 1, 0, 1, 2)[t % 5])[2:4]):
            break


@pytest.mark.parametrize(("wrap", "is_one_world"), [("fresh_episodes=2", False), ("episodes=2", True)])
def test_fresh_episodes_have_worlds_of_their_own(wrap, is_one_world):
    """A place of the first episode is not looked for in the picture of the second, unless both have the same draw."""
    env = make_env("Corridor-v0", wraps=[wrap], min_length=3, max_length=3, render_mode="rgb_array")
    env.reset(seed=0)
    film = Film()
    for action in (1, 1, 0, 1):  # the door is at the third step
        film(env)
        env.step(action)
    packed = film.packed()
    shown = [columns for columns in packed["shown"] if columns != -1]
    assert len(shown) == (1 if is_one_world else 2)
    assert [packed["places"][0][0] in columns for columns in shown] == ([True] if is_one_world else [True, False])
    assert packed["places"][3][0] in shown[-1]


def test_in_a_wrapped_task_hidden_steps_show_no_fact_and_decide_nothing():
    env = make_env("Corridor-v0", wraps=["stretch=2"], min_length=3, max_length=3)
    env.reset(seed=0)
    core, data = env.unwrapped.core, []
    for _ in range(9):
        data.append((int(core.facts()[0]), bool(core.decisions()[0])))
        env.step(1)
    assert data == [(0, False), (-1, False), (-1, False)] + [(-1, False)] * 3 + [(-1, True), (-1, False), (-1, False)]
    fresh = make_env("Corridor-v0", wraps=["fresh_episodes=2"], min_length=3, max_length=3)
    fresh.reset(seed=0)
    core, facts = fresh.unwrapped.core, []
    for action in (1, 1, 0, 1):
        facts.append(int(core.facts()[0]))
        fresh.step(action)
    assert facts == [0, -1, -1, 1 << 32]
    assert core.swap_observation(core.observe()) is not None


def test_a_film_of_too_many_tiles_gets_coarser_and_stays_a_film(monkeypatch):
    monkeypatch.setattr(film_module, "MAX_TILES", 60)
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (256, 320, 3), dtype=np.uint8) for _ in range(40)]

    class Noise(gym.Env):
        render_mode = "rgb_array"

        def render(self):
            return frames[self.t]

    env, film = Noise(), Film()
    for env.t in range(40):
        film(env)
    packed_frames = list(film.frames())
    assert len(packed_frames) == 40 and len(film._atlas) <= 60
    assert packed_frames[0].shape == (64, 80, 3)  # a quarter, and fewer frames beyond that
    np.testing.assert_array_equal(packed_frames[0], frames[0][::4, ::4])
    assert sum((a != b).any() for a, b in pairwise(packed_frames)) < 20


def test_tiles_are_cut_and_joined():
    picture = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    tiles = cut_tiles(picture, 32)
    assert tiles.shape == (6, 32, 32, 3)
    np.testing.assert_array_equal(join_tiles(tiles, 3)[:50, :70], picture)
    atlas = Atlas(32)
    assert [atlas.add(tile) for tile in (*tiles, tiles[2])] == [0, 1, 2, 3, 4, 5, 2]
    np.testing.assert_array_equal(atlas.tiles(), tiles)


def test_observations_are_minigrids_tiles_or_heat_maps():
    policy = make_policy()
    episode = play_steps(policy, 30)
    packed = pack_observations(episode.observations, policy.config.observation)
    looks = {o["image"].tobytes() for o in episode.observations}
    assert len(packed["looks"]) == len(looks) and (packed["wide"], packed["tall"]) == (3, 3)
    for t, picture in enumerate(observation_pictures(episode.observations, policy.config.observation)):
        np.testing.assert_array_equal(picture, render_observation(episode.observations[t]["image"], SEEN_TILE))
    policy = make_policy(env_id="CartPole-v1")
    poles = play_steps(policy, 10, "CartPole-v1").observations
    values = np.stack([o["observation"] for o in poles])
    pictures = np.stack(observation_pictures(poles, policy.config.observation))[
        :, SEEN_TILE // 2 :: SEEN_TILE, SEEN_TILE // 2 :: SEEN_TILE
    ]
    brightness = pictures.sum(-1).reshape(len(poles), -1)
    for i in range(4):
        assert brightness[values[:, i].argmax(), i] == brightness[:, i].max() > brightness[:, i].min()
        assert brightness[values[:, i].argmin(), i] == brightness[:, i].min()


@pytest.mark.parametrize(("kind", "has_frames"), [("expire_span", True), ("gru", False)])
def test_the_video_has_a_frame_per_step(tmp_path, kind, has_frames):
    data = numbers(kind, 12)
    policy = make_policy(kind)
    views = observation_pictures(play_steps(policy, 12).observations, policy.config.observation)
    taken = []

    def frames():
        for t in range(12 if has_frames else 0):
            taken.append(t)
            yield np.full((96, 800, 3), 20 * t, np.uint8)

    pictures = []
    for picture in scenes(data, frames(), views):
        pictures.append(picture)
        assert len(taken) <= len(pictures) + 1  # a film of thousands of steps is never in memory as a whole
    assert len(pictures) == 12 and len({p.shape for p in pictures}) == 1 and pictures[0].shape[1] == WIDE
    (tmp_path / "x.mp4").write_bytes(video(iter(pictures), 10))
    reader = imageio.get_reader(tmp_path / "x.mp4")
    back = [frame for frame in reader]
    assert len(back) == 12 and back[0].shape == pictures[0].shape
    assert reader.get_meta_data()["codec"] == "h264"
    for before, after in zip(pictures, back):
        assert abs(before.astype(float) - after).mean() < 6


def test_a_film_that_is_smaller_than_the_world_names_no_places():
    """A world of 40×40 cells has pictures of 1,280×1,280 pixels, of which every second one is kept."""
    env, film = EmptyEnv(size=40, render_mode="rgb_array"), Film()
    env.reset(seed=1)
    film(env)
    packed = film.packed()
    assert (packed["width"], packed["places"], packed["shown"]) == (640, None, None)
