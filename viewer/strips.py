"""The upper part of the figure: a strip each for what the agent saw, did and got. Also what all parts of the figure are
drawn with.

Names: T steps of the episode, N numbers of an action.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.legend import Legend
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from matplotlib.patches import Patch

from expire_span_rl.envs import render_observation
from expire_span_rl.viewer.panels import is_panel, observation_pictures

MAX_ROWS = 8  # numbers of an action that get a line's height
LEFT = 0.95  # inches, for the labels
WIDE = 9.6  # inches of the axes
GUTTER = 2.8  # inches to the right of the axes, for legends and thumbnails
THUMB = 0.5  # inches of a thumbnail
GOOD = "#1a7f37"
BAD = "#b42318"
INK = "#24292f"
FAINT = "#8c959f"
PALETTES = cast(Any, matplotlib.colormaps)  # the type of an entry has no `colors`
ACTION_COLOURS = PALETTES["tab20"].colors[::2] + PALETTES["tab20"].colors[1::2]
HEAD_COLOURS = PALETTES["Dark2"].colors


def spread(targets: Sequence[float], gap: float, low: float, high: float) -> np.ndarray:
    """Places in low..high near the ascending `targets`, at least `gap` apart. They must fit."""
    places = np.clip(np.array(targets, float), low, high)
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + gap)
    for i in reversed(range(len(places))):
        places[i] = min(places[i], high if i == len(places) - 1 else places[i + 1] - gap)
    return places


def thumbnails(
    observations: Sequence[Mapping[str, np.ndarray]], spec: Mapping[str, Mapping[str, Any]]
) -> list[np.ndarray] | None:
    """A picture of each observation, uint8 [height, width, 3]; None if no part of it is shown as a picture."""
    panels = [name for name, entry in spec.items() if is_panel(entry)]
    if not panels:
        return None
    if len(panels) > 1 or spec[panels[0]]["kind"] != "cells":
        return observation_pictures(observations, spec)
    pictures: dict[bytes, np.ndarray] = {}
    images = [observation[panels[0]] for observation in observations]
    for image in images:  # sharper than the page's
        if image.tobytes() not in pictures:
            pictures[image.tobytes()] = render_observation(image, max(4, round(144 * THUMB / len(image))))
    return [pictures[image.tobytes()] for image in images]


def write_heading(ax: Axes, text: str, points: float = 5) -> None:
    """A heading above the axes, `points` higher."""
    ax.annotate(
        text,
        xy=(0, 1),
        xytext=(0, points),
        xycoords="axes fraction",
        textcoords="offset points",
        weight="bold",
        fontsize=10,
    )


def place_picture(ax: Axes, picture: np.ndarray, box: tuple[float, float]) -> None:
    """An observation, THUMB inches wide or high, centred at `box` in fractions of the axes."""
    offset = OffsetImage(picture, zoom=72 * THUMB / max(picture.shape[:2]), interpolation="antialiased")
    style = {"pad": 0.08, "bboxprops": {"edgecolor": FAINT, "linewidth": 0.6}, "annotation_clip": False}
    ax.add_artist(AnnotationBbox(offset, box, xycoords="axes fraction", **style))


def draw_leader(ax: Axes, xy: tuple[float, float], box: tuple[float, float]) -> None:
    """A thin line from the data point `xy` to `box` in fractions of the axes."""
    arrow = {"arrowstyle": "-", "color": INK, "linewidth": 0.5, "alpha": 0.6, "shrinkA": 0, "shrinkB": 0}
    coordinates = {"xycoords": "data", "textcoords": "axes fraction"}
    ax.annotate("", xy, box, **coordinates, arrowprops=arrow, annotation_clip=False)


def gutter_legend(ax: Axes, **options: Any) -> Legend:
    """A legend in the gutter."""
    place = {"loc": "center left", "bbox_to_anchor": (1.015, 0.5), "borderaxespad": 0, "frameon": False}
    return ax.legend(**place, alignment="left", **options)


def film_strip(images: Sequence[np.ndarray], ax: Axes) -> None:
    """What the agent saw: every step of a short episode, some of a long one."""
    count = min(len(images), int(WIDE / (THUMB + 0.14)))
    steps = np.linspace(0, len(images) - 1, count).round().astype(int)
    half = THUMB / 2 / WIDE
    targets = ((steps + 0.5) / len(images)).tolist()
    for step, place in zip(steps, spread(targets, 2.4 * half, half, 1 - half), strict=True):
        place_picture(ax, images[step], (place, 0.5))
    ax.set_axis_off()
    part = "" if count == len(images) else f" ({count} of {len(images)} steps)"
    write_heading(ax, f"What the agent saw{part}, what it did, and its reward")


def action_strip(actions: np.ndarray, names: Sequence[str], ax: Axes) -> None:
    """actions [T] as a coloured strip. Its legend has the actions that were taken."""
    colours = np.array([ACTION_COLOURS[a % len(ACTION_COLOURS)] for a in range(len(names))])
    ax.imshow(colours[actions][None], aspect="auto", extent=(-0.5, len(actions) - 0.5, 0, 1), interpolation="nearest")
    counts = np.bincount(actions, minlength=len(names))
    frequent = [a for a in np.argsort(-counts, kind="stable") if counts[a]][:10]
    handles = [Patch(color=tuple(colours[a]), label=f"{names[a][:14]} × {counts[a]}") for a in sorted(frequent)]
    gutter_legend(ax, handles=handles, ncols=1 + (len(handles) > 5), title="action × times")
    ax.set_yticks([0.5], ["action"])
    ax.tick_params(length=0, labelbottom=False)
    ax.spines[:].set_visible(False)


def number_strip(actions: np.ndarray, continuous: bool, ax: Axes) -> None:
    """actions [T,N] in the environment's units, a line for each number. Whole numbers have the colour of their value,
    real ones a brightness between the smallest and the largest of the episode."""
    count = actions.shape[1]
    low = actions.min(0)  # [N]
    high = actions.max(0)  # [N]
    if continuous:
        pixels = (actions - low) / np.where(high > low, high - low, 1)  # [T,N]
        ranges = [f"{i}: {low[i]:.3g} to {high[i]:.3g}" for i in range(min(count, MAX_ROWS))]
        ax.imshow(pixels.T, cmap="viridis", vmin=0, vmax=1, aspect="auto", interpolation="nearest", **_extent(actions))
        gutter_note(ax, "\n".join(["number: dark to bright", *ranges]))
    else:
        values = np.unique(actions)
        colours = np.array(ACTION_COLOURS)[np.searchsorted(values, actions.T) % len(ACTION_COLOURS)]  # [N,T,3]
        ax.imshow(colours, aspect="auto", interpolation="nearest", **_extent(actions))
        handles = [
            Patch(color=ACTION_COLOURS[i % len(ACTION_COLOURS)], label=f"{v}") for i, v in enumerate(values[:10])
        ]
        gutter_legend(ax, handles=handles, ncols=5, title="value of each number", handlelength=1, columnspacing=1)
    ax.set_yticks([count / 2], ["action" if count == 1 else f"action,\n{count} numbers"])
    ax.tick_params(length=0, labelbottom=False)
    ax.spines[:].set_visible(False)


def _extent(actions: np.ndarray) -> dict[str, Any]:
    """Where the picture of actions [T,N] is: the first number on top."""
    return {"extent": (-0.5, len(actions) - 0.5, actions.shape[1], 0)}


def gutter_note(ax: Axes, text: str) -> None:
    """A text in the gutter."""
    ax.text(1.015, 0.5, text, transform=ax.transAxes, va="center", fontsize=7, linespacing=1.1)


def reward_strip(rewards: np.ndarray, ax: Axes) -> None:
    """rewards [T]. If only a few are not zero, each has its value."""
    steps = np.flatnonzero(rewards)
    colours = [GOOD if reward > 0 else BAD for reward in rewards[steps]]
    ax.vlines(steps, 0, rewards[steps], colors=colours, linewidth=2)
    ax.axhline(0, color=FAINT, linewidth=0.8)
    if len(steps) <= 8:
        ax.scatter(steps, rewards[steps], s=18, c=colours, clip_on=False)
        for step in steps:
            ax.annotate(
                f"{rewards[step]:+.3g}",
                xy=(step, rewards[step]),
                xytext=(-6, 0),
                textcoords="offset points",
                ha="right",
                va="center",
            )
    if not len(steps):
        ax.text(0.5, 0.6, "no reward at any step", transform=ax.transAxes, ha="center", color=FAINT)
        ax.set_yticks([0])
    ax.set_ylabel("reward", rotation=0, ha="right", va="center")
    ax.set_xlabel("step of the episode")
    ax.margins(y=0.15)


@contextlib.contextmanager
def without_glyph_warnings() -> Iterator[None]:
    """Within, Matplotlib does not warn of characters that its font lacks, in a name or a text of the user's. They are
    drawn as boxes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield
