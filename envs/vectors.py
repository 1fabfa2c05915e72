"""Vectors of adapted environments, which are stepped one after the other or each in its own process.

Both extend Gymnasium's (SyncVectorEnv, AsyncVectorEnv) in SAME_STEP autoreset, over `AdaptedEnv`s. They give identical
trajectories. A process that dies, or whose environment fails, is restarted a few times. Its episode then ends
truncated, and is marked as lost (`EPISODE_LOST`). B environments.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import secrets
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
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
)

from expire_span_rl.envs.closing import closed_on_error
from expire_span_rl.envs.errors import EnvError, EnvironmentFailed, EnvironmentWarning
from expire_span_rl.envs.gym_adapter import AdaptedEnv
from expire_span_rl.envs.infos import JoinedInfos
from expire_span_rl.envs.timeout import overdue_message
from expire_span_rl.envs.vector_worker import Refusal, run_worker
from expire_span_rl.spaces import EPISODE_LOST

MOST_RESTARTS = 3
"""The number of restarts of processes in one vector environment."""
_EXIT_SECONDS = 5.0  # for a process to end by itself
_START_SECONDS = 120.0  # for a process to make its environment, in addition to the time limit

MakeAdapted = Callable[[], AdaptedEnv]


class SyncEnvs(JoinedInfos, SyncVectorEnv):
    """Environments that are stepped one after the other. `infos["final_obs"]` is one batch, structured as the
    observation."""

    def __init__(self, envs: Sequence[AdaptedEnv]) -> None:
        super().__init__([partial(_same, env) for env in envs], autoreset_mode=AutoresetMode.SAME_STEP)
        env = envs[0]
        self.left_out = env.left_out
        self.memory_horizon = env.memory_horizon

    def step(self, actions: Any) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Steps all environments. Unlike Gymnasium's method, it writes observations straight into new arrays, so that
        they are not copied twice."""
        observations = _empty_batch(self.single_observation_space, self.num_envs)
        rewards = np.zeros(self.num_envs)
        infos: dict[str, Any] = {}
        terminated, truncated = np.zeros((2, self.num_envs), bool)
        for i, (env, action) in enumerate(zip(self.envs, iterate(self.action_space, actions), strict=True)):
            observation, rewards[i], terminated[i], truncated[i], info = env.step(action)
            if terminated[i] or truncated[i]:
                if "final_obs" not in infos:
                    infos["final_obs"] = _empty_batch(self.single_observation_space, self.num_envs)
                    infos["_final_obs"] = np.zeros(self.num_envs, bool)
                _write(infos["final_obs"], i, observation)
                infos["_final_obs"][i] = True
                infos = self._add_info(infos, {"final_info": info}, i)
                observation, info = env.reset()
            _write(observations, i, observation)
            if info:
                infos = self._add_info(infos, info, i)
        return observations, rewards, terminated, truncated, infos

    def begin_next(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Begins the next episodes of the environments `rows` [R]. Returns their observations [R, ...]."""
        observations = _empty_batch(self.single_observation_space, len(rows))
        for i, row in enumerate(rows):
            _write(observations, i, self.envs[row].reset()[0])
        return observations


def _same(env: AdaptedEnv) -> AdaptedEnv:
    return env


def _empty_batch(space: spaces.Space, num_envs: int) -> dict[str, np.ndarray]:
    """Uninitialised arrays for a batch of flat observations."""
    return cast(dict[str, np.ndarray], create_empty_array(space, num_envs))


def _write(batch: dict[str, np.ndarray], row: int, observation: dict[str, np.ndarray]) -> None:
    """Writes an observation into row `row` of a batch."""
    for name, values in observation.items():
        batch[name][row] = values


class AsyncEnvs(JoinedInfos, AsyncVectorEnv):
    """Environments in processes, which write their observations to shared memory.

    The processes are not forks of this one: a fork of a process that has loaded torch may hang."""

    def __init__(self, makers: Sequence[MakeAdapted], env: AdaptedEnv) -> None:
        """makers: make the environments, each in its process; env: the first maker's environment in this process, whose
        spaces Gymnasium reads before it closes it. Raises EnvError if an environment cannot be made."""
        self.left_out = env.left_out
        self.memory_horizon = env.memory_horizon
        self._name = env.adaptation.name
        self._timeout = env.adaptation.timeout
        with closed_on_error([env]):
            _check_pickles(makers[0])
        method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        self._process_context: Any = multiprocessing.get_context(method)
        if method == "forkserver":
            self._process_context.set_forkserver_preload([__name__])
        space = env.observation_space
        buffer = create_shared_memory(space, n=len(makers), ctx=self._process_context)
        self._restarts = 0
        self._numbers = [0] * len(makers)  # of each process's last command
        self._command_times = [0.0] * len(makers)  # of each process's last command
        self._has_answered = [False] * len(makers)  # since the process was started
        self._episodes: list[tuple[int, int] | None] = [None] * len(makers)  # (seed, number) of each row's episode
        with closed_on_error([self]):
            super().__init__(
                makers,
                shared_memory=False,  # Gymnasium's shared memory is lost when a process ends
                context=method,
                worker=cast(Any, partial(run_worker, buffer)),
                autoreset_mode=AutoresetMode.SAME_STEP,
            )
        self.observations = read_from_shared_memory(space, buffer, n=self.num_envs)
        self._last_observations = self._copy_observations()

    def reset_async(self, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None) -> None:
        self._assert_is_running()
        seeds = [None] * self.num_envs if seed is None else seed
        seeds = [seeds + i for i in range(self.num_envs)] if isinstance(seeds, int) else list(seeds)
        if len(seeds) != self.num_envs:
            raise EnvError(f"seed: expected {self.num_envs} seeds, one per environment, got {len(seeds)}")
        for i, row_seed in enumerate(seeds):
            if row_seed is not None:
                self._episodes[i] = (int(row_seed), 0)
            elif self._episodes[i] is None:
                self._episodes[i] = (secrets.randbits(31), 0)
            else:
                self._count_episode(i)
            self._send(i, "start", (*cast(tuple[int, int], self._episodes[i]), options))
        self._state = AsyncState.WAITING_RESET

    def reset_wait(self, timeout: float | None = None) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        infos: dict[str, Any] = {}
        for i in range(self.num_envs):
            info, failure = self._receive(i)
            if failure is not None:
                info = self._restart(i, failure)
            infos = self._add_info(infos, info, i)
        self._state = AsyncState.DEFAULT
        self._last_observations = self._copy_observations()
        return self._last_observations, infos

    def begin_next(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Begins the next episodes of the environments `rows` [R]. Returns their observations [R, ...]."""
        self._assert_is_running()
        for i in rows:
            self._count_episode(i)
            self._send(i, "start", (*cast(tuple[int, int], self._episodes[i]), None))
        for i in rows:
            _, failure = self._receive(i)
            if failure is not None:
                self._restart(i, failure)
        self._last_observations = self._copy_observations()
        return {name: values[rows] for name, values in self._last_observations.items()}

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
            result, failure = self._receive(i)
            if failure is not None:
                final = {name: values[i].copy() for name, values in self._last_observations.items()}
                self._count_episode(i)
                info = self._restart(i, failure)
                result = (0.0, False, True, {"final_obs": final, "final_info": {EPISODE_LOST: True}, **info})
            elif result[1] or result[2]:
                self._count_episode(i)
            rewards[i], terminated[i], truncated[i], info = result
            infos = self._add_info(infos, info, i)
        self._state = AsyncState.DEFAULT
        self._last_observations = self._copy_observations()
        return self._last_observations, rewards, terminated, truncated, infos

    def call_async(self, name: str, *args: Any, **kwargs: Any) -> None:
        self._assert_is_running()
        for i in range(self.num_envs):
            self._send(i, "_call", (name, args, kwargs))
        self._state = AsyncState.WAITING_CALL

    def call_wait(self, timeout: float | None = None) -> tuple[Any, ...]:
        """The results of a call. Raises AttributeError if an environment has no such attribute, and EnvironmentFailed
        for any other error. The environments go on."""
        answers = [self._receive(i) for i in range(self.num_envs)]
        self._state = AsyncState.DEFAULT
        for result, failure in answers:
            if failure is not None:
                message, trace = failure
                raise EnvironmentFailed(message) from _cause(trace)
            if isinstance(result, Refusal):
                error_class = AttributeError if result.lacks_attribute else EnvironmentFailed
                raise error_class(f"{self._name}, {result.message}") from _cause(result.trace)
        return tuple(result for result, _ in answers)

    def set_attr(self, name: str, values: Any) -> None:
        """Sets an attribute of all environments. values: one for all, or a list or tuple of one for each. Raises as
        `call_wait`."""
        self._assert_is_running()
        values = list(values) if isinstance(values, (list, tuple)) else [values] * self.num_envs
        if len(values) != self.num_envs:
            raise EnvError(f"values: expected {self.num_envs}, one per environment, got {len(values)}")
        for i, value in enumerate(values):
            self._send(i, "_setattr", (name, value))
        self.call_wait()

    def close_extras(self, timeout: float | None = None, terminate: bool = False) -> None:
        """Ends the processes: first by a command, and after a few seconds by force."""
        for i, pipe in enumerate(self.parent_pipes):
            if not terminate:
                self._send(i, "close", None)
            pipe.close()
        for process in self.processes:
            process.join(0 if terminate else _EXIT_SECONDS)
            if process.is_alive():
                process.kill()
                process.join()

    def _copy_observations(self) -> dict[str, np.ndarray]:
        """A copy of the observations in the shared memory."""
        return {name: values.copy() for name, values in self.observations.items()}

    def _count_episode(self, i: int) -> None:
        """Advances the number of environment i's episode."""
        seed, number = cast(tuple[int, int], self._episodes[i])
        self._episodes[i] = (seed, number + 1)

    def _send(self, i: int, command: str, data: Any) -> None:
        """Sends a command to process i, with a number of its own."""
        self._numbers[i] += 1
        self._command_times[i] = time.monotonic()
        with contextlib.suppress(OSError):  # `_receive` reports a process that has ended
            self.parent_pipes[i].send((self._numbers[i], command, data))

    def _receive(self, i: int) -> tuple[Any, tuple[str, str] | None]:
        """(answer, None) of process i to its last command, or (None, (error message of one line, traceback)). Answers
        to earlier commands, for which nobody waited because of an interrupt, are left out."""
        number, result, success = 0, None, True
        try:
            while success and number != self._numbers[i]:
                if self._timeout and not self.parent_pipes[i].poll(self._remaining_seconds(i)):
                    self.processes[i].kill()
                    return None, (f"{self._name}, environment {i}: {overdue_message(self._timeout)}", "")
                number, result, success = self.parent_pipes[i].recv()
                self._has_answered[i] = True
        except (EOFError, OSError):
            process = self.processes[i]
            process.join(_EXIT_SECONDS)
            return None, (f"{self._name}, environment {i}: its process ended with exit code {process.exitcode}", "")
        return (result, None) if success else (None, result)

    def _remaining_seconds(self, i: int) -> float:
        """The seconds to wait for process i. A command may include a step and a reset. The alarm in the process comes
        first, since its message says more."""
        limit = 2 * self._timeout + _EXIT_SECONDS / 5 + (0.0 if self._has_answered[i] else _START_SECONDS)
        return max(0.0, self._command_times[i] + limit - time.monotonic())

    def _restart(self, i: int, failure: tuple[str, str]) -> dict[str, Any]:
        """Starts a new process for environment i and begins the row's episode in it. Returns the episode's first info.
        Raises EnvironmentFailed after `MOST_RESTARTS` restarts. failure: error message and traceback."""
        while True:
            message, trace = failure
            self.parent_pipes[i].close()
            self.processes[i].join(_EXIT_SECONDS)
            if self.processes[i].is_alive():
                self.processes[i].kill()
            if self._restarts == MOST_RESTARTS:
                error = EnvironmentFailed(f"{message} (after {MOST_RESTARTS} restarts of processes)")
                raise error from _cause(trace)
            self._restarts += 1
            warning = f"{message}; its process is restarted ({self._restarts} of at most {MOST_RESTARTS} times)"
            warnings.warn(f"{warning}\n{trace}".strip(), EnvironmentWarning, stacklevel=2)
            self._start_process(i)
            self._send(i, "start", (*(self._episodes[i] or (secrets.randbits(31), 0)), None))
            info, new_failure = self._receive(i)
            if new_failure is None:
                return info
            failure = new_failure

    def _start_process(self, i: int) -> None:
        """Starts a process for environment i, in the same way as Gymnasium's constructor."""
        parent_pipe, child_pipe = self._process_context.Pipe()
        with clear_mpi_env_vars():
            process = self._process_context.Process(
                target=self.worker,
                name=f"Worker<{type(self).__name__}>-{i}",
                args=(i, CloudpickleWrapper(self.env_fns[i]), child_pipe, parent_pipe, None, None, None, None),
                daemon=True,
            )
            process.start()
        child_pipe.close()
        self.parent_pipes[i] = parent_pipe
        self.processes[i] = process
        self._has_answered[i] = False

    def _check_spaces(self) -> None:
        """Raises EnvError for an environment that could not be made, or has other spaces than the first."""
        spaces = (self.single_observation_space, self.single_action_space)
        for i in range(self.num_envs):
            self._send(i, "_check_spaces", spaces)
        for i in range(self.num_envs):
            has_same_spaces, failure = self._receive(i)
            if failure is not None:
                raise EnvError(failure[0])
            if not has_same_spaces:
                raise EnvError(f"{self._name}, environment {i}: expected the spaces of the first one, got others")


def _cause(trace: str) -> Exception | None:
    """A process's traceback as the cause of an error in this process; None if there is no traceback."""
    return RuntimeError(f"in its process:\n{trace}") if trace else None


def _check_pickles(make: MakeAdapted) -> None:
    """Raises EnvError for an environment that cannot be pickled, and so cannot be sent to another process."""
    try:
        cloudpickle.dumps(make)
    except Exception as error:  # pickling calls the environment's own methods
        message = " ".join(str(error).split())[:200]
        raise EnvError(
            "environment: expected one that can be pickled, since it runs in a process of its own, got "
            f"{type(error).__name__}: {message}"
        ) from error
