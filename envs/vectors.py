"""Many adapted environments as one: one after the other, or each in a process of its own.

Both are Gymnasium's (SyncVectorEnv, AsyncVectorEnv) in SAME_STEP autoreset, over `AdaptedEnv`s, and give identical
trajectories. A process that dies, or whose environment fails, is replaced a few times: its episode ends truncated.
B environments.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import secrets
import signal
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, cast

import cloudpickle
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.vector.async_vector_env import AsyncState
from gymnasium.vector.utils import (
    CloudpickleWrapper,
    clear_mpi_env_vars,
    create_empty_array,
    create_shared_memory,
    iterate,
    read_from_shared_memory,
    write_to_shared_memory,
)

from expire_span_rl.envs.errors import EnvError, EnvironmentFailed
from expire_span_rl.envs.gym_adapter import AdaptedEnv, EnvironmentWarning
from expire_span_rl.envs.timeout import overdue_message

MOST_RESTARTS = 3
"""Of the processes of one vector environment."""
_PATIENCE = 5.0  # seconds that a process has to end by itself
_STARTING = 120.0  # seconds that a process has to make its environment, beside the time limit, where there is one
_ENDING = 10.0  # seconds that a process goes on after SIGTERM: the training finishes its update

MakeAdapted = Callable[[], AdaptedEnv]


class _Infos:
    """Infos of B environments as arrays that hold whatever a later environment adds."""

    num_envs: int

    def _add_info(self, vector_infos: dict[str, Any], env_info: dict[str, Any], env_num: int) -> dict[str, Any]:
        """Gymnasium's, whose arrays take their type from the first environment that has an entry."""
        for key, value in env_info.items():
            if isinstance(value, dict) and key != "final_obs":
                vector_infos[key] = self._add_info(vector_infos.get(key, {}), value, env_num)
            else:
                value = cast(Any, value)
                array = vector_infos.get(key)
                kind = _KINDS.get(type(value), object)
                if array is None:
                    array = (
                        np.zeros(self.num_envs, kind) if kind is not object else np.full(self.num_envs, None, object)
                    )
                elif array.dtype != kind:
                    # A flag beside a number stays a number; anything beside a text is an object.
                    joint = np.result_type(array.dtype, kind) if object not in (array.dtype, kind) else object
                    array = array.astype(joint)
                try:
                    array[env_num] = value
                except OverflowError:  # a whole number beyond 64 bits
                    array = array.astype(np.float64)
                    array[env_num] = float(value)
                vector_infos[key] = array
            mask = vector_infos.setdefault(f"_{key}", np.zeros(self.num_envs, bool))
            mask[env_num] = True
        return vector_infos


_KINDS = {bool: np.dtype(bool), int: np.dtype(np.int64), float: np.dtype(np.float64)}


class SyncEnvs(_Infos, SyncVectorEnv):
    """Environments that are stepped one after the other. `infos["final_obs"]` is one batch, structured as the
    observation."""

    def __init__(self, makers: Sequence[MakeAdapted]) -> None:
        super().__init__(makers, autoreset_mode=AutoresetMode.SAME_STEP)
        first = cast(AdaptedEnv, self.envs[0])
        self.left_out, self.memory_horizon = first.left_out, first.memory_horizon

    def step(self, actions: Any) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """As Gymnasium's, but written into new arrays at once: observations that are copies already are not copied
        again."""
        observations = _empty(self.single_observation_space, self.num_envs)
        rewards, infos = np.zeros(self.num_envs), {}
        terminated, truncated = np.zeros((2, self.num_envs), bool)
        for i, (env, action) in enumerate(zip(self.envs, iterate(self.action_space, actions), strict=True)):
            observation, rewards[i], terminated[i], truncated[i], info = env.step(action)
            if terminated[i] or truncated[i]:
                if "final_obs" not in infos:
                    infos["final_obs"] = _empty(self.single_observation_space, self.num_envs)
                    infos["_final_obs"] = np.zeros(self.num_envs, bool)
                _write(infos["final_obs"], i, observation)
                infos["_final_obs"][i] = True
                infos = self._add_info(infos, {"final_info": info}, i)
                observation, info = env.reset()
            _write(observations, i, observation)
            if info:
                infos = self._add_info(infos, info, i)
        return observations, rewards, terminated, truncated, infos


def _empty(space: spaces.Space, num_envs: int) -> dict[str, np.ndarray]:
    """Room for a batch of flat observations."""
    return cast(dict[str, np.ndarray], create_empty_array(space, num_envs))


def _write(batch: dict[str, np.ndarray], row: int, observation: dict[str, np.ndarray]) -> None:
    for name, values in observation.items():
        batch[name][row] = values


class AsyncEnvs(_Infos, AsyncVectorEnv):
    """Environments in processes, which write their observations to shared memory.

    The processes are new ones, no forks: what is forked from a process that has torch loaded may never wake up."""

    def __init__(self, makers: Sequence[MakeAdapted], ready: AdaptedEnv) -> None:
        """makers: make the environments in their processes; ready: what the first of them gives in this one, where
        Gymnasium asks it for its spaces and closes it. Raises EnvError if an environment cannot be made."""
        self.left_out, self.memory_horizon = ready.left_out, ready.memory_horizon
        self._name, self._timeout = ready.adaptation.name, ready.adaptation.timeout
        _check_pickles(makers[0])
        method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        self._processes_from: Any = multiprocessing.get_context(method)
        if method == "forkserver":
            self._processes_from.set_forkserver_preload([__name__])
        space = ready.observation_space
        buffer = create_shared_memory(space, n=len(makers), ctx=self._processes_from)
        self._restarts = 0
        self._asked = [0.0] * len(makers)  # when each process got its last command
        self._began = [False] * len(makers)  # whether it has answered since it was started
        self._episodes: list[tuple[int, int] | None] = [None] * len(makers)  # (seed, number) of each row's episode
        super().__init__(
            makers,
            shared_memory=False,  # (Gymnasium's does not outlive a process)
            context=method,
            worker=cast(Any, partial(_work, buffer)),
            autoreset_mode=AutoresetMode.SAME_STEP,
        )
        self.observations = read_from_shared_memory(space, buffer, n=self.num_envs)
        self._last = self._copied()

    def reset_async(self, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None) -> None:
        self._assert_is_running()
        seeds = [None] * self.num_envs if seed is None else seed
        seeds = [seeds + i for i in range(self.num_envs)] if isinstance(seeds, int) else list(seeds)
        if len(seeds) != self.num_envs:
            raise EnvError(f"seed: expected {self.num_envs} seeds, one per environment, got {len(seeds)}")
        for i, given in enumerate(seeds):
            before = self._episodes[i]
            if given is not None:
                self._episodes[i] = (int(given), 0)
            else:
                self._episodes[i] = (secrets.randbits(31), 0) if before is None else (before[0], before[1] + 1)
            self._send(i, "start", (*cast(tuple[int, int], self._episodes[i]), options))
        self._state = AsyncState.WAITING_RESET

    def reset_wait(self, timeout: float | None = None) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        infos: dict[str, Any] = {}
        for i in range(self.num_envs):
            info, failed = self._receive(i)
            if failed is not None:
                info = self._restarted(i, failed)
            infos = self._add_info(infos, info, i)
        self._state = AsyncState.DEFAULT
        self._last = self._copied()
        return self._last, infos

    def step_async(self, actions: Any) -> None:
        self._assert_is_running()
        for i, action in enumerate(iterate(self.action_space, actions)):
            self._send(i, "step", action)
        self._state = AsyncState.WAITING_STEP

    def step_wait(
        self, timeout: float | None = None
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        rewards = np.zeros(self.num_envs)
        terminated, truncated = np.zeros((2, self.num_envs), bool)
        infos: dict[str, Any] = {}
        for i in range(self.num_envs):
            result, failed = self._receive(i)
            if failed is not None:
                final = {name: values[i].copy() for name, values in self._last.items()}
                self._next_episode(i)
                info = self._restarted(i, failed)
                result = (0.0, False, True, {"final_obs": final, "final_info": {}, **info})
            elif result[1] or result[2]:
                self._next_episode(i)
            rewards[i], terminated[i], truncated[i], info = result
            infos = self._add_info(infos, info, i)
        self._state = AsyncState.DEFAULT
        self._last = self._copied()
        return self._last, rewards, terminated, truncated, infos

    def call_wait(self, timeout: float | None = None) -> tuple[Any, ...]:
        answers = [self._receive(i) for i in range(self.num_envs)]
        self._state = AsyncState.DEFAULT
        for _, failed in answers:
            if failed is not None:
                raise EnvironmentFailed(failed[0]) from _cause(failed[1])
        return tuple(result for result, _ in answers)

    def close_extras(self, timeout: float | None = None, terminate: bool = False) -> None:
        """Ends the processes: asks them, and after a few seconds does not ask."""
        for i, pipe in enumerate(self.parent_pipes):
            if not terminate:
                self._send(i, "close", None)
            pipe.close()
        for process in self.processes:
            process.join(0 if terminate else _PATIENCE)
            if process.is_alive():
                process.kill()
                process.join()

    def _copied(self) -> dict[str, np.ndarray]:
        return {name: values.copy() for name, values in self.observations.items()}

    def _next_episode(self, i: int) -> None:
        seed, number = cast(tuple[int, int], self._episodes[i])  # (an episode goes on)
        self._episodes[i] = (seed, number + 1)

    def _send(self, i: int, command: str, data: Any) -> None:
        self._asked[i] = time.monotonic()
        with contextlib.suppress(OSError):  # that a process is gone shows when its answer is awaited
            self.parent_pipes[i].send((command, data))

    def _receive(self, i: int) -> tuple[Any, tuple[str, str] | None]:
        """(answer, None) of the process i, or (None, (what went wrong in one line, traceback))."""
        try:
            if self._timeout and not self.parent_pipes[i].poll(self._time_left(i)):
                self.processes[i].kill()
                return None, (f"{self._name}, environment {i}: {overdue_message(self._timeout)}", "")
            result, success = self.parent_pipes[i].recv()
            self._began[i] = True
        except (EOFError, OSError):
            process = self.processes[i]
            process.join(_PATIENCE)
            return None, (f"{self._name}, environment {i}: its process ended with exit code {process.exitcode}", "")
        return (result, None) if success else (None, result)

    def _time_left(self, i: int) -> float:
        """Seconds to wait for process i: it may step and reset, and its own alarm, which tells more, goes first."""
        limit = 2 * self._timeout + _PATIENCE / 5 + (0.0 if self._began[i] else _STARTING)
        return max(0.0, self._asked[i] + limit - time.monotonic())

    def _restarted(self, i: int, failed: tuple[str, str]) -> dict[str, Any]:
        """A new process for environment i, which begins the row's episode: its info. Raises EnvironmentFailed after
        `MOST_RESTARTS` restarts."""
        while True:
            message, trace = failed
            self.parent_pipes[i].close()
            self.processes[i].join(_PATIENCE)
            if self.processes[i].is_alive():
                self.processes[i].kill()
            if self._restarts == MOST_RESTARTS:
                failure = EnvironmentFailed(f"{message} (after {MOST_RESTARTS} restarts of processes)")
                raise failure from _cause(trace)
            self._restarts += 1
            told = f"{message}; its process is restarted ({self._restarts} of at most {MOST_RESTARTS} times)"
            warnings.warn(f"{told}\n{trace}".strip(), EnvironmentWarning, stacklevel=2)
            self._start(i)
            self._send(i, "start", (*(self._episodes[i] or (secrets.randbits(31), 0)), None))
            info, failure = self._receive(i)
            if failure is None:
                return info
            failed = failure

    def _start(self, i: int) -> None:
        """A process for environment i, as Gymnasium's constructor starts it."""
        parent_pipe, child_pipe = self._processes_from.Pipe()
        with clear_mpi_env_vars():
            process = self._processes_from.Process(
                target=self.worker,
                name=f"Worker<{type(self).__name__}>-{i}",
                args=(i, CloudpickleWrapper(self.env_fns[i]), child_pipe, parent_pipe, None, None, None, None),
                daemon=True,
            )
            process.start()
        child_pipe.close()
        self.parent_pipes[i], self.processes[i] = parent_pipe, process
        self._began[i] = False

    def _check_spaces(self) -> None:
        """Raises EnvError for an environment that could not be made, or has other spaces than the first."""
        spaces = (self.single_observation_space, self.single_action_space)
        for i in range(self.num_envs):
            self._send(i, "_check_spaces", spaces)
        for i in range(self.num_envs):
            same, failed = self._receive(i)
            if failed is not None:
                raise EnvError(failed[0])
            if not same:
                raise EnvError(f"{self._name}, environment {i}: expected the spaces of the first one, got others")

    def _raise_if_errors(self, successes: Iterable[bool]) -> None:
        if not all(successes):
            raise EnvironmentFailed(f"{self._name}: an attribute could not be set")


def _work(buffer: Any, index: int, make: MakeAdapted, pipe: Connection, parent_pipe: Connection, *_: Any) -> None:
    """What a process does: makes its environment and answers (result, True), or ((message, traceback), False) once."""
    parent_pipe.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends us when it is done
    for name in ("SIGTERM", "SIGHUP"):  # to all processes of a job: the parent finishes its update with us
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _end_soon)
    env = None
    try:
        env = make()
        while True:
            command, data = pipe.recv()
            if command == "close":
                break
            pipe.send((_answer(env, buffer, index, command, data), True))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the parent is gone
    except BaseException as error:  # noqa: BLE001, whatever a stranger's code does
        name = (
            "" if isinstance(error, (EnvironmentFailed, EnvError)) else f"environment {index}: {type(error).__name__}: "
        )
        message = f"{name}{' '.join(str(error).split())}"
        with contextlib.suppress(OSError):
            pipe.send(((message, traceback.format_exc()), False))
    finally:
        if env is not None:
            with contextlib.suppress(Exception):
                env.close()


def _end_soon(*_: Any) -> None:
    """Ends this process in a while: when it is stopped it must not wait for a parent that waits for it."""
    ending = threading.Timer(_ENDING, os._exit, (143,))
    ending.daemon = True
    ending.start()


def _cause(trace: str) -> Exception | None:
    """A traceback from a process as what an error here comes from; None if there is none."""
    return RuntimeError(f"in its process:\n{trace}") if trace else None


def _check_pickles(make: MakeAdapted) -> None:
    """Raises EnvError for an environment that no other process can get."""
    try:
        cloudpickle.dumps(make)
    except Exception as error:  # pickling calls whatever the environment defines
        message = " ".join(str(error).split())[:200]
        raise EnvError(
            "environment: expected one that can be pickled, since it runs in a process of its own, got "
            f"{type(error).__name__}: {message}"
        ) from error


def _answer(env: AdaptedEnv, buffer: Any, index: int, command: str, data: Any) -> Any:
    """The answer to one command. Observations go to the shared memory."""
    if command == "step":
        observation, reward, terminated, truncated, info = env.step(data)
        if terminated or truncated:
            final, final_info = observation, info
            observation, info = env.reset()
            info = {"final_obs": final, "final_info": final_info, **info}
        write_to_shared_memory(env.observation_space, index, observation, buffer)
        return reward, terminated, truncated, info
    if command == "start":
        observation, info = env.start(*data)
        write_to_shared_memory(env.observation_space, index, observation, buffer)
        return info
    if command == "_call":
        name, args, kwargs = data
        attribute = env.get_wrapper_attr(name)
        return attribute(*args, **kwargs) if callable(attribute) else attribute
    if command == "_setattr":
        env.set_wrapper_attr(*data)
        return None
    if command == "_check_spaces":
        return data == (env.observation_space, env.action_space)
    raise ValueError(f"unknown command {command!r}")
