"""The policy: encoder, recurrent core, policy and value heads. A pure function of observation and memory.

T time steps, B environments, A actions, D model width, L layers, F final observations. Observations are dicts of tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from expire_span_rl.policies import core_config
from expire_span_rl.policies.core import Acting, Core, LayerInspection
from expire_span_rl.policies.encoders import Encoder, as_tensors, observation_spec
from expire_span_rl.policies.memory import KINDS
from expire_span_rl.policies.memory.base import Memory, MemoryKind
from expire_span_rl.policies.prediction import NextObservation
from expire_span_rl.policies.transformer import Transformer

Observation = Mapping[str, Tensor]
PREDICT_HORIZON = 64  # predict: steps between two compactions of the memory; results do not depend on it


@dataclass(frozen=True)
class PolicyConfig:
    """All that is needed to build a policy again; it travels inside the policy file."""

    observation: Mapping[str, Mapping[str, Any]]
    """The spec of the observation (`policies.encoders.observation_spec`)."""
    num_actions: int
    memory: str = "expire_span"
    """Memory kind, a name in `policies.memory.KINDS`."""
    memory_config: Any = None
    """The kind's own Config; None for its defaults."""
    core: Any = None
    """The core's own config (see `core_config`); None for its defaults."""

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict that `from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PolicyConfig:
        """Raises ValueError, KeyError or TypeError for what `to_json` cannot have written."""
        if data["memory"] not in KINDS:
            raise ValueError(f"memory kind: expected one of {', '.join(KINDS)}, got {data['memory']!r}")
        memory_config = KINDS[data["memory"]].Config(**data["memory_config"])
        core = core_config(data["memory"])(**data["core"])
        return cls(data["observation"], data["num_actions"], data["memory"], memory_config, core)


@dataclass(frozen=True)
class Unrolled:
    """What `ActorCritic.unroll` gives."""

    logits: Tensor  # [T,B,A]
    values: Tensor  # [T,B]
    final_values: Tensor  # [F]
    memory_loss: Tensor  # scalar
    features: Tensor  # [T,B,D] what the heads read
    rewards: Tensor  # [T,B,A] predicted for each action, the auxiliary task of learning


@dataclass(frozen=True)
class PredictState:
    """What `predict` hands back for the next call. It can be used once: acting writes into it."""

    acting: Acting
    position: list[int]  # shared by all states of one run: calls made
    at: int


class ActorCritic(nn.Module):
    """Raises ValueError, one line, for a memory kind that is not there."""

    def __init__(self, config: PolicyConfig):
        super().__init__()
        if config.memory not in KINDS:
            raise ValueError(f"memory kind: expected one of {', '.join(KINDS)}, got {config.memory!r}")
        kind = KINDS[config.memory]
        memory_config = kind.Config() if config.memory_config is None else config.memory_config
        core = core_config(config.memory)() if config.core is None else config.core
        if not isinstance(core, core_config(config.memory)):
            expected = core_config(config.memory).__name__
            raise TypeError(f"core: expected a {expected} for memory kind {config.memory}, got a {type(core).__name__}")
        self.config = PolicyConfig(config.observation, config.num_actions, config.memory, memory_config, core)
        width = core.width
        self.encoder = Encoder(config.observation, width, core.action_gain)
        self.core: Core
        if issubclass(kind, MemoryKind):
            self.core = Transformer(core, lambda: kind(width, core.num_heads, memory_config))
        else:
            self.core = kind(core, memory_config)
        self.policy_head = nn.Linear(width, config.num_actions)
        self.value_head = nn.Linear(width, 1)
        self.reward_head = nn.Linear(width, config.num_actions)
        # No preference and no expectation before any experience.
        for head in (self.policy_head, self.value_head, self.reward_head):
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)

    @classmethod
    def for_spaces(cls, observation: spaces.Dict, action: spaces.Discrete, **config: Any) -> ActorCritic:
        """A policy for an environment's spaces; `config` as in PolicyConfig. Raises ValueError, one line."""
        return cls(PolicyConfig(observation_spec(observation), int(action.n), **config))

    @property
    def device(self) -> torch.device:
        return self.value_head.weight.device

    @property
    def can_forget(self) -> bool:
        """Whether pressure brings this policy's live memories down."""
        return KINDS[self.config.memory].presses

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """Groups for an optimiser: the policy first, then parameters that are the memory kind's own, by learning rate.
        `scale` is a group's learning rate as a multiple of the policy's; `pressed`: it is what the pressure acts on."""
        own = {
            parameter: (layer.kind.learning_rate_scale(name), layer.kind.presses)
            for layer in self.core.layers
            for name, parameter in layer.kind.named_parameters()
        }
        groups: dict[tuple[float, bool] | None, list[nn.Parameter]] = {None: []}
        for parameter in self.parameters():
            groups.setdefault(own.get(parameter), []).append(parameter)
        made = []
        for key, parameters in groups.items():
            scale, pressed = key or (1.0, False)
            made.append({"params": parameters, "lr": learning_rate * scale, "scale": scale, "pressed": pressed})
        return made

    def observation_predictor(self) -> NextObservation:
        """A new network, of the policy's size and not part of it, that learns to predict the next observation from
        `Unrolled.features`."""
        return NextObservation(self.config.observation, self.config.core.width, self.config.num_actions).to(self.device)

    # Acting

    def initial_memory(self, batch_size: int) -> Memory:
        """The memory of `batch_size` environments before anything happened."""
        return self.core.initial_memory(batch_size)

    def memory_from(self, tensors: Mapping[str, Tensor]) -> Memory:
        """The memory whose `to_tensors()` gave `tensors`, on the policy's device."""
        return Memory.from_tensors({name: tensor.to(self.device) for name, tensor in tensors.items()})

    def draw(self, memory: Memory, generator: torch.Generator | None = None) -> Memory:
        """`memory` with what its kind draws at random, once per training rollout (Expire-Span: the span limit)."""
        return self.core.draw(memory, generator)

    @torch.no_grad()
    def begin(self, memory: Memory, horizon: int) -> Acting:
        """Everything derived from `memory` under today's weights, with room for `horizon` steps."""
        return self.core.begin(memory, horizon)

    @torch.no_grad()
    def step(self, observation: Observation, acting: Acting, episode_start: Tensor) -> tuple[Tensor, Tensor]:
        """One time step: entries [B, ...] and episode_start [B] bool -> logits [B,A], values [B].

        Where `episode_start` the memory is emptied first. Writes the new memory into `acting`. Raises ValueError if
        `acting` is full.
        """
        features = self.core.step(self.encoder(observation), acting, episode_start)
        return self._heads(features)

    @torch.no_grad()
    def value(self, observation: Observation, acting: Acting, rows: Tensor) -> Tensor:
        """Values [R] of observations [R, ...] that follow the last step in the environments `rows` int64 [R] of the
        same episode. Nothing is written."""
        return self._heads(self.core.value(self.encoder(observation), acting, rows))[1]

    # Learning

    def unroll(
        self,
        observation: Observation,
        memory: Memory,
        episode_start: Tensor,
        final_observation: Observation | None = None,
        final_at: tuple[Tensor, Tensor] | None = None,
        pressure: float = 0.0,
    ) -> Unrolled:
        """One parallel pass over a rollout, equal to `begin` and `step`s but with gradients.

        observation: entries [T,B, ...]; episode_start: [T,B] bool; final_observation: entries [F, ...], each following
        step t of environment b of `final_at` = (t, b), int64 [F] each; pressure: of the forgetting, in [-1, 1].
        """
        x, final_x, final_at = self._encoded(observation, episode_start, final_observation, final_at)
        output = self.core.unroll(x, memory, episode_start, final_x, final_at, pressure)
        logits, values = self._heads(output.features)
        final_values = self._heads(output.final_features)[1]
        return Unrolled(logits, values, final_values, output.loss, output.features, self.reward_head(output.features))

    @torch.no_grad()
    def inspect(
        self, observation: Observation, memory: Memory, episode_start: Tensor
    ) -> tuple[Tensor, Tensor, tuple[LayerInspection, ...]]:
        """As `unroll`, for those who look: logits [T,B,A], values [T,B], and per layer slots, spans and attention."""
        x, final_x, final_at = self._encoded(observation, episode_start, None, None)
        output = self.core.unroll(x, memory, episode_start, final_x, final_at, details=True)
        return *self._heads(output.features), output.layers

    @torch.no_grad()
    def memory_figures(self, rollout: Any) -> dict[str, float]:
        """What the kind has to say of the memories that began `rollout`, by name, per layer (Expire-Span: mean spans)."""
        return {
            f"{name}/layer_{i}": value
            for i, (layer, held) in enumerate(zip(self.core.layers, rollout.memory.layers))
            for name, value in layer.kind.figures(layer.norm(held.hidden[held.alive])).items()
        }

    def _encoded(
        self,
        observation: Observation,
        episode_start: Tensor,
        final_observation: Observation | None,
        final_at: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        flat = {key: value.flatten(0, 1) for key, value in observation.items()}
        x = self.encoder(flat).unflatten(0, episode_start.shape)  # [T,B,D]
        if final_observation is None or final_at is None:
            none = torch.zeros(0, dtype=torch.int64, device=x.device)
            return x, x.new_zeros(0, x.shape[2]), (none, none)
        return x, self.encoder(final_observation), final_at

    def _heads(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return self.policy_head(features), self.value_head(features).squeeze(-1)

    # Stable-Baselines3's signature

    @torch.no_grad()
    def predict(
        self,
        observation: Mapping[str, np.ndarray],
        state: PredictState | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, PredictState]:
        """Actions for a batch of observations (entries [B, ...] -> [B]) or for one (-> a scalar), and the next state.

        state: what the last call returned, None to begin; each state serves one call, since acting writes into it.
        episode_start: bool [B], where an episode begins; None for none. Raises ValueError for a state used before or
        made for another number of environments.
        """
        key, entry = next(iter(self.config.observation.items()))
        single = np.ndim(observation[key]) == len(entry.get("shape", []))
        if single:
            observation = {key: np.asarray(value)[None] for key, value in observation.items()}
        tensors = as_tensors({key: observation[key] for key in self.config.observation}, self.device)
        batch = len(next(iter(tensors.values())))
        acting, position = self._resumed(state, batch)
        start = np.zeros(batch, bool) if episode_start is None else np.atleast_1d(episode_start).astype(bool)
        logits, _ = self.step(tensors, acting, torch.as_tensor(start, device=self.device))
        actions = logits.argmax(-1) if deterministic else sample(logits)
        position[0] += 1
        actions = actions.cpu().numpy()
        return (actions[0] if single else actions), PredictState(acting, position, position[0])

    def _resumed(self, state: PredictState | None, batch: int) -> tuple[Acting, list[int]]:
        if state is None:
            return self.begin(self.initial_memory(batch), PREDICT_HORIZON), [0]
        if state.at != state.position[0]:
            raise ValueError(f"state: expected the last one returned (call {state.position[0]}), got call {state.at}'s")
        if len(state.acting.time) != batch:
            raise ValueError(f"state: expected {batch} environments, got {len(state.acting.time)}")
        if state.acting.full:
            return self.begin(state.acting.memory(), PREDICT_HORIZON), state.position
        return state.acting, state.position


def sample(logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Actions int64 [B] drawn from the softmax of logits [B,A] (the Gumbel-max trick)."""
    noise = torch.empty_like(logits).exponential_(generator=generator)
    return (logits - noise.log()).argmax(-1)
