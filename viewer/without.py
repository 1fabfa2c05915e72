"""The episode as it would have gone without a memory: the audit's counterfactual, played on to its end.

The same seed and the same actions up to a decision; from there on the policy acts for itself. Where memories are slots,
one observation leaves none in any layer (`total_removed` of the audit). Any other memory is emptied at the decision.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from expire_span_rl.policies import ActorCritic
from expire_span_rl.viewer.effects import LEAST_SHIFT
from expire_span_rl.viewer.play import Episode, Forgetting, outcome, play
from expire_span_rl.viewer.record import numbers_of
from expire_span_rl.viewer.story import observation_name

MOST_TIMES = 3  # it is stopped after so many times the steps of the episode as it was,
MORE_STEPS = 100  # and so many more


def forgetting_of(record: Mapping[str, Any]) -> Forgetting | None:
    """What the story says mattered; None if nothing did."""
    story = record["story"]
    if record["layers"]:
        return Forgetting(story["step"], story["written"]) if story["written"] in story["matters"] else None
    matters = record["state_bytes"] and (record["audit"]["influence"][story["step"]] or 0) >= LEAST_SHIFT
    return Forgetting(story["step"], None) if matters and story["step"] else None


def play_without(
    policy: ActorCritic,
    env: gym.Env,
    episode: Episode,
    forgetting: Forgetting,
    seed: int,
    max_steps: int,
    deterministic: bool,
    watch: Callable[[gym.Env], None],
) -> Episode | None:
    """Plays `episode`, which is that of `seed`, again without the memory. None if the environment does not repeat the
    observations up to the decision."""
    step, steps = forgetting.step, len(episode.actions)
    most = min(max_steps, MOST_TIMES * steps + MORE_STEPS)
    script = episode.actions[:step]
    other = play(policy, env, seed, most, deterministic, watch=watch, script=script, forgetting=forgetting)
    pairs = zip(episode.observations[: step + 1], other.observations, strict=False)
    same = len(other.observations) > step and all(
        np.array_equal(one[name], two[name], equal_nan=one[name].dtype.kind == "f")
        for one, two in pairs
        for name in one
    )
    return other if same else None


def without_record(
    policy: ActorCritic, other: Episode, names: Sequence[str], record: Mapping[str, Any], forgetting: Forgetting
) -> dict[str, Any]:
    """JSON-able: what was forgotten (`written`, None for all of the memory), from which decision on it acts for itself
    (`step`), `label`, and what was played, under the names of the record."""
    name = "its memory" if forgetting.written is None else observation_name(record, forgetting.written)
    emptied = f"with its memory emptied at step {forgetting.step}"
    return {
        "written": forgetting.written,
        "step": forgetting.step,
        "label": emptied if forgetting.written is None else f"without {name}",
        "outcome": outcome(other),
        "ended": other.ended,
        "steps": len(other.actions),
        **numbers_of(policy, other, names),
    }
