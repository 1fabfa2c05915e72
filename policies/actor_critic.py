"""The policy: encoder, recurrent core, policy and value heads. A pure function of observation and memory.

T time steps, B environments, P parameters of the actions' distribution, G numbers of the reward head, D model width, L
layers, F final observations. Observations are dicts of tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import torch
from gymnasium import spaces
from torch import Tensor, nn

from expire_span_rl.checks import quoted
from expire_span_rl.policies import core_config
from expire_span_rl.policies.actions import action_spec, make_actions
from expire_span_rl.policies.core import Acting, LayerInspection, MemoryCore
from expire_span_rl.policies.encoders import observation_spec
from expire_span_rl.policies.encoders.encoder import Encoder
from expire_span_rl.policies.encoders.extractor import FeaturesExtractor
from expire_span_rl.policies.memory import KINDS
from expire_span_rl.policies.memory.state import Memory
from expire_span_rl.policies.predict import Predictor
from expire_span_rl.policies.prediction import NextObservation
from expire_span_rl.policies.replay import Replay
from expire_span_rl.policies.shapes import settings_of
from expire_span_rl.spaces import ACTION_MASK, PREVIOUS_REWARD

Observation = Mapping[str, Tensor]
START = "episode_start"  # beside the observation's entries among what a captured step reads


@dataclass(frozen=True)
class PolicyConfig:
    """All that is needed to build a policy again; it travels inside the policy file."""

    observation: Mapping[str, Mapping[str, Any]]
    """The spec of the observation (`policies.encoders.observation_spec`)."""
    actions: Mapping[str, Any]
    """The spec of the actions (`policies.actions.action_spec`); a number stands for so many Discrete ones."""
    memory: str = "expire_span"
    """Memory kind, a name in `policies.memory.KINDS`."""
    memory_config: Any = None
    """The kind's own Config; None for its defaults."""
    core: Any = None
    """The core's own config (see `core_config`); None for its defaults."""

    features_extractor: str = ""
    """The class in place of the entries' encoders, "module.Class", which a file cannot bring; empty for none."""

    def __post_init__(self):
        if isinstance(self.actions, int):
            object.__setattr__(self, "actions", {"kind": "discrete", "n": self.actions})

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict that `from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PolicyConfig:
        """Raises ValueError, KeyError or TypeError for what `to_json` cannot have written."""
        if data["memory"] not in KINDS:
            raise ValueError(f"memory kind: expected one of {', '.join(KINDS)}, got {quoted(data['memory'], 60)}")
        kind = KINDS[data["memory"]].Config
        memory_config = settings_of(kind, {**getattr(kind, "EARLIER", {}), **data["memory_config"]})
        core = settings_of(core_config(data["memory"]), data["core"])
        # Files from before November 2026 have Discrete actions only, and their number.
        actions = data["actions"] if "actions" in data else {"kind": "discrete", "n": int(data["num_actions"])}
        extractor = str(data.get("features_extractor", ""))
        return cls(data["observation"], actions, data["memory"], memory_config, core, extractor)


@dataclass(frozen=True)
class Unrolled:
    """What `ActorCritic.unroll` gives."""

    logits: Tensor  # [T,B,P] parameters of the actions' distribution: logits, or means and standard deviations
    values: Tensor  # [T,B]
    final_values: Tensor  # [F]
    memory_loss: Tensor  # scalar
    features: Tensor  # [T,B,D] what the heads read
    rewards: Tensor  # [T,B,G] by which the reward is predicted, the auxiliary task of learning (`predicted_rewards`)
    memory: Memory | None = None  # after the last step, as acting has it; None unless asked for


class ActorCritic(Predictor, nn.Module):
    """Raises ValueError, one line, for a memory kind that is not there."""

    def __init__(self, config: PolicyConfig, extractor: FeaturesExtractor | None = None):
        """extractor: in place of the entries' own encoders; the config names its class."""
        super().__init__()
        if config.memory not in KINDS:
            raise ValueError(f"memory kind: expected one of {', '.join(KINDS)}, got {config.memory!r}")
        kind = KINDS[config.memory]
        memory_config = kind.Config() if config.memory_config is None else config.memory_config
        core = core_config(config.memory)() if config.core is None else config.core
        if not isinstance(core, core_config(config.memory)):
            expected = core_config(config.memory).__name__
            raise TypeError(f"core: expected a {expected} for memory kind {config.memory}, got a {type(core).__name__}")
        self.config = replace(config, memory_config=memory_config, core=core)
        width = core.width
        self.actions = make_actions(self.config.actions)
        self.encoder = Encoder(config.observation, width, core.action_gain, extractor)
        self.core: MemoryCore = kind.build(core, memory_config)
        self.policy_head = nn.Linear(width, self.actions.num_outputs)
        self.value_head = nn.Linear(width, 1)
        self.reward_head = nn.Linear(width, self.actions.num_features)
        # No preference and no expectation before any experience.
        for head in (self.policy_head, self.value_head, self.reward_head):
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)

    @classmethod
    def for_spaces(
        cls,
        observation: spaces.Dict,
        action: spaces.Space,
        normalize: bool = True,
        normalize_reward: bool = False,
        features_extractor: tuple[type[nn.Module], Mapping[str, Any]] | None = None,
        **config: Any,
    ) -> ActorCritic:
        """A policy for a wrapped environment's spaces; `config` as in PolicyConfig. Raises ValueError, one line.

        normalize: read numbers over their running mean and standard deviation; normalize_reward: the previous reward,
        too; features_extractor: (class, keyword arguments) of a Stable-Baselines3 features extractor that reads the
        environment's own observation.
        """
        spec, extractor, name = observation_spec(observation, normalize, normalize_reward), None, ""
        if features_extractor is not None:
            extractor = FeaturesExtractor(observation, *features_extractor)
            name = f"{features_extractor[0].__module__}.{features_extractor[0].__qualname__}"
        policy = cls(PolicyConfig(spec, action_spec(action), features_extractor=name, **config), extractor)
        for key, entry in policy.encoder.entries():
            entry.expect(observation[key])
            if key == PREVIOUS_REWARD and normalize_reward:
                entry.expect_any_size()
        return policy

    @property
    def device(self) -> torch.device:
        return self.value_head.weight.device

    @property
    def can_forget(self) -> bool:
        """Whether pressure brings this policy's live memories down."""
        return KINDS[self.config.memory].supports_forgetting

    def release_spans(self) -> None:
        """Called between two rollouts once the task was learned: spans are then as long as memories are needed."""
        for layer in self.core.layers:
            layer.kind.release()

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """Groups for an optimiser: the policy first, then parameters that are the memory kind's own, by learning rate.
        `scale` is a group's learning rate as a multiple of the policy's; `pressed`: it is what the pressure acts on."""
        own = {
            parameter: (layer.kind.learning_rate_scale(name), layer.kind.supports_forgetting)
            for layer in self.core.layers
            for name, parameter in layer.kind.named_parameters()
        }
        groups: dict[tuple[float, bool] | None, list[nn.Parameter]] = {None: []}
        for parameter in self.parameters():
            groups.setdefault(own.get(parameter), []).append(parameter)
        made = []
        for key, parameters in groups.items():
            scale, pressed = key or (1.0, False)
            made.append({"params": parameters, "lr": learning_rate * scale, "scale": scale, "span_parameters": pressed})
        return made

    def observation_predictor(self) -> NextObservation:
        """A new network, of the policy's size and not part of it, that learns to predict the next observation from
        `Unrolled.features`."""
        return NextObservation(self.encoder, self.actions, self.config.core.width).to(self.device)

    def observe(self, observation: Observation) -> None:
        """Takes the observations of a rollout, entries [T,B, ...], into the statistics by which numbers are normalised.
        Between two rollouts only: acting and learning of one use the same."""
        self.encoder.observe(observation, 2)

    # Acting

    def initial_memory(self, batch_size: int) -> Memory:
        """The memory of `batch_size` environments before anything happened."""
        return self.core.initial_memory(batch_size)

    def memory_from(self, tensors: Mapping[str, Tensor]) -> Memory:
        """The memory whose `to_tensors()` gave `tensors`, on the policy's device."""
        return Memory.from_tensors({name: tensor.to(self.device) for name, tensor in tensors.items()})

    def join_memories(self, parts: Sequence[Memory], rows: Sequence[Tensor]) -> Memory:
        """The memories of minibatches, which are all environments together, as one. rows: int64 [b], the environments of
        each."""
        return Memory.joined(parts, rows)

    def draw(self, memory: Memory, generator: torch.Generator | None = None) -> Memory:
        """`memory` with what its kind draws at random, once per training rollout (Expire-Span: the span limit)."""
        return self.core.draw(memory, generator)

    @torch.no_grad()
    def begin(self, memory: Memory, horizon: int, into: Acting | None = None) -> Acting:
        """Everything derived from `memory` under today's weights, with room for `horizon` steps. into: what was acted
        on before and is not needed any more; on a GPU its buffers and what was captured of them go on."""
        return self.core.begin(memory, horizon, into)

    @torch.no_grad()
    def step(self, observation: Observation, acting: Acting, episode_start: Tensor) -> tuple[Tensor, Tensor]:
        """One time step: entries [B, ...] and episode_start [B] bool -> parameters of the actions [B,P], values [B].

        Where `episode_start` the memory is emptied first. Writes the new memory into `acting`. Raises ValueError if
        `acting` is full. On a GPU the next step overwrites what this one returned.
        """
        if not getattr(acting, "static", False):
            return self._step(observation, acting, episode_start)
        return self._replayed(observation, cast(Any, acting), episode_start)

    def _step(self, observation: Observation, acting: Acting, episode_start: Tensor) -> tuple[Tensor, Tensor]:
        return self._heads(self.core.step(self.encoder(observation), acting, episode_start), observation)

    def _replayed(self, observation: Observation, acting: Any, episode_start: Tensor) -> tuple[Tensor, Tensor]:
        """`_step` on buffers of fixed shapes: captured at the first, replayed at all after it."""
        now = acting.now
        if acting.full:
            raise ValueError(f"acting: expected room for a step, got {now} of {acting.horizon} steps taken")
        inputs = {START: episode_start, **observation}
        if acting.replay is None:

            def step(**inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
                acting.now = 0  # a capture has no room of its own
                start = inputs.pop(START)
                return *self._step(inputs, acting, start), acting.live

            acting.replay = Replay(step, inputs, acting.changing())
        logits, values, acting.live = acting.replay(inputs)
        acting.now = now + 1
        return logits, values

    @torch.no_grad()
    def step_with_rewards(
        self, observation: Observation, acting: Acting, episode_start: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`step`, and [B,G], by which the reward is predicted of an action taken now (`predicted_rewards`)."""
        features = self.core.step(self.encoder(observation), acting, episode_start)
        return *self._heads(features, observation), self.reward_head(features)

    def predicted_rewards(self, rewards: Tensor, actions: Tensor) -> Tensor:
        """The reward predicted of canonical actions [...] or [...,N], from what the reward head puts out, [...,G]."""
        return (rewards * self.actions.encode(actions, rewards.dtype)).sum(-1)

    @torch.no_grad()
    def value(self, observation: Observation, acting: Acting, rows: Tensor) -> Tensor:
        """Values [R] of observations [R, ...] that follow the last step in the environments `rows` int64 [R] of the
        same episode. Nothing is written."""
        return self._values(self.core.value(self.encoder(observation), acting, rows))

    # Learning

    def unroll(
        self,
        observation: Observation,
        memory: Memory,
        episode_start: Tensor,
        final_observation: Observation | None = None,
        final_at: tuple[Tensor, Tensor] | None = None,
        pressure: float = 0.0,
        keep: bool = False,
    ) -> Unrolled:
        """One parallel pass over a rollout, equal to `begin` and `step`s but with gradients.

        observation: entries [T,B, ...]; episode_start: [T,B] bool; final_observation: entries [F, ...], each following
        step t of environment b of `final_at` = (t, b), int64 [F] each; pressure: of the forgetting, in [-1, 1]; keep:
        give the memory after the last step, too, where no acting will.
        """
        x, final_x, final_at = self._encoded(observation, episode_start, final_observation, final_at)
        output = self.core.unroll(x, memory, episode_start, final_x, final_at, pressure, keep=keep)
        logits, values = self._heads(output.features, observation)
        final_values = self._values(output.final_features)
        rewards = self.reward_head(output.features)
        return Unrolled(logits, values, final_values, output.loss, output.features, rewards, output.memory)

    @torch.no_grad()
    def inspect(
        self, observation: Observation, memory: Memory, episode_start: Tensor
    ) -> tuple[Tensor, Tensor, tuple[LayerInspection, ...]]:
        """As `unroll`, for those who look: parameters of the actions [T,B,P], values [T,B], and per layer slots, spans
        and attention."""
        x, final_x, final_at = self._encoded(observation, episode_start, None, None)
        output = self.core.unroll(x, memory, episode_start, final_x, final_at, details=True)
        return *self._heads(output.features, observation), output.layers

    @torch.no_grad()
    def memory_figures(self, rollout: Any) -> dict[str, float]:
        """What the kind has to say of the memories that began `rollout`, by name, per layer (Expire-Span: mean
        spans)."""
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

    def _heads(self, features: Tensor, observation: Observation) -> tuple[Tensor, Tensor]:
        """Parameters of the actions [..., P] and values [...]; what the mask in the observation forbids has no
        chance."""
        params = self.actions.params(self.policy_head(features))
        if ACTION_MASK in self.config.observation:
            params = self.actions.masked(params, observation[ACTION_MASK])
        return params, self._values(features)

    def _values(self, features: Tensor) -> Tensor:
        return self.value_head(features).squeeze(-1)
