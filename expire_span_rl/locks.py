"""A lock on a file. The operating system releases it when the process that has it ends, in whatever way."""

from __future__ import annotations

import errno
import os
import shutil
import time
from pathlib import Path

try:
    import fcntl
except ImportError:  # there is none on Windows, where nothing is locked
    fcntl = None

_UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}  # of file systems without locks


class FileLock:
    """The lock on `path`, a small file that holds `content` and stays when the lock is released."""

    def __init__(self, path: Path, descriptor: int):
        """Only `take` makes one."""
        self.path, self._descriptor = path, descriptor

    @classmethod
    def take(cls, path: str | Path, content: str = "") -> FileLock | None:
        """The lock, or None if another process has it. Raises OSError where the file cannot be made."""
        path = Path(path)
        # No link is followed, so that no file of another user is locked.
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
        descriptor = os.open(path, flags, 0o666)
        try:
            if fcntl is not None:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                os.close(descriptor)
                if isinstance(error, BlockingIOError) or error.errno == errno.EACCES:
                    return None
                raise
        if content and os.fstat(descriptor).st_size == 0:
            os.write(descriptor, content.encode())
        return cls(path, descriptor)

    @property
    def is_in_place(self) -> bool:
        """Whether `path` is still the locked file: it may have been removed, or its directory replaced."""
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self._descriptor))
        except OSError:
            return False

    def release(self) -> None:
        """Releases the lock."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def remove_abandoned(parent: Path, pattern: str, lock_name: str, older_than: float = 60.0) -> list[Path]:
    """Removes the folders in `parent` that match `pattern` and hold a file `lock_name` whose lock nobody has, and
    returns them.

    older_than: seconds since that file was made, since it exists for a moment before it is locked."""
    removed = []
    for folder in parent.glob(pattern):
        file = folder / lock_name
        try:
            abandoned = not folder.is_symlink() and file.is_file() and time.time() - file.stat().st_mtime > older_than
        except OSError:  # somebody else's, which we may not look into
            continue
        if abandoned and not is_taken(file):
            shutil.rmtree(folder, ignore_errors=True)
            removed.append(folder)
    return removed


def is_taken(path: str | Path) -> bool:
    """Whether some process has the lock on `path`; changes nothing."""
    if fcntl is None:
        return False
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return isinstance(error, BlockingIOError)
    finally:
        os.close(descriptor)
    return False
