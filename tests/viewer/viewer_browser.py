"""The page in Debian's Chromium, driven by Playwright, and what it must show at a step of the JSON."""

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
  const parse = (colour) => {
    const numbers = colour.match(/[\\d.]+/g).map(Number), alpha = numbers[3] ?? 1;
    const scale = colour.startsWith("color(srgb") ? 255 : 1;
    return [...numbers.slice(0, 3).map((number) => scale * number), alpha];
  };
  const linear = (v) => (v / 255 <= 0.03928 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4);
  const luminance = (rgb) => {
    const [r, g, b] = rgb.map(linear);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const poor = [];
  for (const node of document.querySelectorAll("body *")) {
    const hasText = [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
    if (!node.checkVisibility() || node.closest(".uplot canvas, #tip") || !hasText) continue;
    const style = getComputedStyle(node);
    let under = node, back = [0, 0, 0, 0];
    while (under && back[3] < 1) {
      back = parse(getComputedStyle(under).backgroundColor);
      under = under.parentElement;
    }
    const pair = [luminance(parse(style.color).slice(0, 3)), luminance(back.slice(0, 3))];
    const [a, b] = pair.sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio >= 4.5 && parseFloat(style.fontSize) >= 12) continue;
    const text = node.textContent.trim().slice(0, 30);
    poor.push(`${node.tagName} ${node.className} "${text}" ${ratio.toFixed(2)} ${style.fontSize}`);
  }
  return poor;
}"""
"""JavaScript that lists the texts that are too small, or whose contrast is too low."""


@dataclass
class Tab:
    """A page in the browser. `troubles`: what it did that it must not do."""

    page: Page
    troubles: list[str] = field(default_factory=list)

    def until(self, condition: str) -> None:
        """Waits until the JavaScript expression holds. Playwright's own waiting needs eval, which the page forbids."""
        for _ in range(400):
            if self.page.evaluate(condition):
                return
            self.page.wait_for_timeout(25)
        pytest.fail(f"this never held: {condition}")

    def now(self) -> int:
        return self.page.evaluate("page.t")

    def wait_for_step(self, t: int) -> None:
        """Waits until the page shows step t."""
        self.until(f"document.documentElement.dataset.t === '{t}' && !page.due")

    def image(self, selector: str) -> np.ndarray:
        """The pixels of a canvas."""
        url = self.page.eval_on_selector(selector, "canvas => canvas.toDataURL()")
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).convert("RGB"))


def make_page(folder: Path, *arguments: str) -> tuple[Path, list[dict]]:
    """The page that the command line writes, and the episodes of its JSON."""
    out = folder / "memory.html"
    json_file = folder / "memory.json"
    argv = sys.argv
    sys.argv = ["visualize.py", *arguments, "--out", str(out), "--json", str(json_file)]
    try:
        visualize.main()
    finally:
        sys.argv = argv
    return out, json.loads(json_file.read_text())["episodes"]


def live_attention(record: dict, t: int) -> dict[int, float]:
    """The observations that are live at step t in some layer, with the largest attention that any head gives them."""
    result: dict[int, float] = {}
    for layer in record["layers"]:
        attention = layer["attention"][t]
        best = np.max(attention["weights"], 0) if attention["to"] else []
        weights = dict(zip(attention["to"], best, strict=True))
        for w in range(t + 1):
            if layer["end"][w] > t:
                result[w] = max(result.get(w, 0.0), float(weights.get(w, 0.0)))
    return result


def check_step(tab: Tab, record: dict, t: int) -> None:
    """Everything that the page shows of step t agrees with the record."""
    page = tab.page
    tab.wait_for_step(t)
    assert page.input_value("#slider") == str(t)
    assert page.inner_text("#clock") == f"step {t} of {record['steps'] - 1}"
    names = page.locator("#facts dt").all_inner_texts()
    facts = dict(zip(names, page.locator("#facts dd").all_inner_texts(), strict=True))
    assert facts["action"] == record["action_names"][record["actions"][t]]
    assert float(facts["value"]) == pytest.approx(record["values"][t], abs=6e-4)
    assert float(facts["return so far"]) == pytest.approx(sum(record["rewards"][: t + 1]), abs=1e-4)
    probabilities = [float(text) for text in page.locator("#chances .number").all_inner_texts()]
    assert probabilities == pytest.approx(record["probabilities"][t], abs=6e-3)
    totals = [int(n) for n in page.locator("#totals b").all_inner_texts()]
    expected = [[t + 1, layer["live"][t], t + 1 - layer["remembered"][t]] for layer in record["layers"]]
    assert totals == [n for row in expected for n in row]
    live = live_attention(record, t)
    assert page.evaluate("liveMemories(page).map(memory => memory.written)").sort() == [*live].sort()
    thumbs = page.evaluate(
        "[...document.querySelectorAll('.thumb')].map(n => [+n.dataset.written, n.querySelector('.number').innerText])"
    )
    assert len(thumbs) == min(48, len(live))
    ranked = sorted(live.values(), reverse=True)
    for (written, text), weight in zip(thumbs, ranked, strict=False):
        assert float(text.split()[1]) == pytest.approx(live[written], abs=6e-3)
        assert live[written] == pytest.approx(weight)
    for i, layer in enumerate(record["layers"]):
        count = sum(layer["end"][w] > t for w in range(t + 1))
        assert page.evaluate(f"page.timelines[{i}].liveNow") == count == layer["remembered"][t]
