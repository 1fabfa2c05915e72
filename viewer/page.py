"""The page: one HTML file with everything in it, so that it opens offline and requests nothing."""

from __future__ import annotations

import base64
import gzip
import html
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from expire_span_rl.viewer.summary import agreement_text, extreme_kinds

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
    """The file.

    episodes: for each its `record` (`viewer.record`'s), `film` (pictures of the world, or None) and `seen` (pictures of
    the observations), both of `viewer.film`. If there is an episode without the memory, `without` has these two of it.
    summary: `viewer.summary`'s.
    """
    record = episodes[0]["record"]
    keys = ("seed", "outcome", "return", "steps")
    index = [{key: episode["record"][key] for key in keys} for episode in episodes]
    blocks = [
        f'<script type="application/octet-stream" id="episode-{i}">{_pack(episode)}</script>'
        for i, episode in enumerate(episodes)
    ]
    # A script ends at the first "</script", even inside a string. So the data are base64 and the index is escaped.
    parts = {
        "TITLE": html.escape(f"{record['env']}: {record['outcome']}"),
        "STYLE": "\n".join((WEB / name).read_text(encoding="utf-8") for name in STYLES),
        "EPISODES": json.dumps(index, allow_nan=False).replace("<", "\\u003c"),
        "SUMMARY": json.dumps(_summary_data(summary), allow_nan=False).replace("<", "\\u003c"),
        "DATA": "\n".join(blocks),
        "LICENCE": (WEB / "uPlot.LICENSE").read_text(encoding="utf-8"),
        "SCRIPT": "\n".join((WEB / name).read_text(encoding="utf-8") for name in SCRIPTS),
    }
    text = (WEB / "page.html").read_text(encoding="utf-8")
    # In one go: a text of the user's may look like a place, too.
    return re.sub(r"\{\{(\w+)\}\}", lambda place: parts[place[1]], text).encode()


def _summary_data(summary: Mapping[str, Any]) -> dict[str, Any]:
    """What the page shows of a summary: of its kinds the most kept and the most forgotten ones."""
    kept, forgotten = extreme_kinds(summary["kinds"])
    data = {key: value for key, value in summary.items() if key != "kinds"}
    return {**data, "most": list(kept), "least": list(forgotten), "agreement": agreement_text(summary["agreement"])}


def _pack(data: Any) -> str:
    """JSON, compressed, in base64."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode()
