"""The environments. `make_env` and `make_vec_env` make them, wrapped as a policy expects.

Names whose modules need MiniGrid are imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from expire_span_rl.envs.errors import EnvError, EnvironmentFailed, EnvironmentWarning
from expire_span_rl.envs.lengths import longest_episode
from expire_span_rl.envs.naming import import_modules, importable, load_environment, meant_ids
from expire_span_rl.envs.registration import (
    check_id,
    env_ids,
    make_env,
    make_vec_env,
    private_kwargs,
    training_kwargs,
    vec_env_maker,
    wrap_env,
    wrap_vec_env,
)
from expire_span_rl.registry import lazily

if TYPE_CHECKING:
    from expire_span_rl.envs.rendering import render_observation
    from expire_span_rl.envs.wrap_names import parse_wraps

_LAZY = {"parse_wraps": "wrap_names", "render_observation": "rendering"}
"""Names that are imported on first use: {name: module of this package}."""

__all__ = [
    "EnvError",
    "EnvironmentFailed",
    "EnvironmentWarning",
    "check_id",
    "env_ids",
    "import_modules",
    "importable",
    "load_environment",
    "longest_episode",
    "make_env",
    "make_vec_env",
    "meant_ids",
    "parse_wraps",
    "private_kwargs",
    "render_observation",
    "training_kwargs",
    "vec_env_maker",
    "wrap_env",
    "wrap_vec_env",
]


__getattr__ = lazily(__name__, _LAZY)
