"""progress.csv, a row per update.

Rows are appended. When a row brings new columns, the file is written again beside its place and renamed, so that a kill
at any moment costs at most the current row. A damaged file is repaired: it can never stop a resume.
"""

from __future__ import annotations

import bisect
import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from expire_span_rl.checks import printable
from expire_span_rl.files import write_atomically

STEP = "time/total_timesteps"  # the column by which rows are ordered


class ProgressTable:
    """Writes progress.csv."""

    def __init__(self, path: Path, timesteps: int):
        """timesteps: of the training so far. Later rows are dropped, since their updates will be done again. `note`
        says in one line what else was lost, if anything."""
        self._path = path
        table = _read(path)
        ordered = _rising_rows(table.rows, table.columns)
        rows = [row for row in ordered if _step(row, table.columns) <= timesteps]
        self.note = _note(path, table, len(ordered), rows, timesteps)
        if table.is_foreign:
            _set_aside(path)
        self._columns = table.columns
        self._write_all(rows)
        self._file = path.open("a", newline="", encoding="utf-8")

    def write(self, metrics: Mapping[str, float]) -> None:
        """One row. Raises OSError."""
        values = {printable(name) or "unnamed": str(value) for name, value in metrics.items()}
        new = sorted(values.keys() - set(self._columns))
        if new:
            self._file.close()
            rows = _read(self._path).rows
            self._columns = [*self._columns, *new]
            self._write_all([[*row, *[""] * len(new)] for row in rows])
            self._file = self._path.open("a", newline="", encoding="utf-8")
        self._file.write(_line([values.get(name, "") for name in self._columns]))
        self._file.flush()

    def has_last(self, timesteps: int, column: str) -> bool:
        """Whether the last row is that of so many steps, and has a number in a column."""
        table = _read(self._path)
        if not table.rows or column not in table.columns or _step(table.rows[-1], table.columns) != timesteps:
            return False
        return bool(table.rows[-1][table.columns.index(column)])

    def close(self) -> None:
        """Finishes the file."""
        self._file.close()

    def _write_all(self, rows: Sequence[Sequence[str]]) -> None:
        lines = [_line(self._columns), *map(_line, rows)] if self._columns else []
        write_atomically(self._path, "".join(lines).encode())


@dataclass(frozen=True)
class _Table:
    """The contents of a progress.csv."""

    columns: list[str]
    rows: list[list[str]]
    """Those that have a step, and a number or nothing in each column."""
    damaged: int = 0
    """The number of other rows."""
    is_foreign: bool = False
    """Whether the file is not a log of ours."""


def _read(path: Path) -> _Table:
    if not path.exists() and not path.is_symlink():
        return _Table([], [])
    try:
        text = path.read_bytes().decode("utf-8", errors="replace")
    except OSError:  # a directory, for instance
        return _Table([], [], is_foreign=True)
    # One row at a time, so that a quotation mark that a flipped bit made damages its own line only.
    lines = [_cells(line) for line in text.splitlines()]
    columns = lines[0] if lines else []
    if (
        STEP not in columns
        or len(set(columns)) < len(columns)
        or not all(name.isprintable() and name for name in columns)
    ):
        return _Table([], [], damaged=len(lines), is_foreign=bool(text.strip("\0 \n")))
    rows = [row for row in lines[1:] if _is_row(row, columns)]
    return _Table(columns, rows, damaged=len(lines) - 1 - len(rows))


def _cells(line: str) -> list[str]:
    try:
        return next(csv.reader([line], strict=True), [])
    except csv.Error:
        return []


def _is_row(row: Sequence[str], columns: Sequence[str]) -> bool:
    try:
        [float(value) for value in row if value]
        return len(row) == len(columns) and _step(row, columns).is_integer()
    except ValueError:
        return False


def _step(row: Sequence[str], columns: Sequence[str]) -> float:
    return float(row[columns.index(STEP)])


def _rising_rows(rows: Sequence[list[str]], columns: Sequence[str]) -> list[list[str]]:
    """The longest series of rows whose steps rise. A step with a damaged digit is left out, not those after it."""
    steps = [_step(row, columns) for row in rows]
    best: list[int] = []
    ends: list[int] = []  # for each length, the last row of the series that ends lowest (patience sorting)
    before: list[int] = []
    for i, step in enumerate(steps):
        place = (
            bisect.bisect_left([steps[end] for end in ends], step) if ends and steps[ends[-1]] >= step else len(ends)
        )
        before.append(ends[place - 1] if place else -1)
        ends[place : place + 1] = [i]
    at = ends[-1] if ends else -1
    while at >= 0:
        best.append(at)
        at = before[at]
    return [rows[i] for i in reversed(best)]


def _note(path: Path, table: _Table, num_rising: int, rows: Sequence[Sequence[str]], timesteps: int) -> str:
    """What was wrong with the file, in one line; empty if nothing was. num_rising: of `_rising_rows`."""
    damaged = table.damaged + len(table.rows) - num_rising
    last_step = int(_step(rows[-1], table.columns)) if rows else 0
    if table.is_foreign:
        return (
            f"{path}: could not be read as a run's log and is kept beside it; the log goes on from step {timesteps:,}"
        )
    if damaged:
        return f"{path}: {damaged} damaged rows were left out; the log goes on from step {timesteps:,}"
    if last_step < timesteps:
        return f"{path}: ends at step {last_step:,}, before the checkpoint; the log goes on from step {timesteps:,}"
    return ""


def _set_aside(path: Path) -> None:
    """Renames a file that is not a log of ours."""
    names = ("progress.damaged.csv", *(f"progress.damaged-{i}.csv" for i in range(2, 100)))
    place = next((path.with_name(name) for name in names if not path.with_name(name).exists()), None)
    if place is not None:
        path.rename(place)


def _line(values: Sequence[str]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerow(values)
    return out.getvalue()
