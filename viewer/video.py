"""The episode as an MP4: the world, what the agent sees, what it does, and what it attends to in memory, step by step.

imageio-ffmpeg has its own ffmpeg, so the system needs none. imageio and imageio-ffmpeg are extras of the package. They
are imported when they are needed.
"""

from __future__ import annotations

import importlib.util
import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from PIL import Image, ImageDraw, ImageFont

WIDE = 960  # pixels of a picture
MARGIN = 16  # pixels
MAX_HEIGHT = 480  # pixels of the world
VIEW = 112  # pixels of the agent's view
THUMB = 64  # pixels of a memory
MAX_BARS = 5  # of the actions' distribution
MAX_LETTERS = 26  # of an action
MAX_TEXTS = 2  # that the agent reads
MAX_TEXT_LETTERS = 110  # of such a text
MAX_MEMORIES = (WIDE - 2 * MARGIN) // (THUMB + 12)  # of a layer
BACK = "#f6f7f9"
INK = "#1c2430"
SOFT = "#566173"
LINE = "#d9dee6"
ACCENT = "#0b62c4"
WEIGHT = "#d2601f"  # the colour of attention


def scenes(
    record: Mapping[str, Any], frames: Iterable[np.ndarray], views: Sequence[np.ndarray]
) -> Iterator[np.ndarray]:
    """A picture of each step, uint8 [height, width, 3], all of one size.

    record: `viewer.record`'s. frames: of the world, one for each step or none at all; each is taken as it is needed.
    views: a picture of each observation.
    """
    frames = iter(frames)
    frame = next(frames, None)
    world = (WIDE - 2 * MARGIN, 0) if frame is None else _fit(frame, WIDE - 2 * MARGIN, MAX_HEIGHT)
    top = MARGIN + world[1] + (MARGIN if world[1] else 0)
    small_views = [np.asarray(Image.fromarray(view).resize(_fit(view, VIEW, VIEW))) for view in views]
    texts = [entry for entry in record.get("entries", []) if entry["kind"] == "words"][:MAX_TEXTS]
    layers_top = top + VIEW + MARGIN + len(texts) * 24
    height = layers_top + len(record["layers"]) * (THUMB + 58)
    for t in range(record["steps"]):
        canvas = Image.new("RGB", (WIDE, height + height % 2), BACK)
        draw = ImageDraw.Draw(canvas)
        if frame is not None:
            canvas.paste(Image.fromarray(frame).resize(world), ((WIDE - world[0]) // 2, MARGIN))
            frame = next(frames, None)
        canvas.paste(Image.fromarray(small_views[t]), (MARGIN, top))
        _draw_step(draw, record, t, (MARGIN + 132, top))
        for i, entry in enumerate(texts):
            text = f"{entry['name']}: {entry['texts'][entry['which'][t]]}"
            draw.text((MARGIN, top + VIEW + MARGIN // 2 + 24 * i), text[:MAX_TEXT_LETTERS], INK, _font(16))
        for i, layer in enumerate(record["layers"]):
            layer_top = layers_top + i * (THUMB + 58)
            text = f"layer {i + 1}: {layer['live'][t]} live of {t + 1} observations; most attended to now:"
            draw.text((MARGIN, layer_top), text, SOFT, _font(16))
            _draw_memories(canvas, layer["attention"][t], t, views, layer_top + 24)
        yield np.asarray(canvas)


def check_video() -> None:
    """Raises ValueError, one line, if a package that writes an MP4 is not installed."""
    if any(importlib.util.find_spec(name) is None for name in ("imageio", "imageio_ffmpeg")):
        raise ValueError("an MP4 needs imageio, which is not installed: pip install 'expire-span-rl[video]'")


def video(pictures: Iterator[np.ndarray], fps: int) -> bytes:
    """The pictures as an MP4 (H.264). Raises ValueError as `check_video` does."""
    check_video()
    import imageio.v2 as imageio

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "episode.mp4"
        options = {"fps": fps, "codec": "libx264", "macro_block_size": 2}
        with cast(Any, imageio.get_writer(path, format="FFMPEG", **options)) as writer:
            for picture in pictures:
                writer.append_data(picture)
        return path.read_bytes()


def _fit(picture: np.ndarray, max_width: int, max_height: int) -> tuple[int, int]:
    """Width and height of the picture at the largest scale that fits."""
    height, width, _ = picture.shape
    scale = min(max_width / width, max_height / height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _draw_step(draw: ImageDraw.ImageDraw, record: Mapping[str, Any], t: int, corner: tuple[int, int]) -> None:
    """Step, action, value, return and a few numbers of the actions' distribution."""
    x, y = corner
    names = record["action_names"]
    action = record["action_texts"][t] if "action_texts" in record else names[record["actions"][t]]
    so_far = record["returns"][t]
    lines = (
        f"step {t} of {record['steps'] - 1}",
        f"action {action[:MAX_LETTERS]}",
        f"value {record['values'][t] or 0:.3f}",
        f"return so far {math.nan if so_far is None else so_far:.4g}",
    )
    for i, line in enumerate(lines):
        draw.text((x, y + 28 * i), line, INK, _font(19))
    left = x + 330
    for i, bar in enumerate(_bars(record, t)):
        top = y + 23 * i
        draw.text((left, top), bar.name[:10], ACCENT if bar.is_taken else INK, _font(16))
        draw.rectangle((left + 100, top + 4, left + 340, top + 15), LINE)
        if bar.length > 0:
            draw.rectangle((left + 100, top + 4, left + 100 + 240 * bar.length, top + 15), ACCENT)
        draw.text((left + 350, top), bar.number, SOFT, _font(14))


class _Bar(NamedTuple):
    """A number of the actions' distribution."""

    name: str
    length: float  # 0 to 1
    number: str
    is_taken: bool = False  # whether it is the action that was taken


def _bars(record: Mapping[str, Any], t: int) -> list[_Bar]:
    """At most MAX_BARS: the likeliest actions, or of several whole numbers the values that were taken.

    Of real numbers they are the means, between their bounds. A missing bound is the smallest or the largest mean of the
    episode.
    """
    names = record["action_names"]
    if record.get("continuous"):
        bars = []
        for i, name in enumerate(names[:MAX_BARS]):
            means = [row[i] for row in record["means"] if row[i] is not None] or [0.0]
            bounds = zip(record["action_bounds"][i], (min(means), max(means)), strict=True)
            low, high = (extreme if bound is None else bound for bound, extreme in bounds)
            mean = record["means"][t][i] or 0.0
            bars.append(_Bar(name, (mean - low) / (high - low) if high > low else 0.0, f"mean {mean:.3g}"))
        return bars
    chances = [chance or 0.0 for chance in record["probabilities"][t]]
    taken_places = record["taken"][t] if "taken" in record else [record["actions"][t]]
    places = taken_places[:MAX_BARS] if "taken" in record else sorted(np.argsort(chances)[::-1][:MAX_BARS].tolist())
    return [_Bar(names[place], chances[place], f"{chances[place]:.2f}", place in taken_places) for place in places]


def _draw_memories(
    canvas: Image.Image, attention: Mapping[str, Any], t: int, views: Sequence[np.ndarray], top: int
) -> None:
    """The memories of a layer that get most attention from any head at step t, without the present observation."""
    draw = ImageDraw.Draw(canvas)
    steps = attention["to"]
    best = np.max(attention["weights"], 0) if steps else np.zeros(0)
    ranking = [(steps[i], float(best[i])) for i in np.argsort(-best, kind="stable") if steps[i] < t]
    for place, (birth, weight) in enumerate(ranking[:MAX_MEMORIES]):
        left = MARGIN + place * (THUMB + 12)
        bar_top = top + THUMB + 2
        picture = Image.fromarray(views[birth])
        canvas.paste(picture.resize(_fit(views[birth], THUMB, THUMB)), (left, top))
        draw.rectangle((left, bar_top, left + THUMB, bar_top + 4), LINE)
        draw.rectangle((left, bar_top, left + THUMB * weight, bar_top + 4), WEIGHT)
        draw.text((left, top + THUMB + 8), f"{birth}: {weight:.2f}", INK, _font(13))


_FONTS: dict[int, Any] = {}


def _font(size: int) -> Any:
    return _FONTS.setdefault(size, ImageFont.load_default(size))
