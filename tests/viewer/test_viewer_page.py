"""The page in a real browser. It shows what the JSON has."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect
from viewer_browser import CONTRAST, NARROW, WIDE, Tab, check_step, live_attention, make_page
from viewer_cases import CONFIGS, SHIPPED, make_policy

from expire_span_rl.envs import make_env, render_observation
from expire_span_rl.policies import KINDS, save_policy
from expire_span_rl.viewer.page import page
from expire_span_rl.viewer.summary import summary

CORRIDOR = {"min_length": 100}


@pytest.fixture(scope="module")
def corridor(tmp_path_factory) -> tuple[Path, list[dict]]:
    kwargs = json.dumps(CORRIDOR)
    return make_page(
        tmp_path_factory.mktemp("corridor"), SHIPPED, "--seed", "3", "--env-kwargs", kwargs, "--episodes", "2"
    )


@pytest.fixture(scope="module")
def long(tmp_path_factory) -> tuple[Path, list[dict]]:
    """A thousand steps with the largest record: a wide window with attention everywhere."""
    folder = tmp_path_factory.mktemp("long")
    policy = make_policy("transformer_xl", "Switch-v0", {"window": 256})
    save_policy(policy, folder / "p.safetensors", {"env": "Switch-v0", "env_kwargs": {}})
    return make_page(folder, str(folder / "p.safetensors"), "--stochastic", "--audit", "1")


def test_it_opens_alone_and_shows_what_the_json_says(open_page, corridor):
    path, (record, _) = corridor
    tab = open_page(path)
    last = record["audit"]["decisions"][-1]
    check_step(tab, record, last)
    assert "success" in tab.page.inner_text("#title") and record["outcome"] in tab.page.inner_text("#title")
    rows = tab.page.locator("#audit-table tr[data-step]")
    assert rows.count() == len(record["audit"]["memories"]) == 3
    for i, row in enumerate(record["audit"]["memories"]):
        cells = rows.nth(i).locator("td").all_inner_texts()
        assert cells[0] == f"step {row['step']}" and cells[2] == f"step {row['written']}"
        for cell, name in zip(cells[5:], ("direct_removed", "direct_swapped", "total_removed", "total_swapped")):
            assert float(cell.split()[0]) == pytest.approx(row[name]["shift"], abs=6e-3)
            flips = row[name]["action"] != row["base"]["action"]
            assert cell.endswith(f"→ {record['action_names'][row[name]['action']]}") == flips
    assert tab.troubles == []


def test_the_slider_moves_frame_bars_and_thumbnails_together(open_page, corridor):
    path, (record, _) = corridor
    tab, env = open_page(path, "#t=0"), make_env("Corridor-v0", render_mode="rgb_array", **CORRIDOR)
    observation, _ = env.reset(seed=3)
    frames, views = [], []
    for action in record["actions"]:
        frames.append(env.render())
        views.append(render_observation(observation["image"], 16))
        observation, *_ = env.step(action)
    tab.page.evaluate("page.choose(null)")
    bars = {}
    for t in (0, 1, 57, 120, 139, 30):
        tab.page.locator("#slider").fill(str(t))
        check_step(tab, record, t)
        np.testing.assert_array_equal(tab.image("#world"), frames[t])
        np.testing.assert_array_equal(tab.image("#view"), views[t])
        bars[t] = [tab.image(f"#timelines div:nth-child({i}) canvas").tobytes() for i in (1, 2)]
    assert len({tuple(picture) for picture in bars.values()}) == 6
    cursor = tab.page.evaluate("page.charts.plots.map(plot => plot.cursor.idx)")
    assert cursor == [30] * 4
    assert tab.troubles == []


def test_bars_have_the_colour_of_the_attention_and_the_span_behind_them(open_page, corridor):
    path, (record, _) = corridor
    tab, t = open_page(path, "#t=60"), 60
    tab.page.evaluate("page.choose(null)")
    tab.wait_for_step(t)
    coloured = tab.page.evaluate("""() => page.timelines.map((line, i) => {
      const context = line.canvas.getContext("2d"), flatContext = document.createElement("canvas").getContext("2d");
      const pixel = (c, x, y) => {
        const [left, top] = [x, y].map((place) => Math.round(place * line.ratio));
        return [...c.getImageData(left, top, 1, 1).data].slice(0, 3);
      };
      const flat = (colour) => {
        flatContext.fillStyle = colour;
        flatContext.fillRect(0, 0, 1, 1);
        return pixel(flatContext, 0, 0);
      };
      const at = (w, step) => pixel(context, line.toX(step), line.top + (line.lanes.of[w] + 0.5) * line.lane);
      const live = line.layer.end.map((_, w) => w).filter(w => w < 58 && line.layer.end[w] > 60);
      return {
        live: live.map(w => [w, at(w, 59.5), flat(heat(page.weights[i].get(w) ?? 0))]),
        dead: [at(20, 21.5), flat(css("--dead"))],
        beyond: [at(0, page.record.steps + 0.5), flat(css("--card"))],
      };
    })""")
    for layer, text in zip(record["layers"], coloured):
        assert [w for w, *_ in text["live"]] == [w for w in range(58) if layer["end"][w] > t]
        for _, shown, expected in text["live"]:
            assert shown == expected
        assert layer["end"][20] < t and text["dead"][0] == text["dead"][1]
        # The ball is kept for good: beyond the end of the episode there is nothing to draw.
        assert layer["span"][0] is None and text["beyond"][0] == text["beyond"][1]


def test_arrows_space_home_end_and_the_next_decision(open_page, corridor):
    path, (record, _) = corridor
    tab = open_page(path, "#t=10")
    keys = tab.page.keyboard
    for key, t in (
        ("ArrowRight", 11),
        ("ArrowLeft", 10),
        ("Shift+ArrowRight", 20),
        ("Home", 0),
        ("ArrowLeft", 0),
        ("End", 139),
        ("ArrowRight", 139),
    ):
        keys.press(key)
        tab.wait_for_step(t)
    keys.press("Home")
    keys.press("d")
    tab.wait_for_step(record["audit"]["decisions"][0])
    keys.press("Home")
    tab.wait_for_step(0)
    keys.press("Space")
    tab.until("page.t >= 3")
    expect(tab.page.locator("#play")).to_have_attribute("aria-label", "Pause")
    keys.press("Space")
    expect(tab.page.locator("#play")).to_have_attribute("aria-label", "Play")
    stopped = tab.now()
    tab.page.wait_for_timeout(250)
    assert tab.now() == stopped
    check_step(tab, record, stopped)


def test_a_link_to_a_moment_and_back_into_the_address(open_page, corridor):
    path, (first, second) = corridor
    tab = open_page(path, "#t=137")
    check_step(tab, first, 137)
    tab.page.keyboard.press("ArrowLeft")
    tab.until("location.hash === '#t=136'")
    tab.page.evaluate("location.hash = '#t=5'")
    check_step(tab, first, 5)
    other = open_page(path, "#e=1&t=20")
    check_step(other, second, 20)
    for nonsense, t in (("#t=99999", 139), ("#t=-3", 139), ("#t=x&e=7", 139)):
        check_step(open_page(path, nonsense), first, t)


def test_the_list_of_episodes(open_page, corridor):
    path, (_, second) = corridor
    tab = open_page(path)
    options = tab.page.locator("#episode option").all_inner_texts()
    assert len(options) == 2 and options[1] == f"2. seed 4: {second['outcome']}"
    tab.page.select_option("#episode", "1")
    tab.until("document.documentElement.dataset.ready === '1'")
    check_step(tab, second, second["audit"]["decisions"][-1])
    assert tab.troubles == []


def test_another_episode_replaces_the_view_even_if_its_look_has_the_same_number(open_page, corridor):
    path, (first, second) = corridor
    assert first["shows"]["texts"][0] != second["shows"]["texts"][0]  # balls of different colours
    tab = open_page(path, "#t=0")
    for episode, seed in ((1, 4), (0, 3)):
        tab.page.evaluate(f"location.hash = '#e={episode}&t=0'")
        tab.until(f"document.documentElement.dataset.ready === '{episode}' && !page.due")
        tab.wait_for_step(0)
        image = make_env("Corridor-v0", **CORRIDOR).reset(seed=seed)[0]["image"]
        np.testing.assert_array_equal(tab.image("#view"), render_observation(image, 16))
        assert tab.page.input_value("#episode") == str(episode)  # the list follows the address
    assert tab.troubles == []


def test_an_address_is_followed_though_the_page_writes_its_own_at_that_moment(open_page, corridor):
    tab = open_page(corridor[0], "#t=0")
    tab.wait_for_step(0)
    tab.page.evaluate("location.hash = '#e=1&t=7'; page.updateAddress()")  # the change is told later
    tab.until("document.documentElement.dataset.ready === '1' && page.t === 7 && location.hash === '#e=1&t=7'")
    tab.page.evaluate("location.hash = '#e=1&t=9'; page.updateAddress()")
    tab.until("page.t === 9 && location.hash === '#e=1&t=9'")
    assert tab.troubles == []


def test_the_episode_that_was_asked_for_last_is_shown(open_page, corridor):
    tab = open_page(corridor[0], "#t=0")
    tab.wait_for_step(0)
    tab.page.evaluate("""async () => {
        const plain = unpack;
        const late = new Promise((resolve) => setTimeout(resolve, 200));
        unpack = async (text) => { unpack = plain; await late; return plain(text); }; // only the first is slow
        await Promise.all([page.open(1, 5), page.open(0, 8)]);
    }""")
    tab.until("document.documentElement.dataset.ready === '0' && page.t === 8 && !page.due")
    tab.wait_for_step(8)
    image = make_env("Corridor-v0", **CORRIDOR).reset(seed=3)[0]["image"]
    tab.page.evaluate("page.go(0)")
    tab.wait_for_step(0)
    np.testing.assert_array_equal(tab.image("#view"), render_observation(image, 16))
    assert tab.page.input_value("#episode") == "0" and tab.troubles == []


def test_sorting_layers_and_heads(open_page, corridor):
    path, (record, _) = corridor
    tab, t = open_page(path, "#t=60"), 60
    tab.wait_for_step(t)
    tab.page.select_option("#sort", "life")
    tab.page.select_option("#layer", index=2)
    tab.until("!page.due && page.layer === 1")
    layer = record["layers"][1]
    live = [w for w in range(t + 1) if layer["end"][w] > t]
    order = [int(w) for w in tab.page.evaluate("[...document.querySelectorAll('.thumb')].map(n => n.dataset.written)")]
    expires = {w: layer["expires"][w] or math.inf for w in live}  # None: kept for good
    assert order == sorted(live, key=lambda w: (-expires[w], w)) and order[0] == 0
    left = tab.page.locator(".thumb .life").all_inner_texts()
    assert left[0] == "no end"
    assert left[1:4] == ["now" if w == t else f"{layer['expires'][w] - t} left" for w in order[1:4]]
    tab.page.select_option("#head", value="2")
    tab.page.select_option("#sort", "attention")
    tab.until("page.head === 2 && !page.due")
    now = layer["attention"][t]
    weights = dict(zip(now["to"], now["weights"][2]))
    for node in tab.page.locator(".thumb").all()[:4]:
        text = float(node.locator(".number").inner_text().split()[1])
        assert text == pytest.approx(weights.get(int(node.get_attribute("data-written")), 0), abs=6e-3)


def test_pointing_at_a_thumbnail_marks_its_bar_and_its_place_and_the_other_way_round(open_page, corridor):
    tab = open_page(corridor[0], "#t=60")
    tab.page.evaluate("page.choose(null)")
    tab.wait_for_step(60)
    before = [tab.image(f"#timelines div:nth-child({i}) canvas") for i in (1, 2)]
    plain = tab.image("#world")
    tab.page.hover(".thumb[data-written='0']")
    tab.until("page.marked === 0 && !page.due")
    marked = tab.image("#world")
    changed = np.argwhere((marked != plain).any(-1))
    assert changed[:, 1].min() >= 32 and changed[:, 1].max() < 64  # tile 0 is the second column, right of the ball
    assert changed[:, 0].min() >= 32 and changed[:, 0].max() < 64
    for i, picture in enumerate(before, 1):
        assert (tab.image(f"#timelines div:nth-child({i}) canvas") != picture).any()
    canvas = tab.page.locator("#timelines canvas").nth(1)
    canvas.scroll_into_view_if_needed()
    x, y = tab.page.evaluate(
        "(() => { const l = page.timelines[1]; return [l.toX(60.5), l.top + (l.lanes.of[55] + 0.5) * l.lane]; })()"
    )
    canvas.hover(position={"x": x, "y": y})
    tab.until("page.marked === 55 && !page.due")
    assert "observation of step 55" in tab.page.inner_text("#tip")
    expect(tab.page.locator(".thumb[data-written='55']")).to_have_class("thumb marked")
    canvas.click(position={"x": x, "y": y})
    tab.until("page.chosen === 55 && !page.due")
    assert "Observation of step 55" in tab.page.inner_text("#effect")
    assert "Not measured" in tab.page.inner_text("#effect")
    assert tab.now() == 60


def test_with_the_keyboard_alone_a_memory_is_chosen_and_its_effect_told(open_page, corridor):
    path, (record, _) = corridor
    tab = open_page(path, "#t=139")
    tab.page.evaluate("page.choose(null)")
    for _ in range(60):
        tab.page.keyboard.press("Tab")
        if tab.page.evaluate("document.activeElement.dataset.written") == "0":
            break
    else:
        pytest.fail("the thumbnail of step 0 cannot be reached by the tabulator")
    assert tab.page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    tab.until("page.marked === 0")
    tab.page.keyboard.press("Enter")
    tab.until("page.chosen === 0 && !page.due")
    rows = [row for row in record["audit"]["memories"] if row["written"] == 0]  # one in each layer
    tab.page.locator("#effect summary").press("Enter")
    text = tab.page.inner_text("#effect")
    assert "slot alone removed" in text and "never been remembered" in text
    effects = [rows[0]["total_removed"], rows[0]["total_swapped"]]  # the same in both layers
    effects += [row[name] for row in rows for name in ("direct_removed", "direct_swapped")]
    assert len(rows) == 2
    assert text.count("instead") == sum(effect["action"] != rows[0]["base"]["action"] for effect in effects)
    tab.page.locator("#effect summary").press("Space")  # it folds the details, and does not play
    tab.until("!document.querySelector('#effect details').open")
    assert tab.page.evaluate("page.timer") is None
    tab.page.locator("#effect summary").press("Space")
    tab.until("document.querySelector('#effect details').open")
    tab.page.evaluate("page.choose(138)")  # it has as much attention, and no effect
    tab.until("page.chosen === 138 && !page.due")
    assert "no difference" in tab.page.inner_text("#effect")
    assert tab.page.evaluate("document.querySelector('#effect details').open")  # it stays unfolded
    tab.page.evaluate("document.querySelector('#effect summary').click(), page.choose(0), page.paint()")
    tab.until("page.chosen === 0 && !page.due")
    assert not tab.page.evaluate("document.querySelector('#effect details').open")
    tab.page.locator(".thumb[data-written='0']").focus()
    tab.page.keyboard.press("ArrowLeft")  # the thumbnail keeps the focus while the step changes
    tab.wait_for_step(138)
    assert tab.page.evaluate("document.activeElement.dataset.written") == "0"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [WIDE, NARROW], ids=["1280", "390"])
def test_it_can_be_read_in_every_width_and_light(open_page, corridor, viewport, scheme):
    path, (record, _) = corridor
    tab = open_page(path, "#t=139", viewport, scheme)
    check_step(tab, record, 139)
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    assert tab.page.evaluate(CONTRAST) == []
    back = tab.page.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(int(n) for n in back[4:-1].split(",")) / 3
    assert (brightness > 200) == (scheme == "light")
    overlaps = tab.page.evaluate("""() => {
      const nodes = [...document.querySelectorAll("nav > *")].filter(node => node.checkVisibility());
      const boxes = nodes.map(node => node.getBoundingClientRect());
      const besides = (a, b) => a.left >= b.right - 1 || b.left >= a.right - 1;
      const overlap = (a, b) => !besides(a, b) && a.top < b.bottom - 1 && b.top < a.bottom - 1;
      return boxes.some((a, i) => boxes.some((b, j) => i < j && overlap(a, b)));
    }""")
    assert not overlaps
    for control in ("#play", "#back", "#forth", "#slider", "#decision"):
        box = tab.page.locator(control).bounding_box()
        assert box["height"] >= 32 and box["x"] >= 0 and box["x"] + box["width"] <= viewport["width"]
    tab.page.keyboard.press("ArrowLeft")
    check_step(tab, record, 138)
    assert tab.troubles == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [WIDE, NARROW], ids=["1280", "390"])
def test_the_first_screen_tells_the_story(open_page, corridor, viewport, scheme):
    """The headline and the effect on the decision are visible without scrolling. The page opens at the decision."""
    path, (record, _) = corridor
    tab = open_page(path, "", viewport, scheme)
    tab.wait_for_step(139)
    headline = "Kept the blue ball of step 0 for good. 139 steps later, without it, the agent would have gone north."
    assert tab.page.inner_text("#headline") == headline == record["story"]["headline"]
    assert tab.page.inner_text("#detail") == record["story"]["detail"]
    assert "130 of 140" in record["story"]["detail"]
    assert tab.page.inner_text("#chosen-title") == "Did it matter?"
    verdict = tab.page.locator("#effect .verdict").first
    assert verdict.inner_text().startswith("north instead had this observation never been remembered: shift 1.00")
    for part in ("#headline", "#chosen-title"):
        assert tab.page.locator(part).bounding_box()["y"] >= 0
    box = verdict.bounding_box()
    assert box["y"] + box["height"] <= viewport["height"]
    assert tab.page.evaluate("scrollY") == 0 and tab.troubles == []


def test_success_and_failure_have_colours_whether_they_are_flags_or_numbers(open_page, corridor):
    tab = open_page(corridor[0])
    found = tab.page.evaluate("""() => [["success", 1], ["failure", 0], ["success 0.01", 0.01]].map(([word, share]) => {
      page.record.info.is_success = share;
      page.record.outcome = `${word}, return 1 in 2 steps`;
      describe(page);
      return `${byId("title").className} ${byId("title").textContent}`;
    })""")
    rest = ", return 1 in 2 steps"
    assert found == [
        f"{colour} Corridor-v0: {word}{rest}"
        for colour, word in (("good", "success"), ("bad", "failure"), ("", "success 0.01"))
    ]


def test_a_text_that_looks_like_a_place_of_the_page_stays_a_text(corridor):
    record = {**corridor[1][0], "env": "{{DATA}}", "outcome": "{{SCRIPT}} {{LICENCE}}"}
    text = page([{"record": record, "film": None, "seen": None}], summary([record])).decode()
    assert "<title>{{DATA}}: {{SCRIPT}} {{LICENCE}}</title>" in text
    assert text.count("{{SCRIPT}}") == 2 and text.count('id="episode-0"') == 1  # in the title and in the list


def test_a_page_that_was_cut_or_changed_says_so(browser, corridor, tmp_path):
    text = corridor[0].read_text()
    begin = '<script type="application/json" id="list">'
    assert begin in text
    path = tmp_path / "broken.html"
    path.write_text(text.replace(begin, begin + "oh"))
    tab = Tab(browser.new_page())
    tab.page.goto(f"file://{path}")
    tab.until("document.querySelector('#title').textContent.startsWith('The page could not be read: ')")
    tab.page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_button_saves_the_picture(open_page, corridor, tmp_path, scheme):
    """A PNG of the step, written without a request. It has the world, the view and the timelines of the page."""
    path, _ = corridor
    tab = open_page(path, "#t=137", WIDE, scheme)
    tab.wait_for_step(137)
    with tab.page.expect_download() as download:
        tab.page.click("#save")
    assert download.value.suggested_filename == "Corridor-v0-seed-3-step-137.png"
    download.value.save_as(tmp_path / "p.png")
    picture = np.asarray(Image.open(tmp_path / "p.png").convert("RGB"))
    places = tab.page.evaluate("drawPicture(page).places")
    assert {"world", "other", "view", "layer 1", "layer 2"} < places.keys() and len(places) == 9
    assert picture.shape[1] == 2480
    x, y, wide, tall = (round(2 * number) for number in places["world"])
    world = tab.image("#world")
    assert (tall, wide) == (2 * world.shape[0], 2 * world.shape[1])
    shown = picture[y : y + tall, x : x + wide]
    assert (np.abs(shown.astype(int) - world.repeat(2, 0).repeat(2, 1)) > 2).any(-1).mean() < 0.02
    back = tab.page.evaluate("css('--card')")
    assert picture[5, 5].tolist() == [int(back[i : i + 2], 16) for i in (1, 3, 5)]
    for name, (left, top, width, height) in places.items():  # nothing is blank, nothing lies outside
        part = picture[round(2 * top) : round(2 * (top + height)), round(2 * left) : round(2 * (left + width))]
        assert part.size and part.std() > 1, name
        assert left >= 0 and left + width <= 1240 and 2 * (top + height) <= len(picture)
    assert tab.troubles == []


def test_light_and_dark_follow_the_system_at_once(open_page, corridor):
    tab = open_page(corridor[0])
    before = tab.page.evaluate("page.charts.plots.length"), tab.image("#timelines div:first-child canvas")
    tab.page.emulate_media(color_scheme="dark")
    tab.page.wait_for_timeout(200)
    assert tab.page.evaluate("page.charts.plots.length") == before[0]
    assert (tab.image("#timelines div:first-child canvas") != before[1]).any()


def test_a_thousand_steps_are_small_quick_and_smooth(open_page, long):
    path, (record,) = long
    assert record["steps"] == 1000
    assert path.stat().st_size < 5e6
    assert (
        min(
            int(open_page(path, "#t=500").page.evaluate("document.documentElement.dataset.milliseconds"))
            for _ in range(3)
        )
        < 1000
    )
    tab = open_page(path, "#t=500")
    check_step(tab, record, 500)
    took = tab.page.evaluate("""() => {
      const began = performance.now();
      for (let t = 400; t < 440; t++) { page.t = t; page.paint(); }
      return (performance.now() - began) / 40;
    }""")
    assert took < 100  # milliseconds a step
    assert tab.troubles == []


DENSITY = """() => page.timelines.map(line => {
  const shown = line.canvas.getContext("2d");
  const known = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const over = (share, colour) => {  // a colour of that strength on the card
    known.globalAlpha = 1; known.fillStyle = css("--card"); known.fillRect(0, 0, 1, 1);
    known.globalAlpha = share; known.fillStyle = colour; known.fillRect(0, 0, 1, 1);
    return [...known.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const whole = shown.getImageData(0, 0, line.canvas.width, line.canvas.height);
  const at = (row, step) => {
    const x = Math.round(line.toX(step + 0.5) * line.ratio), y = Math.round((line.top + 4 * row + 2) * line.ratio);
    const [r, g, b, a] = whole.data.slice(4 * (y * whole.width + x), 4 * (y * whole.width + x) + 4);
    return over(a / 255, `rgb(${r} ${g} ${b})`);
  };
  const attended = new Set();
  line.layer.attention.forEach(({ to, weights }, t) => to.forEach((w, i) => {
    const weight = Math.max(...weights.map(head => head[i]));
    if (weight < MIN_LINE || w >= t) return;
    for (const step of [t - 2, t - 1, t, t + 1, t + 2]) attended.add(`${line.rowOf(w)} ${step}`);
  }));
  for (const [w, weight] of page.weights[line.index]) {
    if (weight < MIN_LINE) continue;
    for (let t = 0; t < 1000; t++) attended.add(`${line.rowOf(w)} ${t}`);
  }
  const samples = [];
  for (let row = 0; row < line.rows.length; row += 3) for (let step = 20; step < page.t - 3; step += 17) {
    const share = line.share(row, step), steady = [-2, -1, 1, 2].every(d => line.share(row, step + d) === share);
    if (!steady || attended.has(`${row} ${step}`)) continue;
    samples.push([row, step, share, at(row, step), over(share, css("--dead"))]);
  }
  return { size: line.size, dense: line.dense, tall: line.bottom - line.top, samples, attended: attended.size };
})"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_hundreds_of_live_memories_are_shades(open_page, long, scheme):
    """A row's shade is the share of its observations that is live, so the wedge has more than one colour."""
    path, (record,) = long
    assert max(record["layers"][0]["live"]) == 257
    tab = open_page(path, "#t=990", WIDE, scheme)
    tab.page.evaluate("page.choose(null)")
    tab.wait_for_step(990)
    for layer, shown in zip(record["layers"], tab.page.evaluate(DENSITY), strict=True):
        size = shown["size"]
        assert shown["dense"] and shown["tall"] == 4 * math.ceil(1000 / size) <= 260
        shares = set()
        for row, step, share, pixel, expected in shown["samples"]:
            members = range(row * size, min(1000, (row + 1) * size))
            assert share == pytest.approx(np.mean([w <= step < layer["end"][w] for w in members]))
            assert np.abs(np.array(pixel) - expected).max() <= 4
            shares.add(share)
        assert shares == {0, 1}  # other shares last for a step each, less than a pixel
        assert len(shown["samples"]) > 100
    assert "Each row is 16 observations" in tab.page.inner_text("#lives-note")
    x, y = tab.page.evaluate("(() => { const l = page.timelines[0]; return [l.toX(980.5), l.y(900) + 2]; })()")
    canvas = tab.page.locator("#timelines canvas").first
    canvas.scroll_into_view_if_needed()
    canvas.click(position={"x": x, "y": y})
    tab.until("page.chosen !== null && !page.due")
    assert tab.page.evaluate("page.chosen") in range(896, 912) and abs(tab.now() - 980) <= 1
    assert tab.troubles == []


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"expire_span"}))
def test_other_kinds_show_their_own_truth(open_page, tmp_path, kind):
    settings = dict(CONFIGS.get(kind, {}))
    save_policy(
        make_policy(kind, settings=settings), tmp_path / "p.safetensors", {"env": "Corridor-v0", "env_kwargs": {}}
    )
    kwargs = json.dumps({"min_length": 12, "max_length": 12})
    path, (record,) = make_page(tmp_path, str(tmp_path / "p.safetensors"), "--stochastic", "--env-kwargs", kwargs)
    t = record["steps"] - 2
    tab = open_page(path, f"#t={t}")
    if not record["layers"]:
        tab.wait_for_step(t)
        assert not tab.page.is_visible("#memory") and not tab.page.is_visible("#lives")
        text = tab.page.inner_text("#effect")
        assert f"{record['state_bytes']} bytes" in text if record["state_bytes"] else "has no memory" in text
        if record["state_bytes"]:
            assert f"shift by {record['audit']['influence'][t]:.2f}" in text
        assert tab.page.inner_text("#headline") == record["story"]["headline"]
    else:
        check_step(tab, record, t)
        text = tab.page.inner_text("#lives-note")
        expected = {
            "transformer_xl": "a window of 9 steps",
            "compressive": "4 of them are compressed into one memory",
            "adaptive_span": "spans of the heads",
        }
        assert expected[kind] in text
        parts = tab.page.evaluate("liveMemories(page).filter(memory => memory.part).length")
        merged = record["layers"][0]["merged"]
        assert parts == (0 if merged is None else sum(merged[w] <= t for w in live_attention(record, t)))
        assert (parts > 0) == (kind == "compressive")
    assert tab.troubles == []


def test_without_pictures_observations_are_heat_maps(open_page, tmp_path):
    save_policy(make_policy(env_id="CartPole-v1"), tmp_path / "p.safetensors", {"env": "CartPole-v1", "env_kwargs": {}})
    tab = open_page(make_page(tmp_path, str(tmp_path / "p.safetensors"), "--env-kwargs", '{"render_mode": null}')[0])
    tab.wait_for_step(tab.now())
    assert not tab.page.is_visible("#world") and tab.page.is_visible("#view")
    assert tab.image("#view").shape == (32, 48, 3)  # 6 numbers: 4 of the pole, the previous action and reward
    assert tab.troubles == []
