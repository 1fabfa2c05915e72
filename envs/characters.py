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
ENWIK8_SIZES = (90_000_000, 5_000_000, 5_000_000)
"""Bytes of the parts of enwik8. A file with the sum of these is treated as enwik8."""
TRAIN_SHARE = 0.9
"""Share of a file's bytes for training."""
VALIDATION_SHARE = 0.05
"""Share of a file's bytes for validation. The rest is for the test."""
FILE_CYCLE = 20
"""Of each group of this many files of a folder, the last is for the test and the one before it for validation."""
MAX_BYTES = 2**30
"""The largest text that is read, in bytes."""
SUFFIXES = (".c", ".cfg", ".h", ".html", ".ini", ".js", ".json", ".md", ".py", ".rst", ".tex", ".toml", ".txt", ".xml")
EXCLUDED_FOLDERS = ("__pycache__", "dist-packages", "node_modules", "site-packages")
"""Names of subfolders that are not read. Hidden subfolders are not read either."""


def standard_library() -> str:
    """The folder of Python's standard library: about 20 MB of text that every machine has."""
    return sysconfig.get_path("stdlib")


def read_characters(path: str, part: str) -> np.ndarray:
    """The bytes of a part (`PARTS`) of a file or folder: uint8 [N], read-only. Raises EnvError, one line, if the path
    does not exist, is empty or is not text.

    A file of 100,000,000 bytes is enwik8. It has its usual parts of 90, 5 and 5 million bytes. Any other file is split
    by position: 90% for training, 5% for validation, 5% for the test.

    The text files of a folder are joined: first its own files by name, then those of each subfolder. A text file is a
    regular file with one of `SUFFIXES`. It is not a link, not hidden and not empty, and holds UTF-8 without zero bytes.
    Subfolders in `EXCLUDED_FOLDERS` are not read. Of every 20 files, one is for validation and one for the test. Which
    ones depends on the whole list. With fewer than 20 files, the joined text is split by position as a file is.

    Texts are cached. A file is read again if it has changed. A folder is not.
    """
    location = Path(path)
    try:
        if location.is_dir():
            return _read_folder(str(location.resolve()))[PARTS.index(part)]
        if not location.exists():
            raise EnvError(f"file: expected a text file or a folder of text files, but {shown(path)} does not exist")
        if not location.is_file():
            raise EnvError(f"file: expected a regular file or a folder, but {shown(path)} is neither")
        status = location.stat()
        return _read_file(str(location.resolve()), status.st_size, status.st_mtime_ns)[PARTS.index(part)]
    except OSError as error:
        raise EnvError(f"file: {shown(path)} cannot be read: {error.strerror or type(error).__name__}") from None


@functools.lru_cache(maxsize=4)
def _read_file(path: str, size: int, mtime_ns: int) -> tuple[np.ndarray, ...]:
    """The parts of a file. `size` in bytes and `mtime_ns`, the time of its last change, are in the key of the cache, so
    that a file that has changed is read again."""
    if size > MAX_BYTES:
        raise EnvError(f"file: expected at most {MAX_BYTES:,} bytes, but {shown(path)} has {size:,}")
    content = Path(path).read_bytes()
    if not content:
        raise EnvError(f"file: expected text, but {shown(path)} is empty")
    if not _is_text(content):
        raise EnvError(f"file: expected text in UTF-8, but {shown(path)} is binary or in another encoding")
    return _split_by_position(content)


@functools.lru_cache(maxsize=4)
def _read_folder(path: str) -> tuple[np.ndarray, ...]:
    """The parts of a folder's text files."""
    contents: list[bytes] = []
    total = 0
    for file in _text_files(path):
        content = file.read_bytes()
        if content and _is_text(content):
            contents.append(content)
            total += len(content)
        if total > MAX_BYTES:
            raise EnvError(f"file: expected at most {MAX_BYTES:,} bytes of text, but the folder {shown(path)} has more")
    if not contents:
        raise EnvError(f"file: expected text files ({', '.join(SUFFIXES)}) in the folder {shown(path)}, got none")
    if len(contents) < FILE_CYCLE:
        return _split_by_position(b"".join(contents))
    train = b"".join(content for i, content in enumerate(contents) if i % FILE_CYCLE < FILE_CYCLE - 2)
    validation = b"".join(contents[FILE_CYCLE - 2 :: FILE_CYCLE])
    test = b"".join(contents[FILE_CYCLE - 1 :: FILE_CYCLE])
    return _to_array(train), _to_array(validation), _to_array(test)


def _text_files(path: str) -> Iterator[Path]:
    """The files of a folder that may be text: first its own by name, then those of each subfolder."""
    for folder, subfolders, file_names in os.walk(path):
        # os.walk goes into the subfolders that remain in this list, in this order.
        subfolders[:] = sorted(name for name in subfolders if not name.startswith(".") and name not in EXCLUDED_FOLDERS)
        for name in sorted(file_names):
            file = Path(folder) / name
            if not name.startswith(".") and file.suffix in SUFFIXES and not file.is_symlink() and file.is_file():
                yield file


def _is_text(content: bytes) -> bool:
    """Whether `content` is UTF-8 without zero bytes. Its last character may be incomplete."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(content)
    except UnicodeDecodeError:
        return False
    return b"\0" not in content


def _split_by_position(content: bytes) -> tuple[np.ndarray, ...]:
    """The parts of a file's content, one after the other."""
    if len(content) == sum(ENWIK8_SIZES):
        train_size, validation_size, _ = ENWIK8_SIZES
    else:
        train_size = int(TRAIN_SHARE * len(content))
        validation_size = int(VALIDATION_SHARE * len(content))
    test_start = train_size + validation_size
    train = content[:train_size]
    validation = content[train_size:test_start]
    return _to_array(train), _to_array(validation), _to_array(content[test_start:])


def _to_array(content: bytes) -> np.ndarray:
    """The bytes as a read-only array, uint8 [N]."""
    return np.frombuffer(content, np.uint8)
