"""What an agent is: a policy whose recurrent core remembers. `ActorCritic` is the contract that agents see."""

from policies.actor_critic import ActorCritic, PolicyConfig, core_config, sample
from policies.encoders import as_tensors, observation_spec
from policies.io import PolicyFileError, load_policy, save_policy
from policies.memory import KINDS, Memory

__all__ = [
    "KINDS",
    "ActorCritic",
    "Memory",
    "PolicyConfig",
    "PolicyFileError",
    "as_tensors",
    "core_config",
    "load_policy",
    "observation_spec",
    "sample",
    "save_policy",
]
