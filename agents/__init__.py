"""How a policy learns. `AGENTS` names the algorithms; `Trainer` is the loop that they share."""

from agents.forgetting import ForgettingConfig, ForgettingController
from agents.impala import Impala, ImpalaConfig
from agents.ppo import PPO, PPOConfig
from agents.sb3 import SB3PPO, SB3RecurrentPPO, SB3Trainer
from agents.training import Trainer

AGENTS = {"ppo": PPO, "impala": Impala, "sb3-ppo": SB3PPO, "sb3-recurrent-ppo": SB3RecurrentPPO}

__all__ = [
    "AGENTS",
    "PPO",
    "ForgettingConfig",
    "ForgettingController",
    "Impala",
    "ImpalaConfig",
    "PPOConfig",
    "SB3Trainer",
    "Trainer",
]
