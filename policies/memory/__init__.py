"""Memory kinds by name. A new kind is one file beside this one, its settings in `policies.settings`, and one line here.

A kind says how the layers of a Transformer remember (a `MemoryKind`), or is a core of its own (a
`policies.core.MemoryCore`, such as the GRU in `policies.recurrent`). A kind from outside this package brings its own
`Config`: `KINDS["mine"] = MyKind`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from expire_span_rl.policies import settings
from expire_span_rl.policies.memory.entries import CoreEntry, LayerEntry, MemoryEntry, entry_of
from expire_span_rl.registry import Registry, lazily

if TYPE_CHECKING:
    from expire_span_rl.policies.memory.kind import MemoryKind
    from expire_span_rl.policies.memory.state import LayerMemory, Memory


def _layers(target: str, config: type, *, stores: bool = True, supports_forgetting: bool = False) -> MemoryEntry:
    """A memory kind of the Transformer. target: "module:Class" in this package."""
    return LayerEntry(
        f"expire_span_rl.policies.memory.{target}",
        Config=config,
        CoreConfig=settings.TransformerConfig,
        stores=stores,
        supports_forgetting=supports_forgetting,
    )


def _recurrent(target: str, config: type, core: type = settings.RecurrentConfig) -> MemoryEntry:
    """A recurrent core. target: "module:Class" in `policies.recurrent`."""
    return CoreEntry(
        f"expire_span_rl.policies.recurrent.{target}",
        Config=config,
        CoreConfig=core,
        stores=False,
    )


KINDS: Registry[MemoryEntry] = Registry(
    {
        "expire_span": _layers("expire_span:ExpireSpan", settings.ExpireSpanConfig, supports_forgetting=True),
        "transformer_xl": _layers("transformer_xl:TransformerXL", settings.TransformerXLConfig),
        "adaptive_span": _layers("adaptive_span:AdaptiveSpan", settings.AdaptiveSpanConfig, supports_forgetting=True),
        "compressive": _layers("compressive:Compressive", settings.CompressiveConfig),
        "gru": _recurrent("gru:GRU", settings.GRUConfig),
        "lstm": _recurrent("lstm:LSTM", settings.LSTMConfig),
        "lru": _recurrent("lru:LRU", settings.LRUConfig, settings.LRUCoreConfig),
        "none": _layers("none:NoMemory", settings.NoMemoryConfig, stores=False),
    },
    wrap=entry_of,
)

__all__ = ["KINDS", "LayerMemory", "Memory", "MemoryEntry", "MemoryKind"]


__getattr__ = lazily(__name__, {"LayerMemory": "state", "Memory": "state", "MemoryKind": "kind"})
