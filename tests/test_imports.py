"""Who may import whom (docs/design.md): every import in every file, those inside functions too."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from expire_span_rl.policies import KINDS

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = {"train_rl", "train_sequence", "evaluate", "visualize"}
PACKAGES = {"agents", "envs", "policies", "viewer", "cli"}
LEAVES = {
    "checks",
    "files",
    "interrupts",
    "locks",
    "protocols",
    "registry",
    "spaces",
}  # modules of `expire_span_rl` itself that import nothing of ours but each other
MAY_IMPORT = {
    "agents": {"agents"},
    "policies": {"policies"},
    "envs": {"envs"},
    "viewer": {"policies", "envs", "viewer"},
    "expire_span_rl": {"agents", "policies", "envs", "viewer", "expire_span_rl"},  # the Python interface
    "cli": {"agents", "policies", "envs", "viewer", "expire_span_rl", "cli"},
    **{script: {"cli"} for script in SCRIPTS},
    "benchmarks": {"agents", "policies", "envs", "expire_span_rl", "cli", "benchmarks"},
    "examples": {"agents", "policies", "envs", "viewer", "expire_span_rl", "examples"},  # as somebody else's project
    "tests": {"agents", "policies", "envs", "viewer", "expire_span_rl", "cli", "benchmarks", "examples"} | SCRIPTS,
    "setup": set(),
    "docs": set(),  # the tools that build the site
    **{leaf: set() for leaf in LEAVES},
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
            case ast.ImportFrom(module="expire_span_rl", names=names, level=0):
                yield from ((node.lineno, f"expire_span_rl.{alias.name}") for alias in names)
            case ast.ImportFrom(module=module, level=0):
                yield node.lineno, module
            case ast.ImportFrom(module=module, names=names, level=level):
                home = (
                    ("expire_span_rl", *file.parent.parts)
                    if file.parent.parts[:1] != ("expire_span_rl",)
                    else file.parent.parts
                )
                package = home[: len(home) - level + 1]
                parts = [".".join((*package, *([module] if module else [])))]
                yield from ((node.lineno, ".".join(filter(None, (*parts, alias.name)))) for alias in names)
            case ast.Call(func=function, args=[ast.Constant(value=str(name)), *_]):
                if getattr(function, "attr", getattr(function, "id", "")) in ("import_module", "__import__"):
                    yield node.lineno, name


def top_of(module: str) -> str:
    """The part of the project that a module belongs to; another project's is its first part."""
    parts = module.split(".")
    if parts[0] != "expire_span_rl":
        # Our packages are imported by their full name only: twice imported, a class would exist twice.
        return f"{parts[0]} (not as expire_span_rl.{parts[0]})" if parts[0] in PACKAGES else parts[0]
    return parts[1] if len(parts) > 1 and parts[1] in MAY_IMPORT else parts[0]


def owner(file: Path) -> str:
    """The part of the project that `file`, a path from the project's root, belongs to."""
    if file.parts[0] == "expire_span_rl" and file.stem in LEAVES:
        return file.stem
    return file.parts[0].removesuffix(".py")


def forbidden_imports(file: Path, source: str) -> list[str]:
    """One line per import of ours that the design does not allow to `file`, a path from the project's root."""
    own = owner(file)
    tops = ((line, top_of(module)) for line, module in imported(file, source))
    allowed = MAY_IMPORT[own] | LEAVES
    return [
        f"{file}:{line}: {own} must not import {top}"
        for line, top in tops
        if (top in MAY_IMPORT or " (not as " in top) and top not in allowed
    ]


def named_kinds(file: Path, source: str) -> list[str]:
    """One line per place in the source where a memory kind is named: by a string that is its name, or an identifier
    that is its name, its class's or its Config's."""
    names = {name for kind, entry in KINDS.items() for name in (kind, entry.class_name, entry.Config.__name__)}
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
    assert {owner(file) for file in FILES} == MAY_IMPORT.keys()


@pytest.mark.parametrize("file", FILES, ids=str)
def test_no_arrow_that_the_design_does_not_allow(file):
    assert forbidden_imports(file, (ROOT / file).read_text()) == []


@pytest.mark.parametrize("file", [file for file in FILES if file.parts[0] == "agents"], ids=str)
def test_agents_name_no_memory_kind(file):
    assert named_kinds(file, (ROOT / file).read_text()) == []


@pytest.mark.parametrize(
    "file, source, top",
    [
        ("agents/new.py", "from expire_span_rl.policies import ActorCritic", "policies"),
        ("agents/new.py", "import torch, expire_span_rl.envs.corridor as c", "envs"),
        ("agents/new.py", "def f():\n    from expire_span_rl.policies.memory import expire_span", "policies"),
        ("agents/new.py", "if TYPE_CHECKING:\n    import expire_span_rl.policies", "policies"),
        ("agents/new.py", "from ..policies import io", "policies"),
        ("agents/new.py", "from .. import policies", "policies"),
        ("agents/new.py", 'importlib.import_module("expire_span_rl.envs.corridor")', "envs"),
        ("agents/new.py", '__import__("expire_span_rl.cli")', "cli"),
        ("agents/new.py", "from expire_span_rl.viewer.snapshot import snapshot", "viewer"),
        ("policies/new.py", "import expire_span_rl.viewer", "viewer"),
        ("envs/new.py", "from expire_span_rl.viewer.play import play", "viewer"),
        ("viewer/new.py", "import expire_span_rl.cli", "cli"),
        ("viewer/new.py", "from expire_span_rl.visualization import show_in", "expire_span_rl"),
        ("agents/new.py", "import expire_span_rl.settings", "expire_span_rl"),
        ("evaluate.py", "from expire_span_rl.viewer.figure import draw", "viewer"),
        ("evaluate.py", "from expire_span_rl.evaluation import evaluate", "expire_span_rl"),
        ("expire_span_rl/new.py", "from expire_span_rl import cli", "cli"),
        ("policies/memory/new.py", "from expire_span_rl.agents.rollout import Rollout", "agents"),
        ("policies/memory/new.py", "from expire_span_rl.envs import make_env", "envs"),
        ("envs/new.py", "import expire_span_rl.policies.io", "policies"),
        ("envs/new.py", "from expire_span_rl import policies", "policies"),
        ("envs/new.py", "from envs.core import Core", "envs (not as expire_span_rl.envs)"),
        ("expire_span_rl/checks.py", "from expire_span_rl.policies import KINDS", "policies"),
        ("expire_span_rl/checks.py", "from .policies import KINDS", "policies"),
        ("envs/new.py", "import tests.envs.cases", "tests"),
        ("cli/new.py", "import train_rl", "train_rl"),
        ("evaluate.py", "from train_rl import build", "train_rl"),
        ("train_rl.py", "from benchmarks import learning", "benchmarks"),
    ],
)
def test_a_forbidden_import_is_found(file, source, top):
    """With its line, and among imports that are allowed."""
    own = owner(Path(file))
    lines = source.count("\n") + 2
    assert forbidden_imports(Path(file), f"import json\n{source}\n") == [f"{file}:{lines}: {own} must not import {top}"]


@pytest.mark.parametrize(
    "file, source",
    [
        (
            "agents/new.py",
            "from expire_span_rl.agents.rollout import Rollout\nfrom . import ppo\nfrom .returns import gae",
        ),
        (
            "policies/memory/new.py",
            "from expire_span_rl.policies.memory.kind import MemoryKind\nfrom .. import encoders\nfrom . import state",
        ),
        ("envs/new.py", "import envs_of_another_project\nfrom gymnasium.envs.registration import EnvSpec"),
        ("train_rl.py", "from expire_span_rl import cli\nfrom expire_span_rl.cli.train import main"),
        ("cli/new.py", "from expire_span_rl import training\nfrom expire_span_rl.settings import RunConfig"),
        (
            "expire_span_rl/new.py",
            "from expire_span_rl.viewer.page import page\nfrom expire_span_rl import agents, building",
        ),
        ("policies/new.py", "from expire_span_rl.checks import check_at_least\nfrom expire_span_rl import spaces"),
        ("benchmarks/new.py", "from expire_span_rl.training import train\nfrom benchmarks.learning import main"),
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
