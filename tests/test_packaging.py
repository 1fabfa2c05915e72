"""The installed package: one top-level name, with everything that it needs and nothing of what lies beside it."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import expire_span_rl

ROOT = Path(__file__).resolve().parents[1]
SUBPACKAGES = ("agents", "cli", "envs", "policies", "viewer")
COMMANDS = ("expire-span-train", "expire-span-train-sequence", "expire-span-evaluate", "expire-span-visualize")
OFFLINE = ("--quiet", "--no-deps", "--no-index", "--disable-pip-version-check")


def run(command: list[str], folder: Path, site: Path) -> subprocess.CompletedProcess:
    """Runs `command` in `folder`, where no checkout is, with the packages in `site` before all others."""
    env = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=120)


def python(code: str, folder: Path, site: Path) -> list[str]:
    """What `code` prints, by lines."""
    done = run([sys.executable, "-c", code], folder, site)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel of the checkout, built without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", *OFFLINE, "--no-build-isolation", "-w", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (file,) = folder.iterdir()
    return file


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory) -> Path:
    """A folder in which the wheel is installed, and beside it what has the names of a checkout's folders and
    scripts."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", *OFFLINE, "--target", str(folder), str(wheel)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in (*SUBPACKAGES, "benchmarks"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text("raise AssertionError('a package of somebody else')\n")
    (folder / "train_rl.py").write_text("raise AssertionError('a script of somebody else')\n")
    return folder


def test_a_wheel_holds_the_package_and_nothing_else(wheel):
    """Every module of the checkout's packages, the viewer's page and py.typed, all below expire_span_rl."""
    modules = {f"expire_span_rl/{path.name}" for path in (ROOT / "expire_span_rl").glob("*.py")}
    for name in SUBPACKAGES:
        modules |= {f"expire_span_rl/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / name).rglob("*.py")}
    page = {f"expire_span_rl/viewer/web/{path.name}" for path in (ROOT / "viewer" / "web").iterdir()}
    about = f"expire_span_rl-{expire_span_rl.__version__}.dist-info/"
    files = set(zipfile.ZipFile(wheel).namelist())
    assert {file for file in files if not file.startswith(about)} == modules | page | {"expire_span_rl/py.typed"}
    assert "expire_span_rl/viewer/web/page.html" in page and "expire_span_rl/policies/memory/expire_span.py" in modules
    assert zipfile.ZipFile(wheel).read(f"{about}top_level.txt").split() == [b"expire_span_rl"]


def test_the_build_leaves_nothing_in_the_checkout(wheel):
    """A build/ there would bring files back into later wheels that were deleted since."""
    left = {path.name for path in ROOT.iterdir()} & {"build", "dist", "expire_span_rl.egg-info"}
    assert left == set()


def test_the_installed_package_is_its_own(site, tmp_path):
    """Version, modules and page are the wheel's, a policy file loads, and neighbours are not taken for a checkout's."""
    code = f"""
import importlib.metadata, pathlib
import expire_span_rl
from expire_span_rl.policies import load_policy
from expire_span_rl.viewer.page import WEB
policy, info = load_policy({str(ROOT / "pretrained" / "corridor-expire_span.safetensors")!r})
print(importlib.metadata.version("expire-span-rl"), expire_span_rl.__version__)
print(*expire_span_rl.__path__)
print(info["env"], policy.config.memory)
print((WEB / "page.html").is_file(), WEB)
try:
    import expire_span_rl.benchmarks
except ImportError as error:
    print(error)
"""
    version = expire_span_rl.__version__
    assert python(code, tmp_path, site) == [
        f"{version} {version}",
        str(site / "expire_span_rl"),
        "Corridor-v0 expire_span",
        f"True {site / 'expire_span_rl' / 'viewer' / 'web'}",
        "No module named 'expire_span_rl.benchmarks'",
    ]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_console_command_helps_and_refuses(command, site, tmp_path):
    """Under its own name; exit code 2 and one line for a flag that it does not have."""
    help_ = run([str(site / "bin" / command), "--help"], tmp_path, site)
    assert help_.returncode == 0, help_.stderr
    assert help_.stdout.startswith(f"usage: {command} ")
    refusal = run([str(site / "bin" / command), "--no-such-flag"], tmp_path, site)
    assert refusal.returncode == 2 and refusal.stdout == "", refusal.stderr
    assert refusal.stderr.startswith("error: ") and refusal.stderr.count("\n") == 1


def test_an_editable_install_is_the_checkout(tmp_path):
    """From any folder, with no other top-level name."""
    site = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", *OFFLINE, "--no-build-isolation", "--target", str(site)]
    done = subprocess.run([*command, "--editable", str(ROOT)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    code = f"""
import site
site.addsitedir({str(site)!r})
import importlib.util
import expire_span_rl.envs.errors
print(expire_span_rl.envs.errors.__file__)
print([name for name in {SUBPACKAGES!r} if importlib.util.find_spec(name)])
"""
    assert python(code, tmp_path, site) == [str(ROOT / "envs" / "errors.py"), "[]"]
