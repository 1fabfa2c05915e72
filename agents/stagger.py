"""Episodes of one length that begin together end together. Few rollouts then have the start of an episode in them, and
those have nothing else. Such episodes are therefore cut short, once in each environment, so that from then on every
rollout has some of every part.

B environments.
"""

from __future__ import annotations

import numpy as np

UNKNOWN = -1  # no episodes have ended together yet
NEVER = 0


def rows_to_cut(cut_after: np.ndarray, lengths: np.ndarray, is_over: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The environments whose episodes are to be cut now, and the `cut_after` of the next step. Nothing is written to.

    cut_after: int64 [B] steps after which the current episodes are cut, NEVER if they are not. All are UNKNOWN until
    the episodes of all environments end at the same step. The next one of environment i is then cut after i / B of that
    length. lengths: int64 [B] steps so far; is_over: bool [B], the episodes that ended by themselves at this step."""
    if cut_after[0] == UNKNOWN:
        if is_over.all() and len(is_over) > 1:
            cut_after = np.arange(len(is_over)) * int(lengths.min()) // len(is_over)
        return np.empty(0, np.int64), cut_after
    is_due = (lengths == cut_after) & (cut_after > NEVER) & ~is_over
    return np.flatnonzero(is_due), np.where(is_due | is_over, NEVER, cut_after)
