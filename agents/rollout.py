"""Collecting experience. T time steps, B environments, P parameters of the actions' distribution, L layers, F final
observations.

A final observation is one after which a row's trace is cut and bootstrapped with its value: an episode's last, where it
was truncated, and the rollout's last, where the episode goes on.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, cast

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from expire_span_rl.agents.episodes import finished
from expire_span_rl.agents.guard import Deadline, TrainingEnded
from expire_span_rl.agents.storage import Storage, check_outputs, tensors_of
from expire_span_rl.protocols import Acting, LearningPolicy, Memory

LARGEST_DIFFERENCE = 1e-2
"""Between acting and learning, of float32 logits or values, relative to the largest of them if that is above 1. What is
larger is no rounding."""
HORIZON = 8  # steps, at least, between two compactions of the memory that acts


@dataclass(frozen=True)
class Rollout:
    """T steps of B environments, time-major, and the memory before the first of them, once."""

    observation: dict[str, Tensor]  # entries [T,B, ...], as the environment gave them
    episode_start: Tensor  # [T,B] bool
    actions: Tensor  # [T,B] or [T,B,N] canonical (`policy.actions`)
    logits: Tensor  # [T,B,P] parameters of the distribution of the policy that acted
    values: Tensor  # [T,B]
    next_values: Tensor  # [T,B] of the observation that followed in the same episode (meaningless after a termination)
    rewards: Tensor  # [T,B]
    terminated: Tensor  # [T,B] bool
    truncated: Tensor  # [T,B] bool
    memory: Memory
    final_observation: dict[str, Tensor]  # entries [F, ...]: after truncations by time, then after the rollout's end
    final_at: tuple[Tensor, Tensor]  # (t, b) int64 [F] each: the step that led to it

    def rows(self, indices: Tensor, finals: bool = True) -> Rollout:
        """The chosen environments: a minibatch. indices: int64 [b]; finals: with their final observations, whose number
        a GPU must be asked for."""
        t, b = self.final_at
        place = torch.full((self.actions.shape[1],), -1, device=b.device)
        place[indices] = torch.arange(len(indices), device=b.device)
        mine = torch.nonzero(place[b] >= 0).squeeze(1) if finals else b[:0]
        return Rollout(
            observation={key: value[:, indices] for key, value in self.observation.items()},
            episode_start=self.episode_start[:, indices],
            actions=self.actions[:, indices],
            logits=self.logits[:, indices],
            values=self.values[:, indices],
            next_values=self.next_values[:, indices],
            rewards=self.rewards[:, indices],
            terminated=self.terminated[:, indices],
            truncated=self.truncated[:, indices],
            memory=self.memory.rows(indices),
            final_observation={key: value[mine] for key, value in self.final_observation.items()},
            final_at=(t[mine], place[b[mine]]),
        )

    def with_memory(self, memory: Memory) -> Rollout:
        """The same steps after another memory."""
        return replace(self, memory=memory)


class RolloutsEnded(TrainingEnded):
    """No rollout will come. One line."""


class RolloutSource(Protocol):
    """Where the trainer gets its rollouts. Here, in its own process, from a `Collector`; `agents.ray_actors` has
    another."""

    on_policy: ClassVar[bool]  # the weights of now acted: acting can be checked against learning
    stop: threading.Event  # set by whoever wants the training to end
    deadline: Deadline  # of `stop`
    live: dict[str, list[float]]  # mean and maximum of live memories per layer; empty for a memory without slots
    notes: list[str]  # what the last `load_state` has to say, in lines

    def collect(self) -> tuple[Rollout, list[dict[str, Any]]]:
        """A rollout and the episodes that ended in it. Raises TrainingEnded."""
        ...

    def snapshot(self) -> Any:
        """What `collect` changes, for `restore`."""
        ...

    def restore(self, snapshot: Any) -> None:
        """Takes back what was collected since, wherever it ended. What cannot be taken back of environments begins
        anew."""
        ...

    def figures(self) -> dict[str, float]:
        """What the source has to say of the last rollout, for the log."""
        ...

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]: ...

    def load_state(self, tensors: Mapping[str, Tensor], known: Mapping[str, Any]) -> bool: ...

    def close(self) -> None: ...


class Collector:
    """Steps a vector environment (SAME_STEP autoreset) with a policy and keeps what lives between rollouts."""

    on_policy: ClassVar[bool] = True

    def __init__(self, env: VectorEnv, policy: LearningPolicy, num_steps: int, seed: int):
        self.env, self.policy, self.num_steps, self.seed = env, policy, num_steps, seed
        self.notes: list[str] = []
        self.generator = torch.Generator(policy.device).manual_seed(seed)
        self.live: dict[str, list[float]] = {}
        self.stop = threading.Event()
        self.deadline = Deadline(self.stop)
        self._acting: Acting | None = None  # what was acted on last, whose buffers go on
        self._broken = False  # environments that a rollout left in its midst, and that cannot be set back
        self._begin(seed)

    def _begin(self, seed: int) -> None:
        """New episodes everywhere."""
        batch = self.env.num_envs
        self.memory = self.policy.initial_memory(batch)
        self.observation, _ = self.env.reset(seed=seed)
        self.episode_start = np.ones(batch, bool)
        self.returns, self.lengths = np.zeros(batch), np.zeros(batch, np.int64)
        self._broken = False

    def figures(self) -> dict[str, float]:
        """Nothing: the trainer sees it all."""
        return {}

    def close(self) -> None:
        """Closes the environments."""
        self.env.close()

    def snapshot(self) -> dict[str, Any]:
        """What `collect` changes, for `restore`. Arrays and memories that it replaces, and never writes into, are no
        copies."""
        names = ("memory", "observation", "episode_start", "live", "_broken")
        return {
            **{name: getattr(self, name) for name in names},
            "returns": self.returns.copy(),
            "lengths": self.lengths.copy(),
            "generator": self.generator.get_state(),
            "env_state": self._env_state(),
        }

    def restore(self, snapshot: dict[str, Any]) -> None:
        """See `RolloutSource`: environments that cannot save their state begin new episodes at the next `collect`."""
        self.generator.set_state(snapshot["generator"])
        for name, value in snapshot.items():
            if name not in ("generator", "env_state"):
                setattr(self, name, value)
        if snapshot["env_state"]:
            cast(Any, self.env).load_state_dict(snapshot["env_state"])
        else:
            self._broken = True

    def collect(self) -> tuple[Rollout, list[dict[str, Any]]]:
        """One rollout and the episodes that ended in it. Afterwards `live` has the mean and maximum of live memories
        per layer, over steps and environments (the step's own included); empty for a memory without slots.

        Raises TrainingEnded some seconds after `stop` was set, and for outputs of the policy that are not finite; and
        what the environments raise. What is then half done, `restore` takes back."""
        if self._broken:
            self._begin(self.seed + _other_seeds(self.generator.get_state()))
        return self._collected()

    def _env_state(self) -> dict[str, np.ndarray]:
        """A copy of the environments' state; empty if they cannot save it."""
        return getattr(self.env, "state_dict", dict)()

    def _collected(self) -> tuple[Rollout, list[dict[str, Any]]]:
        policy, device, steps, batch = self.policy, self.policy.device, self.num_steps, self.env.num_envs
        memory = policy.draw(self.memory, self.generator)
        acting = self._acting_on(memory)
        storage = Storage(steps)
        rewards, terminated, truncated = (np.zeros((steps, batch), kind) for kind in (np.float32, bool, bool))
        finals: list[dict[str, Tensor]] = []
        final_values: list[Tensor] = []
        final_t, final_b = [], []
        episodes: list[dict[str, Any]] = []

        def cut(t: int, rows: np.ndarray, following: Mapping[str, np.ndarray]) -> None:
            """The traces of `rows` are cut after step t, which led to these rows of `following`."""
            if len(rows):
                finals.append(tensors_of({key: value[rows] for key, value in following.items()}, device))
                final_values.append(policy.value(finals[-1], acting, torch.as_tensor(rows, device=device)))
                final_t.extend([t] * len(rows))
                final_b.extend(rows.tolist())

        for t in range(steps):
            self.deadline.check()
            if acting.full:
                acting = self._acting_on(acting.memory())
            observation = tensors_of(self.observation, device)
            start = torch.as_tensor(self.episode_start, device=device)
            logits, values = policy.step(observation, acting, start)
            if device.type == "cpu" or policy.actions.continuous:  # to ask a GPU would be to wait for it
                check_outputs(observation, logits, values)
            actions = policy.actions.sample(logits, self.generator)
            storage.put(t, "seen/", observation)
            storage.put(t, "", {"logits": logits, "values": values, "actions": actions, "start": start})
            if acting.live is not None:
                storage.put(t, "", {"live": acting.live})
            self.observation, rewards[t], terminated[t], truncated[t], infos = self.env.step(
                policy.actions.to_env(actions)
            )
            self.returns += rewards[t]
            self.lengths += 1
            ended = terminated[t] | truncated[t]
            self.episode_start = ended
            if ended.any():
                episodes += finished(infos, self.returns, self.lengths)
                self.returns[ended], self.lengths[ended] = 0, 0
                if (cut_short := truncated[t] & ~terminated[t]).any():
                    cut(t, np.flatnonzero(cut_short), infos["final_obs"])
        cut(steps - 1, np.flatnonzero(~self.episode_start), self.observation)
        self.memory, self._acting = acting.memory(), acting
        kept = storage.tensors
        shown = under("seen/", kept)
        if device.type != "cpu":
            check_outputs(shown, kept["logits"], kept["values"])
        if "live" in kept:
            counts = kept["live"]  # [T,B,L]
            self.live = {"mean": counts.float().mean((0, 1)).tolist(), "max": counts.amax((0, 1)).tolist()}

        values = kept["values"]
        next_values = torch.cat([values[1:], torch.zeros_like(values[:1])])
        at = (
            torch.tensor(final_t, dtype=torch.int64, device=device),
            torch.tensor(final_b, dtype=torch.int64, device=device),
        )
        if finals:
            next_values[at] = torch.cat(final_values)
        empty = {key: value[0, :0] for key, value in shown.items()}
        return (
            Rollout(
                shown,
                kept["start"],
                kept["actions"],
                kept["logits"],
                values,
                next_values,
                torch.as_tensor(rewards, device=device),
                torch.as_tensor(terminated, device=device),
                torch.as_tensor(truncated, device=device),
                memory,
                {key: torch.cat([empty[key], *(f[key] for f in finals)]) for key in empty},
                at,
            ),
            episodes,
        )

    def _acting_on(self, memory: Memory) -> Acting:
        """`memory`, ready to act on, in the buffers of before where they fit."""
        on_cpu = self.policy.device.type == "cpu"
        self._acting = self.policy.begin(memory, _horizon(memory) if on_cpu else self.num_steps, self._acting)
        return self._acting

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that lives between rollouts: tensors, and what is known of the environments."""
        tensors = {f"memory/{name}": tensor for name, tensor in self.memory.to_tensors().items()}
        tensors |= {f"observation/{name}": torch.as_tensor(value) for name, value in self.observation.items()}
        tensors |= {f"env/{name}": torch.as_tensor(value) for name, value in self._env_state().items()}
        tensors |= {
            "episode_start": torch.as_tensor(self.episode_start),
            "returns": torch.as_tensor(self.returns),
            "lengths": torch.as_tensor(self.lengths),
            "generator": self.generator.get_state(),
        }
        return tensors, {"live": self.live}

    def load_state(self, tensors: Mapping[str, Tensor], known: Mapping[str, Any]) -> bool:
        """Continues from `state`. Returns False if the environments could not save theirs, or if they were an actor's:
        all begin a new episode, none that the run has seen."""
        drawn = tensors.get("generator")
        self.notes = [] if drawn is None else continue_drawing(self.generator, drawn)
        self.live = dict(known.get("live", {}))
        env_state = under("env/", tensors)
        if not env_state:
            self._begin(self.seed + _other_seeds(drawn))
            return False
        own = {f"observation/{name}": np.asarray(entry) for name, entry in self.observation.items()}
        own |= {"episode_start": self.episode_start, "returns": self.returns, "lengths": self.lengths}
        check_arrays(own, {name: tensor for name, tensor in tensors.items() if name in own or "observation/" in name})
        cast(Any, self.env).load_state_dict({name: tensor.numpy() for name, tensor in env_state.items()})
        self.memory = self.policy.memory_from(under("memory/", tensors))
        self.observation = {name: tensor.numpy() for name, tensor in under("observation/", tensors).items()}
        self.episode_start, self.returns, self.lengths = (
            tensors[name].numpy().copy() for name in ("episode_start", "returns", "lengths")
        )
        return True


def continue_drawing(generator: torch.Generator, state: Tensor) -> list[str]:
    """Sets the generator's state. That of another kind of device has another size, and seeds it: the line that says
    so."""
    if state.shape == generator.get_state().shape:
        generator.set_state(state)
        return []
    generator.manual_seed(_number_of(state))
    note = (
        "the run was on another device, which drew random numbers another way: from here on it differs from a run that "
    )
    return [note + "was never interrupted"]


def check_arrays(own: Mapping[str, np.ndarray], given: Mapping[str, Tensor]) -> None:
    """Raises RuntimeError, one line, for saved arrays that are not those of the environments that there are."""
    for name in sorted(own.keys() | given.keys()):
        shapes = [_shape(own.get(name)), _shape(given[name].numpy() if name in given else None)]
        if shapes[0] != shapes[1]:
            raise RuntimeError(f"{name}: expected {shapes[0]}, got {shapes[1]}")


def _shape(array: np.ndarray | None) -> str:
    return "nothing" if array is None else f"{array.dtype}{list(array.shape)}"


OTHER_SEEDS = 500_000
"""From so many seeds beyond the run's own on, and below twice that, a continued run's new episodes have theirs."""


def _other_seeds(state: Tensor | None) -> int:
    """How far beyond the run's own seeds those of new episodes begin: where depends on when the run was interrupted, so
    that no two of its parts play the same episodes."""
    return OTHER_SEEDS + (0 if state is None else _number_of(state) % OTHER_SEEDS)


def _number_of(state: Tensor) -> int:
    """A whole number below 2^63 that every other state of a generator has another of."""
    digest = hashlib.sha256(state.cpu().numpy().tobytes()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _horizon(memory: Memory) -> int:
    """Steps until what expired is swept out: it slows down every step, but sweeping costs as much as there is to
    keep."""
    counts = memory.live()
    return HORIZON if counts is None else max(HORIZON, int(counts.max()) // 2)


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, by the rest of their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


@torch.no_grad()
def acting_learning_difference(policy: LearningPolicy, rollout: Rollout) -> float:
    """The largest difference between what acting computed (logits, values, values of final observations) and what one
    unroll under the same weights does, each relative to the largest of its kind if that is above 1: rounding is. What a
    mask forbids is no part of that."""
    out = policy.unroll(
        rollout.observation, rollout.memory, rollout.episode_start, rollout.final_observation, rollout.final_at
    )
    pairs = (
        (out.logits, rollout.logits),
        (out.values, rollout.values),
        (out.final_values, rollout.next_values[rollout.final_at]),
    )
    differences = []
    for ours, theirs in pairs:
        largest = theirs[theirs != policy.actions.forbidden].abs().amax() if theirs.numel() else theirs.new_ones(())
        differences.append((ours - theirs).abs() / largest.clamp(min=1))
    # Python's max would lose a NaN.
    return float(torch.cat([difference.flatten() for difference in differences]).max())
