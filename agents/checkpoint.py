"""The state of a training on disk: one safetensors file, with JSON-able metadata in its header. Nothing is ever
unpickled.

The header holds a checksum of the metadata and of the names, types, shapes and bytes of all tensors. A file in which a
single bit has changed is therefore refused.
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
"""Versions that can be read. Version 1 has no checksum."""
METADATA_KEY = "figures"
"""The metadata's key in the header."""
LONGEST_REASON = 100
"""Characters of the reason for refusing a file."""
LEARNED_PREFIXES = ("policy/", "best/", "best_before/", "agent/", "statistics/", "optimizer/")
"""Prefixes of the tensors that a training learns, in `Trainer.state` and in the baselines'."""


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, of another program, or of a newer version. The message is one line."""


class NewerVersion(CheckpointError):
    """A checkpoint of a newer version of the toolkit. The message is one line."""


def checkpoint_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> bytes:
    """The contents of the file. The caller must write them atomically."""
    header = json.dumps({"format": FORMAT, "version": VERSION, METADATA_KEY: metadata})
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return save(contiguous, {"training": header, "sha256": _checksum(header, contiguous)})


def load_checkpoint(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, metadata) as they were given to `checkpoint_bytes`. Raises CheckpointError."""
    try:
        with safe_open(path, "pt") as file:
            entries = file.metadata() or {}
            # Copies, since these are views of the mapped file: if it is cut, or goes from a network disk, a process
            # that uses them is killed.
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118, the file is no dict
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{shown(path)}: expected a whole checkpoint, could not read it ({shown(error, LONGEST_REASON)})"
        ) from None
    try:
        header = json.loads(entries["training"])
        is_checkpoint = header["format"] == FORMAT and isinstance(header[METADATA_KEY], dict)
    except (KeyError, TypeError, ValueError, RecursionError):
        is_checkpoint = False
    if not is_checkpoint:
        raise CheckpointError(f"{shown(path)}: expected a checkpoint of this toolkit, got another safetensors file")
    version = header.get("version")
    if version not in READABLE:
        raise NewerVersion(
            f"{shown(path)}: expected format version {VERSION} or older, got {shown(repr(version), 60)}: update the "
            "toolkit"
        )
    if (version > 1 or "sha256" in entries) and entries.get("sha256") != _checksum(entries["training"], tensors):
        raise CheckpointError(f"{shown(path)}: expected a whole checkpoint, its checksum does not match its contents")
    return tensors, header[METADATA_KEY]


def check_metadata(metadata: Any, reference: Any, name: str = METADATA_KEY) -> None:
    """Raises ValueError, one line, for an entry of a checkpoint's metadata that has the wrong type. An entry must have
    the type that it has in `reference`, the metadata of a new training. Where that has None, a number, true or false or
    an object is right too. The entries of a list must be of one type. name: of the entry, for the message."""
    if isinstance(reference, Mapping) and isinstance(metadata, Mapping):
        for key in sorted(metadata.keys() & reference.keys()):
            check_metadata(metadata[key], reference[key], key)
        return
    expected = (
        {_type_name(reference)} if reference is not None else {"nothing", "a number", "an object", "true or false"}
    )
    if _type_name(metadata) not in expected:
        raise ValueError(f"{name}: expected {' or '.join(sorted(expected))}, got {shown(repr(metadata), 60)}")
    if isinstance(metadata, list) and len({_type_name(value) for value in metadata}) > 1:
        raise ValueError(f"{name}: expected a list of one kind of entries, got {shown(repr(metadata), 60)}")


def _type_name(value: Any) -> str:
    names = {bool: "true or false", str: "a text", list: "a list", dict: "an object", type(None): "nothing"}
    return names.get(type(value), "a number")


def not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """A message about the first learned tensor that has NaN or infinite entries. None if all are finite. Observations
    and memories are not checked, since their unused entries may be anything."""
    return first_not_finite({name: tensor for name, tensor in tensors.items() if name.startswith(LEARNED_PREFIXES)})


def _checksum(header: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256, in hexadecimal, of a header's text and of contiguous tensors on the CPU. The order of the tensors does
    not matter."""
    digest = hashlib.sha256(header.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        if tensor.numel():
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
