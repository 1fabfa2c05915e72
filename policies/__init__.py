"""What an agent is: a policy whose recurrent core remembers. `ActorCritic` is the contract that agents see."""

from policies.actor_critic import ActorCritic, PolicyConfig, sample
from policies.encoders import as_tensors, observation_spec
from policies.memory import KINDS, Memory

__all__ = ["KINDS", "ActorCritic", "Memory", "PolicyConfig", "as_tensors", "observation_spec", "sample"]
