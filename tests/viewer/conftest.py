"""The browser in which the page is tested."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, sync_playwright
from viewer_browser import CHROMIUM, WIDE, Tab


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not Path(CHROMIUM).exists() and not os.environ.get("CI"):
        pytest.skip("no chromium on this machine: apt-get install chromium (.ci/run does)")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Any]:
    """Opens a page in a tab of its own."""
    contexts = []

    def open_tab(path: Path, fragment: str = "", viewport: dict = WIDE, scheme: str = "light") -> Tab:
        context = browser.new_context(viewport=viewport, color_scheme=scheme)
        contexts.append(context)
        tab = Tab(context.new_page())
        tab.page.on("console", lambda message: tab.troubles.append(message.text))
        tab.page.on("pageerror", lambda error: tab.troubles.append(str(error)))
        tab.page.on("request", lambda r: r.url.startswith(("data:", "blob:")) or tab.troubles.append(r.url))
        tab.page.goto(f"file://{path}{fragment}")
        tab.until("document.documentElement.dataset.ready !== undefined")
        assert tab.troubles.pop(0).startswith(f"file://{path}")  # the page itself, the only request there may be
        return tab

    yield open_tab
    for context in contexts:
        context.close()
