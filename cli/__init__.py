"""What the command lines share: flags from dataclasses (tyro), one-line errors, exit codes.

Exit code 0 for success, 2 for bad usage, 1 for a failure told in one line.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import difflib
import inspect
import io
import itertools
import json
import re
import signal
import sys
import textwrap
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

import tyro

from expire_span_rl.checks import check_at_least  # noqa: F401, for the scripts

T = TypeVar("T")
SEED_BITS = 31
"""Seeds are multiplied, so that the environments of different runs do not overlap: the products fit into 64 bits."""


class UsageError(ValueError):
    """Bad usage, told in one line: what was expected, what was given, what would be right."""


def run(main: Callable[[], None]) -> None:
    """Runs a script's `main` and turns its errors into one line on stderr and the exit code. Never returns."""
    try:
        main()
    except KeyboardInterrupt:
        _stop("interrupted", 130)
    except BrokenPipeError:
        sys.exit(1)
    except ValueError as error:  # every module of this project tells bad input as a ValueError of one line
        _stop(str(error), 2)
    except (OSError, RuntimeError, MemoryError) as error:
        _stop(f"{type(error).__name__}: {error}", 1)
    sys.exit(0)


def parse(config: type[T], arguments: Sequence[str], description: str) -> T:
    """The dataclass `config` filled from the command line. Prints help and exits for --help. Raises UsageError."""
    check_flags(config, arguments)
    stderr = io.StringIO()
    try:
        with contextlib.redirect_stderr(stderr):
            return tyro.cli(config, prog=Path(sys.argv[0]).name, args=list(arguments), description=description)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UsageError(_one_line(stderr.getvalue())) from None


def flag_names(config: Any) -> list[str]:
    """The flags that a dataclass has on the command line, --help first."""
    valid = ["--help"]
    hints = get_type_hints(config, include_extras=True)
    for field in dataclasses.fields(config):
        kind = hints[field.name]
        if tyro.conf._markers.Positional in getattr(kind, "__metadata__", ()):
            continue
        kind = get_args(kind)[0] if hasattr(kind, "__metadata__") else kind
        name = field.name.replace("_", "-")
        valid.append(f"--{name}")
        if kind is bool:
            valid.append(f"--no-{name}")
    return valid


def flag_of(argument: str) -> str:
    """The flag in --some_flag=value, as it is listed."""
    return argument.split("=")[0].replace("_", "-")


def check_flags(config: Any, arguments: Iterable[str]) -> None:
    """Raises UsageError for a flag that `config` does not have, with the nearest that it has."""
    valid = flag_names(config)
    for argument in arguments:
        if argument.startswith("--") and argument != "--":
            check_flag(argument, valid)


def check_flag(argument: str, valid: Sequence[str]) -> None:
    """Raises UsageError for a flag that is not among `valid`, with the nearest that is."""
    given = flag_of(argument)
    if given not in valid:
        near = difflib.get_close_matches(given, valid, n=1, cutoff=0.5)
        raise UsageError(f"unknown flag {given}: {f'did you mean {near[0]}?' if near else 'see --help'}")


def json_object(flag: str, text: str) -> dict[str, Any]:
    """The JSON object that a flag's value is. Raises UsageError."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(
            f"""{flag}: expected a JSON object such as '{{"max_length": 100}}', got {text!r} ({error.msg})"""
        ) from None
    if not isinstance(value, dict):
        raise UsageError(f"""{flag}: expected a JSON object such as '{{"max_length": 100}}', got {text!r}""")
    return value


def choice(flag: str, value: str, choices: Iterable[str]) -> str:
    """`value` if it is one of `choices`. Raises UsageError with the nearest one."""
    choices = list(choices)
    if value in choices:
        return value
    near = difflib.get_close_matches(value.lower(), choices, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise UsageError(f"{flag}: expected one of {', '.join(choices)}, got {value!r}{hint}")


def _one_line(boxed: str) -> str:
    """tyro's message without its box and its help."""
    lines = [re.sub(r"^[│|\s]+|[│|\s]+$", "", line) for line in boxed.splitlines()]
    told: list[str] = []
    for line in lines[1:]:  # after the title
        rule = bool(line) and not set(line) - set("─-+╭╮╰╯")
        if rule and told:  # what follows is help
            break
        if line and not rule:
            told.append(line)
    message = re.sub(r"^Error parsing ([A-Z]\w*|Flags): ", "", " ".join(told))  # a check of the config's own
    return message or "bad usage, see --help"


def _stop(message: str, code: int) -> None:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)


def field_docs(config: type) -> dict[str, str]:
    """The docstring under each field of a dataclass, its bases' too, by field name."""
    docs: dict[str, str] = {}
    for part in reversed(config.__mro__):
        if not dataclasses.is_dataclass(part):
            continue
        tree = ast.parse(textwrap.dedent(inspect.getsource(part))).body[0]
        body = tree.body if isinstance(tree, ast.ClassDef) else []
        for statement, following in itertools.pairwise(body):
            match statement, following:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(doc))):
                    docs[name] = inspect.cleandoc(doc)
    return docs


def field_type(config: type, field: dataclasses.Field, doc: str) -> Any:
    """The field's type, with its docstring as the flag's help."""
    return Annotated[get_type_hints(config, include_extras=True)[field.name], tyro.conf.arg(help=" ".join(doc.split()))]


def joined(*configs: type, defaults: Mapping[str, Any] | None = None) -> type:
    """One flat dataclass with the fields of all, their docstrings as help. `defaults`: those that differ from the configs'."""
    known = defaults or {}
    fields, helps = [], {}
    for config in configs:
        helps |= field_docs(config)
        for f in dataclasses.fields(config):
            kind = field_type(config, f, helps[f.name])
            fields.append((f.name, kind, dataclasses.field(default=known.get(f.name, f.default))))
    return dataclasses.make_dataclass("Flags", fields, frozen=True)


def part(config: type, flat: Mapping[str, Any]) -> Any:
    """The component's own config out of the flat settings; its checks raise ValueError."""
    return config(**{f.name: flat[f.name] for f in dataclasses.fields(config) if f.name in flat})


def value_of(name: str, arguments: list[str]) -> str | None:
    """The value of --name in the arguments, the last one, as tyro takes it; None if it is not there."""
    value = None
    for i, argument in enumerate(arguments):
        if argument.startswith(f"--{name}="):
            value = argument.split("=", 1)[1]
        elif argument == f"--{name}" and i + 1 < len(arguments):
            value = arguments[i + 1]
    return value


def check_seed(config: Any, bits: int = SEED_BITS) -> None:
    """Raises UsageError, one line, for a `seed` that no environment could be given."""
    if not 0 <= config.seed < 2**bits:
        raise UsageError(f"--seed: expected 0 to 2^{bits} - 1, got {config.seed}")


def environment_of(env: str, info: Mapping[str, Any], path: str) -> tuple[str, dict[str, Any]]:
    """The environment id that --env or else the policy file at `path`, of which `info` tells, names, and the keyword arguments
    that the file has for it. Raises UsageError, one line, if neither names one."""
    own, known = info.get("env"), info.get("env_kwargs")
    if not isinstance(env or own, str):
        raise UsageError(f"--env: expected an environment id, since {path} names none")
    return env or own, dict(known) if env in ("", own) and isinstance(known, dict) else {}


def device(name: str) -> str:
    """The device that --device names. Raises UsageError, one line, if it is not there."""
    import torch  # only here: not every script needs it

    gpu = torch.cuda.is_available()
    if name == "auto":
        return "cuda" if gpu else "cpu"
    if name != "cpu" and not (gpu and re.fullmatch(r"cuda(:\d+)?", name)):
        usable = "cpu, cuda or auto" if gpu else "cpu or auto (there is no GPU here)"
        raise UsageError(f"--device: expected {usable}, got {name!r}")
    return name


@contextlib.contextmanager
def interruptible(stop: threading.Event) -> Iterator[None]:
    """Ctrl-C sets `stop`, so that the update under way is finished and a checkpoint can be written; the second one
    interrupts at once."""
    if threading.current_thread() is not threading.main_thread():  # where signals cannot be handled
        yield
        return

    def interrupted(signum: int, frame: Any) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = signal.signal(signal.SIGINT, interrupted)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
