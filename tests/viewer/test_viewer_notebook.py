"""`es.show` in a notebook: what it says of itself in HTML, put into a page as notebooks put the output of a cell."""

from __future__ import annotations

import html
import json
import re

import pytest
from viewer_browser import NARROW, WIDE, Opened
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
def shown() -> Showing:
    return es.show(SHIPPED, seed=3, env_kwargs={"min_length": 100})


def test_the_frame_holds_the_whole_page(shown, tmp_path):
    found = re.fullmatch(r'<iframe srcdoc="([^"]*)" style="[^"]*" title="([^"]*)"></iframe>', shown._repr_html_())
    assert html.unescape(found[2]) == shown.title
    shown.save(tmp_path / "memory.html")
    assert html.unescape(found[1]) == (tmp_path / "memory.html").read_text()


@pytest.mark.parametrize(("viewport", "scheme"), [(WIDE, "light"), (NARROW, "dark")], ids=["1280-light", "390-dark"])
def test_the_page_works_inside_of_a_cells_output(browser, shown, tmp_path, viewport, scheme):
    """An output as nbformat 4 stores it: it asks for nothing, says the story, moves, and does not touch what is around."""
    output = {"output_type": "execute_result", "data": {"text/html": shown._repr_html_().splitlines(keepends=True)}}
    text = json.dumps(output).replace("</", "<\\/")
    (tmp_path / "cell.html").write_text(CELL.replace("{output}", text))
    context = browser.new_context(viewport=viewport, color_scheme=scheme)
    one = Opened(context.new_page())
    one.page.on("console", lambda message: one.troubles.append(message.text))
    one.page.on("pageerror", lambda error: one.troubles.append(str(error)))
    one.page.on("request", lambda r: r.url.startswith(("data:", "blob:", "file:")) or one.troubles.append(r.url))
    one.page.goto(f"file://{tmp_path / 'cell.html'}")
    frame = Opened(one.page.frames[1])
    frame.until("document.documentElement.dataset.ready !== undefined")
    record = shown.numbers["episodes"][0]
    assert frame.page.inner_text("#headline") == record["story"]["headline"]
    frame.settled(139)
    frame.page.locator("#slider").fill("60")
    frame.settled(60)
    frame.page.locator("#slider").press("ArrowRight")
    frame.settled(61)
    one.page.wait_for_timeout(400)  # the address follows a moment later, where there is one
    assert not frame.page.is_visible("#address-note")
    with one.page.expect_download() as download:
        frame.page.click("#save")
    assert download.value.suggested_filename.endswith("step-61.png")
    box = one.page.locator("iframe").bounding_box()
    assert (box["width"], box["height"]) == (viewport["width"], 900)
    assert one.page.url == f"file://{tmp_path / 'cell.html'}" and one.page.inner_text("#text") == "a cell"
    assert one.troubles == []
    context.close()
