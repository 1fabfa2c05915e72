"""What is imported when it is first used, so that a command line answers at once: names of a package, entries of a
registry."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any


def lazily(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a package (PEP 562) some of whose names are imported when they are first asked for.

    package: its `__name__`; modules: by name, the module that has it, seen from the package.
    """

    def __getattr__(name: str) -> Any:
        if name in modules:
            return getattr(importlib.import_module(f"{package}.{modules[name]}"), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return __getattr__


@dataclass(frozen=True)
class Entry:
    """A class that is not imported yet, and the class attributes that a command line asks for before it is."""

    target: str
    """Where the class is: "module:Class"."""
    attributes: Mapping[str, Any]
    """Class attributes by name, equal to those of the class."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self.attributes[name]
        except KeyError:
            raise AttributeError(f"{self.target} is not imported: it tells {', '.join(self.attributes)} only") from None

    def load(self) -> Any:
        """The class itself."""
        module, name = self.target.split(":")
        return getattr(importlib.import_module(module), name)


class Registry(MutableMapping[str, Any]):
    """Classes by name. `registry[name]` imports the class; `registry.describe(name)` does not.

    A class of your own is added by `registry["name"] = Class`.
    """

    def __init__(self, entries: Mapping[str, Any]):
        """entries: an `Entry` or a class by name."""
        self._entries = dict(entries)

    def __getitem__(self, name: str) -> Any:
        entry = self._entries[name]
        return entry.load() if isinstance(entry, Entry) else entry

    def __setitem__(self, name: str, value: Any) -> None:
        self._entries[name] = value

    def __delitem__(self, name: str) -> None:
        del self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def describe(self, name: str) -> Any:
        """What has the class attributes that are known without an import: an `Entry`, or the class. Raises KeyError."""
        return self._entries[name]
