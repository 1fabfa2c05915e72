"""Memory kinds by name. A new kind is one file beside this one, its settings in `policies.settings`, and one line here.

A kind says how the layers of a Transformer remember (a `MemoryKind`), or is a core of its own (a `policies.core.MemoryCore`,
such as the GRU in `policies.recurrent`). One from outside this package brings its own `Config`: `KINDS["mine"] = MyKind`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from expire_span_rl.policies import settings
from expire_span_rl.registry import Entry, Registry, lazily

if TYPE_CHECKING:
    from expire_span_rl.policies.memory.kind import MemoryKind
    from expire_span_rl.policies.memory.state import LayerMemory, Memory


def _kind(target: str, config: type, supports_forgetting: bool = False) -> Entry:
    """supports_forgetting: whether pressure brings its live memories down."""
    module = f"expire_span_rl.policies.memory.{target}"
    return Entry(
        module, {"Config": config, "CoreConfig": settings.TransformerConfig, "supports_forgetting": supports_forgetting}
    )


def _recurrent(target: str, config: type, core: type = settings.RecurrentConfig) -> Entry:
    module = f"expire_span_rl.policies.recurrent.{target}"
    return Entry(module, {"Config": config, "CoreConfig": core, "supports_forgetting": False})


KINDS = Registry(
    {
        "expire_span": _kind("expire_span:ExpireSpan", settings.ExpireSpanConfig, supports_forgetting=True),
        "transformer_xl": _kind("transformer_xl:TransformerXL", settings.TransformerXLConfig),
        "adaptive_span": _kind("adaptive_span:AdaptiveSpan", settings.AdaptiveSpanConfig, supports_forgetting=True),
        "compressive": _kind("compressive:Compressive", settings.CompressiveConfig),
        "gru": _recurrent("gru:GRU", settings.GRUConfig),
        "lstm": _recurrent("lstm:LSTM", settings.LSTMConfig),
        "lru": _recurrent("lru:LRU", settings.LRUConfig, settings.LRUCoreConfig),
        "none": _kind("none:NoMemory", settings.NoMemoryConfig),
    }
)

__all__ = ["KINDS", "LayerMemory", "Memory", "MemoryKind"]


__getattr__ = lazily(__name__, {"LayerMemory": "state", "Memory": "state", "MemoryKind": "kind"})
