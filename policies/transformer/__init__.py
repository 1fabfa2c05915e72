"""The Transformer core: one attention, whose layers remember as a memory kind says."""

from expire_span_rl.policies.transformer.model import Transformer

__all__ = ["Transformer"]
