"""How a policy learns. `AGENTS` has the algorithms by name; `Trainer` is the loop that they share.

An agent of your own is a `Learner`: `AGENTS["mine"] = MyLearner`. What needs torch is imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from expire_span_rl.agents.entries import (
    REWARDS,
    TARGETS,
    AgentEntry,
    AgentInputs,
    BaselineEntry,
    LearnerEntry,
    Network,
    entry_of,
)
from expire_span_rl.agents.settings import ForgettingConfig, ImpalaConfig, PPOConfig, SB3Config, SupervisedConfig
from expire_span_rl.registry import Registry, lazily

if TYPE_CHECKING:
    from expire_span_rl.agents.blocks import BlockSource
    from expire_span_rl.agents.forgetting import ForgettingController
    from expire_span_rl.agents.impala import Impala
    from expire_span_rl.agents.interfaces import TrainingLoop
    from expire_span_rl.agents.ppo import PPO
    from expire_span_rl.agents.rollout import RolloutSource
    from expire_span_rl.agents.sb3 import SB3Trainer
    from expire_span_rl.agents.supervised import Supervised
    from expire_span_rl.agents.training import Trainer


AGENTS: Registry[AgentEntry] = Registry(
    {
        "ppo": LearnerEntry("expire_span_rl.agents.ppo:PPO", Config=PPOConfig),
        "impala": LearnerEntry("expire_span_rl.agents.impala:Impala", Config=ImpalaConfig),
        "supervised": LearnerEntry(
            "expire_span_rl.agents.supervised:Supervised",
            Config=SupervisedConfig,
            learns_from=TARGETS,
        ),
        "sb3-ppo": BaselineEntry("stable_baselines3:PPO", Config=SB3Config, network="sb3-mlp"),
        "sb3-recurrent-ppo": BaselineEntry("sb3_contrib:RecurrentPPO", Config=SB3Config, network="sb3-lstm"),
    },
    wrap=entry_of,
)
_LAZY = {
    "ForgettingController": "forgetting",
    "Impala": "impala",
    "BlockSource": "blocks",
    "PPO": "ppo",
    "RolloutSource": "rollout",
    "SB3Trainer": "sb3",
    "Supervised": "supervised",
    "Trainer": "training",
    "TrainingLoop": "interfaces",
}
"""Names by the module of this package that has them."""

__all__ = [
    "AGENTS",
    "PPO",
    "REWARDS",
    "TARGETS",
    "AgentEntry",
    "AgentInputs",
    "BaselineEntry",
    "BlockSource",
    "ForgettingConfig",
    "ForgettingController",
    "Impala",
    "ImpalaConfig",
    "LearnerEntry",
    "Network",
    "PPOConfig",
    "RolloutSource",
    "SB3Trainer",
    "Supervised",
    "SupervisedConfig",
    "Trainer",
    "TrainingLoop",
]


__getattr__ = lazily(__name__, _LAZY)
