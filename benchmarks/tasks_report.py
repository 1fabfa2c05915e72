"""The results of the cells of `benchmarks.tasks`: results.csv, table.md, tasks.png."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks.comparison_report import Estimate, estimate_text
from benchmarks.statistics import iqm_interval, probability_of_improvement
from benchmarks.task_list import SUCCESS, TASKS
from expire_span_rl.files import write_atomically
from expire_span_rl.policies import KINDS

Cells = Mapping[str, Sequence[Mapping[str, Any]]]
"""By task: its cells, each the content of a JSON file."""

COLUMNS = (
    "task", "kind", "seed", "measure", "final", "best", "best_epoch", "published", "target", "steps_to_target", "score",
    "live_mean", "live_peak", "bytes", "training_minutes", "training_steps_per_second", "timesteps",
    "trained_timesteps", "commit",
)  # fmt: skip

LEGEND = (
    "Interquartile mean over seeds [95% stratified bootstrap interval]. One seed has no interval. *Final*: an "
    "evaluation, with sampled actions, of the policy that train_rl.py keeps. *Best*: the highest mean over the last "
    "training episodes (100 for returns, 1,000 for success) once 100 episodes have ended. *Steps to target*: the first "
    "update at which it is at the target. It is the median of the seeds that reach the target, with their number. Some "
    "cells of before 30 November 2026 have both from 250 points of a training only. Live memories: mean over steps and "
    "layers, the query's own step included. Minutes are of one core, which other work may have shared. A star after "
    "the seeds: some trainings were ended some time after they had reached the target (--end-after), as "
    "trained_timesteps in results.csv tells."
)

SOLVED_LEGEND = (
    "{kind}, by target. *Solved*: the seeds whose training reached the target, of all that were run. *After*: the "
    "median of their steps. *Final* and *live*: means over the seeds. *Commit*: those of the trainings, in the order "
    "of the seeds. The star is that of the first table."
)

PUBLISHED_LEGEND = (
    "*Best epoch*: the highest mean return over 65,536 steps of a training, of the seeds for which it is known "
    "(interquartile mean [interval]). The paper takes the mean of all episodes of such an epoch. Here it is the mean "
    "of the epoch's updates, and of each the mean of the latest 100 episodes. *Published*: the highest mean of three "
    "trainings of any of the paper's 13 memories, after 15M steps. *As good*: the seeds that reached it, in its three "
    "decimals."
)


def write_report(folder: Path, cells: Cells, command: str) -> None:
    """Writes the three files to `folder`. cells: of each task, sorted by kind and seed. command: the last command line
    that trained."""
    rows = rows_of(cells)
    write_atomically(folder / "results.csv", _csv(rows).encode())
    write_atomically(folder / "table.md", _markdown(rows, command).encode())
    plot(rows, folder / "tasks.png")


def rows_of(cells: Cells) -> list[dict[str, Any]]:
    """A row for each cell, with the keys COLUMNS."""
    return [_row(name, cell) for name, task_cells in cells.items() for cell in task_cells]


def _row(name: str, cell: Mapping[str, Any]) -> dict[str, Any]:
    task = TASKS[name]
    metrics = cell["figures"]
    # A missing rate means that no episode succeeded: some environments report success only if there is one.
    final = (metrics["success"] or 0.0) if task.measure == SUCCESS else metrics["return"]
    curve = cell.get("curve", [])
    progress = metrics if "steps_to_target" in metrics else task.progress(curve)  # cells from before 30 November 2026
    return {
        "task": name,
        "kind": cell["kind"],
        "seed": cell["seed"],
        "measure": task.measure,
        "final": final,
        "best": progress["best"],
        "best_epoch": metrics.get("best_epoch"),  # cells from before 5e7ec6e may lack it
        "published": task.published,
        "target": task.target,
        "steps_to_target": progress["steps_to_target"],
        "score": task.score(final),
        **{name: metrics[name] for name in ("live_mean", "live_peak", "bytes", "training_minutes")},
        "training_steps_per_second": metrics["training_steps_per_second"],
        "timesteps": cell["config"]["total_timesteps"],
        # At most a rollout more than the steps that were asked for.
        "trained_timesteps": min(curve[-1][0], cell["config"]["total_timesteps"]) if curve else None,
        "commit": cell.get("commit", ""),
    }


def kinds_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The memory kinds of some rows, in the order of KINDS: the first is what others are compared with."""
    return sorted({row["kind"] for row in rows}, key=list(KINDS).index)


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        values = (row[name] for name in COLUMNS)
        writer.writerow([f"{value:.6g}" if isinstance(value, float) else value for value in values])
    return out.getvalue()


def summary(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row for each task and kind.

    `final`, `best`, `best_epoch`, `live_mean`, `score` and `training_minutes` are Estimates, None where there are no
    values. `published_reached` is how many seeds had an epoch as good as the published mean, in its three decimals.
    `reached` is how many seeds reached the target, and `steps_to_target` is their median.
    """
    out = []
    for (task, kind), group in groupby(rows, lambda row: (row["task"], row["kind"])):
        runs = list(group)
        steps_to_target = [run["steps_to_target"] for run in runs if run["steps_to_target"] is not None]
        estimates = {}
        for name in ("final", "best", "best_epoch", "live_mean", "score", "training_minutes"):
            values = [run[name] for run in runs if run[name] is not None]
            estimates[name] = iqm_interval([values]) if values else None
        best_epochs = [run["best_epoch"] for run in runs if run["best_epoch"] is not None]
        published = runs[0]["published"]
        task_values = {name: runs[0][name] for name in ("measure", "target", "timesteps", "published")}
        out.append(
            {
                "task": task,
                "kind": kind,
                "seeds": len(runs),
                "ended_early": sum((run["trained_timesteps"] or run["timesteps"]) < run["timesteps"] for run in runs),
                "reached": len(steps_to_target),
                "epochs_known": len(best_epochs),
                "published_reached": sum(published is not None and round(x, 3) >= published for x in best_epochs),
                "steps_to_target": statistics.median(steps_to_target) if steps_to_target else None,
                **task_values,
                **estimates,
            }
        )
    return out


def overall(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[dict[str, Any]]]:
    """(names of the tasks that all kinds were trained on, a row for each kind over these tasks). Both are empty if that
    is only one task of several.

    A row has the interquartile mean of the kind's scores, `score`, and the `probability` that a run of the first kind
    scores higher than one of this kind (None for the first kind). Both are Estimates.
    """
    kinds = kinds_of(rows)
    scores: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        scores.setdefault(row["task"], {}).setdefault(row["kind"], []).append(row["score"])
    common_tasks = [task for task, by_kind in scores.items() if by_kind.keys() == set(kinds)]
    if len(common_tasks) < min(2, len(scores)):
        return [], []
    strata = {kind: [scores[task][kind] for task in common_tasks] for kind in kinds}
    reference = strata[kinds[0]]
    return common_tasks, [
        {
            "kind": kind,
            "score": iqm_interval(strata[kind]),
            "probability": None if kind == kinds[0] else probability_of_improvement(reference, strata[kind]),
        }
        for kind in kinds
    ]


def _markdown(rows: Sequence[Mapping[str, Any]], command: str) -> str:
    summaries = summary(rows)
    lines = ["# Memory kinds on third-party tasks and our own", "", LEGEND, ""]
    lines += [
        "| task | steps | target | memory | seeds | final | best | steps to target | live mean | minutes |",
        "|---|--:|--:|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in summaries:
        number_format = "{:.1%}" if row["measure"] == SUCCESS else "{:.4g}"
        target = "-" if row["target"] is None else f"{row['measure']} {number_format.format(row['target'])}"
        steps = f"{row['steps_to_target'] / 1e6:.2f}M, " if row["reached"] else ""
        reached = "-" if row["target"] is None else f"{steps}{row['reached']} of {row['seeds']}"
        cells = [
            estimate_text(row["final"], number_format),
            estimate_text(row["best"], number_format),
            reached,
            estimate_text(row["live_mean"], "{:.1f}"),
            estimate_text(row["training_minutes"], "{:.1f}"),
        ]
        head = f"| {row['task']} | {row['timesteps'] / 1e6:.2f}M | {target} | {row['kind']} | "
        head += f"{row['seeds']}{' *' * bool(row['ended_early'])} | "
        lines.append(head + " | ".join(cells) + " |")
    lines += _solved_lines(rows, summaries)
    lines += _published_lines(summaries)
    tasks, kinds = overall(rows)
    if len(kinds) > 1:
        heading = f"Over the tasks that all kinds were trained on ({', '.join(tasks)}), each scored from 0 to 1:"
        lines += ["", heading, ""]
        lines += [f"| memory | score | probability that {kinds[0]['kind']} scores higher |", "|---|--:|--:|"]
        for row in kinds:
            score = estimate_text(row["score"], "{:.2f}")
            probability = estimate_text(row["probability"], "{:.0%}")
            lines.append(f"| {row['kind']} | {score} | {probability} |")
    commits = sorted({row["commit"] for row in rows} - {""})
    lines += ["", f"Last call: `{command}`. Code of the cells: {', '.join(commits) or 'unknown'}.", ""]
    return "\n".join(lines)


def _solved_lines(rows: Sequence[Mapping[str, Any]], summaries: Sequence[Mapping[str, Any]]) -> list[str]:
    """How many seeds of the first kind solve each task with a target, as lines of Markdown. The README shows them."""
    kind = next(iter(kinds_of(rows)), "")
    solved = [row for row in summaries if row["kind"] == kind and row["target"] is not None]
    if not solved:
        return []
    lines = ["", SOLVED_LEGEND.format(kind=kind), ""]
    lines += ["| task | steps | target | solved | after | final | live | commit |", "|---|--:|--:|---|--:|--:|--:|---|"]
    for row in solved:
        runs = [run for run in rows if (run["task"], run["kind"]) == (row["task"], kind)]
        live = [run["live_mean"] for run in runs if run["live_mean"] is not None]
        commits = dict.fromkeys(run["commit"] for run in runs if run["commit"])
        cells = [
            f"{row['task']}{' *' * bool(row['ended_early'])}",
            f"{row['timesteps'] / 1e6:.3g}M",
            f"{row['measure']} {row['target']:.4g}",
            f"{row['reached']} of {row['seeds']}",
            f"{row['steps_to_target'] / 1e6:.2f}M" if row["reached"] else "-",
            f"{statistics.fmean(run['final'] for run in runs):.3g}",
            f"{statistics.fmean(live):.3g}" if live else "-",
            ", ".join(commits) or "unknown",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _published_lines(summaries: Sequence[Mapping[str, Any]]) -> list[str]:
    """The comparison with published figures, as lines of Markdown. None without any."""
    compared = [row for row in summaries if row["published"] is not None and row["best_epoch"] is not None]
    if not compared:
        return []
    lines = ["", PUBLISHED_LEGEND, ""]
    lines += ["| task | memory | seeds | best epoch | published | as good |", "|---|---|--:|--:|--:|--:|"]
    for row in compared:
        known = row["epochs_known"]
        lines.append(
            f"| {row['task']} | {row['kind']} | {known} | {estimate_text(row['best_epoch'], '{:.3f}')} | "
            f"{row['published']:.3f} | {row['published_reached']} of {known} |"
        )
    return lines


def plot(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws the figure. Left: the score of every kind on every task, as a dot with its interval, and small dots for the
    seeds. Right: the score of every kind over the tasks that all kinds were trained on, if there are any."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.lines import Line2D

    tasks = list(dict.fromkeys(row["task"] for row in rows))
    kinds = kinds_of(rows)
    colours = {kind: f"C{i}" for i, kind in enumerate(kinds)}
    common_tasks, kind_rows = overall(rows)
    size = (10, 1.6 + 0.55 * len(tasks))
    panels = [3, 1] if common_tasks else [1]  # widths
    figure, axes_grid = plt.subplots(
        1, len(panels), figsize=size, width_ratios=panels, squeeze=False, constrained_layout=True
    )
    left = axes_grid[0, 0]
    # The kinds of task i lie between -i + 0.3 and -i - 0.3.
    heights = {
        (task, kind): -i + 0.3 - 0.6 * (j + 0.5) / len(kinds)
        for i, task in enumerate(tasks)
        for j, kind in enumerate(kinds)
    }
    for row in rows:
        height = heights[row["task"], row["kind"]]
        left.plot(row["score"], height, ".", color=colours[row["kind"]], alpha=0.4, markersize=4)
    for row in summary(rows):
        _plot_estimate(left, row["score"], heights[row["task"], row["kind"]], colours[row["kind"]])
    left.set_yticks([-i for i in range(len(tasks))], tasks)
    left.set_title("score by task: 0 achieves nothing, 1 is the target", fontsize=9)
    if common_tasks:
        _plot_overall(axes_grid[0, 1], common_tasks, kind_rows, colours)
    for axes, count in zip(axes_grid[0], (len(tasks), len(kind_rows)), strict=False):
        axes.set_xlim(-0.03, 1.03)
        axes.set_ylim(-count + 0.5, 0.5)
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    handles = [Line2D([], [], color=colour, marker="o", linestyle="", label=kind) for kind, colour in colours.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(kinds), fontsize=8)
    figure.suptitle("Interquartile mean over seeds, 95% intervals", fontsize=10)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _plot_overall(
    axes: Any, tasks: Sequence[str], kind_rows: Sequence[Mapping[str, Any]], colours: Mapping[str, str]
) -> None:
    """The right panel: a row for each kind, of its score over `tasks`."""
    for i, row in enumerate(kind_rows):
        _plot_estimate(axes, row["score"], -i, colours[row["kind"]])
    axes.set_yticks([-i for i in range(len(kind_rows))], [row["kind"] for row in kind_rows])
    axes.set_title(f"over {len(tasks)} task{'s' * (len(tasks) != 1)} that all kinds have", fontsize=9)


def _plot_estimate(axes: Any, estimate: Estimate, y: float, colour: str) -> None:
    """A dot with its interval at height y."""
    value, low, high = estimate
    axes.plot([low, high], [y, y], color=colour, linewidth=1.5)
    axes.plot(value, y, "o", color=colour, markersize=5)
