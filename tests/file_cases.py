"""Policy files as strangers may write them, and what loading one may take."""

from __future__ import annotations

import copy
import json
import struct
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from script_cases import ROOT
from torch import Tensor

from expire_span_rl.policies import PolicyFileError, load_policy

WHOLE = ROOT / "pretrained/corridor-expire_span.safetensors"
SECONDS, MEGABYTES, CHARACTERS = 2.0, 300, 300  # that refusing a file may take at most


@cache
def _parts() -> tuple[dict[str, Tensor], dict[str, Any]]:
    with safe_open(WHOLE, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, json.loads(file.metadata()["policy"])  # noqa: SIM118


def weights() -> dict[str, Tensor]:
    """Those of a policy for corridors."""
    return dict(_parts()[0])


def header() -> dict[str, Any]:
    """What its file says, to be changed."""
    return copy.deepcopy(_parts()[1])


def contents(header: Any, weights: Mapping[str, Tensor] | None = None) -> bytes:
    """A policy file that says so."""
    return save(dict(_parts()[0] if weights is None else weights), {"policy": json.dumps(header)})


def changed(path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """The header with another value at a path of keys."""
    whole = header()
    inner: Any = whole
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return whole


def with_header(text: bytes, data: bytes = b"") -> bytes:
    """A safetensors file with any header."""
    return struct.pack("<Q", len(text)) + text + data


def loaded(data: bytes, folder: Path) -> str | None:
    """Loads a file of these contents, within the bounds. What is said of it; None if it was taken."""
    file = folder / "x.safetensors"
    file.write_bytes(data)
    torch.manual_seed(0)
    before, began = _begin_peak(), time.process_time()
    try:
        load_policy(file)
        message = None
    except PolicyFileError as error:
        message = str(error)
    assert time.process_time() - began < SECONDS
    assert _peak() - before < MEGABYTES
    if message is not None:
        message = message.replace(str(folder), "")
        assert len(message) < CHARACTERS and message.isprintable()
    return message


def _begin_peak() -> float:
    """Resident megabytes now; the peak is counted from here."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak() -> float:
    return _status("VmHWM")


def _status(name: str) -> float:
    return int(Path("/proc/self/status").read_text().split(f"{name}:")[1].split()[0]) / 1024
