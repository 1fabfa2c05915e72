"""The third-party baselines' policies, Stable-Baselines3's own, behind the calls that evaluate.py makes of ours.

    sb3-mlp     stable_baselines3's ActorCriticPolicy: memoryless
    sb3-lstm    sb3_contrib's RecurrentActorCriticPolicy: an LSTM each for actor and critic (requirements-baselines.txt)

Both read observations through our `Encoder`. (On a 3x3 image Stable-Baselines3 would choose its Atari CNN, which
fails.) It gets every entry of an observation as one float32 vector, `flat`, which leaves nothing for its image and
one-hot preprocessing to do, and which the encoder reads as well. On disk a policy is a file as any other: weights as
safetensors and this module's config as JSON, from which the network is built again; nothing is unpickled.

B environments, A actions, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from torch import Tensor, nn

from expire_span_rl.policies.actions import Actions, make_actions
from expire_span_rl.policies.encoders.encoder import Encoder
from expire_span_rl.policies.entry_checks import EntryCheck
from expire_span_rl.policies.memory import Memory
from expire_span_rl.policies.memory.state import hidden_state
from expire_span_rl.policies.networks import NETWORKS
from expire_span_rl.policies.predict import Predictor
from expire_span_rl.spaces import ACTION_MASK

LARGEST_EXACT = 2**24  # whole numbers up to it are float32 numbers
STATES = 4  # of an LSTM policy: hidden and cell state of the actor, then of the critic


@dataclass(frozen=True)
class SB3PolicyConfig:
    """All that is needed to build the network again; it travels inside the policy file."""

    observation: Mapping[str, Mapping[str, Any]]
    """The spec of the observation (`policies.encoders.observation_spec`)."""
    actions: Mapping[str, Any]
    """The spec of the actions (`policies.actions.action_spec`); a number stands for so many Discrete ones."""
    memory: str
    """A name in `policies.networks.NETWORKS`."""
    width: int = 64
    """Width D of the encoder, of the hidden layers and of the LSTM's state."""

    def __post_init__(self):
        if isinstance(self.actions, int):
            object.__setattr__(self, "actions", {"kind": "discrete", "n": self.actions})
        if ACTION_MASK in self.observation:
            raise ValueError(
                f"{self.memory}: expected an environment without action masks, which Stable-Baselines3's algorithms "
                "do not heed"
            )
        if self.memory not in NETWORKS:
            raise ValueError(f"network: expected one of {', '.join(NETWORKS)}, got {self.memory!r}")

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict that `from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SB3PolicyConfig:
        """Raises ValueError, KeyError or TypeError for what `to_json` cannot have written."""
        # Files from before November 2026 have Discrete actions only, and their number.
        actions = data["actions"] if "actions" in data else {"kind": "discrete", "n": int(data["num_actions"])}
        return cls(data["observation"], actions, data["memory"], data["width"])

    @property
    def policy_kwargs(self) -> dict[str, Any]:
        """Stable-Baselines3's `policy_kwargs`."""
        extractor = {"spec": self.observation, "width": self.width}
        hidden = {"pi": [self.width] * 2, "vf": [self.width] * 2}
        common = {
            "features_extractor_class": EncoderExtractor,
            "features_extractor_kwargs": extractor,
            "net_arch": hidden,
        }
        return {**common, "lstm_hidden_size": self.width} if NETWORKS[self.memory].recurrent else common


def flat_space(spec: Mapping[str, Mapping[str, Any]]) -> spaces.Dict:
    """The space of `flat` observations."""
    sizes = {key: int(np.prod(entry.get("shape", ()))) * (1 + _in_halves(entry)) for key, entry in spec.items()}
    return spaces.Dict({key: spaces.Box(-np.inf, np.inf, (size,), np.float32) for key, size in sizes.items()})


def _in_halves(entry: Mapping[str, Any]) -> bool:
    """Whether an entry has whole numbers that float32 cannot hold: each is written as two of 16 bits."""
    largest = abs(entry.get("start", 0)) + entry["n"] if entry["kind"] == "discrete" else 0
    return entry["kind"] == "words" or largest > LARGEST_EXACT


def flat(entry: Mapping[str, Any], value: Tensor) -> Tensor:
    """Values [B, ...] of an entry as float32 [B,columns]."""
    columns = value.reshape(len(value), -1)
    if _in_halves(entry):
        columns = torch.cat([columns >> 16, columns & 0xFFFF], 1)
    return columns.float()


def unflat(entry: Mapping[str, Any], columns: Tensor) -> Tensor:
    """What `flat` was given, as a tensor [B, ...]; whole numbers as int64 where they need it."""
    if _in_halves(entry):
        high, low = columns.long().chunk(2, 1)
        columns = (high << 16) + low
    return columns.reshape(len(columns), *entry.get("shape", ()))


def canonical_space(spec: Mapping[str, Any]) -> spaces.Space:
    """The space of canonical actions (`policies.actions`), which Stable-Baselines3 acts in: its Discrete starts at 0,
    and its normal distributions fit [-1, 1]. Raises ValueError, one line, for a Box without bounds on both sides."""
    if spec["kind"] == "discrete":
        return spaces.Discrete(spec["n"])
    if spec["kind"] == "multi_discrete":
        return spaces.MultiDiscrete(spec["nvec"])
    size = int(np.prod(spec["shape"]))
    if spec["kind"] == "multi_binary":  # sb3-contrib's RecurrentPPO fails on MultiBinary's int8
        return spaces.MultiDiscrete([2] * size)
    if None in spec["low"] or None in spec["high"]:
        raise ValueError("action space: expected bounds for Stable-Baselines3's algorithms, got a Box without")
    return spaces.Box(-1, 1, (size,), np.float32)


class EncoderExtractor(BaseFeaturesExtractor):
    """Our encoder as Stable-Baselines3's features extractor: flat observations, entries [B,columns], to [B,D]."""

    def __init__(self, observation_space: spaces.Dict, spec: Mapping[str, Mapping[str, Any]], width: int):
        super().__init__(observation_space, width)
        self.encoder = Encoder(spec, width)

    def forward(self, observation: Mapping[str, Tensor]) -> Tensor:
        return self.encoder(self._entries(observation))

    def observe(self, observation: Mapping[str, Tensor]) -> None:
        """Takes flat observations, entries [N,columns], into the statistics by which numbers are normalised."""
        self.encoder.observe(self._entries(observation), 1)

    def _entries(self, observation: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {key: unflat(entry, observation[key]) for key, entry in self.encoder.spec.items()}


class FlatVecEnv(VecEnvWrapper):
    """A VecEnv of our environments (`envs.sb3_adapter`) whose observations are flat and whose actions are canonical."""

    def __init__(self, env: VecEnv, spec: Mapping[str, Mapping[str, Any]], actions: Mapping[str, Any]):
        super().__init__(env, flat_space(spec), canonical_space(actions))
        self._spec = spec
        self._actions = make_actions(actions)

    def step_async(self, actions: np.ndarray) -> None:
        self.venv.step_async(self._actions.to_env(torch.as_tensor(actions)))

    def reset(self) -> dict[str, np.ndarray]:
        return self._flat(self.venv.reset())

    def step_wait(self) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, list[dict[str, Any]]]:
        observation, reward, done, infos = self.venv.step_wait()
        for b in np.flatnonzero(done):
            final = infos[b]["terminal_observation"]
            one = self._flat({key: np.asarray(final[key])[None] for key in final})
            infos[b]["terminal_observation"] = {key: value[0] for key, value in one.items()}
        return self._flat(observation), reward, done, infos

    def _flat(self, observation: Any) -> dict[str, np.ndarray]:
        return {key: flat(entry, torch.as_tensor(observation[key])).numpy() for key, entry in self._spec.items()}


@dataclass
class SB3Acting:
    """What evaluation steps on. It is never full: nothing accumulates."""

    state: Tensor  # [B,STATES,D] of an LSTM; [B,0,D] without
    time: Tensor  # [B] clock of the observation that comes next
    live: None = None  # no slots, so nothing can be counted

    @property
    def full(self) -> bool:
        """Never: nothing accumulates."""
        return False

    def memory(self) -> Memory:
        """The state after the last step."""
        return Memory((), self.time, self.state.new_zeros(len(self.time), 0), self.state)


class SB3Policy(Predictor, nn.Module):
    """A network of Stable-Baselines3, and the calls of `ActorCritic` that acting takes. Raises ValueError, one line, if
    its package is not installed. Its `predict` reads a reward that it is not told as 0."""

    network: Any  # Stable-Baselines3's or sb3-contrib's ActorCriticPolicy

    def __init__(self, config: SB3PolicyConfig, network: ActorCriticPolicy | None = None):
        """network: a trained one, that of an algorithm; built anew if None."""
        super().__init__()
        self.config = config
        if network is None:
            spaces_of = flat_space(config.observation), canonical_space(config.actions)
            network = NETWORKS[config.memory].load()(*spaces_of, lambda _: 0.0, **config.policy_kwargs)
        self.network = network
        self._actions = (make_actions(config.actions),)  # a tuple: its weights, if any, are not this policy's
        self.entry_checks = {name: EntryCheck(name, entry) for name, entry in config.observation.items()}
        self.recurrent = NETWORKS[config.memory].recurrent

    @property
    def actions(self) -> Actions:
        """What the network's outputs mean, and what the environment takes."""
        return self._actions[0]

    @property
    def device(self) -> torch.device:
        return self.network.value_net.weight.device

    @property
    def renew_every(self) -> int:
        """0, since there are no spans (`ActorCritic.renew_every`)."""
        return 0

    def state_dict(self) -> dict[str, Tensor]:
        """Every parameter and every statistic of the network, once. (The network has its extractor under three names,
        a file has it under one.)"""
        named = (*self.network.named_parameters(prefix="network"), *self.network.named_buffers(prefix="network"))
        fixed = {name for name, _ in self.network.named_buffers(prefix="network")} - {
            f"network.{name}" for name in self.network.state_dict()
        }
        return {name: tensor.detach() for name, tensor in named if name not in fixed}

    def load_state_dict(self, weights: Mapping[str, Tensor]) -> None:
        """Raises RuntimeError for other names or shapes."""
        current = self.state_dict()
        shapes = [{name: list(tensor.shape) for name, tensor in tensors.items()} for tensors in (current, weights)]
        if shapes[0] != shapes[1]:
            raise RuntimeError(f"weights: expected {shapes[0]}, got {shapes[1]}")
        for name, tensor in current.items():
            tensor.copy_(weights[name])

    def initial_memory(self, batch_size: int) -> Memory:
        """States of zeros, clock 0."""
        weight = self.network.value_net.weight
        state = weight.new_zeros(batch_size, STATES if self.recurrent else 0, self.config.width)
        time = torch.zeros(batch_size, dtype=torch.int32, device=weight.device)
        return SB3Acting(state, time).memory()

    def begin(self, memory: Memory, horizon: int, into: Any = None, *, in_rollout: bool = False) -> SB3Acting:
        """Ready to act, for as many steps as one likes."""
        return SB3Acting(hidden_state(memory), memory.time.clone())

    @torch.no_grad()
    def step(
        self, observation: Mapping[str, Tensor], acting: SB3Acting, episode_start: Tensor
    ) -> tuple[Tensor, Tensor]:
        """One time step, as `ActorCritic.step`: logits [B,A], values [B]. Writes into `acting`."""
        network = self.network
        columns = {key: flat(entry, observation[key]) for key, entry in self.config.observation.items()}
        actor = critic = network.extract_features(columns)  # [B,D]
        if self.recurrent:
            states, start = acting.state.transpose(0, 1)[:, None].contiguous(), episode_start.float()  # [STATES,1,B,D]
            actor, actor_state = network._process_sequence(actor, (states[0], states[1]), start, network.lstm_actor)
            critic, critic_state = network._process_sequence(critic, (states[2], states[3]), start, network.lstm_critic)
            acting.state = torch.cat([*actor_state, *critic_state]).transpose(0, 1)
        acting.time = acting.time.masked_fill(episode_start, 0) + 1
        outputs = network.action_net(network.mlp_extractor.forward_actor(actor))
        values = network.value_net(network.mlp_extractor.forward_critic(critic)).squeeze(-1)
        return self._params(outputs), values

    def step_with_rewards(
        self, observation: Mapping[str, Tensor], acting: SB3Acting, episode_start: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`step`, and the outputs [B,0] of a reward head, which there is none of."""
        params, values = self.step(observation, acting, episode_start)
        return params, values, values.new_zeros(len(values), 0)

    def expected_rewards(self, rewards: Tensor, actions: Tensor) -> Tensor:
        """0 [B]: nothing predicts rewards."""
        return rewards.new_zeros(len(rewards))

    def _params(self, outputs: Tensor) -> Tensor:
        """What the network's actor puts out, as parameters of `policies.actions`: [B,P]."""
        if self.actions.continuous:
            return torch.cat([outputs, self.network.log_std.expand_as(outputs)], -1)
        return outputs

    def inspect(self, *_: Any) -> None:
        """Raises ValueError: there is nothing to look at."""
        raise ValueError(f"{self.config.memory}: expected a policy with memories to look at, a baseline has none")
