"""Environments by name: an id that is registered, or one that a module registers when it is imported.

    Corridor-v0                      registered
    popgym:popgym-RepeatFirstEasy-v0 registered by a package
    path/to/my_envs.py:Recall-v0     registered by a file
    path/to/my_envs.py:Recall        a class of a file, which is registered under its name

What a user types is trusted, and may be imported. What stands in a policy file is not: ask `importable` first.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType

import gymnasium as gym

from expire_span_rl.checks import nearest, quoted
from expire_span_rl.envs.errors import NAME, EnvError, one_line

_MOST_IDS = 6  # ids that an error lists
_imported: dict[str, str] = {}
"""By the name of a module that was asked for, or the absolute path of a file: the folder that is searched for it."""
_registered: dict[str, list[str]] = {}
"""By the same names: the ids that appeared when it was imported."""

_classes: dict[str, str] = {}
"""By the ids of classes that were registered here: their entry points."""


def importable(name: str) -> str | None:
    """The module or file that `name` asks to import, such as "popgym" of "popgym:Id-v0"; None for a plain id.
    Imports nothing."""
    module, colon, _ = name.rpartition(":")
    return module if colon else None


def load_environment(name: str) -> str:
    """The registered id that `name` stands for, after the import that it asks for. A plain id is returned as it is.

    Raises EnvError, one line, for a module that cannot be imported or an id that it does not register."""
    module_name = importable(name)
    if module_name is None:
        return name
    id = name.rpartition(":")[2]
    module = import_module(module_name)
    found = getattr(module, id, None)
    is_class = isinstance(found, type) and issubclass(found, gym.Env)
    point = f"{module.__name__}:{id}"
    if is_class and _classes.get(id, point) != point:
        del gym.registry[id]  # a class of that name of another module
    if id in gym.registry:
        return id
    if is_class:
        gym.register(id=id, entry_point=point)
        _classes[id] = point
        return id
    ids = _registered[_key(module_name)] or _ids_of(module)
    near = nearest(id, ids)
    if not ids:
        raise EnvError(
            f"{module_name}: expected a module that registers {quoted(id, NAME)} or has such a class, it registers nothing"
        )
    listed = ", ".join(ids[:_MOST_IDS]) + (f" and {len(ids) - _MOST_IDS} more" if len(ids) > _MOST_IDS else "")
    hint = f"; did you mean {near!r}?" if near else ""
    raise EnvError(f"{module_name}: expected an id that it registers ({listed}), got {quoted(id, NAME)}{hint}")


def resolve(name: str) -> str:
    """The registered id that `name` stands for, if what it asks to import was imported before. Imports nothing, since
    `name` may stand in a stranger's file. Raises EnvError, one line."""
    module = importable(name)
    if module is None or _key(module) in _imported:
        return load_environment(name)
    raise EnvError(
        f"environment {quoted(name, NAME)}: nothing is imported unless its user asks for it: expected {quoted(module, NAME)} to be named on the "
        "command line (--env or --import), or given to envs.load_environment"
    )


def import_modules(names: Iterable[str]) -> None:
    """Imports modules by name or by path, for what they register. Raises EnvError, one line, for one that fails."""
    for name in names:
        import_module(name)


def imported_modules() -> list[tuple[str, str]]:
    """(name or path, folder it was found in) of what was imported here, so that another process can do the same."""
    return list(_imported.items())


def import_again(modules: Sequence[tuple[str, str]]) -> None:
    """Imports in this process what `imported_modules` named in another."""
    for name, folder in modules:
        if name not in _imported and folder not in sys.path:
            sys.path.append(folder)
        import_module(name)


def import_module(name: str) -> ModuleType:
    """The module `name`, "package.module" or "path/to/file.py". Raises EnvError, one line, if it cannot be imported."""
    if not name:
        raise EnvError("module: expected a name or the path of a .py file before the colon, got nothing")
    key = _key(name)
    before = set(gym.registry)
    try:
        module, folder = _import_file(Path(name)) if name.endswith(".py") else _import_package(name)
    except EnvError:
        raise
    except (Exception, SystemExit) as error:
        raise EnvError(f"{name}: cannot be imported: {_message(error)}") from error
    if key not in _imported:
        _imported[key] = folder
        _registered[key] = sorted(set(gym.registry) - before)
    return module


def _key(name: str) -> str:
    return str(Path(name).resolve()) if name.endswith(".py") else name


def _import_file(path: Path) -> tuple[ModuleType, str]:
    """The module of a file under the name that an import beside it would give it, so that "my_envs:Recall" is found."""
    path = path.resolve()
    folder, name = str(path.parent), path.stem
    if not path.is_file():
        raise EnvError(f"{path}: expected a Python file, there is none")
    if not name.isidentifier():
        raise EnvError(f"{path}: expected a file name that Python can import, such as my_envs.py")
    present = sys.modules.get(name)
    if present is not None:
        if Path(getattr(present, "__file__", None) or "").resolve() != path:
            raise EnvError(f"{path}: expected a file name of its own, another module {name!r} is imported already")
        return present, folder
    if folder not in sys.path:
        sys.path.insert(0, folder)  # as Python does for a script: what stands beside it can be imported
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module, folder


def _import_package(name: str) -> tuple[ModuleType, str]:
    if not all(part.isidentifier() for part in name.split(".")):
        raise EnvError(
            f"{quoted(name, NAME)}: expected the name of a module, such as popgym, or the path of a .py file"
        )
    top = name.partition(".")[0]
    here = Path.cwd()
    if top not in sys.modules and importlib.util.find_spec(top) is None:
        if not ((here / f"{top}.py").is_file() or (here / top).is_dir()):
            raise EnvError(
                f"{name}: there is no such module; expected an installed package or a path such as my_envs.py"
            )
        sys.path.append(str(here))
        importlib.invalidate_caches()
    module = importlib.import_module(name)
    file = getattr(sys.modules[top], "__file__", None)
    if file is None:
        return module, str(here)
    return module, str(Path(file).resolve().parents[1 if Path(file).stem == "__init__" else 0])


def _ids_of(module: ModuleType) -> list[str]:
    """The ids whose environments are classes of `module` or its parts: it had been imported before."""
    prefix = module.__name__
    entry_points = {
        id: str(getattr(spec.entry_point, "__module__", spec.entry_point)) for id, spec in gym.registry.items()
    }
    return sorted(
        id for id, point in entry_points.items() if point == prefix or point.startswith((f"{prefix}:", f"{prefix}."))
    )


def _message(error: BaseException) -> str:
    """The error and where it happened, on one line."""
    if isinstance(error, (ImportError, gym.error.Error)):
        return one_line(error)
    return f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")
