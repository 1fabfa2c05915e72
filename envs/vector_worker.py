"""The process of one environment of `envs.vectors.AsyncEnvs`: makes it and answers the parent's commands."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any

from gymnasium.vector.utils import write_to_shared_memory

from expire_span_rl.envs.errors import EnvError, EnvironmentFailed
from expire_span_rl.envs.gym_adapter import AdaptedEnv

_SECONDS_AFTER_SIGTERM = 10.0  # for which a process continues, so that the training can finish its update


@dataclass(frozen=True)
class Refusal:
    """The answer to a call or an attribute that raised an error. The environment goes on."""

    message: str
    trace: str
    lacks_attribute: bool
    """Whether the environment has no such attribute, or none that can be set."""


def run_worker(
    buffer: Any, index: int, make: Callable[[], AdaptedEnv], pipe: Connection, parent_pipe: Connection, *_: Any
) -> None:
    """Runs the process of environment `index`: answers each command (number, name, data) with (number, result, True).
    After an error it answers (number, (message, traceback), False) once and ends; calls and attributes that fail are
    answered with a `Refusal` instead. buffer: the shared memory of the observations."""
    parent_pipe.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this process
    for name in ("SIGTERM", "SIGHUP"):  # sent to all processes of a job: the parent still needs this one
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _exit_later)
    env = None
    number = 0
    try:
        env = make()
        while True:
            number, command, data = pipe.recv()
            if command == "close":
                break
            if command in ("_call", "_setattr"):
                _answer_call(env, number, command, data, pipe, index)
            else:
                pipe.send((number, _answer(env, command, data, buffer=buffer, index=index), True))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the parent has ended
    except BaseException as error:  # noqa: BLE001, a stranger's code may raise anything
        with contextlib.suppress(OSError):
            pipe.send((number, (_error_line(error, index), traceback.format_exc()), False))
    finally:
        if env is not None:
            with contextlib.suppress(Exception):
                env.close()


def _error_line(error: BaseException, index: int) -> str:
    """The error on one line. The toolkit's own errors name the environment already."""
    message = " ".join(str(error).split())
    if isinstance(error, (EnvironmentFailed, EnvError)):
        return message
    return f"environment {index}: {type(error).__name__}: {message}"


def _exit_later(*_: Any) -> None:
    """Ends this process after some seconds. A parent that was stopped may be waiting for it, so it cannot wait for the
    parent."""
    timer = threading.Timer(_SECONDS_AFTER_SIGTERM, os._exit, (143,))
    timer.daemon = True
    timer.start()


def _answer(env: AdaptedEnv, command: str, data: Any, *, buffer: Any, index: int) -> Any:
    """The answer to one command. Observations are written to the shared memory."""
    if command == "step":
        observation, reward, terminated, truncated, info = env.step(data)
        if terminated or truncated:
            final_info = {"final_obs": observation, "final_info": info}
            observation, info = env.reset()
            info = {**final_info, **info}
        write_to_shared_memory(env.observation_space, index, observation, buffer)
        return reward, terminated, truncated, info
    if command == "start":
        observation, info = env.start(*data)
        write_to_shared_memory(env.observation_space, index, observation, buffer)
        return info
    if command == "_check_spaces":
        return data == (env.observation_space, env.action_space)
    raise ValueError(f"unknown command {command!r}")


def _answer_call(env: AdaptedEnv, number: int, command: str, data: Any, pipe: Connection, index: int) -> None:
    """Answers a call, or sets an attribute. An error, also of a result that cannot be sent, becomes a `Refusal`. The
    pipe's own errors are raised: the parent has ended."""
    is_found = False
    try:
        if command == "_setattr":
            env.set_wrapper_attr(*data)
            result = None
        else:
            name, args, kwargs = data
            attribute = env.get_wrapper_attr(name)
            is_found = True
            result = attribute(*args, **kwargs) if callable(attribute) else attribute
        answer = ForkingPickler.dumps((number, result, True))
    except (Exception, SystemExit) as error:  # noqa: BLE001, a stranger's code may raise anything
        lacks_attribute = isinstance(error, AttributeError) and not is_found
        refusal = Refusal(_error_line(error, index), traceback.format_exc(), lacks_attribute)
        answer = ForkingPickler.dumps((number, refusal, True))
    pipe.send_bytes(answer)
