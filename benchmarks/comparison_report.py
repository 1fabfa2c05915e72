"""What a comparison's cells say: results.csv, table.md, success.png."""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks.statistics import iqm_interval
from expire_span_rl.policies.io import write_atomically

Estimate = tuple[float, float, float]  # interquartile mean, low, high

SHOWN = {
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
"""Figures of a cell: heading and format."""

LEGEND = (
    "Interquartile mean over seeds [95% stratified bootstrap interval]. Live memories, the query's own step included: the mean "
    "over steps and layers, and of each layer (a budget is shared among the layers as a kind likes); bytes are an "
    "environment's, timings one core's. *: the mean of live memories is above the budget, with one seed at least."
)


def write_report(folder: Path, env: str, cells: Sequence[Mapping[str, Any]], command: str) -> None:
    """Writes the three files. cells: as `benchmarks.comparison` keeps them, sorted by kind, budget and seed; command:
    what continues the sweep."""
    write_atomically(folder / "results.csv", _csv(cells).encode())
    rows = summary(cells)
    write_atomically(folder / "table.md", _markdown(env, rows, command).encode())
    plot(env, rows, folder / "success.png")


def summary(cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row per kind and budget: `kind`, `budget`, `seeds`, `layers` (the mean of live memories of each, over seeds),
    `keeps_budget` (whether every seed's mean of live memories is within it), and each figure's Estimate over seeds,
    None where the environment or the kind has no such figure."""
    rows = []
    tells_success = any(cell["figures"]["success"] is not None for cell in cells)
    for (kind, budget), group in groupby(cells, lambda cell: (cell["kind"], cell["budget"])):
        runs = list(group)
        layers = zip(*(_layers(cell) for cell in runs), strict=True)
        within = all(budget is None or cell["figures"]["live_mean"] <= budget for cell in runs)
        row: dict[str, Any] = {"kind": kind, "budget": budget, "seeds": len(runs), "keeps_budget": within}
        row["layers"] = [sum(layer) / len(layer) for layer in layers]
        for name in SHOWN:
            values = [cell["figures"][name] for cell in runs]
            if name == "success" and tells_success:  # those that were never told had none
                values = [value or 0.0 for value in values]
            values = [value for value in values if value is not None]
            row[name] = iqm_interval([values]) if values else None  # one environment, one stratum
        rows.append(row)
    return rows


def _layers(cell: Mapping[str, Any]) -> list[float]:
    """The mean of live memories of each layer; none for a kind without slots."""
    return cell["evaluation"]["live_memories_mean"]


def score(row: Mapping[str, Any]) -> Estimate:
    """Success, or the return where there is none."""
    return row["success"] or row["return"]


def highest(rows: Sequence[Mapping[str, Any]]) -> dict[int, list[str]]:
    """By budget: of the kinds that keep to it with every seed the one with the highest score first, and after it those
    whose intervals overlap its own."""
    best = {}
    for budget in sorted({row["budget"] for row in rows} - {None}):
        within = [row for row in rows if row["budget"] == budget and row["keeps_budget"]]
        within.sort(key=lambda row: -score(row)[0])
        best[budget] = [row["kind"] for row in within if score(row)[2] >= score(within[0])[1]]
    return best


def _csv(cells: Sequence[Mapping[str, Any]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["kind", "budget", "seed", *SHOWN, "live_by_layer", "policy_timesteps"])
    for cell in cells:
        figures = (cell["figures"][name] for name in SHOWN)
        told = ("" if value is None else f"{value:.6g}" for value in figures)
        layers = " ".join(f"{layer:.6g}" for layer in _layers(cell))
        writer.writerow([cell["kind"], cell["budget"] or "", cell["seed"], *told, layers, cell["policy_timesteps"]])
    return out.getvalue()


def _markdown(env: str, rows: Sequence[Mapping[str, Any]], command: str) -> str:
    names = [name for name in SHOWN if any(row[name] for row in rows)]
    lines = [
        f"# {env}: memory kinds at the same budgets",
        "",
        LEGEND,
        "",
        "| memory | budget | seeds | " + " | ".join(SHOWN[name][0] for name in names) + " | live by layer |",
        "|---|--:|--:|" + "--:|" * (len(names) + 1),
    ]
    for row in rows:
        budget = f"{row['budget']}{'' if row['keeps_budget'] else ' *'}" if row["budget"] else "-"
        told = [_told(row[name], SHOWN[name][1]) for name in names]
        told.append(", ".join(f"{layer:.1f}" for layer in row["layers"]) or "-")
        lines.append(f"| {row['kind']} | {budget} | {row['seeds']} | " + " | ".join(told) + " |")
    if any(row["budget"] for row in rows):
        lines += ["", f"Highest within its budget, and those whose intervals overlap the highest's: {_highest(rows)}."]
    lines += ["", f"Continued by `{command}`.", ""]
    return "\n".join(lines)


def _highest(rows: Sequence[Mapping[str, Any]]) -> str:
    return "; ".join(f"{budget}: {', '.join(kinds) or 'nobody'}" for budget, kinds in highest(rows).items())


def _told(estimate: Estimate | None, form: str) -> str:
    if estimate is None:
        return "-"
    value, low, high = (form.format(part) for part in estimate)
    return value if low == high else f"{value} [{low}, {high}]"


def plot(env: str, rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Left: score against budget, a line per kind with its interval; a kind without a size is a level line. Where there
    is an oracle, the same of memory efficiency. Right: how many memories were live, mean (solid) and peak (dotted)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    budgets = sorted({row["budget"] for row in rows} - {None}) or [1]
    name = "success" if rows[0]["success"] is not None else "return"
    shown = {name: "success rate" if name == "success" else "mean return"}
    if any(row["memory_efficiency"] for row in rows):
        shown["memory_efficiency"] = "memory efficiency (oracle's steps / agent's)"
    figure, panels = plt.subplots(
        1, len(shown) + 1, figsize=(12 + 3 * (len(shown) - 1), 4.6), constrained_layout=True,
        width_ratios=[*[3] * len(shown), 2],
    )  # fmt: skip
    for axes, (figured, label) in zip(panels, shown.items(), strict=False):
        _against_budget(axes, rows, figured)
        axes.set_ylabel(label)
        if figured != "return":
            axes.set_ylim(bottom=-0.02)
    left, right = panels[0], panels[-1]
    left.set_title("highest within its budget (several: intervals overlap)\n" + textwrap.fill(_highest(rows), 90))
    if name == "success":
        left.set_ylim(top=1.05)
    left.legend(fontsize=8)
    for kind, colour in _colours(rows).items():
        mine = [row for row in rows if row["kind"] == kind and row["budget"]]
        x = [row["budget"] for row in mine]
        right.plot(x, [row["live_mean"][0] for row in mine], "o-", color=colour, markersize=4)
        right.plot(x, [row["live_peak"][0] for row in mine], ":", color=colour)
    right.plot(budgets, budgets, "s-", color="0.6", linewidth=5, alpha=0.4, zorder=0)
    right.set(ylabel="live per layer: mean (solid), peak (dotted)", title="what was live (grey: the budget)")
    right.set_yscale("log", base=2)
    right.yaxis.set_major_formatter("{x:.0f}")
    for axes in panels:
        axes.set_xscale("log", base=2)
        axes.set_xticks(budgets, [str(b) for b in budgets])
        axes.set_xlabel("memory budget (live memories per layer)")
        axes.title.set_fontsize(8)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    seeds = sorted({row["seeds"] for row in rows})
    told = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    told += " seed" if seeds == [1] else " seeds"
    figure.suptitle(f"{env}: interquartile mean over {told}, 95% intervals; hollow: a seed held more than the budget")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _colours(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    return {kind: f"C{i}" for i, kind in enumerate(dict.fromkeys(row["kind"] for row in rows))}


def _against_budget(axes: Any, rows: Sequence[Mapping[str, Any]], figured: str) -> None:
    """A line per kind."""
    colours = _colours(rows)
    for i, (kind, colour) in enumerate(colours.items()):
        mine = [row for row in rows if row["kind"] == kind]
        if mine[0]["budget"] is None:
            value, low, high = mine[0][figured]
            axes.axhline(value, linestyle="--", color=colour, label=f"{kind} (no size)")
            axes.axhspan(low, high, alpha=0.13, color=colour, linewidth=0)
            continue
        shift = 1.015 ** (i - len(colours) / 2)  # intervals beside one another, not over one another
        x = [row["budget"] * shift for row in mine]
        value, low, high = zip(*(row[figured] for row in mine), strict=True)
        ends = [[v - end for v, end in zip(value, low)], [end - v for v, end in zip(value, high)]]
        axes.errorbar(x, value, ends, color=colour, capsize=2, linewidth=1.5, elinewidth=1, label=kind)
        filled = [colour if row["keeps_budget"] else "white" for row in mine]
        axes.scatter(x, value, c=filled, edgecolors=colour, zorder=3, s=36)
