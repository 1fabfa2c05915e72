"""The page in Debian's Chromium, driven by Playwright, and what it must show at a step by the JSON."""

from __future__ import annotations

import base64
import io
import json
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page

import visualize

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
WIDE, NARROW = {"width": 1280, "height": 800}, {"width": 390, "height": 844}

CONTRAST = """() => {
  const parse = (c) => { const n = c.match(/[\\d.]+/g).map(Number); return c.startsWith("color(srgb") ? [...n.slice(0, 3).map(x => 255 * x), n[3] ?? 1] : [...n.slice(0, 3), n[3] ?? 1]; };
  const light = (rgb) => { const [r, g, b] = rgb.map(v => { v /= 255; return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; }); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const poor = [];
  for (const node of document.querySelectorAll("body *")) {
    if (!node.checkVisibility() || node.closest(".uplot canvas, #tip") || ![...node.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())) continue;
    const style = getComputedStyle(node);
    let under = node, back = [0, 0, 0, 0];
    while (under && back[3] < 1) { back = parse(getComputedStyle(under).backgroundColor); under = under.parentElement; }
    const [a, b] = [light(parse(style.color).slice(0, 3)), light(back.slice(0, 3))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5 || parseFloat(style.fontSize) < 12) poor.push(`${node.tagName} ${node.className} "${node.textContent.trim().slice(0, 30)}" ${ratio.toFixed(2)} ${style.fontSize}`);
  }
  return poor;
}"""
"""The texts that are too small, or too like what is behind them."""


@dataclass
class Opened:
    """A page in the browser, and what must not happen in it."""

    page: Page
    troubles: list[str] = field(default_factory=list)

    def until(self, condition: str) -> None:
        """Waits until the JavaScript expression holds. (Playwright's own waiting needs eval, which the page
        forbids.)"""
        for _ in range(400):
            if self.page.evaluate(condition):
                return
            self.page.wait_for_timeout(25)
        pytest.fail(f"did not come to pass: {condition}")

    def now(self) -> int:
        return self.page.evaluate("page.t")

    def settled(self, t: int) -> None:
        """Waits until step t is what is shown."""
        self.until(f"document.documentElement.dataset.t === '{t}' && !page.due")

    def image(self, selector: str) -> np.ndarray:
        """The pixels of a canvas."""
        url = self.page.eval_on_selector(selector, "canvas => canvas.toDataURL()")
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).convert("RGB"))


def made(folder: Path, *arguments: str) -> tuple[Path, list[dict]]:
    """The page that the command line makes, and the episodes of its JSON."""
    out, numbers = folder / "memory.html", folder / "memory.json"
    before, sys.argv = sys.argv, ["visualize.py", *arguments, "--out", str(out), "--json", str(numbers)]
    try:
        visualize.main()
    finally:
        sys.argv = before
    return out, json.loads(numbers.read_text())["episodes"]


def remembered(record: dict, t: int) -> dict[int, float]:
    """Observations that are live at step t in some layer, with the largest attention that any head of any gives
    them."""
    found: dict[int, float] = {}
    for layer in record["layers"]:
        now = layer["attention"][t]
        weights = dict(zip(now["to"], np.max(now["weights"], 0) if now["to"] else []))
        for w in range(t + 1):
            if layer["end"][w] > t:
                found[w] = max(found.get(w, 0.0), float(weights.get(w, 0.0)))
    return found


def agrees(one: Opened, record: dict, t: int) -> None:
    """All that is told of step t is what the record says."""
    page = one.page
    one.settled(t)
    assert page.input_value("#slider") == str(t)
    assert page.inner_text("#clock") == f"step {t} of {record['steps'] - 1}"
    facts = dict(zip(page.locator("#facts dt").all_inner_texts(), page.locator("#facts dd").all_inner_texts()))
    assert facts["action"] == record["action_names"][record["actions"][t]]
    assert float(facts["value"]) == pytest.approx(record["values"][t], abs=6e-4)
    assert float(facts["return so far"]) == pytest.approx(sum(record["rewards"][: t + 1]))
    shown = [float(p) for p in page.locator("#chances .number").all_inner_texts()]
    assert shown == pytest.approx(record["probabilities"][t], abs=6e-3)
    totals = [int(n) for n in page.locator("#totals b").all_inner_texts()]
    expected = [[t + 1, layer["live"][t], t + 1 - layer["remembered"][t]] for layer in record["layers"]]
    assert totals == [n for row in expected for n in row]
    live = remembered(record, t)
    assert page.evaluate("remembered(page).map(one => one.written)").sort() == [*live].sort()
    thumbs = page.evaluate(
        "[...document.querySelectorAll('.thumb')].map(n => [+n.dataset.written, n.querySelector('.number').innerText])"
    )
    assert len(thumbs) == min(48, len(live))
    ranked = sorted(live.values(), reverse=True)
    for (written, told), weight in zip(thumbs, ranked):
        assert float(told.split()[1]) == pytest.approx(live[written], abs=6e-3)
        assert live[written] == pytest.approx(weight)
    for i, layer in enumerate(record["layers"]):
        count = sum(layer["end"][w] > t for w in range(t + 1))
        assert page.evaluate(f"page.timelines[{i}].liveNow") == count == layer["remembered"][t]
