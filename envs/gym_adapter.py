"""Adapts an environment of another package: flat observations, checked values, episodes that can be repeated.

`AdaptedEnv` wraps one environment, before any vectorisation. `envs.vector_adapter` does the same for an environment
that steps a batch by itself. The adapted environment's interface:

    observation    the flat Dict of `spaces.Flattener`, new arrays, and "action_mask" if the environment says which
                   actions are allowed (`envs.masks`)
    reward         a Python float within the range of float32
    info           numbers, flags and texts only
    reset(seed=s)  begins episode 0 of s; reset() begins the next one. Each episode has its own seed (`episode_seed`),
                   so it does not depend on what was played before

If the environment raises an error or returns something invalid, the adapter raises `EnvironmentFailed`. It names the
environment, its index, the step and the episode.
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
from expire_span_rl.envs.errors import EnvError, EnvironmentFailed, EnvironmentWarning, warn_once
from expire_span_rl.envs.infos import last_info_problem, plain_info
from expire_span_rl.envs.masks import (
    BY_METHOD,
    IN_INFO,
    IN_OBSERVATION,
    METHOD,
    ActionMasks,
    late_mask_problem,
    remove_mask,
)
from expire_span_rl.envs.minigrid_view import speed_up
from expire_span_rl.envs.timeout import Overdue, call_within
from expire_span_rl.spaces import ACTION_MASK, Flattener, SpaceError, previous_action_space

SEEDS = 2**31
"""Environments get seeds below this, since NumPy's legacy generator and many simulators accept none above 2^32."""
LARGEST_REWARD = float(np.finfo(np.float32).max)


def episode_seed(seed: int, episode: int) -> int:
    """The environment's seed, below 2^31, for episode number `episode` of `seed`. For the first episode it is `seed`
    itself if that is small enough; otherwise it is a hash of both numbers."""
    if episode == 0 and seed < SEEDS:
        return int(seed)
    digest = hashlib.blake2b(f"{int(seed)},{int(episode)}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") % SEEDS


@dataclass(frozen=True)
class Adaptation:
    """The properties of an environment that a trial found. They are the same for all environments of a vector."""

    name: str
    """The name in error messages, usually the id."""
    replaced: Mapping[str, spaces.Space] = field(default_factory=dict)
    """More specific spaces for some entries, in place of the environment's own (`spaces.Flattener`)."""
    masks: str | None = None
    """The source of action masks: `masks.IN_OBSERVATION`, IN_INFO, BY_METHOD, or None if there are no masks."""
    shaping: bool = False
    """Whether `info["shaping"]` has this toolkit's meaning: the environment is a toolkit task in a user's wrappers."""
    timeout: float = 0.0
    """The time limit of a reset or a step, in seconds; 0: none."""
    encoder: str = "auto"
    """Which one the user asked for (`cells.cells_space`)."""


class AdaptedEnv(gym.Wrapper):
    """See the module. Raises SpaceError if the environment's spaces are not supported."""

    def __init__(self, env: gym.Env, adaptation: Adaptation, index: int = 0) -> None:
        """index: the environment's number in a vector, for error messages."""
        super().__init__(env)
        speed_up(env)
        self.adaptation = adaptation
        self.index = index
        # Observations.
        space, _ = remove_mask(env.observation_space)
        self._flatten = Flattener(space, adaptation.replaced)
        self._outside_count = 0  # entries that were reported as outside their bounds
        self.left_out = self._flatten.left_out
        self.own_observation: Any = None  # the latest one, as the environment gave it: the viewer shows its texts
        self.memory_horizon = check_horizon(find_attribute(env, "memory_horizon"))
        entries = dict(self._flatten.space.spaces)
        # Actions and their masks.
        previous_action_space(env.action_space)  # raises SpaceError for actions that no policy supports
        self._copies_actions = not isinstance(env.action_space, spaces.Discrete)
        self._masks: ActionMasks | None = None
        self._mask_method: Callable[[], Any] | None = None
        if adaptation.masks is not None:
            self._masks = ActionMasks(env.action_space)
            entries[ACTION_MASK] = self._masks.space
            if adaptation.masks == BY_METHOD:
                self._mask_method = env.get_wrapper_attr(METHOD)
        self.observation_space = spaces.Dict(entries)
        # Episodes.
        self._step = env.step
        self._reset = env.reset
        if adaptation.timeout:
            self._step = partial(call_within, adaptation.timeout, env.step)
            self._reset = partial(call_within, adaptation.timeout, env.reset)
        self._seed: int | None = None
        self.episode = 0
        self._steps = 0
        self._is_trial = False  # during the trial of `adapt`, which accepts a bad reward: the run reports it

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Begins the first episode of `seed`; without a seed, the next episode."""
        if seed is not None:
            return self.start(seed, 0, options)
        if self._seed is None:
            return self.start(secrets.randbits(31), 0, options)
        return self.start(self._seed, self.episode + 1, options)

    def start(
        self, seed: int, episode: int, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Begins episode number `episode` of `seed`. Equal numbers give equal episodes."""
        self._seed = int(seed)
        self.episode = int(episode)
        self._steps = 0
        try:
            result = self._reset(seed=episode_seed(self._seed, self.episode), options=options)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001, a stranger's code may raise anything
            self._fail(describe_error(error), error)
        return self._read_first(result)

    def _begin_trial(self, result: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Begins an episode of seed 0 for a trial. result: that of the reset, which is not repeated."""
        self._seed = self.episode = 0
        return self._read_first(result)

    def _read_first(self, result: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """The first observation of an episode and its info, from what a reset returned."""
        try:
            observation, info = check_reset_result(result)
        except SpaceError as error:
            self._fail(str(error))
        entries = self._read_observation(observation, info, is_final=False)
        return entries, self._plain_info(info) if info else {}

    def step(self, action: Any) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        self._steps += 1
        if self._copies_actions:
            action = np.array(action)  # the environment may write to it
        try:
            result = self._step(action)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001, a stranger's code may raise anything
            self._fail(describe_error(error), error)
        try:
            observation, reward, terminated, truncated, info = result
        except (TypeError, ValueError):
            self._fail(f"step: expected five values, got {type_name(result)}")
        if type(reward) is not float:
            reward = self._reward_as_float(reward)
        if not -LARGEST_REWARD <= reward <= LARGEST_REWARD and not self._is_trial:
            self._fail(f"reward: expected a finite number that float32 can hold, got {reward}")
        try:
            has_terminated = bool(terminated)
            has_truncated = bool(truncated)
        except (TypeError, ValueError):
            got = type_name((terminated, truncated))
            self._fail(f"step: expected two flags, terminated and truncated, got {got}")
        if not isinstance(info, Mapping):
            self._fail(f"info: expected a dict, got {type(info).__name__}")
        if has_terminated or has_truncated:
            info = self._complete_last_info(info)
        entries = self._read_observation(observation, info, is_final=has_terminated or has_truncated)
        return entries, reward, has_terminated, has_truncated, self._plain_info(info) if info else {}

    def close(self) -> None:
        """Closes the environment. An error while it closes is only a warning: it must not end a training."""
        try:
            super().close()
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001, a stranger's code may raise anything
            message = f"{self.adaptation.name}, environment {self.index}: close: {describe_error(error)}"
            warnings.warn(message, EnvironmentWarning, stacklevel=2)

    def _read_observation(self, observation: Any, info: Mapping[str, Any], is_final: bool) -> dict[str, np.ndarray]:
        """The entries of an observation. is_final: it is the last one of its episode."""
        self.own_observation = observation
        try:
            entries = self._flatten(observation)
            if self._masks is not None:
                entries[ACTION_MASK] = self._masks(self._find_mask(observation, info, is_final), is_final)
        except SpaceError as error:
            self._fail(str(error), error)
        if len(self._flatten.outside) > self._outside_count:
            self._outside_count = len(self._flatten.outside)
            warn_outside(self.adaptation.name, self._flatten.outside)
        return entries

    def _find_mask(self, observation: Any, info: Mapping[str, Any], is_final: bool) -> Any:
        """The mask as the environment gives it; None if it gives none. is_final: the episode has ended, so a method of
        the environment need not answer for it."""
        if self._mask_method is not None:
            if is_final:
                return None
            try:
                return self._mask_method()
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # noqa: BLE001, a stranger's code may raise anything
                self._fail(f"{METHOD}: {describe_error(error)}", error)
        source = info if self.adaptation.masks == IN_INFO else observation
        return source.get(ACTION_MASK) if isinstance(source, Mapping) else None

    def _reward_as_float(self, reward: Any) -> float:
        """A reward, which is a number or an array of one number, as a float."""
        array = np.asarray(reward)
        if array.size != 1 or array.dtype.kind not in "biuf":
            self._fail(f"reward: expected a number, got {type_name(reward)}")
        return float(array.reshape(())[()])

    def _complete_last_info(self, info: Mapping[str, Any]) -> Mapping[str, Any]:
        """The info of an episode's last step, with what a toolkit task says of an episode that a time limit cut short.
        Fails for an episode whose success or difficulty cannot be counted."""
        task = self.unwrapped
        if isinstance(task, SingleEnv):
            info = {**task.cut_info(), **info}
        problem = last_info_problem(info, self.metadata.get("difficulty_key"))
        if problem and not self._is_trial:
            self._fail(problem)
        return info

    def _plain_info(self, info: Mapping[str, Any]) -> dict[str, Any]:
        if self._is_trial and self._masks is None and (problem := late_mask_problem(info, self.env.action_space)):
            self._fail(problem)
        return plain_info(info, self.adaptation.shaping)

    def _fail(self, problem: str, cause: BaseException | None = None) -> NoReturn:
        """Raises EnvironmentFailed with the environment, the episode and the step."""
        step = f"step {self._steps}" if self._steps else "its first observation"
        seed = None if self._seed is None else episode_seed(self._seed, self.episode)  # a reset with it plays it again
        location = f"episode {self.episode} (seed {seed}), {step}"
        raise failure(self.adaptation.name, self.index, location, problem) from cause


def adapt(env: gym.Env, name: str | None = None, encoder: str = "auto", timeout: float = 0.0) -> AdaptedEnv:
    """Adapts an environment, and checks everything in one reset and one step.

    name: the name in error messages, by default the id or the class; encoder: see `cells.cells_space`; timeout: see
    `Adaptation`. Raises EnvError, one line, if the environment is invalid or not supported."""
    name = name or name_of(env)
    for attribute in ("observation_space", "action_space"):
        space = getattr(env, attribute, None)
        if not isinstance(space, spaces.Space):
            raise EnvError(f"{name}: {attribute}: expected a space of Gymnasium, got {type_name(space)}")
    try:
        adaptation, result = _find_adaptation(env, name, encoder, timeout)
        adapted_env = AdaptedEnv(env, adaptation)
        adapted_env._is_trial = True
        observation, _ = adapted_env._begin_trial(result)
        if adapted_env._masks is not None:
            action = adapted_env._masks.allowed_action(observation[ACTION_MASK])
        else:
            action = sample_action(env.action_space)
        adapted_env.step(action)
    except EnvironmentFailed as error:
        raise EnvError(f"{name}: {getattr(error, 'problem', error)}") from error
    except (SpaceError, EnvError) as error:
        raise EnvError(f"{name}: {error}") from error
    adapted_env._is_trial = False
    adapted_env._seed = None
    return adapted_env


def _find_adaptation(env: gym.Env, name: str, encoder: str, timeout: float) -> tuple[Adaptation, Any]:
    """Finds the properties of an environment from its spaces and one reset. Returns them and the reset's result."""
    try:
        result = call_within(timeout, env.reset, seed=0, options=None)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise SpaceError(f"reset: {describe_error(error)}") from error
    observation, info = check_reset_result(result)
    replaced = cells_space(env, encoder)
    if encoder == "auto" and IMAGE in replaced and not fits_cells(observation):
        replaced = {}
    masks = None
    if remove_mask(env.observation_space)[1]:
        masks = IN_OBSERVATION
    elif callable(find_attribute(env, METHOD)):
        masks = BY_METHOD
    elif ACTION_MASK in info:
        masks = IN_INFO
    shaping = isinstance(env.unwrapped, SingleEnv)
    return Adaptation(name, replaced, masks, shaping=shaping, timeout=timeout, encoder=encoder), result


def check_horizon(horizon: Any) -> int | None:
    """An environment's attribute `memory_horizon`, in steps; None if it has none. Raises SpaceError."""
    if horizon is None or (isinstance(horizon, (int, np.integer)) and not isinstance(horizon, bool) and horizon > 0):
        return None if horizon is None else int(horizon)
    raise SpaceError(f"memory_horizon: expected a whole number of steps of at least 1, or None, got {horizon!r}")


def name_of(env: gym.Env) -> str:
    """An environment's name in error messages: its id, or its class."""
    return env.spec.id if env.spec is not None else type(env.unwrapped).__name__


def find_attribute(env: gym.Env, name: str) -> Any:
    """An attribute of an environment, of one of its wrappers or of the innermost one; None if none has it."""
    return env.get_wrapper_attr(name) if env.has_wrapper_attr(name) else None


def sample_action(space: spaces.Space) -> Any:
    """A random action, always the same one for equal spaces. The space's own generator does not advance."""
    space = copy.deepcopy(space)
    space.seed(0)
    return space.sample()


def failure(name: str, index: int | None, location: str, problem: str) -> EnvironmentFailed:
    """The error of an environment that failed. index: its number in a vector; None if unknown. location: episode and
    step."""
    environment = name if index is None else f"{name}, environment {index}"
    error = EnvironmentFailed(f"{environment}, {location}: {problem}")
    error.problem = problem
    return error


def warn_outside(name: str, entries: set[str]) -> None:
    """Warns once, in one line, that observations leave their declared bounds."""
    names = ", ".join(map(repr, sorted(entries)))
    warn_once(f"{name}: observation {names} is outside the bounds of its space at times; it is read as it is")


def check_reset_result(result: Any) -> tuple[Any, Mapping[str, Any]]:
    """The observation and info that a reset returned. Raises SpaceError for anything else."""
    if isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], Mapping):
        return result
    raise SpaceError(f"reset: expected (observation, info), got {type_name(result)}")


def describe_error(error: BaseException) -> str:
    """The class and message of an environment's error, on one line."""
    if isinstance(error, Overdue):
        return str(error)
    return f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")


def type_name(value: Any) -> str:
    """The type of a value, or the types of a tuple's values, for messages."""
    if isinstance(value, tuple):
        return f"({', '.join(type(part).__name__ for part in value)})"
    return f"{value.dtype}{list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__
