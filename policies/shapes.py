"""Which tensors a policy's config asks for, found out before any of them exists: a file from a stranger may ask for
more than there is memory. The config is checked first, then the policy is made of shapes alone, on torch's meta device.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, get_type_hints

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from expire_span_rl.checks import quoted, shown

LARGEST_NUMBER = 2**31 - 1  # of a setting: clocks are int32
MOST_LAYERS = 128
MOST_VALUES = 10**7  # of an entry of an observation
MOST_WORDS = 10**5  # of a text
FLOATS = ("F16", "BF16", "F32", "F64")
RANDOM = ("normal_", "uniform_", "trunc_normal_", "xavier_uniform_", "kaiming_uniform_")


class _WithoutValues(TorchFunctionMode):
    """Tensors on the meta device have no values, so that none need be drawn: the first draw there would import a
    second's worth of modules."""

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in RANDOM:  # a tensor's method, or the function of torch.nn.init
            tensor = args[0] if args else kwargs["tensor"]
            if tensor.is_meta:
                return tensor
        return (torch.empty if func in (torch.randn, torch.rand) else func)(*args, **kwargs)


def weights_of(make: Callable[[], nn.Module]) -> dict[str, Tensor]:
    """The weights, by name, of the module that `make` makes: shapes and types without values, at no cost of memory."""
    with torch.device("meta"), _WithoutValues():
        return make().state_dict()


def check_numbers(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises ValueError, one line, for numbers of a policy file's config that its tensors, `shapes` by name, cannot go
    with, or that no policy has. What it lets through is made of shapes in no time."""
    sizes = {size for shape in shapes.values() for size in shape}
    most = max(sizes, default=0)  # every number that is read has a column in some tensor, but for pictures and texts
    for name, entry in dict(config["observation"]).items():
        special = {"picture": MOST_VALUES, "words": MOST_WORDS}.get(entry["kind"], most)
        limit = MOST_VALUES if config.get("features_extractor") else special
        _check_count(f"observation {quoted(name, 60)}", entry.get("shape", ()), limit)
    actions = config.get("actions", 0)
    if isinstance(actions, Mapping):
        _check_count("actions", actions.get("shape", ()), most)
    core = config.get("core") or {}
    layers, most_layers = core.get("num_layers", 0), min(MOST_LAYERS, len(shapes))
    if isinstance(layers, int) and layers > most_layers:
        raise ValueError(f"num_layers: expected at most {most_layers}, got {shown(layers, 60)}")
    width = core.get("width", config.get("width", 0))
    if isinstance(width, int) and width and width not in sizes:
        raise ValueError(f"width: expected a size of some tensor of the file, got {shown(width, 60)}")


def _check_count(name: str, shape: Any, most: int) -> None:
    """Raises ValueError for a shape of more than `most` values, or that is none."""
    if not isinstance(shape, (list, tuple)) or not all(
        type(size) is int and 0 <= size <= MOST_VALUES for size in shape
    ):
        raise ValueError(f"{name}: expected a shape of whole numbers up to {MOST_VALUES:,}, got {shown(shape, 60)}")
    if math.prod(shape) > most:
        raise ValueError(f"{name}: expected at most {most:,} values, got {shown(shape, 60)}")


def settings_of(kind: type, values: Mapping[str, Any]) -> Any:
    """The settings, a dataclass `kind`, that a file has as JSON. Raises ValueError, one line, for a value of another
    type than the field's or a number that no setting has; TypeError for a name that there is not, or one that is
    missing."""
    hints = get_type_hints(kind) if dataclasses.is_dataclass(kind) else {}
    for name, value in dict(values).items():
        hint = hints.get(name)
        if hint in (int, float) and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise ValueError(f"{quoted(name, 60)}: expected a number, got {shown(value, 60)}")
        if hint is bool and not isinstance(value, bool):
            raise ValueError(f"{quoted(name, 60)}: expected true or false, got {shown(value, 60)}")
        if isinstance(value, (int, float)) and not abs(value) <= LARGEST_NUMBER:
            raise ValueError(f"{quoted(name, 60)}: expected a number up to {LARGEST_NUMBER:,}, got {shown(value, 60)}")
    return kind(**values)


def check_tensors(
    expected: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], types: Mapping[str, str]
) -> None:
    """Raises ValueError, one line, for the first tensor that is missing, too many, of another shape, or of whole
    numbers where others belong. types: as safetensors calls them."""
    for name in sorted(expected.keys() | shapes.keys()):
        wanted = tuple(expected[name].shape) if name in expected else None
        if wanted != shapes.get(name):
            found = _shape(shapes.get(name))
            raise ValueError(f"tensor {quoted(name, 60)}: the config asks for {_shape(wanted)}, the file has {found}")
        if expected[name].is_floating_point() and types[name] not in FLOATS:
            raise ValueError(f"tensor {quoted(name, 60)}: expected one of {', '.join(FLOATS)}, got {types[name]}")


def _shape(shape: tuple[int, ...] | None) -> str:
    return "none" if shape is None else shown(list(shape), 60)


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raises ValueError, one line, for the first tensor that holds a NaN or an infinity."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ValueError(f"tensor {quoted(name, 60)}: expected finite numbers, got NaN or infinity")
