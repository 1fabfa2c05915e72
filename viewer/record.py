"""Every number of the page as one JSON-able dict, which is also what `--json` writes.

T steps, N numbers of an action, M numbers that are shown of the actions' distribution, H heads, L layers. Steps are
counted from 0; weights and probabilities are rounded to DIGITS.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from expire_span_rl.policies import ActorCritic
from expire_span_rl.viewer.entries import entries
from expire_span_rl.viewer.naming import describe_observations
from expire_span_rl.viewer.play import Episode, LayerLives, action_text, outcome, plain, taken
from expire_span_rl.viewer.story import story
from expire_span_rl.viewer.summary import summary

DIGITS = 4
LONGEST_LIFE = 1 << 22  # steps; what lives longer is said never to expire
VERSION = 1


def rounded(numbers: Any, digits: int = DIGITS) -> Any:
    """A nested list of the numbers, rounded; None where one is not finite."""
    values = np.asarray(numbers, float)
    if values.ndim == 0:
        return round(float(values), digits) if math.isfinite(values) else None
    return [rounded(value, digits) for value in values]


def record(
    policy: ActorCritic,
    episode: Episode,
    lives: Sequence[LayerLives],
    names: Sequence[str],
    about: Mapping[str, Any],
    audit: Mapping[str, Any],
    labels: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Any]:
    """names: `action_names`; about: how it was played (`env`, `seed`, `deterministic`, ...); audit:
    `viewer.audit`'s; labels: `naming.observation_names`. `shows`: what each observation shows, in words; `facts` [T]: the fact that it shows, -1 for none, if
    the environment tells; `story`: `viewer.story`'s."""
    steps = len(episode.actions)
    info = {str(key): plain(value) for key, value in episode.info.items()}
    told: dict[str, Any] = {
        "version": VERSION,
        **about,
        "outcome": outcome(episode),
        "ended": episode.ended,
        "info": {key: value for key, value in info.items() if value is not None},
        "memory": policy.config.memory,
        "state_bytes": int(episode.memories[0].bytes()[0]),
        "steps": steps,
        "action_names": list(names),
        **numbers_of(policy, episode, names),
        "layers": [_layer(policy, i, layer) for i, layer in enumerate(lives)],
        "transformer_xl": transformer_xl(lives),
        "audit": dict(audit),
        **({"entries": seen} if (seen := entries(policy, episode, names, labels)) else {}),
        "shows": describe_observations(policy, episode, labels),
        "facts": None if episode.facts is None else episode.facts.tolist(),
    }
    return {**told, "story": story(told)} if audit else told


def numbers_of(policy: ActorCritic, episode: Episode, names: Sequence[str]) -> dict[str, Any]:
    """JSON-able: what was done, by what chances, and what it brought."""
    return {
        **_actions(policy, episode, names),
        "rewards": rounded(episode.rewards),
        "return": rounded(episode.rewards.sum()),
        "values": rounded(episode.values),
        shown_as(policy): rounded(episode.marginals),
    }


def shown_as(policy: ActorCritic) -> str:
    """What the numbers are that are shown of the actions' distribution."""
    return "means" if policy.actions.continuous else "probabilities"


def _actions(policy: ActorCritic, episode: Episode, names: Sequence[str]) -> dict[str, Any]:
    """`actions`: whole numbers from 0 on, or real ones in the environment's units; if an action is not a single whole
    number also `action_texts` [T] and either `taken` (per step, which of the probabilities are those of the action) or
    `continuous` and `action_bounds` [N,2] (None where there is none)."""
    actions = policy.actions
    if episode.actions.ndim == 1:
        return {"actions": episode.actions.tolist()}
    texts = [action_text(policy, action, names) for action in episode.actions]
    if not actions.continuous:
        marked = [taken(policy, action) for action in episode.actions]
        return {"actions": episode.actions.tolist(), "action_texts": texts, "taken": marked}
    numbers = actions.to_env(torch.as_tensor(episode.actions)).reshape(episode.actions.shape)
    bounds = [list(pair) for pair in zip(actions.spec["low"], actions.spec["high"], strict=True)]
    return {
        "actions": [[float(str(number)) for number in row] for row in numbers],  # as short as its type allows
        "action_texts": texts,
        "continuous": True,
        "action_bounds": bounds,
    }


def transformer_xl(lives: Sequence[LayerLives]) -> dict[str, Any] | None:
    """What a Transformer-XL would hold per layer whose window reaches just as far back as the oldest memory that was
    ever live in this episode: `window`, `live` [T]. None without memories."""
    if not lives:
        return None
    steps = len(lives[0].end)
    window = max(int((layer.end - 1 - np.arange(steps)).max()) for layer in lives)
    return {"window": window, "live": [min(t, window) + 1 for t in range(steps)]}


def _layer(policy: ActorCritic, index: int, lives: LayerLives) -> dict[str, Any]:
    """`end`: first step that no longer sees each observation, within the episode; `expires`: the same as predicted, had
    the episode gone on, None for never; `span`: in steps, None for what is kept for good; `merged`: first step that sees it only as a part of a slot that stands for
    `merge_size` of them; `remembered`: observations so far that are live or live on in such a slot."""
    kind, steps = policy.core.layers[index].kind, len(lives.end)
    merging, written = kind.merging, torch.arange(steps)
    ended = np.bincount(lives.end, minlength=steps + 1)[:steps].cumsum()
    # The step from which a slot's age counts.
    last = written if merging is None else (written // merging.size + 1) * merging.size - 1
    spans = getattr(kind, "spans", None)  # of the heads, where they have their own
    return {
        "heads": len(lives.decision),
        "end": lives.end.tolist(),
        "expires": _expiry(kind, last, lives.span),
        "span": None if lives.span is None else rounded(lives.span, 1),
        "head_spans": None if spans is None else rounded(spans().detach().cpu(), 1),
        "ramp": getattr(kind.config, "ramp", None),
        "window": getattr(kind.config, "window", None),
        "merged": None if merging is None else merging.clock(written).tolist(),
        "merge_size": 1 if merging is None else merging.size,
        "live": lives.live.tolist(),
        "remembered": (np.arange(1, steps + 1) - ended).tolist(),
        "mean_live": rounded(lives.live.mean()),
        "peak": rounded(lives.peak),
        "attention": [{"to": to.tolist(), "weights": rounded(weights, 3)} for to, weights in lives.attention],
    }


@torch.no_grad()
def _expiry(kind: Any, written: Tensor, spans: np.ndarray | None) -> list[int | None]:
    """The first step [T] that a memory written at step `written` [T] will not be seen from, by bisection of its age."""
    dtype = next((p.dtype for p in kind.parameters()), torch.float32)
    described = None if spans is None else torch.as_tensor(spans, dtype=dtype)[None]
    low, high = torch.zeros_like(written), torch.full_like(written, LONGEST_LIFE)
    alive = torch.ones_like(written, dtype=torch.bool)[None]
    forever = kind.survives(high[None].to(dtype), described, alive)[0]
    while bool((high - low > 1).any()):
        middle = (low + high) // 2
        survives = kind.survives(middle[None].to(dtype), described, alive)[0]
        low, high = torch.where(survives, middle, low), torch.where(survives, high, middle)
    return [None if ever else step for ever, step in zip(forever.tolist(), (written + high).tolist(), strict=True)]


def shared(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The whole of `--json`: `version`, `episodes`, and `summary`, what is kept over all of them."""
    return {"version": VERSION, "episodes": list(records), "summary": summary(records)}
