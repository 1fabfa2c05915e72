"""Environments that are given as Python objects: a function that makes one, one that exists, or a vector of them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar, cast

import gymnasium as gym
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper

from expire_span_rl.environments import public_kwargs
from expire_span_rl.envs import EnvError, env_ids, make_env, make_vec_env, wrap_env, wrap_vec_env
from expire_span_rl.envs.env_wrappers import PreviousActionReward, VectorPreviousActionReward
from expire_span_rl.envs.factories import Lent
from expire_span_rl.envs.gym_adapter import AdaptedEnv
from expire_span_rl.envs.vector_adapter import AdaptedVectorEnv

Environment = str | gym.Env | VectorEnv | Callable[[], gym.Env]
"""What the Python interface takes for an environment."""
_Made = TypeVar("_Made")
_MAKE_VEC_ARGUMENTS = {"num_envs", "vectorization_mode", "vector_kwargs", "wrappers"}
"""What the spec of a vector environment has among the keyword arguments of the environment."""


def exists(env: Any) -> bool:
    """Whether an environment is an object of the user's, who made it and closes it, and not an id or a function."""
    return isinstance(env, (gym.Env, VectorEnv))


@contextlib.contextmanager
def closing_ours(env: Any, wrapped: _Made) -> Iterator[_Made]:
    """`wrapped`, which is `env` in our wrappers, and is closed at the end unless `env` `exists`."""
    try:
        yield wrapped
    finally:
        if not exists(env):
            cast(Any, wrapped).close()


def name_of(env: Any) -> str:
    """The name of an environment that is not given as an id: the id that it was made with, or its class or function."""
    spec = getattr(env, "spec", None)
    if spec is not None:
        return spec.id
    if exists(env):
        return type(env.unwrapped).__name__
    name = getattr(env, "__name__", type(env).__name__)
    return name if name.isidentifier() else "environment"  # "<lambda>"


def check_given(env: Any, settings: Mapping[str, Any]) -> None:
    """Raises TypeError for what is no environment, and ValueError for settings that only an id can have, one line. An
    id, or None for the one that a policy was trained in, may have any."""
    if env is None or isinstance(env, str):
        return
    if not (exists(env) or callable(env)):
        raise TypeError(f"env: expected an id, an environment, a VectorEnv, or a function that makes one, got {env!r}")
    for name, value in settings.items():
        if value:
            raise ValueError(f"{name}: expected an environment id with it, got an environment: set it there")


def reference(env: Any, encoder: str = "auto") -> dict[str, Any]:
    """What a policy file says of an environment that exists: the id and keyword arguments that make another like it, if
    Gymnasium made it, it has no other wrappers than then, and JSON can hold them. encoder: as of `make_env`."""
    bare, given_encoder = _bare(env)
    kwargs = _remaking(bare)
    encoder = given_encoder if encoder == "auto" else encoder
    if kwargs is not None and encoder != "auto":
        kwargs["encoder"] = encoder
    try:
        json.dumps(kwargs, allow_nan=False)
    except (TypeError, ValueError):
        kwargs = None
    if kwargs is None:
        return {"env": "", "env_kwargs": {}}
    return {"env": env.spec.id, **public_kwargs(env.spec.id, kwargs)}


def _remaking(bare: Any) -> dict[str, Any] | None:
    """The keyword arguments with which `make_env` makes such an environment of its id, among them a time limit that the
    id does not have; None if there are none."""
    spec = getattr(bare, "spec", None)
    if spec is None or isinstance(bare, VectorWrapper) or spec.kwargs.get("wrappers"):
        return None
    registered: Any = gym.registry.get(spec.id, spec)
    if spec.additional_wrappers != registered.additional_wrappers:
        return None
    kwargs = {name: value for name, value in spec.kwargs.items() if name not in _MAKE_VEC_ARGUMENTS}
    if spec.max_episode_steps != registered.max_episode_steps:
        limit = spec.max_episode_steps
        kwargs.setdefault("max_episode_steps", -1 if limit is None else limit)  # -1: none, for Gymnasium
    return None if spec.id in env_ids() and kwargs.get("max_episode_steps") else kwargs  # tasks take no such argument


def maker_of(env: gym.Env) -> str:
    """Source code of a function that makes such an environment."""
    return f'lambda: gym.make("{env.spec.id}")' if env.spec is not None else type(env.unwrapped).__name__


def vector_of(
    env: Any, num_envs: int, encoder: str = "auto", vectorization: str = "sync", env_timeout: float = 0.0
) -> VectorEnv:
    """Environments wrapped as a policy expects: a VectorEnv, one environment, or `num_envs` that a function makes."""
    options: Any = {"encoder": encoder, "env_timeout": env_timeout}
    if isinstance(env, VectorEnv):
        mode = env.metadata.get("autoreset_mode")
        if mode != AutoresetMode.SAME_STEP:
            raise ValueError(
                f"env: expected a VectorEnv in SAME_STEP autoreset, got {getattr(mode, 'name', mode)}: "
                'give the id or a function instead, or gym.make_vec(id, n, "sync", '
                'vector_kwargs={"autoreset_mode": gym.vector.AutoresetMode.SAME_STEP})'
            )
        return wrap_vec_env(env, **options)
    if isinstance(env, gym.Env):
        return make_vec_env(Lent(env), 1, vectorization="sync", **options)
    return make_vec_env(env, num_envs, vectorization=vectorization, **options)


def single_of(env: Any, encoder: str = "auto", env_timeout: float = 0.0) -> gym.Env:
    """One environment that exists, or one of a function, wrapped as a policy expects."""
    if isinstance(env, gym.Env):
        return wrap_env(env, encoder, env_timeout)
    return make_env(env, encoder=encoder, env_timeout=env_timeout)


def as_read(make: Callable[[str], _Made], observation: Any) -> _Made:
    """What `make` makes with the encoder that reads images as a policy does whose observation spec is `observation`.
    Where no image can be read so, it is "auto", and `check_spaces` tells the difference."""
    image = observation.get("image") if isinstance(observation, Mapping) else None
    if not isinstance(image, Mapping):
        return make("auto")
    if image.get("kind") != "cells":
        return make("plain")
    with contextlib.suppress(EnvError):
        return make("cells")
    return make("auto")


def _bare(env: Any) -> tuple[Any, str]:
    """(the environment, or the vector, without what `make_env` and `make_vec_env` put around it; their encoder)."""
    encoder = "auto"
    while isinstance(env, (PreviousActionReward, AdaptedEnv, VectorPreviousActionReward, AdaptedVectorEnv)):
        if isinstance(env, AdaptedEnv):
            encoder = env.adaptation.encoder
        elif isinstance(env, AdaptedVectorEnv):
            encoder = env.encoder
        env = env.env
    return env, encoder
