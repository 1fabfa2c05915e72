"""The page in a real browser: actions of several whole or real numbers, and observations of many parts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gymnasium import spaces
from viewer_browser import CONTRAST, NARROW, WIDE
from viewer_cases import make_policy
from viewer_spaces import ACTIONS, OBSERVATIONS, WORDS, Sampled

from expire_span_rl.envs import make_env
from expire_span_rl.viewer.naming import observation_names
from expire_span_rl.viewer.panels import observation_pictures
from expire_span_rl.visualization import show_in


def paged(folder: Path, observation: str, action: str, **kwargs) -> tuple[Path, dict, list[np.ndarray]]:
    """(the page of an episode, its record, the pictures of its observations)."""
    base_env = Sampled(OBSERVATIONS[observation], ACTIONS[action], **kwargs)
    policy = make_policy(env_id=lambda: base_env)
    result = show_in(policy, make_env(lambda: base_env), "Sampled-v0", "p.safetensors", seed=3, deterministic=False)
    result.save(folder / "memory.html")
    (played,) = result.episodes
    views = observation_pictures(played.episode.observations, policy.config.observation)
    return folder / "memory.html", played.record, views


def chances(tab) -> list[tuple[str, float, bool]]:
    """(name, number, whether it is marked as the action taken) of every bar."""
    result = """[...document.querySelectorAll('.chance')].map(row => [
      row.querySelector('.name').title, +row.querySelector('.number').innerText, row.classList.contains('taken')])"""
    return [tuple(row) for row in tab.page.evaluate(result)]


def parts(tab) -> dict:
    """The nodes of the entries beside the picture, by name."""
    names = tab.page.locator("#entries > .name").all_inner_texts()
    return dict(zip(names, tab.page.locator("#entries > div").all(), strict=True))


@pytest.mark.parametrize("kind", ["multi_discrete", "multi_binary"])
def test_several_whole_numbers_have_their_probabilities_and_what_was_taken_of_each(open_page, tmp_path, kind):
    path, record, views = paged(tmp_path, "nested", kind)
    tab = open_page(path, "#t=0")
    for t in (0, 5, 11):
        tab.page.locator("#slider").fill(str(t))
        tab.wait_for_step(t)
        bars_shown = chances(tab)
        assert [name for name, *_ in bars_shown] == record["action_names"]
        assert [number for _, number, _ in bars_shown] == pytest.approx(record["probabilities"][t], abs=6e-3)
        assert [i for i, (*_, marked) in enumerate(bars_shown) if marked] == record["taken"][t]
        assert record["action_texts"][t] in tab.page.inner_text("#facts")
        np.testing.assert_array_equal(tab.image("#view"), views[t])
        texts = {name: place.inner_text() for name, place in parts(tab).items()}
        assert texts["said"] == WORDS
        entry = next(entry for entry in record["entries"] if entry["name"] == "cards/1/left")
        assert texts["cards/1/left"].split() == [str(number) for number in entry["values"][t]]
    assert not tab.page.is_visible("#world") and not tab.page.is_visible("#chances-note")
    rows = record["audit"]["memories"]
    assert rows and tab.page.locator("#audit-table tr[data-step]").count() == len(rows)
    first = tab.page.locator("#audit-table tr[data-step]").first.locator("td").all_inner_texts()
    assert first[1] == rows[0]["base"]["action"]
    assert tab.troubles == []


@pytest.mark.parametrize("kind", ["box", "box_without_bounds"])
@pytest.mark.parametrize("viewport", [WIDE, NARROW], ids=["1280", "390"])
def test_real_numbers_have_means_which_are_called_means(open_page, tmp_path, kind, viewport):
    path, record, _ = paged(tmp_path, "vector", kind)
    tab = open_page(path, "#t=7", viewport)
    tab.wait_for_step(7)
    bars_shown = chances(tab)
    assert [name for name, *_ in bars_shown] == [f"number {i}" for i in range(len(record["means"][7]))]
    assert [number for _, number, _ in bars_shown] == pytest.approx(record["means"][7], rel=6e-3)
    assert not any(marked for *_, marked in bars_shown)
    assert tab.page.inner_text("#chances-note") == "mean of each number, what was done"
    assert record["action_texts"][7] in tab.page.inner_text("#facts")
    lows, highs = zip(*record["action_bounds"])
    views = np.array([*record["means"], *record["actions"]])
    low = [least if bound is None else bound for bound, least in zip(lows, views.min(0))]
    high = [most if bound is None else bound for bound, most in zip(highs, views.max(0))]
    bars = tab.page.evaluate("""[...document.querySelectorAll('.chance')].map(
        row => [...row.querySelectorAll('i')].map(i => parseFloat(i.style.left)))""")
    for i, (mean, done) in enumerate(bars):
        assert mean == pytest.approx(100 * (record["means"][7][i] - low[i]) / (high[i] - low[i]), abs=0.1)
        assert done == pytest.approx(100 * (record["actions"][7][i] - low[i]) / (high[i] - low[i]), abs=0.1)
    titles = tab.page.locator("#charts h3").all_inner_texts()
    assert "Means of the action" in titles and not any("probabilities" in title for title in titles)
    assert record["audit"]["memories"]
    tab.page.evaluate("page.choose(page.record.audit.memories[0].written)")
    tab.until("!page.due")
    result = tab.page.inner_text("#effect")
    assert "means as it was" in result and "probabilities" not in result
    assert "number 0: " in result and "→" in result
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    assert tab.troubles == []


def test_what_a_mask_forbids_is_said(open_page, tmp_path):
    path, record, _ = paged(tmp_path, "vector", "discrete", masks=True)
    tab = open_page(path, "#t=1")
    tab.wait_for_step(1)
    assert parts(tab)["action_mask"].inner_text() == "not allowed: action -1"
    assert chances(tab)[0][1] == 0
    tab.page.keyboard.press("ArrowLeft")
    tab.wait_for_step(0)
    assert parts(tab)["action_mask"].inner_text() == "every action is allowed"
    title = parts(tab)["observation"].get_attribute("title").splitlines()
    assert [line.split(": ")[0] for line in title] == [f"observation[{i}]" for i in range(3)]
    assert [float(line.split(": ")[1]) for line in title] == pytest.approx(record["entries"][1]["values"][0], rel=6e-3)
    assert tab.troubles == []


NAMES = {"card": ["clubs", "hearts"], "cart": ["position", "speed", "angle"], "flags": ["too", "few"]}


class Named(Sampled):
    """Its observations have names. `flags` has fewer names than numbers."""

    def __init__(self):
        parts = {
            "card": spaces.Discrete(2, start=5),
            "cart": spaces.Box(-1, 1, (3,), np.float32),
            "flags": spaces.MultiBinary(3),
        }
        super().__init__(spaces.Dict(parts), spaces.Discrete(2))
        self.metadata = {**self.metadata, "observation_names": NAMES}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [WIDE, NARROW], ids=["1280", "390"])
def test_numbers_have_the_names_that_the_environment_gives(open_page, tmp_path, viewport, scheme):
    result = show_in(
        make_policy(env_id=Named), make_env(Named), "Named-v0", "p.safetensors", seed=3, deterministic=False
    )
    result.save(tmp_path / "memory.html")
    record = result.episodes[0].record
    card, cart, flags = (next(e for e in record["entries"] if e["name"] == name) for name in NAMES)
    assert card["value_names"] == NAMES["card"] and cart["labels"] == NAMES["cart"]
    assert flags["labels"] == ["flags[0]", "flags[1]", "flags[2]"]
    tab = open_page(tmp_path / "memory.html", "#t=4", viewport, scheme)
    tab.wait_for_step(4)
    bars_shown = parts(tab)
    suit = NAMES["card"][card["values"][4][0] - 5]
    assert bars_shown["card"].inner_text() == suit
    assert bars_shown["cart"].locator(".label").all_inner_texts() == NAMES["cart"]
    numbers = [float(number) for number in bars_shown["cart"].locator(".number").all_inner_texts()]
    assert numbers == pytest.approx(cart["values"][4], rel=6e-3)
    names = [record["shows"]["texts"][i] for i in record["shows"]["which"]]
    assert names[4].split(", ")[0] == suit and "position" not in names[4]
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    assert tab.page.evaluate(CONTRAST) == [] and tab.troubles == []


def test_a_list_names_an_observation_without_parts_and_nonsense_names_nothing():
    env = Sampled(OBSERVATIONS["vector"], ACTIONS["discrete"])
    policy = make_policy(env_id=lambda: env)
    for given, names in [(["a", "b", "c"], {"observation": ["a", "b", "c"]}), (["a"], {}), ("abc", {}), (None, {})]:
        env.metadata = {"observation_names": given}
        assert observation_names(make_env(lambda: env), policy) == names


def test_a_world_that_cannot_be_drawn_is_said_to_be_missing(open_page, tmp_path):
    path, _, _ = paged(tmp_path, "vector", "discrete", drawn=RuntimeError("no display"))
    tab = open_page(path, "#t=1")
    tab.wait_for_step(1)
    assert not tab.page.is_visible("#world") and tab.page.is_visible("#view")
    assert "the world could not be drawn (render: RuntimeError: no display)" in tab.page.inner_text("#about")
    assert tab.troubles == []
