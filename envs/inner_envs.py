"""What the environments inside Gymnasium's own vectors (SyncVectorEnv, AsyncVectorEnv) say of themselves.

A vector of somebody else has no environments that could be asked, whatever its attributes are called. B environments.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv, VectorObservationWrapper, VectorWrapper

from expire_span_rl.envs.cells import cells_space, image_space
from expire_span_rl.envs.core_adapters import BatchedVectorEnv


def have_attribute(env: VectorEnv, name: str) -> bool:
    """Whether the first environment of one of Gymnasium's own vectors has an attribute, in any wrappers."""
    inner = env.unwrapped
    return isinstance(inner, (SyncVectorEnv, AsyncVectorEnv)) and bool(inner.call("has_wrapper_attr", name)[0])


def find_horizon(env: VectorEnv) -> Any:
    """The attribute `memory_horizon` of a vector, or that of the first environment of one of Gymnasium's own vectors;
    None if neither has it."""
    for part in (env, env.unwrapped):
        if getattr(part, "memory_horizon", None) is not None:
            return cast(Any, part).memory_horizon
    if have_attribute(env, "memory_horizon"):
        return cast(Any, env.unwrapped).get_attr("memory_horizon")[0]
    return None


def cells_inside(env: VectorEnv) -> dict[str, spaces.Space]:
    """`cells.cells_space` of the environments of one of Gymnasium's own vectors, whose wrappers leave the image as it
    is; {} for any other vector. Those in processes cannot be looked at, so one more is made here for a moment."""
    inner = env.unwrapped
    if image_space(env.single_observation_space) is None or not have_attribute(env, "gen_obs_grid"):  # of MiniGridEnv
        return {}
    while isinstance(env, VectorWrapper):
        if isinstance(env, VectorObservationWrapper) or not _has_image_of(env, env.env):
            return {}
        env = env.env
    if isinstance(inner, SyncVectorEnv):
        return cells_space(inner.envs[0])
    with contextlib.closing(cast(AsyncVectorEnv, inner).env_fns[0]()) as single:
        return cells_space(single)


def _has_image_of(env: VectorEnv, other: VectorEnv) -> bool:
    return image_space(env.single_observation_space) == image_space(other.single_observation_space)


def has_tasks(env: VectorEnv) -> bool:
    """Whether a vector is of this toolkit's tasks, in a user's wrappers: `shaping` then has its meaning."""
    inner = env.unwrapped
    if isinstance(inner, (SyncVectorEnv, AsyncVectorEnv)):
        return all(inner.call("has_wrapper_attr", "core_class"))  # of `core_adapters.SingleEnv`
    return isinstance(inner, BatchedVectorEnv)


def complete_final_info(env: VectorEnv, final_info: Any, rows: np.ndarray) -> Any:
    """The `final_info` of a vector of this toolkit's tasks, with what they say of episodes that somebody else ended,
    such as a time limit (`SingleEnv.cut_info`). rows [R]: the environments whose episodes ended."""
    key, inner = env.metadata.get("difficulty_key"), env.unwrapped
    final_info = dict(final_info) if isinstance(final_info, Mapping) else {}
    has_difficulty = final_info.get(f"_{key}", np.full(env.num_envs, key in final_info))
    if has_difficulty[rows].all() or not isinstance(inner, (SyncVectorEnv, AsyncVectorEnv)):
        return final_info
    cut_infos = inner.get_attr("cut_episode_info")
    for row in rows[~has_difficulty[rows]].tolist():
        for name, value in cut_infos[row].items():
            is_given = final_info.setdefault(f"_{name}", np.zeros(env.num_envs, bool))
            dtype = object if isinstance(value, str) else type(value)
            column = final_info.setdefault(name, np.zeros(env.num_envs, dtype))
            if not is_given[row]:
                column[row], is_given[row] = value, True
    return final_info
