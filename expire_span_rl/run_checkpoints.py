"""The checkpoints of a run directory: the newest, and the two before it.

They are `CHECKPOINTS` of `run_files`. A new one takes the place of the oldest that is whole. Each exists at every
moment.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from expire_span_rl.agents.checkpoint import (
    CheckpointError,
    NewerVersion,
    checkpoint_bytes,
    load_checkpoint,
    not_finite,
)
from expire_span_rl.files import write_atomically
from expire_span_rl.run_files import CHECKPOINTS


@dataclass(frozen=True)
class Newest:
    """The newest whole checkpoint of a run directory."""

    tensors: dict[str, Tensor]
    metadata: dict[str, Any]
    damaged: dict[str, CheckpointError]  # what is wrong with newer ones, by name


def newest_checkpoint(path: Path) -> Newest:
    """The newest whole checkpoint of the run directory `path`. Raises CheckpointError, one line, if none is whole, and
    NewerVersion for one of a later version of the toolkit."""
    files = [path / name for name in CHECKPOINTS if os.path.lexists(path / name)]
    if not files:
        raise CheckpointError(f"{path}: expected a run directory with a checkpoint, found none there")
    damaged: dict[str, CheckpointError] = {}
    for file in files:
        try:
            tensors, metadata = load_checkpoint(file)
            if (problem := not_finite(tensors)) is not None:
                raise CheckpointError(f"{file}: {problem}")
        except NewerVersion:
            raise
        except CheckpointError as error:
            damaged[file.name] = error
            continue
        return Newest(tensors, metadata, damaged)
    newest_error = next(iter(damaged.values()))
    older = f" (nor is any of the {len(damaged) - 1} before it whole)" if len(damaged) > 1 else ""
    raise CheckpointError(f"{newest_error}{older}")


def write_checkpoint(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], damaged: Iterable[str] = ()
) -> None:
    """Writes a checkpoint into the run directory `path`. The whole ones there become those before it, once the new one
    is complete on disk. damaged: names of checkpoints that could not be used. Raises OSError and OutputError."""
    rotate = partial(_rotate, path, set(damaged))
    write_atomically(path / CHECKPOINTS[0], checkpoint_bytes(tensors, metadata), before_rename=rotate)


def _rotate(path: Path, damaged: set[str]) -> None:
    """Renames each whole checkpoint to the one before it."""
    files = [path / name for name in CHECKPOINTS]
    whole = [file for file in files if file.name not in damaged and file.is_file()]
    for target, file in reversed(list(zip(files[1:], whole, strict=False))):
        if file == target:
            continue
        if file == files[0]:  # it also stays in place until the new one replaces it
            _link(file, target)
        else:
            os.replace(file, target)


def _link(file: Path, target: Path) -> None:
    """Makes `target` the same file, in place of an existing one."""
    temporary = target.with_name(f".{target.name}.{os.getpid():08x}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(file, temporary)
    except OSError:  # a file system without hard links
        os.replace(file, target)
        return
    os.replace(temporary, target)
