"""The figure: its thumbnails, its layout, and its files."""

from __future__ import annotations

import struct
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from viewer_cases import make_policy

from expire_span_rl.envs import make_env
from expire_span_rl.policies import KINDS, ActorCritic
from expire_span_rl.viewer import figure
from expire_span_rl.viewer.figure import choose_thumbnails, draw, spread
from expire_span_rl.viewer.play import Episode, LayerLives, look, play


def png_size(data: bytes) -> tuple[int, int]:
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", data[16:24])


def draw_episode(policy: ActorCritic, episode: Episode, form: str = "png") -> bytes:
    names = policy.actions.labels()
    return draw(
        policy,
        episode,
        look(policy, episode),
        title="Corridor-v0: success",
        how="seed 0",
        names=names,
        form=form,
    )


def test_chosen_are_those_with_most_attention_and_the_longest_lives_no_two_alike():
    steps = 12
    decision, peak, end = np.zeros((2, steps)), np.zeros(steps), np.arange(steps) + 2
    decision[1, [3, 11]], peak[[3, 5, 6, 7]], end[1] = [0.4, 0.6], [0.4, 0.9, 0.8, 0.01], 12
    lives = LayerLives(end, peak, decision, np.ones(steps, int), None)
    looks = [bytes([step]) for step in range(steps)]
    assert choose_thumbnails(lives, looks) == [1, 3, 5, 6]  # not 11, the last step itself; 7 has too little attention
    assert choose_thumbnails(lives, looks, count=2) == [3, 5]
    looks[6] = looks[5]
    assert choose_thumbnails(lives, looks) == [1, 3, 5]


def test_of_observations_that_live_equally_long_one_of_each_look_is_chosen():
    steps = 30
    lives = LayerLives(np.arange(steps) + 9, np.zeros(steps), np.zeros((1, steps)), np.ones(steps, int), None)
    assert choose_thumbnails(lives, [bytes([step % 2]) for step in range(steps)]) == [0, 1]
    assert choose_thumbnails(lives, [bytes([step]) for step in range(steps)]) == [0, 1, 2, 3, 4, 5]


@given(st.lists(st.floats(-1, 2), min_size=1, max_size=6))
def test_spread_keeps_order_distance_and_limits(targets):
    targets = sorted(targets)
    places = spread(targets, 0.16, 0.05, 0.95)
    assert places.min() >= 0.05 - 1e-9 and places.max() <= 0.95 + 1e-9
    assert (np.diff(places) >= 0.16 - 1e-9).all()
    if (np.diff(targets) >= 0.16).all() and targets[0] >= 0.05 and targets[-1] <= 0.95:
        np.testing.assert_allclose(places, targets)


@pytest.mark.parametrize(
    ("kind", "steps"),
    [*((kind, 10) for kind in KINDS if kind != "expire_span"), ("expire_span", 1), ("expire_span", 1000)],
)
def test_the_picture_of_any_kind_and_length_has_its_size(kind, steps):
    policy = make_policy(kind)
    episode = play(policy, make_env("Corridor-v0", min_length=300, max_length=300), 0, steps, True)
    assert len(episode.actions) == steps
    width, height = png_size(draw_episode(policy, episode))
    assert width == 1602
    assert (400 < height < 800) if not KINDS[kind].stores else (1500 < height < 2500)


def test_characters_that_the_font_lacks_are_no_warning():
    drawing = Figure()
    drawing.text(0.5, 0.5, "\u6c34")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert figure.figure_bytes(drawing, "png").startswith(b"\x89PNG")


def test_a_policy_without_memory_is_said_to_have_none():
    ax = Figure().add_axes((0, 0, 1, 1))
    figure._no_slots("none", 0, ax)
    figure._no_slots("gru", 1536, ax)
    labels = [text.get_text() for text in ax.texts]
    assert labels[0].startswith("This policy has no memory (kind 'none')")
    assert labels[1].startswith("What this policy remembers (kind 'gru') is a state of 1,536 bytes")


def test_a_span_and_a_life_are_told_beside_the_picture():
    ax = Figure((5, 5)).add_axes((0, 0, 1, 1))
    end, peak = np.array([3, 4, 4, 4]), np.array([0.87, 0, 0, 0])
    lives = LayerLives(end, peak, np.zeros((1, 4)), np.ones(4, int), np.array([2.2, 1, 1, 1]))
    figure._paint_lives(lives, [b"a", b"b", b"b", b"c"], None, "Layer 1", ax)
    labels = [text.get_text() for text in ax.texts]
    assert "step 0\nkept for 3 steps, span 2\nlargest attention 0.87" in labels
    assert "step 1 (1 of 2 alike)\nlive to the end, span 1\nlargest attention 0.00" in labels
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # the oldest on top
    lines = ax.collections[0].get_segments()
    assert [line.tolist() for line in lines][-1] == [[-0.5, 0], [2.5, 0]]  # the largest attention is drawn last
