"""Directories of cells, which sweeps share. A cell is one training and its evaluation, in a JSON file of its own."""

from __future__ import annotations

import contextlib
import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from expire_span_rl import cli
from expire_span_rl.locks import FileLock
from expire_span_rl.policies import KINDS

Row = TypeVar("Row")


def read_cell_files(out: Path, cell_type: type, *, owner: str, is_complete: Callable[[dict[str, Any]], Any]) -> dict:
    """The finished cells in `out`: the contents of each file by its cell.

    cell_type: a named tuple whose fields are entries of the file, `kind` among them. owner: what has such cells, for
    messages. is_complete: whether the contents have what a cell needs. Raises UsageError, one line, for a file that is
    no cell.
    """
    cells = {}
    for file in sorted((out / "cells").glob("*.json")):
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
            cell = cell_type(**{name: data[name] for name in cell_type._fields})
            is_cell = cell.kind in KINDS and is_complete(data)
        except (KeyError, TypeError, AttributeError, ValueError, RecursionError):
            is_cell = False
        if not is_cell:
            raise cli.UsageError(f"{file}: expected a cell of {owner}, could not read it")
        cells[cell] = data
    return cells


def read_csv(file: Path, parse: Callable[[dict[str, Any]], Row], *, owner: str) -> list[Row]:
    """The rows of a CSV file, each parsed. owner: what writes such rows, for messages. Raises UsageError, one line, for
    a file that does not have them."""
    try:
        with file.open(newline="", encoding="utf-8") as lines:
            rows = list(csv.DictReader(lines))
        is_whole = not any(None in row or None in row.values() for row in rows)  # lines with an entry per column
        parsed = [parse(row) for row in rows]
    except (KeyError, TypeError, ValueError, csv.Error):
        is_whole = False
    if not is_whole:
        raise cli.UsageError(f"{file}: expected rows of {owner}, could not read them")
    return parsed


@contextlib.contextmanager
def lock_directory(out: Path, *, contents: str, process: str) -> Iterator[None]:
    """Creates a directory of cells if needed, and locks it for this process.

    contents, process: what it holds and what runs in it, for messages. Raises UsageError, one line, for a directory of
    something else, or one that another process has locked.
    """
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / "cells").is_dir())):
        raise cli.UsageError(f"--out: expected a new directory or one of {contents}, {out} is another")
    for folder in ("cells", "runs"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    lock = FileLock.take(out / "runs" / ".lock")
    if lock is None:
        raise cli.UsageError(f"--out: expected a directory of its own, {process} runs in {out}")
    try:
        yield
    finally:
        lock.release()


def check_settings(
    out: Path, cell: Any, saved: Mapping[str, Any], current: Mapping[str, Any], *, names: Sequence[str], other: str
) -> None:
    """Raises UsageError, one line, unless the saved settings `names` of a cell are the current ones. other: the flag
    that makes room for other settings."""
    for name in names:
        if saved.get(name) != current.get(name):
            raise cli.UsageError(
                f"{out}: expected --{name.replace('_', '-')} {saved.get(name)} as in its cell {cell}, got "
                f"{current.get(name)}: name another {other} for other settings"
            )


def csv_text(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as CSV, numbers with six digits. Entries that are no columns are left out."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: f"{value:.6g}" if isinstance(value, float) else value for name, value in row.items()})
    return text.getvalue()
