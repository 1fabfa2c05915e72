"""Every number of the page as one JSON-able dict, which is also what `--json` writes.

T steps, N numbers of an action, M numbers that are shown of the actions' distribution, H heads, L layers. Steps are
counted from 0. Weights and probabilities have at most DIGITS digits behind the point. Rewards, returns and values may
be of any size: they have LONG_DIGITS significant ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from expire_span_rl.policies import ActorCritic
from expire_span_rl.viewer.entries import entries, short_number
from expire_span_rl.viewer.naming import describe_observations
from expire_span_rl.viewer.play import (
    MAX_ATTENDED,
    Episode,
    LayerLives,
    action_places,
    action_text,
    outcome,
    plain_value,
    strongest,
)
from expire_span_rl.viewer.story import story
from expire_span_rl.viewer.summary import summary

DIGITS = 4
LONG_DIGITS = 8  # significant digits of rewards, returns and values
MIN_WEIGHT = 0.005  # attention that some head must give to an observation that the record names
MAX_LIFE = 1 << 22  # steps; what lives longer counts as never expiring
VERSION = 1


def round_nested(numbers: Any, digits: int = DIGITS) -> Any:
    """The numbers as a nested list, rounded. None stands for one that is not finite."""
    values = np.asarray(numbers, float)
    if values.ndim == 0:
        return round(float(values), digits) if math.isfinite(values) else None
    return [round_nested(value, digits) for value in values]


def record(
    policy: ActorCritic,
    episode: Episode,
    lives: Sequence[LayerLives],
    *,
    names: Sequence[str],
    about: Mapping[str, Any],
    audit: Mapping[str, Any],
    labels: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Any]:
    """All numbers of an episode, JSON-able. docs/viewer.md has the list of keys.

    names: `action_names`. about: how it was played (`env`, `seed`, `deterministic`, ...). audit: `viewer.audit`'s.
    Without one there is no `story`. labels: `naming.observation_names`.
    """
    steps = len(episode.actions)
    info = {str(key): plain_value(value) for key, value in episode.info.items()}
    visible_entries = entries(policy, episode, names, labels)
    numbers: dict[str, Any] = {
        "version": VERSION,
        **about,
        "outcome": outcome(episode),
        "ended": episode.ended,
        "info": {key: value for key, value in info.items() if value is not None},
        "memory": policy.config.memory,
        "state_bytes": _state_bytes(episode, lives),
        "steps": steps,
        "action_names": list(names),
        **numbers_of(policy, episode, names),
        "layers": [_layer(policy, i, layer) for i, layer in enumerate(lives)],
        "transformer_xl": transformer_xl(lives),
        "audit": dict(audit),
        **({"entries": visible_entries} if visible_entries else {}),
        "shows": describe_observations(policy, episode, labels),
        "facts": None if episode.facts is None else episode.facts.tolist(),
    }
    return {**numbers, "story": story(numbers)} if audit else numbers


def _state_bytes(episode: Episode, lives: Sequence[LayerLives]) -> int:
    """The bytes of what is remembered, the mean over the episode's steps. A state without slots always has as many."""
    memory = episode.memories[0]
    if not lives:
        return int(memory.bytes()[0])
    return round(float(np.dot([layer.live.mean() for layer in lives], memory.slot_bytes())))


def numbers_of(policy: ActorCritic, episode: Episode, names: Sequence[str]) -> dict[str, Any]:
    """JSON-able: the actions, the distributions they were taken from, rewards and values."""
    return {
        **_actions(policy, episode, names),
        "rewards": _short(episode.rewards),
        "return": short_number(float(episode.rewards.sum()), LONG_DIGITS),
        "returns": _short(episode.rewards.cumsum()),
        "values": _short(episode.values),
        distribution_key(policy): round_nested(episode.marginals),
    }


def _short(numbers: np.ndarray) -> list[float | int | None]:
    """Numbers [T] of any size, of which many may be summed up."""
    return [short_number(number, LONG_DIGITS) for number in numbers.tolist()]


def distribution_key(policy: ActorCritic) -> str:
    """The key under which the record has the numbers of the actions' distribution."""
    return "means" if policy.actions.continuous else "probabilities"


def _actions(policy: ActorCritic, episode: Episode, names: Sequence[str]) -> dict[str, Any]:
    """`actions`: whole numbers from 0 on, or real ones in the environment's units.

    If an action is not a single whole number there is also `action_texts` [T]. Several whole numbers have `taken`: of
    each step, the places of the action among the probabilities. Real numbers have `continuous` and `action_bounds`
    [N,2], None for a missing bound.
    """
    actions = policy.actions
    if episode.actions.ndim == 1:
        return {"actions": episode.actions.tolist()}
    texts = [action_text(policy, action, names) for action in episode.actions]
    if not actions.continuous:
        places = [action_places(policy, action) for action in episode.actions]
        return {"actions": episode.actions.tolist(), "action_texts": texts, "taken": places}
    numbers = actions.to_env(torch.as_tensor(episode.actions)).reshape(episode.actions.shape)
    bounds = [list(pair) for pair in zip(actions.spec["low"], actions.spec["high"], strict=True)]
    return {
        "actions": [[float(str(number)) for number in row] for row in numbers],  # as short as its type allows
        "action_texts": texts,
        "continuous": True,
        "action_bounds": bounds,
    }


def transformer_xl(lives: Sequence[LayerLives]) -> dict[str, Any] | None:
    """The live memories per layer of a Transformer-XL whose window reaches just as far back as the oldest memory that
    was ever live in this episode: `window`, `live` [T]. None without memories."""
    if not lives:
        return None
    steps = len(lives[0].end)
    window = max(int((layer.end - 1 - np.arange(steps)).max()) for layer in lives)
    return {"window": window, "live": [min(t, window) + 1 for t in range(steps)]}


def _layer(policy: ActorCritic, index: int, lives: LayerLives) -> dict[str, Any]:
    """The numbers of one layer, by the keys of docs/viewer.md. `end` is within the episode; `expires` is the same as
    predicted, had the episode gone on, None for never."""
    kind = policy.core.layers[index].kind
    steps = len(lives.end)
    merging = kind.merging
    birth = torch.arange(steps)  # of each observation
    forgotten = np.bincount(lives.end, minlength=steps + 1)[:steps].cumsum()
    # A slot's age counts from the last member of its block.
    slot_birth = birth if merging is None else (birth // merging.size + 1) * merging.size - 1
    spans = getattr(kind, "spans", None)  # of the heads, where they have their own
    return {
        "heads": len(lives.decision),
        "end": lives.end.tolist(),
        "expires": _expiry(kind, slot_birth, lives.span),
        "span": None if lives.span is None else round_nested(lives.span, 1),
        "head_spans": None if spans is None else round_nested(spans().detach().cpu(), 1),
        "ramp": getattr(kind.config, "ramp", None),
        "window": getattr(kind.config, "window", None),
        "merged": None if merging is None else merging.clock(birth).tolist(),
        "merge_size": 1 if merging is None else merging.size,
        "live": lives.live.tolist(),
        "remembered": (np.arange(1, steps + 1) - forgotten).tolist(),
        "mean_live": round_nested(lives.live.mean()),
        "peak": round_nested(lives.peak),
        "attention": [_attention(to, weights) for to, weights in lives.attention],
    }


def _attention(to: np.ndarray, weights: np.ndarray) -> dict[str, Any]:
    """What a step attended to, at most MAX_ATTENDED observations, each with MIN_WEIGHT or more. to [n], weights
    [H,n]."""
    to, weights = strongest(weights, to, MAX_ATTENDED)
    is_kept = weights.max(0) >= MIN_WEIGHT
    return {"to": to[is_kept].tolist(), "weights": round_nested(weights[:, is_kept], 3)}


@torch.no_grad()
def _expiry(kind: Any, birth: Tensor, spans: np.ndarray | None) -> list[int | None]:
    """The first step [T] that will not see a memory of step `birth` [T], by bisection of its age. None for never."""
    dtype = next((p.dtype for p in kind.parameters()), torch.float32)
    described = None if spans is None else torch.as_tensor(spans, dtype=dtype)[None]
    low = torch.zeros_like(birth)
    high = torch.full_like(birth, MAX_LIFE)
    alive = torch.ones_like(birth, dtype=torch.bool)[None]
    never_expires = kind.survives(high[None].to(dtype), described, alive)[0]
    while bool((high - low > 1).any()):
        middle = (low + high) // 2
        survives = kind.survives(middle[None].to(dtype), described, alive)[0]
        low = torch.where(survives, middle, low)
        high = torch.where(survives, high, middle)
    steps = zip(never_expires.tolist(), (birth + high).tolist(), strict=True)
    return [None if never else step for never, step in steps]


def shared(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """All of `--json`: `version`, `episodes`, and `summary`, what is kept over all of them."""
    return {"version": VERSION, "episodes": list(records), "summary": summary(records)}
