"""The registry of tasks, and how environments are made: `make_env`, `make_vec_env`."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import minigrid  # noqa: F401, registers its environments
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from expire_span_rl.envs.core import Core
from expire_span_rl.envs.errors import EnvError, expect_choice, expect_int, one_line, unknown_name
from expire_span_rl.envs.faces import SingleEnv
from expire_span_rl.envs.foreign import Foreign
from expire_span_rl.envs.long import LongEnv, LongVectorEnv
from expire_span_rl.envs.wrappers import PreviousActionReward, VectorPreviousActionReward
from expire_span_rl.envs.wraps import parse_wraps


@dataclass(frozen=True)
class Task:
    """One line of the registry."""

    single: str
    """The single face, "module:class"."""
    vector: str
    """The vector face, "module:class"."""
    training_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """What training sets differently from the environment's defaults, which are what evaluation uses."""


TASKS: dict[str, Task] = {
    "Corridor-v0": Task(
        "expire_span_rl.envs.corridor:CorridorEnv", "expire_span_rl.envs.corridor:CorridorVectorEnv", {"length_distribution": "log_uniform"}
    ),
    "Portal-v0": Task(
        "expire_span_rl.envs.portal:PortalEnv",
        "expire_span_rl.envs.portal:PortalVectorEnv",
        {"progress_reward": 0.1, "rooms_distribution": "log_uniform"},
    ),
    "Switch-v0": Task("expire_span_rl.envs.switch:SwitchEnv", "expire_span_rl.envs.switch:SwitchVectorEnv"),
}

for _id, _task in TASKS.items():
    gym.register(id=_id, entry_point=_task.single, vector_entry_point=_task.vector)


def env_ids() -> list[str]:
    """The ids of this package's own tasks."""
    return list(TASKS)


def training_kwargs(id: str) -> dict[str, Any]:
    """The keyword arguments that training sets unless the user does: {} for another package's environment."""
    return dict(TASKS[id].training_kwargs) if id in TASKS else {}


def make_env(id: str, /, wraps: Sequence[str] = (), **kwargs: Any) -> gym.Env:
    """One environment, wrapped as a policy expects (`envs.wrappers`). Any Gymnasium id will do.

    wraps: what makes long trajectories of it, such as ["stretch=10", "episodes=4"] (`envs.long`).
    Raises EnvError, one line, for an unknown id or wrap, an unknown or ill-valued keyword, or spaces no policy can take.
    """
    _check(id, kwargs)
    builders = parse_wraps(wraps)
    if builders:
        return PreviousActionReward(LongEnv(_core(id, 1, kwargs, builders), kwargs.get("render_mode")))
    return PreviousActionReward(_made(id, kwargs))


def make_vec_env(id: str, num_envs: int, /, wraps: Sequence[str] = (), **kwargs: Any) -> VectorPreviousActionReward:
    """`num_envs` environments in SAME_STEP autoreset, wrapped as a policy expects. Any Gymnasium id will do; this
    package's own run batched, others one after the other. Wraps and errors are `make_env`'s."""
    expect_int("num_envs", num_envs, 1)
    _check(id, kwargs)
    builders = parse_wraps(wraps)
    if builders:
        core = _core(id, num_envs, kwargs, builders)
        return VectorPreviousActionReward(LongVectorEnv(core, kwargs.get("render_mode")))
    if id in TASKS:
        return VectorPreviousActionReward(
            gym.make_vec(id, num_envs=num_envs, vectorization_mode="vector_entry_point", **kwargs)
        )
    first = _made(id, kwargs)  # fails with one line, before the others are built
    others = [lambda: _made(id, kwargs)] * (num_envs - 1)
    return VectorPreviousActionReward(SyncVectorEnv([lambda: first, *others], autoreset_mode=AutoresetMode.SAME_STEP))


@dataclass(frozen=True)
class VecEnvMaker:
    """Makes what `make_vec_env` makes, in another process too: an id that was registered in this one only comes along."""

    id: str
    num_envs: int
    kwargs: Mapping[str, Any]
    spec: EnvSpec

    def __call__(self) -> VectorPreviousActionReward:
        gym.registry.setdefault(self.id, self.spec)
        return make_vec_env(self.id, self.num_envs, **self.kwargs)


def vec_env_maker(id: str, num_envs: int, **kwargs: Any) -> VecEnvMaker:
    """A function without arguments that is `make_vec_env` with these. Raises EnvError for an unknown id."""
    return VecEnvMaker(id, num_envs, kwargs, _spec(id))


def _core(id: str, num_envs: int, kwargs: Mapping[str, Any], builders: Iterable[Callable[[Core], Core]]) -> Core:
    """The core of a task, or one over another package's environments, in the wraps that `builders` make."""
    if id in TASKS:
        face = _loaded(_spec(id).entry_point)
        core = face.core_class(num_envs, **{name: value for name, value in kwargs.items() if name != "render_mode"})
    else:
        if kwargs.get("render_mode") == "human":  # our own window shows it
            kwargs = {**kwargs, "render_mode": "rgb_array"}
        PreviousActionReward(_made(id, kwargs)).close()  # tells in one line what cannot be wrapped
        core = Foreign(lambda: _made(id, kwargs), num_envs)
    for build in builders:
        core = build(core)
    return core


def _check(id: str, kwargs: Mapping[str, Any]) -> None:
    """Raises EnvError for an unknown id, an unknown keyword, or a render mode that the environment does not have."""
    spec = _spec(id)
    face = _loaded(spec.entry_point)
    valid = _keywords(face)
    for name in kwargs:
        if valid is not None and name not in valid:
            raise unknown_name(f"{id} keyword", name, valid)
    if "render_mode" in kwargs:
        modes = getattr(face, "metadata", {}).get("render_modes", [])
        expect_choice("render_mode", kwargs["render_mode"], [None, *modes])


def _spec(id: str) -> EnvSpec:
    """The registered spec of `id`. Gymnasium's "module:id" is not taken: an id may come from a stranger's policy file,
    which must not choose what is imported."""
    if id not in gym.registry:
        raise unknown_name("environment", id, [*env_ids(), "another id that Gymnasium knows"], nearest=gym.registry)
    return gym.registry[id]


def _loaded(entry_point: str | Callable[..., gym.Env] | None) -> Any:
    """The class or function behind an entry point; None if it cannot be had."""
    if not isinstance(entry_point, str):
        return entry_point
    module, name = entry_point.split(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        return None


def _keywords(face: Any) -> list[str] | None:
    """The keyword arguments an environment takes; None if its signature does not tell."""
    if isinstance(face, type) and issubclass(face, SingleEnv):
        return [*list(inspect.signature(face.core_class).parameters)[1:], "render_mode"]  # without num_envs
    parameters = {} if face is None else inspect.signature(face).parameters
    if not parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return None
    return sorted({*parameters, "render_mode", "max_episode_steps"})


def _made(id: str, kwargs: Mapping[str, Any]) -> gym.Env:
    """`gym.make` whose failures are EnvErrors of one line."""
    try:
        return gym.make(id, disable_env_checker=True, **kwargs)
    except EnvError:
        raise
    except (gym.error.Error, TypeError, ValueError, AssertionError, ImportError) as error:
        raise EnvError(f"{id}: {one_line(error)}") from error
