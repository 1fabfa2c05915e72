"""How new observations are in their episode, and how rare in others: what an intrinsic reward for looking around pays.

The first visit in an episode, weighted by how rare such visits were so far, is the count-based form of several methods
(Henaff et al., 2023, arXiv 2306.03236, compare them). B environments.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from expire_span_rl.agents.rollout import Rollout
from expire_span_rl.spaces import PREVIOUS_ACTION, PREVIOUS_REWARD

MOST_COUNTED = 1 << 18
"""Most observations whose visits are counted. Beyond it those that were seen once are forgotten, then the rarest."""
MOST_SEEN = 1 << 12
"""Most observations of an episode that are remembered. Beyond it the oldest half is forgotten, and counts as new when
it comes again. Episodes without an end would otherwise fill the memory of the machine."""
RECENT_EPISODES = 1000
"""The weight of an episode falls by a factor of e in so many later ones."""
LARGEST = 10.0
"""Most that an observation counts, as one that a hundredth of the episodes had. A hundred episodes at least are taken.
What is never seen again then counts the same from the start on, and nothing once the mean is subtracted."""
MOST_WORTH = 8.0
"""Most that the new observations of an episode are worth in all, in typical discounted returns. Where episodes are long
and show ever more, to wander about would otherwise pay more than what the task is about. On MiniGrid's memory tasks
an episode of some tens of steps is worth 3 to 6 with the default weight."""
KEPT = 0.99
"""What is left of a rollout in the sums of `NoveltyBonus` after each later one."""
_LARGEST_WEIGHT = 1e6  # weights are then divided by it
_OWN = (PREVIOUS_ACTION, PREVIOUS_REWARD)
_SEED = 20_230_605  # of the multipliers of the codes, the same in every process


class EpisodicNovelty:
    """The observations that each environment's episode has had, by a code of 64 bits, and in which share of the latest
    episodes each of them was. They are compared exactly, so noise makes all of them new, and equally rare."""

    def __init__(self, batch: int):
        self._seen: list[dict[int, None]] = [{} for _ in range(batch)]
        """The codes that each environment's episode has had, the oldest first."""
        self._visits: dict[int, float] = {}
        """Episodes that had an observation, by its code. Each counts by its weight, that of later ones is larger."""
        self._episodes = 0.0
        """Episodes so far, by the same weights."""
        self._weight = 1.0
        """The weight of an episode now."""

    def add(self, observation: Mapping[str, Any], is_start: np.ndarray) -> np.ndarray:
        """Adds an observation to the episodes; bool [B]: where it is the first of a new one. Returns float32 [B]: 0
        there and where the episode had had it, else one over the root of the share of episodes that had it, at most
        LARGEST."""
        codes = _codes(observation).tolist()
        new_rows = [row for row, code in enumerate(codes) if not is_start[row] and code not in self._seen[row]]
        for row in new_rows:
            self._remember(row, codes[row])
            self._visits[codes[row]] = self._visits.get(codes[row], 0.0) + self._weight
        novelty = np.zeros(len(codes), np.float32)
        if new_rows:
            visits = np.array([self._visits[codes[row]] for row in new_rows])
            episodes = max(self._episodes, LARGEST**2 * self._weight)
            novelty[new_rows] = np.minimum((episodes / visits) ** 0.5, LARGEST)
        self._begin(np.flatnonzero(is_start).tolist(), codes)
        if len(self._visits) > MOST_COUNTED:
            self._prune()
        return novelty

    def _remember(self, row: int, code: int) -> None:
        seen = self._seen[row]
        seen[code] = None
        if len(seen) > MOST_SEEN:
            self._seen[row] = dict.fromkeys(list(seen)[MOST_SEEN // 2 :])

    def _begin(self, rows: list[int], codes: list[int]) -> None:
        """Begins episodes in the environments `rows`. codes: [B]."""
        for row in rows:
            self._seen[row] = {codes[row]: None}
        self._weight /= (1 - 1 / RECENT_EPISODES) ** len(rows)
        self._episodes += len(rows) * self._weight
        if self._weight > _LARGEST_WEIGHT:
            self._visits = {code: visits / self._weight for code, visits in self._visits.items()}
            self._episodes /= self._weight
            self._weight = 1.0

    def _prune(self) -> None:
        """Forgets observations that were seen once, and then the rarest, until at least half of the room is free."""
        kept = [(visits, code) for code, visits in self._visits.items() if visits > self._weight]
        self._visits = {code: visits for visits, code in sorted(kept)[-MOST_COUNTED // 2 :]}

    def copy(self) -> EpisodicNovelty:
        """Another one with the same observations."""
        other = EpisodicNovelty(0)
        other._seen = [dict(seen) for seen in self._seen]
        other._visits = dict(self._visits)
        other._episodes, other._weight = self._episodes, self._weight
        return other

    def state_dict(self) -> dict[str, np.ndarray]:
        """The state for `load_counts` and `load_episodes`. The codes of all environments follow one another; `sizes`
        [B] are their numbers."""
        return {
            "codes": np.array([code for seen in self._seen for code in seen], np.int64),
            "sizes": np.array([len(seen) for seen in self._seen], np.int64),
            "counted": np.array(list(self._visits), np.int64),
            "counts": np.array(list(self._visits.values()), np.float64),
            "episodes": np.array(self._episodes),
            "weight": np.array(self._weight),
        }

    def load_counts(self, state: Mapping[str, np.ndarray]) -> None:
        """Continues with the counts of `state_dict`, in episodes of its own. States of before 28 November 2026 have no
        counts by code, and counting begins anew."""
        if "counts" in state:
            self._visits = dict(zip(state["counted"].tolist(), state["counts"].tolist(), strict=True))
            self._episodes, self._weight = float(state["episodes"]), float(state["weight"])

    def load_episodes(self, state: Mapping[str, np.ndarray]) -> None:
        """Continues in the episodes of `state_dict`. Raises ValueError for another number of environments."""
        codes, sizes = state["codes"], state["sizes"]
        if len(sizes) != len(self._seen) or sizes.sum() != len(codes):
            raise ValueError(
                f"novelty: expected the codes of {len(self._seen)} environments, got those of {len(sizes)}"
            )
        self._seen = [dict.fromkeys(part.tolist()) for part in np.split(codes, np.cumsum(sizes)[:-1])]


class NoveltyBonus:
    """Adds the novelty of rollouts to their rewards."""

    def __init__(self) -> None:
        self.sums = torch.zeros(2, dtype=torch.float64)
        """Novelty, and episodes that ended, over the latest rollouts. Most rollouts may be shorter than episodes."""

    def apply(self, rollout: Rollout, coef: float) -> tuple[Rollout, dict[str, float]]:
        """The rollout with its novelty, less the mean, times a weight added to rewards; and metrics: that mean and the
        weight. It is `coef`, or less, so that the mean episode is worth at most MOST_WORTH.

        Less the mean, so that it does not pay to put off the end of an episode. The end itself is neutral."""
        is_over = rollout.terminated | rollout.truncated
        total = rollout.novelty.sum()
        mean = total / (~is_over).sum().clamp(min=1)
        self.sums = KEPT * self.sums.to(total.device) + torch.stack([total, is_over.sum()])
        novelty, ends = self.sums
        weight = (MOST_WORTH * ends.clamp(min=1) / novelty).clamp(max=coef)  # infinity without anything new
        bonus = weight * (rollout.novelty - mean).masked_fill(is_over, 0)
        metrics = zip(("train/novelty_coef", "train/novelty"), torch.stack([weight, mean]).tolist(), strict=True)
        # A GPU is waited for once.
        return replace(rollout, rewards=(rollout.rewards + bonus).to(rollout.rewards.dtype)), dict(metrics)

    def state_dict(self) -> dict[str, Tensor]:
        """The state, for `load_state_dict`."""
        return {"sums": self.sums}

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Continues from `state_dict`."""
        self.sums = tensors["sums"]


def _codes(observation: Mapping[str, Any]) -> np.ndarray:
    """int64 [B]: a linear hash of each environment's bytes. What the agent itself did or got is left out."""
    entries = [np.asarray(observation[name]) for name in sorted(observation) if name not in _OWN]
    rows = [np.ascontiguousarray(entry).reshape(len(entry), -1).view(np.uint8) for entry in entries]
    data = np.concatenate(rows, 1).astype(np.uint64)
    return (data @ _multipliers(data.shape[1])).view(np.int64)


@cache
def _multipliers(size: int) -> np.ndarray:
    """uint64 [size], random ones."""
    return np.random.default_rng(_SEED).integers(0, 2**64, size, np.uint64)
