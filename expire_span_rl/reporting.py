"""An evaluation as tables on the terminal and as a plot."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from expire_span_rl.checks import shown

ALWAYS = {
    "path", "memory", "agent", "parameters", "episodes", "success_rate", "success_rate_ci95", "mean_return",
    "mean_episode_length", "live_memories_mean", "live_memories_max", "live_memories_per_episode", "live_memories_at_end",
    "memory_bytes", "acting_steps_per_second", "buckets",
}  # fmt: skip
"""A policy's figures in every report; `memory_efficiency`, too, is None where there is no oracle."""


def print_tables(report: Mapping[str, Any]) -> None:
    """The comparison on stdout."""
    # What stands in a file, or is a file's name, is no markup.
    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False, markup=False, emoji=False)
    title = f"{report['env']} {json.dumps(report['env_kwargs'])}" if report["env_kwargs"] else report["env"]
    title = shown(title)
    table = Table(title=f"{title}, {report['policies'][0]['episodes']:,} episodes", title_justify="left")
    table.add_column("policy", overflow="fold")
    for name in (
        "memory",
        "success [95%]",
        "return",
        "steps",
        "live memories\nper layer",
        "largest",
        "bytes",
        "acting\nsteps/s",
    ):
        table.add_column(name, justify="left" if name == "memory" else "right")
    for p in report["policies"]:
        table.add_row(
            shown(p["path"]), p["memory"], _success(p), f"{p['mean_return']:.3f}", f"{p['mean_episode_length']:.1f}",
            " ".join(f"{x:.1f}" for x in p["live_memories_mean"]) or "-",
            " ".join(str(x) for x in p["live_memories_max"]) or "-",
            f"{p['memory_bytes']:,.0f}", f"{p['acting_steps_per_second']:,.0f}",
        )  # fmt: skip
    console.print(table)
    by = Table(title="by length of the episode" if report["policies"][0]["buckets"][0]["by"] == "steps" else
               f"by {report['policies'][0]['buckets'][0]['by']}", title_justify="left")  # fmt: skip
    for name in ("policy", "from-to", "episodes", "success [95%]", "return", "live memories", "at the end"):
        by.add_column(name, justify="left" if name == "policy" else "right", overflow="fold")
    for p in report["policies"]:
        for i, b in enumerate(p["buckets"]):
            by.add_row(
                shown(p["path"]) if i == 0 else "", f"{b['low']}-{b['high']}", str(b["episodes"]), _success(b),
                f"{b['mean_return']:.3f}", _number(b.get("live_memories_per_episode")), _number(b.get("live_memories_at_end")),
            )  # fmt: skip
    console.print(by)
    for p in report["policies"]:
        for name, value in p.items():  # what the environment counts besides (see `ratios` in envs/core.py)
            if name in ALWAYS or (name == "memory_efficiency" and value is None):
                continue
            parts = value.items() if isinstance(value, Mapping) else [("all", value)]
            listed = "  ".join(f"{label}: {part:.3f}" for label, part in parts if part is not None)
            console.print(
                f"{shown(p['path'])}, {name.replace('_', ' ')}:  {listed or 'nothing counted'}", soft_wrap=True
            )


def _success(figures: Mapping[str, Any]) -> str:
    if figures["success_rate"] is None:
        return "-"
    low, high = figures["success_rate_ci95"]
    return f"{figures['success_rate']:.1%} [{low:.1%}, {high:.1%}]"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def plot(report: Mapping[str, Any], ending: str) -> bytes:
    """Success (or return) and live memories by difficulty, one line per policy: a file's contents. ending: png, svg or
    pdf."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), constrained_layout=True)
    policies = report["policies"]
    with_success = policies[0]["success_rate"] is not None
    for i, p in enumerate(policies):
        style = {"marker": "os^Dv"[i % 5], "markersize": max(4, 9 - 2 * i), "linestyle": ("-", "--", ":", "-.")[i % 4]}
        name = Path(p["path"]).stem if Path(p["path"]).suffix else Path(p["path"]).name
        label = f"{p['memory']} ({shown(name, 60)})".replace("$", r"\$")  # no formula
        x = [(b["low"] + b["high"]) / 2 for b in p["buckets"]]
        y = [b["success_rate"] if with_success else b["mean_return"] for b in p["buckets"]]
        (line,) = left.plot(x, y, label=label, **style)
        if with_success:
            low, high = zip(*(b["success_rate_ci95"] for b in p["buckets"]))
            left.fill_between(x, low, high, alpha=0.15, color=line.get_color())
        if p["live_memories_mean"]:  # a recurrent state is no number of memories
            live = [b["live_memories_per_episode"] for b in p["buckets"]]
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
    name = shown(report["env"], 60).replace("$", r"\$")
    figure.suptitle(f"{name}: what is remembered, and what it takes (bands: 95% intervals)", fontsize=11)
    data = io.BytesIO()
    figure.savefig(data, format=ending, dpi=120)
    plt.close(figure)
    return data.getvalue()
