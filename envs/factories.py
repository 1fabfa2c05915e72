"""Makes environments of one id, or by a user's function: bare, adapted, or in the environment's own vector form."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import cloudpickle
import gymnasium as gym
from gymnasium.vector import AutoresetMode, VectorEnv

from expire_span_rl.envs.closing import closed_on_error
from expire_span_rl.envs.env_wrappers import PreviousActionReward, is_toolkit_task
from expire_span_rl.envs.errors import EnvError, one_line
from expire_span_rl.envs.gym_adapter import Adaptation, AdaptedEnv, adapt, name_of
from expire_span_rl.envs.naming import import_again, imported_modules

MakeEnv = Callable[[], gym.Env]


def is_registered(id: str) -> bool:
    """Whether Gymnasium knows `id`, or MiniGrid, a dependency of the toolkit, registers it."""
    if id not in gym.registry:
        importlib.import_module("minigrid")
    return id in gym.registry


@dataclass(frozen=True)
class Registration:
    """The registration of an id in this process, for use in another process."""

    id: str
    modules: Sequence[tuple[str, str]]
    """The modules that were imported by name, and their folders (`naming.imported_modules`)."""
    spec: bytes
    """The pickled spec. It is pickled separately, since its entry point may need one of the modules."""

    @classmethod
    def of(cls, id: str) -> Registration:
        return cls(id, imported_modules(), cloudpickle.dumps(gym.registry[id]))

    def restore(self) -> None:
        """Imports the modules, and registers the id if it is missing, in this process."""
        import_again(self.modules)
        if not is_registered(self.id):
            gym.registry[self.id] = cloudpickle.loads(self.spec)


@dataclass(frozen=True)
class Lent:
    """Gives an environment that exists. It belongs to somebody else, who closes it."""

    env: gym.Env

    def __call__(self) -> gym.Env:
        return self.env


class EnvFactory:
    """Makes environments of one id, or by a user's function, without the toolkit's wrappers. If the function puts them
    around its environments, `encoder` and `timeout` become theirs where they say nothing else. Can be pickled."""

    def __init__(self, id: str | None, function: MakeEnv | None, encoder: str, kwargs: Mapping[str, Any]) -> None:
        """id or function: one of them is None."""
        self.id = id
        self.function = function
        self.encoder = encoder
        self.timeout = 0.0
        self.kwargs = dict(kwargs)
        self.lends = isinstance(function, Lent)
        """Whether the environments belong to somebody else, who closes them."""
        self.render_mode: str | None = self.kwargs.get("render_mode")
        self.name = id or getattr(function, "__name__", type(function).__name__)
        self._registration: Registration | None = None  # set by pickling: the registration in the first process

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_registration": None if self.id is None else Registration.of(self.id)}

    def make_env(self) -> gym.Env:
        """Makes one environment. Raises EnvError, one line, for any failure."""
        if self._registration is not None:
            self._registration.restore()
        try:
            if self.function is not None:
                env = self.function()
            else:
                env = gym.make(cast(str, self.id), disable_env_checker=True, **self.kwargs)
        except EnvError:
            raise
        except (Exception, SystemExit) as error:  # a stranger's constructor may raise anything
            raise EnvError(f"{self.name}: {one_line(error)}") from error
        env = self._unwrap(env)
        if not isinstance(env, gym.Env):
            raise EnvError(f"{self.name}: expected a gymnasium.Env, got {type(env).__name__}")
        if self.id is None:
            self.name = name_of(env)
        return env

    def _unwrap(self, env: Any) -> Any:
        """The environment without the toolkit's wrappers."""
        while isinstance(env, (PreviousActionReward, AdaptedEnv)):
            if isinstance(env, AdaptedEnv):
                self.encoder = env.adaptation.encoder if self.encoder == "auto" else self.encoder
                self.timeout = self.timeout or env.adaptation.timeout
            env = env.env
        return env

    def make_vector(self, num_envs: int, **kwargs: Any) -> VectorEnv:
        """Makes the environment's own vector form."""
        return gym.make_vec(
            cast(str, self.id),
            num_envs=num_envs,
            vectorization_mode="vector_entry_point",
            **kwargs,
            **self.kwargs,
        )


class AdaptedEnvMaker:
    """Makes environment number `index` of a vector, adapted like the first one, here or in another process."""

    def __init__(
        self, factory: EnvFactory, adaptation: Adaptation, index: int, existing: AdaptedEnv | None = None
    ) -> None:
        """existing: an environment for the first call to return."""
        self.factory = factory
        self.adaptation = adaptation
        self.index = index
        self.existing = existing

    def __call__(self) -> AdaptedEnv:
        if self.existing is not None:
            env = self.existing
            self.existing = None
            return env
        return AdaptedEnv(self.factory.make_env(), self.adaptation, self.index)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "existing": None}


def adapted_env_makers(factory: EnvFactory, num_envs: int, timeout: float = 0.0) -> list[AdaptedEnvMaker]:
    """Makers of the adapted environments of a vector. The first environment is made and checked here, so that an
    invalid one gives one error before others are made."""
    bare_env = factory.make_env()
    with closed_on_error([] if factory.lends else [bare_env]):
        if is_toolkit_task(bare_env):
            env = AdaptedEnv(bare_env, Adaptation(factory.name, shaping=True))
        else:
            env = adapt(bare_env, factory.name, factory.encoder, timeout or factory.timeout)
    return [AdaptedEnvMaker(factory, env.adaptation, i, existing=env if i == 0 else None) for i in range(num_envs)]


def make_all(makers: Sequence[AdaptedEnvMaker], name: str) -> list[AdaptedEnv]:
    """The environments of all makers. If one cannot be made, all are closed. If one is the same as another, none is:
    the user's function gave one that existed before, and whoever made it closes it. name: for the message."""
    made: list[AdaptedEnv] = []
    with closed_on_error(made):
        for make in makers:
            made.append(make())
    expect_separate(made, name)
    return made


def expect_separate(envs: Sequence[gym.Env], name: str) -> None:
    """Raises EnvError, one line, if two environments of a vector are the same one. name: for the message."""
    if len({id(env.unwrapped) for env in envs}) < len(envs):
        raise EnvError(f"{name}: expected a new environment from each call, got the same one again")


def make_vector_form(factory: EnvFactory, num_envs: int) -> VectorEnv | None:
    """Makes the environment's own vector form, if it has one that can reset in the same step and takes the keyword
    arguments; None otherwise."""
    spec = None if factory.id is None else gym.registry[factory.id]
    if spec is None or spec.vector_entry_point is None or spec.additional_wrappers:
        return None
    vector_class = load_entry_point(spec.id, spec.vector_entry_point)
    limit = {} if spec.max_episode_steps is None else {"max_episode_steps": spec.max_episode_steps}
    if not _takes(vector_class, {**limit, **spec.kwargs, **factory.kwargs}):  # Gymnasium passes the registered ones too
        return None
    autoreset: dict[str, Any] = {}
    if vector_class is not None and "autoreset_mode" in inspect.signature(vector_class).parameters:
        autoreset = {"autoreset_mode": AutoresetMode.SAME_STEP}
    else:
        metadata = getattr(vector_class, "metadata", {})
        if metadata.get("autoreset_mode", AutoresetMode.SAME_STEP) != AutoresetMode.SAME_STEP:
            return None
    try:
        env = factory.make_vector(num_envs, **autoreset)
    except EnvError:
        raise
    except (Exception, SystemExit) as error:
        raise EnvError(f"{factory.name}: {one_line(error)}") from error
    if env.metadata.get("autoreset_mode") == AutoresetMode.SAME_STEP:
        return env
    env.close()
    return None


def _takes(vector_class: Any, kwargs: Mapping[str, Any]) -> bool:
    """Whether a vector form takes these keyword arguments, such as a time limit, as far as its signature says."""
    parameters = {} if vector_class is None else inspect.signature(vector_class).parameters
    has_any = not parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return has_any or parameters.keys() >= kwargs.keys()


def load_entry_point(id: str, entry_point: str | Callable[..., Any] | None) -> Any:
    """The class or function of an entry point of `id`; None if its module lacks it. Raises EnvError, one line, if the
    module cannot be imported."""
    if not isinstance(entry_point, str):
        return entry_point
    module, _, name = entry_point.partition(":")
    try:
        return getattr(importlib.import_module(module), name, None)
    except (Exception, SystemExit) as error:  # a stranger's module may raise anything
        raise EnvError(f"{id}: {one_line(error)}") from error
