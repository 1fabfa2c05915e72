"""Entries of `KINDS`: what a command line asks of a memory kind before torch is imported, and how its core is built."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from expire_span_rl.registry import Entry

if TYPE_CHECKING:
    from expire_span_rl.policies.core import MemoryCore


@dataclass(frozen=True)
class MemoryEntry(Entry, ABC):
    """A memory kind by name. Attributes equal those of the class."""

    Config: type
    """The kind's own settings, a frozen dataclass."""
    CoreConfig: type
    """The settings of the core that remembers this way, a frozen dataclass."""
    stores: bool = True
    """Whether it has slots, which can be counted and looked at."""
    supports_forgetting: bool = False
    """Whether pressure brings its live memories down."""

    @abstractmethod
    def build(self, core_config: Any, memory_config: Any) -> MemoryCore:
        """The policy's core. core_config: a `CoreConfig`; memory_config: a `Config`."""


@dataclass(frozen=True)
class LayerEntry(MemoryEntry):
    """A `MemoryKind`: the core is a Transformer, with one instance of the kind per layer."""

    def build(self, core_config: Any, memory_config: Any) -> MemoryCore:
        from expire_span_rl.policies.transformer import Transformer

        kind = self.load()
        return Transformer(core_config, lambda: kind(core_config.width, core_config.num_heads, memory_config))


@dataclass(frozen=True)
class CoreEntry(MemoryEntry):
    """A core of its own, a `MemoryCore`, such as the GRU."""

    def build(self, core_config: Any, memory_config: Any) -> MemoryCore:
        return self.load()(core_config, memory_config)


def entry_of(kind: type) -> MemoryEntry:
    """The entry of a class: a `MemoryKind`, or else a core of its own."""
    from expire_span_rl.policies.memory.kind import MemoryKind

    make = LayerEntry if issubclass(kind, MemoryKind) else CoreEntry
    attributes: Any = kind  # both bases declare these
    return make(
        kind,
        Config=attributes.Config,
        CoreConfig=attributes.CoreConfig,
        stores=attributes.stores,
        supports_forgetting=attributes.supports_forgetting,
    )
