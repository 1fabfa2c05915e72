"""From a command line to a dataclass. The arguments are checked here, for clear one-line errors; tyro converts them."""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, replace
from pathlib import Path
from typing import Literal, NoReturn, TypeVar

import tyro

from expire_span_rl import __version__
from expire_span_rl.checks import choice, quoted
from expire_span_rl.cli.errors import UsageError
from expire_span_rl.cli.fields import Flag, flags_of, plain_dataclass
from expire_span_rl.cli.help import help_text
from expire_span_rl.cli.values import check_flag, check_path, converted, flag_of

T = TypeVar("T")
SHELLS = ("bash", "zsh", "fish")


def parse(config: type[T], arguments: Sequence[str], description: str, examples: Sequence[str] = ()) -> T:
    """The dataclass `config` filled from the command line.

    description, examples: of the help; examples are arguments alone.
    Prints what they ask for and exits for --help, --version and --print-completion.
    Raises ValueError, one line, for bad usage and for what the config's own checks refuse.
    """
    flags = flags_of(config)
    _answer(flags, arguments, description, examples)
    checked = check_arguments(flags, arguments)
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            values = vars(tyro.cli(plain_dataclass(map(_with_default, flags)), args=checked, add_help=False))
    except SystemExit:  # a type of somebody else's memory kind, of whose values only tyro knows
        raise UsageError(_without_box(errors.getvalue())) from None
    return config(**values)


def program() -> str:
    """How the user starts this program."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    name = Path(sys.argv[0]).name
    if spec is not None and Path(spec.origin or "").name == name:  # python -m package.module
        return f"python -m {spec.name}"
    return f"python {name}" if name.endswith(".py") else name


def value_of(name: str, arguments: Sequence[str]) -> str | None:
    """The value of --name in the arguments, the last one, as `parse` takes it; None if it is not there."""
    return next(reversed(values_of(name, arguments)), None)


def values_of(name: str, arguments: Sequence[str]) -> list[str]:
    """Every value of --name in the arguments."""
    return [value for _, value in _occurrences(name, arguments) if value is not None]


def arguments_of(name: str, arguments: Sequence[str]) -> list[str]:
    """Every --name in the arguments and its value, if it has one."""
    return [arguments[i] for places, _ in _occurrences(name, arguments) for i in places if i < len(arguments)]


def arguments_without(name: str, arguments: Sequence[str]) -> list[str]:
    """The arguments without any --name and its value."""
    left_out = {i for places, _ in _occurrences(name, arguments) for i in places}
    return [argument for i, argument in enumerate(arguments) if i not in left_out]


def _occurrences(name: str, arguments: Sequence[str]) -> Iterator[tuple[range, str | None]]:
    """Of every --name: the indices of the flag and its value, and the value; None if it is missing."""
    for i, argument in enumerate(arguments):
        if not argument.startswith("--") or flag_of(argument) != f"--{name}":
            continue
        if "=" in argument:
            yield range(i, i + 1), argument.split("=", 1)[1]
        else:
            yield range(i, i + 2), arguments[i + 1] if i + 1 < len(arguments) else None


def check_arguments(flags: Sequence[Flag], arguments: Sequence[str]) -> list[str]:
    """The arguments as tyro takes them: each value checked, whole numbers in digits, arguments without a flag first.

    Raises ValueError, one line, for the first that is wrong.
    """
    by_name = {name: flag for flag in flags if not flag.is_positional for name in flag.names}
    valid = [*by_name, "--help", "--version", "--print-completion"]
    bare: list[str] = []
    flagged: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if not _is_flag(argument):
            bare.append(argument)
            continue
        check_flag(argument, valid)
        name, flag = flag_of(argument), by_name[flag_of(argument)]
        inline = argument.split("=", 1)[1:]
        if flag.is_switch:
            if inline:
                raise UsageError(f"{name}: expected {' or '.join(flag.names)} without a value, got {quoted(inline[0])}")
            flagged.append(name)
        elif flag.is_plain:
            if not inline and (not rest or rest[0].startswith("--")):
                got = quoted(rest[0]) if rest else "nothing"
                raise UsageError(f"{name}: expected {_kind_of_value(flag)} after it, got {got}")
            value = converted(flag, inline[0] if inline else rest.pop(0))
            # Apart, an empty value stays one; joined, one that begins with a minus is no flag.
            flagged += [f"{name}={value}"] if value.startswith("-") else [name, value]
        else:
            values = list(inline)
            while not inline and rest and not _is_flag(rest[0]):
                values.append(rest.pop(0))
            flagged += [name, *(converted(flag, value) for value in values)]
    return [*_check_bare(flags, bare), *flagged]


def _check_bare(flags: Sequence[Flag], bare: Sequence[str]) -> list[str]:
    """The arguments without a flag. Raises UsageError for too many or too few, and for an empty name of a file."""
    places = [flag for flag in flags if flag.is_positional]
    required = [flag.metavar or flag.field for flag in places if _with_default(flag).default is MISSING]
    if len(bare) > len(places) and not any(flag.takes_many for flag in places):
        expected = f"{len(places)} without a flag" if places else "only flags and their values"
        raise UsageError(f"arguments: expected {expected}, got {quoted(bare[len(places)])} too; see --help")
    if len(bare) < len(required):
        missing = required[len(bare)]
        raise UsageError(f"{missing}: expected {_summary(places[len(bare)])}, got none; see --help")
    for i, text in enumerate(bare):
        check_path(places[min(i, len(places) - 1)], text)
    return list(bare)


def _kind_of_value(flag: Flag) -> str:
    """What the value of a flag is, for a message."""
    if flag.takes_none:
        return "a value"
    return {int: "a whole number", float: "a number"}.get(flag.element, "a value")


def _with_default(flag: Flag) -> Flag:
    """Any number of arguments may be none: how many there must be is for the config's own check to say."""
    return replace(flag, default=()) if flag.is_positional and flag.takes_many and flag.default is MISSING else flag


def _summary(flag: Flag) -> str:
    """What an argument is, for a sentence."""
    text = flag.help.split(". ")[0].rstrip(".") or "a value"
    return f"a {text[0].lower()}{text[1:]}"


def _answer(flags: Sequence[Flag], arguments: Sequence[str], description: str, examples: Sequence[str]) -> None:
    """Prints and exits if the arguments ask for help, the version or a completion script."""
    names = {flag_of(argument) for argument in arguments if argument.startswith("-")}
    if names & {"--help", "-h"}:
        print(help_text(program(), flags, description, examples), end="")
        sys.exit(0)
    if "--version" in names:
        print(f"expire-span-rl {__version__} (Python {sys.version.split()[0]}, PyTorch {_version('torch')})")
        sys.exit(0)
    if "--print-completion" in names:
        shell = value_of("print-completion", arguments) or ""
        _print_completion(flags, choice("--print-completion", shell, SHELLS))


def _version(package: str) -> str:
    """A package's version, read from its metadata: an import would take a second."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _print_completion(flags: Sequence[Flag], shell: str) -> NoReturn:
    """Prints tyro's completion script for these flags and those that every command line has, and exits."""
    version = Flag("version", bool, (tyro.conf.FlagCreatePairsOff,), False, "Print the version and exit.")
    completion = Flag("print_completion", Literal[SHELLS], (), SHELLS[0], "Print a completion script and exit.")
    everything = plain_dataclass([*flags, version, completion])
    tyro.cli(everything, prog=Path(sys.argv[0]).name, args=["--tyro-print-completion", shell])
    sys.exit(0)


def _is_flag(argument: str) -> bool:
    """Whether an argument is a flag: -1e-3 is a number, and a lone minus a file's name."""
    return argument.startswith("-") and not re.fullmatch(r"-|-[.\d].*", argument)


def _without_box(text: str) -> str:
    """tyro's message without the box around it, the box's title and the help below."""
    message: list[str] = []
    for line in text.splitlines()[1:]:
        line = line.strip("│| \t")
        if set(line) <= set("─-+╭╮╰╯"):  # a rule: help follows
            break
        message.append(line)
    return " ".join(message) or "bad usage, see --help"
