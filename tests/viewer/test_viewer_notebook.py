"""`es.show` in a notebook: its HTML, inside of a page as notebooks show the output of a cell."""

from __future__ import annotations

import html
import json
import re

import pytest
from viewer_browser import NARROW, WIDE, Tab
from viewer_cases import SHIPPED

import expire_span_rl as es
from expire_span_rl.visualization import Showing

CELL = """<!doctype html><meta charset="utf-8"><body style="margin: 0"><p id="text">a cell</p><div id="output"></div>
<script type="application/json" id="data">{output}</script>
<script>
const output = JSON.parse(document.getElementById("data").textContent);
document.getElementById("output").innerHTML = output.data["text/html"].join("");
</script></body>"""


@pytest.fixture(scope="module")
def showing() -> Showing:
    return es.show(SHIPPED, seed=3, env_kwargs={"min_length": 100})


def test_the_frame_holds_the_whole_page(showing, tmp_path):
    match = re.fullmatch(r'<iframe srcdoc="([^"]*)" style="[^"]*" title="([^"]*)"></iframe>', showing._repr_html_())
    assert html.unescape(match[2]) == showing.title
    showing.save(tmp_path / "memory.html")
    assert html.unescape(match[1]) == (tmp_path / "memory.html").read_text()


@pytest.mark.parametrize(("viewport", "scheme"), [(WIDE, "light"), (NARROW, "dark")], ids=["1280-light", "390-dark"])
def test_the_page_works_inside_of_a_cells_output(browser, showing, tmp_path, viewport, scheme):
    """An output as nbformat 4 stores it. It requests nothing, shows the story, moves, and does not change the page
    around it."""
    output = {"output_type": "execute_result", "data": {"text/html": showing._repr_html_().splitlines(keepends=True)}}
    text = json.dumps(output).replace("</", "<\\/")
    (tmp_path / "cell.html").write_text(CELL.replace("{output}", text))
    context = browser.new_context(viewport=viewport, color_scheme=scheme)
    tab = Tab(context.new_page())
    tab.page.on("console", lambda message: tab.troubles.append(message.text))
    tab.page.on("pageerror", lambda error: tab.troubles.append(str(error)))
    tab.page.on("request", lambda r: r.url.startswith(("data:", "blob:", "file:")) or tab.troubles.append(r.url))
    tab.page.goto(f"file://{tmp_path / 'cell.html'}")
    frame = Tab(tab.page.frames[1])
    frame.until("document.documentElement.dataset.ready !== undefined")
    record = showing.numbers["episodes"][0]
    assert frame.page.inner_text("#headline") == record["story"]["headline"]
    frame.wait_for_step(139)
    frame.page.locator("#slider").fill("60")
    frame.wait_for_step(60)
    frame.page.locator("#slider").press("ArrowRight")
    frame.wait_for_step(61)
    tab.page.wait_for_timeout(400)  # the address follows a moment later, where there is one
    assert not frame.page.is_visible("#address-note")
    with tab.page.expect_download() as download:
        frame.page.click("#save")
    assert download.value.suggested_filename.endswith("step-61.png")
    box = tab.page.locator("iframe").bounding_box()
    assert (box["width"], box["height"]) == (viewport["width"], 900)
    assert tab.page.url == f"file://{tmp_path / 'cell.html'}" and tab.page.inner_text("#text") == "a cell"
    assert tab.troubles == []
    context.close()
