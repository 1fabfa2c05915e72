"""Every kind of action and observation: playing, numbers, audit and pictures."""

from __future__ import annotations

import base64
import io
import json
import math
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from PIL import Image
from viewer_cases import make_policy
from viewer_spaces import ACTIONS, OBSERVATIONS, PICTURE, WORDS, Sampled

from expire_span_rl.envs import make_env
from expire_span_rl.policies import KINDS
from expire_span_rl.policies.transformer.slots import GONE
from expire_span_rl.viewer import film as film_module
from expire_span_rl.viewer.audit import EFFECTS, audit, table
from expire_span_rl.viewer.entries import labels_of
from expire_span_rl.viewer.film import Film, agent_place, pack_observations
from expire_span_rl.viewer.panels import MAX_SIDE, as_rgb, observation_pictures
from expire_span_rl.viewer.play import action_names, action_text, core_of, look, outcome, play, tensors_of
from expire_span_rl.viewer.record import record
from expire_span_rl.viewer.video import check_video, scenes
from expire_span_rl.visualization import Showing, show_in

SUM_OF = {"discrete": [3], "multi_discrete": [3, 2], "multi_binary": [2, 2, 2]}
"""How many probabilities each number of an action has."""


def world(observation: spaces.Space, action: spaces.Space, memory: str = "expire_span", **kwargs):
    """(policy with random weights, wrapped environment, the environment itself)."""
    base_env = Sampled(observation, action, **kwargs)
    policy = make_policy(memory, env_id=lambda: base_env)
    return policy, make_env(lambda: base_env), base_env


def show_sampled(
    observation: spaces.Space, action: spaces.Space, deterministic: bool = False, **kwargs
) -> tuple[Showing, Sampled]:
    policy, env, base_env = world(observation, action, **kwargs)
    return show_in(policy, env, "Sampled-v0", "p.safetensors", seed=3, deterministic=deterministic), base_env


@pytest.mark.parametrize("kind", ACTIONS)
def test_every_action_is_told_as_the_environment_got_it(kind):
    showing, base_env = show_sampled(OBSERVATIONS["vector"], ACTIONS[kind])
    (played,) = showing.episodes
    numbers = json.loads(json.dumps(played.record, allow_nan=False))
    taken_actions = np.stack(
        [np.ravel(action) for action in (base_env.taken_before if played.without else base_env.taken)]
    )  # [T,N]
    assert numbers["steps"] == len(taken_actions) == 12
    if kind.startswith("box"):
        np.testing.assert_array_equal(np.array(numbers["actions"]).astype(taken_actions.dtype), taken_actions)
        assert numbers["continuous"] and "probabilities" not in numbers and "taken" not in numbers
        assert np.shape(numbers["means"]) == taken_actions.shape
        expected_bounds = [[-2, 2], [0, 5]] if kind == "box" else [[None, None]] * 4
        assert numbers["action_bounds"] == expected_bounds
        assert [len(text.split()) for text in numbers["action_texts"]] == [taken_actions.shape[1]] * 12
        for text, row in zip(numbers["action_texts"], taken_actions):
            np.testing.assert_allclose([float(word) for word in text.split()], row, atol=6e-3)
        return
    start = {"discrete": [-1], "multi_discrete": [0, 1]}.get(kind, [0] * 3)
    canonical = taken_actions - start
    np.testing.assert_array_equal(np.reshape(numbers["actions"], taken_actions.shape), canonical)
    chances, offset = np.array(numbers["probabilities"]), 0
    for size in SUM_OF[kind]:
        np.testing.assert_allclose(chances[:, offset : offset + size].sum(1), 1, atol=3e-4)
        offset += size
    assert offset == chances.shape[1] == len(numbers["action_names"])
    if kind == "discrete":
        assert numbers["action_names"] == ["action -1", "action 0", "action 1"]
        assert not {"action_texts", "taken", "continuous"} & numbers.keys()
        return
    for text, places, row in zip(numbers["action_texts"], numbers["taken"], taken_actions):
        assert text == ", ".join(f"{i}: {number}" for i, number in enumerate(row))
        assert [numbers["action_names"][a] for a in places] == text.split(", ")


@pytest.mark.parametrize("kind", ACTIONS)
def test_audits_shifts_are_distances_and_their_actions_can_be_read(kind):
    showing, _ = show_sampled(OBSERVATIONS["nested"], ACTIONS[kind], deterministic=True)
    numbers = showing.episodes[0].record
    assert len(numbers["audit"]["influence"]) == 12
    assert all(0 <= influence <= 1 for influence in numbers["audit"]["influence"])
    assert numbers["audit"]["influence"][0] == 0  # the memory is still empty
    rows = numbers["audit"]["memories"]
    assert rows and max(row["total_removed"]["shift"] for row in rows) > 0.001
    for row in rows:
        assert row["base"]["shift"] == 0
        assert row["direct_swapped"] is row["total_swapped"] is None  # there are no counterparts
        for name in ("base", "direct_removed", "total_removed"):
            assert 0 <= row[name]["shift"] <= 1
            assert len(row[name]["means" if kind.startswith("box") else "probabilities"]) == len(
                numbers["action_names"]
            )
        done = row["base"]["action"]
        assert (numbers["action_names"][done] if kind == "discrete" else done) == (
            numbers["action_names"][numbers["actions"][row["step"]]]
            if kind == "discrete"
            else numbers["action_texts"][row["step"]]
        )
    assert len(table(numbers).rows) == min(30, len(rows))


def test_the_shift_of_real_numbers_is_that_of_their_normal_distributions():
    """Direct and total removal of a memory against acting with its slots cleared by hand."""
    policy, env, _ = world(OBSERVATIONS["vector"], ACTIONS["box"])
    episode = replace(play(policy, env, 3, 12, True, chunk=16), decisions=np.arange(12) == 11)
    rows = audit(policy, episode, look(policy, episode), 4, swap=None)["memories"]
    middle, half, bounds = np.array([0, 2.5]), np.array([2, 2.5]), ([-2, 0], [2, 5])
    std = np.exp(policy.actions.log_std.detach().numpy())
    observations = tensors_of(policy, episode.observations)
    assert len(rows) == 4
    for row in rows:
        for name, at, layers in (("direct_removed", 11, [row["layer"]]), ("total_removed", row["written"] + 1, [0, 1])):
            acting = policy.begin(policy.initial_memory(1), 12)
            for t in range(12):
                if t == at:
                    for layer in layers:
                        acting.layers[layer].slots.position[0, row["written"]] = GONE
                params, _ = policy.step(
                    {key: value[t] for key, value in observations.items()}, acting, torch.tensor([t == 0])
                )
            mean, was = params[0, :2].numpy(), episode.params[11, :2].numpy()
            overlap = np.prod([math.erfc(abs(a - b) / (2 * math.sqrt(2) * s)) for a, b, s in zip(mean, was, std)])
            assert row[name]["shift"] == pytest.approx(1 - overlap, abs=2e-4)
            np.testing.assert_allclose(row[name]["means"], np.clip(middle + half * mean, *bounds), atol=2e-3)
    assert max(row["total_removed"]["shift"] for row in rows) > 0.01


def test_real_actions_that_hardly_change_are_not_said_to_be_others():
    numbers = {"action_names": ["number 0"], "env": "x", "seed": 0, "continuous": True}
    effects = [{"action": "0.30", "shift": shift} for shift in (0.04, 0.06)]
    row = {"step": 1, "layer": 0, "written": 0, "attention": 1.0, "base": {"action": "0.31"}}
    row |= dict(zip(EFFECTS, (*effects, None, None), strict=True))
    shown_row = [next(iter(column.cells)) for column in table({**numbers, "audit": {"memories": [row]}}).columns]
    assert shown_row[5:] == ["0.04", "0.06 0.30", "-", "-"]


@pytest.mark.parametrize("kind", ["discrete", "multi_discrete"])
def test_what_a_mask_forbids_has_no_chance_and_is_told(kind):
    showing, base_env = show_sampled(OBSERVATIONS["vector"], ACTIONS[kind], masks=True)
    numbers = showing.episodes[0].record
    chances, offset = np.array(numbers["probabilities"]), np.cumsum([0, *SUM_OF[kind][:-1]])
    assert (chances[1::2][:, offset] == 0).all() and (chances[::2][:, offset] > 0).all()
    minimum = np.ravel([-1] if kind == "discrete" else [0, 1])
    assert all((np.ravel(action) > minimum).all() for action in base_env.taken[1::2])
    mask = next(entry for entry in numbers["entries"] if entry["kind"] == "mask")
    assert mask["labels"] == numbers["action_names"]
    assert np.array(mask["values"])[:, offset].tolist() == [[1 - t % 2] * len(offset) for t in range(12)]
    for row in numbers["audit"]["memories"]:
        for name in ("base", "direct_removed", "total_removed"):
            if row["step"] % 2:
                assert all(row[name]["probabilities"][a] == 0 for a in offset)


@pytest.mark.parametrize("name", OBSERVATIONS)
def test_every_observation_has_a_page_a_figure_and_its_entries(tmp_path, name):
    showing, _ = show_sampled(OBSERVATIONS[name], ACTIONS["multi_discrete"])
    for ending in (".html", ".png", ".json"):
        showing.save(tmp_path / f"x{ending}")
    assert b"</html>" in (tmp_path / "x.html").read_bytes()
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    (numbers,) = json.loads((tmp_path / "x.json").read_text())["episodes"]
    assert numbers["info"] == {"note": "text"}
    entries = {entry["name"]: entry for entry in numbers.get("entries", [])}
    expected = {
        **{key: ["observation"] for key in ("vector", "discrete", "multi_discrete", "many")},
        **{key: ["observation"] for key in ("multi_binary", "integers", "text")},
        "nested": ["cards/0", "cards/1/left", "said"],
    }
    assert list(entries) == expected.get(name, [])
    if name == "nested":
        assert entries["cards/1/left"]["labels"] == ["cards/1/left[0]", "cards/1/left[1]"]
        assert entries["said"] == {"name": "said", "kind": "words", "texts": [WORDS], "which": [0] * 12}
        seen = showing.episodes[0].episode.observations
        assert entries["cards/0"]["values"] == [[int(o["cards/0"])] for o in seen]
        assert entries["cards/1/left"]["values"] == [o["cards/1/left"].tolist() for o in seen]
    if name == "multi_discrete":
        assert entries["observation"]["labels"] == [f"observation[{i},{j}]" for i in range(2) for j in range(2)]
    if name == "many":
        assert entries["observation"] == {"name": "observation", "kind": "vector", "count": 700}
    if name == "text":
        assert len(entries["observation"]["which"]) == 12 and len(entries["observation"]["texts"]) == 12
    if name == "vector":
        values = np.stack([o["observation"] for o in showing.episodes[0].episode.observations])
        np.testing.assert_allclose(entries["observation"]["values"], values, rtol=6e-4)


@pytest.mark.parametrize("memory", sorted(KINDS))
def test_every_memory_kind_is_looked_at_with_real_actions(memory):
    policy, env, _ = world(OBSERVATIONS["nested"], ACTIONS["box"], memory=memory)
    (played,) = show_in(policy, env, "Sampled-v0", "p.safetensors", seed=3).episodes
    numbers = json.loads(json.dumps(played.record, allow_nan=False))
    assert len(numbers["layers"]) == (2 if KINDS[memory].stores else 0)
    assert bool(numbers["audit"]["memories"]) == KINDS[memory].stores
    assert (max(numbers["audit"]["influence"]) > 0.01) == (memory != "none")


def test_words_that_the_environment_cannot_be_asked_for_are_counted():
    policy, env, _ = world(OBSERVATIONS["nested"], ACTIONS["discrete"])
    episode = replace(play(policy, env, 3, 12, True), texts=[])
    numbers = record(policy, episode, [], names=policy.actions.labels(), about={"env": "x"}, audit={})
    assert numbers["entries"][-1]["texts"] == ["8 words"]  # and a comma, which is read as one


def test_a_mission_of_minigrid_is_shown_as_text():
    policy = make_policy(env_id="BabyAI-GoToObj-v0")
    env = make_env("BabyAI-GoToObj-v0")
    episode = play(policy, env, 3, 5, True)
    assert episode.texts == [{"mission": env.unwrapped.mission}] * 5
    names = [entry["name"] for entry in record(policy, episode, [], names=[], about={"env": "x"}, audit={})["entries"]]
    assert names == ["direction", "mission"]


def test_labels_say_the_name_and_the_place():
    assert labels_of("speed", {"shape": []}) == labels_of("speed", {}) == ["speed"]
    assert labels_of("a/b", {"shape": [2]}) == ["a/b[0]", "a/b[1]"]


# Pictures


def test_pictures_of_few_brightnesses_are_shown_as_bright_as_others():
    spec = {"image": {"kind": "picture", "shape": [64, 64], "channels": "last", "brightest": 3}}
    observation = {"image": np.arange(4, dtype=np.uint8).repeat(16)[:, None].repeat(64, 1)}
    (shown,) = observation_pictures([observation], spec)
    assert sorted(set(shown.ravel().tolist())) == [0, 85, 170, 255]


def test_pictures_are_shown_as_they_are():
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 250, (12, 10, 3), dtype=np.uint8)
    np.testing.assert_array_equal(as_rgb(picture, True), picture)
    np.testing.assert_array_equal(as_rgb(np.moveaxis(picture, 2, 0), False), picture)
    gray = np.repeat(picture[..., :1], 3, 2)
    np.testing.assert_array_equal(as_rgb(picture[..., 0], True), gray)
    np.testing.assert_array_equal(as_rgb(picture[..., :1], True), gray)
    stack = np.concatenate([picture, picture[::-1]], 2)  # two frames in colour, four in grey
    np.testing.assert_array_equal(as_rgb(stack, True), picture[::-1])
    np.testing.assert_array_equal(as_rgb(np.concatenate([picture, gray[..., :1]], 2), True), gray)
    opaque = np.concatenate([picture, np.full((12, 10, 1), 255, np.uint8)], 2)
    np.testing.assert_array_equal(as_rgb(opaque, True), picture)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("picture", (60, 50)),  # 5 pixels for each
        ("channels_first", (60, 50)),
        ("gray", (60, 50)),
        ("large", (MAX_SIDE, round(160 * MAX_SIDE / 200))),
        ("matrix", (80, 96)),  # 16 pixels for each
        ("many", (26 * 4, 27 * 4)),  # with the previous action and reward 702 numbers
        ("nested", (60, 50)),
    ],
)
def test_observations_are_pictures_of_one_size(name, size):
    policy, env, _ = world(OBSERVATIONS[name], ACTIONS["discrete"])
    episode = play(policy, env, 3, 12, True)
    pictures = observation_pictures(episode.observations, policy.config.observation)
    assert {picture.shape[:2] for picture in pictures} == {size}
    if name in ("picture", "nested"):
        seen = episode.observations[5]["image" if name == "picture" else "view"]
        np.testing.assert_array_equal(pictures[5][::5, ::5], seen)
    if name == "matrix":
        values = np.stack([o["observation"] for o in episode.observations])
        brightest = values[:, 2, 3].argmax()
        assert pictures[brightest][2 * 16, 3 * 16].tolist() == [250, 214, 120]


def test_two_pictures_stand_side_by_side():
    policy, env, _ = world(
        spaces.Dict({"left": PICTURE, "right": spaces.Box(0, 255, (9, 9), np.uint8)}), ACTIONS["discrete"]
    )
    episode = play(policy, env, 3, 12, True)
    picture = observation_pictures(episode.observations, policy.config.observation)[2]
    assert picture.shape == (63, 50 + 4 + 63, 3)
    np.testing.assert_array_equal(picture[:60:5, :50:5], episode.observations[2]["left"])
    np.testing.assert_array_equal(picture[::7, 54::7, 0], episode.observations[2]["right"])
    assert not picture[:, 50:54].any()


@pytest.mark.parametrize("most", [24_000, 20])
def test_packed_pictures_are_what_the_page_puts_together(monkeypatch, most):
    monkeypatch.setattr(film_module, "MAX_SEEN_TILES", most)
    policy, env, _ = world(PICTURE, ACTIONS["discrete"])
    episode = play(policy, env, 3, 12, True)
    packed = json.loads(json.dumps(pack_observations(episode.observations, policy.config.observation)))
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(packed["png"].split(",")[1]))))
    size, (wide, tall) = packed["size"], (packed["wide"], packed["tall"])
    assert (packed["height"], packed["width"]) == ((60, 50) if most > 20 else (30, 25))
    for t, picture in enumerate(observation_pictures(episode.observations, policy.config.observation)):
        again = np.zeros((tall * size, wide * size, 3), np.uint8)
        for i, tile in enumerate(packed["looks"][packed["which"][t]]):
            top, left = tile // packed["columns"] * size, tile % packed["columns"] * size
            y, x = i // wide * size, i % wide * size
            again[y : y + size, x : x + size] = sheet[top : top + size, left : left + size]
        again = again[: packed["height"], : packed["width"]]
        if most > 20:
            np.testing.assert_array_equal(again, picture)
        else:
            assert abs(again.astype(float).mean((0, 1)) - picture.mean((0, 1))).max() < 2


@pytest.mark.parametrize(
    ("drawn", "trouble"),
    [
        (RuntimeError("no\ndisplay"), "render: RuntimeError: no display"),
        ("text", "render: expected a picture, uint8 [height, width, 3], got str"),
        (np.zeros((4, 4, 3)), "render: expected a picture, uint8 [height, width, 3], got float64[4, 4, 3]"),
        (np.zeros((4, 4), np.uint8), None),
        (np.zeros((4, 4, 4), np.uint8), None),
    ],
)
def test_what_cannot_be_drawn_is_shown_without_its_film(tmp_path, drawn, trouble):
    showing, _ = show_sampled(OBSERVATIONS["vector"], ACTIONS["discrete"], drawn=drawn)
    film = showing.episodes[0].film
    assert film.trouble == trouble == showing.episodes[0].record.get("not_drawn")
    assert len(list(film.frames())) == (12 if trouble is None else 0)
    assert (film.packed() is None) == (trouble is not None)
    showing.save(tmp_path / "x.html")
    assert b"</html>" in (tmp_path / "x.html").read_bytes()


def test_a_frame_that_fails_half_way_leaves_no_film():
    film, env = Film(), SimpleNamespace(render_mode="rgb_array", render=lambda: np.zeros((8, 8, 3), np.uint8))
    env.unwrapped = env
    film(env)
    env.render = lambda: None
    film(env)
    assert film.packed() is None and list(film.frames()) == []


# Third-party environments


def test_a_strangers_attributes_are_not_taken_for_ours():
    base_env = Sampled(OBSERVATIONS["vector"], ACTIONS["discrete"])
    base_env.core, base_env.agent_pos, base_env.grid = SimpleNamespace(), (1, 2), np.zeros((3, 3))
    base_env.actions = np.arange(3)
    policy, env = make_policy(env_id=lambda: base_env), make_env(lambda: base_env)
    assert core_of(env) is None and agent_place(env) is None
    assert action_names(env, policy) == ["action -1", "action 0", "action 1"]
    assert play(policy, env, 0, 3, True).decisions is None


def test_names_of_the_environment_are_taken_if_there_are_as_many():
    policy, env, base_env = world(OBSERVATIONS["vector"], ACTIONS["box"])
    base_env.metadata = {"action_names": ["steer", "gas"]}
    assert action_names(env, policy) == ["steer", "gas"]
    base_env.metadata = {"action_names": ["steer"]}
    assert action_names(env, policy) == ["number 0", "number 1"]
    assert action_text(policy, np.array([0.5, -1], np.float32), ["steer", "gas"]) == "1.00 0.00"


@pytest.mark.parametrize("success", [None, "text", [1, 2], np.zeros(3), [[1], [2, 3]]])
def test_a_success_that_is_none_is_not_told(success):
    policy, env, _ = world(OBSERVATIONS["vector"], ACTIONS["discrete"])
    episode = replace(
        play(policy, env, 3, 12, True), info={"is_success": success, "bad": [[1], [2, 3]], 3: np.float32(2)}
    )
    assert outcome(episode).startswith("return ")
    numbers = record(policy, episode, [], names=policy.actions.labels(), about={"env": "x"}, audit={})
    assert numbers["info"] == {**({"is_success": success} if isinstance(success, str) else {}), "3": 2.0}


@pytest.mark.parametrize("kind", ["multi_discrete", "box"])
def test_the_videos_scenes_have_one_size(kind):
    showing, _ = show_sampled(OBSERVATIONS["nested"], ACTIONS[kind])
    played, policy = showing.episodes[0], showing.policy
    seen = observation_pictures(played.episode.observations, policy.config.observation)
    pictures = list(scenes(played.record, (), seen))
    assert len(pictures) == 12 and len({picture.shape for picture in pictures}) == 1
    assert all((one != other).any() for one, other in pairwise(pictures))


def test_without_imageio_a_video_says_what_to_install(monkeypatch):
    check_video()
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "imageio" else find(name, *rest)
    )
    with pytest.raises(ValueError, match=r"^an MP4 needs imageio.*: pip install 'expire-span-rl\[video\]'$"):
        check_video()


def test_a_missing_package_for_drawing_is_told(monkeypatch):
    missing = gym.error.DependencyNotInstalled("no pygame")
    with pytest.raises(ValueError, match="no pygame"):
        show_sampled(OBSERVATIONS["vector"], ACTIONS["discrete"], drawn=missing)
