"""Networks of other libraries that stand in place of a memory kind. Agents that bring their own policy name one.

Nothing here imports torch, so that a command line answers at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from expire_span_rl.registry import Entry

if TYPE_CHECKING:
    from expire_span_rl.policies.sb3 import SB3Policy


@dataclass(frozen=True)
class NetworkEntry(Entry):
    """An actor-critic network of Stable-Baselines3 or sb3-contrib."""

    label: str
    """Its name and the agent that trains it, for messages."""
    package: str
    """The package that has it."""
    recurrent: bool = False
    """Whether it has an LSTM each for actor and critic."""

    def load(self) -> Any:
        """The network's class. Raises ValueError, one line, if its package is not installed."""
        try:
            return super().load()
        except ImportError:
            raise ValueError(
                f"{self.label}: expected the package {self.package}, which is not installed: "
                "pip install 'expire-span-rl[baselines]'"
            ) from None

    def reader(self) -> Callable[[Mapping[str, Any]], SB3Policy]:
        """What builds a policy from the config of a policy file. Raises ValueError as `load`."""
        self.load()
        from expire_span_rl.policies.sb3 import SB3Policy, SB3PolicyConfig

        return lambda config: SB3Policy(SB3PolicyConfig.from_json(config))


NETWORKS: dict[str, NetworkEntry] = {
    "sb3-mlp": NetworkEntry(
        "stable_baselines3.common.policies:ActorCriticPolicy",
        label="sb3-mlp (sb3-ppo)",
        package="stable-baselines3",
    ),
    "sb3-lstm": NetworkEntry(
        "sb3_contrib.common.recurrent.policies:RecurrentActorCriticPolicy",
        label="sb3-lstm (sb3-recurrent-ppo)",
        package="sb3-contrib",
        recurrent=True,
    ),
}
"""By the name that stands for the memory kind in settings and policy files."""
