"""The registry of the toolkit's tasks, and the functions that make environments: `make_env`, `make_vec_env`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import VectorEnv

from expire_span_rl.checks import quoted
from expire_span_rl.envs.closing import closed_on_error
from expire_span_rl.envs.core_adapters import SingleEnv
from expire_span_rl.envs.env_wrappers import PreviousActionReward, VectorPreviousActionReward
from expire_span_rl.envs.errors import NAME, EnvError, expect_choice, expect_int, one_line, unknown_name
from expire_span_rl.envs.factories import (
    EnvFactory,
    MakeEnv,
    Registration,
    adapted_env_makers,
    is_registered,
    load_entry_point,
    make_all,
    make_vector_form,
)
from expire_span_rl.envs.gym_adapter import AdaptedEnv
from expire_span_rl.envs.naming import resolve
from expire_span_rl.envs.timeout import allow_process_exit
from expire_span_rl.envs.vector_adapter import AdaptedVectorEnv
from expire_span_rl.envs.vectors import AsyncEnvs, SyncEnvs

if TYPE_CHECKING:
    from expire_span_rl.envs.core import EnvCore

VECTORIZATIONS = ("auto", "sync", "async")


@dataclass(frozen=True)
class Task:
    """One line of the registry."""

    single: str
    """The class of the single form, "module:class"."""
    vector: str
    """The class of the vector form, "module:class"."""
    training_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of training that differ from the defaults. Evaluation uses the defaults."""
    private_kwargs: tuple[str, ...] = ()
    """Keyword arguments that name something on this machine, such as a path. No policy file carries them, and those of
    a file that does are not obeyed."""


TASKS: dict[str, Task] = {
    "Corridor-v0": Task(
        "expire_span_rl.envs.corridor:CorridorEnv",
        "expire_span_rl.envs.corridor:CorridorVectorEnv",
        {"length_distribution": "log_uniform"},
    ),
    "Portal-v0": Task(
        "expire_span_rl.envs.portal:PortalEnv",
        "expire_span_rl.envs.portal:PortalVectorEnv",
        {"progress_reward": 0.1, "landmark_objects": 3},
    ),
    "Switch-v0": Task("expire_span_rl.envs.switch:SwitchEnv", "expire_span_rl.envs.switch:SwitchVectorEnv"),
    "TMaze-v0": Task("expire_span_rl.envs.tmaze:TMazeEnv", "expire_span_rl.envs.tmaze:TMazeVectorEnv"),
    "Copy-v0": Task(
        "expire_span_rl.envs.copying:CopyingEnv",
        "expire_span_rl.envs.copying:CopyingVectorEnv",
        {"min_delay": 1, "delay_distribution": "log_uniform"},
    ),
    "Collision-v0": Task(
        "expire_span_rl.envs.collision:CollisionEnv",
        "expire_span_rl.envs.collision:CollisionVectorEnv",
        {"min_stream_length": 1},
    ),
    "Text-v0": Task(
        "expire_span_rl.envs.text:TextEnv",
        "expire_span_rl.envs.text:TextVectorEnv",
        {"part": "train", "min_stream_length": 1},
        private_kwargs=("file",),
    ),
}

for _id, _task in TASKS.items():
    gym.register(id=_id, entry_point=_task.single, vector_entry_point=_task.vector)


def env_ids() -> list[str]:
    """The ids of the toolkit's tasks."""
    return list(TASKS)


def check_id(id: str) -> None:
    """Raises EnvError, one line with the nearest id, for an id that is not registered."""
    _spec(id)


def training_kwargs(id: str) -> dict[str, Any]:
    """The keyword arguments that training sets unless the user does. {} for another package's environment."""
    return dict(TASKS[id].training_kwargs) if id in TASKS else {}


def private_kwargs(id: str) -> tuple[str, ...]:
    """The keyword arguments that no policy file carries (`Task.private_kwargs`)."""
    return TASKS[id].private_kwargs if id in TASKS else ()


def make_env(
    id: str | MakeEnv, /, wraps: Sequence[str] = (), encoder: str = "auto", env_timeout: float = 0.0, **kwargs: Any
) -> gym.Env:
    """Makes one environment, wrapped as a policy expects (`envs.env_wrappers`).

    id: a registered id, or a function without arguments that makes a `gym.Env`. A name such as "package:Id-v0" or
        "path/to/my_envs.py:Id-v0" needs a call of `load_environment` first; nothing is imported here.
    wraps: wraps that make long trajectories, such as ["stretch=10", "episodes=4"] (`envs.core_wrappers`).
    encoder: of another package's environment: "auto", "cells" for an image in MiniGrid's encoding that is not
        recognised as one, or "plain" for one that is, but is to be read as any other image. A space that is `Cells`
        itself, as that of the toolkit's tasks, is read as cells with "plain", too.
    env_timeout: as for `make_vec_env`.

    Raises EnvError, one line, for an unknown id or wrap, an unknown or invalid keyword, spaces that no policy supports,
    or an environment that breaks Gymnasium's interface.
    """
    factory, builders = _prepare(id, wraps, encoder, kwargs)
    if builders:
        from expire_span_rl.envs.core_wrappers import LongTrajectoryEnv

        core = _build_core(factory, 1, builders, env_timeout)
        return PreviousActionReward(LongTrajectoryEnv(core, factory.render_mode))
    env = factory.make_env()
    with closed_on_error([] if factory.lends else [env]):
        return PreviousActionReward(env, factory.encoder, env_timeout or factory.timeout)


def make_vec_env(
    id: str | MakeEnv,
    num_envs: int,
    /,
    wraps: Sequence[str] = (),
    encoder: str = "auto",
    *,
    vectorization: str = "auto",
    env_timeout: float = 0.0,
    **kwargs: Any,
) -> VectorPreviousActionReward:
    """Makes `num_envs` environments in SAME_STEP autoreset, wrapped as a policy expects.

    id, wraps, encoder: as in `make_env`.
    vectorization: "sync" steps the environments one after the other, "async" each in its own process. "auto" steps them
        as a batch if the environment has a suitable vector form (`vector_entry_point`, as the toolkit's tasks),
        otherwise "sync". Only "sync" and "async" give later episodes their own seeds. With wraps it is always "sync",
        and "async" is refused.
    env_timeout: the seconds after which a reset or a step of another package's environment counts as failed; 0: never
        (`envs.timeout`).

    Raises EnvError as `make_env`.
    """
    expect_int("num_envs", num_envs, 1)
    expect_choice("vectorization", vectorization, VECTORIZATIONS)
    factory, builders = _prepare(id, wraps, encoder, kwargs)
    if builders:
        expect_choice("vectorization with wraps", vectorization, ("auto", "sync"))
        from expire_span_rl.envs.core_wrappers import LongTrajectoryVectorEnv

        core = _build_core(factory, num_envs, builders, env_timeout)
        return VectorPreviousActionReward(LongTrajectoryVectorEnv(core, factory.render_mode))
    vector = _make_vector(factory, num_envs, vectorization, env_timeout)
    with closed_on_error([] if factory.lends else [vector]):
        return VectorPreviousActionReward(vector)


def _make_vector(factory: EnvFactory, num_envs: int, vectorization: str, timeout: float) -> VectorEnv:
    """Makes the environments of `make_vec_env`: adapted ones, or a batch of a task."""
    if vectorization == "auto":
        if factory.id in TASKS:
            return factory.make_vector(num_envs)
        vector = make_vector_form(factory, num_envs)
        if vector is not None:
            with closed_on_error([vector]):
                return AdaptedVectorEnv(vector, factory.name, factory.encoder, timeout)
    makers = adapted_env_makers(factory, num_envs, timeout)
    try:
        if vectorization == "async":
            return AsyncEnvs(makers, cast(AdaptedEnv, makers[0].existing))
        made = make_all(makers, factory.name)
        with closed_on_error([] if factory.lends else made):
            return SyncEnvs(made)
    except RuntimeError as error:  # Gymnasium's, if the environments' spaces differ
        raise EnvError(f"{factory.name}: {one_line(error)}") from error


def wrap_env(env: gym.Env, encoder: str = "auto", env_timeout: float = 0.0) -> PreviousActionReward:
    """Wraps an existing environment as a policy expects. Raises EnvError as `make_env`."""
    return env if isinstance(env, PreviousActionReward) else PreviousActionReward(env, encoder, env_timeout)


def wrap_vec_env(env: VectorEnv, encoder: str = "auto", env_timeout: float = 0.0) -> VectorPreviousActionReward:
    """Wraps an existing vector environment in SAME_STEP autoreset as a policy expects. Raises EnvError as `make_env`.

    For environments that Gymnasium's own vectors step one by one, prefer `make_vec_env`: it checks each of them."""
    return env if isinstance(env, VectorPreviousActionReward) else VectorPreviousActionReward(env, encoder, env_timeout)


@dataclass(frozen=True)
class VecEnvMaker:
    """Calls `make_vec_env` with its arguments, also in another process. Pickling includes the imports and the
    registration that the environment needs."""

    id: str | MakeEnv
    num_envs: int
    kwargs: Mapping[str, Any]
    registration: Registration | None = None
    """Set by pickling: how the id is registered in the first process."""

    def __getstate__(self) -> dict[str, Any]:
        registration = Registration.of(self.id) if isinstance(self.id, str) else None
        return {**self.__dict__, "registration": registration}

    def __call__(self) -> VectorPreviousActionReward:
        if self.registration is not None:
            allow_process_exit()  # Ray restarts the process
            self.registration.restore()
        return make_vec_env(self.id, self.num_envs, **self.kwargs)


def vec_env_maker(id: str | MakeEnv, num_envs: int, **kwargs: Any) -> VecEnvMaker:
    """A function without arguments that calls `make_vec_env` with these. Raises EnvError for an unknown id."""
    if isinstance(id, str):
        id = resolve(id)
        _spec(id)
    return VecEnvMaker(id, num_envs, kwargs)


def _prepare(
    id: str | MakeEnv, wraps: Sequence[str], encoder: str, kwargs: Mapping[str, Any]
) -> tuple[EnvFactory, Sequence[Callable[[EnvCore], EnvCore]]]:
    """Checks the arguments of `make_env`. Returns the factory of the environments and the builders of the wraps."""
    if not isinstance(id, str):
        if not callable(id) or kwargs:
            got = f"keywords {sorted(kwargs)}" if callable(id) else repr(id)
            raise EnvError(f"environment: expected an id, or a function without arguments, got {got}")
        factory = EnvFactory(None, id, encoder, {})
    else:
        id = resolve(id)
        _check_kwargs(id, kwargs)
        factory = EnvFactory(id, None, encoder, kwargs)
    if not wraps and isinstance(wraps, (list, tuple)):
        return factory, []
    from expire_span_rl.envs.wrap_names import parse_wraps

    return factory, parse_wraps(wraps)


def _build_core(
    factory: EnvFactory, num_envs: int, builders: Iterable[Callable[[EnvCore], EnvCore]], timeout: float = 0.0
) -> EnvCore:
    """Builds the core of `num_envs` environments, a task's or one around another package's environments, and its
    wraps."""
    from expire_span_rl.envs.gym_core import GymEnvCore

    if factory.id in TASKS:
        core_kwargs = {name: value for name, value in factory.kwargs.items() if name != "render_mode"}
        core = load_entry_point(factory.id, _spec(factory.id).entry_point).core_class(num_envs, **core_kwargs)
    else:
        if factory.render_mode == "human":  # the toolkit's own window shows the picture
            factory.kwargs["render_mode"] = "rgb_array"
        core = GymEnvCore(make_all(adapted_env_makers(factory, num_envs, timeout), factory.name))
    with closed_on_error([core]):
        for build in builders:
            core = build(core)
    return core


def _check_kwargs(id: str, kwargs: Mapping[str, Any]) -> None:
    """Raises EnvError for an unknown id, an unknown keyword, or a render mode that the environment does not have. What
    is made by a function tells its render modes only when it is made."""
    env_class = load_entry_point(id, _spec(id).entry_point)
    valid = _keywords(env_class)
    for name in kwargs:
        if valid is not None and name not in valid:
            raise unknown_name(f"{id} keyword", name, valid)
    if "render_mode" in kwargs and hasattr(env_class, "metadata"):
        modes = env_class.metadata.get("render_modes", [])
        expect_choice("render_mode", kwargs["render_mode"], [None, *modes])


def _spec(id: str) -> EnvSpec:
    """The registered spec of `id`. Raises EnvError for an unknown id, also for Gymnasium's form "module:id".

    A module that the user types is imported before (`naming.load_environment`). A stranger's policy file must not
    choose what is imported."""
    if not is_registered(id):
        if id.endswith(".py"):
            raise EnvError(f"{quoted(id, NAME)}: expected an id or a class of the file too, such as {id}:Recall-v0")
        raise unknown_name("environment", id, [*env_ids(), "another id that Gymnasium knows"], nearest=gym.registry)
    return gym.registry[id]


def _keywords(env_class: Any) -> list[str] | None:
    """The keyword arguments that an environment takes; None if its signature does not say."""
    if isinstance(env_class, type) and issubclass(env_class, SingleEnv):
        return [*list(inspect.signature(env_class.core_class).parameters)[1:], "render_mode"]  # without num_envs
    parameters = {} if env_class is None else inspect.signature(env_class).parameters
    if not parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return None
    return sorted({*parameters, "render_mode", "max_episode_steps"})
