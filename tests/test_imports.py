"""Who may import whom (docs/design.md): every import in every file, those inside functions too."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from policies import KINDS

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = {"train_rl", "evaluate", "visualize"}
VIEWING = {"train_rl", "visualize"}
MAY_IMPORT = {
    "agents": {"agents"},
    "policies": {"policies"},
    "envs": {"envs"},
    "viewer": {"policies", "envs", "viewer"},
    "cli": {"agents", "policies", "envs", "cli"},
    **{script: {"agents", "policies", "envs", "cli"} for script in SCRIPTS - VIEWING},
    **{script: {"agents", "policies", "envs", "viewer", "cli"} for script in VIEWING},
    "benchmarks": {"agents", "policies", "envs", "cli", "benchmarks"} | SCRIPTS,  # they run what users run
    "tests": {"agents", "policies", "envs", "viewer", "cli", "benchmarks"} | SCRIPTS,
}
"""By the first part of a module's name: which of ours it may import."""

FILES = sorted(
    path.relative_to(ROOT)
    for top in ROOT.iterdir()
    if not top.name.startswith(".") and not (top / "pyvenv.cfg").exists()
    for path in (top.rglob("*.py") if top.is_dir() else [top])
    if path.suffix == ".py"
)


def imported(file: Path, source: str) -> Iterator[tuple[int, str]]:
    """(line, module) of each import in the source of `file`, relative ones resolved, and of each call of
    `import_module` or `__import__` with a literal name."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, alias.name) for alias in names)
            case ast.ImportFrom(module=module, level=0):
                yield node.lineno, module
            case ast.ImportFrom(module=module, names=names, level=level):
                package = file.parent.parts[: len(file.parent.parts) - level + 1]
                parts = [".".join((*package, *([module] if module else [])))]
                yield from ((node.lineno, ".".join(filter(None, (*parts, alias.name)))) for alias in names)
            case ast.Call(func=function, args=[ast.Constant(value=str(name)), *_]):
                if getattr(function, "attr", getattr(function, "id", "")) in ("import_module", "__import__"):
                    yield node.lineno, name


def forbidden_imports(file: Path, source: str) -> list[str]:
    """One line per import of ours that the design does not allow to `file`, a path from the project's root."""
    own = file.parts[0].removesuffix(".py")
    tops = ((line, module.split(".")[0]) for line, module in imported(file, source))
    return [
        f"{file}:{line}: {own} must not import {top}"
        for line, top in tops
        if top in MAY_IMPORT.keys() - MAY_IMPORT[own]
    ]


def named_kinds(file: Path, source: str) -> list[str]:
    """One line per place in the source where a memory kind is named: by a string that is its name, or an identifier
    that is its name, its class's or its Config's."""
    names = {name for kind, made in KINDS.items() for name in (kind, made.__name__, made.Config.__name__)}
    found = set()
    for node in ast.walk(ast.parse(source)):
        identifiers = [
            value
            for field in ("id", "attr", "arg", "name", "asname", "module", "value")
            if isinstance(value := getattr(node, field, None), str)
        ]
        words = {part for identifier in identifiers for part in (identifier, *identifier.split("."))}
        found |= {(getattr(node, "lineno", 0), word) for word in words & names}
    return [f"{file}:{line}: names the memory kind {word}" for line, word in sorted(found)]


def test_every_file_has_its_rule():
    """Something new at the top level must be given its arrows, here and in the design."""
    assert {file.parts[0].removesuffix(".py") for file in FILES} == MAY_IMPORT.keys()


@pytest.mark.parametrize("file", FILES, ids=str)
def test_no_arrow_that_the_design_does_not_allow(file):
    assert forbidden_imports(file, (ROOT / file).read_text()) == []


@pytest.mark.parametrize("file", [file for file in FILES if file.parts[0] == "agents"], ids=str)
def test_agents_name_no_memory_kind(file):
    assert named_kinds(file, (ROOT / file).read_text()) == []


@pytest.mark.parametrize(
    "file, source, top",
    [
        ("agents/new.py", "from policies import ActorCritic", "policies"),
        ("agents/new.py", "import torch, envs.corridor as c", "envs"),
        ("agents/new.py", "def f():\n    from policies.memory import expire_span", "policies"),
        ("agents/new.py", "if TYPE_CHECKING:\n    import policies", "policies"),
        ("agents/new.py", "from ..policies import io", "policies"),
        ("agents/new.py", "from .. import policies", "policies"),
        ("agents/new.py", 'importlib.import_module("envs.corridor")', "envs"),
        ("agents/new.py", '__import__("cli")', "cli"),
        ("agents/new.py", "from viewer.snapshot import snapshot", "viewer"),
        ("policies/new.py", "import viewer", "viewer"),
        ("envs/new.py", "from viewer.play import play", "viewer"),
        ("viewer/new.py", "import cli", "cli"),
        ("evaluate.py", "from viewer.figure import draw", "viewer"),
        ("policies/memory/new.py", "from agents.rollout import Rollout", "agents"),
        ("policies/memory/new.py", "from envs import make_env", "envs"),
        ("envs/new.py", "import policies.io", "policies"),
        ("envs/new.py", "import tests.envs.cases", "tests"),
        ("cli/new.py", "import train_rl", "train_rl"),
        ("evaluate.py", "from train_rl import build", "train_rl"),
        ("train_rl.py", "from benchmarks import learning", "benchmarks"),
    ],
)
def test_a_forbidden_import_is_found(file, source, top):
    """With its line, and among imports that are allowed."""
    own = file.split("/")[0].removesuffix(".py")
    lines = source.count("\n") + 2
    assert forbidden_imports(Path(file), f"import json\n{source}\n") == [f"{file}:{lines}: {own} must not import {top}"]


@pytest.mark.parametrize(
    "file, source",
    [
        ("agents/new.py", "from agents.rollout import Rollout\nfrom . import ppo\nfrom .returns import gae"),
        (
            "policies/memory/new.py",
            "from policies.memory.base import MemoryKind\nfrom .. import encoders\nfrom . import base",
        ),
        ("envs/new.py", "import envs_of_another_project\nfrom gymnasium.envs.registration import EnvSpec"),
        ("train_rl.py", "import cli\nfrom agents import AGENTS\nfrom envs import make_env\nfrom policies import KINDS"),
        ("benchmarks/new.py", "import cli, evaluate, train_rl\nfrom benchmarks.learning import main"),
    ],
)
def test_allowed_imports_are_let_through(file, source):
    assert forbidden_imports(Path(file), source) == []


@pytest.mark.parametrize(
    "source, word",
    [
        ('if policy.config.memory == "expire_span":\n    pass', "expire_span"),
        ("policy.kinds.transformer_xl", "transformer_xl"),
        ("def f(expire_span):\n    pass", "expire_span"),
        ("f(transformer_xl=1)", "transformer_xl"),
        ("isinstance(kind, ExpireSpan)", "ExpireSpan"),
        ("from policies.memory.transformer_xl import x", "transformer_xl"),
        ("from policies.memory import TransformerXLConfig as C", "TransformerXLConfig"),
        ('memory = "none"', "none"),
    ],
)
def test_a_named_kind_is_found(source, word):
    assert [line.rsplit(" ", 1)[1] for line in named_kinds(Path("agents/new.py"), source)] == [word]


def test_prose_and_none_are_no_kinds():
    """A docstring may speak of a paper or say that there are none, and None is no kind."""
    source = '"""Expire-Span expires: see expire_span.py; none."""\nx = None\nkind = "expire"\n'
    assert named_kinds(Path("agents/new.py"), source) == []
