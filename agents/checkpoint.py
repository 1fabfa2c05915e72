"""The state of a training on disk: one safetensors file, figures as JSON in its header. Nothing is ever unpickled.

The header holds a checksum of names, types, shapes and bytes of all tensors and of the figures, so that a file in which
a single bit has changed is never taken for a whole one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from expire_span_rl.agents.guard import first_not_finite
from expire_span_rl.checks import shown

FORMAT = "expire-span-rl/training"
VERSION = 2
READABLE = (1, 2)
"""Versions that are read. 1: without a checksum."""

LONGEST_REASON = 100  # characters of why a file is refused


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, foreign, or of a newer version. One line."""


class NewerVersion(CheckpointError):
    """A checkpoint of a newer version of the toolkit. One line."""


def checkpoint_bytes(tensors: Mapping[str, Tensor], figures: Mapping[str, Any]) -> bytes:
    """The file's contents; whoever writes them does it atomically."""
    header = json.dumps({"format": FORMAT, "version": VERSION, "figures": figures})
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return save(contiguous, {"training": header, "sha256": _checksum(header, contiguous)})


def load_checkpoint(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, figures) as `checkpoint_bytes` got them. Raises CheckpointError."""
    try:
        with safe_open(path, "pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118, it is no dict
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{shown(path)}: expected a whole checkpoint, could not read it ({shown(error, LONGEST_REASON)})"
        ) from None
    try:
        header = json.loads(metadata["training"])
        ours = header["format"] == FORMAT and isinstance(header["figures"], dict)
    except (KeyError, TypeError, ValueError, RecursionError):
        ours = False
    if not ours:
        raise CheckpointError(f"{shown(path)}: expected a checkpoint of this toolkit, got another safetensors file")
    version = header.get("version")
    if version not in READABLE:
        raise NewerVersion(
            f"{shown(path)}: expected format version {VERSION} or older, got {shown(repr(version), 60)}: update the toolkit"
        )
    if (version > 1 or "sha256" in metadata) and metadata.get("sha256") != _checksum(metadata["training"], tensors):
        raise CheckpointError(f"{shown(path)}: expected a whole checkpoint, its checksum does not match its contents")
    return tensors, header["figures"]


def check_figures(figures: Any, fresh: Any, name: str = "figures") -> None:
    """Raises ValueError, one line, for a figure of a checkpoint that is of another kind than in a training that is
    `fresh`, such as no number where there is one. Where a fresh one has nothing yet, it is a number or an object.
    Entries of a list are of one kind."""
    if isinstance(fresh, Mapping) and isinstance(figures, Mapping):
        for key in sorted(figures.keys() & fresh.keys()):
            check_figures(figures[key], fresh[key], key)
        return
    wanted = {_kind(fresh)} if fresh is not None else {"nothing", "a number", "an object"}
    if _kind(figures) not in wanted:
        raise ValueError(f"{name}: expected {' or '.join(sorted(wanted))}, got {shown(repr(figures), 60)}")
    if isinstance(figures, list) and len({_kind(value) for value in figures}) > 1:
        raise ValueError(f"{name}: expected a list of one kind of entries, got {shown(repr(figures), 60)}")


def _kind(value: Any) -> str:
    kinds = {bool: "true or false", str: "a text", list: "a list", dict: "an object", type(None): "nothing"}
    return kinds.get(type(value), "a number")


def not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """What is wrong with the first tensor that a training learns and that has NaN or infinite entries; None if all are
    finite. Observations and memories are not looked at: entries of theirs that nobody reads may be anything."""
    return first_not_finite({name: tensor for name, tensor in tensors.items() if name.startswith(_LEARNED)})


_LEARNED = (
    "policy/",
    "best/",
    "agent/",
    "statistics/",
    "optimizer/",
)  # prefixes of `Trainer.state`, and of the baselines'


def _checksum(header: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256, in hexadecimal, of a header's text and of contiguous tensors on the CPU, whatever their order."""
    digest = hashlib.sha256(header.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        if tensor.numel():
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
