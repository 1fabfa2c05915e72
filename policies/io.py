"""Policies on disk: one safetensors file with the weights, and in its header, as JSON, all that is needed to use them.

Nothing is ever unpickled, so that a file from a stranger cannot run code. What a file asks for is compared with the
shapes of the tensors that it has before anything is made of it. Files are written by `expire_span_rl.files`.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from expire_span_rl.checks import shown
from expire_span_rl.files import write_atomically
from expire_span_rl.policies.actor_critic import ActorCritic, PolicyConfig
from expire_span_rl.policies.encoders.extractor import FeaturesExtractor
from expire_span_rl.policies.memory import KINDS
from expire_span_rl.policies.networks import NETWORKS
from expire_span_rl.policies.shapes import check_finite, check_numbers, check_tensors, weights_of
from expire_span_rl.protocols import Policy

FORMAT = "expire-span-rl/policy"
VERSION = 2
READABLE = (1, 2)
"""Versions that are read. 1: actions are told by their number, without their space."""
LONGEST_HEADER = 10_000_000  # bytes: of a million tensors or so
LONGEST_REASON = 150  # characters of why a file is refused

__all__ = ["PolicyFileError", "load_policy", "policy_info", "policy_path", "save_policy", "write_atomically"]


class PolicyFileError(ValueError):
    """A file that is no policy, or not one that this version can read. One line."""


def save_policy(
    policy: Policy, path: str | Path, info: Mapping[str, Any], weights: Mapping[str, Tensor] | None = None
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

    extractor: the `FeaturesExtractor` of a policy that was trained with one: a file names its class but imports
    nothing. Raises PolicyFileError, one line, for a file that is missing, truncated, foreign, written by a newer
    version, whose config and tensors do not belong together, or whose weights are not finite. Nothing is made before
    these are known to agree.
    """
    file = policy_path(path)
    with _opened(file, str(device)) as opened:
        header = _header(file, opened)
        make = _maker(file, header, extractor)
        try:
            config = header["config"]
            tensors = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118, it is no dict
            shapes = {name: tuple(tensor.get_shape()) for name, tensor in tensors.items()}
            check_numbers(config, shapes)
            expected = _expected(config, make)
            if expected is not None:
                check_tensors(expected, shapes, {name: tensor.get_dtype() for name, tensor in tensors.items()})
            policy = make(config)
            policy.load_state_dict({name: opened.get_tensor(name) for name in shapes})
            check_finite(policy.state_dict())
        except Exception as error:  # noqa: BLE001, whatever a stranger's config makes of a constructor
            reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
            raise PolicyFileError(
                f"{shown(file)}: expected a config and weights that belong together ({shown(reason, LONGEST_REASON)})"
            ) from None
    return policy.to(device).eval(), _info(file, header)


def policy_info(path: str | Path) -> dict[str, Any]:
    """What the policy file at `path` says of its policy: the info that it was saved with. Raises PolicyFileError."""
    file = policy_path(path)
    with _opened(file, "cpu") as opened:
        return _info(file, _header(file, opened))


def _info(file: Path, header: Mapping[str, Any]) -> dict[str, Any]:
    info = header.get("info")
    if not isinstance(info, dict):
        raise PolicyFileError(f"{shown(file)}: expected what the policy was trained in, the file does not say")
    return info


def _opened(file: Path, device: str) -> Any:
    """The open file; its tensors are not read yet. Raises PolicyFileError."""
    try:
        with file.open("rb") as start:
            size = start.read(8)
        if len(size) == 8 and struct.unpack("<Q", size)[0] > LONGEST_HEADER:
            raise OSError(f"a header of more than {LONGEST_HEADER:,} bytes")
        return safe_open(file, "pt", device=device)
    except (SafetensorError, OSError) as error:
        raise PolicyFileError(
            f"{shown(file)}: expected a whole safetensors file, could not read it ({shown(error, LONGEST_REASON)})"
        ) from None


def _header(file: Path, opened: Any) -> dict[str, Any]:
    """The header that `save_policy` wrote. Raises PolicyFileError."""
    try:
        header = json.loads((opened.metadata() or {})["policy"])
        ours = header["format"] == FORMAT
    except (KeyError, TypeError, ValueError, RecursionError):  # ValueError: no JSON, or a number of 5,000 digits
        ours = False
    if not ours:
        raise PolicyFileError(f"{shown(file)}: expected a policy saved by this toolkit, got another safetensors file")
    if header.get("version") not in READABLE:
        raise PolicyFileError(
            f"{shown(file)}: expected format version {VERSION} or older, got {shown(header.get('version'), 60)}: "
            "update the toolkit"
        )
    return header


def _expected(config: Mapping[str, Any], make: Callable[[Mapping[str, Any]], Any]) -> dict[str, Tensor] | None:
    """The weights that the config asks for, without values. None for a kind from outside this package that cannot be
    made so: one that computes with values in its constructor."""
    try:
        return weights_of(lambda: make(config))
    except Exception:
        if config["memory"] not in KINDS or KINDS[config["memory"]].is_builtin:
            raise
        return None


def _maker(
    file: Path, header: Mapping[str, Any], extractor: FeaturesExtractor | None
) -> Callable[[Mapping[str, Any]], Any]:
    """What makes a policy of the header's config. Raises ValueError, one line, if that takes a package or a class that
    is not there."""
    config = header["config"] if isinstance(header.get("config"), dict) else {}
    network, named = config.get("memory"), config.get("features_extractor")
    if named and extractor is None:
        raise PolicyFileError(
            f"{shown(file)}: expected features_extractor, the policy's own, {shown(named, 100)}, which a file cannot bring"
        )
    if isinstance(network, str) and network in NETWORKS:
        return NETWORKS[network].reader()
    return lambda config: ActorCritic(PolicyConfig.from_json(config), extractor)


def policy_path(path: str | Path) -> Path:
    """The policy file that `path`, a file or a run directory, means. Raises PolicyFileError if there is none."""
    path = Path(path)
    try:
        path.stat()
    except (OSError, ValueError):  # a name too long, or with a character that no file can have, among others
        raise PolicyFileError(
            f"{shown(path)}: expected a policy file or a run directory, found nothing there"
        ) from None
    if path.is_dir():
        file = path / "policy.safetensors"
        if not file.is_file():
            raise PolicyFileError(
                f"{shown(path)}: expected a run directory with policy.safetensors, which it does not have"
            )
        return file
    if not path.is_file():
        raise PolicyFileError(f"{shown(path)}: expected a policy file or a run directory, found nothing there")
    return path
