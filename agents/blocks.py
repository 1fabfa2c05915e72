"""Blocks of long streams, for agents that learn from right actions instead of from rewards.

A stream is an environment whose observations do not depend on the actions. At every step it gives the right action
(`target`), and says whether that action is an answer that counts (`decisions`). Streams are stepped with the right
actions, so that the previous action in their observations is right too (teacher forcing). An evaluation steps them with
the policy's own actions. The policy does not act here. Its memory passes from block to block through `unroll`.

T time steps, B streams, b of them in a minibatch.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from expire_span_rl.agents.episodes import IS_CONTROL, finished_episodes
from expire_span_rl.agents.guard import Deadline
from expire_span_rl.agents.rollout import check_arrays, restore_generator, select_prefix
from expire_span_rl.protocols import LearningPolicy, Memory, Unroll, is_control


@dataclass
class Answers:
    """The policy's answers in a block, and its memory afterwards."""

    memory: Memory  # after the block's last step
    is_right: Tensor  # [T,B] bool: whether the most likely action is the right one
    surprise: Tensor  # [T,B] -log p of the right action, in nats


@dataclass
class Block:
    """T steps of B streams, time-major, and the memory before the first of them."""

    observation: dict[str, Tensor]  # entries [T,B, ...]
    episode_start: Tensor  # [T,B] bool
    actions: Tensor  # [T,B] the right actions
    is_query: Tensor  # [T,B] bool: whether the action is an answer that counts
    memory: Memory  # before the block's first step
    episode_ends: Sequence[tuple[int, int, Mapping[str, Any]]]
    """(t, b, info of the episode) for each episode that ended."""
    answers: Answers | None = None
    """The learner sets them. The next block begins with their memory."""

    def rows(self, indices: Tensor) -> Block:
        """A minibatch: the streams `indices`, int64 [b]. Its `episode_ends` are empty."""
        return Block(
            observation={key: value[:, indices] for key, value in self.observation.items()},
            episode_start=self.episode_start[:, indices],
            actions=self.actions[:, indices],
            is_query=self.is_query[:, indices],
            memory=self.memory.rows(indices),
            episode_ends=(),
        )


class BlockSource:
    """Blocks of the streams of a vector environment (SAME_STEP autoreset). It is a `RolloutSource`.

    An episode is reported when its answers have been counted: with the block after the one in which it ended. One that
    asked nothing is not reported. Raises ValueError, one line, for environments that do not give the right actions.
    """

    on_policy: ClassVar[bool] = False  # the policy does not act, so acting cannot be compared with learning
    num_actors = 1
    log_dir: Path | None = None
    queue: ClassVar[int] = 0
    long_after = math.inf  # not used: streams have no agent that could be stuck
    _FIELDS = ("memory", "observation", "episode_start", "lengths", "counts", "block", "episodes", "live")
    """Attributes that `collect` changes."""

    def __init__(self, env: VectorEnv, policy: LearningPolicy, num_steps: int, seed: int):
        self.env = env
        self.policy = policy
        self.num_steps = num_steps
        self.notes: list[str] = []
        self.generator = torch.Generator(policy.device).manual_seed(seed)
        self.live: dict[str, list[float]] = {}
        self.stop = threading.Event()
        self.deadline = Deadline(self.stop)
        batch = env.num_envs
        self.observation, _ = env.reset(seed=seed)
        self._streams: Any = env.unwrapped
        if getattr(self._streams, "target", lambda: None)() is None:
            raise ValueError(
                f"--env: expected streams that give right actions, such as Copy-v0, got {type(env.unwrapped).__name__}"
            )
        self.memory = policy.initial_memory(batch)
        self.episode_start = np.ones(batch, bool)
        self.lengths = np.zeros(batch, np.int64)
        self.counts = np.zeros((3, batch))
        """For each stream's episode so far: the numbers of answers and of right answers, and the sum of nats."""
        self.block: Block | None = None
        """The last block. None once its answers are counted."""
        self.episodes: list[dict[str, Any]] = []
        """Episodes that ended and are not reported yet."""

    def collect(self, num_noisy: float = math.inf) -> tuple[Block, list[dict[str, Any]]]:
        """Returns the next block, and the episodes that ended in the block before it. num_noisy: 0 for one without
        training noise. Raises TrainingEnded some seconds after `stop` was set, and whatever the environments raise."""
        self._count_answers()
        episodes = self.episodes
        self.episodes = []
        memory = self.policy.draw(self.memory, self.generator, noiseless=not num_noisy)
        self.live = self._live(memory)
        self.block = self._step_streams(memory)
        return self.block, episodes

    def _step_streams(self, memory: Memory) -> Block:
        """Steps the streams with the right actions. Returns the block of these steps. memory: the one before them."""
        env = cast(Any, self.env)
        observations: dict[str, list[np.ndarray]] = {key: [] for key in self.observation}
        starts: list[np.ndarray] = []
        targets: list[np.ndarray] = []
        decisions: list[np.ndarray] = []
        episode_ends: list[tuple[int, int, dict[str, Any]]] = []
        lengths = self.lengths.copy()
        for t in range(self.num_steps):
            self.deadline.check()
            for key, entry in self.observation.items():
                observations[key].append(np.asarray(entry))
            starts.append(self.episode_start)
            targets.append(self._streams.target())
            decisions.append(self._streams.decisions())
            self.observation, rewards, terminated, truncated, infos = env.step(targets[-1])
            lengths += 1
            self.episode_start = terminated | truncated
            if self.episode_start.any():
                rows = np.flatnonzero(self.episode_start)
                episodes = finished_episodes(infos, rewards, lengths)
                for row, episode in episodes.items():
                    episode_ends.append((t, row, {**episode, IS_CONTROL: is_control(row, self.env.num_envs)}))
                lengths[rows] = 0
        self.lengths = lengths
        return Block(
            observation={key: self._stack(entries) for key, entries in observations.items()},
            episode_start=self._stack(starts),
            actions=self._stack(targets),
            is_query=self._stack(decisions),
            memory=memory,
            episode_ends=episode_ends,
        )

    def _stack(self, arrays: Sequence[np.ndarray]) -> Tensor:
        """The arrays of all steps as one tensor on the policy's device."""
        return torch.as_tensor(np.stack(arrays), device=self.policy.device)

    def _live(self, memory: Memory) -> dict[str, list[float]]:
        """Mean and maximum, over streams, of the memories visible to a block's first step, per layer. The step's own
        memory counts. Empty for a memory without slots."""
        counts = memory.live()
        if counts is None:
            return {}
        counts = torch.where(torch.as_tensor(self.episode_start, device=counts.device)[:, None], 0, counts) + 1
        return {"mean": counts.float().mean(0).tolist(), "max": counts.amax(0).tolist()}

    def _count_answers(self) -> None:
        """Counts the answers of the last block, and continues from the memory after it."""
        block = self.block
        self.block = None
        if block is None:
            return
        answers = block.answers
        if answers is None:  # the learner's update was undone
            with torch.no_grad():
                out = self.policy.unroll(block.observation, block.memory, block.episode_start, keep=True)
                answers = answers_of(self.policy, out, block)
        self.memory = answers.memory
        is_query = block.is_query
        nats = answers.surprise.masked_fill(~is_query, 0)
        counts = torch.stack([is_query, answers.is_right & is_query, nats]).double()  # [3,T,B]
        batch = counts.shape[2]
        sums = np.concatenate([np.zeros((3, 1, batch)), counts.cumsum(1).cpu().numpy()], 1)  # [3,T+1,B]
        starts = np.zeros(batch, np.int64)  # the first step of each stream's episode in this block
        for t, row, info in block.episode_ends:
            episode_counts = self.counts[:, row] + sums[:, t + 1, row] - sums[:, starts[row], row]  # [3]
            if episode_counts[0]:  # one that asked nothing says nothing about the policy
                self.episodes.append(_episode(info, episode_counts))
            self.counts = self.counts.copy()  # a snapshot may share the array
            self.counts[:, row] = 0
            starts[row] = t + 1
        self.counts = self.counts + sums[:, -1] - sums[:, starts, np.arange(batch)]

    def snapshot(self) -> dict[str, Any]:
        """What `collect` changes, for `restore`. Only the list of episodes is copied, since `collect` replaces
        everything else and never writes to it."""
        fields = {name: getattr(self, name) for name in self._FIELDS}
        fields["episodes"] = list(self.episodes)
        return {**fields, "generator": self.generator.get_state(), "env_state": cast(Any, self.env).state_dict()}

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Goes back to a snapshot."""
        self.generator.set_state(snapshot["generator"])
        cast(Any, self.env).load_state_dict(snapshot["env_state"])
        for name in self._FIELDS:
            setattr(self, name, snapshot[name])

    def metrics(self) -> dict[str, float]:
        """Empty, since the learner has all metrics."""
        return {}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that outlives a block, as tensors and JSON-able metadata. First counts the answers of the last
        block, so that no block has to be saved."""
        self._count_answers()
        tensors = {f"memory/{name}": tensor for name, tensor in self.memory.to_tensors().items()}
        tensors |= {f"env/{name}": torch.as_tensor(value) for name, value in cast(Any, self.env).state_dict().items()}
        tensors |= {name: torch.as_tensor(array) for name, array in self._arrays().items()}
        tensors["generator"] = self.generator.get_state()
        return tensors, {"live": self.live, "episodes": self.episodes}

    def load_state(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> bool:
        """Continues from `state`. Returns True, since all streams go on where they were."""
        expected = self._arrays()
        check_arrays(expected, {name: tensor for name, tensor in tensors.items() if name in expected})
        cast(Any, self.env).load_state_dict({k: tensor.numpy() for k, tensor in select_prefix("env/", tensors).items()})
        self.memory = self.policy.memory_from(select_prefix("memory/", tensors))
        self.observation = {name: tensor.numpy() for name, tensor in select_prefix("observation/", tensors).items()}
        for name in ("episode_start", "lengths", "counts"):
            setattr(self, name, tensors[name].numpy().copy())
        self.notes = restore_generator(self.generator, tensors["generator"])
        self.live = dict(metadata["live"])
        self.episodes = list(metadata["episodes"])
        self.block = None
        return True

    def _arrays(self) -> dict[str, np.ndarray]:
        """The state of the streams, in addition to the environments' own state."""
        arrays = {f"observation/{name}": np.asarray(entry) for name, entry in self.observation.items()}
        return arrays | {"episode_start": self.episode_start, "lengths": self.lengths, "counts": self.counts}

    def close(self) -> None:
        """Closes the environments."""
        self.env.close()


def answers_of(policy: LearningPolicy, out: Unroll, block: Block) -> Answers:
    """The policy's answers in a block. out: the block's unroll with `keep`. The surprise has a gradient. Raises
    ValueError for an unroll without the memory after it."""
    if out.memory is None:
        raise ValueError("out: expected an unroll that kept its memory")
    return Answers(
        memory=out.memory,
        is_right=policy.actions.mode(out.logits) == block.actions,
        surprise=-policy.actions.log_prob(out.logits, block.actions),
    )


def _episode(info: Mapping[str, Any], counts: np.ndarray) -> dict[str, Any]:
    """An episode for the log: the environment's info, and the bits of the policy's answers.

    counts [3]: the numbers of answers, at least 1, and of right answers, and the sum of nats. If the environment
    reports success, the accuracy replaces it and is the return. Otherwise the return is minus the bits.
    """
    num_answers, num_right, nats = counts
    accuracy = num_right / num_answers
    bits = nats / num_answers / math.log(2)
    score = {"is_success": accuracy, "return": accuracy} if "is_success" in info else {"return": -bits}
    entries = {name: value for name, value in info.items() if name not in ("right", "asked")}
    return {**entries, **score, "bits": bits}
