"""Which environment a name means, and whose word is taken for it.

What a user names is imported: "package:Id", "path/to/file.py:Id", and the modules of --import. What stands in a policy file
never imports anything: a file from a stranger must not choose what runs here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym

from expire_span_rl import envs


def named_environment(name: str, imports: Sequence[str] = ()) -> str:
    """The registered id that a user's name for an environment means, after the imports that it asks for. Raises EnvError,
    one line, for a module or id that is not there."""
    envs.import_modules(imports)
    id = envs.load_environment(name)
    envs.check_id(id)
    return id


def environment_of(
    name: str, imports: Sequence[str], info: Mapping[str, Any], path: object
) -> tuple[str, dict[str, Any]]:
    """The id of the environment in which the policy at `path` is to play, and the keyword arguments that its file has for it.

    name, imports: what the user named, "" and () for nothing; then it is the environment of the policy's `info`, if that is
    registered already. Raises ValueError, one line, if it is not, or if nobody names one.
    """
    own, kwargs = info.get("env"), info.get("env_kwargs")
    own = own if isinstance(own, str) else ""
    registered = own.rpartition(":")[2]
    if not name and not own:
        raise ValueError(f"--env: expected an environment id, since {path} names none")
    if name:
        id = named_environment(name, imports)
    else:
        envs.import_modules(imports)
        id = registered
        if id not in gym.registry and (flags := _flags(own, info)):
            raise ValueError(
                f"{path}: expected its environment {id} to be imported, which a policy file cannot ask for; where you trust "
                f"it, name it yourself: {flags}"
            )
    return id, dict(kwargs) if id == registered and isinstance(kwargs, dict) else {}


def _flags(own: str, info: Mapping[str, Any]) -> str:
    """What to type so that the environment of a policy's `info` is there; "" if it needs no import."""
    imports = info.get("imports")
    words = [f"--import {name}" for name in imports if isinstance(name, str)] if isinstance(imports, list) else []
    return " ".join([*words, *([f"--env {own}"] if ":" in own else [])])
