"""What an observation shows, in a few words: "blue ball", "red door and blue door", "suit 2". Also the names that an
environment gives to the numbers of its observations.

T steps. Cells are named by MiniGrid's objects, texts by themselves, whole numbers by their value. What has no name has
an empty text, such as a picture or real numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from minigrid.core.constants import IDX_TO_COLOR, IDX_TO_OBJECT

from expire_span_rl.policies import ActorCritic
from expire_span_rl.spaces import PREVIOUS_ACTION, PREVIOUS_REWARD
from expire_span_rl.viewer.play import Episode

BACKGROUND = ("unseen", "empty", "wall", "floor", "agent")  # MiniGrid's objects that are not worth a name
MAX_LETTERS = 40  # of a text that names an observation
MAX_OBJECTS = 3  # that are named with their colours
MAX_NUMBERS = 4  # whole numbers of an entry that name an observation

Names = Mapping[str, Sequence[str]]  # by entry


def observation_names(env: gym.Env, policy: ActorCritic) -> dict[str, list[str]]:
    """The environment's names, by entry, of `metadata["observation_names"]`. That is a plain list if the observation
    has no parts.

    An entry has a name for each of its numbers; a Discrete has one for each of its values. Lists of another length are
    left out.
    """
    names = (env.unwrapped.metadata or {}).get("observation_names")
    if isinstance(names, (list, tuple)):
        names = {"observation": names}
    if not isinstance(names, Mapping):
        return {}
    spec = policy.config.observation
    return {
        name: [str(label) for label in names[name]]
        for name, entry in spec.items()
        if isinstance(names.get(name), (list, tuple)) and len(names[name]) == _name_count(entry)
    }


def _name_count(entry: Mapping[str, Any]) -> int:
    """How many names an entry needs."""
    return int(entry["n"]) if entry["kind"] == "discrete" else int(np.prod(entry.get("shape", [])))


def describe_observations(policy: ActorCritic, episode: Episode, names: Names | None = None) -> dict[str, Any]:
    """JSON-able: `texts`, each different description once, `which` of them each step has [T], and `unnamed`, what to
    call an observation whose text is empty. names: `observation_names`."""
    index: dict[str, int] = {}  # of each different text
    which = [index.setdefault(text, len(index)) for text in _describe(policy, episode, names or {})]
    cells = any(entry["kind"] == "cells" for entry in policy.config.observation.values())
    unnamed = "only floor and walls" if cells else "something without a name"
    return {"texts": list(index), "which": which, "unnamed": unnamed}


def _describe(policy: ActorCritic, episode: Episode, names: Names) -> list[str]:
    """A text for each step: the environment's own description, if it has one. Texts that never change, such as a
    mission, are left out. Whole numbers are used only if the observation has neither cells nor texts that change."""
    if episode.descriptions:
        return episode.descriptions
    objects: list[list[str]] = []  # for each entry, a text for each step
    numbers: list[list[str]] = []
    for name, entry in policy.config.observation.items():
        values = [observation[name] for observation in episode.observations]
        if name in (PREVIOUS_ACTION, PREVIOUS_REWARD):
            continue
        if entry["kind"] == "cells":
            objects.append([describe_cells(image) for image in values])
        elif entry["kind"] == "words":
            quotes = [_quote(texts.get(name, "")) for texts in episode.texts or [{}] * len(values)]
            objects += [quotes] if len(set(quotes)) > 1 else []
        elif entry["kind"] in ("discrete", "integers"):
            numbers.append([_describe_numbers(name, entry, value, names.get(name)) for value in values])
    descriptions = objects or numbers or [[""] * len(episode.observations)]
    return [", ".join(filter(None, parts)) for parts in zip(*descriptions, strict=True)]


def describe_cells(image: np.ndarray) -> str:
    """The objects of MiniGrid's cells uint8 [V,V,3] without floor and walls, each different one once: "red door and
    blue door". Of more than MAX_OBJECTS different ones it gives how many there are of each kind: "2 doors and 3 balls".
    """
    objects = []
    for kind, colour, _ in np.asarray(image).reshape(-1, 3).tolist():
        name = IDX_TO_OBJECT.get(kind)
        if name is None or name in BACKGROUND:
            continue
        objects.append(f"{IDX_TO_COLOR.get(colour, '')} {name}".strip())
    different = list(dict.fromkeys(objects))
    if len(different) <= MAX_OBJECTS:
        objects = different
    else:
        kinds = Counter(text.split()[-1] for text in objects)
        objects = [
            f"{count} {'boxes' if kind == 'box' else f'{kind}s'}" if count > 1 else f"one {kind}"
            for kind, count in kinds.items()
        ]
    return join_words(sorted(objects, key=lambda text: text.split()[-1]))


def join_words(words: Sequence[str]) -> str:
    """ "a, b and c"."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _quote(text: str) -> str:
    """The text in quotation marks; empty if it is too long for a name."""
    return f"“{text}”" if 0 < len(text) <= MAX_LETTERS else ""


def value_name(entry: Mapping[str, Any], value: Any, names: Sequence[str]) -> str:
    """The name of a Discrete's value."""
    return names[int(value) - int(entry.get("start", 0))]


def _describe_numbers(name: str, entry: Mapping[str, Any], values: np.ndarray, names: Sequence[str] | None) -> str:
    """The whole numbers of an entry; empty if there are many."""
    numbers = [int(number) for number in np.ravel(values).tolist()]
    if len(numbers) > MAX_NUMBERS:
        return ""
    if entry["kind"] == "discrete" and names:
        return value_name(entry, numbers[0], names)
    if names:
        return ", ".join(f"{label} {number}" for label, number in zip(names, numbers, strict=True))
    return f"{name} {' '.join(map(str, numbers))}"
