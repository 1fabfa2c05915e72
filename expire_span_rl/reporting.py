"""An evaluation as tables on the terminal and as a plot."""

from __future__ import annotations

import io
import itertools
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table

from expire_span_rl.checks import shown

ALWAYS = {
    "path", "memory", "agent", "parameters", "episodes", "success_rate", "success_rate_ci95", "episodes_with_success",
    "mean_return", "mean_episode_length", "live_memories_mean", "live_memories_max", "live_memories_per_episode",
    "live_memories_at_end", "held_at_end", "memory_bytes", "acting_steps_per_second", "buckets",
}  # fmt: skip
"""A policy's metrics that the tables show, or that the JSON file alone has. `memory_efficiency` is in every report,
too, None where there is no oracle."""


MAX_NAME = 60  # characters of a name in the plot


def console(file: TextIO | None = None) -> Console:
    """Prints tables, on stdout if `file` is None: as wide as the terminal, or 140 columns in a file or a pipe. Text of
    a file, or a file's name, is not markup."""
    width = None if (file or sys.stdout).isatty() else 140
    return Console(file=file, width=width, highlight=False, markup=False, emoji=False)


def print_tables(report: Mapping[str, Any], file: TextIO | None = None) -> None:
    """The comparison, on stdout if `file` is None."""
    out = console(file)
    out.print(_policy_table(report))
    out.print(_bucket_table(report))
    for policy in report["policies"]:
        for name, value in policy.items():  # what the environment counts besides (see `ratios` in envs/core.py)
            if name in ALWAYS or (name == "memory_efficiency" and value is None):
                continue
            parts = value.items() if isinstance(value, Mapping) else [("all", value)]
            counts = "  ".join(f"{label}: {part:.3f}" for label, part in parts if part is not None)
            text = f"{shown(policy['path'])}, {name.replace('_', ' ')}:  {counts or 'nothing counted'}"
            out.print(text, soft_wrap=True)


def _policy_table(report: Mapping[str, Any]) -> Table:
    """A row per policy."""
    kwargs = {name: value for name, value in report["env_kwargs"].items() if (name, value) != ("wraps", ["none"])}
    title = f"{report['env']} {json.dumps(kwargs)}" if kwargs else report["env"]
    episodes = report["policies"][0]["episodes"]
    table = Table(title=f"{shown(title)}, {episodes:,} episodes", title_justify="left")
    table.add_column("policy", overflow="fold")
    table.add_column("memory", overflow="fold")
    for name in (
        "success [95%]", "return", "steps", "live memories\nper layer", "largest", "bytes", "acting\nsteps/s",
    ):  # fmt: skip
        table.add_column(name, justify="right", overflow="fold")
    for policy in report["policies"]:
        cells = [
            shown(policy["path"]),
            policy["memory"],
            _success(policy),
            f"{policy['mean_return']:.3f}",
            f"{policy['mean_episode_length']:.1f}",
            " ".join(f"{count:.1f}" for count in policy["live_memories_mean"]) or "-",
            " ".join(str(count) for count in policy["live_memories_max"]) or "-",
            f"{policy['memory_bytes']:,.0f}",
            f"{policy['acting_steps_per_second']:,.0f}",
        ]
        table.add_row(*cells)
    return table


def _bucket_table(report: Mapping[str, Any]) -> Table:
    """A row per policy and range of difficulties."""
    difficulty = report["policies"][0]["buckets"][0]["by"]
    by = "length of the episode" if difficulty == "steps" else difficulty
    table = Table(title=f"by {by}", title_justify="left")
    for name in ("policy", "from-to", "episodes", "success [95%]", "return", "live memories", "at the end"):
        table.add_column(name, justify="left" if name == "policy" else "right", overflow="fold")
    for policy in report["policies"]:
        for i, bucket in enumerate(policy["buckets"]):
            cells = [
                shown(policy["path"]) if i == 0 else "",
                "-".join(f"{bound:g}" for bound in sorted({bucket["low"], bucket["high"]})),
                str(bucket["episodes"]),
                _success(bucket),
                f"{bucket['mean_return']:.3f}",
                _number(bucket.get("live_memories_per_episode")),
                _number(bucket.get("live_memories_at_end")),
            ]
            table.add_row(*cells)
    return table


def _success(metrics: Mapping[str, Any]) -> str:
    """The success rate and its interval, and of how many episodes they are if not of all."""
    if metrics["success_rate"] is None:
        return "-"
    low, high = metrics["success_rate_ci95"]
    count = metrics.get("episodes_with_success")
    return f"{metrics['success_rate']:.1%} [{low:.1%}, {high:.1%}]{f' of {count:,} episodes' if count else ''}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def policy_names(paths: Sequence[str]) -> list[str]:
    """A name for each policy: the last part of its path, with as many folders before it as make it differ from the
    others. What is alike even so has a number."""
    parts = [Path(os.path.abspath(path).removesuffix(".safetensors")).parts for path in paths]
    candidates = []
    for own in parts:
        count = 1
        while count < len(own) and any(other != own and other[-count:] == own[-count:] for other in parts):
            count += 1
        candidates.append(shown("/".join(own[-count:]), MAX_NAME))
    names: list[str] = []
    for name in candidates:
        numbered = (f"{name}, {number}" for number in itertools.count(2))
        # A number with which it would be another policy's name is passed over.
        names.append(name if name not in names else next(new for new in numbered if new not in {*names, *candidates}))
    return names


def plot(report: Mapping[str, Any], ending: str) -> bytes:
    """Success (or return) and live memories by difficulty, one line per policy. Returns a file's contents.

    ending: png, svg or pdf, in any case."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    from expire_span_rl.viewer.strips import without_glyph_warnings

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), constrained_layout=True)
    policies = report["policies"]
    with_success = policies[0]["success_rate"] is not None
    names = policy_names([policy["path"] for policy in policies])
    for i, (policy, name) in enumerate(zip(policies, names, strict=True)):
        style = {"marker": "os^Dv"[i % 5], "markersize": max(4, 9 - 2 * i), "linestyle": ("-", "--", ":", "-.")[i % 4]}
        buckets = policy["buckets"]
        label = f"{policy['memory']} ({name})".replace("$", r"\$")  # no formula
        x = [(bucket["low"] + bucket["high"]) / 2 for bucket in buckets]
        nothing = (math.nan, math.nan)  # a gap in the line, where no episode says anything about success
        y = [bucket["success_rate" if with_success else "mean_return"] for bucket in buckets]
        (line,) = left.plot(x, [math.nan if value is None else value for value in y], label=label, **style)
        if with_success:
            low, high = zip(*(bucket["success_rate_ci95"] or nothing for bucket in buckets), strict=True)
            left.fill_between(x, low, high, alpha=0.15, color=line.get_color())
        if policy["live_memories_mean"]:  # a recurrent state is no number of memories
            live = [bucket["live_memories_per_episode"] for bucket in buckets]
            right.plot(x, live, color=line.get_color(), label=label, **style)
    by = policies[0]["buckets"][0]["by"]
    left.set(xlabel=f"{by} of the episode", ylabel="success rate" if with_success else "mean return")
    if with_success:
        left.set_ylim(-0.02, 1.05)
    right.set(xlabel=f"{by} of the episode", ylabel="live memories (mean over steps and layers)", yscale="log")
    left.legend(fontsize=8)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    name = shown(report["env"], MAX_NAME).replace("$", r"\$")
    figure.suptitle(f"{name}: what is remembered, and what it takes (bands: 95% intervals)", fontsize=11)
    data = io.BytesIO()
    with without_glyph_warnings():
        figure.savefig(data, format=ending.lower(), dpi=120)
    plt.close(figure)
    return data.getvalue()
