"""What an observation shows, in a few words: "blue ball", "red door and blue door", "suit 2"; and the names that an
environment gives to the numbers of its observations.

T steps. Cells are named by MiniGrid's objects, texts by themselves, whole numbers by their value. What has no name, such
as a picture or real numbers, has an empty text.
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
MOST_LETTERS = 40  # of a text that names an observation
MOST_THINGS = 3  # that are named with their colours
MOST_NUMBERS = 4  # whole numbers of an entry that name an observation


Names = Mapping[str, Sequence[str]]  # by entry


def observation_names(env: gym.Env, policy: ActorCritic) -> dict[str, list[str]]:
    """The environment's names, by entry: `metadata["observation_names"]`, or a plain list if the observation has no
    parts. A name for each number of the entry, or for each value of a Discrete. Lists of another length are left out."""
    given = (env.unwrapped.metadata or {}).get("observation_names")
    if isinstance(given, (list, tuple)):
        given = {"observation": given}
    if not isinstance(given, Mapping):
        return {}
    spec = policy.config.observation
    return {
        name: [str(label) for label in given[name]]
        for name, entry in spec.items()
        if isinstance(given.get(name), (list, tuple)) and len(given[name]) == _count(entry)
    }


def _count(entry: Mapping[str, Any]) -> int:
    """How many names an entry takes."""
    return int(entry["n"]) if entry["kind"] == "discrete" else int(np.prod(entry.get("shape", [])))


def describe_observations(policy: ActorCritic, episode: Episode, names: Names | None = None) -> dict[str, Any]:
    """JSON-able: `texts`, each different description once, `which` of them each step has [T], and what to call those
    that are empty (`unnamed`). names: `observation_names`."""
    described = _describe(policy, episode, names or {})
    known: dict[str, int] = {}
    which = [known.setdefault(text, len(known)) for text in described]
    cells = any(entry["kind"] == "cells" for entry in policy.config.observation.values())
    unnamed = "only floor and walls" if cells else "something without a name"
    return {"texts": list(known), "which": which, "unnamed": unnamed}


def _describe(policy: ActorCritic, episode: Episode, names: Names) -> list[str]:
    """A text per step: the environment's own description, if it has one. Texts that never change, such as a mission, are left out; whole numbers name an observation only
    if it has neither cells nor texts that do."""
    if episode.descriptions:
        return episode.descriptions
    things: list[list[str]] = []  # per entry, a text per step
    numbers: list[list[str]] = []
    for name, entry in policy.config.observation.items():
        seen = [observation[name] for observation in episode.observations]
        if name in (PREVIOUS_ACTION, PREVIOUS_REWARD):
            continue
        if entry["kind"] == "cells":
            things.append([describe_cells(image) for image in seen])
        elif entry["kind"] == "words":
            said = [_quoted(texts.get(name, "")) for texts in episode.texts or [{}] * len(seen)]
            things += [said] if len(set(said)) > 1 else []
        elif entry["kind"] in ("discrete", "integers"):
            numbers.append([_numbers(name, entry, values, names.get(name)) for values in seen])
    chosen = things or numbers or [[""] * len(episode.observations)]
    return [", ".join(filter(None, parts)) for parts in zip(*chosen, strict=True)]


def describe_cells(image: np.ndarray) -> str:
    """The objects of MiniGrid's cells uint8 [V,V,3], floor and walls aside: "red door and blue door"; of many
    only how many of each: "2 doors, 2 balls and one key"."""
    things = []
    for kind, colour, _ in np.asarray(image).reshape(-1, 3).tolist():
        name = IDX_TO_OBJECT.get(kind)
        if name is None or name in BACKGROUND:
            continue
        thing = f"{IDX_TO_COLOR.get(colour, '')} {name}".strip()
        if thing not in things:
            things.append(thing)
    if len(things) > MOST_THINGS:
        kinds = Counter(thing.split()[-1] for thing in things)
        things = [
            f"{count} {'boxes' if kind == 'box' else f'{kind}s'}" if count > 1 else f"one {kind}"
            for kind, count in kinds.items()
        ]
    return listed(sorted(things, key=lambda thing: thing.split()[-1]))


def listed(things: Sequence[str]) -> str:
    """ "a, b and c"."""
    return " and ".join([", ".join(things[:-1]), things[-1]] if len(things) > 1 else things)


def _quoted(text: str) -> str:
    return f"“{text}”" if 0 < len(text) <= MOST_LETTERS else ""


def value_name(entry: Mapping[str, Any], value: Any, names: Sequence[str]) -> str:
    """The name of a Discrete's value."""
    return names[int(value) - int(entry.get("start", 0))]


def _numbers(name: str, entry: Mapping[str, Any], values: np.ndarray, names: Sequence[str] | None) -> str:
    """The whole numbers of an entry; empty if there are many."""
    numbers = [int(number) for number in np.ravel(values).tolist()]
    if len(numbers) > MOST_NUMBERS:
        return ""
    if entry["kind"] == "discrete" and names:
        return value_name(entry, numbers[0], names)
    if names:
        return ", ".join(f"{label} {number}" for label, number in zip(names, numbers, strict=True))
    return f"{name} {' '.join(map(str, numbers))}"
