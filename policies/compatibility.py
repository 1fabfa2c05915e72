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
    wrapped environment of these spaces. policy, environment: their names in the message."""
    expected = dict(config.observation)
    actual = observation_spec(cast(spaces.Dict, observation))
    for name in sorted(expected.keys() | actual.keys()):
        if name not in expected or name not in actual or not same_observation(expected[name], actual[name]):
            raise ValueError(
                f"{shown(policy)}: expected an environment with observation {quoted(name, 60)} "
                f"{_format_entry(expected.get(name))}, {environment} has {_format_entry(actual.get(name))}"
            )
    actions = json.loads(json.dumps(action_spec(action)))
    if json.loads(json.dumps(dict(config.actions))) != actions:
        raise ValueError(
            f"{shown(policy)}: expected an environment with actions {_format_entry(config.actions)}, "
            f"{environment} has {_format_entry(actions)}"
        )


def _format_entry(entry: Any) -> str:
    """An entry of a spec on one line."""
    return "none of that name" if entry is None else shown(json.dumps(entry), 100)
