"""The figure: one picture of what a policy saw, did and kept in an episode.

Names: T steps of the episode, N numbers of an action, H heads. An observation is named by the step at which it was
written.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import matplotlib
import numpy as np
import torch
from matplotlib.artist import setp
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from expire_span_rl.policies import ActorCritic
from expire_span_rl.viewer.panels import is_panel
from expire_span_rl.viewer.play import Episode, LayerLives, action_text, plain
from expire_span_rl.viewer.strips import (
    BAD,
    FAINT,
    GOOD,
    GUTTER,
    HEAD_COLOURS,
    INK,
    LEFT,
    MOST_ROWS,
    WIDE,
    action_strip,
    draw_leader,
    film_strip,
    gutter_legend,
    number_strip,
    place_picture,
    reward_strip,
    spread,
    thumbnails,
    write_heading,
)

MOST_LETTERS = 60  # of an action in a heading
SHOWN = 6  # observations of a layer that get a thumbnail
NOTABLE = 0.05  # attention weight from which a memory is worth a thumbnail


def choose(lives: LayerLives, looks: Sequence[bytes], most: int = SHOWN) -> list[int]:
    """Steps of the observations that get a thumbnail, in order: at most `most`, no two of which look the same.

    Taken in turn from three rankings: attention at the decision (the last step), attention at any later step, and
    length of life. Attention below NOTABLE does not count, nor does a life of less than half the longest. Of those
    that look the same the one that comes first stands for all. looks: T byte strings, equal where the pictures are.
    """
    decision, duration = lives.decision.max(0), lives.end - np.arange(len(looks))
    decision[-1] = duration[-1] = 0  # what the last step sees is no memory yet
    scores = ((decision, NOTABLE), (lives.peak, NOTABLE), (duration, max(2, duration.max() / 2)))
    ranked = [[int(i) for i in np.argsort(-score, kind="stable") if score[i] >= least] for score, least in scores]
    chosen: dict[bytes, int] = {}
    while len(chosen) < most and any(ranked):
        for ranking in ranked:
            ranking[:] = [step for step in ranking if looks[step] not in chosen]
            if ranking and len(chosen) < most:
                chosen[looks[ranking[0]]] = ranking[0]
    return sorted(chosen.values())


ATTENTION = LinearSegmentedColormap.from_list("attention", ["#ccd6e2", "#f2cf7e", "#ee8a33", "#b3121d"])
STYLE: dict[Any, Any] = {
    "font.size": 8, "axes.spines.top": False, "axes.spines.right": False, "text.parse_math": False,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": FAINT, "xtick.color": INK, "ytick.color": INK,
}  # fmt: skip


def draw(
    policy: ActorCritic,
    episode: Episode,
    lives: Sequence[LayerLives],
    title: str,
    how: str,
    names: Sequence[str],
    form: str = "png",
    brief: bool = False,
) -> bytes:
    """The picture as a png, pdf or svg. title, how: what was played and how; names: `action_names`; brief: without the
    film and the last decision, and smaller."""
    config, steps = policy.config, len(episode.actions)
    images = thumbnails(episode.observations, config.observation)
    film = None if brief else images
    shown = [name for name, entry in config.observation.items() if is_panel(entry)] or list(config.observation)
    looks = [b"".join(o[name].tobytes() for name in shown) for o in episode.observations]
    last = f"step {steps - 1}: {action_text(policy, episode.actions[-1], names)[:MOST_LETTERS]}"
    rows = [] if film is None else [(0.6, 0.4, partial(film_strip, film))]
    above = 0.4 if film is None else 0.1
    if episode.actions.ndim == 1:
        rows += [(0.25, above, partial(action_strip, episode.actions, names))]
    else:
        numbers = policy.actions.to_env(torch.as_tensor(episode.actions)).reshape(steps, -1)
        tall = 0.25 + 0.09 * min(len(numbers[0]) - 1, MOST_ROWS)
        rows += [(tall, above, partial(number_strip, numbers, policy.actions.continuous))]
    rows += [(0.45, 0.12, partial(reward_strip, episode.rewards))]
    for i, layer in enumerate(lives):
        of = f"Layer {i + 1} of {len(lives)}"
        rows += [
            (3.3, 0.75, partial(_lives, layer, looks, images, f"{of}: which observations it keeps, and for how long"))
        ]
        rows += [(0.7, 0.15, partial(_live, layer.live))]
    for i, layer in enumerate([] if brief else lives):
        of = f"Layer {i + 1} of {len(lives)}: attention at the last decision ({last})"
        rows += [
            (1.0, 1.25 if images is None else 1.85, partial(_decision, layer.decision, layer.end == steps, images, of))
        ]
    if not lives:
        rows += [(0.8, 0.5, partial(_nothing, config.memory, int(episode.memories[0].bytes()[0])))]
    height = 1.0 + sum(row[0] + row[1] for row in rows) + 0.55
    with matplotlib.rc_context(STYLE):
        figure = Figure((LEFT + WIDE + GUTTER, height), dpi=72 if brief else 120, facecolor="white")
        colour = GOOD if ": success" in title else BAD if ": failure" in title else INK
        at = LEFT / (LEFT + WIDE + GUTTER)
        figure.text(at, 1 - 0.35 / height, title, fontsize=15, weight="bold", color=colour, va="center")
        shape = f"memory kind {config.memory}, {config.core.num_layers} layer{'s' * (config.core.num_layers != 1)}"
        shape += f" of {len(lives[0].decision)} heads" if lives else ""
        figure.text(at, 1 - 0.63 / height, " · ".join([*_told(episode), how]), fontsize=9.5, va="center")
        figure.text(at, 1 - 0.85 / height, f"policy: {shape}", fontsize=9.5, va="center")
        top = height - 1.0
        for tall, gap, paint in rows:
            top -= gap + tall
            ax = figure.add_axes((at, top / height, WIDE / (LEFT + WIDE + GUTTER), tall / height))
            ax.set_xlim(-0.5, steps - 0.5)
            ax.locator_params(axis="x", integer=True, min_n_ticks=1)
            paint(ax)
        return saved(figure, form)


def saved(figure: Figure, form: str) -> bytes:
    """The figure as a file; the same figure gives the same bytes. Text in an svg or pdf stays text."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "memory", "pdf.fonttype": 42}):
        dated = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}
        figure.savefig(buffer, format=form, metadata=dated.get(form))
    return buffer.getvalue()


def _told(episode: Episode) -> list[str]:
    """What can be told of the last step's info in a few words, and the texts that were read at the first step."""
    info = {key: plain(value) for key, value in episode.info.items() if key != "is_success"}
    known = [(key, value) for key, value in info.items() if value is not None]
    told = [f"{str(key)[:24].replace('_', ' ')} {str(value)[:24]}" for key, value in known[:6]]
    texts = episode.texts[0].values() if episode.texts else ()
    return [*told, *(f'"{" ".join(text.split())[:60]}"' for text in list(texts)[:2])]


def _lives(
    lives: LayerLives, looks: Sequence[bytes], images: Sequence[np.ndarray] | None, heading: str, ax: Axes
) -> None:
    """A line per observation, from the step it was written to the first that no longer sees it; the notable ones named
    in the gutter."""
    steps = len(looks)
    order = np.argsort(lives.peak, kind="stable")  # what mattered is drawn last, on top
    start = np.arange(steps) - 0.5
    lines = np.stack([np.stack([start, start + 0.5], 1), np.stack([lives.end - 0.5, start + 0.5], 1)], 1)  # [T,2,2]
    width = float(np.clip(0.7 * 72 * 3.3 / steps, 0.8, 12))
    bars = LineCollection(
        list(lines[order]), array=lives.peak[order], cmap=ATTENTION, linewidths=width, capstyle="butt"
    )
    bars.set_clim(0, 1)
    ax.add_collection(bars)
    ax.set_ylim(steps - 0.5, -0.5 - 0.01 * steps)
    ax.locator_params(axis="y", integer=True, min_n_ticks=1)
    ax.set_ylabel("step at which the\nobservation was written")
    ax.tick_params(labelbottom=False)
    write_heading(ax, heading)
    told = (
        "One line per observation: it begins when the observation\nis written and ends when it has expired. "
        "Colour: largest\nattention weight that a later step gave it"
    )
    ax.text(0.02, 0.21, told, transform=ax.transAxes, va="bottom")
    bar = ax.inset_axes((0.022, 0.15, 0.2, 0.035))
    ax.figure.colorbar(bars, cax=bar, orientation="horizontal", ticks=[0, 0.5, 1]).outline.set_visible(False)
    chosen = choose(lives, looks)
    thick = [step for step in order if step in chosen]  # in a long episode a line is a hair
    colours = bars.to_rgba(lives.peak[thick])
    ax.add_collection(LineCollection(list(lines[thick]), colors=colours, linewidths=max(width, 3), capstyle="butt"))
    places = spread([1 - (step + 0.5) / steps for step in chosen[::-1]], 1 / SHOWN, 0.06, 0.94)[::-1]
    for step, place in zip(chosen, places):
        draw_leader(ax, (lives.end[step] - 0.5, step), (1.02, place))
        if images is not None:
            place_picture(ax, images[step], (1.05, place))
        alike = looks.count(looks[step])
        same = f" (1 of {alike} alike)" if alike > 1 else ""
        kept = "live to the end" if lives.end[step] == steps else f"kept for {lives.end[step] - step} steps"
        span = ""
        if lives.span is not None:
            span = f", span {lives.span[step]:.0f}" if np.isfinite(lives.span[step]) else ", kept for good"
        told = f"step {step}{same}\n{kept}{span}\nlargest attention {lives.peak[step]:.2f}"
        x = 1.085 if images is not None else 1.025
        ax.text(x, place, told, transform=ax.transAxes, va="center", fontsize=7.5, linespacing=1.15)
    if not chosen:
        ax.text(1.02, 0.5, "no observation outlived its step", transform=ax.transAxes, va="center")


def _live(live: np.ndarray, ax: Axes) -> None:
    """live [T]: how many memories each step saw."""
    ax.stairs(live, np.arange(len(live) + 1) - 0.5, fill=True, color="#7fb2e5")
    ax.set_ylim(0, 1.15 * live.max())
    ax.locator_params(axis="y", integer=True, nbins=3)
    ax.set_ylabel("live\nmemories", rotation=0, ha="right", va="center")
    ax.set_xlabel("step of the episode")
    told = f"live memories: {live.mean():.1f} on average,\n{live.max()} at most, of {len(live)} observations"
    ax.text(1.02, 0.5, told, transform=ax.transAxes, va="center")


def _decision(
    weights: np.ndarray, seen: np.ndarray, images: Sequence[np.ndarray] | None, heading: str, ax: Axes
) -> None:
    """weights [H,T] of the last step, whose query saw `seen` [T]: a bar per head and live memory, the largest named."""
    slots = np.flatnonzero(seen)
    weights, heads = weights[:, slots], len(weights)
    middle = np.arange(len(slots)) + 0.8 * ((np.arange(heads)[:, None] + 0.5) / heads - 0.5)  # [H, slots]
    for head in range(heads):
        style = {"colors": HEAD_COLOURS[head % len(HEAD_COLOURS)], "label": f"head {head + 1}"}
        ax.vlines(middle[head], 0, weights[head], linewidth=max(0.4, 0.8 / heads * 72 * WIDE / len(slots)), **style)
    best = weights.max(0)
    ax.set_xlim(-0.5, len(slots) - 0.5)
    stride = -(-len(slots) // 14)
    ticks = [0, *(tick for tick in range(len(slots) - 1, 0, -stride) if tick > 0.6 * stride)]
    ax.set_xticks(ticks, slots[ticks])
    ax.set_ylim(0, max(0.25, 1.02 * best.max()))
    ax.set_ylabel("attention\nweight")
    ax.set_xlabel("memories still live, by the step at which they were written")
    legend = gutter_legend(ax, ncols=1 + (heads > 4))
    setp(cast(Any, legend.legend_handles), linewidth=6)
    top = sorted(int(slot) for slot in np.argsort(-best)[:SHOWN] if best[slot] >= NOTABLE)
    for slot, place in zip(top, spread([(slot + 0.5) / len(slots) for slot in top], 0.13, 0.03, 0.97)):
        head = int(weights[:, slot].argmax())
        draw_leader(ax, (middle[head, slot], best[slot]), (place, 1.12))
        if images is not None:
            place_picture(ax, images[slots[slot]], (place, 1.37))
        now = " (now)" if slot == len(slots) - 1 else ""
        told = f"step {slots[slot]}{now}\n{best[slot]:.2f} by head {head + 1}"
        above = (place, 1.67 if images is not None else 1.12)
        ax.annotate(told, above, xycoords="axes fraction", ha="center", va="bottom", fontsize=7.5)
    if not top:
        told = f"no memory got a weight of {NOTABLE} or more"
        ax.text(0.5, 1.1, told, transform=ax.transAxes, ha="center", color=FAINT)
    write_heading(ax, heading, 76 if images is not None else 40)


def _nothing(memory: str, size: int, ax: Axes) -> None:
    """Instead of the layers: why there are none. size: bytes of a memory without slots."""
    ax.set_axis_off()
    told = f"This policy has no memory (kind {memory!r}): it chose every action from the current observation alone."
    if size:
        told = f"What this policy remembers (kind {memory!r}) is a state of {size:,} bytes: no observation can be told apart."
    ax.text(0.5, 0.5, told, transform=ax.transAxes, ha="center", va="center", fontsize=11)
