"""Action spaces by name. A new one is one file beside this one and one line here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gymnasium import spaces

from expire_span_rl.policies.actions.base import Actions
from expire_span_rl.policies.actions.box import BoxActions
from expire_span_rl.policies.actions.discrete import DiscreteActions
from expire_span_rl.policies.actions.multi_discrete import MultiBinaryActions, MultiDiscreteActions
from expire_span_rl.spaces import action_size

ACTIONS: dict[str, tuple[type[spaces.Space], type[Actions]]] = {
    "discrete": (spaces.Discrete, DiscreteActions),
    "multi_discrete": (spaces.MultiDiscrete, MultiDiscreteActions),
    "multi_binary": (spaces.MultiBinary, MultiBinaryActions),
    "box": (spaces.Box, BoxActions),
}
"""By the name in a policy file: the space and its actions."""

__all__ = ["ACTIONS", "Actions", "action_spec", "make_actions"]


def action_spec(space: spaces.Space) -> dict[str, Any]:
    """The spec of an action space, a dict for JSON. Raises ValueError, one line, for an unsupported space."""
    action_size(space)
    return next(actions.spec_of(space) for kind, actions in ACTIONS.values() if isinstance(space, kind))


def make_actions(spec: Mapping[str, Any]) -> Actions:
    """The actions of a spec. Raises ValueError or KeyError for a spec that is not from `action_spec`."""
    if spec["kind"] not in ACTIONS:
        raise ValueError(f"actions: expected one of {', '.join(ACTIONS)}, got {spec['kind']!r}")
    return ACTIONS[spec["kind"]][1](spec)
