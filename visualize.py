"""Shows what a policy remembers: a saved policy plays one episode, and one picture tells what it saw, did and kept.

Names: T steps of the episode, t of them at once, L layers, H heads, C slots of a layer. An observation is named by the
step at which it was written; *live* means visible to the query of that step, itself included.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import gymnasium as gym
import matplotlib
import numpy as np
import torch
import tyro
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from matplotlib.patches import Patch
from torch import Tensor

import cli
from envs import make_env, render_observation
from policies import ActorCritic, Memory, as_tensors, load_policy, observation_spec, sample
from policies.io import write_atomically

CHUNK = 256  # steps inspected at once; what is shown does not depend on it
SHOWN = 6  # observations of a layer that get a thumbnail
NOTABLE = 0.05  # attention weight from which a memory is worth a thumbnail


@dataclass(frozen=True)
class Flags:
    path: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PATH")]
    """Policy file or run directory."""
    env: str = ""
    """Environment id. Default: the one the policy was trained in."""
    env_kwargs: str = "{}"
    """Keyword arguments of the environment, a JSON object; in the policy's own environment they add to its own."""
    seed: int = 0
    """Seed of the episode."""
    stochastic: bool = False
    """Draw actions from the policy instead of taking the most likely ones."""
    max_steps: int = 10_000
    """Stop the episode after so many steps if it has not ended by itself."""
    out: str = "memory.png"
    """Where the picture is written, a .png."""

    def check(self) -> None:
        """Raises UsageError for a value out of range. (tyro would wrap what `__post_init__` raises.)"""
        if not 0 <= self.seed < 2**63:
            raise cli.UsageError(f"--seed: expected 0 to 2^63 - 1, got {self.seed}")
        if self.max_steps < 1:
            raise cli.UsageError(f"--max-steps: expected at least 1, got {self.max_steps}")
        if Path(self.out).suffix.lower() != ".png":
            raise cli.UsageError(f"--out: expected a file name that ends in .png, got {self.out!r}")
        if not Path(self.out).parent.is_dir():
            raise cli.UsageError(f"--out: expected a folder that exists, there is no {str(Path(self.out).parent)!r}")


@dataclass(frozen=True)
class Episode:
    """One episode as it was played."""

    observations: list[dict[str, np.ndarray]]  # T, without batch axis
    actions: np.ndarray  # int64 [T], counted from 0
    rewards: np.ndarray  # float64 [T]
    memories: dict[int, Memory]  # by step: what was remembered before it; pieces to inspect begin at these steps
    ended: str  # "terminated", "truncated" or "stopped" (by --max-steps)
    info: dict[str, Any]  # what the environment said at the last step


@dataclass
class LayerLives:
    """What one layer did with the T observations of an episode."""

    end: np.ndarray  # int64 [T] first step whose query no longer sees the observation; T: live to the last
    peak: np.ndarray  # float64 [T] largest attention weight, of any head, that a later step gave it (see `look`)
    decision: np.ndarray  # float64 [H,T] attention weights of the last step
    live: np.ndarray  # int64 [T] memories that were live at each step
    span: np.ndarray | None  # float64 [T] the span it was written with, in steps; None for kinds without


def main() -> None:
    flags = cli.parse(Flags, sys.argv[1:], "Plays one episode with a saved policy and draws what it remembers.")
    flags.check()
    torch.set_num_threads(1)  # the fastest for a batch of one
    policy, info = load_policy(flags.path)
    env_id, env = _environment(flags, policy, info)
    episode = play(policy, env, flags.seed, flags.max_steps, not flags.stochastic)
    env.close()
    how = f"seed {flags.seed}, {'actions drawn from the policy' if flags.stochastic else 'the most likely actions'}"
    title = f"{env_id}: {outcome(episode)}"
    write_atomically(flags.out, draw(policy, episode, look(policy, episode), title, how, action_names(env)))
    print(f"{title} -> {flags.out}")


def _environment(flags: Flags, policy: ActorCritic, info: Mapping[str, Any]) -> tuple[str, gym.Env]:
    """The environment to play in. Raises ValueError, one line, if it is not one that the policy can act in."""
    own, known = info.get("env"), info.get("env_kwargs")
    env_id = flags.env or own
    if not isinstance(env_id, str):
        raise cli.UsageError(f"--env: expected an environment id, since {flags.path} names none")
    kwargs = dict(known) if env_id == own and isinstance(known, dict) else {}
    env = make_env(env_id, **{**kwargs, **cli.json_object("--env-kwargs", flags.env_kwargs)})
    given = {**observation_spec(env.observation_space), "actions": int(env.action_space.n)}
    wanted = {**policy.config.observation, "actions": policy.config.num_actions}
    for key in ("actions", *sorted(given.keys() | wanted.keys())):
        if given.get(key) != wanted.get(key):
            what = key if key == "actions" else f"observation {key!r}"
            raise cli.UsageError(f"{env_id}: {what}: the policy expects {wanted.get(key)}, got {given.get(key)}")
    return env_id, env


def play(
    policy: ActorCritic, env: gym.Env, seed: int, max_steps: int, deterministic: bool, chunk: int = CHUNK
) -> Episode:
    """Plays the episode of `seed`, or its first `max_steps` steps."""
    generator = torch.Generator().manual_seed(seed)
    observations, actions, rewards, memories = [], [], [], {0: policy.initial_memory(1)}
    observation, info = env.reset(seed=seed)
    acting, ended = policy.begin(memories[0], chunk), "stopped"
    while ended == "stopped" and len(actions) < max_steps:
        if acting.full:
            memories[len(actions)] = acting.memory()
            acting = policy.begin(memories[len(actions)], chunk)
        observations.append({key: np.array(observation[key]) for key in policy.config.observation})
        tensors = {key: value[0] for key, value in _tensors(policy, observations[-1:]).items()}
        logits, _ = policy.step(tensors, acting, torch.tensor([not actions]))
        actions.append(int(logits.argmax(-1) if deterministic else sample(logits, generator)))
        observation, reward, terminated, truncated, info = env.step(actions[-1] + int(env.action_space.start))
        rewards.append(float(reward))
        ended = "terminated" if terminated else "truncated" if truncated else "stopped"
    return Episode(observations, np.array(actions), np.array(rewards), memories, ended, dict(info))


def _tensors(policy: ActorCritic, observations: Sequence[Mapping[str, np.ndarray]]) -> dict[str, Tensor]:
    """Observations of t steps as tensors [t,1,...]."""
    stacked = {key: np.stack([o[key] for o in observations])[:, None] for key in policy.config.observation}
    return as_tensors(stacked, policy.device)


def outcome(episode: Episode) -> str:
    """What happened, in a few words."""
    steps = len(episode.actions)
    told = f"return {episode.rewards.sum():.4g} in {steps} step{'s' * (steps != 1)}"
    if "is_success" in episode.info and episode.ended != "stopped":
        told = f"{'success' if episode.info['is_success'] else 'failure'}, {told}"
    return told + {"truncated": ", time limit reached", "stopped": ", stopped by --max-steps"}.get(episode.ended, "")


def action_names(env: gym.Env) -> list[str]:
    """A name per action: the environment's (`metadata["action_names"]`, or MiniGrid's enum), else "action 0", ..."""
    count, enum = int(env.action_space.n), getattr(env.unwrapped, "actions", None)
    names = env.unwrapped.metadata.get("action_names") or [a.name for a in enum or () if hasattr(a, "name")]
    return [str(name) for name in names] if len(names) == count else [f"action {i}" for i in range(count)]


def ends(visible: np.ndarray) -> np.ndarray:
    """visible bool [t,C] -> int64 [C]: the first query after the last that sees the slot; 0 if none sees it."""
    return np.where(visible.any(0), len(visible) - visible[::-1].argmax(0), 0)


def look(policy: ActorCritic, episode: Episode) -> list[LayerLives]:
    """The lives of the episode's observations, per layer; [] for a kind without memories to look at.

    Where a memory stands for several observations (Compressive-Transformer), each of them lives in it and gets an equal
    share of its attention.
    """
    lives: list[LayerLives] = []
    steps = len(episode.actions)
    for first, past in pairwise([*episode.memories, steps]):
        part = _tensors(policy, episode.observations[first:past])
        fresh = torch.arange(first, past)[:, None] == 0  # [t,1]
        for i, layer in enumerate(policy.inspect(part, episode.memories[first], fresh)[2]):
            if first == 0:
                span = None if layer.described is None else np.zeros(steps)
                heads = np.zeros((layer.attention.shape[1], steps))
                empty = np.zeros(steps, int), np.zeros(steps), heads, np.zeros(steps, int), span
                lives.append(LayerLives(*empty))
            held = torch.isfinite(layer.coordinate[0])  # the others are padding
            lives[i].live[first:past] = layer.visible[0][:, held].sum(1).numpy()
            # A slot that stands for several steps becomes as many columns, each with its share of the attention.
            covers = layer.covers[0, held].numpy()
            column = np.repeat(np.arange(len(covers)), covers)  # [C]
            written = layer.coordinate[0, held].round().long().numpy()[column] + first
            written -= np.concatenate([np.arange(n)[::-1] for n in covers])
            visible = layer.visible[0][:, held].numpy()[:, column]
            attention = layer.attention[0][:, :, held].numpy()[:, :, column] / covers[column]  # [H,t,C]
            seen = ends(visible)
            np.maximum.at(lives[i].end, written, np.where(seen > 0, first + seen, 0))
            later = attention.max(0) * (np.arange(first, past)[:, None] > written)  # [t,C]
            np.maximum.at(lives[i].peak, written, later.max(0))
            lives[i].decision[:] = 0
            np.add.at(lives[i].decision, (slice(None), written), attention[:, -1])
            if lives[i].span is not None:
                lives[i].span[written] = layer.described[0, held].numpy()[column]
    return lives


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


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> np.ndarray:
    """Places in low..high near the ascending `wanted`, `gap` apart or more (they must fit)."""
    places = np.clip(np.array(wanted, float), low, high)
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + gap)
    for i in reversed(range(len(places))):
        places[i] = min(places[i], high if i == len(places) - 1 else places[i + 1] - gap)
    return places


# The picture. Inches: the axes are WIDE, to their left labels, to their right a gutter for legends and thumbnails.

LEFT, WIDE, GUTTER, THUMB = 0.95, 9.6, 2.8, 0.5
GOOD, BAD, INK, FAINT = "#1a7f37", "#b42318", "#24292f", "#8c959f"
ACTION_COLOURS = matplotlib.colormaps["tab20"].colors[::2] + matplotlib.colormaps["tab20"].colors[1::2]
HEAD_COLOURS = matplotlib.colormaps["Dark2"].colors
ATTENTION = LinearSegmentedColormap.from_list("attention", ["#ccd6e2", "#f2cf7e", "#ee8a33", "#b3121d"])
STYLE = {
    "font.size": 8, "axes.spines.top": False, "axes.spines.right": False, "text.parse_math": False,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": FAINT, "xtick.color": INK, "ytick.color": INK,
}  # fmt: skip


def draw(
    policy: ActorCritic, episode: Episode, lives: Sequence[LayerLives], title: str, how: str, names: Sequence[str]
) -> bytes:
    """The picture as a PNG. title, how: what was played and how; names: one per action."""
    config, steps = policy.config, len(episode.actions)
    has_image = config.observation.get("image", {}).get("kind") == "cells"
    images = [o["image"] for o in episode.observations] if has_image else None
    looks = [b"".join(o[key].tobytes() for key in (["image"] if has_image else o)) for o in episode.observations]
    last = f"step {steps - 1}: {names[episode.actions[-1]]}"
    rows = [(0.6, 0.4, partial(_film, images))] if has_image else []
    rows += [(0.25, 0.1 if has_image else 0.4, partial(_actions, episode.actions, names))]
    rows += [(0.45, 0.12, partial(_rewards, episode.rewards))]
    for i, layer in enumerate(lives):
        of = f"Layer {i + 1} of {len(lives)}"
        rows += [
            (3.3, 0.75, partial(_lives, layer, looks, images, f"{of}: which observations it keeps, and for how long"))
        ]
        rows += [(0.7, 0.15, partial(_live, layer.live))]
    for i, layer in enumerate(lives):
        of = f"Layer {i + 1} of {len(lives)}: attention at the last decision ({last})"
        rows += [(1.0, 1.85 if has_image else 1.25, partial(_decision, layer.decision, layer.end == steps, images, of))]
    if not lives:
        rows += [(0.8, 0.5, partial(_nothing, config.memory, int(episode.memories[0].bytes()[0])))]
    height = 1.0 + sum(row[0] + row[1] for row in rows) + 0.55
    with matplotlib.rc_context(STYLE):
        figure = Figure((LEFT + WIDE + GUTTER, height), dpi=120, facecolor="white")
        colour = GOOD if ": success" in title else BAD if ": failure" in title else INK
        at = LEFT / (LEFT + WIDE + GUTTER)
        figure.text(at, 1 - 0.35 / height, title, fontsize=15, weight="bold", color=colour, va="center")
        shape = f"memory kind {config.memory}, {config.core.num_layers} layer{'s' * (config.core.num_layers != 1)}"
        shape += f" of {len(lives[0].decision)} heads" if lives else ""
        figure.text(at, 1 - 0.63 / height, " · ".join([*_told(episode.info), how]), fontsize=9.5, va="center")
        figure.text(at, 1 - 0.85 / height, f"policy: {shape}", fontsize=9.5, va="center")
        top = height - 1.0
        for tall, gap, paint in rows:
            top -= gap + tall
            ax = figure.add_axes((at, top / height, WIDE / (LEFT + WIDE + GUTTER), tall / height))
            ax.set_xlim(-0.5, steps - 0.5)
            ax.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
            paint(ax)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _told(info: Mapping[str, Any]) -> list[str]:
    """What of the last step's info can be told in a few words."""
    told = {key: value for key, value in info.items() if key != "is_success" and np.ndim(value) == 0}
    plain = {key: value for key, value in told.items() if isinstance(value, (str, int, float, np.generic))}
    return [f"{str(key)[:24].replace('_', ' ')} {str(value)[:24]}" for key, value in list(plain.items())[:6]]


def _heading(ax: Axes, text: str, points: float = 5) -> None:
    ax.annotate(text, (0, 1), (0, points), "axes fraction", "offset points", weight="bold", fontsize=10)


def _picture(ax: Axes, image: np.ndarray, box: tuple[float, float]) -> None:
    """An observation, THUMB inches wide, centred at `box` in fractions of the axes."""
    picture = render_observation(image, max(4, round(144 * THUMB / len(image))))
    offset = OffsetImage(picture, zoom=72 * THUMB / picture.shape[1], interpolation="antialiased")
    style = {"pad": 0.08, "bboxprops": {"edgecolor": FAINT, "linewidth": 0.6}, "annotation_clip": False}
    ax.add_artist(AnnotationBbox(offset, box, xycoords="axes fraction", **style))


def _leader(ax: Axes, xy: tuple[float, float], box: tuple[float, float]) -> None:
    """A thin line from the data point `xy` to `box` in fractions of the axes."""
    arrow = {"arrowstyle": "-", "color": INK, "linewidth": 0.5, "alpha": 0.6, "shrinkA": 0, "shrinkB": 0}
    ax.annotate("", xy, box, "data", "axes fraction", arrow, annotation_clip=False)


def _legend(ax: Axes, **options: Any) -> Legend:
    """A legend in the gutter."""
    place = {"loc": "center left", "bbox_to_anchor": (1.015, 0.5), "borderaxespad": 0, "frameon": False}
    return ax.legend(**place, alignment="left", **options)


def _film(images: Sequence[np.ndarray], ax: Axes) -> None:
    """What the agent saw: every step of a short episode, some of a long one."""
    count = min(len(images), int(WIDE / (THUMB + 0.14)))
    steps = np.linspace(0, len(images) - 1, count).round().astype(int)
    half = THUMB / 2 / WIDE
    for step, place in zip(steps, spread((steps + 0.5) / len(images), 2.4 * half, half, 1 - half)):
        _picture(ax, images[step], (place, 0.5))
    ax.set_axis_off()
    some = "" if count == len(images) else f" ({count} of {len(images)} steps)"
    _heading(ax, f"What the agent saw{some}, what it did, and its reward")


def _actions(actions: np.ndarray, names: Sequence[str], ax: Axes) -> None:
    """actions [T] as a coloured strip; its legend has the actions that were taken."""
    colours = np.array([ACTION_COLOURS[a % len(ACTION_COLOURS)] for a in range(len(names))])
    ax.imshow(colours[actions][None], aspect="auto", extent=(-0.5, len(actions) - 0.5, 0, 1), interpolation="nearest")
    taken = np.bincount(actions, minlength=len(names))
    most = [a for a in np.argsort(-taken, kind="stable") if taken[a]][:10]
    handles = [Patch(color=colours[a], label=f"{names[a][:14]} × {taken[a]}") for a in sorted(most)]
    _legend(ax, handles=handles, ncols=1 + (len(handles) > 5), title="action × times")
    ax.set_yticks([0.5], ["action"])
    ax.tick_params(length=0, labelbottom=False)
    ax.spines[:].set_visible(False)


def _rewards(rewards: np.ndarray, ax: Axes) -> None:
    """rewards [T]; where there are few, each with its value."""
    steps = np.flatnonzero(rewards)
    colours = [GOOD if reward > 0 else BAD for reward in rewards[steps]]
    ax.vlines(steps, 0, rewards[steps], colors=colours, linewidth=2)
    ax.axhline(0, color=FAINT, linewidth=0.8)
    if len(steps) <= 8:
        ax.scatter(steps, rewards[steps], s=18, c=colours, clip_on=False)
        for step in steps:
            at = (step, rewards[step])
            ax.annotate(f"{rewards[step]:+.3g}", at, (-6, 0), "data", "offset points", ha="right", va="center")
    if not len(steps):
        ax.text(0.5, 0.6, "no reward at any step", transform=ax.transAxes, ha="center", color=FAINT)
        ax.set_yticks([0])
    ax.set_ylabel("reward", rotation=0, ha="right", va="center")
    ax.set_xlabel("step of the episode")
    ax.margins(y=0.15)


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
    bars = LineCollection(lines[order], array=lives.peak[order], cmap=ATTENTION, linewidths=width, capstyle="butt")
    bars.set_clim(0, 1)
    ax.add_collection(bars)
    ax.set_ylim(steps - 0.5, -0.5 - 0.01 * steps)
    ax.yaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    ax.set_ylabel("step at which the\nobservation was written")
    ax.tick_params(labelbottom=False)
    _heading(ax, heading)
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
    ax.add_collection(LineCollection(lines[thick], colors=colours, linewidths=max(width, 3), capstyle="butt"))
    places = spread([1 - (step + 0.5) / steps for step in chosen[::-1]], 1 / SHOWN, 0.06, 0.94)[::-1]
    for step, place in zip(chosen, places):
        _leader(ax, (lives.end[step] - 0.5, step), (1.02, place))
        if images is not None:
            _picture(ax, images[step], (1.05, place))
        alike = looks.count(looks[step])
        same = f" (1 of {alike} alike)" if alike > 1 else ""
        kept = "live to the end" if lives.end[step] == steps else f"kept for {lives.end[step] - step} steps"
        span = "" if lives.span is None else f", span {lives.span[step]:.0f}"
        told = f"step {step}{same}\n{kept}{span}\nlargest attention {lives.peak[step]:.2f}"
        x = 1.085 if images is not None else 1.025
        ax.text(x, place, told, transform=ax.transAxes, va="center", fontsize=7.5, linespacing=1.15)
    if not chosen:
        ax.text(1.02, 0.5, "no observation outlived its step", transform=ax.transAxes, va="center")


def _live(live: np.ndarray, ax: Axes) -> None:
    """live [T]: how many memories each step saw."""
    ax.stairs(live, np.arange(len(live) + 1) - 0.5, fill=True, color="#7fb2e5")
    ax.set_ylim(0, 1.15 * live.max())
    ax.yaxis.get_major_locator().set_params(integer=True, nbins=3)
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
    legend = _legend(ax, ncols=1 + (heads > 4))
    for handle in legend.legend_handles:
        handle.set_linewidth(6)
    top = sorted(int(slot) for slot in np.argsort(-best)[:SHOWN] if best[slot] >= NOTABLE)
    for slot, place in zip(top, spread([(slot + 0.5) / len(slots) for slot in top], 0.13, 0.03, 0.97)):
        head = int(weights[:, slot].argmax())
        _leader(ax, (middle[head, slot], best[slot]), (place, 1.12))
        if images is not None:
            _picture(ax, images[slots[slot]], (place, 1.37))
        now = " (now)" if slot == len(slots) - 1 else ""
        told = f"step {slots[slot]}{now}\n{best[slot]:.2f} by head {head + 1}"
        above = (place, 1.67 if images is not None else 1.12)
        ax.annotate(told, above, xycoords="axes fraction", ha="center", va="bottom", fontsize=7.5)
    if not top:
        told = f"no memory got a weight of {NOTABLE} or more"
        ax.text(0.5, 1.1, told, transform=ax.transAxes, ha="center", color=FAINT)
    _heading(ax, heading, 76 if images is not None else 40)


def _nothing(memory: str, size: int, ax: Axes) -> None:
    """Instead of the layers: why there are none. size: bytes of a memory without slots."""
    ax.set_axis_off()
    told = f"This policy has no memory (kind {memory!r}): it chose every action from the current observation alone."
    if size:
        told = f"What this policy remembers (kind {memory!r}) is a state of {size:,} bytes: no observation can be told apart."
    ax.text(0.5, 0.5, told, transform=ax.transAxes, ha="center", va="center", fontsize=11)


if __name__ == "__main__":
    cli.run(main)
