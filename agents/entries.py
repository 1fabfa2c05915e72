"""Entries of `AGENTS`: what a command line asks of an agent before torch is imported, and how its trainer is built."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from expire_span_rl.agents.settings import ForgettingConfig
from expire_span_rl.registry import Entry

if TYPE_CHECKING:
    from expire_span_rl.agents.interfaces import TrainingLoop
    from expire_span_rl.agents.rollout import RolloutSource
    from expire_span_rl.protocols import LearningPolicy, Policy

REWARDS, TARGETS = "rewards", "targets"


@dataclass(frozen=True)
class Network:
    """A policy of another library, ready to be trained by an algorithm of that library."""

    env: Any
    """The environments as that library takes them."""
    policy_class: type
    policy_kwargs: dict[str, Any]
    as_policy: Callable[[Any], Policy]
    """What makes one of our policies of the trained network."""


@dataclass(frozen=True)
class AgentInputs:
    """What an agent is built from. Agents name no policy and no environment of ours, so they get what makes them."""

    env: Any
    """Gymnasium's `VectorEnv`, wrapped as a policy expects."""
    config: Any
    """The agent's own `Config`."""
    forgetting: ForgettingConfig
    total_timesteps: int
    seed: int
    """Seed of weights, actions and minibatches."""
    env_seed: int
    """Seed of the first environment."""
    device: str
    make_policy: Callable[[], LearningPolicy]
    """Makes a policy with the chosen memory kind."""
    make_actors: Callable[[LearningPolicy, bool], RolloutSource]
    """Starts actors in other processes that play with a policy. Whether their rollouts have `reward_outputs` is the
    second argument. Raises ValueError where that cannot be."""
    make_network: Callable[[str], Network]
    """Makes a policy of another library, by its name. Raises ValueError, one line, if its package is not installed."""


@dataclass(frozen=True)
class AgentEntry(Entry, ABC):
    """An agent by name."""

    Config: type
    """The agent's settings, a frozen dataclass."""
    learns_from: str = REWARDS
    """REWARDS, or TARGETS: the right actions, in environments that say which they are."""

    takes_memory_kind: ClassVar[bool]
    """Whether the user chooses the memory kind of its policy."""

    @abstractmethod
    def memory_names(self, kinds: Iterable[str]) -> tuple[str, ...]:
        """The names that may stand for the memory of its policy. kinds: all memory kinds."""

    @abstractmethod
    def build(self, inputs: AgentInputs) -> tuple[TrainingLoop, Policy]:
        """The trainer, and the policy that it trains. Raises ValueError, one line, for inputs that do not fit."""


@dataclass(frozen=True)
class LearnerEntry(AgentEntry):
    """A `Learner`: it trains a policy of ours with any memory kind."""

    takes_memory_kind: ClassVar[bool] = True

    def memory_names(self, kinds: Iterable[str]) -> tuple[str, ...]:
        return tuple(kinds)

    def build(self, inputs: AgentInputs) -> tuple[TrainingLoop, Policy]:
        from expire_span_rl.agents.training import Trainer

        env, policy = inputs.env, inputs.make_policy()
        learner = self.load()(policy, inputs.config, env.num_envs, inputs.seed, env.memory_horizon)
        trainer = Trainer(
            env,
            policy,
            learner,
            forgetting=inputs.forgetting,
            total=inputs.total_timesteps,
            seed=inputs.env_seed,
            source=learner.make_source(inputs),
        )
        return trainer, policy


@dataclass(frozen=True)
class BaselineEntry(AgentEntry):
    """An algorithm of Stable-Baselines3 or sb3-contrib: it brings its own policy."""

    network: str = ""
    """The name of that policy, which stands for the memory kind."""

    takes_memory_kind: ClassVar[bool] = False

    def memory_names(self, kinds: Iterable[str]) -> tuple[str, ...]:
        return (self.network,)

    def build(self, inputs: AgentInputs) -> tuple[TrainingLoop, Policy]:
        network = inputs.make_network(self.network)
        from expire_span_rl.agents.sb3 import SB3Trainer

        trainer = SB3Trainer(
            network,
            algorithm=self.load(),
            config=inputs.config,
            total=inputs.total_timesteps,
            seed=inputs.seed,
            env_seed=inputs.env_seed,
            device=inputs.device,
        )
        return trainer, network.as_policy(trainer.algorithm.policy)


def entry_of(agent: Any) -> AgentEntry:
    """The entry of a `Learner`, a class. Raises TypeError for anything else."""
    from expire_span_rl.agents.learner import Learner

    if not (isinstance(agent, type) and issubclass(agent, Learner)):
        raise TypeError(f"AGENTS: expected a Learner, which is a class, or an AgentEntry, got {agent!r}")
    return LearnerEntry(agent, Config=agent.Config, learns_from=agent.learns_from)
