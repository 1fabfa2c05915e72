"""The episode as an MP4: the world, what the agent sees, what it does, and what it attends to in memory, step by step.

imageio-ffmpeg brings its own ffmpeg: nothing of the system is needed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
from PIL import Image, ImageDraw, ImageFont

WIDE, MARGIN = 960, 16  # pixels
TALLEST = 480  # of the world
THUMB = 64
SHOWN = (WIDE - 2 * MARGIN) // (THUMB + 12)  # memories of a layer
BACK, INK, SOFT, LINE, ACCENT = "#f6f7f9", "#1c2430", "#566173", "#d9dee6", "#0b62c4"


def scenes(
    record: Mapping[str, Any], frames: Sequence[np.ndarray] | None, seen: Sequence[np.ndarray]
) -> Iterator[np.ndarray]:
    """A picture per step, uint8 [height, width, 3], all of one size. record: `viewer.record`'s; frames: of the world, None
    where there are none; seen: a picture per observation."""
    world = (WIDE - 2 * MARGIN, 0) if frames is None else _fitted(frames[0], WIDE - 2 * MARGIN, TALLEST)
    top = MARGIN + world[1] + (MARGIN if world[1] else 0)
    views = [np.asarray(Image.fromarray(view).resize(_fitted(view, 112, 112))) for view in seen]
    height = top + 112 + MARGIN + len(record["layers"]) * (THUMB + 58)
    for t in range(record["steps"]):
        canvas = Image.new("RGB", (WIDE, height + height % 2), BACK)
        draw = ImageDraw.Draw(canvas)
        if frames is not None:
            canvas.paste(Image.fromarray(frames[t]).resize(world), ((WIDE - world[0]) // 2, MARGIN))
        canvas.paste(Image.fromarray(views[t]), (MARGIN, top))
        _told(draw, record, t, (MARGIN + 132, top))
        for i, layer in enumerate(record["layers"]):
            _memories(canvas, draw, layer, i, t, seen, top + 112 + MARGIN + i * (THUMB + 58))
        yield np.asarray(canvas)


def video(pictures: Iterator[np.ndarray], fps: int) -> bytes:
    """The pictures as an MP4 (H.264)."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "episode.mp4"
        with imageio.get_writer(path, format="FFMPEG", fps=fps, codec="libx264", macro_block_size=2) as writer:
            for picture in pictures:
                writer.append_data(picture)
        return path.read_bytes()


def _fitted(picture: np.ndarray, wide: int, tall: int) -> tuple[int, int]:
    """Width and height of the picture as large as it goes in."""
    height, width, _ = picture.shape
    scale = min(wide / width, tall / height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _told(draw: ImageDraw.ImageDraw, record: Mapping[str, Any], t: int, at: tuple[int, int]) -> None:
    """Step, action, value, return and the probabilities of the (at most five likeliest) actions."""
    x, y = at
    names, action, chances = record["action_names"], record["actions"][t], record["probabilities"][t]
    gained = sum(record["rewards"][: t + 1])
    lines = (f"step {t} of {record['steps'] - 1}", f"action {names[action]}", f"value {record['values'][t]:.3f}")
    for i, line in enumerate((*lines, f"return so far {gained:.4g}")):
        draw.text((x, y + 28 * i), line, INK, _font(19))
    for i, a in enumerate(sorted(np.argsort(chances)[::-1][:5])):
        left, line = x + 240, y + 23 * i
        draw.text((left, line), names[a][:10], ACCENT if a == action else INK, _font(16))
        draw.rectangle((left + 100, line + 4, left + 400, line + 15), LINE)
        if chances[a] > 0:
            draw.rectangle((left + 100, line + 4, left + 100 + 300 * chances[a], line + 15), ACCENT)


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
    ranked = [(now["to"][i], best[i]) for i in np.argsort(-best, kind="stable") if now["to"][i] < t]
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
