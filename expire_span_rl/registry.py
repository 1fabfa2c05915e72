"""Imports on first use, so that a command line answers at once: names of a package, and entries of a registry."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar


def lazily(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a package (PEP 562) some of whose names are imported when they are first asked for.

    package: its `__name__`; modules: by name, the module that has it, relative to the package.
    """

    def __getattr__(name: str) -> Any:
        if name in modules:
            return getattr(importlib.import_module(f"{package}.{modules[name]}"), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return __getattr__


@dataclass(frozen=True)
class Entry:
    """What a registry knows of a class before the class is imported. Subclasses add attributes and a `build`."""

    target: str | type
    """The class, or where it is: "module:Class"."""

    @property
    def is_builtin(self) -> bool:
        """Whether the toolkit ships the class. A user registers a class that exists."""
        return isinstance(self.target, str)

    @property
    def class_name(self) -> str:
        """The name of the class, without an import."""
        return self.target.__name__ if isinstance(self.target, type) else self.target.partition(":")[2]

    def load(self) -> Any:
        """The class itself. Raises ImportError if a package is missing."""
        if isinstance(self.target, type):
            return self.target
        module, name = self.target.split(":")
        return getattr(importlib.import_module(module), name)


AnyEntry = TypeVar("AnyEntry", bound=Entry)


class Registry(MutableMapping[str, AnyEntry], Generic[AnyEntry]):
    """Entries of one type by name. `registry["mine"] = MyClass` adds a class of the user's own in an entry."""

    def __init__(self, entries: Mapping[str, AnyEntry], wrap: Callable[[Any], AnyEntry]):
        """wrap: makes the entry of a class."""
        self._entries = dict(entries)
        self._wrap = wrap

    def __getitem__(self, name: str) -> AnyEntry:
        return self._entries[name]

    def __setitem__(self, name: str, value: AnyEntry | type) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        self._entries[name] = value if isinstance(value, Entry) else self._wrap(value)

    def __delitem__(self, name: str) -> None:
        del self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries
