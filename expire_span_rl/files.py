"""Files that are written: as a whole or not at all, and never over something else than the file that was meant.

A regular file is written beside its place, flushed and renamed, so that what was there survives a crash. A pipe or a device is
written to. A link is followed, which is said. What the command reads, and a run's own files, are never replaced.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from expire_span_rl.checks import shown

TEMPORARY = ".tmp"  # how names end of files that are not complete
LONGEST_STEM = 50  # characters of the name that a temporary one repeats: names have 255 bytes at most
RUN_FILES = re.compile(r"config\.json|progress\.csv|run\.log|events\.out\.tfevents\..*|\..*lock.*")
"""Names of what a run writes into its directory, beside its safetensors files."""
OPEN_ALREADY = re.compile(r"/dev/(?:(stdin|stdout|stderr)|fd/(\d+))|/proc/self/fd/(\d+)")


class OutputError(ValueError):
    """A path where nothing may be written. One line."""


def write_atomically(path: str | Path, data: bytes) -> None:
    """Writes `data`. What was at `path`, if a regular file, stays whole until the new one is, and its permissions stay; a new
    file gets those of the umask. Warns where `path` is a link. Raises OSError, or OutputError for what is no place to write."""
    path = Path(path)
    descriptor = _open_already(path)
    if descriptor is not None:
        sys.stdout.flush()
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(data)
        return
    mode = _mode(path)
    if mode is not None and not stat.S_ISREG(mode):
        if not _takes_bytes(mode):
            raise OutputError(f"{shown(path)}: expected a file, a pipe or a terminal, got {_name(mode)}")
        with path.open("wb") as file:
            file.write(data)
        return
    if path.is_symlink():
        target = Path(os.path.realpath(path))
        warnings.warn(f"{shown(path)} is a link: writing to {shown(target)}", stacklevel=2)
        path = target
    if mode is not None and not os.access(path, os.W_OK):
        raise PermissionError(13, "it is read-only", str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    _replace(path, data, None if mode is None else stat.S_IMODE(mode))


def _replace(path: Path, data: bytes, permissions: int | None) -> None:
    """Puts a new regular file in the place of `path`. permissions: None for those of the umask."""
    temporary = path.with_name(f".{path.name[:LONGEST_STEM]}.{secrets.token_hex(4)}{TEMPORARY}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if permissions is not None:
            os.chmod(temporary, permissions)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _flush_folder(path.parent)


def _flush_folder(folder: Path) -> None:
    """The new name reaches the disk too, where the file system has such a thing."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def remove_temporaries(folder: str | Path) -> list[Path]:
    """Removes what writes into `folder` that were killed have left, and returns it. Nobody else may be writing there."""
    left = [path for path in Path(folder).glob(f".*{TEMPORARY}") if path.is_file() and not path.is_symlink()]
    for path in left:
        path.unlink(missing_ok=True)
    return left


def check_outputs(outputs: Mapping[str, str], inputs: Iterable[str] = ()) -> None:
    """Raises OutputError, one line, unless a file can be written at each of `outputs`, paths by flag ("" for none). inputs: what
    the command reads: files, and run directories."""
    inputs = [path for path in inputs if path]
    places: dict[str, str] = {}
    for flag, path in outputs.items():
        if not path:
            continue
        try:
            _check_output(flag, Path(path), inputs)
        except (OSError, ValueError) as error:  # a name too long, or one that the system does not take
            if isinstance(error, OutputError):
                raise
            reason = getattr(error, "strerror", None) or error
            raise OutputError(f"{flag}: expected a file that can be written, got {shown(path)!r} ({reason})") from None
        mode = _mode(Path(path))
        if mode is None or stat.S_ISREG(mode):
            first = places.setdefault(os.path.realpath(path), flag)
            if first != flag:
                raise OutputError(f"{flag}: expected another file than {first}'s, got {shown(path)!r} twice")


def _check_output(flag: str, path: Path, inputs: list[str]) -> None:
    if _open_already(path) is not None:
        return
    given = repr(shown(path))
    mode = _mode(path)
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise OutputError(f"{flag}: expected a folder that exists, there is no {shown(target.parent)!r}")
    if mode is not None and stat.S_ISDIR(mode):
        raise OutputError(f"{flag}: expected a file, {given} is a folder")
    if mode is not None and not stat.S_ISREG(mode):
        if not _takes_bytes(mode):
            raise OutputError(f"{flag}: expected a file, a pipe or a terminal, {given} is {_name(mode)}")
        return
    if mode is not None:
        for name in inputs:
            if os.path.exists(name) and os.path.samefile(name, path):
                raise OutputError(f"{flag}: expected another file than what is read, got {given}")
        if _belongs_to_a_run(target):
            raise OutputError(f"{flag}: expected a new file or an earlier result, {given} is a run's or a policy")
    if not os.access(path if mode is not None else target.parent, os.W_OK) or not os.access(target.parent, os.W_OK):
        raise OutputError(f"{flag}: expected a file that can be written, got {given}")


def _belongs_to_a_run(path: Path) -> bool:
    """Whether a file that is there is a policy or a checkpoint, or in a run directory one of those that the run writes."""
    if path.suffix == ".safetensors":
        return True
    is_run = (path.parent / "config.json").is_file() and any(
        (path.parent / name).exists() for name in ("checkpoints", "progress.csv", "policy.safetensors")
    )
    return is_run and RUN_FILES.fullmatch(path.name) is not None


def _open_already(path: Path) -> int | None:
    """The number of the descriptor that a path such as /dev/stdout means, which is written to where it stands."""
    match = OPEN_ALREADY.fullmatch(str(path))
    if match is None:
        return None
    return {"stdin": 0, "stdout": 1, "stderr": 2}.get(match[1]) if match[1] else int(match[2] or match[3])


def _mode(path: Path) -> int | None:
    """The mode of what `path` leads to; None if nothing is there."""
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None


def _takes_bytes(mode: int) -> bool:
    """A disk's device takes bytes too, but they would destroy what is on it."""
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)


def _name(mode: int) -> str:
    tests: dict[str, Callable[[int], bool]] = {
        "a folder": stat.S_ISDIR, "a disk": stat.S_ISBLK, "a socket": stat.S_ISSOCK,
    }  # fmt: skip
    return next((name for name, test in tests.items() if test(mode)), "something else")
