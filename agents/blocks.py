"""Blocks of long streams, for agents that learn from what is right instead of from rewards.

T time steps, B streams. A stream is an environment whose observations do not depend on what is done in it, and which
says at every step which action is right (`target`) and where that matters (`decisions`). It is stepped with the right
actions, so that the previous action in its observations is right too (teacher forcing); an evaluation steps it with the
policy's own. Nothing acts here: what the policy remembers flows from block to block through its unrolls.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from expire_span_rl.agents.episodes import finished
from expire_span_rl.agents.guard import Deadline
from expire_span_rl.agents.rollout import check_arrays, continue_drawing, under
from expire_span_rl.protocols import LearningPolicy, Memory, Unroll


@dataclass
class Answers:
    """What learning from a block gave, beside what was learned."""

    memory: Memory  # after the block's last step
    right: Tensor  # [T,B] bool: the likeliest action was the right one
    surprise: Tensor  # [T,B] -log p of the right action, in nats


@dataclass
class Block:
    """T steps of B streams, time-major, and the memory before the first of them."""

    observation: dict[str, Tensor]  # entries [T,B, ...]
    episode_start: Tensor  # [T,B] bool
    actions: Tensor  # [T,B] the right ones
    asked: Tensor  # [T,B] bool: where they matter
    memory: Memory
    ended: Sequence[tuple[int, int, Mapping[str, Any]]]  # (t, b, what the environment says) of episodes that ended
    answers: Answers | None = None
    """Filled in by whoever learns from the block; the next one begins with the memory in it."""

    def rows(self, indices: Tensor) -> Block:
        """The chosen streams: a minibatch. indices: int64 [b]. It does not tell which episodes ended."""
        return Block(
            observation={key: value[:, indices] for key, value in self.observation.items()},
            episode_start=self.episode_start[:, indices],
            actions=self.actions[:, indices],
            asked=self.asked[:, indices],
            memory=self.memory.rows(indices),
            ended=(),
        )


class BlockSource:
    """Blocks of the streams of a vector environment (SAME_STEP autoreset): a `RolloutSource`. An episode is told when
    what was answered in it is known, which is with the block after the one in which it ended.

    Raises ValueError, one line, for environments that do not say what is right.
    """

    on_policy: ClassVar[bool] = False  # nothing acts that learning could be checked against

    def __init__(self, env: VectorEnv, policy: LearningPolicy, num_steps: int, seed: int):
        self.env, self.policy, self.num_steps = env, policy, num_steps
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
                f"--env: expected streams that say what is right, such as Copy-v0, got {type(env.unwrapped).__name__}"
            )
        self.memory = policy.initial_memory(batch)
        self.episode_start = np.ones(batch, bool)
        self.lengths = np.zeros(batch, np.int64)
        self.counts = np.zeros((3, batch))  # of each stream's episode so far: answers, those that were right, nats
        self.block: Block | None = None  # the last one, as long as its answers were not counted
        self.episodes: list[dict[str, Any]] = []  # that ended, and were not told yet

    _FIELDS = ("memory", "observation", "episode_start", "lengths", "counts", "block", "episodes", "live")

    def collect(self) -> tuple[Block, list[dict[str, Any]]]:
        """The next block, and the episodes that ended in the one before. Raises TrainingEnded some seconds after `stop`
        was set, and what the environments raise."""
        self._count()
        episodes, self.episodes = self.episodes, []
        memory = self.policy.draw(self.memory, self.generator)
        self.live = self._live(memory)
        env, device, steps = cast(Any, self.env), self.policy.device, self.num_steps
        shown: dict[str, list[np.ndarray]] = {key: [] for key in self.observation}
        starts, targets, asked, ended = [], [], [], []
        lengths = self.lengths.copy()
        for t in range(steps):
            self.deadline.check()
            for key, entry in self.observation.items():
                shown[key].append(np.asarray(entry))
            starts.append(self.episode_start)
            targets.append(self._streams.target())
            asked.append(self._streams.decisions())
            self.observation, rewards, terminated, truncated, infos = env.step(targets[-1])
            lengths += 1
            self.episode_start = terminated | truncated
            if self.episode_start.any():
                rows = np.flatnonzero(self.episode_start)
                told = finished(infos, rewards, lengths)
                ended += [(t, int(row), episode) for row, episode in zip(rows, told, strict=True)]
                lengths[rows] = 0
        self.lengths = lengths
        arrays = [torch.as_tensor(np.stack(rows), device=device) for rows in (starts, targets, asked)]
        self.block = Block(
            observation={key: torch.as_tensor(np.stack(rows), device=device) for key, rows in shown.items()},
            episode_start=arrays[0],
            actions=arrays[1],
            asked=arrays[2],
            memory=memory,
            ended=ended,
        )
        return self.block, episodes

    def _live(self, memory: Memory) -> dict[str, list[float]]:
        """Mean and maximum over streams of the memories that a block's first step sees, its own among them."""
        counts = memory.live()
        if counts is None:
            return {}
        counts = torch.where(torch.as_tensor(self.episode_start, device=counts.device)[:, None], 0, counts) + 1
        return {"mean": counts.float().mean(0).tolist(), "max": counts.amax(0).tolist()}

    def _count(self) -> None:
        """Counts the answers of the last block, and goes on from the memory after it."""
        block, self.block = self.block, None
        if block is None:
            return
        answers = block.answers
        if answers is None:  # what was learned from it was taken back
            with torch.no_grad():
                out = self.policy.unroll(block.observation, block.memory, block.episode_start, keep=True)
                answers = answers_of(self.policy, out, block)
        self.memory = answers.memory
        asked = block.asked
        each = torch.stack([asked, answers.right & asked, answers.surprise.masked_fill(~asked, 0)]).double()
        sums = np.concatenate([np.zeros((3, 1, each.shape[2])), each.cumsum(1).cpu().numpy()], 1)  # [3,T+1,B]
        begun = np.zeros(each.shape[2], np.int64)  # step at which what is not counted yet begins
        for t, row, said in block.ended:
            total = self.counts[:, row] + sums[:, t + 1, row] - sums[:, begun[row], row]
            self.episodes.append(_episode(said, *total))
            self.counts = self.counts.copy()
            self.counts[:, row], begun[row] = 0, t + 1
        self.counts = self.counts + sums[:, -1] - sums[:, begun, np.arange(len(begun))]

    def snapshot(self) -> dict[str, Any]:
        """What `collect` changes, for `restore`: nothing of it is written into."""
        own = {name: getattr(self, name) for name in self._FIELDS}
        own["episodes"] = list(self.episodes)
        return {**own, "generator": self.generator.get_state(), "env_state": cast(Any, self.env).state_dict()}

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Takes back what was collected since."""
        self.generator.set_state(snapshot["generator"])
        cast(Any, self.env).load_state_dict(snapshot["env_state"])
        for name in self._FIELDS:
            setattr(self, name, snapshot[name])

    def figures(self) -> dict[str, float]:
        """Nothing: the learner tells it all."""
        return {}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that lives between blocks, the answers of the last one counted."""
        self._count()
        tensors = {f"memory/{name}": tensor for name, tensor in self.memory.to_tensors().items()}
        tensors |= {f"env/{name}": torch.as_tensor(value) for name, value in cast(Any, self.env).state_dict().items()}
        tensors |= {name: torch.as_tensor(array) for name, array in self._arrays().items()}
        tensors["generator"] = self.generator.get_state()
        return tensors, {"live": self.live, "episodes": self.episodes}

    def load_state(self, tensors: Mapping[str, Tensor], known: Mapping[str, Any]) -> bool:
        """Continues from `state`. True: streams go on where they were."""
        own = self._arrays()
        check_arrays(own, {name: tensor for name, tensor in tensors.items() if name in own})
        cast(Any, self.env).load_state_dict({k: tensor.numpy() for k, tensor in under("env/", tensors).items()})
        self.memory = self.policy.memory_from(under("memory/", tensors))
        self.observation = {name: tensor.numpy() for name, tensor in under("observation/", tensors).items()}
        for name in ("episode_start", "lengths", "counts"):
            setattr(self, name, tensors[name].numpy().copy())
        self.notes = continue_drawing(self.generator, tensors["generator"])
        self.live, self.episodes, self.block = dict(known["live"]), list(known["episodes"]), None
        return True

    def _arrays(self) -> dict[str, np.ndarray]:
        """Where the streams stand, beside the environments' own state."""
        arrays = {f"observation/{name}": np.asarray(entry) for name, entry in self.observation.items()}
        return arrays | {"episode_start": self.episode_start, "lengths": self.lengths, "counts": self.counts}

    def close(self) -> None:
        """Closes the environments."""
        self.env.close()


def answers_of(policy: LearningPolicy, out: Unroll, block: Block) -> Answers:
    """What an unroll of a block answered; the surprise with its gradient."""
    if out.memory is None:
        raise ValueError("out: expected an unroll that kept its memory")
    right = policy.actions.mode(out.logits) == block.actions
    return Answers(out.memory, right, -policy.actions.log_prob(out.logits, block.actions))


def _episode(said: Mapping[str, Any], asked: float, right: float, nats: float) -> dict[str, Any]:
    """An episode's figures: what the environment says, and of the policy's answers the accuracy and bits. Where the
    environment knows success, that is the accuracy; elsewhere the return is minus the bits, which is to rise."""
    accuracy = right / asked if asked else 0.0
    bits = nats / asked / math.log(2) if asked else 0.0
    score = {"is_success": accuracy, "return": accuracy} if "is_success" in said else {"return": -bits}
    counted = {name: value for name, value in said.items() if name not in ("right", "asked")}
    return {**counted, **score, "bits": bits}
