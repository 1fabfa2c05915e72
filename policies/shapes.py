"""The tensors of a policy's config, computed before any of them exists: a stranger's file may ask for more than the
machine's memory.

The config is checked first. The policy is then built without values, on torch's meta device.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, get_type_hints

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from expire_span_rl.checks import LARGEST_SETTING, quoted, shown
from expire_span_rl.policies.settings import MAX_LAYERS

MAX_VALUES = 10**7  # of an entry of an observation
MAX_WORDS = 10**5  # of a text
FLOATS = ("F16", "BF16", "F32", "F64")
RANDOM = ("normal_", "uniform_", "trunc_normal_", "xavier_uniform_", "kaiming_uniform_")


class _WithoutValues(TorchFunctionMode):
    """Skips random initialisation. Tensors on the meta device have no values, and the first draw there would import
    modules for a second."""

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in RANDOM:  # a tensor's method, or a function of torch.nn.init
            tensor = args[0] if args else kwargs["tensor"]
            if tensor.is_meta:
                return tensor
        return (torch.empty if func in (torch.randn, torch.rand) else func)(*args, **kwargs)


def weights_of(make: Callable[[], nn.Module]) -> dict[str, Tensor]:
    """The weights, by name, of the module that `make` builds: shapes and types without values. They take no memory."""
    with torch.device("meta"), _WithoutValues():
        return make().state_dict()


def check_numbers(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises ValueError, one line, for numbers of a policy file's config that do not fit its tensors, or that no policy
    has. shapes: of the tensors, by name.

    A config that passes is quickly built without values.
    """
    sizes = {size for shape in shapes.values() for size in shape}
    max_size = max(
        sizes, default=0
    )  # each number of an entry has a column in some tensor, except in pictures and texts
    for name, entry in dict(config["observation"]).items():
        limit = {"picture": MAX_VALUES, "words": MAX_WORDS}.get(entry["kind"], max_size)
        if config.get("features_extractor"):
            limit = MAX_VALUES
        _check_count(f"observation {quoted(name, 60)}", entry.get("shape", ()), limit)
    actions = config.get("actions", 0)
    if isinstance(actions, Mapping):
        _check_count("actions", actions.get("shape", ()), max_size)
    core = config.get("core") or {}
    layers = core.get("num_layers", 0)
    max_layers = min(MAX_LAYERS, len(shapes))
    if isinstance(layers, int) and layers > max_layers:
        raise ValueError(f"num_layers: expected at most {max_layers}, got {shown(layers, 60)}")
    width = core.get("width", config.get("width", 0))
    if isinstance(width, int) and width and width not in sizes:
        raise ValueError(f"width: expected a size of some tensor of the file, got {shown(width, 60)}")


def _check_count(name: str, shape: Any, limit: int) -> None:
    """Raises ValueError for a shape of more than `limit` values, or for anything that is no shape."""
    is_sequence = isinstance(shape, (list, tuple))
    if not is_sequence or not all(type(size) is int and 0 <= size <= MAX_VALUES for size in shape):
        raise ValueError(f"{name}: expected a shape of whole numbers up to {MAX_VALUES:,}, got {shown(shape, 60)}")
    if math.prod(shape) > limit:
        raise ValueError(f"{name}: expected at most {limit:,} values, got {shown(shape, 60)}")


def settings_of(kind: type, values: Mapping[str, Any]) -> Any:
    """The settings, a dataclass `kind`, that a file has as JSON. Settings that did not exist when the file was written
    have the values of the dataclass's `EARLIER`, if it has any.

    Raises ValueError, one line, for a value of another type than the field's or a number that no setting has, and
    TypeError for an unknown or missing name.
    """
    values = {**getattr(kind, "EARLIER", {}), **values}
    hints = get_type_hints(kind) if dataclasses.is_dataclass(kind) else {}
    for name, value in values.items():
        hint = hints.get(name)
        if hint in (int, float) and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise ValueError(f"{quoted(name, 60)}: expected a number, got {shown(value, 60)}")
        if hint is bool and not isinstance(value, bool):
            raise ValueError(f"{quoted(name, 60)}: expected true or false, got {shown(value, 60)}")
        if isinstance(value, (int, float)) and not abs(value) <= LARGEST_SETTING:
            raise ValueError(f"{quoted(name, 60)}: expected a number up to {LARGEST_SETTING:,}, got {shown(value, 60)}")
    return kind(**values)


def check_tensors(
    expected: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], types: Mapping[str, str]
) -> None:
    """Raises ValueError, one line, for the first tensor that is missing, unknown, of another shape, or of whole numbers
    instead of floats. types: safetensors' names of them."""
    for name in sorted(expected.keys() | shapes.keys()):
        shape = tuple(expected[name].shape) if name in expected else None
        if shape != shapes.get(name):
            file_shape = _format_shape(shapes.get(name))
            raise ValueError(
                f"tensor {quoted(name, 60)}: the config asks for {_format_shape(shape)}, the file has {file_shape}"
            )
        if expected[name].is_floating_point() and types[name] not in FLOATS:
            raise ValueError(f"tensor {quoted(name, 60)}: expected one of {', '.join(FLOATS)}, got {types[name]}")


def _format_shape(shape: tuple[int, ...] | None) -> str:
    return "none" if shape is None else shown(list(shape), 60)


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raises ValueError, one line, for the first tensor that has a NaN or an infinity."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ValueError(f"tensor {quoted(name, 60)}: expected finite numbers, got NaN or infinity")
