"""Collecting rollouts in the trainer's own process, or in an actor's.

T time steps, B environments.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from expire_span_rl.agents.episodes import IS_CONTROL, finished_episodes
from expire_span_rl.agents.guard import Deadline
from expire_span_rl.agents.long_episodes import COUNTED, RUNNING
from expire_span_rl.agents.novelty import EpisodicNovelty
from expire_span_rl.agents.rollout import (
    Rollout,
    check_arrays,
    far_seed,
    hash_state,
    restore_generator,
    select_prefix,
)
from expire_span_rl.agents.stagger import NEVER, UNKNOWN, rows_to_cut
from expire_span_rl.agents.storage import RolloutBuffer, check_outputs, observation_tensors
from expire_span_rl.protocols import Acting, LearningPolicy, Memory, is_control

COMPACTION_INTERVAL = 8
"""Smallest number of steps between two compactions of the memory that acts."""


class Collector:
    """Steps a vector environment (SAME_STEP autoreset) with a policy. Between rollouts it holds the memory and the
    episodes under way. It is a `RolloutSource`."""

    on_policy: ClassVar[bool] = True
    num_actors = 1
    log_dir: Path | None = None
    queue: ClassVar[int] = 0

    def __init__(
        self,
        env: VectorEnv,
        policy: LearningPolicy,
        num_steps: int,
        seed: int,
        *,
        novelty: bool = False,
        reward_outputs: bool = False,
    ):
        """novelty: say in rollouts how new the observations are to which steps led (`EpisodicNovelty`);
        reward_outputs: keep what the policy's reward head put out at each step."""
        self.env = env
        self.policy = policy
        self.num_steps = num_steps
        self.keeps_reward_outputs = reward_outputs
        self.long_after = math.inf
        self.seed = seed
        self.notes: list[str] = []
        self.generator = torch.Generator(policy.device).manual_seed(seed)
        self.live: dict[str, list[float]] = {}
        self.stop = threading.Event()
        self.deadline = Deadline(self.stop)
        self._acting: Acting | None = None
        """The last acting state. The next one uses its buffers again."""
        self._needs_reset = False
        """True if a rollout was given up and the environments cannot go back to the state before it, or if somebody
        else has played in them."""
        self.novelty = EpisodicNovelty(env.num_envs) if novelty else None
        self._reset(seed)

    def _reset(self, seed: int) -> None:
        """Begins new episodes in all environments."""
        batch = self.env.num_envs
        self.memory = self.policy.initial_memory(batch)
        self.observation, _ = self.env.reset(seed=seed)
        self.episode_start = np.ones(batch, bool)
        self.returns = np.zeros(batch)
        self.lengths = np.zeros(batch, np.int64)
        self.counted = np.zeros(batch, bool)
        """[B] whether the current episodes were reported as ones that still run."""
        can_cut = getattr(self.env, "begin_next", None) is not None
        self.cut_after = np.full(batch, UNKNOWN if can_cut else NEVER)
        """[B] steps after which the current episodes are cut (`agents.stagger`). It is replaced, never written to."""
        if self.novelty is not None:
            self.novelty.add(self.observation, self.episode_start)
        self._needs_reset = False

    def begin_new_episodes(self) -> None:
        """Has the next rollout begin new episodes, since somebody else has played in the environments."""
        self._needs_reset = True

    def metrics(self) -> dict[str, float]:
        """Empty, since the trainer measures everything itself."""
        return {}

    def close(self) -> None:
        """Closes the environments."""
        self.env.close()

    def snapshot(self) -> dict[str, Any]:
        """What `collect` changes, for `restore`. Arrays and memories that `collect` replaces and never writes to are
        not copied."""
        names = ("memory", "observation", "episode_start", "live", "cut_after", "_needs_reset")
        return {
            **{name: getattr(self, name) for name in names},
            "returns": self.returns.copy(),
            "lengths": self.lengths.copy(),
            "counted": self.counted.copy(),
            "novelty": None if self.novelty is None else self.novelty.copy(),
            "generator": self.generator.get_state(),
            "env_state": self._env_state(),
        }

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Goes back to a snapshot. Environments that cannot save their state begin new episodes at the next
        `collect`."""
        self.generator.set_state(snapshot["generator"])
        for name, value in snapshot.items():
            if name not in ("generator", "env_state"):
                setattr(self, name, value)
        if snapshot["env_state"]:
            cast(Any, self.env).load_state_dict(snapshot["env_state"])
        else:
            self._needs_reset = True

    def collect(self, num_noisy: float = math.inf) -> tuple[Rollout, list[dict[str, Any]]]:
        """Collects one rollout. Returns it and the episodes that ended in it or have come to run for more than
        `long_after` steps. num_noisy: 0 for one without training noise.

        Afterwards `live` has the mean and the maximum of the live memories per layer, over steps and environments. The
        step's own memory counts. `live` is empty for a memory without slots.

        Raises TrainingEnded some seconds after `stop` was set, and if outputs of the policy are not finite. Raises what
        the environments raise. `restore` then takes back the part of the rollout that was collected."""
        if self._needs_reset:
            self._reset(_new_seed(self.seed, self.generator.get_state()))
        policy = self.policy
        device = policy.device
        memory = policy.draw(self.memory, self.generator, noiseless=not num_noisy)
        acting = self._begin_acting(memory)
        buffer = RolloutBuffer(self.num_steps, self.env.num_envs, device)
        episodes: list[dict[str, Any]] = []
        for t in range(self.num_steps):
            self.deadline.check()
            if acting.full:
                acting = self._begin_acting(acting.memory())
            actions = self._act(t, acting, buffer)
            episodes += self._step_env(t, actions, acting, buffer)
        # The rollout's end cuts the traces of the episodes that go on.
        self._add_finals(self.num_steps - 1, np.flatnonzero(~self.episode_start), self.observation, acting, buffer)
        self.memory = acting.memory()
        self._acting = acting
        if device.type != "cpu":
            check_outputs(buffer.observations, buffer.storage.tensors["logits"], buffer.storage.tensors["values"])
        self.live = buffer.live()
        return buffer.rollout(memory), episodes + self._running_episodes()

    def _running_episodes(self) -> list[dict[str, Any]]:
        """The episodes that have come to run for more than `long_after` steps, each reported once."""
        rows = np.flatnonzero((self.lengths > self.long_after) & ~self.counted)
        self.counted[rows] = True
        numbers = zip(self.returns[rows].tolist(), self.lengths[rows].tolist(), strict=True)
        return [{"return": so_far, "steps": steps, RUNNING: True} for so_far, steps in numbers]

    def _act(self, t: int, acting: Any, buffer: RolloutBuffer) -> Tensor:
        """Samples the actions of step t, and stores the policy's part of the step."""
        policy = self.policy
        device = policy.device
        observation = observation_tensors(self.observation, device)
        episode_start = torch.as_tensor(self.episode_start, device=device)
        step = {"episode_start": episode_start}
        if self.keeps_reward_outputs:
            logits, values, step["reward_outputs"] = policy.step_with_rewards(observation, acting, episode_start)
        else:
            logits, values = policy.step(observation, acting, episode_start)
        if device.type == "cpu" or policy.actions.continuous:  # on a GPU this check would be a wait
            check_outputs(observation, logits, values)
        actions = policy.actions.sample(logits, self.generator)
        step |= {"logits": logits, "values": values, "actions": actions}
        buffer.storage.put(t, "observation/", observation)
        buffer.storage.put(t, "", step)
        if acting.live is not None:
            buffer.storage.put(t, "", {"live": acting.live})
        return actions

    def _step_env(self, t: int, actions: Tensor, acting: Any, buffer: RolloutBuffer) -> list[dict[str, Any]]:
        """Steps the environments, and stores their part of step t. Returns the episodes that ended."""
        self.observation, rewards, terminated, truncated, infos = self.env.step(self.policy.actions.to_env(actions))
        buffer.rewards[t] = rewards
        buffer.terminated[t] = terminated
        buffer.truncated[t] = truncated
        self.returns += buffer.rewards[t]
        self.lengths += 1
        is_over = buffer.terminated[t] | buffer.truncated[t]
        self.episode_start = is_over
        # By the environments: the vector's infos have nothing of those that are cut below.
        only_truncated = buffer.truncated[t] & ~buffer.terminated[t]
        rows, self.cut_after = rows_to_cut(self.cut_after, self.lengths, is_over)
        if len(rows):
            self._cut_episodes(t, rows, acting, buffer)
        if self.novelty is not None:
            buffer.novelty[t] = self.novelty.add(self.observation, self.episode_start)
        if not is_over.any():
            return []
        episodes = finished_episodes(infos, self.returns, self.lengths)
        for row, episode in episodes.items():
            episode[IS_CONTROL] = is_control(row, self.env.num_envs)
            if self.counted[row]:
                episode[COUNTED] = True
        self._begin_counting(is_over)
        if only_truncated.any():
            self._add_finals(t, np.flatnonzero(only_truncated), infos["final_obs"], acting, buffer)
        return list(episodes.values())

    def _cut_episodes(self, t: int, rows: np.ndarray, acting: Any, buffer: RolloutBuffer) -> None:
        """Cuts the episodes of the environments `rows` after step t, as a time limit would. They do not count as
        episodes."""
        buffer.truncated[t, rows] = True
        self._add_finals(t, rows, self.observation, acting, buffer)
        first = cast(Any, self.env).begin_next(rows)
        self.observation = {name: entry.copy() for name, entry in self.observation.items()}
        for name, entry in first.items():
            self.observation[name][rows] = entry
        self.episode_start = self.episode_start.copy()
        self.episode_start[rows] = True
        self._begin_counting(rows)

    def _begin_counting(self, rows: np.ndarray) -> None:
        """Has the episodes of these environments begin. rows: their indices, or a flag for each environment."""
        self.returns[rows] = 0
        self.lengths[rows] = 0
        self.counted[rows] = False

    def _add_finals(
        self, t: int, rows: np.ndarray, observation: Mapping[str, np.ndarray], acting: Any, buffer: RolloutBuffer
    ) -> None:
        """Cuts the traces of the environments `rows` after step t, and stores the values of their entries of
        `observation`, to which the step led."""
        if len(rows) == 0:
            return
        device = self.policy.device
        final = observation_tensors({key: entry[rows] for key, entry in observation.items()}, device)
        values = self.policy.value(final, acting, torch.as_tensor(rows, device=device))
        buffer.add_finals(t, rows, final, values)

    def _begin_acting(self, memory: Memory) -> Acting:
        """Prepares `memory` for acting, in the buffers used before where they fit."""
        on_cpu = self.policy.device.type == "cpu"
        horizon = _compaction_interval(memory) if on_cpu else self.num_steps
        self._acting = self.policy.begin(memory, horizon, self._acting, in_rollout=True)
        return self._acting

    def _env_state(self) -> dict[str, np.ndarray]:
        """A copy of the environments' state. Empty if they cannot save it."""
        return getattr(self.env, "state_dict", dict)()

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that lives between rollouts, as tensors and JSON-able metadata. Without the environments' state if
        they will begin new episodes, so that they do after `load_state`, too."""
        env_state = {} if self._needs_reset else self._env_state()
        tensors = {f"memory/{name}": tensor for name, tensor in self.memory.to_tensors().items()}
        tensors |= {f"observation/{name}": torch.as_tensor(value) for name, value in self.observation.items()}
        tensors |= {f"env/{name}": torch.as_tensor(value) for name, value in env_state.items()}
        tensors |= {
            "episode_start": torch.as_tensor(self.episode_start),
            "returns": torch.as_tensor(self.returns),
            "lengths": torch.as_tensor(self.lengths),
            "counted": torch.as_tensor(self.counted),
            "cut_after": torch.as_tensor(self.cut_after),
            "generator": self.generator.get_state(),
        }
        if self.novelty is not None:
            tensors |= {f"novelty/{name}": torch.as_tensor(entry) for name, entry in self.novelty.state_dict().items()}
        return tensors, {"live": self.live}

    def load_state(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> bool:
        """Continues from `state`. Returns False if that has no state of the environments, or they cannot take one, as
        when they cannot save it or when actors had them. All environments then begin a new episode that the run has
        not had."""
        generator_state = tensors.get("generator")
        self.notes = [] if generator_state is None else restore_generator(self.generator, generator_state)
        self.live = dict(metadata.get("live", {}))
        env_state = select_prefix("env/", tensors)
        novelty = {name: tensor.numpy() for name, tensor in select_prefix("novelty/", tensors).items()}
        if self.novelty is not None and novelty:
            self.novelty.load_counts(novelty)
        if not env_state or not self._env_state():  # older runs saved what a user's own vector called its state
            self._reset(_new_seed(self.seed, generator_state))
            return False
        expected = {f"observation/{name}": np.asarray(entry) for name, entry in self.observation.items()}
        expected |= {"episode_start": self.episode_start, "returns": self.returns, "lengths": self.lengths}
        loaded = {name: tensor for name, tensor in tensors.items() if name in expected or "observation/" in name}
        check_arrays(expected, loaded)
        cast(Any, self.env).load_state_dict({name: tensor.numpy() for name, tensor in env_state.items()})
        self.memory = self.policy.memory_from(select_prefix("memory/", tensors))
        self.observation = {name: tensor.numpy() for name, tensor in select_prefix("observation/", tensors).items()}
        for name in ("episode_start", "returns", "lengths"):
            setattr(self, name, tensors[name].numpy().copy())
        for name in {"cut_after", "counted"} & tensors.keys():  # older checkpoints do not have them
            setattr(self, name, tensors[name].numpy().copy())
        if self.novelty is not None and novelty:
            self.novelty.load_episodes(novelty)
        return True


def _new_seed(seed: int, state: Tensor | None) -> int:
    """The seed of new episodes of a run with seed `seed`. It depends on the generator's state when the run was
    interrupted, so that no two parts of a run play the same episodes."""
    return far_seed(seed, 0 if state is None else hash_state(state))


def _compaction_interval(memory: Memory) -> int:
    """Steps until expired memories are removed. Until then they slow down every step, but compaction costs time in
    proportion to the live memories."""
    counts = memory.live()
    return COMPACTION_INTERVAL if counts is None else max(COMPACTION_INTERVAL, int(counts.max()) // 2)
