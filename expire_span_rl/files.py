"""Files that are written: as a whole or not at all, and never over something else than the file that was meant.

A regular file is written beside its place, flushed and renamed, so that what was there survives a crash. A pipe or a
device is written to. A link is followed, which is said.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

from expire_span_rl.checks import shown

TEMPORARY = ".tmp"  # how names end of files that are not complete
LONGEST_STEM = 50  # characters of the name that a temporary one repeats: names have 255 bytes at most
OPEN_ALREADY = re.compile(r"/dev/(?:(stdin|stdout|stderr)|fd/(\d+))|/proc/self/fd/(\d+)")


class LinkWarning(UserWarning):
    """What was written is not at the path that was given, which is a link. One line."""


class OutputError(ValueError):
    """A path where nothing may be written. One line."""


def write_atomically(path: str | Path, data: bytes) -> None:
    """Writes `data`. What was at `path`, if a regular file, stays whole until the new one is, and its permissions stay;
    a new file gets those of the umask. Warns where `path` is a link. Raises OSError, or OutputError for what is no
    place to write."""
    path = Path(path)
    descriptor = open_already(path)
    if descriptor is not None:
        sys.stdout.flush()
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(data)
        return
    mode = mode_of(path)
    if mode is not None and not stat.S_ISREG(mode):
        if not takes_bytes(mode):
            raise OutputError(f"{shown(path)}: expected a file, a pipe or a terminal, got {name_of_mode(mode)}")
        with path.open("wb") as file:
            file.write(data)
        return
    if path.is_symlink():
        target = Path(os.path.realpath(path))
        warnings.warn(f"{shown(path)} is a link: {shown(target)} is written", LinkWarning, stacklevel=2)
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


def open_already(path: Path) -> int | None:
    """The number of the descriptor that a path such as /dev/stdout means, which is written to where it stands."""
    match = OPEN_ALREADY.fullmatch(str(path))
    if match is None:
        return None
    return {"stdin": 0, "stdout": 1, "stderr": 2}.get(match[1]) if match[1] else int(match[2] or match[3])


def mode_of(path: Path) -> int | None:
    """The mode of what `path` leads to; None if nothing is there."""
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None


def takes_bytes(mode: int) -> bool:
    """A disk's device takes bytes too, but they would destroy what is on it."""
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)


def name_of_mode(mode: int) -> str:
    """What something is that is no file."""
    tests: dict[str, Callable[[int], bool]] = {
        "a folder": stat.S_ISDIR, "a disk": stat.S_ISBLK, "a socket": stat.S_ISSOCK,
    }  # fmt: skip
    return next((name for name, test in tests.items() if test(mode)), "something else")
