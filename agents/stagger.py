"""Episodes of one length that begin together end together. Few rollouts then have the start of an episode in them, and
those have nothing else. `Stagger` says which episodes to cut short, once in each environment, so that from then on
every rollout has some of every part.

B environments.
"""

from __future__ import annotations

import numpy as np

_UNKNOWN = -1  # no episodes have ended together yet


class Stagger:
    """Waits until the episodes of all environments end at the same step. The next one of environment i is then cut
    after i / B of that length."""

    def __init__(self, num_envs: int) -> None:
        self.cut_after = np.full(num_envs, _UNKNOWN, np.int64)
        """[B] steps after which the current episode is cut; 0: it is not."""

    def rows_to_cut(self, lengths: np.ndarray, is_over: np.ndarray) -> np.ndarray:
        """The environments whose episodes are to be cut now. lengths: int64 [B] steps so far; is_over: bool [B], the
        episodes that ended by themselves at this step. Replaces `cut_after` where it changes, so that a copy is not
        needed."""
        if self.cut_after[0] == _UNKNOWN:
            if is_over.all() and len(is_over) > 1:
                self.cut_after = np.arange(len(is_over)) * int(lengths.min()) // len(is_over)
            return np.empty(0, np.int64)
        is_due = (lengths == self.cut_after) & (self.cut_after > 0) & ~is_over
        if is_due.any() or (is_over & (self.cut_after > 0)).any():
            self.cut_after = np.where(is_due | is_over, 0, self.cut_after)
        return np.flatnonzero(is_due)
