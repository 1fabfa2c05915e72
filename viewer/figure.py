"""The figure: one picture of what a policy saw, did and kept in an episode.

Names: T steps of the episode, N numbers of an action, H heads. An observation is named by the step at which it was
written.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
from expire_span_rl.viewer.play import Episode, LayerLives, action_text, plain_value
from expire_span_rl.viewer.strips import (
    BAD,
    FAINT,
    GOOD,
    GUTTER,
    HEAD_COLOURS,
    INK,
    LEFT,
    MAX_ROWS,
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
    without_glyph_warnings,
    write_heading,
)

MAX_LETTERS = 60  # of an action in a heading
MAX_THUMBNAILS = 6  # observations of a layer that get a thumbnail
MIN_ATTENTION = 0.05  # attention weight from which a memory is worth a thumbnail
HEADER = 1.0  # inches above the strips, for the title
FOOTER = 0.55  # inches below them


def choose_thumbnails(lives: LayerLives, looks: Sequence[bytes], count: int = MAX_THUMBNAILS) -> list[int]:
    """Steps of the observations that get a thumbnail, in order: at most `count`, no two of which look the same.

    They are taken in turn from three rankings: attention at the decision (the last step), attention at any later step,
    and length of life. Attention below MIN_ATTENTION does not count, nor does a life of less than half the longest. Of
    those that look the same, the best of the ranking stands for all. looks: T byte strings, equal where the pictures
    are.
    """
    decision = lives.decision.max(0)
    duration = lives.end - np.arange(len(looks))
    decision[-1] = duration[-1] = 0  # the observation of the last step is no memory yet
    scores = ((decision, MIN_ATTENTION), (lives.peak, MIN_ATTENTION), (duration, max(2, duration.max() / 2)))
    rankings = [
        [int(i) for i in np.argsort(-score, kind="stable") if score[i] >= threshold] for score, threshold in scores
    ]
    steps: dict[bytes, int] = {}  # by look
    while len(steps) < count and any(rankings):
        for ranking in rankings:
            ranking[:] = [step for step in ranking if looks[step] not in steps]
            if ranking and len(steps) < count:
                steps[looks[ranking[0]]] = ranking[0]
    return sorted(steps.values())


ATTENTION = LinearSegmentedColormap.from_list("attention", ["#ccd6e2", "#f2cf7e", "#ee8a33", "#b3121d"])
STYLE: dict[Any, Any] = {
    "font.size": 8, "axes.spines.top": False, "axes.spines.right": False, "text.parse_math": False,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": FAINT, "xtick.color": INK, "ytick.color": INK,
}  # fmt: skip


@dataclass(frozen=True)
class _Strip:
    """One part of the figure, from top to bottom."""

    height: float  # inches
    gap: float  # inches above it
    paint: Callable[[Axes], None]


def draw(
    policy: ActorCritic,
    episode: Episode,
    lives: Sequence[LayerLives],
    *,
    title: str,
    how: str,
    names: Sequence[str],
    form: str = "png",
    brief: bool = False,
) -> bytes:
    """The picture as a png, pdf or svg.

    title: what was played. how: how it was played. names: `action_names`. brief: smaller, without the film and the last
    decision.
    """
    images = thumbnails(episode.observations, policy.config.observation)
    strips = _agent_strips(policy, episode, names, None if brief else images)
    strips += _layer_strips(policy, episode, lives, images)
    if not brief:
        strips += _decision_strips(policy, episode, lives, images, names)
    if not lives:
        strips += [_Strip(0.8, 0.5, partial(_no_slots, policy.config.memory, int(episode.memories[0].bytes()[0])))]
    width = LEFT + WIDE + GUTTER
    height = HEADER + sum(strip.height + strip.gap for strip in strips) + FOOTER
    with matplotlib.rc_context(STYLE):
        figure = Figure((width, height), dpi=72 if brief else 120, facecolor="white")
        subtitle = " · ".join([*_summary_texts(episode), how])
        _write_header(figure, policy, title, subtitle, lives[0] if lives else None)
        top = height - HEADER
        for strip in strips:
            top -= strip.gap + strip.height
            ax = figure.add_axes((LEFT / width, top / height, WIDE / width, strip.height / height))
            ax.set_xlim(-0.5, len(episode.actions) - 0.5)
            ax.locator_params(axis="x", integer=True, min_n_ticks=1)
            strip.paint(ax)
        return figure_bytes(figure, form)


def _agent_strips(
    policy: ActorCritic, episode: Episode, names: Sequence[str], images: Sequence[np.ndarray] | None
) -> list[_Strip]:
    """What the agent saw, if there are images of it, did, and got."""
    steps = len(episode.actions)
    strips = [] if images is None else [_Strip(0.6, 0.4, partial(film_strip, images))]
    gap = 0.4 if images is None else 0.1
    if episode.actions.ndim == 1:
        strips.append(_Strip(0.25, gap, partial(action_strip, episode.actions, names)))
    else:
        numbers = policy.actions.to_env(torch.as_tensor(episode.actions)).reshape(steps, -1)
        height = 0.25 + 0.09 * min(len(numbers[0]) - 1, MAX_ROWS)
        strips.append(_Strip(height, gap, partial(number_strip, numbers, policy.actions.continuous)))
    strips.append(_Strip(0.45, 0.12, partial(reward_strip, episode.rewards)))
    return strips


def _layer_strips(
    policy: ActorCritic, episode: Episode, lives: Sequence[LayerLives], images: Sequence[np.ndarray] | None
) -> list[_Strip]:
    """The lives of the memories of each layer, and how many were live."""
    spec = policy.config.observation
    pictures = [name for name, entry in spec.items() if is_panel(entry)] or list(spec)
    looks = [b"".join(observation[name].tobytes() for name in pictures) for observation in episode.observations]
    strips = []
    for i, layer in enumerate(lives):
        heading = f"Layer {i + 1} of {len(lives)}: which observations it keeps, and for how long"
        strips.append(_Strip(3.3, 0.75, partial(_paint_lives, layer, looks, images, heading)))
        strips.append(_Strip(0.7, 0.15, partial(_paint_live_counts, layer.live)))
    return strips


def _decision_strips(
    policy: ActorCritic,
    episode: Episode,
    lives: Sequence[LayerLives],
    images: Sequence[np.ndarray] | None,
    names: Sequence[str],
) -> list[_Strip]:
    """The attention of each layer at the last step."""
    steps = len(episode.actions)
    action = action_text(policy, episode.actions[-1], names)[:MAX_LETTERS]
    gap = 1.25 if images is None else 1.85
    strips = []
    for i, layer in enumerate(lives):
        heading = f"Layer {i + 1} of {len(lives)}: attention at the last decision (step {steps - 1}: {action})"
        paint = partial(_paint_decision, layer.decision, layer.end == steps, images, heading)
        strips.append(_Strip(1.0, gap, paint))
    return strips


def _write_header(figure: Figure, policy: ActorCritic, title: str, subtitle: str, layer: LayerLives | None) -> None:
    """The three lines above the strips. layer: one of the memory's, None for a memory without slots."""
    config = policy.config
    width, height = figure.get_size_inches()
    left = LEFT / width
    colour = GOOD if ": success," in title else BAD if ": failure," in title else INK
    layers = config.core.num_layers
    shape = f"memory kind {config.memory}, {layers} layer{'s' * (layers != 1)}"
    if layer is not None:
        shape += f" of {len(layer.decision)} heads"
    figure.text(left, 1 - 0.35 / height, title, fontsize=15, weight="bold", color=colour, va="center")
    figure.text(left, 1 - 0.63 / height, subtitle, fontsize=9.5, va="center")
    figure.text(left, 1 - 0.85 / height, f"policy: {shape}", fontsize=9.5, va="center")


def figure_bytes(figure: Figure, form: str) -> bytes:
    """The figure as a file. The same figure gives the same bytes. Text in an svg or pdf stays text."""
    buffer = io.BytesIO()
    metadata = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}
    with (
        matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "memory", "pdf.fonttype": 42}),
        without_glyph_warnings(),
    ):
        figure.savefig(buffer, format=form, metadata=metadata.get(form))
    return buffer.getvalue()


def _summary_texts(episode: Episode) -> list[str]:
    """Short texts of the last step's info, and the texts that were read at the first step."""
    info = {key: plain_value(value) for key, value in episode.info.items() if key != "is_success"}
    items = [(key, value) for key, value in info.items() if value is not None]
    facts = [f"{str(key)[:24].replace('_', ' ')} {str(value)[:24]}" for key, value in items[:6]]
    texts = episode.texts[0].values() if episode.texts else ()
    return [*facts, *(f'"{" ".join(text.split())[:60]}"' for text in list(texts)[:2])]


def _paint_lives(
    lives: LayerLives, looks: Sequence[bytes], images: Sequence[np.ndarray] | None, heading: str, ax: Axes
) -> None:
    """A line for each observation, from the step at which it was written to the first that no longer sees it. The most
    notable ones are named in the gutter."""
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
    explanation = (
        "One line per observation: it begins when the observation\nis written and ends when it has expired. "
        "Colour: largest\nattention weight that a later step gave it"
    )
    ax.text(0.02, 0.21, explanation, transform=ax.transAxes, va="bottom")
    bar = ax.inset_axes((0.022, 0.15, 0.2, 0.035))
    ax.figure.colorbar(bars, cax=bar, orientation="horizontal", ticks=[0, 0.5, 1]).outline.set_visible(False)
    chosen_steps = choose_thumbnails(lives, looks)
    thick = [step for step in order if step in chosen_steps]  # in a long episode a line is too thin to see
    colours = bars.to_rgba(lives.peak[thick])
    ax.add_collection(LineCollection(list(lines[thick]), colors=colours, linewidths=max(width, 3), capstyle="butt"))
    _name_lives(lives, looks, images, chosen_steps, ax)


def _name_lives(
    lives: LayerLives, looks: Sequence[bytes], images: Sequence[np.ndarray] | None, chosen_steps: list[int], ax: Axes
) -> None:
    """Thumbnails and texts of the chosen observations, in the gutter."""
    steps = len(looks)
    targets = [1 - (step + 0.5) / steps for step in chosen_steps[::-1]]
    places = spread(targets, 1 / MAX_THUMBNAILS, 0.06, 0.94)[::-1]
    for step, place in zip(chosen_steps, places, strict=True):
        draw_leader(ax, (lives.end[step] - 0.5, step), (1.02, place))
        if images is not None:
            place_picture(ax, images[step], (1.05, place))
        count = looks.count(looks[step])
        alike = f" (1 of {count} alike)" if count > 1 else ""
        duration = "live to the end" if lives.end[step] == steps else f"kept for {lives.end[step] - step} steps"
        span = ""
        if lives.span is not None:
            span = f", span {lives.span[step]:.0f}" if np.isfinite(lives.span[step]) else ", kept for good"
        label = f"step {step}{alike}\n{duration}{span}\nlargest attention {lives.peak[step]:.2f}"
        x = 1.085 if images is not None else 1.025
        ax.text(x, place, label, transform=ax.transAxes, va="center", fontsize=7.5, linespacing=1.15)
    if not chosen_steps:
        ax.text(1.02, 0.5, "no observation outlived its step", transform=ax.transAxes, va="center")


def _paint_live_counts(live: np.ndarray, ax: Axes) -> None:
    """live [T]: how many memories each step saw."""
    ax.stairs(live, np.arange(len(live) + 1) - 0.5, fill=True, color="#7fb2e5")
    ax.set_ylim(0, 1.15 * live.max())
    ax.locator_params(axis="y", integer=True, nbins=3)
    ax.set_ylabel("live\nmemories", rotation=0, ha="right", va="center")
    ax.set_xlabel("step of the episode")
    label = f"live memories: {live.mean():.1f} on average,\n{live.max()} at most, of {len(live)} observations"
    ax.text(1.02, 0.5, label, transform=ax.transAxes, va="center")


def _paint_decision(
    weights: np.ndarray, visible: np.ndarray, images: Sequence[np.ndarray] | None, heading: str, ax: Axes
) -> None:
    """A bar for each head and live memory, the largest ones named. weights: [H,T], of the last step; visible: bool [T],
    what its query saw."""
    slots = np.flatnonzero(visible)
    heads = len(weights)
    weights = weights[:, slots]
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
    top = sorted(int(slot) for slot in np.argsort(-best)[:MAX_THUMBNAILS] if best[slot] >= MIN_ATTENTION)
    places = spread([(slot + 0.5) / len(slots) for slot in top], 0.13, 0.03, 0.97)
    for slot, place in zip(top, places, strict=True):
        head = int(weights[:, slot].argmax())
        draw_leader(ax, (middle[head, slot], best[slot]), (place, 1.12))
        if images is not None:
            place_picture(ax, images[slots[slot]], (place, 1.37))
        now = " (now)" if slot == len(slots) - 1 else ""
        label = f"step {slots[slot]}{now}\n{best[slot]:.2f} by head {head + 1}"
        label_place = (place, 1.67 if images is not None else 1.12)
        ax.annotate(label, label_place, xycoords="axes fraction", ha="center", va="bottom", fontsize=7.5)
    if not top:
        label = f"no memory got a weight of {MIN_ATTENTION} or more"
        ax.text(0.5, 1.1, label, transform=ax.transAxes, ha="center", color=FAINT)
    write_heading(ax, heading, 76 if images is not None else 40)


def _no_slots(memory: str, state_bytes: int, ax: Axes) -> None:
    """Says why there are no layers. state_bytes: of a memory without slots."""
    ax.set_axis_off()
    text = f"This policy has no memory (kind {memory!r}): it chose every action from the current observation alone."
    if state_bytes:
        text = (
            f"What this policy remembers (kind {memory!r}) is a state of {state_bytes:,} bytes, "
            "in which observations cannot be told apart."
        )
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", fontsize=11)
