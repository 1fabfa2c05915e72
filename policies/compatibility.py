"""Whether a policy can see and act in an environment."""

from __future__ import annotations

import json
from typing import Any, cast

from gymnasium import spaces

from expire_span_rl.checks import quoted, shown
from expire_span_rl.policies.actions import action_spec
from expire_span_rl.policies.encoders import observation_spec, same_observation


def check_spaces(config: Any, observation: spaces.Space, action: spaces.Space, policy: str, environment: str) -> None:
    """Raises ValueError, one line, unless a policy of this config (its `observation` and `actions`) can act in a
    wrapped environment of these spaces. policy, environment: what the line calls them."""
    wanted, given = dict(config.observation), observation_spec(cast(spaces.Dict, observation))
    for name in sorted(wanted.keys() | given.keys()):
        if name not in wanted or name not in given or not same_observation(wanted[name], given[name]):
            ours, theirs = _shown(wanted.get(name)), _shown(given.get(name))
            raise ValueError(
                f"{shown(policy)}: expected an environment with observation {quoted(name, 60)} {ours}, {environment} has {theirs}"
            )
    actions = json.loads(json.dumps(action_spec(action)))
    if json.loads(json.dumps(dict(config.actions))) != actions:
        raise ValueError(
            f"{shown(policy)}: expected an environment with actions {_shown(config.actions)}, {environment} has {_shown(actions)}"
        )


def _shown(entry: Any) -> str:
    """An entry of a spec in a line."""
    if entry is None:
        return "none of that name"
    text = json.dumps(entry)
    return shown(text, 100)
