"""An environment of another package as ours want it: flat observations, checked values, episodes that can be repeated.

`AdaptedEnv` stands around one environment, before any vectorisation; `envs.vector_adapter` does the same for one that steps a
batch by itself. What goes in and comes out:

    observation    the flat Dict of `spaces.Flattener`, new arrays, and "action_mask" where the environment says which
                   actions are allowed (`envs.masks`)
    reward         a Python float that float32 can hold
    info           numbers, flags and texts only
    reset(seed=s)  episode 0 of s; reset() begins the next one. Each has a seed of its own (`episode_seed`), so that it
                   does not depend on what was played before

Whatever the environment does wrong or raises is an `EnvironmentFailed` that names it, its index, the step and the
episode.
"""

from __future__ import annotations

import copy
import hashlib
import secrets
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NoReturn

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from expire_span_rl.envs.cells import IMAGE, cells_space, fits_cells
from expire_span_rl.envs.core_adapters import SingleEnv
from expire_span_rl.envs.errors import EnvError, EnvironmentFailed
from expire_span_rl.envs.masks import BY_METHOD, IN_INFO, IN_OBSERVATION, METHOD, ActionMasks, without_mask
from expire_span_rl.envs.timeout import Overdue, call_within
from expire_span_rl.spaces import ACTION_MASK, Flattener, SpaceError, previous_action_space

SEEDS = 2**31
"""Environments get seeds below this: NumPy's legacy generator and many simulators take no larger ones than 2^32."""
LARGEST_REWARD = float(np.finfo(np.float32).max)
_RESERVED = {"final_obs", "final_info", "final_observation", ACTION_MASK}
_PLAIN = {bool, int, float, str}


class EnvironmentWarning(UserWarning):
    """What a user should know about an environment that goes on nevertheless."""


def episode_seed(seed: int, episode: int) -> int:
    """The seed below 2^31 that episode number `episode` of an environment seeded with `seed` begins with: `seed` itself
    for the first episode if it is small enough, else a hash of both."""
    if episode == 0 and seed < SEEDS:
        return int(seed)
    digest = hashlib.blake2b(f"{int(seed)},{int(episode)}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") % SEEDS


@dataclass(frozen=True)
class Adaptation:
    """What is known of an environment once one like it was tried: the same for all environments of a vector."""

    name: str
    """How errors call it: its id."""
    replaced: Mapping[str, spaces.Space] = field(default_factory=dict)
    """Spaces of entries that say more than the environment's own (`spaces.Flattener`)."""
    masks: str | None = None
    """Where it says which actions are allowed: `masks.IN_OBSERVATION`, IN_INFO, BY_METHOD or None."""
    shaping: bool = False
    """Whether its `info["shaping"]` is ours to read: it is one of our tasks in wrappers of the user's."""
    timeout: float = 0.0
    """Seconds that a reset or a step may take; 0: any."""


class AdaptedEnv(gym.Wrapper):
    """See the module. Raises SpaceError if its spaces are not supported."""

    def __init__(self, env: gym.Env, adaptation: Adaptation, index: int = 0) -> None:
        """index: which environment of a vector it is, for errors."""
        super().__init__(env)
        self.adaptation, self.index = adaptation, index
        space, _ = without_mask(env.observation_space)
        self._flatten = Flattener(space, adaptation.replaced)
        self.left_out = self._flatten.left_out
        self.memory_horizon = _memory_horizon(env)
        entries = dict(self._flatten.space.spaces)
        previous_action_space(env.action_space)  # raises SpaceError for actions that no policy has
        self._masks: ActionMasks | None = None
        self._masks_by = adaptation.masks
        self._mask_method: Callable[[], Any] | None = None
        if adaptation.masks is not None:
            self._masks = ActionMasks(env.action_space)
            entries[ACTION_MASK] = self._masks.space
            if adaptation.masks == BY_METHOD:
                self._mask_method = env.get_wrapper_attr(METHOD)
        self.observation_space = spaces.Dict(entries)
        self._copies_actions = not isinstance(env.action_space, spaces.Discrete)
        self._step, self._reset, self._outside = env.step, env.reset, 0
        if adaptation.timeout:
            self._step = partial(call_within, adaptation.timeout, env.step)
            self._reset = partial(call_within, adaptation.timeout, env.reset)
        self._seed: int | None = None
        self.episode, self._steps = 0, 0
        self._tried = False  # whether this is the trial of `adapt`, where a bad reward is left for the run to tell
        self.own_observation: Any = None  # the latest, as the environment gave it: the viewer shows its texts

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Begins the first episode of `seed`; without one the next episode."""
        if seed is not None:
            return self.start(seed, 0, options)
        if self._seed is None:
            return self.start(secrets.randbits(31), 0, options)
        return self.start(self._seed, self.episode + 1, options)

    def start(
        self, seed: int, episode: int, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Begins episode number `episode` of `seed`. The same numbers, the same episode."""
        self._seed, self.episode, self._steps = int(seed), int(episode), 0
        try:
            result = self._reset(seed=episode_seed(self._seed, self.episode), options=options)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001, whatever a stranger's code does
            self._fail(raised(error), error)
        try:
            observation, info = _reset_result(result)
        except SpaceError as error:
            self._fail(str(error))
        return self._observed(observation, info, False), self._plain(info) if info else {}

    def step(self, action: Any) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        self._steps += 1
        if self._copies_actions:
            action = np.array(action)  # the environment may write to it
        try:
            result = self._step(action)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001, whatever a stranger's code does
            self._fail(raised(error), error)
        try:
            observation, reward, terminated, truncated, info = result
        except (TypeError, ValueError):
            self._fail(f"step: expected five values, got {_kinds(result)}")
        if type(reward) is not float:
            reward = self._number(reward)
        if not -LARGEST_REWARD <= reward <= LARGEST_REWARD and not self._tried:
            self._fail(f"reward: expected a finite number that float32 can hold, got {reward}")
        try:
            terminated, truncated = bool(terminated), bool(truncated)
        except (TypeError, ValueError):
            self._fail(f"step: expected two flags, terminated and truncated, got {_kinds((terminated, truncated))}")
        if not isinstance(info, Mapping):
            self._fail(f"info: expected a dict, got {type(info).__name__}")
        over = terminated or truncated
        return self._observed(observation, info, over), reward, terminated, truncated, self._plain(info) if info else {}

    def close(self) -> None:
        """Closes the environment. What it raises then is only told: a training must not be lost by it."""
        try:
            super().close()
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001, whatever a stranger's code does
            name = self.adaptation.name
            warnings.warn(f"{name}, environment {self.index}: close: {raised(error)}", EnvironmentWarning, stacklevel=2)

    def _observed(self, observation: Any, info: Mapping[str, Any], over: bool) -> dict[str, np.ndarray]:
        """The entries of an observation. over: the episode ended with it."""
        self.own_observation = observation
        try:
            entries = self._flatten(observation)
            if self._masks is not None:
                entries[ACTION_MASK] = self._masks(self._given_mask(observation, info), over)
        except SpaceError as error:
            self._fail(str(error), error)
        if len(self._flatten.outside) > self._outside:
            self._outside = len(self._flatten.outside)
            tell_outside(self.adaptation.name, self._flatten.outside)
        return entries

    def _given_mask(self, observation: Any, info: Mapping[str, Any]) -> Any:
        if self._mask_method is not None:
            try:
                return self._mask_method()
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # noqa: BLE001, whatever a stranger's code does
                self._fail(f"{METHOD}: {raised(error)}", error)
        source = info if self._masks_by == IN_INFO else observation
        return source.get(ACTION_MASK) if isinstance(source, Mapping) else None

    def _number(self, reward: Any) -> float:
        """A reward as a float: a number, or an array of one."""
        array = np.asarray(reward)
        if array.size != 1 or array.dtype.kind not in "biuf":
            self._fail(f"reward: expected a number, got {_kinds(reward)}")
        return float(array.reshape(())[()])

    def _plain(self, info: Mapping[str, Any]) -> dict[str, Any]:
        return plain_info(info, self.adaptation.shaping)

    def _fail(self, what: str, cause: BaseException | None = None) -> NoReturn:
        where = f"episode {self.episode} (seed {self._seed}), "
        where += f"step {self._steps}" if self._steps else "its first observation"
        raise failure(self.adaptation.name, self.index, where, what) from cause


def adapt(env: gym.Env, name: str | None = None, encoder: str = "auto", timeout: float = 0.0) -> AdaptedEnv:
    """An environment, adapted, after one reset and one step in which everything is checked.

    name: how errors call it, by default its id or its class; encoder: see `cells.cells_space`; timeout: see
    `Adaptation`. Raises EnvError, one line, for what it does wrong or what is not supported."""
    name = name or name_of(env)
    for kind in ("observation_space", "action_space"):
        if not isinstance(getattr(env, kind, None), spaces.Space):
            raise EnvError(f"{name}: {kind}: expected a space of Gymnasium, got {_kinds(getattr(env, kind, None))}")
    try:
        adaptation = _studied(env, name, encoder, timeout)
        adapted = AdaptedEnv(env, adaptation)
        adapted._tried = True
        observation, _ = adapted.reset(seed=0)
        if adapted._masks is not None:
            action = adapted._masks.allowed_action(observation[ACTION_MASK])
        else:
            action = sample_action(env.action_space)
        adapted.step(action)
    except EnvironmentFailed as error:
        raise EnvError(f"{name}: {getattr(error, 'what', error)}") from error
    except (SpaceError, EnvError) as error:
        raise EnvError(f"{name}: {error}") from error
    adapted._seed, adapted._tried = None, False
    return adapted


def _studied(env: gym.Env, name: str, encoder: str, timeout: float) -> Adaptation:
    """What the spaces of an environment and one reset tell."""
    try:
        result = call_within(timeout, env.reset, seed=0)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise SpaceError(f"reset: {raised(error)}") from error
    observation, info = _reset_result(result)
    replaced = cells_space(env, encoder)
    if encoder == "auto" and IMAGE in replaced and not fits_cells(observation):
        replaced = {}
    masks = None
    if without_mask(env.observation_space)[1]:
        masks = IN_OBSERVATION
    elif callable(find_attribute(env, METHOD)):
        masks = BY_METHOD
    elif ACTION_MASK in info:
        masks = IN_INFO
    return Adaptation(name, replaced, masks, isinstance(env.unwrapped, SingleEnv), timeout)


def _memory_horizon(env: gym.Env) -> int | None:
    """For how many steps the longest-lived fact must survive, if the environment has such an attribute. Raises
    SpaceError."""
    horizon = find_attribute(env, "memory_horizon")
    if horizon is None or (isinstance(horizon, (int, np.integer)) and not isinstance(horizon, bool) and horizon > 0):
        return None if horizon is None else int(horizon)
    raise SpaceError(f"memory_horizon: expected a whole number of steps of at least 1, or None, got {horizon!r}")


def name_of(env: gym.Env) -> str:
    """How errors call an environment: its id, or its class."""
    return env.spec.id if env.spec is not None else type(env.unwrapped).__name__


def find_attribute(env: gym.Env, name: str) -> Any:
    """An attribute of an environment or of one beneath its wrappers; None if there is none."""
    return env.get_wrapper_attr(name) if env.has_wrapper_attr(name) else None


def sample_action(space: spaces.Space) -> Any:
    """An action at random, always the same of one space; the space's own generator is left alone."""
    space = copy.deepcopy(space)
    space.seed(0)
    return space.sample()


def failure(name: str, index: int | None, where: str, what: str) -> EnvironmentFailed:
    """The error of an environment that does wrong. index: None if it is not known which of several."""
    which = "" if index is None else f", environment {index}"
    error = EnvironmentFailed(f"{name}{which}, {where}: {what}")
    error.what = what
    return error


def tell_outside(name: str, entries: set[str]) -> None:
    """Tells once, in one line, that observations leave their declared bounds."""
    listed = ", ".join(map(repr, sorted(entries)))
    message = f"{name}: observation {listed} is outside the bounds of its space at times; it is read as it is"
    if message not in _TOLD:
        _TOLD.add(message)
        warnings.warn(message, EnvironmentWarning, stacklevel=2)


_TOLD: set[str] = set()


def plain_info(info: Mapping[str, Any], shaping: bool = False) -> dict[str, Any]:
    """The numbers, flags and texts of an info; what else it holds is left out.

    shaping: whether to pass on `shaping`, which means something to us (`envs.core`) and may mean something else
    there."""
    plain = {}
    for key, value in info.items():
        if type(value) not in _PLAIN:
            value = _plain_value(value)
            if value is None:
                continue
        is_ours = key in _RESERVED or (key == "shaping" and not shaping)
        if isinstance(key, str) and not is_ours and not key.startswith("_"):
            plain[key] = value
    return plain


def _plain_value(value: Any) -> bool | int | float | str | None:
    if isinstance(value, np.ndarray) and value.ndim == 0 or isinstance(value, np.generic):
        value = value.item()
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    return None


def _reset_result(result: Any) -> tuple[Any, Mapping[str, Any]]:
    if isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], Mapping):
        return result
    raise SpaceError(f"reset: expected (observation, info), got {_kinds(result)}")


def raised(error: BaseException) -> str:
    """An error that an environment raised: its class and message on one line."""
    if isinstance(error, Overdue):
        return str(error)
    return f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")


def _kinds(value: Any) -> str:
    """The kind of a value, or of the values of a tuple."""
    if isinstance(value, tuple):
        return f"({', '.join(type(part).__name__ for part in value)})"
    return f"{value.dtype}{list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__
