"""The characters of a file or a folder, as bytes, in three parts: for training, validation and test."""

from __future__ import annotations

import codecs
import functools
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from expire_span_rl.checks import shown
from expire_span_rl.envs.errors import EnvError

PARTS = ("train", "validation", "test")
ENWIK8 = (90_000_000, 5_000_000, 5_000_000)
"""Bytes of its parts, whose sum tells that a file is enwik8."""
SHARES = (0.9, 0.05)
"""Of a file's bytes that are for training and validation; the rest is for the test."""
EVERY = 20  # files of a folder: the last of so many is for the test, and the one before for validation
LARGEST = 2**30  # bytes that are read at most
SUFFIXES = (".c", ".cfg", ".h", ".html", ".ini", ".js", ".json", ".md", ".py", ".rst", ".tex", ".toml", ".txt", ".xml")
SKIPPED = ("__pycache__", "dist-packages", "node_modules", "site-packages")
"""Folders in a folder that are left out, and every hidden one."""


def standard_library() -> str:
    """The folder of Python's standard library: some 20 MB of text that every machine has."""
    return sysconfig.get_path("stdlib")


def read_characters(path: str, part: str) -> np.ndarray:
    """The bytes of a part (`PARTS`) of a file or folder, uint8 [N], read-only. Raises EnvError, one line, for what is
    missing, empty or no text.

    A file of 100,000,000 bytes is enwik8 and has its usual parts of 90, 5 and 5 million. Any other file is split 90 / 5
    / 5 by position. Of a folder all text files count, in the order of their paths, one after the other: regular files
    that are not hidden, not empty, UTF-8 without zero bytes, and have one of `SUFFIXES`. Links do not count, nor do the
    folders `SKIPPED`. Of every 20 files one is for validation and one for the test; with fewer than 20, parts are by
    position."""
    place = Path(path)
    try:
        if place.is_dir():
            return _folder(str(place.resolve()))[PARTS.index(part)]
        if not place.exists():
            raise EnvError(f"file: expected a text file or a folder of them, {shown(path)} does not exist")
        if not place.is_file():
            raise EnvError(f"file: expected a regular file or a folder, {shown(path)} is neither")
        about = place.stat()
        return _file(str(place.resolve()), about.st_size, about.st_mtime_ns)[PARTS.index(part)]
    except OSError as error:
        raise EnvError(f"file: {shown(path)} cannot be read: {error.strerror or type(error).__name__}") from None


@functools.lru_cache(maxsize=4)
def _file(path: str, size: int, modified: int) -> tuple[np.ndarray, ...]:
    """The parts of a file of `size` bytes, which was `modified` then."""
    if size > LARGEST:
        raise EnvError(f"file: expected at most {LARGEST:,} bytes, {shown(path)} has {size:,}")
    content = Path(path).read_bytes()
    if not content:
        raise EnvError(f"file: expected text, {shown(path)} is empty")
    if not _is_text(content):
        raise EnvError(f"file: expected text in UTF-8, {shown(path)} is binary or in another encoding")
    return _by_position(content)


@functools.lru_cache(maxsize=4)
def _folder(path: str) -> tuple[np.ndarray, ...]:
    """The parts of a folder's text files."""
    contents: list[bytes] = []
    total = 0
    for file in _text_files(path):
        content = file.read_bytes()
        if content and _is_text(content):
            contents.append(content)
            total += len(content)
        if total > LARGEST:
            raise EnvError(f"file: expected at most {LARGEST:,} bytes of text, the folder {shown(path)} has more")
    if not contents:
        raise EnvError(f"file: expected text files ({', '.join(SUFFIXES)}) in the folder {shown(path)}, it has none")
    if len(contents) < EVERY:
        return _by_position(b"".join(contents))
    of_part = {"validation": EVERY - 2, "test": EVERY - 1}
    validation, test = (b"".join(contents[first::EVERY]) for first in of_part.values())
    train = b"".join(content for i, content in enumerate(contents) if i % EVERY not in of_part.values())
    return tuple(map(_array, (train, validation, test)))


def _text_files(path: str) -> Iterator[Path]:
    """The files of a folder that may be text, in the order of their paths."""
    for folder, names, files in os.walk(path):
        names[:] = sorted(name for name in names if not name.startswith(".") and name not in SKIPPED)
        for name in sorted(files):
            file = Path(folder) / name
            if not name.startswith(".") and file.suffix in SUFFIXES and not file.is_symlink() and file.is_file():
                yield file


def _is_text(content: bytes) -> bool:
    """Whether it is UTF-8 without zero bytes; the last character may be cut off."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(content)
    except UnicodeDecodeError:
        return False
    return b"\0" not in content


def _by_position(content: bytes) -> tuple[np.ndarray, ...]:
    """The parts of a file."""
    sizes = ENWIK8 if len(content) == sum(ENWIK8) else [int(share * len(content)) for share in SHARES]
    first, second = sizes[0], sizes[0] + sizes[1]
    return tuple(map(_array, (content[:first], content[first:second], content[second:])))


def _array(content: bytes) -> np.ndarray:
    return np.frombuffer(content, np.uint8)
