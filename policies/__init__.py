"""What an agent is: a policy whose recurrent core remembers. `ActorCritic` is the contract that agents see.

Everything but `KINDS`, `NETWORKS` and `core_config` needs torch, and is imported when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from expire_span_rl.policies.memory import KINDS
from expire_span_rl.policies.networks import NETWORKS
from expire_span_rl.registry import lazily

if TYPE_CHECKING:
    from expire_span_rl.policies.actor_critic import ActorCritic
    from expire_span_rl.policies.compatibility import check_spaces
    from expire_span_rl.policies.encoders import as_tensors, observation_spec
    from expire_span_rl.policies.io import PolicyFileError, load_policy, save_policy
    from expire_span_rl.policies.memory.state import Memory
    from expire_span_rl.policies.policy_config import PolicyConfig

_LAZY = {
    "ActorCritic": "actor_critic",
    "Memory": "memory.state",
    "PolicyConfig": "policy_config",
    "PolicyFileError": "io",
    "as_tensors": "encoders",
    "check_spaces": "compatibility",
    "load_policy": "io",
    "observation_spec": "encoders",
    "save_policy": "io",
}
"""Names by the module of this package that has them."""

__all__ = [
    "KINDS",
    "NETWORKS",
    "ActorCritic",
    "Memory",
    "PolicyConfig",
    "PolicyFileError",
    "as_tensors",
    "check_spaces",
    "core_config",
    "load_policy",
    "observation_spec",
    "save_policy",
]


def core_config(memory: str) -> type:
    """The class of the core's settings for a memory kind, a name in `KINDS`."""
    return KINDS[memory].CoreConfig


__getattr__ = lazily(__name__, _LAZY)
