"""The browser of the page's tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, sync_playwright
from viewer_browser import CHROMIUM, WIDE, Opened


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not Path(CHROMIUM).exists() and not os.environ.get("CI"):
        pytest.skip("no chromium on this machine: apt-get install chromium (.ci/run does)")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def opened(browser: Browser) -> Iterator[Any]:
    contexts = []

    def go(path: Path, fragment: str = "", viewport: dict = WIDE, scheme: str = "light") -> Opened:
        context = browser.new_context(viewport=viewport, color_scheme=scheme)
        contexts.append(context)
        one = Opened(context.new_page())
        one.page.on("console", lambda message: one.troubles.append(message.text))
        one.page.on("pageerror", lambda error: one.troubles.append(str(error)))
        one.page.on("request", lambda r: r.url.startswith(("data:", "blob:")) or one.troubles.append(r.url))
        one.page.goto(f"file://{path}{fragment}")
        one.until("document.documentElement.dataset.ready !== undefined")
        assert one.troubles.pop(0).startswith(f"file://{path}")  # the page itself, the only request there may be
        return one

    yield go
    for context in contexts:
        context.close()
