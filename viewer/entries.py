"""What a policy saw beside pictures, entry by entry, as readable numbers and texts.

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

MAX_NUMBERS = 32  # of an entry; of a larger entry only the count is given
DIGITS = 4  # significant digits


def entries(
    policy: ActorCritic, episode: Episode, names: Sequence[str], labels: Mapping[str, Sequence[str]] | None = None
) -> list[dict[str, Any]]:
    """JSON-able: every entry that is no picture, in order. The previous action and reward are left out, since the page
    shows them anyway.

    Each has its `name` and `kind`. Words have `texts`, each different one once, and `which` of them each step shows.
    Numbers have `labels` and `values` [T,n]; if there are more than MAX_NUMBERS, only their `count`.
    names: `action_names`, which are the labels of a mask. labels: `naming.observation_names`. Where these are used,
    `named` is true. Of a Discrete they are the `value_names` of its values, which are counted from `start`.
    """
    parts = []
    for name, entry in policy.config.observation.items():
        if is_panel(entry) or name in (PREVIOUS_ACTION, PREVIOUS_REWARD):
            continue
        if entry["kind"] == "words":
            parts.append({"name": name, "kind": "words", **_texts(name, episode)})
        elif (count := int(np.prod(entry.get("shape", [])))) > MAX_NUMBERS:
            parts.append({"name": name, "kind": entry["kind"], "count": count})
        else:
            parts.append(_numbers(name, entry, episode, names, (labels or {}).get(name)))
    return parts


def _numbers(
    name: str, entry: Mapping[str, Any], episode: Episode, names: Sequence[str], env_labels: Sequence[str] | None
) -> dict[str, Any]:
    """An entry of numbers. env_labels: the names that the environment gives, None for none."""
    labels = list(names) if entry["kind"] == "mask" else labels_of(name, entry)
    extra: dict[str, Any] = {}
    if env_labels and entry["kind"] == "discrete":
        extra = {"value_names": list(env_labels), "start": int(entry.get("start", 0))}
    elif env_labels and entry["kind"] != "mask":
        labels = list(env_labels)
        extra = {"named": True}
    values = [
        [short_number(number) for number in np.ravel(observation[name]).tolist()]
        for observation in episode.observations
    ]
    return {"name": name, "kind": entry["kind"], "labels": labels, "values": values, **extra}


def labels_of(name: str, entry: Mapping[str, Any]) -> list[str]:
    """A label for each number of an entry: its name and index, such as "cards[2]" or "board[0,1]"."""
    shape = entry.get("shape", [])
    places = product(*(range(size) for size in shape))
    return [f"{name}[{','.join(map(str, place))}]" for place in places] if shape else [name]


def _texts(name: str, episode: Episode) -> dict[str, Any]:
    """The texts of an entry of words. Where the environment cannot be asked for the text, it is the number of words."""
    index: dict[str, int] = {}  # of each different text
    which = []
    for t, observation in enumerate(episode.observations):
        count = int(np.count_nonzero(observation[name]))
        substitute = f"{count} word{'s' * (count != 1)}"
        text = episode.texts[t].get(name, substitute) if episode.texts else substitute
        which.append(index.setdefault(text, len(index)))
    return {"texts": list(index), "which": which}


def short_number(number: float, digits: int = DIGITS) -> float | int | None:
    """A number of `digits` significant digits; None if it is not finite."""
    if isinstance(number, (bool, int)):
        return int(number)
    return float(f"{number:.{digits}g}") if np.isfinite(number) else None
