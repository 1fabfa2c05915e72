"""Whether a policy can see and act in an environment."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, cast

from gymnasium import spaces

from expire_span_rl.checks import quoted, shown
from expire_span_rl.policies.actions import action_spec
from expire_span_rl.policies.encoders import OPTIONS, observation_spec, same_observation
from expire_span_rl.spaces import ADDED


def check_spaces(config: Any, observation: spaces.Space, action: spaces.Space, policy: str, environment: str) -> None:
    """Raises ValueError, one line, unless a policy of this config (its `observation` and `actions`) can act in a
    wrapped environment of these spaces. policy, environment: their names in the message."""
    expected = dict(config.observation)
    actual = observation_spec(cast(spaces.Dict, observation))
    actions = json.loads(json.dumps(action_spec(action)))
    names = sorted(expected.keys() | actual.keys())
    _compare(expected, actual, [name for name in names if name not in ADDED], policy, environment)
    if json.loads(json.dumps(dict(config.actions))) != actions:
        raise ValueError(
            f"{shown(policy)}: expected an environment with actions {_format_entry(config.actions)}, "
            f"{environment} has {_format_entry(actions)}"
        )
    _compare(expected, actual, names, policy, environment)


def _compare(
    expected: Mapping[str, Any], actual: Mapping[str, Any], names: Iterable[str], policy: str, environment: str
) -> None:
    """Raises ValueError, one line, for the first of the entries that differs."""
    for name in names:
        if name not in expected:
            raise ValueError(
                f"{shown(policy)}: expected an environment without observation {quoted(name, 60)}, since it was "
                f"trained without, {environment} has {_format_entry(actual[name])}"
            )
        if name not in actual or not same_observation(expected[name], actual[name]):
            raise ValueError(
                f"{shown(policy)}: expected an environment with observation {quoted(name, 60)} "
                f"{_format_entry(expected[name])}, {environment} has {_format_entry(actual.get(name))}"
            )


def _format_entry(entry: Any) -> str:
    """An entry of a spec on one line: its kind, and what else says which space it is."""
    if entry is None:
        return "none of that name"
    rest = {name: value for name, value in entry.items() if name not in ("kind", *OPTIONS)}
    return shown(f"{entry['kind']} ({', '.join(f'{name} {value}' for name, value in rest.items())})", 100)
