"""How a policy learns. `AGENTS` names the algorithms; `Trainer` is the loop that they share."""

from agents.forgetting import ForgettingConfig, ForgettingController
from agents.ppo import PPO, PPOConfig
from agents.training import Trainer

AGENTS = {"ppo": PPO}

__all__ = ["AGENTS", "PPO", "ForgettingConfig", "ForgettingController", "PPOConfig", "Trainer"]
