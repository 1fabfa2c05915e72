"""Which environment a name means, and whose word is taken for it.

What a user names is imported: "package:Id", "path/to/file.py:Id", and the modules of --import. What stands in a policy
file never imports anything: a file from a stranger must not choose what runs here, nor how much memory and time it
takes. What a file asks for beyond these bounds its user can name on the command line.
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
LARGEST_GRID = 128  # tiles of a side, or whatever else MiniGrid's numbers count
LARGEST_PRODUCT = 4096  # of MiniGrid's numbers: rooms times their size
SECONDS = 2.0  # of computing, in which the environment that a file names must have begun
NAME = 60  # characters of a name that a message repeats
NOT_FROM_FILES = ("vectorization", "render_mode", "env_timeout")  # how it runs here is not for a file to say


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

    name, imports: what the user named, "" and () for nothing; then it is the environment of the policy's `info`, if
    that is registered already. env_kwargs: the user's, over those of the file, which are bounded. Raises ValueError,
    one line, if it is not registered, if nobody names one, and for arguments of the file beyond their bounds.
    """
    own, kwargs = info.get("env"), info.get("env_kwargs")
    own = own if isinstance(own, str) else ""
    registered = own.rpartition(":")[2]
    if not name and not own:
        raise ValueError(f"--env: expected an environment id, since {shown(path)} names none")
    if name:
        id = named_environment(name, imports)
    else:
        envs.import_modules(imports)
        id = registered
        if id not in gym.registry and (flags := _flags(own, info)):
            raise ValueError(
                f"{shown(path)}: expected its environment {shown(id, NAME)} to be imported, which a policy file cannot ask for; "
                f"where you trust it, name it yourself: {flags}"
            )
    given = dict(env_kwargs or {})
    if id != registered or not isinstance(kwargs, dict):
        return id, given
    own_kwargs = {key: value for key, value in kwargs.items() if key not in given}
    own_kwargs = {key: value for key, value in own_kwargs.items() if key not in NOT_FROM_FILES or value is None}
    private = envs.private_kwargs(id)
    own_kwargs = {key: value for key, value in own_kwargs.items() if key not in private}
    _check_private(private, info, given, path)
    _check_kwargs(id, own_kwargs, path)
    return id, {**own_kwargs, **given}


def public_kwargs(id: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """What a policy file says of the keyword arguments of its environment: `env_kwargs`, without those that name
    something on this machine, and `private_kwargs`, the names of those, if there are any."""
    private = envs.private_kwargs(id)
    named = [key for key in private if kwargs.get(key)]
    info: dict[str, Any] = {"env_kwargs": {key: value for key, value in kwargs.items() if key not in private}}
    return {**info, "private_kwargs": named} if named else info


def _check_private(private: Sequence[str], info: Mapping[str, Any], given: Mapping[str, Any], path: object) -> None:
    """Raises ValueError, one line, where the policy was trained with a private keyword argument that the user does not
    name: a file must not choose what is read here."""
    wanted = info.get("private_kwargs")
    missing = [key for key in private if isinstance(wanted, list) and key in wanted and key not in given]
    if missing:
        raise ValueError(
            f"{shown(path)}: expected {missing[0]!r} to be named, which a policy file cannot do: "
            f"""--env-kwargs '{{"{missing[0]}": ...}}'"""
        )


def _check_kwargs(id: str, kwargs: Mapping[str, Any], path: object) -> None:
    """Raises ValueError, one line, for keyword arguments of a file that would make an environment larger than any
    is."""
    beyond = f"{shown(path)}: its environment's keyword arguments: expected"
    advice = "what you mean yourself, name with --env-kwargs"
    if len(json.dumps(kwargs)) > LONGEST_KWARGS:
        raise ValueError(f"{beyond} at most {LONGEST_KWARGS:,} characters of JSON; {advice}")
    of_minigrid = str(getattr(gym.registry.get(id), "entry_point", "")).startswith("minigrid.")
    product = 1.0
    for name, number in _numbers(kwargs):
        is_size = of_minigrid and "step" not in name
        most = LARGEST_GRID if is_size else LARGEST_NUMBER
        if not abs(number) <= most:
            raise ValueError(
                f"{beyond} numbers up to {most:,}, got {shown(name, NAME)}={shown(number, NAME)}; {advice}"
            )
        product *= max(1, abs(number)) if is_size else 1
    if product > LARGEST_PRODUCT:
        raise ValueError(f"{beyond} numbers whose product is at most {LARGEST_PRODUCT:,}, got {product:,.0f}; {advice}")


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
    """Raises ValueError, one line, in what computes for more than SECONDS: some environments search for ever for places
    that their settings do not leave. name: "" for the one that the file at `path` names; what a user names takes as
    long as it takes."""
    if name or threading.current_thread() is not threading.main_thread():
        yield
        return

    def late(signum: int, frame: Any) -> None:
        raise envs.EnvError(
            f"{shown(path)}: expected an environment that begins within {SECONDS:.0f} seconds, its does not; where you trust it, "
            "name it with --env"
        )

    before = signal.signal(signal.SIGVTALRM, late)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def _flags(own: str, info: Mapping[str, Any]) -> str:
    """What to type so that the environment of a policy's `info` is there; "" if it needs no import."""
    imports = info.get("imports")
    words = (
        [f"--import {_typed(name)}" for name in imports if isinstance(name, str)] if isinstance(imports, list) else []
    )
    return shown(" ".join([*words[:4], *([f"--env {_typed(own)}"] if ":" in own else [])]), 2 * NAME)


def _typed(text: str) -> str:
    """As a shell takes it for one word, whatever a stranger wrote."""
    return text if shlex.quote(text) == text else quoted(text, NAME)
