"""The results of a comparison's cells: results.csv, table.md, success.png."""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.statistics import iqm_interval
from expire_span_rl.policies.io import write_atomically

Estimate = tuple[float, float, float]  # interquartile mean, low, high

FIGURE = "success.png"

METRICS = {
    "success": ("success", "{:.1%}"),
    "return": ("return", "{:.3g}"),
    "memory_efficiency": ("memory efficiency", "{:.3f}"),
    "live_mean": ("live mean", "{:.1f}"),
    "live_peak": ("live peak", "{:.0f}"),
    "bytes": ("bytes", "{:,.0f}"),
    "training_minutes": ("training minutes", "{:.1f}"),
    "training_steps_per_second": ("training steps/s", "{:,.0f}"),
    "acting_steps_per_second": ("acting steps/s", "{:,.0f}"),
}
"""Metrics of a cell: heading and format."""

LEGEND = (
    "Interquartile mean over seeds [95% stratified bootstrap interval]. Live memories include the query's own step. "
    "They are the mean over steps and layers, and of each layer (a kind may share a budget among its layers in any "
    "way). Bytes are of one environment, timings of one core. *: at least one seed has a mean of live memories above "
    "the budget."
)


def write_report(folder: Path, env: str, cells: Sequence[Mapping[str, Any]], command: str, notes: str = "") -> None:
    """Writes the three files, but no figure where no kind has a size, since it is drawn against sizes.

    cells: as in the JSON files of `benchmarks.comparison`, sorted by kind, budget and seed; command: the command line
    that continues the sweep; notes: a paragraph for the table, if any."""
    write_atomically(folder / "results.csv", _csv(cells).encode())
    rows = summary(cells)
    write_atomically(folder / "table.md", _markdown(env, rows, command, notes).encode())
    figure = folder / FIGURE
    figure.unlink(missing_ok=True)
    if any(row["budget"] for row in rows):
        plot(env, rows, figure)


def summary(cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row for each kind and budget: `kind`, `budget`, `seeds`, `layers`, `keeps_budget`, and each of the METRICS.

    `layers` is the mean of live memories of each layer, over seeds. `keeps_budget` says whether every seed's mean of
    live memories is within the budget. A metric is an Estimate over seeds, None where the environment or the kind has
    none.
    """
    rows = []
    has_success = any(cell["figures"]["success"] is not None for cell in cells)
    for (kind, budget), group in groupby(cells, lambda cell: (cell["kind"], cell["budget"])):
        runs = list(group)
        layers = zip(*(_layers(cell) for cell in runs), strict=True)
        keeps_budget = all(budget is None or cell["figures"]["live_mean"] <= budget for cell in runs)
        row: dict[str, Any] = {"kind": kind, "budget": budget, "seeds": len(runs), "keeps_budget": keeps_budget}
        row["layers"] = [sum(layer) / len(layer) for layer in layers]
        for name in METRICS:
            values = [cell["figures"][name] for cell in runs]
            if name == "success" and has_success:  # a missing rate means that no episode succeeded
                values = [value or 0.0 for value in values]
            values = [value for value in values if value is not None]
            row[name] = iqm_interval([values]) if values else None  # one environment, one stratum
        rows.append(row)
    return rows


def _layers(cell: Mapping[str, Any]) -> list[float]:
    """The mean of live memories of each layer. Empty for a kind without slots."""
    return cell["evaluation"]["live_memories_mean"]


def score(row: Mapping[str, Any]) -> Estimate:
    """Success, or the return where there is none."""
    return row["success"] or row["return"]


def highest(rows: Sequence[Mapping[str, Any]]) -> dict[int, list[str]]:
    """For each budget the kind with the highest score, and after it those whose intervals overlap with its own. Only
    kinds that are within the budget with every seed count."""
    best_kinds = {}
    for budget in sorted({row["budget"] for row in rows} - {None}):
        candidates = [row for row in rows if row["budget"] == budget and row["keeps_budget"]]
        candidates.sort(key=lambda row: -score(row)[0])
        best_kinds[budget] = [row["kind"] for row in candidates if score(row)[2] >= score(candidates[0])[1]]
    return best_kinds


def _csv(cells: Sequence[Mapping[str, Any]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["kind", "budget", "seed", *METRICS, "live_by_layer", "policy_timesteps"])
    for cell in cells:
        metrics = (cell["figures"][name] for name in METRICS)
        texts = ("" if value is None else f"{value:.6g}" for value in metrics)
        layers = " ".join(f"{layer:.6g}" for layer in _layers(cell))
        writer.writerow([cell["kind"], cell["budget"] or "", cell["seed"], *texts, layers, cell["policy_timesteps"]])
    return out.getvalue()


def _markdown(env: str, rows: Sequence[Mapping[str, Any]], command: str, notes: str) -> str:
    names = [name for name in METRICS if any(row[name] for row in rows)]
    lines = [
        f"# {env}: memory kinds at the same budgets",
        "",
        LEGEND,
        "",
        "| memory | budget | seeds | " + " | ".join(METRICS[name][0] for name in names) + " | live by layer |",
        "|---|--:|--:|" + "--:|" * (len(names) + 1),
    ]
    for row in rows:
        budget = f"{row['budget']}{'' if row['keeps_budget'] else ' *'}" if row["budget"] else "-"
        cells = [estimate_text(row[name], METRICS[name][1]) for name in names]
        cells.append(", ".join(f"{layer:.1f}" for layer in row["layers"]) or "-")
        lines.append(f"| {row['kind']} | {budget} | {row['seeds']} | " + " | ".join(cells) + " |")
    if any(row["budget"] for row in rows):
        lines += ["", f"Highest within its budget, and those whose intervals overlap with it: {_highest_text(rows)}."]
    lines += ["", notes] if notes else []
    lines += ["", f"Continued by `{command}`.", ""]
    return "\n".join(lines)


def _highest_text(rows: Sequence[Mapping[str, Any]]) -> str:
    return "; ".join(f"{budget}: {', '.join(kinds) or 'nobody'}" for budget, kinds in highest(rows).items())


def estimate_text(estimate: Estimate | None, form: str) -> str:
    """ "value [low, high]" in the format `form`, without an interval that has no width. "-" for None."""
    if estimate is None:
        return "-"
    value, low, high = (form.format(part) for part in estimate)
    return value if low == high else f"{value} [{low}, {high}]"


def plot(env: str, rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws the figure. Left: score against budget, a line for each kind with its interval. A kind without a size is a
    level line. Where there is an oracle, the same of memory efficiency. Right: live memories, mean (solid) and peak
    (dotted)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    budgets = sorted({row["budget"] for row in rows} - {None})
    name = "success" if rows[0]["success"] is not None else "return"
    labels = {name: "success rate" if name == "success" else "mean return"}
    if any(row["memory_efficiency"] for row in rows):
        labels["memory_efficiency"] = "memory efficiency (oracle's steps / agent's)"
    count = len(labels)
    figure, panels = plt.subplots(
        1, count + 1, figsize=(12 + 3 * (count - 1), 4.6), constrained_layout=True, width_ratios=[*[3] * count, 2]
    )
    # Score and memory efficiency.
    for axes, (metric, label) in zip(panels, labels.items(), strict=False):
        _plot_against_budget(axes, rows, metric)
        axes.set_ylabel(label)
        if metric != "return":
            axes.set_ylim(bottom=-0.02)
    title = "highest within its budget (several: intervals overlap)\n" + textwrap.fill(_highest_text(rows), 90)
    panels[0].set_title(title)
    if name == "success":
        panels[0].set_ylim(top=1.05)
    panels[0].legend(fontsize=8)
    _plot_live_memories(panels[-1], rows, budgets)
    for axes in panels:
        axes.set_xscale("log", base=2)
        axes.set_xticks(budgets, [str(b) for b in budgets])
        axes.set_xlabel("memory budget (live memories per layer)")
        axes.title.set_fontsize(8)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    seeds = sorted({row["seeds"] for row in rows})
    seeds_text = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    seeds_text += " seed" if seeds == [1] else " seeds"
    explanation = "95% intervals; hollow: a seed held more than the budget"
    figure.suptitle(f"{env}: interquartile mean over {seeds_text}, {explanation}")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _colours(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    return {kind: f"C{i}" for i, kind in enumerate(dict.fromkeys(row["kind"] for row in rows))}


def _plot_live_memories(axes: Any, rows: Sequence[Mapping[str, Any]], budgets: Sequence[int]) -> None:
    """Mean and peak of live memories against the budget, two lines for each kind."""
    for kind, colour in _colours(rows).items():
        kind_rows = [row for row in rows if row["kind"] == kind and row["budget"]]
        x = [row["budget"] for row in kind_rows]
        axes.plot(x, [row["live_mean"][0] for row in kind_rows], "o-", color=colour, markersize=4)
        axes.plot(x, [row["live_peak"][0] for row in kind_rows], ":", color=colour)
    axes.plot(budgets, budgets, "s-", color="0.6", linewidth=5, alpha=0.4, zorder=0)
    axes.set(ylabel="live per layer: mean (solid), peak (dotted)", title="live memories (grey: the budget)")
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter("{x:.0f}")


def _plot_against_budget(axes: Any, rows: Sequence[Mapping[str, Any]], metric: str) -> None:
    """A metric against the budget, a line for each kind."""
    colours = _colours(rows)
    for i, (kind, colour) in enumerate(colours.items()):
        kind_rows = [row for row in rows if row["kind"] == kind]
        if kind_rows[0]["budget"] is None:
            value, low, high = kind_rows[0][metric]
            axes.axhline(value, linestyle="--", color=colour, label=f"{kind} (no size)")
            axes.axhspan(low, high, alpha=0.13, color=colour, linewidth=0)
            continue
        shift = 1.015 ** (i - len(colours) / 2)  # so that intervals are side by side
        x = [row["budget"] * shift for row in kind_rows]
        value, low, high = np.array([row[metric] for row in kind_rows]).T
        axes.errorbar(
            x, value, [value - low, high - value], color=colour, capsize=2, linewidth=1.5, elinewidth=1, label=kind
        )
        fill = [colour if row["keeps_budget"] else "white" for row in kind_rows]
        axes.scatter(x, value, c=fill, edgecolors=colour, zorder=3, s=36)
