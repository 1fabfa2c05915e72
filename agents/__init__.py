"""How a policy learns. `AGENTS` names the algorithms; `Trainer` is the loop that they share.

What needs torch is imported when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from expire_span_rl.agents.settings import ForgettingConfig, ImpalaConfig, PPOConfig, SB3Config, SupervisedConfig
from expire_span_rl.registry import Entry, Registry, lazily

if TYPE_CHECKING:
    from expire_span_rl.agents.blocks import BlockSource
    from expire_span_rl.agents.forgetting import ForgettingController
    from expire_span_rl.agents.impala import Impala
    from expire_span_rl.agents.ppo import PPO
    from expire_span_rl.agents.sb3 import SB3Trainer
    from expire_span_rl.agents.supervised import Supervised
    from expire_span_rl.agents.training import Trainer


def _agent(target: str, config: type, network: str | None = None, supervised: bool = False) -> Entry:
    """network: the policy that a baseline brings; None for an agent that learns any of ours. supervised: it learns
    from what is right, of environments that say so, not from rewards."""
    return Entry(f"expire_span_rl.agents.{target}", {"Config": config, "network": network, "supervised": supervised})


AGENTS = Registry(
    {
        "ppo": _agent("ppo:PPO", PPOConfig),
        "impala": _agent("impala:Impala", ImpalaConfig),
        "supervised": _agent("supervised:Supervised", SupervisedConfig, supervised=True),
        "sb3-ppo": _agent("sb3:SB3PPO", SB3Config, "sb3-mlp"),
        "sb3-recurrent-ppo": _agent("sb3:SB3RecurrentPPO", SB3Config, "sb3-lstm"),
    }
)
_LAZY = {
    "ForgettingController": "forgetting",
    "Impala": "impala",
    "BlockSource": "blocks",
    "PPO": "ppo",
    "SB3Trainer": "sb3",
    "Supervised": "supervised",
    "Trainer": "training",
}
"""Names by the module of this package that has them."""

__all__ = [
    "AGENTS",
    "PPO",
    "BlockSource",
    "ForgettingConfig",
    "ForgettingController",
    "Impala",
    "ImpalaConfig",
    "PPOConfig",
    "SB3Trainer",
    "Supervised",
    "SupervisedConfig",
    "Trainer",
]


__getattr__ = lazily(__name__, _LAZY)
