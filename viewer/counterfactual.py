"""The counterfactual of an episode: the same episode without a memory, played to its end.

Seed and actions are those of the episode up to a decision. From there on the policy chooses the actions. If the memory
has slots, those of one observation are removed from all layers (`total_removed` of the audit). Any other memory is
emptied at the decision.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from expire_span_rl.policies import ActorCritic
from expire_span_rl.viewer.play import Episode, Forgetting, outcome, play
from expire_span_rl.viewer.record import numbers_of
from expire_span_rl.viewer.story import empties_to_another_action, is_without_decisions, observation_name

STEPS_FACTOR = 3
"""A counterfactual has at most this many times the steps of the episode, plus EXTRA_STEPS."""
EXTRA_STEPS = 100


def forgetting_of(record: Mapping[str, Any]) -> Forgetting | None:
    """What the policy is made to forget: the memory that mattered according to the record's story. None if no memory
    mattered."""
    story = record["story"]
    if record["layers"]:
        return Forgetting(story["step"], story["written"]) if story["written"] in story["matters"] else None
    # A memory without slots. At step 0 it is empty.
    matters = not is_without_decisions(record) and empties_to_another_action(record, story["step"])
    return Forgetting(story["step"], None) if matters and story["step"] else None


def play_counterfactual(
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
    """Plays `episode`, the episode of `seed`, again without the memory. watch: called with `env` before each action.
    Returns None if the environment does not repeat the observations up to the decision."""
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


def counterfactual_record(
    policy: ActorCritic,
    counterfactual: Episode,
    names: Sequence[str],
    record: Mapping[str, Any],
    forgetting: Forgetting,
) -> dict[str, Any]:
    """The counterfactual as a JSON-able dict. `written` is the step of the forgotten observation, None if the whole
    memory was forgotten. `step` is the decision, from which on the policy chooses the actions. `label` says in words
    what was forgotten. All other keys are those of the episode's record."""
    if forgetting.birth is None:
        label = f"with its memory emptied at step {forgetting.step}"
    else:
        label = f"without {observation_name(record, forgetting.birth)}"
    return {
        "written": forgetting.birth,
        "step": forgetting.step,
        "label": label,
        "outcome": outcome(counterfactual),
        "ended": counterfactual.ended,
        "steps": len(counterfactual.actions),
        **numbers_of(policy, counterfactual, names),
    }
