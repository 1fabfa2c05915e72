"""What benchmarks.sequence makes of its cells: results.csv, table.md and the figure accuracy against memory."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cells import csv_text
from expire_span_rl.policies.io import write_atomically

COLUMNS = (
    "kind", "variant", "seed", "evaluated", "streams", "asked", "accuracy", "bits", "flawless", "live_by_layer",
    "live_max_by_layer", "memory_bytes", "ms_per_block", "peak_memory_mb", "seconds", "blocks", "timesteps",
    "parameters", "settings", "commit",
)  # fmt: skip
HEADINGS = "live by layer | ms per block | peak memory, MB | training, s | million steps | parameters |"
LEGEND = """\
One row per kind and evaluation: means over seeds, with the lowest and the highest if they differ. *Live memories* are
those of each layer, counted at the first step of each block. *ms per block* is CPU time of forward and backward on the
training's own blocks (wall time on a GPU). *Peak memory* is the most that the training's process had resident (on a
GPU: allocated)."""


def write_report(folder: Path, title: str, cells: Sequence[Mapping[str, Any]], bits: bool) -> None:
    """Writes the three files. cells: in order, with the trials of a search, which only the CSV shows; bits: whether the
    score is bits per character instead of accuracy."""
    write_atomically(folder / "results.csv", results_csv(cells).encode())
    rows = summary([cell for cell in cells if not is_trial(cell)], bits)
    if rows:
        write_atomically(folder / "table.md", markdown(title, rows, bits).encode())
        plot(title, rows, bits, folder / "memory.png")


def is_trial(cell: Mapping[str, Any]) -> bool:
    return cell["variant"].startswith("trial-")


def evaluated(evaluation: Mapping[str, Any]) -> str:
    """What an evaluation was of, in a word: its delay, or its part of the text."""
    kwargs = evaluation["env_kwargs"]
    return str(kwargs.get("delay", kwargs.get("part", "all")))


def results_csv(cells: Sequence[Mapping[str, Any]]) -> str:
    """A row per cell and evaluation."""
    return csv_text(COLUMNS, [_csv_row(cell, evaluation) for cell in cells for evaluation in cell["evaluations"]])


def _csv_row(cell: Mapping[str, Any], evaluation: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **cell,
        **evaluation,
        "evaluated": evaluated(evaluation),
        "live_by_layer": " ".join(f"{value:.5g}" for value in evaluation["live_mean"]),
        "live_max_by_layer": " ".join(f"{value:g}" for value in evaluation["live_max"]),
        "peak_memory_mb": cell["peak_memory"] / 1e6,
        "settings": json.dumps(cell["given"]),
    }


def summary(cells: Sequence[Mapping[str, Any]], bits: bool) -> list[dict[str, Any]]:
    """One row per kind, variant and evaluation. Values are triples (mean, lowest, highest) over seeds."""
    rows = []
    for (kind, variant), group in groupby(cells, lambda cell: (cell["kind"], cell["variant"])):
        by_protocol: dict[tuple[str, int, int], list[tuple[Mapping[str, Any], Mapping[str, Any]]]] = {}
        for cell in group:
            for evaluation in cell["evaluations"]:
                protocol = (evaluated(evaluation), evaluation["streams"], evaluation["steps"])
                by_protocol.setdefault(protocol, []).append((cell, evaluation))
        for pairs in by_protocol.values():
            runs, evaluations = zip(*pairs, strict=True)
            layers = np.array([evaluation["live_mean"] for evaluation in evaluations])
            rows.append(
                {
                    "kind": kind,
                    "variant": variant,
                    "evaluated": evaluated(evaluations[0]),
                    "seeds": len(runs),
                    "score": _spread([e["bits" if bits else "accuracy"] for e in evaluations]),
                    "layers": layers.mean(0).tolist(),
                    "live": _spread(layers.mean(1).tolist()) if layers.size else None,
                    "ms_per_block": _spread([cell["ms_per_block"] for cell in runs]),
                    "peak_memory_mb": _spread([cell["peak_memory"] / 1e6 for cell in runs]),
                    "seconds": _spread([cell["seconds"] for cell in runs]),
                    "timesteps": _spread([cell["timesteps"] for cell in runs]),
                    "parameters": runs[0]["parameters"],
                }
            )
    return rows


def _spread(values: Sequence[float]) -> tuple[float, float, float]:
    low, high = min(values), max(values)
    return min(max(float(np.mean(values)), low), high), low, high  # rounding may carry a mean of equal values outside


def markdown(title: str, rows: Sequence[Mapping[str, Any]], bits: bool) -> str:
    """The table."""
    lines = [
        f"# {title}",
        "",
        LEGEND,
        "",
        f"| memory | variant | evaluated | seeds | {'bits' if bits else 'accuracy'} | " + HEADINGS,
        "|---|---|--:|--:|" + "--:|" * 7,
    ]
    for row in rows:
        layers = ", ".join(f"{value:.1f}" for value in row["layers"]) or "-"
        score = _shown(row["score"], "{:.3f}" if bits else "{:.1%}")
        lines.append(
            f"| {row['kind']} | {row['variant']} | {row['evaluated']} | {row['seeds']} | {score} | {layers} | "
            f"{_shown(row['ms_per_block'], '{:.1f}')} | {_shown(row['peak_memory_mb'], '{:.0f}')} | "
            f"{row['seconds'][0]:.0f} | {row['timesteps'][0] / 1e6:.2f} | {row['parameters']:,} |"
        )
    return "\n".join([*lines, ""])


def _shown(spread: tuple[float, float, float], form: str) -> str:
    mean, low, high = (form.format(value) for value in spread)
    return mean if low == high else f"{mean} [{low}, {high}]"


def plot(title: str, rows: Sequence[Mapping[str, Any]], bits: bool, path: Path) -> None:
    """Score against live memories per layer, a marker per kind, variant and evaluation, bars from the lowest to the
    highest seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    shown = [row for row in rows if row["live"] is not None]
    figure, axes = plt.subplots(figsize=(8, 4.8), constrained_layout=True)
    places: dict[tuple[float, float], tuple[float, float, list[str]]] = {}  # what lies near together
    kinds = list(dict.fromkeys(row["kind"] for row in shown))
    names = list(dict.fromkeys((row["kind"], row["variant"]) for row in shown))
    for number, (kind, variant) in enumerate(names):
        points = [row for row in shown if (row["kind"], row["variant"]) == (kind, variant)]
        colour, marker = f"C{kinds.index(kind)}", "osD^vPX"[number % 7]
        for index, row in enumerate(points):
            (x, *ends), (y, low, high) = row["live"], row["score"]
            label = f"{kind}, {variant}" if index == 0 else None
            axes.errorbar(
                x, y, [[y - low], [high - y]], [[x - ends[0]], [ends[1] - x]], fmt=marker, color=colour, label=label
            )
            near = round(math.log2(x)), round(y, 1)
            places.setdefault(near, (x, y, []))[2].append(row["evaluated"])
    for x, y, words in places.values():
        text = ", ".join(dict.fromkeys(words))
        axes.annotate(text, (x, y), textcoords="offset points", xytext=(5, 6), fontsize=7)
    axes.set(xscale="log", xlabel="live memories per layer", ylabel="bits per answer" if bits else "accuracy")
    if not bits:
        axes.set_ylim(-0.02, 1.06)
    axes.set_title(f"{title}: mean and range over seeds; beside each point what was evaluated", fontsize=9)
    axes.legend(fontsize=7)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    plt.close(figure)
