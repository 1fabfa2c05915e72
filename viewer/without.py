"""The episode as it would have gone without a memory: the audit's counterfactual, played on to its end.

Seed and actions are the same up to a decision. From there on the policy acts for itself. In a memory of slots, one
observation leaves none in any layer (`total_removed` of the audit). Any other memory is emptied at the decision.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from expire_span_rl.policies import ActorCritic
from expire_span_rl.viewer.effects import MIN_SHIFT
from expire_span_rl.viewer.play import Episode, Forgetting, outcome, play
from expire_span_rl.viewer.record import numbers_of
from expire_span_rl.viewer.story import observation_name

# It is stopped after STEPS_FACTOR times the steps of the episode as it was, and EXTRA_STEPS more.
STEPS_FACTOR = 3
EXTRA_STEPS = 100


def forgetting_of(record: Mapping[str, Any]) -> Forgetting | None:
    """How to forget what the story says mattered. None if nothing mattered."""
    story = record["story"]
    if record["layers"]:
        return Forgetting(story["step"], story["written"]) if story["written"] in story["matters"] else None
    matters = record["state_bytes"] and (record["audit"]["influence"][story["step"]] or 0) >= MIN_SHIFT
    return Forgetting(story["step"], None) if matters and story["step"] else None


def play_without(
    policy: ActorCritic,
    env: gym.Env,
    episode: Episode,
    forgetting: Forgetting,
    *,
    seed: int,
    max_steps: int,
    deterministic: bool,
    watch: Callable[[gym.Env], None],
) -> Episode | None:
    """Plays `episode`, which is that of `seed`, again without the memory. None if the environment does not repeat the
    observations up to the decision."""
    step = forgetting.step
    max_steps = min(max_steps, STEPS_FACTOR * len(episode.actions) + EXTRA_STEPS)
    script = episode.actions[:step]
    counterfactual = play(
        policy, env, seed, max_steps, deterministic, watch=watch, script=script, forgetting=forgetting
    )
    if len(counterfactual.observations) <= step:
        return None
    pairs = zip(episode.observations[: step + 1], counterfactual.observations, strict=False)
    repeats = all(
        np.array_equal(values, repetition[name], equal_nan=values.dtype.kind == "f")
        for observation, repetition in pairs
        for name, values in observation.items()
    )
    return counterfactual if repeats else None


def without_record(
    policy: ActorCritic,
    counterfactual: Episode,
    names: Sequence[str],
    record: Mapping[str, Any],
    forgetting: Forgetting,
) -> dict[str, Any]:
    """JSON-able: what was forgotten (`written`, None for all of the memory), the decision from which on the policy acts
    for itself (`step`), a `label`, and what was played, under the keys of the record."""
    name = "its memory" if forgetting.birth is None else observation_name(record, forgetting.birth)
    emptied = f"with its memory emptied at step {forgetting.step}"
    return {
        "written": forgetting.birth,
        "step": forgetting.step,
        "label": emptied if forgetting.birth is None else f"without {name}",
        "outcome": outcome(counterfactual),
        "ended": counterfactual.ended,
        "steps": len(counterfactual.actions),
        **numbers_of(policy, counterfactual, names),
    }
