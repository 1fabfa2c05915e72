"""Memory kinds by name. A new kind is one file beside this one and one line here.

A kind says how the layers of a Transformer remember (a `MemoryKind`), or is a core of its own (a `policies.core.Core`, such as
the GRU).
"""

from policies.memory.adaptive_span import AdaptiveSpan
from policies.memory.base import LayerMemory, Memory, MemoryKind
from policies.memory.compressive import Compressive
from policies.memory.expire_span import ExpireSpan
from policies.memory.gru import GRU
from policies.memory.none import NoMemory
from policies.memory.transformer_xl import TransformerXL

KINDS: dict[str, type[MemoryKind] | type[GRU]] = {
    "expire_span": ExpireSpan,
    "transformer_xl": TransformerXL,
    "adaptive_span": AdaptiveSpan,
    "compressive": Compressive,
    "gru": GRU,
    "none": NoMemory,
}

__all__ = ["KINDS", "LayerMemory", "Memory", "MemoryKind"]
