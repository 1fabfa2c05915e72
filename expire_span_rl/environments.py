"""Which environment a name means, and which names may import code.

What a user names is imported: "package:Id", "path/to/file.py:Id", and the modules of --import. A policy file never
imports anything: a file from a stranger must not choose which code runs here, nor how much memory and time it takes.
Where a file asks for more than these bounds, its user can ask for it on the command line.
"""

from __future__ import annotations

import contextlib
import json
import math
import shlex
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import gymnasium as gym

from expire_span_rl import envs
from expire_span_rl.checks import quoted, shown

LARGEST_NUMBER = 10**6  # of a keyword argument in a file
LONGEST_KWARGS = 10_000  # characters of all of them, as JSON
LARGEST_GRID = 128  # tiles of a side, or whatever else a number of MiniGrid counts
LARGEST_PRODUCT = 4096  # of MiniGrid's numbers: rooms times their size
SECONDS = 2.0  # of computing, within which an environment that a file names must begin
NAME = 60  # characters of a name that a message repeats
NOT_FROM_FILES = ("vectorization", "render_mode", "env_timeout")  # a file does not decide how it runs here


def named_environment(name: str, imports: Sequence[str] = ()) -> str:
    """The registered id that a user's name for an environment means, after the imports that it asks for. Raises
    EnvError, one line, for a module or id that is not there."""
    envs.import_modules(imports)
    id = envs.load_environment(name)
    envs.check_id(id)
    return id


def environment_of(
    name: str,
    imports: Sequence[str],
    info: Mapping[str, Any],
    path: object,
    env_kwargs: Mapping[str, Any] | None = None,
) -> tuple[str, dict[str, Any]]:
    """The id of the environment in which the policy at `path` is to play, and its keyword arguments.

    name, imports: what the user named. With "" and () it is the environment of the policy's `info`, which must be
    registered already. env_kwargs: the user's, which replace those of the file. Raises ValueError, one line, if the
    environment is not registered, if neither names one, and for arguments of the file beyond their bounds.
    """
    file_env, file_kwargs = info.get("env"), info.get("env_kwargs")
    file_env = file_env if isinstance(file_env, str) else ""
    registered = envs.meant_ids(file_env)
    if not name and not file_env:
        raise ValueError(f"--env: expected an environment id, since {shown(path)} names none")
    if name:
        id = named_environment(name, imports)
    else:
        envs.import_modules(imports)
        id = next((id for id in registered if id in gym.registry), registered[0])
        if id not in gym.registry and (flags := _flags(file_env, info)):
            raise ValueError(
                f"{shown(path)}: expected its environment {shown(id, NAME)} to be imported, which a policy file cannot "
                f"ask for; where you trust it, name it yourself: {flags}"
            )
    user_kwargs = dict(env_kwargs or {})
    if id not in registered or not isinstance(file_kwargs, dict):
        return id, user_kwargs
    private = envs.private_kwargs(id)
    kwargs = {key: value for key, value in file_kwargs.items() if key not in user_kwargs}
    kwargs = {key: value for key, value in kwargs.items() if key not in NOT_FROM_FILES or value is None}
    kwargs = {key: value for key, value in kwargs.items() if key not in private}
    _check_private(private, info, user_kwargs, path)
    _check_kwargs(id, kwargs, path)
    return id, {**kwargs, **user_kwargs}


def public_kwargs(id: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments of an environment as a policy file has them: `env_kwargs`, without those that name
    something on this machine, and `private_kwargs`, the names of those that were left out, if there are any."""
    private = envs.private_kwargs(id)
    omitted = [key for key in private if kwargs.get(key)]
    info: dict[str, Any] = {"env_kwargs": {key: value for key, value in kwargs.items() if key not in private}}
    return {**info, "private_kwargs": omitted} if omitted else info


def _check_private(
    private: Sequence[str], info: Mapping[str, Any], user_kwargs: Mapping[str, Any], path: object
) -> None:
    """Raises ValueError, one line, if the policy was trained with a private keyword argument that the user does not
    set. A policy file must not choose which files are read."""
    trained_with = info.get("private_kwargs")
    missing = [key for key in private if isinstance(trained_with, list) and key in trained_with]
    missing = [key for key in missing if key not in user_kwargs]
    if missing:
        raise ValueError(
            f"{shown(path)}: expected {missing[0]!r} from you, since a policy file cannot name it: "
            f"""--env-kwargs '{{"{missing[0]}": ...}}'"""
        )


def _check_kwargs(id: str, kwargs: Mapping[str, Any], path: object) -> None:
    """Raises ValueError, one line, for keyword arguments of a file that would make an environment too large."""
    prefix = f"{shown(path)}: its environment's keyword arguments: expected"
    advice = "to ask for more yourself, use --env-kwargs"
    if len(json.dumps(kwargs)) > LONGEST_KWARGS:
        raise ValueError(f"{prefix} at most {LONGEST_KWARGS:,} characters of JSON; {advice}")
    of_minigrid = str(getattr(gym.registry.get(id), "entry_point", "")).startswith("minigrid.")
    product = 1.0
    for name, number in _numbers(kwargs):
        is_size = of_minigrid and "step" not in name
        most = LARGEST_GRID if is_size else LARGEST_NUMBER
        if not abs(number) <= most:
            raise ValueError(
                f"{prefix} numbers up to {most:,}, got {shown(name, NAME)}={shown(number, NAME)}; {advice}"
            )
        product *= max(1, abs(number)) if is_size else 1
    if product > LARGEST_PRODUCT:
        raise ValueError(f"{prefix} numbers whose product is at most {LARGEST_PRODUCT:,}, got {product:,.0f}; {advice}")


def _numbers(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Every number in JSON, with the name of the argument that it stands in."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _numbers(part, name or str(key))
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _numbers(part, name)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield name, value if isinstance(value, int) or math.isfinite(value) else math.inf


@contextlib.contextmanager
def soon(name: str, path: object) -> Iterator[None]:
    """Raises ValueError, one line, within code that computes for more than SECONDS. Some environments search without
    end for free places that their settings do not leave.

    name: "" for the environment that the file at `path` names. An environment that the user names has no limit."""
    if name or threading.current_thread() is not threading.main_thread():
        yield
        return

    def refuse(signum: int, frame: Any) -> None:
        raise envs.EnvError(
            f"{shown(path)}: expected an environment that begins within {SECONDS:.0f} seconds, its does not; "
            "where you trust it, name it with --env"
        )

    before = signal.signal(signal.SIGVTALRM, refuse)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def _flags(env: str, info: Mapping[str, Any]) -> str:
    """The flags that import the environment of a policy's `info`; "" if it needs no import."""
    imports = info.get("imports")
    words = (
        [f"--import {_as_word(name)}" for name in imports if isinstance(name, str)] if isinstance(imports, list) else []
    )
    return shown(" ".join([*words[:4], *([f"--env {_as_word(env)}"] if ":" in env else [])]), 2 * NAME)


def _as_word(text: str) -> str:
    """A stranger's text as a shell takes it for one word."""
    return text if shlex.quote(text) == text else quoted(text, NAME)
