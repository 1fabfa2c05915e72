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
from torch import Tensor

from expire_span_rl.agents.rollout import Rollout
from expire_span_rl.spaces import PREVIOUS_ACTION, PREVIOUS_REWARD

NUM_COUNTERS = 1 << 18
"""Counters of visits. Observations share them, if there are more."""
RECENT_EPISODES = 1000
"""The weight of an episode falls by a factor of e in so many later ones."""
LARGEST = 10.0
"""Most that an observation counts, as one that a hundredth of the episodes had. As many episodes are assumed from the
start. What is never seen again then counts the same throughout, and less the mean nothing."""
_OWN = (PREVIOUS_ACTION, PREVIOUS_REWARD)
_SEED = 20_230_605  # of the multipliers of the codes, the same in every process


class EpisodicNovelty:
    """The observations that each environment's episode has had, by a code of 64 bits, and in which share of the latest
    episodes each of them was. They are compared exactly, so noise makes all of them new, and equally rare."""

    def __init__(self, batch: int):
        self._seen: list[set[int]] = [set() for _ in range(batch)]
        self._visits = np.zeros(NUM_COUNTERS, np.float32)  # episodes with an observation, by bits of its code
        self._episodes = 0.0  # episodes, with the same weights

    def add(self, observation: Mapping[str, Any], is_start: np.ndarray) -> np.ndarray:
        """Adds an observation to the episodes; bool [B]: where it is the first of a new one. Returns float32 [B]: 0
        there and where the episode had had it, else one over the root of the share of episodes that had it, at most
        LARGEST."""
        codes = _codes(observation)
        pairs = zip(self._seen, codes.tolist(), strict=True)
        is_new = np.array([code not in seen for seen, code in pairs]) & ~is_start
        for row in np.flatnonzero(is_new):
            self._seen[row].add(int(codes[row]))
        counters = (codes >> 45) & (NUM_COUNTERS - 1)
        np.add.at(self._visits, counters[is_new], 1)
        share = self._visits[counters] / max(self._episodes, LARGEST**2)
        self._begin(np.flatnonzero(is_start), codes)
        return np.where(is_new, np.maximum(share, LARGEST**-2) ** -0.5, 0).astype(np.float32)

    def _begin(self, rows: np.ndarray, codes: np.ndarray) -> None:
        """Begins episodes in the environments `rows` with their `codes`, int64 [B]."""
        if not len(rows):
            return
        for row in rows:
            self._seen[row] = {int(codes[row])}
        fading = (1 - 1 / RECENT_EPISODES) ** len(rows)
        self._visits *= fading
        self._episodes = self._episodes * fading + len(rows)

    def copy(self) -> EpisodicNovelty:
        """Another one with the same observations."""
        other = EpisodicNovelty(0)
        other._seen = [set(seen) for seen in self._seen]
        other._visits = self._visits.copy()
        other._episodes = self._episodes
        return other

    def state_dict(self) -> dict[str, np.ndarray]:
        """The state for `load_state_dict`. The codes of all environments follow one another; `sizes` [B] are their
        numbers."""
        return {
            "codes": np.array([code for seen in self._seen for code in sorted(seen)], np.int64),
            "sizes": np.array([len(seen) for seen in self._seen], np.int64),
            "visits": self._visits.copy(),
            "episodes": np.array(self._episodes),
        }

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Continues from `state_dict`. Raises ValueError for another number of environments or counters."""
        codes, sizes, visits = state["codes"], state["sizes"], state["visits"]
        if len(sizes) != len(self._seen) or sizes.sum() != len(codes) or visits.shape != self._visits.shape:
            raise ValueError(
                f"novelty: expected the codes of {len(self._seen)} environments, got those of {len(sizes)}"
            )
        self._seen = [set(part.tolist()) for part in np.split(codes, np.cumsum(sizes)[:-1])]
        self._visits = np.array(visits, np.float32)
        self._episodes = float(state["episodes"])


def with_bonus(rollout: Rollout, coef: float) -> tuple[Rollout, Tensor]:
    """The rollout with `coef` times its novelty, less the mean, added to rewards; and that mean, a scalar.

    Less the mean, so that it does not pay to put off the end of an episode. The end itself is neutral."""
    is_over = rollout.terminated | rollout.truncated
    mean = rollout.novelty.sum() / (~is_over).sum().clamp(min=1)
    bonus = coef * (rollout.novelty - mean).masked_fill(is_over, 0)
    return replace(rollout, rewards=rollout.rewards + bonus), mean


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
