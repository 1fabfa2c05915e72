"""Which kinds of observation are kept over many episodes, against sums by hand."""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import pytest
from viewer_browser import CONTRAST, NARROW, WIDE, make_page
from viewer_cases import SHIPPED, make_policy

import visualize
from expire_span_rl import visualization
from expire_span_rl.envs import make_env
from expire_span_rl.viewer.naming import describe_cells
from expire_span_rl.viewer.summary import agreement_of, agreement_text, extreme_kinds, kinds_of, summary

KWARGS = json.dumps({"min_length": 12, "max_length": 14})


def row(step: int, written: int, removed: int, swapped: int | None = None, layer: int = 0) -> dict[str, Any]:
    """A row of the audit: the action was 0."""
    swap = None if swapped is None else {"action": swapped, "shift": 0.9}
    return {
        "step": step, "written": written, "layer": layer, "attention": 0.5, "base": {"action": 0, "shift": 0},
        "total_removed": {"action": removed, "shift": 0.9}, "total_swapped": swap,
    }  # fmt: skip


def record(rows=(), decisions=(), facts=(0, -1, -1, -1), numbers=(0.0, 1.0, 2.0, 3.0)) -> dict[str, Any]:
    """Four steps and two layers. The second layer keeps the ball for good."""
    layers = [
        {"end": [2, 2, 4, 4], "expires": [2, 2, 5, 9]},
        {"end": [4, 3, 3, 4], "expires": [None, 3, 3, 6]},
    ]
    entry = {"name": "x", "kind": "vector", "labels": ["x"], "values": [[number] for number in numbers]}
    return {
        "steps": 4, "layers": layers, "facts": None if facts is None else list(facts), "entries": [entry],
        "shows": {"texts": ["ball", ""], "which": [0, 1, 1, 1], "unnamed": "nothing"},
        "audit": {"memories": list(rows), "decisions": list(decisions)},
    }  # fmt: skip


def test_spans_lives_and_what_mattered_of_each_kind():
    rows = [row(3, 0, 1), row(3, 0, 1, layer=1), row(3, 2, 0)]
    data = summary([record(rows, [3]), record()])
    assert (data["episodes"], data["observations"]) == (2, 8)
    kinds = {kind["shows"]: kind for kind in data["kinds"]}
    assert list(kinds) == ["ball, x 0", "x 3", "x 2", "x 1"]  # the most kept first
    assert kinds["ball, x 0"] == {
        "shows": "ball, x 0", "count": 2, "kept_for_good": 1.0, "mean_span": None, "mean_steps_live": 4.0,
        "measured": 1, "mattered": 1,
    }  # fmt: skip
    assert kinds["x 2"] == {
        "shows": "x 2", "count": 2, "kept_for_good": 0.0, "mean_span": 3.0, "mean_steps_live": 2.0, "measured": 1,
        "mattered": 0,
    }  # fmt: skip
    assert kinds["x 3"]["mean_span"] == 6 and kinds["x 1"]["mean_steps_live"] == 2


def test_many_real_numbers_are_low_middle_or_high_and_what_has_no_name_is_said_to_have_none():
    records = [record(numbers=range(i, i + 4)) for i in range(0, 12, 4)]
    kinds = {kind["shows"]: kind["count"] for kind in kinds_of(records)}
    assert kinds == {"ball, x low": 1, "x low": 3, "ball, x middle": 1, "x middle": 3, "ball, x high": 1, "x high": 3}
    for one in records:
        one["entries"] = []
    assert [(kind["shows"], kind["count"]) for kind in kinds_of(records)] == [("ball", 3), ("nothing", 9)]


def test_the_audit_and_the_facts():
    rows = [row(3, 0, 1, 2), row(3, 1, 1, 0), row(3, 2, 0, 0)]  # matters and shows a fact, matters only, neither
    data = agreement_of([record(rows, [0, 3]), record([row(3, 0, 0, 0)], [3]), record(rows, facts=None)])
    assert data == {
        "measured": 4, "both": 1, "audit_only": 1, "fact_only": 1, "neither": 1, "agree": 0.5,
        "decisions": 2, "fact_in_memory": 2, "swaps_measured": 2, "follows_fact": 1,
    }  # fmt: skip
    text = agreement_text(data)
    assert text.startswith("The audit and the environment's facts agree on 50.0% of 4 measured memories")
    assert " Without those that show a fact only the agent would have acted the same." in text
    assert "At 2 of 2 decisions" in text and "At 1 of 2 the agent would" in text
    forgotten = agreement_of([record([row(3, 2, 0)], [3], facts=(-1, 0, -1, -1))])
    assert (forgotten["decisions"], forgotten["fact_in_memory"]) == (1, 0)
    assert agreement_of([record(facts=None)]) is None and agreement_text(None) is None


def test_a_memory_without_slots_has_no_kinds():
    data = summary([{**record(), "layers": []}])
    assert data["kinds"] == [] and data["agreement"] is None


def test_of_many_kinds_the_ends_are_shown():
    kinds = [{"shows": str(i)} for i in range(25)]
    most, least = extreme_kinds(kinds)
    assert [kind["shows"] for kind in (*most, *least)] == [str(i) for i in (*range(10), *range(15, 25))]
    assert extreme_kinds(kinds[:20]) == (kinds[:20], [])


def test_many_things_are_counted():
    cells = np.array([[[5, 0, 0], [5, 1, 0], [7, 2, 0]], [[4, 0, 1], [4, 2, 1], [1, 0, 0]]], np.uint8)
    assert describe_cells(cells) == "one box, 2 doors and 2 keys"
    balls = [[6, 0, 0]] * 3 + [[6, 2, 0]]  # three red ones and a blue one
    assert describe_cells(np.array(balls + [[5, 0, 0], [4, 0, 1]])) == "4 balls, one door and one key"
    assert describe_cells(np.array(balls)) == "red ball and blue ball"


@pytest.mark.parametrize(("viewport", "scheme"), [(WIDE, "light"), (NARROW, "dark")], ids=["1280-light", "390-dark"])
def test_the_page_has_the_table_over_all_episodes(open_page, tmp_path, monkeypatch, viewport, scheme):
    monkeypatch.setattr(visualization, "PAGED", 2)
    path, records = make_page(tmp_path, SHIPPED, "--seed", "3", "--episodes", "4", "--env-kwargs", KWARGS)
    assert len(records) == 4 and all(len(one["layers"][0]["attention"]) == one["steps"] for one in records)
    data = json.loads((tmp_path / "memory.json").read_text())["summary"]
    one = open_page(path, "", viewport, scheme)
    assert one.page.locator("#episode option").count() == 2
    assert one.page.inner_text("#summary-title") == "What is kept, over 4 episodes"
    assert "The first 2 episodes are on this page." in one.page.inner_text("#summary-note")
    rows = one.page.locator("#summary-table tr:has(td)")
    assert rows.count() == len(data["kinds"])
    for kind, cells in zip(data["kinds"], rows.all(), strict=True):
        shown = cells.locator("td").all_inner_texts()
        assert shown[:2] == [kind["shows"], f"{kind['count']}"]
        assert float(shown[2].rstrip("%")) == pytest.approx(100 * kind["kept_for_good"], abs=0.06)
        assert float(shown[4]) == pytest.approx(kind["mean_steps_live"], abs=0.06)
    assert data["kinds"][0]["shows"] in ("red ball", "blue ball") and data["kinds"][0]["kept_for_good"] == 1
    assert one.page.inner_text("#agreement") == agreement_text(data["agreement"])
    assert one.page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    assert one.page.evaluate(CONTRAST) == [] and one.troubles == []


def test_one_episode_has_no_table(open_page, tmp_path):
    one = open_page(make_page(tmp_path, SHIPPED, "--env-kwargs", KWARGS)[0])
    assert not one.page.is_visible("#summary") and one.troubles == []


def test_the_terminal_has_one_table_for_many_episodes(tmp_path, monkeypatch, capsys):
    out = str(tmp_path / "memory.html")
    monkeypatch.setattr(
        sys, "argv", ["visualize.py", SHIPPED, "--episodes", "11", "--env-kwargs", KWARGS, "--out", out]
    )
    visualize.main()
    output = capsys.readouterr().out
    assert "what is kept, over 11 episodes" in output and "Did it matter?" not in output
    assert "only floor and walls" in output and "facts agree on" in " ".join(output.split())


def test_what_is_beyond_the_page_keeps_its_numbers_only(monkeypatch):
    monkeypatch.setattr(visualization, "PAGED", 1)
    env = make_env("Corridor-v0", min_length=12, max_length=12, render_mode="rgb_array")
    first, second = visualization.show_in(
        make_policy(), env, "Corridor-v0", "p", episodes=2, deterministic=False
    ).episodes
    assert first.film.packed() is not None and first.episode.observations
    assert second.film.packed() is None and not second.episode.observations and not second.lives
    assert second.without is None and second.record["layers"] and second.record.keys() == first.record.keys()
