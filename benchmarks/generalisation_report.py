"""Rows of `benchmarks.generalisation`: their file, table and figure."""

from __future__ import annotations

import csv
import io
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.cells import read_csv
from expire_span_rl.files import write_atomically

UNKNOWN = "unknown"
"""The flags of a row of before 30 November 2026."""
BATCH = 64
"""Environments that play at a time. Times of batches of different sizes could not be compared."""


@dataclass(frozen=True)
class Row:
    """A policy in episodes of one length."""

    kind: str
    seed: int
    length: int
    episodes: int
    success: float
    mean_return: float
    live_mean: float
    """Live memories, mean over steps and layers. NaN if there are none."""
    live_largest_layer: float
    """The mean over steps of the layer that has most."""
    ms_per_step: float
    """Milliseconds of acting for one step of the batch, without the environments."""
    commit: str
    flags: str = UNKNOWN
    """Flags of train_rl.py that the training had, beside those that the benchmark sets."""


def read_rows(path: Path) -> dict[tuple[str, int, int], Row]:
    """The rows of a file by kind, seed and length. Empty if there is no file. Raises UsageError as `read_csv`."""
    if not path.exists():
        return {}
    rows = read_csv(path, _parse_row, owner="benchmarks.generalisation")
    return {(row.kind, row.seed, row.length): row for row in rows}


def _parse_row(text: Mapping[str, str]) -> Row:
    integers: dict[str, Any] = {name: int(text[name]) for name in ("seed", "length", "episodes")}
    names = ("success", "mean_return", "live_mean", "live_largest_layer", "ms_per_step")
    floats: dict[str, Any] = {name: float(text[name]) for name in names}
    return Row(kind=text["kind"], commit=text["commit"], flags=text.get("flags", UNKNOWN), **integers, **floats)


def write_rows(path: Path, rows: Any) -> None:
    """Writes the rows, sorted, into a folder that need not be there yet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    table = csv.DictWriter(text, [field.name for field in fields(Row)], lineterminator="\n")
    table.writeheader()
    table.writerows(asdict(row) for row in sorted(rows, key=lambda row: (row.kind, row.seed, row.length)))
    write_atomically(path, text.getvalue().encode())


def print_table(rows: Any) -> None:
    """Prints for each kind and length the success of every seed. Live memories and milliseconds per step are mean and
    range over seeds."""
    columns = ["kind", "length", "episodes", "success of each seed", "live per layer", "ms per step"]
    table = Table(*columns)
    for (kind, length), group in groupby(sorted(rows, key=lambda row: (row.kind, row.length, row.seed)), _cell):
        seeds = list(group)
        success = " ".join(f"{row.success:.1%}" for row in seeds)
        episodes = str(min(row.episodes for row in seeds))
        live = _range([row.live_mean for row in seeds], ".1f")
        milliseconds = _range([row.ms_per_step for row in seeds], ".2f")
        cells = [kind, f"{length:,}", episodes, success, live, milliseconds]
        table.add_row(*cells)
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def _cell(row: Row) -> tuple[str, int]:
    return row.kind, row.length


def _range(values: Sequence[float], form: str) -> str:
    if any(math.isnan(value) for value in values):
        return "-"
    return f"{sum(values) / len(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def plot(env: str, rows: Sequence[Row], path: Path) -> None:
    """Draws success, live memories and milliseconds per step against length, a line for each kind, a point for each
    seed. Live memories are left out where no kind has slots, and times where none is known, or unless all lengths were
    played in batches of the same size."""
    from matplotlib.figure import Figure

    panels = {"success": "success"}
    if not all(math.isnan(row.live_mean) for row in rows):  # a recurrent memory has no slots
        panels["live_mean"] = "live memories per layer"
    has_times = not all(math.isnan(row.ms_per_step) for row in rows)
    if has_times and len({min(row.episodes, BATCH) for row in rows}) == 1:
        panels["ms_per_step"] = f"ms per step of {min(rows[0].episodes, BATCH)} environments"
    figure = Figure((3.7 * len(panels), 3.4), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for number, kind in enumerate(sorted({row.kind for row in rows})):
        kind_rows = [row for row in rows if row.kind == kind]
        lengths = sorted({row.length for row in kind_rows})
        for ax, (name, title) in zip(axes, panels.items(), strict=True):
            points = [(row.length, getattr(row, name)) for row in kind_rows]
            values = [[v for at, v in points if at == length and not math.isnan(v)] for length in lengths]
            means = [sum(v) / len(v) if v else math.nan for v in values]
            ax.plot(lengths, means, color=f"C{number}", label=kind)
            ax.scatter(*zip(*points, strict=True), s=12, c=f"C{number}", alpha=0.5)
            ax.set(xscale="log", xlabel=f"length of the episodes, {env}", title=title)
    for ax, name in zip(axes, panels, strict=True):  # limits last: they end the scaling to what is drawn
        if name == "success":
            ax.set_ylim(-0.03, 1.03)
        else:
            ax.set_ylim(0, 1.05 * ax.get_ylim()[1])
    axes[0].legend(frameon=False, fontsize="small", loc="lower left", ncols=2)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=130)
    write_atomically(path, image.getvalue())
