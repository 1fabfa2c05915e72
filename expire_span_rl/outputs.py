"""Where commands write their results: never over their inputs, a run's own files, or what is no earlier result."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path

from expire_span_rl.checks import shown
from expire_span_rl.files import OutputError, mode_of, name_of_mode, open_already, takes_bytes, write_atomically
from expire_span_rl.run_files import is_of_a_run, remember_output

JSON_TYPES: tuple[dict[str, type], ...] = ({"env": str, "policies": list}, {"version": int, "episodes": list})
"""Keys of what evaluate.py writes, and of what visualize.py writes, in all versions, and the types of their values."""
MARKS = {
    ".html": b"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'",
    ".mp4": b"Lavf",
    **dict.fromkeys((".png", ".pdf", ".svg"), b"Matplotlib"),
}
"""By ending, what every version of our files has in its beginning or at its end. So have other films of ffmpeg and
other pictures of Matplotlib."""
MARKED = 2**20  # bytes of the beginning and of the end that are searched


def write_output(path: str | Path, data: bytes) -> None:
    """Writes a result (`files.write_atomically`), and notes in a run directory that it is ours. Raises OutputError, one
    line."""
    try:
        write_atomically(path, data)
    except OSError as error:
        raise OutputError(f"{shown(path)}: expected a file that can be written ({error.strerror or error})") from None
    remember_output(path)


def safe_when_stopped(paths: Iterable[str], count: str) -> tuple[list[str], str]:
    """The outputs that a command writes when it stops early: those at which no earlier result is, since a complete one
    is worth more than a part. Also the line that says so. count: of what is finished."""
    paths = list(paths)
    kept = [path for path in paths if _has_contents(Path(path))]
    stays = "stays as it was" if len(kept) == 1 else "stay as they were"
    text = f"; {', '.join(shown(path) for path in kept)} {stays}" if kept else ""
    return [path for path in paths if path not in kept], f"stopped: what follows is of {count}{text}"


def _has_contents(path: Path) -> bool:
    """Whether a regular file that is not empty is at `path`."""
    mode = None if open_already(path) is not None else mode_of(path)
    return mode is not None and stat.S_ISREG(mode) and path.stat().st_size > 0


def check_outputs(
    outputs: Mapping[str, str], inputs: Iterable[str] = (), kinds: Mapping[str, str] | None = None
) -> None:
    """Raises OutputError, one line, unless a file can be written at each of `outputs`, paths by flag ("" for none).
    inputs: what the command reads: files, and run directories. kinds: by flag, the ending that stands for what is
    written (".json"), where the path need not end so."""
    inputs = [path for path in inputs if path]
    places: dict[str, str] = {}
    for flag, path in outputs.items():
        if not path:
            continue
        try:
            _check_output(flag, Path(path), inputs, (kinds or {}).get(flag) or Path(path).suffix.lower())
        except (OSError, ValueError) as error:  # a name too long, or one that the system does not take
            if isinstance(error, OutputError):
                raise
            reason = getattr(error, "strerror", None) or error
            raise OutputError(f"{flag}: expected a file that can be written, got {shown(path)!r} ({reason})") from None
        mode = mode_of(Path(path))
        if mode is None or stat.S_ISREG(mode):
            owner = places.setdefault(os.path.realpath(path), flag)
            if owner != flag:
                raise OutputError(f"{flag}: expected another file than {owner}'s, got {shown(path)!r} twice")


def _check_output(flag: str, path: Path, inputs: list[str], kind: str) -> None:
    """Raises OutputError, one line, unless a file of a kind, an ending, can be written at `path`."""
    if open_already(path) is not None:
        return
    name = repr(shown(path))
    mode = mode_of(path)
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        folder = target.parent if path.is_symlink() else path.parent
        raise OutputError(f"{flag}: expected a folder that exists, there is no {shown(folder)!r}")
    if mode is not None and stat.S_ISDIR(mode):
        raise OutputError(f"{flag}: expected a file, {name} is a folder")
    if mode is not None and not stat.S_ISREG(mode):
        if not takes_bytes(mode):
            raise OutputError(f"{flag}: expected a file, a pipe or a terminal, {name} is {name_of_mode(mode)}")
        return
    if mode is not None:
        if _is_input(path, inputs):
            raise OutputError(f"{flag}: expected another file than what is read, got {name}")
        if _belongs_to_a_run(target) or not _is_earlier_result(target, kind):
            what = "is a run's or a policy" if _belongs_to_a_run(target) else "is something else"
            raise OutputError(f"{flag}: expected a new file or an earlier result, {name} {what}")
    if not os.access(path if mode is not None else target.parent, os.W_OK) or not os.access(target.parent, os.W_OK):
        raise OutputError(f"{flag}: expected a file that can be written, got {name}")


def _is_earlier_result(path: Path, kind: str) -> bool:
    """Whether a file that is there is empty, or of the kind that evaluate.py and visualize.py write."""
    if not path.stat().st_size:
        return True
    if kind != ".json":
        return kind not in MARKS or MARKS[kind] in _ends_of(path)
    try:
        result = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return False
    return isinstance(result, dict) and any(
        all(type(result.get(name)) is of_type for name, of_type in types.items()) for types in JSON_TYPES
    )


def _ends_of(path: Path) -> bytes:
    """The beginning and the end of a file."""
    with path.open("rb") as file:
        beginning = file.read(MARKED)
        file.seek(max(0, path.stat().st_size - MARKED))
        return beginning + file.read(MARKED)


def _is_input(path: Path, inputs: list[str]) -> bool:
    """Whether the file at `path` is one of those that are read."""
    return any(os.path.exists(read_path) and os.path.samefile(read_path, path) for read_path in inputs)


def _belongs_to_a_run(path: Path) -> bool:
    """Whether a file that is there is a policy or a checkpoint, or one of those that a run writes."""
    return path.suffix == ".safetensors" or is_of_a_run(path)
