"""Writes files as a whole or not at all, and never over something that is not the intended file.

A regular file is written beside its place, flushed and renamed, so that the old file survives a crash. Pipes and
devices are written to directly. A link is followed, with a warning.
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

TEMPORARY = ".tmp"  # the ending of files that are not complete
LONGEST_STEM = 50  # characters of the name that a temporary one repeats: names have 255 bytes at most
STDOUT = 1  # its descriptor
OPEN_ALREADY = re.compile(r"/dev/(?:(stdin|stdout|stderr)|fd/(\d+))|/proc/self/fd/(\d+)")


class LinkWarning(UserWarning):
    """A file was written elsewhere, since the given path is a link. One line."""


class OutputError(ValueError):
    """A path where nothing may be written. One line."""


def write_atomically(path: str | Path, data: bytes, before_rename: Callable[[], None] | None = None) -> None:
    """Writes `data`. An existing regular file at `path` stays until the new one is complete, and keeps its permissions.
    A new file gets those of the umask. Warns where `path` is a link. Raises OSError, or OutputError for a path that
    cannot be written to.

    before_rename: is called once the new file is complete on disk, before it takes the place of the one at `path`."""
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
    _replace(path, data, None if mode is None else stat.S_IMODE(mode), before_rename)


def _replace(path: Path, data: bytes, permissions: int | None, before_rename: Callable[[], None] | None) -> None:
    """Replaces `path` by a new regular file. permissions: None for those of the umask."""
    temporary = path.with_name(f".{path.name[:LONGEST_STEM]}.{secrets.token_hex(4)}{TEMPORARY}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if permissions is not None:
            os.chmod(temporary, permissions)
        if before_rename is not None:
            before_rename()
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _flush_folder(path.parent)


def _flush_folder(folder: Path) -> None:
    """Flushes the new name to the disk, where the file system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def open_already(path: Path) -> int | None:
    """The number of the open descriptor that a path such as /dev/stdout means; None for other paths."""
    match = OPEN_ALREADY.fullmatch(str(path))
    if match is None:
        return None
    return {"stdin": 0, "stdout": 1, "stderr": 2}.get(match[1]) if match[1] else int(match[2] or match[3])


def is_stdout(path: str | Path) -> bool:
    """Whether what is written to a path joins what is printed: it means stdout by its descriptor, or leads to the same
    pipe or terminal."""
    if open_already(Path(path)) == STDOUT:
        return True
    try:
        there, printed = os.stat(path), os.fstat(STDOUT)
    except (OSError, ValueError):
        return False
    return not stat.S_ISREG(there.st_mode) and os.path.samestat(there, printed)


def last_name(path: str | Path) -> str:
    """The last part of a path, also of "." and "runs/..". Links keep their names."""
    return Path(os.path.abspath(path)).name


def mode_of(path: Path) -> int | None:
    """The mode of the file that `path` leads to; None if there is none."""
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None


def takes_bytes(mode: int) -> bool:
    """Whether bytes may be written to a file that is not regular. Not to a disk, whose contents they would destroy."""
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)


def name_of_mode(mode: int) -> str:
    """The kind of a file that is not regular, in words."""
    tests: dict[str, Callable[[int], bool]] = {
        "a folder": stat.S_ISDIR, "a disk": stat.S_ISBLK, "a socket": stat.S_ISSOCK,
    }  # fmt: skip
    return next((name for name, test in tests.items() if test(mode)), "something else")
