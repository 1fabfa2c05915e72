"""The registry of tasks, and how environments are made: `make_env`, `make_vec_env`."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import cloudpickle
import gymnasium as gym
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode, VectorEnv

from expire_span_rl.envs.adapter import Adaptation, AdaptedEnv, adapt, name_of
from expire_span_rl.envs.batched import AdaptedVectorEnv
from expire_span_rl.envs.errors import EnvError, expect_choice, expect_int, one_line, unknown_name
from expire_span_rl.envs.faces import SingleEnv
from expire_span_rl.envs.naming import import_again, imported_modules, resolve
from expire_span_rl.envs.timeout import end_process
from expire_span_rl.envs.vectors import AsyncEnvs, SyncEnvs
from expire_span_rl.envs.wrappers import PreviousActionReward, VectorPreviousActionReward, is_own

if TYPE_CHECKING:
    from expire_span_rl.envs.core import Core

VECTORIZATIONS = ("auto", "sync", "async")
MakeEnv = Callable[[], gym.Env]


@dataclass(frozen=True)
class Task:
    """One line of the registry."""

    single: str
    """The single face, "module:class"."""
    vector: str
    """The vector face, "module:class"."""
    training_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """What training sets differently from the environment's defaults, which are what evaluation uses."""
    private_kwargs: tuple[str, ...] = ()
    """Keyword arguments that name something on this machine, such as a path: no policy file carries them, and none that
    does is obeyed."""


TASKS: dict[str, Task] = {
    "Corridor-v0": Task(
        "expire_span_rl.envs.corridor:CorridorEnv",
        "expire_span_rl.envs.corridor:CorridorVectorEnv",
        {"length_distribution": "log_uniform"},
    ),
    "Portal-v0": Task(
        "expire_span_rl.envs.portal:PortalEnv",
        "expire_span_rl.envs.portal:PortalVectorEnv",
        {"progress_reward": 0.1, "rooms_distribution": "log_uniform"},
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
    """The ids of this package's own tasks."""
    return list(TASKS)


def check_id(id: str) -> None:
    """Raises EnvError, one line with the nearest id, for an id that nothing has registered."""
    _spec(id)


def training_kwargs(id: str) -> dict[str, Any]:
    """The keyword arguments that training sets unless the user does: {} for another package's environment."""
    return dict(TASKS[id].training_kwargs) if id in TASKS else {}


def private_kwargs(id: str) -> tuple[str, ...]:
    """The keyword arguments that no policy file carries (`Task.private_kwargs`)."""
    return TASKS[id].private_kwargs if id in TASKS else ()


def make_env(id: str | MakeEnv, /, wraps: Sequence[str] = (), encoder: str = "auto", **kwargs: Any) -> gym.Env:
    """One environment, wrapped as a policy expects (`envs.wrappers`).

    id: a registered id; a name such as "package:Id-v0" or "path/to/my_envs.py:Id-v0", of which `load_environment` has
    imported the first part (nothing is imported here); or a function without arguments that makes a `gym.Env`; wraps:
    what makes long trajectories of it, such as ["stretch=10", "episodes=4"] (`envs.long`); encoder: "auto", or "cells"
    for an image in MiniGrid's encoding that cannot be told to be one. Raises EnvError, one line, for an unknown id or
    wrap, an unknown or ill-valued keyword, spaces no policy can take, or an environment that does not do what Gymnasium
    asks for.
    """
    made, builders = _prepared(id, wraps, encoder, kwargs)
    if builders:
        from expire_span_rl.envs.long import LongEnv

        return PreviousActionReward(LongEnv(*_long(made, 1, builders)))
    return PreviousActionReward(made.first(), encoder)


def make_vec_env(
    id: str | MakeEnv,
    num_envs: int,
    /,
    wraps: Sequence[str] = (),
    encoder: str = "auto",
    vectorization: str = "auto",
    env_timeout: float = 0.0,
    **kwargs: Any,
) -> VectorPreviousActionReward:
    """`num_envs` environments in SAME_STEP autoreset, wrapped as a policy expects. id, wraps, encoder, errors:
    `make_env`'s.

    vectorization: "sync", one after the other; "async", each in a process of its own; "auto", as a batch where the
    environment's own vector form can (`vector_entry_point`, as our tasks), else "sync". Only "sync" and "async" give an
    environment's later episodes seeds of their own. With wraps it is "sync".
    env_timeout: seconds that a reset or a step of another package's environment may take before it counts as failed; 0:
    any (`envs.timeout`).
    """
    expect_int("num_envs", num_envs, 1)
    expect_choice("vectorization", vectorization, VECTORIZATIONS)
    made, builders = _prepared(id, wraps, encoder, kwargs)
    if builders:
        from expire_span_rl.envs.long import LongVectorEnv

        return VectorPreviousActionReward(LongVectorEnv(*_long(made, num_envs, builders, env_timeout)))
    if vectorization == "auto":
        if made.id in TASKS:
            return VectorPreviousActionReward(_vector_entry_point(made, num_envs))
        vector = _own_vector(made, num_envs)
        if vector is not None:
            return VectorPreviousActionReward(AdaptedVectorEnv(vector, made.name, encoder, env_timeout))
    makers = _adapted(made, num_envs, env_timeout)
    try:
        vector = AsyncEnvs(makers, cast(AdaptedEnv, makers[0].ready)) if vectorization == "async" else SyncEnvs(makers)
    except RuntimeError as error:  # Gymnasium's, of environments that differ
        raise EnvError(f"{made.name}: {one_line(error)}") from error
    return VectorPreviousActionReward(vector)


def wrap_env(env: gym.Env, encoder: str = "auto") -> PreviousActionReward:
    """An environment that is there already, wrapped as a policy expects. Errors are `make_env`'s."""
    return env if isinstance(env, PreviousActionReward) else PreviousActionReward(env, encoder)


def wrap_vec_env(env: VectorEnv, encoder: str = "auto", env_timeout: float = 0.0) -> VectorPreviousActionReward:
    """A vector environment in SAME_STEP autoreset that is there already, wrapped as a policy expects. What Gymnasium's
    own vectors step one by one is better made by `make_vec_env`, which checks each. Errors are `make_env`'s."""
    return env if isinstance(env, VectorPreviousActionReward) else VectorPreviousActionReward(env, encoder, env_timeout)


@dataclass(frozen=True)
class VecEnvMaker:
    """Makes what `make_vec_env` makes, in another process too: what was imported and registered in this one comes
    along."""

    id: str | MakeEnv
    num_envs: int
    kwargs: Mapping[str, Any]
    registered: Registered | None = None
    """In another process: what was registered in the first."""

    def __getstate__(self) -> dict[str, Any]:
        registered = Registered.of(self.id) if isinstance(self.id, str) else None
        return {**self.__dict__, "registered": registered}

    def __call__(self) -> VectorPreviousActionReward:
        if self.registered is not None:
            end_process()  # Ray starts it again
            self.registered.restore()
        return make_vec_env(self.id, self.num_envs, **self.kwargs)


def vec_env_maker(id: str | MakeEnv, num_envs: int, **kwargs: Any) -> VecEnvMaker:
    """A function without arguments that is `make_vec_env` with these. Raises EnvError for an unknown id."""
    if isinstance(id, str):
        id = resolve(id)
        _spec(id)
    return VecEnvMaker(id, num_envs, kwargs)


@dataclass(frozen=True)
class Registered:
    """An id as it is registered in this process, for another one."""

    id: str
    modules: Sequence[tuple[str, str]]
    """What was imported by name, and where it was found (`naming.imported_modules`)."""
    spec: bytes
    """Pickled, since its entry point may be of a module that must be imported first."""

    @classmethod
    def of(cls, id: str) -> Registered:
        return cls(id, imported_modules(), cloudpickle.dumps(_spec(id)))

    def restore(self) -> None:
        """Imports and registers what is missing here."""
        import_again(self.modules)
        if not _is_registered(self.id):
            gym.registry[self.id] = cloudpickle.loads(self.spec)


class _Made:
    """How environments of one id, or of a user's function, are made: bare, before any wrapper of ours. Pickles."""

    def __init__(self, id: str | None, make: MakeEnv | None, encoder: str, kwargs: Mapping[str, Any]) -> None:
        self.id, self.make, self.encoder, self.kwargs = id, make, encoder, dict(kwargs)
        self.name = id or getattr(make, "__name__", type(make).__name__)
        self._registered: Registered | None = None  # in another process: what was registered in the first

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_registered": None if self.id is None else Registered.of(self.id)}

    def first(self) -> gym.Env:
        """An environment. Raises EnvError, one line, for whatever goes wrong."""
        if self._registered is not None:
            self._registered.restore()
        try:
            env = (
                self.make()
                if self.make is not None
                else gym.make(cast(str, self.id), disable_env_checker=True, **self.kwargs)
            )
        except EnvError:
            raise
        except (Exception, SystemExit) as error:  # whatever a stranger's constructor does
            raise EnvError(f"{self.name}: {one_line(error)}") from error
        if not isinstance(env, gym.Env):
            raise EnvError(f"{self.name}: expected a gymnasium.Env, got {type(env).__name__}")
        if self.id is None:
            self.name = name_of(env)
        return env


class _AdaptedMaker:
    """Makes environment number `index` of a vector, adapted like the first one, here or in another process."""

    def __init__(self, made: _Made, adaptation: Adaptation, index: int, ready: AdaptedEnv | None = None) -> None:
        """ready: one that is there already, for the first call."""
        self.made, self.adaptation, self.index, self.ready = made, adaptation, index, ready

    def __call__(self) -> AdaptedEnv:
        if self.ready is not None:
            env, self.ready = self.ready, None
            return env
        return AdaptedEnv(self.made.first(), self.adaptation, self.index)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "ready": None}


def _adapted(made: _Made, num_envs: int, timeout: float = 0.0) -> list[_AdaptedMaker]:
    """Makers of adapted environments. The first one is made and checked, so that it fails in one line before others
    are."""
    first = made.first()
    if is_own(first):
        ready = AdaptedEnv(first, Adaptation(made.name, shaping=True))
    else:
        ready = adapt(first, made.name, made.encoder, timeout)
    return [_AdaptedMaker(made, ready.adaptation, i, ready if i == 0 else None) for i in range(num_envs)]


def _prepared(
    id: str | MakeEnv, wraps: Sequence[str], encoder: str, kwargs: Mapping[str, Any]
) -> tuple[_Made, Sequence[Callable[[Core], Core]]]:
    """How to make `id`, and what `wraps` asks for. Raises EnvError, see `make_env`."""
    if not isinstance(id, str):
        if not callable(id) or kwargs:
            given = f"keywords {sorted(kwargs)}" if callable(id) else repr(id)
            raise EnvError(f"environment: expected an id, or a function without arguments, got {given}")
        made = _Made(None, id, encoder, {})
    else:
        id = resolve(id)
        _check(id, kwargs)
        made = _Made(id, None, encoder, kwargs)
    if not wraps and isinstance(wraps, (list, tuple)):
        return made, []
    from expire_span_rl.envs.wraps import parse_wraps

    return made, parse_wraps(wraps)


def _long(
    made: _Made, num_envs: int, builders: Iterable[Callable[[Core], Core]], timeout: float = 0.0
) -> tuple[Core, str | None]:
    """A task's core, or one over another package's environments, in the wraps that `builders` make; and the render
    mode."""
    from expire_span_rl.envs.foreign import Foreign

    render_mode = made.kwargs.get("render_mode")
    if made.id in TASKS:
        face = _loaded(made.id)
        core = face.core_class(
            num_envs, **{name: value for name, value in made.kwargs.items() if name != "render_mode"}
        )
    else:
        if render_mode == "human":  # our own window shows it
            made.kwargs["render_mode"] = "rgb_array"
        core = Foreign([make() for make in _adapted(made, num_envs, timeout)])
    for build in builders:
        core = build(core)
    return core, render_mode


def _vector_entry_point(made: _Made, num_envs: int) -> VectorEnv:
    return gym.make_vec(cast(str, made.id), num_envs=num_envs, vectorization_mode="vector_entry_point", **made.kwargs)


def _own_vector(made: _Made, num_envs: int) -> VectorEnv | None:
    """The vector form that an environment brings, if it can reset in the same step; None otherwise."""
    spec = None if made.id is None else _spec(made.id)
    if spec is None or spec.vector_entry_point is None or spec.additional_wrappers:
        return None
    form = _loaded(cast(str, made.id), spec.vector_entry_point)
    extra: dict[str, Any] = {}
    if form is not None and "autoreset_mode" in inspect.signature(form).parameters:
        extra = {"autoreset_mode": AutoresetMode.SAME_STEP}
    elif getattr(form, "metadata", {}).get("autoreset_mode", AutoresetMode.SAME_STEP) != AutoresetMode.SAME_STEP:
        return None
    try:
        env = gym.make_vec(
            cast(str, made.id), num_envs=num_envs, vectorization_mode="vector_entry_point", **extra, **made.kwargs
        )
    except EnvError:
        raise
    except (Exception, SystemExit) as error:
        raise EnvError(f"{made.name}: {one_line(error)}") from error
    if env.metadata.get("autoreset_mode") == AutoresetMode.SAME_STEP:
        return env
    env.close()
    return None


def _check(id: str, kwargs: Mapping[str, Any]) -> None:
    """Raises EnvError for an unknown id, an unknown keyword, or a render mode that the environment does not have."""
    _spec(id)
    face = _loaded(id)
    valid = _keywords(face)
    for name in kwargs:
        if valid is not None and name not in valid:
            raise unknown_name(f"{id} keyword", name, valid)
    if "render_mode" in kwargs:
        modes = getattr(face, "metadata", {}).get("render_modes", [])
        expect_choice("render_mode", kwargs["render_mode"], [None, *modes])


def _is_registered(id: str) -> bool:
    """Whether Gymnasium knows `id`, or MiniGrid, which we depend on, registers it."""
    if id not in gym.registry:
        importlib.import_module("minigrid")
    return id in gym.registry


def _spec(id: str) -> EnvSpec:
    """The registered spec of `id`. Gymnasium's "module:id" is not taken: what a user types is imported before
    (`naming.load_environment`), and what stands in a stranger's policy file must not choose what is imported."""
    if not _is_registered(id):
        raise unknown_name("environment", id, [*env_ids(), "another id that Gymnasium knows"], nearest=gym.registry)
    return gym.registry[id]


def _loaded(id: str, entry_point: str | Callable[..., Any] | None = None) -> Any:
    """The class or function behind an entry point of `id`, by default that of single environments; None if there is no
    such. Raises EnvError, one line, if it cannot be imported."""
    entry_point = entry_point or _spec(id).entry_point
    if not isinstance(entry_point, str):
        return entry_point
    module, _, name = entry_point.partition(":")
    try:
        return getattr(importlib.import_module(module), name, None)
    except (Exception, SystemExit) as error:  # whatever a stranger's module does when it is imported
        raise EnvError(f"{id}: {one_line(error)}") from error


def _keywords(face: Any) -> list[str] | None:
    """The keyword arguments an environment takes; None if its signature does not tell."""
    if isinstance(face, type) and issubclass(face, SingleEnv):
        return [*list(inspect.signature(face.core_class).parameters)[1:], "render_mode"]  # without num_envs
    parameters = {} if face is None else inspect.signature(face).parameters
    if not parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return None
    return sorted({*parameters, "render_mode", "max_episode_steps"})
