"""Environments by name: a registered id, or one that a module registers when it is imported.

    Corridor-v0                      registered
    popgym:popgym-RepeatFirstEasy-v0 registered by a package
    path/to/my_envs.py:Recall-v0     registered by a file
    path/to/my_envs.py:Recall        a class of a file, which is registered under its name, or as my_envs/Recall if
                                     Gymnasium knows an id such as Recall-v0

A name that the user types is trusted and may be imported. A name in a policy file is not trusted: check `importable`
first.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType

import gymnasium as gym
from gymnasium.envs.registration import find_highest_version

from expire_span_rl.checks import nearest, quoted
from expire_span_rl.envs.errors import NAME, EnvError, one_line

_MAX_LISTED_IDS = 6  # in an error
_imported: dict[str, str] = {}
"""Imported modules: {name of the module, or absolute path of the file: folder in which it was found}."""
_registered: dict[str, list[str]] = {}
"""By the same keys: the ids that the import registered."""
_classes: dict[str, str] = {}
"""Classes that this module registered: {id: entry point}."""


def importable(name: str) -> str | None:
    """The module or file that `name` asks to import, such as "popgym" in "popgym:Id-v0"; None for a plain id.
    Imports nothing."""
    module, colon, _ = name.rpartition(":")
    return module if colon else None


def meant_ids(name: str) -> list[str]:
    """The ids that `load_environment` may return for `name`: the one in it, and that of a class of its module. Imports
    nothing."""
    module, _, id = name.rpartition(":")
    return [id, f"{Path(module).stem if module.endswith('.py') else module}/{id}"] if module else [id]


def load_environment(name: str) -> str:
    """Imports the module that `name` asks for. Returns the registered id; a plain id is returned as it is.

    Raises EnvError, one line, for a module that cannot be imported or an id that it does not register."""
    module_name = importable(name)
    if module_name is None:
        return name
    id = name.rpartition(":")[2]
    module = import_module(module_name)
    attribute = getattr(module, id, None)
    is_class = isinstance(attribute, type) and issubclass(attribute, gym.Env)
    entry_point = f"{module.__name__}:{id}"
    if is_class and _classes.get(id, entry_point) != entry_point:
        del gym.registry[id]  # another module's class of the same name
    if id in gym.registry:
        return id
    if is_class:
        if find_highest_version(None, id) is not None:  # Gymnasium would take that one
            id = f"{module.__name__}/{id}"
        if id not in gym.registry:
            gym.register(id=id, entry_point=entry_point)
            _classes[id] = entry_point
        return id
    raise _unknown_id(module_name, id, ids=[*(_registered[_key(module_name)] or _ids_of(module)), *_classes_of(module)])


def _unknown_id(module_name: str, id: str, ids: list[str]) -> EnvError:
    """The error for an id that a module does not register. ids: those that it does, and its classes."""
    if not ids:
        return EnvError(
            f"{module_name}: expected a module that registers {quoted(id, NAME)} or has such a class, "
            "it registers nothing"
        )
    choices = ", ".join(ids[:_MAX_LISTED_IDS])
    if len(ids) > _MAX_LISTED_IDS:
        choices += f" and {len(ids) - _MAX_LISTED_IDS} more"
    near = nearest(id, ids)
    hint = f"; did you mean {near!r}?" if near else ""
    return EnvError(f"{module_name}: expected one of its ids and classes ({choices}), got {quoted(id, NAME)}{hint}")


def resolve(name: str) -> str:
    """The registered id of `name`, if the module that it asks for has been imported.

    Imports nothing, since `name` may come from a stranger's file. Raises EnvError, one line."""
    module = importable(name)
    if module is None or _key(module) in _imported:
        return load_environment(name)
    raise EnvError(
        f"environment {quoted(name, NAME)}: nothing is imported unless its user asks for it: expected "
        f"{quoted(module, NAME)} to be named on the command line (--env or --import), or given to "
        "envs.load_environment"
    )


def import_modules(names: Iterable[str]) -> None:
    """Imports modules by name or path, so that they register their environments. Raises EnvError, one line."""
    for name in names:
        import_module(name)


def imported_modules() -> list[tuple[str, str]]:
    """The modules imported here, (name or path, folder), so that another process can import them too."""
    return list(_imported.items())


def import_again(modules: Sequence[tuple[str, str]]) -> None:
    """Imports the modules of another process's `imported_modules` in this process."""
    for name, folder in modules:
        if name not in _imported and folder not in sys.path:
            sys.path.append(folder)
        import_module(name)


def import_module(name: str) -> ModuleType:
    """The module `name`, "package.module" or "path/to/file.py". Raises EnvError, one line, if it cannot be imported."""
    if not name:
        raise EnvError("module: expected a name or the path of a .py file before the colon, got nothing")
    key = _key(name)
    ids_before = set(gym.registry)
    try:
        module, folder = _import_file(Path(name)) if name.endswith(".py") else _import_package(name)
    except EnvError:
        raise
    except (Exception, SystemExit) as error:
        raise EnvError(f"{name}: cannot be imported: {_import_message(error)}") from error
    if key not in _imported:
        _imported[key] = folder
        _registered[key] = sorted(set(gym.registry) - ids_before)
    return module


def _key(name: str) -> str:
    """The key of a module in `_imported` and `_registered`."""
    return str(Path(name).resolve()) if name.endswith(".py") else name


def _import_file(path: Path) -> tuple[ModuleType, str]:
    """Imports a file under the same name as an import from its folder would, so that the entry point
    "my_envs:Recall" is valid. Returns the module and its folder."""
    path = path.resolve()
    folder = str(path.parent)
    name = path.stem
    if not path.is_file():
        raise EnvError(f"{path}: expected a Python file, there is none")
    if not name.isidentifier():
        raise EnvError(f"{path}: expected a file name that Python can import, such as my_envs.py")
    loaded_module = sys.modules.get(name)
    if loaded_module is not None:
        if Path(getattr(loaded_module, "__file__", None) or "").resolve() != path:
            raise EnvError(f"{path}: expected a file name of its own, another module {name!r} is imported already")
        return loaded_module, folder
    if folder not in sys.path:
        sys.path.insert(0, folder)  # as Python does for a script, so that it can import files of its folder
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
    """Imports a module by name, also from the working directory. Returns the module and the folder of its package."""
    if not all(part.isidentifier() for part in name.split(".")):
        raise EnvError(
            f"{quoted(name, NAME)}: expected the name of a module, such as popgym, or the path of a .py file"
        )
    top = name.partition(".")[0]
    working_folder = Path.cwd()
    if top not in sys.modules and importlib.util.find_spec(top) is None:
        if not ((working_folder / f"{top}.py").is_file() or (working_folder / top).is_dir()):
            raise EnvError(
                f"{name}: there is no such module; expected an installed package or a path such as my_envs.py"
            )
        sys.path.append(str(working_folder))
        importlib.invalidate_caches()
    module = importlib.import_module(name)
    file = getattr(sys.modules[top], "__file__", None)
    if file is None:
        return module, str(working_folder)
    return module, str(Path(file).resolve().parents[1 if Path(file).stem == "__init__" else 0])


def _ids_of(module: ModuleType) -> list[str]:
    """The registered ids whose entry points are in `module` or its submodules, for a module that had been imported
    before."""
    prefix = module.__name__
    entry_points = {
        id: str(getattr(spec.entry_point, "__module__", spec.entry_point)) for id, spec in gym.registry.items()
    }
    return sorted(
        id for id, point in entry_points.items() if point == prefix or point.startswith((f"{prefix}:", f"{prefix}."))
    )


def _classes_of(module: ModuleType) -> list[str]:
    """The names of the environments' classes that a module defines."""
    members = vars(module).values()
    own = [member for member in members if isinstance(member, type) and member.__module__ == module.__name__]
    return sorted(member.__name__ for member in own if issubclass(member, gym.Env))


def _import_message(error: BaseException) -> str:
    """The message of an error during an import, on one line."""
    if isinstance(error, (ImportError, gym.error.Error)):
        return one_line(error)
    return f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")
