"""What agents, evaluation and viewer call of a policy, as types. `ActorCritic` and `SB3Policy` are policies.

T time steps, B environments, P parameters of the actions' distribution, G numbers of the reward head, D model width, L
layers, F final observations. A memory is opaque: a policy takes back what it gave, so parameters that are memories have
the type Any.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor, nn

CONTROL_EVERY = 8
"""One of so many environments, the last of these, is a control: its time is never skipped in training. Of fewer it is
the last one, too."""


def is_control(row: Any, num_envs: int) -> Any:
    """Whether an environment of a process is a control. row: its number among `num_envs`, or an array or tensor of
    numbers. A single environment is one: nothing would tell what skipped time costs."""
    every = min(CONTROL_EVERY, num_envs)
    return row % every == every - 1


@runtime_checkable
class Memory(Protocol):
    """What B environments remember between two rollouts."""

    def rows(self, indices: Tensor, /) -> Memory:
        """The memories of the chosen environments, int64 [b]."""
        ...

    def live(self) -> Tensor | None:
        """[B,L]: memories that the next query will see, itself not counted; None for a kind without slots."""
        ...

    def bytes(self) -> Tensor:
        """[B]: bytes of each environment's live memories, or of its hidden state."""
        ...

    def slot_bytes(self) -> list[int]:
        """By layer: bytes of one memory."""
        ...

    def oldest(self) -> Tensor:
        """[B]: age of the oldest live memory at the next query."""
        ...

    def drift(self, other: Any, within: int, /) -> float:
        """How far another computation of the same memory lies from this one. NaN if nothing can be compared."""
        ...

    def renewed(self) -> Memory:
        """The same memories at the start of a training rollout: spans that are renewed count from the last use."""
        ...

    def with_noise_of(self, other: Any, /) -> Memory:
        """The same memory with the noise of `other`, and its time."""
        ...

    def packed(self) -> dict[str, Tensor]:
        """Named tensors of the live memories only."""
        ...

    def to_tensors(self) -> dict[str, Tensor]:
        """Named tensors for a file."""
        ...


@runtime_checkable
class Acting(Protocol):
    """A memory to act on. The caller owns it, and `Policy.step` writes into it."""

    @property
    def time(self) -> Tensor:
        """[B] clock of the observation that comes next."""
        ...

    @property
    def live(self) -> Tensor | None:
        """[B,L] memories that the last step saw, itself included; None for a kind without slots."""
        ...

    @property
    def full(self) -> bool:
        """Whether there is no room for another step: call `begin(acting.memory(), horizon)`."""
        ...

    def memory(self) -> Memory:
        """What is remembered now, without expired memories."""
        ...


@runtime_checkable
class PolicyActions(Protocol):
    """What a policy's parameters [..., P] mean. Canonical actions are [...] or [..., N]."""

    continuous: ClassVar[bool]
    """Whether actions are real numbers."""
    forbidden: ClassVar[float]
    """The parameter of an action that a mask forbids."""
    num_outputs: int
    """Numbers that the policy head puts out."""

    def sample(self, params: Tensor, generator: torch.Generator | None = None, /) -> Tensor:
        """Canonical actions, drawn at random."""
        ...

    def mode(self, params: Tensor, /) -> Tensor:
        """The most likely canonical actions."""
        ...

    def log_prob(self, params: Tensor, actions: Tensor, /) -> Tensor:
        """[...]: the logarithm of the probability, or density, of canonical actions."""
        ...

    def entropy(self, params: Tensor, /) -> Tensor:
        """[...], in nats."""
        ...

    def log_barrier(self, params: Tensor, /) -> Tensor:
        """[...], in nats: minus the KL divergence from the uniform distribution. Whole numbers only."""
        ...

    def to_env(self, actions: Tensor, /) -> np.ndarray:
        """Canonical actions as the environment takes them, batch first."""
        ...


@runtime_checkable
class PolicySpec(Protocol):
    """All that is needed to build a policy again."""

    @property
    def observation(self) -> Mapping[str, Mapping[str, Any]]:
        """The spec of the observation's entries."""
        ...

    @property
    def actions(self) -> Mapping[str, Any]:
        """The spec of the actions."""
        ...

    @property
    def memory(self) -> str:
        """The name of the memory kind, or of another library's network."""
        ...

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict."""
        ...


@runtime_checkable
class HasState(Protocol):
    """What has a state of tensors: a module, or statistics."""

    def state_dict(self) -> Mapping[str, Tensor]:
        """Weights and statistics by name, as they are saved."""
        ...

    def load_state_dict(self, weights: Mapping[str, Tensor], /) -> Any:
        """Takes over weights and statistics. Raises RuntimeError for others than its own."""
        ...


class StatefulModule(HasState, Protocol):
    """What has weights and statistics: a torch module, among others."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """Its weights."""
        ...

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Its weights with their names."""
        ...

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        """Its statistics with their names, those that are not saved too."""
        ...


@runtime_checkable
class Policy(StatefulModule, Protocol):
    """What acts: all that evaluation and policy files need. A pure function of observation and memory."""

    @property
    def config(self) -> PolicySpec:
        """All that is needed to build it again."""
        ...

    @property
    def actions(self) -> PolicyActions:
        """What its parameters mean."""
        ...

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        ...

    def initial_memory(self, batch_size: int) -> Memory:
        """The memory of `batch_size` environments before anything happened."""
        ...

    def begin(self, memory: Any, horizon: int, into: Any = None, *, in_rollout: bool = False) -> Acting:
        """A memory to act on, with room for `horizon` steps. into: what was acted on before, whose buffers may be used
        again; in_rollout: for a rollout that `LearningPolicy.unroll` will compute again."""
        ...

    def step(self, observation: Mapping[str, Tensor], acting: Any, episode_start: Tensor) -> tuple[Tensor, Tensor]:
        """One time step: entries [B, ...], bool [B] -> parameters [B,P], values [B]. Writes into `acting`."""
        ...


class Unroll(Protocol):
    """The result of `LearningPolicy.unroll`."""

    @property
    def logits(self) -> Tensor:
        """[T,B,P] parameters of the actions' distribution."""
        ...

    @property
    def values(self) -> Tensor:
        """[T,B]."""
        ...

    @property
    def final_values(self) -> Tensor:
        """[F]: values of the final observations."""
        ...

    @property
    def memory_loss(self) -> Tensor:
        """The memory kind's own loss, a scalar."""
        ...

    @property
    def features(self) -> Tensor:
        """[T,B,D]: what the heads read."""
        ...

    @property
    def rewards(self) -> Tensor:
        """[T,B,G], from which `predicted_rewards` predicts the reward of an action."""
        ...

    @property
    def memory(self) -> Memory | None:
        """After the last step, as acting has it; None unless it was asked for."""
        ...


@runtime_checkable
class LearningPolicy(Policy, Protocol):
    """What trains: a policy whose memory learners and rollout sources use."""

    @property
    def precision(self) -> str:
        """Of its products with weights, a name in `expire_span_rl.policies.settings.PRECISIONS`."""
        ...

    @precision.setter
    def precision(self, precision: str, /) -> None: ...

    @property
    def can_forget(self) -> bool:
        """Whether pressure brings its live memories down."""
        ...

    def to(self, device: str, /) -> Any:
        """Moves its weights to a device, and returns it."""
        ...

    def step_with_rewards(
        self, observation: Mapping[str, Tensor], acting: Any, episode_start: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`step`, and [B,G], from which `predicted_rewards` predicts the reward of an action."""
        ...

    def draw(self, memory: Any, generator: torch.Generator | None = None, *, noiseless: bool = False) -> Memory:
        """`memory` with what is drawn at random once per training rollout. noiseless: without training
        noise. No head is left out, no age is hidden from attention, and no time is skipped."""
        ...

    def value(self, observation: Mapping[str, Tensor], acting: Any, rows: Tensor) -> Tensor:
        """[R]: values of observations [R, ...] that follow the last step in the environments `rows`. Writes nothing."""
        ...

    def unroll(
        self,
        observation: Mapping[str, Tensor],
        memory: Any,
        episode_start: Tensor,
        final_observation: Mapping[str, Tensor] | None = None,
        final_at: tuple[Tensor, Tensor] | None = None,
        *,
        pressure: float = 0.0,
        keep: bool = False,
    ) -> Unroll:
        """One parallel pass over a rollout, equal to `begin` and `step`s but with gradients."""
        ...

    def memory_from(self, tensors: Mapping[str, Tensor]) -> Memory:
        """The memory whose `to_tensors()` or `packed()` gave `tensors`, on the policy's device."""
        ...

    def join_memories(self, parts: Sequence[Any], rows: Sequence[Tensor]) -> Memory:
        """The memories of minibatches as one. rows: int64 [b], the environments of each."""
        ...

    def observe(self, observation: Mapping[str, Tensor]) -> None:
        """Takes entries [T,B, ...] into the statistics by which numbers are normalised."""
        ...

    def predicted_rewards(self, rewards: Tensor, actions: Tensor) -> Tensor:
        """The reward predicted of canonical actions, from `Unroll.rewards`."""
        ...

    def mean_predicted_rewards(self, rewards: Tensor, params: Tensor) -> Tensor:
        """Its mean over actions drawn with `params`."""
        ...

    def observation_predictor(self) -> Any:
        """A new network that predicts the next observation from `Unroll.features`."""
        ...

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """Groups of weights for an optimiser."""
        ...

    def observe_needs(self) -> None:
        """Called between two rollouts once the task was learned. From then on the memory kind learns how long memories
        are needed."""
        ...

    def unreleased_reach(self) -> float | None:
        """Steps after which every memory is gone as long as `release_spans` was not called; None where that has no
        part."""
        ...

    def release_spans(self) -> None:
        """Called between two rollouts once it is known how long memories are needed."""
        ...

    def bind_spans(self) -> None:
        """Called between two rollouts where that harms. Spans are then as before `release_spans`."""
        ...

    def tighten_spans(self, share: float) -> None:
        """Called after each update between these two. Moves by a share of the way from where few memories that are
        needed expire to where more do. share: negative for the way back."""
        ...

    @property
    def can_skip_time(self) -> bool:
        """Whether time is skipped in some training rollouts after `release_spans`. In one of `CONTROL_EVERY`
        environments, the last of these, it never is."""
        ...

    def keep_time(self) -> None:
        """Called between two rollouts. From then on no time is skipped."""
        ...

    def memory_metrics(self, rollout: Any) -> dict[str, float]:
        """What the memory kind reports of the memories that began `rollout`, by name, for the log."""
        ...
