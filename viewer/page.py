"""The page: one HTML file with everything in it, so that it opens offline and asks for nothing."""

from __future__ import annotations

import base64
import gzip
import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from expire_span_rl.viewer.summary import agreement_text, ends_of

WEB = Path(__file__).parent / "web"
STYLES = ("uPlot.min.css", "page.css")
SCRIPTS = (
    "uPlot.iife.min.js",
    "film.js",
    "compare.js",
    "actions.js",
    "timeline.js",
    "density.js",
    "memories.js",
    "charts.js",
    "summary.js",
    "picture.js",
    "page.js",
)


def page(episodes: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> bytes:
    """summary: `viewer.summary`'s; episodes: of each `record` (`viewer.record`'s), `film` and `seen` (`viewer.film`'s pictures of the world, or
    None, and of the observations), and these two of the episode `without` the memory, if there is one."""
    first = episodes[0]["record"]
    listed = [
        {key: episode["record"][key] for key in ("seed", "outcome", "return", "steps")} for episode in episodes
    ]  # fmt: skip
    blocks = [
        f'<script type="application/octet-stream" id="episode-{i}">{_packed(episode)}</script>'
        for i, episode in enumerate(episodes)
    ]
    # A script ends at the first "</script", whatever that is part of: the data are base64 and the list is escaped.
    parts = {
        "TITLE": html.escape(f"{first['env']}: {first['outcome']}"),
        "STYLE": "\n".join((WEB / name).read_text() for name in STYLES),
        "EPISODES": json.dumps(listed, allow_nan=False).replace("<", "\\u003c"),
        "SUMMARY": json.dumps(_told(summary), allow_nan=False).replace("<", "\\u003c"),
        "DATA": "\n".join(blocks),
        "LICENCE": (WEB / "uPlot.LICENSE").read_text(),
        "SCRIPT": "\n".join((WEB / name).read_text() for name in SCRIPTS),
    }
    text = (WEB / "page.html").read_text()
    for name, value in parts.items():
        text = text.replace("{{" + name + "}}", value)
    return text.encode()


def _told(summary: Mapping[str, Any]) -> dict[str, Any]:
    """What the page shows of a summary: the most kept and the most forgotten kinds."""
    most, least = ends_of(summary["kinds"])
    told = {key: value for key, value in summary.items() if key != "kinds"}
    return {**told, "most": list(most), "least": list(least), "agreement": agreement_text(summary["agreement"])}


def _packed(data: Any) -> str:
    """JSON, compressed, in base64."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode()
