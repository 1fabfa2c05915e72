"""The episode as an MP4: the world, what the agent sees, what it does, and what it attends to in memory, step by step.

imageio-ffmpeg brings its own ffmpeg: nothing of the system is needed. Both are extras of the package, imported when
they are needed.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image, ImageDraw, ImageFont

WIDE, MARGIN = 960, 16  # pixels
TALLEST = 480  # of the world
THUMB = 64
MOST_BARS = 5
MOST_LETTERS = 26  # of an action
MOST_TEXTS, MOST_SAID = 2, 110  # texts that were read, and letters of one
SHOWN = (WIDE - 2 * MARGIN) // (THUMB + 12)  # memories of a layer
BACK, INK, SOFT, LINE, ACCENT = "#f6f7f9", "#1c2430", "#566173", "#d9dee6", "#0b62c4"


def scenes(
    record: Mapping[str, Any], frames: Sequence[np.ndarray] | None, seen: Sequence[np.ndarray]
) -> Iterator[np.ndarray]:
    """A picture per step, uint8 [height, width, 3], all of one size. record: `viewer.record`'s; frames: of the world,
    None where there are none; seen: a picture per observation."""
    world = (WIDE - 2 * MARGIN, 0) if frames is None else _fitted(frames[0], WIDE - 2 * MARGIN, TALLEST)
    top = MARGIN + world[1] + (MARGIN if world[1] else 0)
    views = [np.asarray(Image.fromarray(view).resize(_fitted(view, 112, 112))) for view in seen]
    texts = [entry for entry in record.get("entries", []) if entry["kind"] == "words"][:MOST_TEXTS]
    layers = top + 112 + MARGIN + len(texts) * 24
    height = layers + len(record["layers"]) * (THUMB + 58)
    for t in range(record["steps"]):
        canvas = Image.new("RGB", (WIDE, height + height % 2), BACK)
        draw = ImageDraw.Draw(canvas)
        if frames is not None:
            canvas.paste(Image.fromarray(frames[t]).resize(world), ((WIDE - world[0]) // 2, MARGIN))
        canvas.paste(Image.fromarray(views[t]), (MARGIN, top))
        _told(draw, record, t, (MARGIN + 132, top))
        for i, entry in enumerate(texts):
            said = f"{entry['name']}: {entry['texts'][entry['which'][t]]}"
            draw.text((MARGIN, top + 112 + MARGIN // 2 + 24 * i), said[:MOST_SAID], INK, _font(16))
        for i, layer in enumerate(record["layers"]):
            _memories(canvas, draw, layer, i, t, seen, layers + i * (THUMB + 58))
        yield np.asarray(canvas)


def check_video() -> None:
    """Raises ValueError, one line, if what writes an MP4 is not installed."""
    if any(importlib.util.find_spec(name) is None for name in ("imageio", "imageio_ffmpeg")):
        raise ValueError("an MP4 needs imageio, which is not installed: pip install 'expire-span-rl[video]'")


def video(pictures: Iterator[np.ndarray], fps: int) -> bytes:
    """The pictures as an MP4 (H.264). Raises as `check_video`."""
    check_video()
    import imageio.v2 as imageio

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "episode.mp4"
        options = {"fps": fps, "codec": "libx264", "macro_block_size": 2}
        with cast(Any, imageio.get_writer(path, format="FFMPEG", **options)) as writer:
            for picture in pictures:
                writer.append_data(picture)
        return path.read_bytes()


def _fitted(picture: np.ndarray, wide: int, tall: int) -> tuple[int, int]:
    """Width and height of the picture as large as it goes in."""
    height, width, _ = picture.shape
    scale = min(wide / width, tall / height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _told(draw: ImageDraw.ImageDraw, record: Mapping[str, Any], t: int, at: tuple[int, int]) -> None:
    """Step, action, value, return and a few numbers of the actions' distribution."""
    x, y = at
    names, gained = record["action_names"], sum(reward or 0 for reward in record["rewards"][: t + 1])
    action = record["action_texts"][t] if "action_texts" in record else names[record["actions"][t]]
    lines = (
        f"step {t} of {record['steps'] - 1}",
        f"action {action[:MOST_LETTERS]}",
        f"value {record['values'][t] or 0:.3f}",
    )
    for i, line in enumerate((*lines, f"return so far {gained:.4g}")):
        draw.text((x, y + 28 * i), line, INK, _font(19))
    for i, (name, part, told, marked) in enumerate(_bars(record, t)):
        left, line = x + 330, y + 23 * i
        draw.text((left, line), name[:10], ACCENT if marked else INK, _font(16))
        draw.rectangle((left + 100, line + 4, left + 340, line + 15), LINE)
        if part > 0:
            draw.rectangle((left + 100, line + 4, left + 100 + 240 * part, line + 15), ACCENT)
        draw.text((left + 350, line), told, SOFT, _font(14))


def _bars(record: Mapping[str, Any], t: int) -> list[tuple[str, float, str, bool]]:
    """At most MOST_BARS of (name, length from 0 to 1, number, whether it is what was done): the likeliest actions; of
    several whole numbers the values that were taken; of real numbers their means, as far as between their bounds or,
    where there are none, between the smallest and the largest of the episode."""
    names = record["action_names"]
    if record.get("continuous"):
        bars = []
        for i, name in enumerate(names[:MOST_BARS]):
            seen = [row[i] for row in record["means"] if row[i] is not None] or [0.0]
            bounds = zip(record["action_bounds"][i], (min(seen), max(seen)), strict=True)
            low, high = (extreme if bound is None else bound for bound, extreme in bounds)
            mean = record["means"][t][i] or 0.0
            bars.append((name, (mean - low) / (high - low) if high > low else 0.0, f"mean {mean:.3g}", False))
        return bars
    chances = [chance or 0.0 for chance in record["probabilities"][t]]
    done = record["taken"][t] if "taken" in record else [record["actions"][t]]
    best = done[:MOST_BARS] if "taken" in record else sorted(np.argsort(chances)[::-1][:MOST_BARS].tolist())
    return [(names[a], chances[a], f"{chances[a]:.2f}", a in done) for a in best]


def _memories(
    canvas: Image.Image,
    draw: ImageDraw.ImageDraw,
    layer: Mapping[str, Any],
    index: int,
    t: int,
    seen: Sequence[np.ndarray],
    top: int,
) -> None:
    """The memories of a layer that get most attention from any head now, the present observation left out."""
    told = f"layer {index + 1}: {layer['live'][t]} live of {t + 1} observations; most attended to now:"
    draw.text((MARGIN, top), told, SOFT, _font(16))
    now = layer["attention"][t]
    best = np.max(now["weights"], 0) if now["to"] else np.zeros(0)
    ranked = [(now["to"][i], float(best[i])) for i in np.argsort(-best, kind="stable") if now["to"][i] < t]
    for place, (written, weight) in enumerate(ranked[:SHOWN]):
        x, y = MARGIN + place * (THUMB + 12), top + 24
        picture = Image.fromarray(seen[written])
        canvas.paste(picture.resize(_fitted(seen[written], THUMB, THUMB)), (x, y))
        draw.rectangle((x, y + THUMB + 2, x + THUMB, y + THUMB + 6), LINE)
        draw.rectangle((x, y + THUMB + 2, x + THUMB * weight, y + THUMB + 6), "#d2601f")
        draw.text((x, y + THUMB + 8), f"{written}: {weight:.2f}", INK, _font(13))


_FONTS: dict[int, Any] = {}


def _font(size: int) -> Any:
    return _FONTS.setdefault(size, ImageFont.load_default(size))
