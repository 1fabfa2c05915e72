"""Memory kinds by name. A new kind is one file beside this one and one line here."""

from policies.memory.adaptive_span import AdaptiveSpan
from policies.memory.base import LayerMemory, Memory, MemoryKind
from policies.memory.compressive import Compressive
from policies.memory.expire_span import ExpireSpan
from policies.memory.none import NoMemory
from policies.memory.transformer_xl import TransformerXL

KINDS: dict[str, type[MemoryKind]] = {
    "expire_span": ExpireSpan,
    "transformer_xl": TransformerXL,
    "adaptive_span": AdaptiveSpan,
    "compressive": Compressive,
    "none": NoMemory,
}

__all__ = ["KINDS", "LayerMemory", "Memory", "MemoryKind"]
