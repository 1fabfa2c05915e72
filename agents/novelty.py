"""Which observations are new in their episode: what an intrinsic reward for looking around is paid for.

A reward for the first visit in an episode is the episodic part of many methods of exploration (Henaff et al., 2023,
arXiv 2306.03236, compare them). B environments.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from expire_span_rl.spaces import PREVIOUS_ACTION, PREVIOUS_REWARD

_SEED = 20_230_605  # of the multipliers of the codes, the same in every process


class EpisodicNovelty:
    """The observations that each environment's episode has had, by a code of 64 bits. They are compared exactly, so an
    entry with noise makes every observation new."""

    def __init__(self, batch: int):
        self._seen: list[set[int]] = [set() for _ in range(batch)]

    def begin(self, observation: Mapping[str, Any], rows: Iterable[int]) -> None:
        """Begins episodes in the environments `rows` with their entries of `observation`, [B, ...]."""
        rows = list(rows)
        for row, code in zip(rows, self._codes(observation)[rows].tolist(), strict=True):
            self._seen[row] = {code}

    def add(self, observation: Mapping[str, Any]) -> np.ndarray:
        """Adds an observation to each environment's episode. bool [B]: whether the episode had not had it."""
        codes = self._codes(observation).tolist()
        is_new = np.array([code not in seen for seen, code in zip(self._seen, codes, strict=True)])
        for seen, code in zip(self._seen, codes, strict=True):
            seen.add(code)
        return is_new

    def copy(self) -> EpisodicNovelty:
        """Another one with the same observations."""
        other = EpisodicNovelty(0)
        other._seen = [set(seen) for seen in self._seen]
        return other

    def state_dict(self) -> dict[str, np.ndarray]:
        """The state for `load_state_dict`: the codes of all environments one after another, and their numbers [B]."""
        codes = np.array([code for seen in self._seen for code in sorted(seen)], np.int64)
        return {"codes": codes, "counts": np.array([len(seen) for seen in self._seen], np.int64)}

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Continues from `state_dict`. Raises ValueError for another number of environments."""
        counts = state["counts"]
        if len(counts) != len(self._seen) or counts.sum() != len(state["codes"]):
            raise ValueError(f"novelty: expected codes of {len(self._seen)} environments, got those of {len(counts)}")
        parts = np.split(state["codes"], np.cumsum(counts)[:-1])
        self._seen = [set(part.tolist()) for part in parts]

    @staticmethod
    def _codes(observation: Mapping[str, Any]) -> np.ndarray:
        """int64 [B]: a linear hash of each environment's bytes. What the agent itself did or got is left out."""
        entries = [
            np.asarray(observation[name])
            for name in sorted(observation)
            if name not in (PREVIOUS_ACTION, PREVIOUS_REWARD)
        ]
        rows = [np.ascontiguousarray(entry).reshape(len(entry), -1).view(np.uint8) for entry in entries]
        data = np.concatenate(rows, 1).astype(np.uint64)
        multipliers = np.random.default_rng(_SEED).integers(0, 2**64, data.shape[1], np.uint64)
        return (data * multipliers).sum(1, dtype=np.uint64).view(np.int64)
