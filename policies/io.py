"""Policies on disk: one safetensors file with the weights, and in its header, as JSON, all that is needed to use them.

Nothing is ever unpickled, so that a file from a stranger cannot run code. A file is written beside its place, flushed, and
renamed: what was there before survives a crash.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from expire_span_rl.policies.actor_critic import ActorCritic, PolicyConfig
from expire_span_rl.policies.encoders.extractor import FeaturesExtractor

FORMAT = "expire-span-rl/policy"
VERSION = 2
READABLE = (1, 2)
"""Versions that are read. 1: actions are told by their number, without their space."""


class PolicyFileError(ValueError):
    """A file that is no policy, or not one that this version can read. One line."""


def write_atomically(path: str | Path, data: bytes) -> None:
    """Writes beside `path`, flushes to the disk and renames."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def save_policy(
    policy: ActorCritic, path: str | Path, info: Mapping[str, Any], weights: Mapping[str, Tensor] | None = None
) -> None:
    """Writes `policy` (with `weights` instead of its own, if given). info: JSON-able, what to know of it: `env`,
    `env_kwargs`, `agent`, and whatever else; `load_policy` gives it back."""
    header = {"format": FORMAT, "version": VERSION, "config": policy.config.to_json(), "info": dict(info)}
    tensors = policy.state_dict() if weights is None else weights
    contiguous = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    write_atomically(path, save(contiguous, {"policy": json.dumps(header)}))


def load_policy(
    path: str | Path, device: str | torch.device = "cpu", extractor: FeaturesExtractor | None = None
) -> tuple[ActorCritic, dict[str, Any]]:
    """The policy in a file, or the `policy.safetensors` of a run directory, and its info.

    extractor: the `FeaturesExtractor` of a policy that was trained with one: a file names its class but imports nothing.
    Raises PolicyFileError, one line, for a file that is missing, truncated, foreign, or written by a newer version.
    """
    file = policy_path(path)
    weights, header = _read(file, str(device))
    make = _maker(file, header, extractor)
    try:
        policy = make(header["config"])
        policy.load_state_dict(weights)
        info = dict(header["info"])
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        told = " ".join(str(error).split())[:200]
        raise PolicyFileError(f"{file}: expected a config and weights that belong together ({told})") from None
    return policy.to(device).eval(), info


def policy_info(path: str | Path) -> dict[str, Any]:
    """What the policy file at `path` says of its policy: the info that it was saved with. Raises PolicyFileError."""
    file = policy_path(path)
    info = _read(file, "cpu")[1].get("info")
    if not isinstance(info, dict):
        raise PolicyFileError(f"{file}: expected what the policy was trained in, the file does not say")
    return info


def _read(file: Path, device: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(weights by name, the header that `save_policy` wrote). Raises PolicyFileError."""
    try:
        with safe_open(file, "pt", device=device) as opened:
            metadata = opened.metadata() or {}
            weights = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118, it is no dict
    except (SafetensorError, OSError) as error:
        raise PolicyFileError(f"{file}: expected a whole safetensors file, could not read it ({error})") from None
    try:
        header = json.loads(metadata["policy"])
        ours = header["format"] == FORMAT
    except (KeyError, TypeError, json.JSONDecodeError, RecursionError):
        ours = False
    if not ours:
        raise PolicyFileError(f"{file}: expected a policy saved by this toolkit, got another safetensors file")
    if header.get("version") not in READABLE:
        raise PolicyFileError(
            f"{file}: expected format version {VERSION} or older, got {header.get('version')}: update the toolkit"
        )
    return weights, header


def _maker(
    file: Path, header: Mapping[str, Any], extractor: FeaturesExtractor | None
) -> Callable[[Mapping[str, Any]], Any]:
    """What makes a policy of the header's config. Raises ValueError, one line, if that takes a package or a class that is not
    there."""
    config = header["config"] if isinstance(header.get("config"), dict) else {}
    network, named = config.get("memory"), config.get("features_extractor")
    if named and extractor is None:
        raise PolicyFileError(
            f"{file}: features_extractor: expected the policy's own, {str(named)[:100]}, which a file cannot bring"
        )
    if not (isinstance(network, str) and network.startswith("sb3-")):
        return lambda config: ActorCritic(PolicyConfig.from_json(config), extractor)
    from expire_span_rl.policies.sb3 import SB3Policy, SB3PolicyConfig, policy_class  # a second, and only for baselines

    policy_class(network)
    return lambda config: SB3Policy(SB3PolicyConfig.from_json(config))


def policy_path(path: str | Path) -> Path:
    """The policy file that `path`, a file or a run directory, means. Raises PolicyFileError if there is none."""
    path = Path(path)
    if path.is_dir():
        file = path / "policy.safetensors"
        if not file.is_file():
            raise PolicyFileError(f"{path}: expected a run directory with policy.safetensors, which it does not have")
        return file
    if not path.is_file():
        raise PolicyFileError(f"{path}: expected a policy file or a run directory, found nothing there")
    return path
