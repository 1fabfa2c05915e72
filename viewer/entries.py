"""What a policy saw beside pictures, entry by entry, as numbers and texts that one can read.

T steps, n numbers of an entry.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

from expire_span_rl.policies import ActorCritic
from expire_span_rl.spaces import PREVIOUS_ACTION, PREVIOUS_REWARD
from expire_span_rl.viewer.panels import is_panel
from expire_span_rl.viewer.play import Episode

MOST_NUMBERS = 32  # of an entry; of a larger one only their number is told
DIGITS = 4  # that count


def entries(
    policy: ActorCritic, episode: Episode, names: Sequence[str], labels: Mapping[str, Sequence[str]] | None = None
) -> list[dict[str, Any]]:
    """JSON-able, in order: `name` and `kind` of every entry that is no picture, but for the previous action and reward,
    which the page has anyway. Of words: `texts`, each different one once, and `which` of them each step has. Of
    numbers: `labels` and `values` [T,n]; of more than MOST_NUMBERS only `count`. names: `action_names`, which are the
    labels of a mask. labels: `naming.observation_names`; where they are the labels, `named` is true, and of a Discrete
    they are the `value_names` of its values, which are counted from `start`."""
    told = []
    for name, entry in policy.config.observation.items():
        if is_panel(entry) or name in (PREVIOUS_ACTION, PREVIOUS_REWARD):
            continue
        if entry["kind"] == "words":
            told.append({"name": name, "kind": "words", **_texts(name, episode)})
            continue
        count = int(np.prod(entry.get("shape", [])))
        if count > MOST_NUMBERS:
            told.append({"name": name, "kind": entry["kind"], "count": count})
            continue
        own = (labels or {}).get(name)
        shown = list(names) if entry["kind"] == "mask" else labels_of(name, entry)
        more: dict[str, Any] = {}
        if own and entry["kind"] == "discrete":
            more = {"value_names": list(own), "start": int(entry.get("start", 0))}
        elif own and entry["kind"] != "mask":
            shown, more = list(own), {"named": True}
        values = [[_short(number) for number in np.ravel(seen[name]).tolist()] for seen in episode.observations]
        told.append({"name": name, "kind": entry["kind"], "labels": shown, "values": values, **more})
    return told


def labels_of(name: str, entry: Mapping[str, Any]) -> list[str]:
    """A label for each number of an entry: its name and index, such as "cards[2]" or "board[0,1]"."""
    shape = entry.get("shape", [])
    places = product(*(range(size) for size in shape))
    return [f"{name}[{','.join(map(str, place))}]" for place in places] if shape else [name]


def _texts(name: str, episode: Episode) -> dict[str, Any]:
    """The texts of an entry of words; of one that the environment cannot be asked for, how many words it had."""
    known: dict[str, int] = {}
    which = []
    for t, seen in enumerate(episode.observations):
        count = int(np.count_nonzero(seen[name]))
        unknown = f"{count} word{'s' * (count != 1)}"
        text = episode.texts[t].get(name, unknown) if episode.texts else unknown
        which.append(known.setdefault(text, len(known)))
    return {"texts": list(known), "which": which}


def _short(number: float) -> float | int | None:
    """A number of DIGITS digits that count; None if it is not finite."""
    if isinstance(number, (bool, int)):
        return int(number)
    return float(f"{number:.{DIGITS}g}") if np.isfinite(number) else None
