"""The state of a training on disk: one safetensors file, figures as JSON in its header. Nothing is ever unpickled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

FORMAT = "expire-span-rl/training"
VERSION = 1


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, foreign, or of a newer version. One line."""


def checkpoint_bytes(tensors: dict[str, Tensor], figures: dict[str, Any]) -> bytes:
    """The file's contents; whoever writes them does it atomically."""
    header = json.dumps({"format": FORMAT, "version": VERSION, "figures": figures})
    return save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, {"training": header})


def load_checkpoint(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, figures) as `checkpoint_bytes` got them. Raises CheckpointError."""
    try:
        with safe_open(path, "pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118, it is no dict
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: expected a whole checkpoint, could not read it ({error})") from None
    try:
        header = json.loads(metadata["training"])
        ours = header["format"] == FORMAT
    except (KeyError, TypeError, json.JSONDecodeError, RecursionError):
        ours = False
    if not ours:
        raise CheckpointError(f"{path}: expected a checkpoint of this toolkit, got another safetensors file")
    if header.get("version") != VERSION:
        raise CheckpointError(
            f"{path}: expected format version {VERSION}, got {header.get('version')}: update the toolkit"
        )
    return tensors, header["figures"]
