"""Environments of packages and files: what is imported and what is not, and the errors, each of one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cloudpickle
import gymnasium as gym
import pytest

from expire_span_rl import envs
from expire_span_rl.envs import naming

ROOT = Path(__file__).resolve().parents[2]
SOURCE = """
import gymnasium as gym
import numpy as np
from helper_of_{name} import LENGTH


class Recall(gym.Env):
    observation_space = gym.spaces.Discrete(3)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return 0, {{}}

    def step(self, action):
        self.t += 1
        return 1, 1.0, self.t == LENGTH, False, {{}}


gym.register("{name}-v0", entry_point="{name}:Recall")
"""


@pytest.fixture
def own_file(tmp_path, monkeypatch, request):
    """A file of environments that imports a file of its folder: (path, name of its module). Unloaded after the test."""
    name = f"envs_of_{abs(hash(request.node.name)) % 10**9}"
    (tmp_path / f"{name}.py").write_text(SOURCE.format(name=name))
    (tmp_path / f"helper_of_{name}.py").write_text("LENGTH = 4\n")
    ids_before = set(gym.registry)
    monkeypatch.setattr(naming, "_imported", {})
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path / f"{name}.py", name
    for id in set(gym.registry) - ids_before:
        del gym.registry[id]
    sys.modules.pop(name, None)
    naming._classes.clear()


def test_a_class_whose_file_registers_it_with_a_version(own_file):
    """Gymnasium would take the registered one for it, with the keyword arguments that it was registered with."""
    path, _ = own_file
    with path.open("a") as file:
        file.write('\nclass Long(Recall):\n    pass\n\n\ngym.register("Long-v0", entry_point=Recall)\n')
    id = envs.load_environment(f"{path}:Long")
    assert id == f"{path.stem}/Long" == envs.load_environment(f"{path}:Long")
    assert type(gym.make(id).unwrapped).__name__ == "Long"
    assert envs.load_environment(f"{path}:Long-v0") == "Long-v0"


@pytest.mark.parametrize("ending", ["-v0", "class"])
def test_an_environment_of_a_file(own_file, ending):
    path, name = own_file
    expected_id = "Recall" if ending == "class" else f"{name}-v0"
    full = f"{path}:{expected_id}"
    with pytest.raises(envs.EnvError, match="nothing is imported unless its user asks for it"):
        envs.make_vec_env(full, 2)
    assert name not in sys.modules
    assert envs.load_environment(full) == expected_id == envs.load_environment(full)
    for id in (expected_id, full):
        vector = envs.make_vec_env(id, 2)
        vector.reset(seed=0)
        ends = [vector.step([0, 1])[2].tolist() for _ in range(8)]
        assert ends == ([[False] * 2] * 3 + [[True] * 2]) * 2
        envs.make_env(id)


def test_an_environment_of_a_package_and_its_neighbours(own_file, monkeypatch):
    path, name = own_file
    monkeypatch.chdir(path.parent)
    assert envs.load_environment(f"{name}:{name}-v0") == f"{name}-v0"
    envs.import_modules([name])
    with pytest.raises(envs.EnvError) as caught:
        envs.load_environment(f"{name}:{name}-v1")
    assert str(caught.value) == (
        f"{name}: expected one of its ids and classes ({name}-v0, Recall), got '{name}-v1'; did you mean '{name}-v0'?"
    )


@pytest.mark.parametrize("ending", ["-v0", "class"])
def test_other_processes_import_what_was_imported_here(own_file, ending):
    """Processes of environments, and a process that unpickles a maker."""
    path, name = own_file
    id = envs.load_environment(f"{path}:{'Recall' if ending == 'class' else f'{name}-v0'}")
    vector = envs.make_vec_env(id, 2, vectorization="async")
    vector.reset(seed=0)
    assert vector.step([0, 1])[0]["observation"].tolist() == [1, 1]
    vector.close()
    (path.parent / "maker").write_bytes(cloudpickle.dumps(envs.vec_env_maker(id, 2, vectorization="sync")))
    code = (
        "import cloudpickle, pathlib\n"
        f"vector = cloudpickle.loads(pathlib.Path({str(path.parent / 'maker')!r}).read_bytes())()\n"
        "vector.reset(seed=0)\nprint(vector.step([0, 1])[0]['observation'].tolist())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.stdout, done.returncode) == ("[1, 1]\n", 0), done.stderr


def test_importable_is_the_part_before_the_colon():
    assert envs.importable("Corridor-v0") is None
    assert envs.importable("ALE/Pong-v5") is None
    assert envs.importable("popgym:A-v0") == "popgym"
    assert envs.importable("path/to/my_envs.py:A-v0") == "path/to/my_envs.py"


BROKEN = {
    "import wind_of_nowhere": "cannot be imported: No module named 'wind_of_nowhere'",
    "1 / 0": "cannot be imported: ZeroDivisionError: division by zero",
    "raise SystemExit(3)": "cannot be imported: SystemExit: 3",
    "def broken(:": "cannot be imported: SyntaxError: invalid syntax (",
    "from gymnasium.error import DependencyNotInstalled\nraise DependencyNotInstalled('run `pip install wind`')": (
        "cannot be imported: run `pip install wind`"
    ),
    "x = 1": "expected a module that registers 'A-v0' or has such a class, it registers nothing",
}


@pytest.mark.parametrize(("source", "message"), BROKEN.items())
def test_a_file_that_cannot_be_loaded_gives_an_error_of_one_line(tmp_path, monkeypatch, source, message):
    monkeypatch.setattr(sys, "path", list(sys.path))
    path = tmp_path / "broken_envs.py"
    path.write_text(source)
    try:
        with pytest.raises(envs.EnvError) as caught:
            envs.load_environment(f"{path}:A-v0")
    finally:
        sys.modules.pop("broken_envs", None)
    assert str(caught.value).startswith(f"{path}: {message}") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wind_of_nowhere:A-v0", "wind_of_nowhere: there is no such module; expected an installed package or a path "),
        ("json.nowhere:A-v0", "json.nowhere: cannot be imported: No module named 'json.nowhere'"),
        ("/nowhere/x.py:A-v0", "/nowhere/x.py: expected a Python file, there is none"),
        (":A-v0", "module: expected a name or the path of a .py file before the colon, got nothing"),
        ("my envs:A-v0", "'my envs': expected the name of a module, such as popgym, or the path of a .py file"),
        ("json:A-v0", "json: expected a module that registers 'A-v0' or has such a class, it registers nothing"),
        ("gymnasium:CartPol-v1", "gymnasium: expected one of its ids and classes ("),
    ],
)
def test_a_name_that_cannot_be_loaded_gives_an_error_of_one_line(name, message):
    with pytest.raises(envs.EnvError) as caught:
        envs.load_environment(name)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_another_file_of_the_same_name_is_refused(own_file, tmp_path):
    path, name = own_file
    envs.load_environment(f"{path}:{name}-v0")
    other_folder = tmp_path / "other"
    other_folder.mkdir()
    (other_folder / path.name).write_text("x = 1")
    with pytest.raises(envs.EnvError, match="expected a file name of its own, another module .* is imported already"):
        envs.load_environment(f"{other_folder / path.name}:A-v0")


def test_a_missing_dependency_is_an_error_when_the_environment_is_made(own_file):
    """The entry point is imported when the environment is made."""
    path, name = own_file
    envs.load_environment(f"{path}:{name}-v0")
    needy = path.parent / f"needy_of_{name}.py"
    needy.write_text(
        "from gymnasium.error import DependencyNotInstalled\nraise DependencyNotInstalled('run `pip install wind`')"
    )
    gym.register("Needy-v0", entry_point=f"{needy.stem}:Needy")
    for make in (lambda: envs.make_env("Needy-v0"), lambda: envs.make_vec_env("Needy-v0", 2)):
        with pytest.raises(envs.EnvError, match="^Needy-v0: run `pip install wind`$"):
            make()


def test_a_name_without_a_similar_one_gets_no_suggestion():
    with pytest.raises(envs.EnvError) as caught:
        envs.make_env("Wxyzzy-v0")
    assert "did you mean" not in str(caught.value)
