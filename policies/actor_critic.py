"""The policy: encoder, recurrent core, policy and value heads. A pure function of observation and memory.

T time steps, B environments, P parameters of the actions' distribution, G outputs of the reward head, D model width, L
layers, F final observations, R chosen environments. Observations are dicts of tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from gymnasium import spaces
from torch import Tensor, nn

from expire_span_rl.policies import core_config
from expire_span_rl.policies.actions import action_spec, make_actions
from expire_span_rl.policies.core import Acting, LayerInspection, MemoryCore
from expire_span_rl.policies.elapsed import ElapsedValue
from expire_span_rl.policies.encoders import observation_spec
from expire_span_rl.policies.encoders.encoder import Encoder
from expire_span_rl.policies.encoders.extractor import FeaturesExtractor
from expire_span_rl.policies.encoders.vector import VectorEncoder
from expire_span_rl.policies.entry_checks import EntryCheck
from expire_span_rl.policies.memory import KINDS
from expire_span_rl.policies.memory.state import Memory, elapsed_steps
from expire_span_rl.policies.policy_config import PolicyConfig
from expire_span_rl.policies.precision import set_precision
from expire_span_rl.policies.predict import Predictor
from expire_span_rl.policies.prediction import NextObservation
from expire_span_rl.policies.replay import Replay
from expire_span_rl.policies.settings import FLOAT32
from expire_span_rl.spaces import ACTION_MASK, PREVIOUS_REWARD

Observation = Mapping[str, Tensor]
START = "\0episode_start"  # among the inputs of a captured step; no entry of an observation has such a name


@dataclass(frozen=True)
class PolicyOutput:
    """What `ActorCritic.unroll` gives."""

    logits: Tensor  # [T,B,P] parameters of the actions' distribution: logits, or means and standard deviations
    values: Tensor  # [T,B]
    final_values: Tensor  # [F]
    memory_loss: Tensor  # scalar
    features: Tensor  # [T,B,D] the input of the heads
    rewards: Tensor  # [T,B,G] from which `predicted_rewards`, an auxiliary task of learning, predicts rewards
    memory: Memory | None = None  # after the last step, as in acting; None unless asked for


class ActorCritic(Predictor, nn.Module):
    """A policy with a value function, whose core remembers."""

    def __init__(self, config: PolicyConfig, extractor: FeaturesExtractor | None = None):
        """extractor: replaces the entries' own encoders; the config names its class.

        Raises ValueError, one line, for an unknown memory kind, and TypeError for a core config of another core.
        """
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
        self.entry_checks = {key: EntryCheck(key, entry) for key, entry in config.observation.items()}
        self.encoder = Encoder(config.observation, width, core.action_gain, extractor)
        self.core: MemoryCore = kind.build(core, memory_config)
        self.policy_head = nn.Linear(width, self.actions.num_outputs)
        self.value_head = nn.Linear(width, 1)
        self.reward_head = nn.Linear(width, self.actions.num_features)
        # Without experience all actions are equally likely, and values and rewards are 0.
        for head in (self.policy_head, self.value_head, self.reward_head):
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
        self.elapsed_value = ElapsedValue(width) if config.time_aware_value else None
        self.precision = FLOAT32

    @classmethod
    def for_spaces(
        cls,
        observation: spaces.Dict,
        action: spaces.Space,
        normalize: bool = True,
        normalize_reward: bool = False,
        features_extractor: tuple[type[nn.Module], Mapping[str, Any]] | None = None,
        *,
        normalize_cells: bool = False,
        impute_cells: bool = False,
        **config: Any,
    ) -> ActorCritic:
        """A policy for a wrapped environment's spaces; `config` as in PolicyConfig. Raises ValueError, one line.

        normalize: normalise numbers by their running mean and standard deviation; normalize_reward: the previous
        reward, too; normalize_cells: the contents of MiniGrid's cells, too; impute_cells: read contents of cells that
        training never showed as the usual ones; features_extractor: (class, keyword arguments) of a Stable-Baselines3
        features extractor that reads the environment's own observation.
        """
        spec = observation_spec(observation, normalize, normalize_reward, normalize_cells, impute_cells)
        extractor = None
        name = ""
        if features_extractor is not None:
            extractor = FeaturesExtractor(observation, *features_extractor)
            name = f"{features_extractor[0].__module__}.{features_extractor[0].__qualname__}"
        policy = cls(PolicyConfig(spec, action_spec(action), features_extractor=name, **config), extractor)
        for key, entry in policy.encoder.entries():
            entry.set_initial_statistics(observation[key])
            if key == PREVIOUS_REWARD and normalize_reward:
                entry.ignore_until_observed()
        return policy

    @property
    def precision(self) -> str:
        """One of `PRECISIONS`, of the products with the weights of encoder and core. It is no part of the policy file:
        a policy that is loaded computes in float32."""
        return self._precision

    @precision.setter
    def precision(self, precision: str) -> None:
        set_precision(self, precision)
        self._precision = precision

    @property
    def device(self) -> torch.device:
        return self.value_head.weight.device

    @property
    def can_forget(self) -> bool:
        """Whether pressure lowers the number of this policy's live memories."""
        return KINDS[self.config.memory].supports_forgetting

    def observe_needs(self) -> None:
        """Called between two rollouts once the task was learned. From then on spans learn how long memories are
        needed."""
        for layer in self.core.layers:
            layer.kind.observe_needs()

    def release_spans(self) -> None:
        """Called between two rollouts once that is known. Spans are then as long as memories are needed."""
        for layer in self.core.layers:
            layer.kind.release()

    def bind_spans(self) -> None:
        """Called between two rollouts where that harms. Spans are then as before `release_spans`."""
        for layer in self.core.layers:
            layer.kind.bind()

    def tighten_spans(self, share: float) -> None:
        """Called after each update between `release_spans` and `bind_spans`. Moves by a share of the way from where
        few memories that are needed expire to where more do. share: negative for the way back."""
        for layer in self.core.layers:
            layer.kind.tighten(share)

    def unreleased_reach(self) -> float | None:
        """Steps after which every memory is gone as long as `release_spans` was not called; None where that has no
        part."""
        layers = self.core.layers
        return layers[0].kind.unreleased_reach() if len(layers) else None

    @property
    def can_skip_time(self) -> bool:
        """Whether time is skipped in some training rollouts after `release_spans`. In one of `CONTROL_EVERY`
        environments, the last of these, it never is."""
        return any(layer.kind.can_skip_time for layer in self.core.layers)

    def keep_time(self) -> None:
        """Called between two rollouts. From then on no time is skipped."""
        for layer in self.core.layers:
            layer.kind.keep_time()

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """Parameter groups for an optimiser: the policy first, then the memory kind's own parameters, by learning rate.

        `scale` is a group's learning rate as a multiple of the policy's. `span_parameters` says whether the pressure
        acts on the group.
        """
        kind_parameters = {
            parameter: (layer.kind.learning_rate_scale(name), layer.kind.supports_forgetting)
            for layer in self.core.layers
            for name, parameter in layer.kind.named_parameters()
        }
        groups: dict[tuple[float, bool] | None, list[nn.Parameter]] = {None: []}
        for parameter in self.parameters():
            groups.setdefault(kind_parameters.get(parameter), []).append(parameter)
        optimizer_groups = []
        for key, parameters in groups.items():
            scale, is_span = key or (1.0, False)
            rate = learning_rate * scale
            optimizer_groups.append({"params": parameters, "lr": rate, "scale": scale, "span_parameters": is_span})
        return optimizer_groups

    def observation_predictor(self) -> NextObservation:
        """A new network that learns to predict the next observation from `PolicyOutput.features`. It has the policy's
        width and is no part of the policy."""
        return NextObservation(self.encoder, self.actions, self.config.core.width).to(self.device)

    def observe(self, observation: Observation) -> None:
        """Updates the statistics that normalise numbers with the observations of a rollout, entries [T,B, ...].

        Called between two rollouts only, so that acting and learning of one rollout use the same statistics.
        """
        self.encoder.observe(observation, 2)

    # Acting

    def initial_memory(self, batch_size: int) -> Memory:
        """The memory of `batch_size` environments before anything happened."""
        return self.core.initial_memory(batch_size)

    def memory_from(self, tensors: Mapping[str, Tensor]) -> Memory:
        """The memory whose `to_tensors()` gave `tensors`, on the policy's device."""
        return Memory.from_tensors({name: tensor.to(self.device) for name, tensor in tensors.items()})

    def join_memories(self, parts: Sequence[Memory], rows: Sequence[Tensor]) -> Memory:
        """One memory from those of minibatches, which together hold all environments. rows: int64 [b], the environments
        of each."""
        return Memory.join(parts, rows)

    def draw(self, memory: Memory, generator: torch.Generator | None = None, *, noiseless: bool = False) -> Memory:
        """`memory` for the start of a training rollout: with what is drawn once per rollout, and with spans
        renewed. Training noise leaves out heads (`--head-dropout`), hides ages from attention (`--position-dropout`)
        and skips time (`--time-skips`, `--time-gaps`). noiseless: nothing of that."""
        return self.core.draw(memory, generator, noiseless=noiseless)

    @torch.no_grad()
    def begin(self, memory: Memory, horizon: int, into: Acting | None = None, *, in_rollout: bool = False) -> Acting:
        """Everything derived from `memory` under today's weights, with room for `horizon` steps.

        into: what was acted on before and is no longer needed. On a GPU its buffers and its captured step are used
        again; in_rollout: for a rollout to learn from, which began with `draw`. `unroll` then computes the same.
        Otherwise spans are renewed on the way, every `renew_every` steps of each environment's clock.
        """
        return self.core.begin(memory, horizon, into, in_rollout=in_rollout)

    @property
    def renew_every(self) -> int:
        """Steps of an environment's clock between two renewals of spans while acting; 0 for none. An unroll equals
        acting between two of them, and not across one."""
        kinds = [layer.kind for layer in self.core.layers]
        return kinds[0].renew_every() if kinds else 0

    @torch.no_grad()
    def step(self, observation: Observation, acting: Acting, episode_start: Tensor) -> tuple[Tensor, Tensor]:
        """One time step: entries [B, ...] and episode_start [B] bool -> parameters of the actions [B,P], values [B].

        The memory is emptied first where `episode_start` is set. Writes the new memory into `acting`. Raises ValueError
        if `acting` is full. On a GPU the next step overwrites what this one returned.
        """
        if getattr(acting, "static", False):
            return self._replay_step(observation, cast(Any, acting), episode_start)[:2]
        features, elapsed = self._step_core(observation, acting, episode_start)
        return self._heads(features, observation, elapsed)

    @torch.no_grad()
    def step_with_rewards(
        self, observation: Observation, acting: Acting, episode_start: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`step`, and the reward head's outputs [B,G], from which `predicted_rewards` predicts an action's reward."""
        if getattr(acting, "static", False):
            return self._replay_step(observation, cast(Any, acting), episode_start)
        return self._step(observation, acting, episode_start)

    def _step(self, observation: Observation, acting: Acting, episode_start: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features, elapsed = self._step_core(observation, acting, episode_start)
        return *self._heads(features, observation, elapsed), self.reward_head(features)

    def _step_core(self, observation: Observation, acting: Acting, episode_start: Tensor) -> tuple[Tensor, Tensor]:
        """One step of the core: features [B,D], and the steps [B] since the episode began."""
        elapsed = acting.time.masked_fill(episode_start, 0)  # before the core's step, which advances the clock
        return self.core.step(self.encoder(observation), acting, episode_start), elapsed

    def _replay_step(
        self, observation: Observation, acting: Any, episode_start: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`_step` on buffers of fixed shapes: captured at the first call, replayed at all later ones."""
        steps_taken = acting.steps_taken
        if acting.full:
            raise ValueError(f"acting: expected room for a step, got {steps_taken} of {acting.horizon} steps taken")
        inputs = {START: episode_start, **observation}
        if acting.replay is None:

            def step(**inputs: Tensor) -> tuple[Tensor, ...]:
                acting.steps_taken = 0  # the calls before a capture may be more than there is room for
                start = inputs.pop(START)
                return *self._step(inputs, acting, start), acting.live

            acting.replay = Replay(step, inputs, acting.step_state())
        logits, values, reward_outputs, acting.live = acting.replay(inputs)
        acting.steps_taken = steps_taken + 1
        return logits, values, reward_outputs

    def predicted_rewards(self, rewards: Tensor, actions: Tensor) -> Tensor:
        """The rewards [...] predicted for canonical actions [...] or [...,N]. rewards: the reward head's outputs
        [...,G]."""
        return (rewards * self.actions.encode(actions, rewards.dtype)).sum(-1)

    def mean_predicted_rewards(self, rewards: Tensor, params: Tensor) -> Tensor:
        """The mean [...] of `predicted_rewards` over actions drawn with the parameters [...,P]. rewards: [...,G]."""
        return (rewards * self.actions.mean_encoding(params)).sum(-1)

    def expected_rewards(self, rewards: Tensor, actions: Tensor) -> Tensor:
        """The environment's rewards [B] that are to be expected of actions [B] or [B,N], for acting that is not told
        the true ones. rewards: as for `predicted_rewards`.

        It is the mean reward of training, where that is known. The head's predictions are of what training learns from,
        scaled rewards with a bonus for new observations.
        """
        encoder = self.encoder.entry(PREVIOUS_REWARD)
        usual = encoder.usual() if isinstance(encoder, VectorEncoder) else None
        return self.predicted_rewards(rewards, actions) if usual is None else usual.expand(len(rewards))

    @torch.no_grad()
    def value(self, observation: Observation, acting: Acting, rows: Tensor) -> Tensor:
        """Values [R] of observations [R, ...] that follow the last step, in the same episode, in the environments
        `rows` int64 [R]. Nothing is written."""
        return self._values(self.core.value(self.encoder(observation), acting, rows), acting.time[rows])

    # Learning

    def unroll(
        self,
        observation: Observation,
        memory: Memory,
        episode_start: Tensor,
        final_observation: Observation | None = None,
        final_at: tuple[Tensor, Tensor] | None = None,
        *,
        pressure: float = 0.0,
        keep: bool = False,
    ) -> PolicyOutput:
        """One parallel pass over a rollout, equal to `begin` and `step`s but with gradients.

        observation: entries [T,B, ...]; episode_start: [T,B] bool; final_observation: entries [F, ...], each following
        step t of environment b of `final_at` = (t, b), int64 [F] each; pressure: the controller's, in [-1, 1]; keep:
        give the memory after the last step, for learning without acting.
        """
        x, final_x, final_at = self._encode(observation, episode_start, final_observation, final_at)
        output = self.core.unroll(x, memory, episode_start, final_x, final_at, pressure=pressure, keep=keep)
        elapsed = elapsed_steps(memory.time, episode_start)
        logits, values = self._heads(output.features, observation, elapsed)
        return PolicyOutput(
            logits=logits,
            values=values,
            final_values=self._values(output.final_features, elapsed[final_at] + 1),
            memory_loss=output.loss,
            features=output.features,
            rewards=self.reward_head(output.features),
            memory=output.memory,
        )

    @torch.no_grad()
    def inspect(
        self, observation: Observation, memory: Memory, episode_start: Tensor
    ) -> tuple[Tensor, Tensor, tuple[LayerInspection, ...]]:
        """An unroll for the viewer, the audit and tests: parameters of the actions [T,B,P], values [T,B], and the
        slots, spans and attention of each layer."""
        x, final_x, final_at = self._encode(observation, episode_start, None, None)
        output = self.core.unroll(x, memory, episode_start, final_x, final_at, details=True)
        return *self._heads(output.features, observation, elapsed_steps(memory.time, episode_start)), output.layers

    @torch.no_grad()
    def memory_metrics(self, rollout: Any) -> dict[str, float]:
        """The kind's metrics of the memories with which `rollout` began, by name and layer (Expire-Span: mean
        spans)."""
        layers = zip(self.core.layers, rollout.memory.layers, strict=False)  # a kind without slots has no memory layers
        return {
            f"{name}/layer_{i}": value
            for i, (layer, memory) in enumerate(layers)
            for name, value in layer.kind.metrics(layer.norm(memory.hidden[memory.alive])).items()
        }

    def _encode(
        self,
        observation: Observation,
        episode_start: Tensor,
        final_observation: Observation | None,
        final_at: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        """Encoded observations [T,B,D] and final observations [F,D], and `final_at`."""
        flat = {key: value.flatten(0, 1) for key, value in observation.items()}
        x = self.encoder(flat).unflatten(0, episode_start.shape)  # [T,B,D]
        if final_observation is None or final_at is None:
            empty = torch.zeros(0, dtype=torch.int64, device=x.device)
            return x, x.new_zeros(0, x.shape[2]), (empty, empty)
        return x, self.encoder(final_observation), final_at

    def _heads(self, features: Tensor, observation: Observation, elapsed: Tensor) -> tuple[Tensor, Tensor]:
        """Parameters of the actions [..., P] and values [...]. Actions that the observation's mask forbids have
        probability 0. elapsed: [...] steps since the episode began."""
        params = self.actions.params(self.policy_head(features))
        if ACTION_MASK in self.config.observation:
            params = self.actions.masked(params, observation[ACTION_MASK])
        return params, self._values(features, elapsed)

    def _values(self, features: Tensor, elapsed: Tensor) -> Tensor:
        values = self.value_head(features).squeeze(-1)
        return values if self.elapsed_value is None else values + self.elapsed_value(features, elapsed)
