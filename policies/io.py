"""Policies on disk: one safetensors file with the weights. Its header has, as JSON, all that is needed to use them.

Nothing is ever unpickled, so a file from a stranger cannot run code. The config of a file is compared with the shapes
of its tensors before anything is built from it. Files are written by `expire_span_rl.files`.
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
from expire_span_rl.policies.actor_critic import ActorCritic
from expire_span_rl.policies.encoders.extractor import FeaturesExtractor
from expire_span_rl.policies.memory import KINDS
from expire_span_rl.policies.networks import NETWORKS
from expire_span_rl.policies.policy_config import PolicyConfig
from expire_span_rl.policies.shapes import check_finite, check_numbers, check_tensors, weights_of
from expire_span_rl.protocols import Policy

FORMAT = "expire-span-rl/policy"
VERSION = 2
READABLE = (1, 2)
"""Versions that can be read. Version 1 has the number of actions instead of their space."""
LONGEST_HEADER = 10_000_000  # bytes: enough for about a million tensors
LONGEST_REASON = 150  # characters of the reason why a file is refused

__all__ = ["PolicyFileError", "load_policy", "policy_info", "policy_path", "save_policy", "write_atomically"]


class PolicyFileError(ValueError):
    """A file that is no policy, or a policy that this version cannot read. One line."""


def save_policy(
    policy: Policy, path: str | Path, info: Mapping[str, Any], weights: Mapping[str, Tensor] | None = None
) -> None:
    """Writes `policy` to `path`.

    info: metadata for JSON, which `load_policy` returns: `env`, `env_kwargs`, `agent` and others; weights: written
    instead of the policy's own.
    """
    header = {"format": FORMAT, "version": VERSION, "config": policy.config.to_json(), "info": dict(info)}
    tensors = policy.state_dict() if weights is None else weights
    contiguous = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    write_atomically(path, save(contiguous, {"policy": json.dumps(header)}))


def load_policy(
    path: str | Path, device: str | torch.device = "cpu", extractor: FeaturesExtractor | None = None
) -> tuple[ActorCritic, dict[str, Any]]:
    """The policy in a file, or the `policy.safetensors` of a run directory, and its info.

    extractor: the `FeaturesExtractor` of a policy that was trained with one. A file names its class but imports
    nothing. Raises PolicyFileError, one line, for a file that is missing, truncated, of another format, written by a
    newer version, whose config and tensors do not belong together, or whose weights are not finite. The policy is built
    only after config and tensors were found to agree.
    """
    file = policy_path(path)
    with _open(file, str(device)) as opened:
        header = _read_header(file, opened)
        make = _policy_factory(file, header, extractor)
        try:
            config = header["config"]
            tensors = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118, it is no dict
            shapes = {name: tuple(tensor.get_shape()) for name, tensor in tensors.items()}
            check_numbers(config, shapes)
            expected = _expected_weights(config, make)
            if expected is not None:
                check_tensors(expected, shapes, {name: tensor.get_dtype() for name, tensor in tensors.items()})
            policy = make(config)
            policy.load_state_dict({name: opened.get_tensor(name) for name in shapes})
            check_finite(policy.state_dict())
        except Exception as error:  # noqa: BLE001, a stranger's config may raise anything in a constructor
            reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
            raise PolicyFileError(
                f"{shown(file)}: expected a config and weights that belong together ({shown(reason, LONGEST_REASON)})"
            ) from None
    return policy.to(device).eval(), _read_info(file, header)


def policy_info(path: str | Path) -> dict[str, Any]:
    """The info with which the policy at `path` was saved. Raises PolicyFileError."""
    file = policy_path(path)
    with _open(file, "cpu") as opened:
        return _read_info(file, _read_header(file, opened))


def policy_observation(path: str | Path) -> Any:
    """The observation spec of the policy at `path`, as the file has it, unchecked. Raises PolicyFileError."""
    return _read_config(path).get("observation")


def policy_actions(path: str | Path) -> Any:
    """The spec of its actions, likewise."""
    return _read_config(path).get("actions")


def _read_config(path: str | Path) -> dict[str, Any]:
    """The config in the header, unchecked; {} if there is none. Raises PolicyFileError."""
    file = policy_path(path)
    with _open(file, "cpu") as opened:
        config = _read_header(file, opened).get("config")
    return config if isinstance(config, dict) else {}


def _read_info(file: Path, header: Mapping[str, Any]) -> dict[str, Any]:
    """The info in the header. Raises PolicyFileError."""
    info = header.get("info")
    if not isinstance(info, dict):
        raise PolicyFileError(f"{shown(file)}: expected what the policy was trained in, the file does not say")
    return info


def _open(file: Path, device: str) -> Any:
    """The open file. Its tensors are not read yet. Raises PolicyFileError."""
    try:
        with file.open("rb") as stream:
            size = stream.read(8)
        if len(size) == 8 and struct.unpack("<Q", size)[0] > LONGEST_HEADER:
            raise OSError(f"a header of more than {LONGEST_HEADER:,} bytes, as no such file has")
        return safe_open(file, "pt", device=device)
    except (SafetensorError, OSError) as error:
        raise PolicyFileError(
            f"{shown(file)}: expected a whole safetensors file, could not read it ({shown(error, LONGEST_REASON)})"
        ) from None


def _read_header(file: Path, opened: Any) -> dict[str, Any]:
    """The header that `save_policy` wrote. Raises PolicyFileError."""
    try:
        header = json.loads((opened.metadata() or {})["policy"])
        is_policy = header["format"] == FORMAT
    except (KeyError, TypeError, ValueError, RecursionError):  # ValueError: no JSON, or a number of 5,000 digits
        is_policy = False
    if not is_policy:
        raise PolicyFileError(f"{shown(file)}: expected a policy saved by this toolkit, got another safetensors file")
    if header.get("version") not in READABLE:
        raise PolicyFileError(
            f"{shown(file)}: expected format version {VERSION} or older, got {shown(header.get('version'), 60)}: "
            "update the toolkit"
        )
    return header


def _expected_weights(config: Mapping[str, Any], make: Callable[[Mapping[str, Any]], Any]) -> dict[str, Tensor] | None:
    """The weights of the config's policy, without values. None for a kind from outside this package whose constructor
    computes with values, and therefore fails."""
    try:
        return weights_of(lambda: make(config))
    except Exception:
        if config["memory"] not in KINDS or KINDS[config["memory"]].is_builtin:
            raise
        return None


def _policy_factory(
    file: Path, header: Mapping[str, Any], extractor: FeaturesExtractor | None
) -> Callable[[Mapping[str, Any]], Any]:
    """A function that builds a policy from the header's config. Raises ValueError, one line, if a package or class that
    it needs is missing."""
    config = header["config"] if isinstance(header.get("config"), dict) else {}
    network, extractor_name = config.get("memory"), config.get("features_extractor")
    if extractor_name and extractor is None:
        raise PolicyFileError(
            f"{shown(file)}: expected features_extractor, the policy's own, {shown(extractor_name, 100)}, "
            "which a file cannot bring"
        )
    if isinstance(network, str) and network in NETWORKS:
        return NETWORKS[network].reader()
    return lambda config: ActorCritic(PolicyConfig.from_json(config), extractor)


def policy_path(path: str | Path) -> Path:
    """The policy file at `path`, which is a file or a run directory. Raises PolicyFileError if there is none."""
    path = Path(path)
    try:
        path.stat()
    except (OSError, ValueError):  # also for a name that is too long or has an impossible character
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
