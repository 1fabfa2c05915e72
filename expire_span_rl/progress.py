"""progress.csv, a row per update. It grows at its end; when a row brings new columns it is written anew beside its
place and renamed, so that a kill at any moment costs at most the row under way. A damaged one is mended: it can never
stop a resume.
"""

from __future__ import annotations

import bisect
import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from expire_span_rl.files import write_atomically

STEP = "time/total_timesteps"  # the column by which rows are ordered


class ProgressTable:
    """Writes progress.csv."""

    def __init__(self, path: Path, timesteps: int):
        """timesteps: of the training so far: later rows are dropped, since their updates will be done again. `note`
        says in one line what else was lost, if anything."""
        self._path = path
        found = _read(path)
        rows = _ordered(found.rows, found.columns)
        kept = [row for row in rows if _step(row, found.columns) <= timesteps]
        self.note = _note(path, found, len(rows), kept, timesteps)
        if found.is_foreign:
            _set_aside(path)
        self._columns = found.columns
        self._write_all(kept)
        self._file = path.open("a", newline="", encoding="utf-8")

    def write(self, metrics: Mapping[str, float]) -> None:
        """One row. Raises OSError."""
        values = {_one_line(name): str(value) for name, value in metrics.items()}
        new = sorted(values.keys() - set(self._columns))
        if new:
            self._file.close()
            rows = _read(self._path).rows
            self._columns = [*self._columns, *new]
            self._write_all([[*row, *[""] * len(new)] for row in rows])
            self._file = self._path.open("a", newline="", encoding="utf-8")
        self._file.write(_line([values.get(name, "") for name in self._columns]))
        self._file.flush()

    def close(self) -> None:
        """Finishes the file."""
        self._file.close()

    def _write_all(self, rows: Sequence[Sequence[str]]) -> None:
        lines = [_line(self._columns), *map(_line, rows)] if self._columns else []
        write_atomically(self._path, "".join(lines).encode())


class _Found:
    """What is in a progress.csv: the rows that have a step and a number or nothing in each column."""

    def __init__(self, columns: list[str], rows: list[list[str]], damaged: int, is_foreign: bool):
        self.columns, self.rows, self.damaged, self.is_foreign = columns, rows, damaged, is_foreign


def _read(path: Path) -> _Found:
    if not path.exists() and not path.is_symlink():
        return _Found([], [], 0, False)
    try:
        text = path.read_bytes().decode("utf-8", errors="replace")
    except OSError:  # a directory, for instance
        return _Found([], [], 0, True)
    # A row at a time: a quotation mark that a flipped bit made takes the rest of no more than its own line with it.
    lines = [_cells(line) for line in text.splitlines()]
    columns = lines[0] if lines else []
    if (
        STEP not in columns
        or len(set(columns)) < len(columns)
        or not all(name.isprintable() and name for name in columns)
    ):
        return _Found([], [], len(lines), bool(text.strip("\0 \n")))
    rows = [row for row in lines[1:] if _is_row(row, columns)]
    return _Found(columns, rows, len(lines) - 1 - len(rows), False)


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


def _ordered(rows: Sequence[list[str]], columns: Sequence[str]) -> list[list[str]]:
    """The rows whose steps rise: a step with a damaged digit is left out, not those after it."""
    steps = [_step(row, columns) for row in rows]
    best: list[int] = []
    ends: list[int] = []  # of the rising rows of each length that end lowest, the last row: patience sorting
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


def _note(path: Path, found: _Found, ordered: int, kept: Sequence[Sequence[str]], timesteps: int) -> str:
    """What was wrong with the file, in one line; empty if nothing was."""
    damaged = found.damaged + len(found.rows) - ordered
    last = int(_step(kept[-1], found.columns)) if kept else 0
    if found.is_foreign:
        return (
            f"{path}: could not be read as a run's log and is kept beside it; the log goes on from step {timesteps:,}"
        )
    if damaged:
        return f"{path}: {damaged} damaged rows were left out; the log goes on from step {timesteps:,}"
    if last < timesteps:
        return f"{path}: ends at step {last:,}, before the checkpoint; the log goes on from step {timesteps:,}"
    return ""


def _set_aside(path: Path) -> None:
    """Renames what is no log of ours."""
    names = ("progress.damaged.csv", *(f"progress.damaged-{i}.csv" for i in range(2, 100)))
    place = next((path.with_name(name) for name in names if not path.with_name(name).exists()), None)
    if place is not None:
        path.rename(place)


def _line(values: Sequence[str]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerow(values)
    return out.getvalue()


def _one_line(name: str) -> str:
    return " ".join(name.split()) or "unnamed"
