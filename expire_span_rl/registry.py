"""Registries whose built-in entries are imported when they are first used, so that a command line can list them at once."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any


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
