"""Flags from dataclasses: each field is a flag, the docstring under it the flag's help."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import textwrap
from collections.abc import Iterable, Mapping
from copy import copy
from dataclasses import MISSING, dataclass, replace
from functools import cache, partial
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import tyro

_MARKERS = (tyro.conf.Positional, tyro.conf.UseAppendAction, tyro.conf.FlagCreatePairsOff)
_KEY = "flag"  # in a field's metadata: the Flag that `joined` made it from


@dataclass(frozen=True)
class Flag:
    """A field of a dataclass as the command line has it."""

    field: str
    """The field's name."""
    type: Any
    """Its type, without annotations."""
    annotations: tuple[Any, ...]
    default: Any
    """MISSING: required."""
    help: str
    group: str | None = None
    """Title under which the help lists it; None: where `cli.help` puts fields of its name."""
    names_allowed: tuple[str, ...] = ()
    """The values that text may have, where `joined` was given them."""

    @property
    def name(self) -> str:
        """As the user types it."""
        return f"--{(self._annotation('name') or self.field).replace('_', '-')}"

    @property
    def names(self) -> list[str]:
        """Every spelling: a switch has one for on and one for off."""
        return [self.name, f"--no-{self.name[2:]}"] if self.is_switch else [self.name]

    @property
    def is_positional(self) -> bool:
        return tyro.conf.Positional in self.annotations

    @property
    def is_switch(self) -> bool:
        return self.type is bool

    @property
    def is_repeated(self) -> bool:
        """Given once for each value."""
        return tyro.conf.UseAppendAction in self.annotations

    @property
    def is_plain(self) -> bool:
        """Whether one value follows it, not several or none."""
        return self.is_repeated or (not self.is_switch and self.element in (int, float, str) and not self.takes_many)

    @property
    def takes_many(self) -> bool:
        return get_origin(self.type) in (tuple, list, set)

    @property
    def takes_none(self) -> bool:
        """Whether the word None is a value."""
        return get_origin(self.type) in (Union, UnionType) and NoneType in get_args(self.type)

    @property
    def element(self) -> Any:
        """The type of one value: int of int | None and of tuple[int, ...], str of Literal["a", "b"]."""
        kinds = [kind for kind in get_args(self.type) if kind not in (NoneType, Ellipsis)]
        if get_origin(self.type) is Literal:
            return str if all(isinstance(kind, str) for kind in kinds) else None
        if self.takes_many or self.takes_none:
            return kinds[0] if len(set(kinds)) == 1 else None
        return self.type

    @property
    def choices(self) -> tuple[str, ...]:
        """The values it may have; empty where any of its type will do."""
        if get_origin(self.type) is Literal:
            return tuple(map(str, get_args(self.type)))
        return self.names_allowed

    @property
    def metavar(self) -> str | None:
        """What stands for its value in the help, if `tyro.conf.arg` says so."""
        return self._annotation("metavar")

    @property
    def tyro_type(self) -> Any:
        """The type as tyro reads it, with this flag's name, help and choices."""
        kind = Literal[self.names_allowed] if self.names_allowed and self.type is str else self.type
        argument = tyro.conf.arg(name=self._annotation("name"), metavar=self.metavar, help=self.help)
        return Annotated[(kind, argument, *(mark for mark in self.annotations if mark in _MARKERS))]

    def _annotation(self, attribute: str) -> Any:
        """An attribute of `tyro.conf.arg`; None if it is not set."""
        values = (getattr(annotation, attribute, None) for annotation in self.annotations)
        return next((value for value in values if value), None)


def flags_of(config: Any) -> list[Flag]:
    """The flags of a dataclass, in the order of its fields."""
    docs, hints = field_docs(config), get_type_hints(config, include_extras=True)
    flags = []
    for field in dataclasses.fields(config):
        if _KEY in field.metadata:
            flags.append(field.metadata[_KEY])
            continue
        annotations = getattr(hints[field.name], "__metadata__", ())
        kind = get_args(hints[field.name])[0] if annotations else hints[field.name]
        default = field.default if field.default_factory is MISSING else field.default_factory()
        flags.append(Flag(field.name, kind, annotations, default, docs.get(field.name, "")))
    return flags


def flag_names(config: Any) -> list[str]:
    """The flags that a dataclass has on the command line, those of every command line first."""
    named = [name for flag in flags_of(config) if not flag.is_positional for name in flag.names]
    return ["--help", "--version", "--print-completion", *named]


def joined(
    *configs: type,
    defaults: Mapping[str, Any] | None = None,
    groups: Mapping[type, str] | None = None,
    choices: Mapping[str, Iterable[str]] | None = None,
) -> type:
    """One flat dataclass with the fields of all.

    defaults: by field, those that differ from the configs'.
    groups: by config, the title under which the help lists its flags.
    choices: by field, the values that it may have.
    """
    flags: dict[str, Flag] = {}
    for config in configs:
        group = (groups or {}).get(config)
        flags |= {flag.field: replace(flag, group=group) for flag in flags_of(config)}
    for field in flags.keys() & (defaults or {}).keys():
        flags[field] = replace(flags[field], default=(defaults or {})[field])
    for field in flags.keys() & (choices or {}).keys():
        flags[field] = replace(flags[field], names_allowed=tuple((choices or {})[field]))
    return plain_dataclass(flags.values())


def plain_dataclass(flags: Iterable[Flag]) -> type:
    """A dataclass with these fields and no checks, required ones first, annotated as tyro reads it."""
    fields = []
    for flag in sorted(flags, key=lambda flag: flag.default is not MISSING):
        field: Any = dataclasses.field(default=flag.default, metadata={_KEY: flag})
        if isinstance(
            flag.default, (list, set, dict)
        ):  # which dataclasses refuse as a default, since all would share it
            field = dataclasses.field(default_factory=partial(copy, flag.default), metadata={_KEY: flag})
        fields.append((flag.field, flag.tyro_type, field))
    return dataclasses.make_dataclass("Flags", fields, frozen=True)


@cache
def field_docs(config: type) -> dict[str, str]:
    """The docstring under each field of a dataclass, its bases' too, by field name; {} where there is no source to
    read."""
    docs: dict[str, str] = {}
    for base in reversed(config.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        except (
            OSError,
            TypeError,
            SyntaxError,
        ):  # typed into an interpreter, made by a function, or shipped as bytecode
            continue
        body = tree.body if isinstance(tree, ast.ClassDef) else []
        for statement, following in itertools.pairwise(body):
            match statement, following:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(doc))):
                    docs[name] = " ".join(doc.split())
    return docs
