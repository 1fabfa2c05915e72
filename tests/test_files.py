"""Files that are read and written: strangers' files are refused at once, and nothing is written where it does not
belong."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from file_cases import SECONDS, WHOLE, changed, contents, header, loaded, weights, with_header
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from script_cases import ROOT, call

import evaluate
import expire_span_rl as es
import visualize
from expire_span_rl import building, checks, files, outputs, visualization
from expire_span_rl import settings as config
from expire_span_rl.agents.checkpoint import check_metadata
from expire_span_rl.environments import environment_of
from expire_span_rl.envs import EnvError, make_env, naming
from expire_span_rl.policies import load_policy, save_policy
from expire_span_rl.policies.io import LONGEST_HEADER, policy_info

SLOW = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
QUICK = ["--episodes", "2", "--num-envs", "2", "--env-kwargs", '{"max_length": 5}']

# Writing


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_a_new_file_has_the_permissions_of_the_umask(umask, tmp_path):
    before = os.umask(umask)
    try:
        files.write_atomically(tmp_path / "new" / "x", b"1")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new" / "x").stat().st_mode) == 0o666 & ~umask


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o664, 0o755])
def test_a_file_that_is_replaced_keeps_its_permissions(mode, tmp_path):
    file = tmp_path / ("x" * 250)  # as long as a name can be
    file.write_bytes(b"old")
    file.chmod(mode)
    files.write_atomically(file, b"new")
    assert file.read_bytes() == b"new" and stat.S_IMODE(file.stat().st_mode) == mode
    assert list(tmp_path.iterdir()) == [file]


def test_a_pipe_is_written_to(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    files.write_atomically(pipe, b"x" * 200_000)
    reader.join(10)
    assert read == [b"x" * 200_000] and stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_device_is_written_to():
    for device, error in (("/dev/null", None), ("/dev/full", OSError)):
        before = os.stat(device)
        if error is None:
            files.write_atomically(device, b"x")
        else:
            with pytest.raises(error, match="No space left"):
                files.write_atomically(device, b"x")
        assert os.stat(device).st_ino == before.st_ino and stat.S_ISCHR(os.stat(device).st_mode)


def test_what_is_no_place_to_write_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")
        for path, kind in (("socket", "a socket"), (".", "a folder")):
            with pytest.raises(files.OutputError, match=f"expected a file, a pipe or a terminal, got {kind}"):
                files.write_atomically(path, b"x")


def test_standard_output_is_written_to_where_it_stands(tmp_path):
    """Also where it is a file, which must not become another one under the eyes of who writes to it."""
    program = (
        "from expire_span_rl.files import write_atomically as w; print('a'); w('/dev/stdout', b'b\\n'); print('c')"
    )
    with (tmp_path / "out").open("wb") as out:
        subprocess.run([sys.executable, "-c", program], stdout=out, check=True, cwd=ROOT)
    assert (tmp_path / "out").read_text() == "a\nb\nc\n"


@pytest.mark.parametrize("there", [True, False])
def test_a_link_is_followed_and_said(there, tmp_path):
    target, link = tmp_path / "there" / "target", tmp_path / "link"
    target.parent.mkdir()
    if there:
        target.write_bytes(b"old")
    link.symlink_to(target)
    with pytest.warns(files.LinkWarning, match=f"link is a link: {target} is written"):
        files.write_atomically(link, b"new")
    assert link.is_symlink() and target.read_bytes() == b"new"


@pytest.mark.parametrize("name", ["fsync", "chmod", "replace"])
def test_what_was_there_survives_a_write_that_fails(name, tmp_path, monkeypatch):
    file = tmp_path / "x"
    file.write_bytes(b"old")

    def fail(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, name, fail)
        with pytest.raises(OSError, match="No space left on device"):
            files.write_atomically(file, b"new")
    assert file.read_bytes() == b"old" and list(tmp_path.iterdir()) == [file]


@pytest.fixture
def run(tmp_path) -> Path:
    """A run directory with a policy, and what else lies there."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "policy.safetensors").write_bytes(WHOLE.read_bytes())
    config = {"env": "Corridor-v0", "memory": "expire_span", "agent": "ppo", "total_timesteps": 1}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evaluation.json").write_text('{"env": "Corridor-v0", "policies": []}')
    (folder / "progress.csv").write_text("a\n1\n")
    return folder


def test_results_may_replace_results(run):
    outputs.check_outputs({"--json": str(run / "evaluation.json"), "--plot": str(run / "new.png")}, [str(run)])
    outputs.check_outputs({"--json": "/dev/null", "--plot": "/dev/null", "--out": "/dev/stdout"})


def test_results_never_replace_what_is_no_result(run, tmp_path):
    """What is read, under any name; a run's own files, of any run; the same file for two results; what is no file."""
    (tmp_path / "envs.py").write_text("")
    os.link(tmp_path / "envs.py", tmp_path / "hard.json")
    (tmp_path / "link.json").symlink_to(run / "config.json")
    (tmp_path / "plain.json").symlink_to(tmp_path / "new.json")
    (tmp_path / "nowhere.json").symlink_to(tmp_path / "none" / "new.json")
    (tmp_path / "script.json").write_text("x = 1")
    (tmp_path / "package.json").write_text('{"name": "mine", "version": "1.0.0"}')
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "podcast.json").write_text('{"version": "2.0", "episodes": [1]}')
    (tmp_path / "count.json").write_text('{"version": true, "episodes": []}')
    (tmp_path / "rules.json").write_text('{"env": "production", "policies": {"a": 1}}')
    place, never = str(tmp_path), {"--plot": ""}
    for path, message in {
        "hard.json": "expected another file than what is read",
        "run/config.json": "expected a new file or an earlier result",
        "link.json": "expected a new file or an earlier result",
        "run/progress.csv": "expected a new file or an earlier result",
        "run/policy.safetensors": "expected a new file or an earlier result",
        "script.json": "expected a new file or an earlier result, .* is something else",
        "list.json": "expected a new file or an earlier result, .* is something else",
        "package.json": "expected a new file or an earlier result, .* is something else",
        "podcast.json": "expected a new file or an earlier result, .* is something else",
        "count.json": "expected a new file or an earlier result, .* is something else",
        "rules.json": "expected a new file or an earlier result, .* is something else",
        "run": "expected a file, .* is a folder",
        "none/x.json": "expected a folder that exists, there is no",
        "nowhere.json": "expected a folder that exists, there is no",
        "x" * 300: "expected a file that can be written",
        "nul\0.json": "expected a file that can be written",
    }.items():
        with pytest.raises(files.OutputError, match=f"^--json: {message}") as caught:
            outputs.check_outputs({"--json": f"{place}/{path}", **never}, [str(tmp_path / "envs.py"), str(WHOLE)])
        assert str(caught.value).isprintable()
    with pytest.raises(files.OutputError, match="^--plot: expected another file than --json's"):
        outputs.check_outputs({"--json": f"{place}/plain.json", "--plot": f"{place}/new.json"})


@pytest.mark.parametrize("ending", [".html", ".png", ".svg", ".pdf", ".mp4", ".json"])
def test_a_file_of_ones_own_is_not_replaced_and_an_earlier_one_is(ending, tmp_path):
    """From Python and by flag. An empty file may be replaced, too."""
    shown = es.show(WHOLE, env_kwargs={"min_length": 3, "max_length": 3}, audit=0)
    path = tmp_path / f"mine{ending}"
    path.write_bytes(b"<!doctype html> precious")
    with pytest.raises(ValueError, match="^path: expected a new file or an earlier result, .* is something else$"):
        shown.save(path)
    with pytest.raises(files.OutputError, match="^--out: expected a new file or an earlier result, "):
        outputs.check_outputs({"--out": str(path)})
    assert path.read_bytes() == b"<!doctype html> precious"
    path.write_bytes(b"")
    shown.save(path)
    shown.save(path)
    assert path.stat().st_size > 500


@pytest.mark.parametrize("name", ["policy.safetensors", "config.json", "progress.csv"])
def test_evaluate_replaces_nothing_of_a_run(name, run, monkeypatch, capsys):
    before = (run / name).read_bytes()
    assert call(evaluate, [run, *QUICK, "--json", run / name], monkeypatch) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --json: expected ") and error.count("\n") == 1
    assert (run / name).read_bytes() == before


def test_evaluate_writes_through_a_link_and_says_so(run, monkeypatch, capsys):
    monkeypatch.chdir(run.parent)
    Path("link.json").symlink_to("real.json")
    Path("plot.svg").symlink_to("real.svg")
    assert call(evaluate, ["run", *QUICK, "--json", "link.json", "--plot", "plot.svg"], monkeypatch) == 0
    told = capsys.readouterr().err.splitlines()
    assert told == [
        f"warning: link.json is a link: {run.parent}/real.json is written",
        f"warning: plot.svg is a link: {run.parent}/real.svg is written",
    ]
    assert Path("link.json").is_symlink() and json.loads(Path("real.json").read_text())["env"] == "Corridor-v0"
    assert b"<svg" in Path("real.svg").read_bytes()


def test_a_showing_replaces_no_policy_and_nothing_of_a_run(run, tmp_path, monkeypatch):
    """Whether it is saved from Python or by the command line."""
    policy, info = load_policy(run)
    name, env = visualization.environment_for(policy, info, str(run), env="", imports=(), env_kwargs={"max_length": 3})
    shown = visualization.show_in(policy, env, name, "policy", audit=0)
    before = (run / "config.json").read_bytes()
    with pytest.raises(ValueError, match="^path: expected a new file or an earlier result"):
        shown.save(run / "config.json")
    assert call(visualize, [run, "--out", tmp_path / "m.html", "--json", run / "config.json"], monkeypatch) == 2
    assert (run / "config.json").read_bytes() == before and not (tmp_path / "m.html").exists()
    shown.save(run / "memory.json")
    assert json.loads((run / "memory.json").read_text())


# Reading


def test_a_whole_file_is_taken(tmp_path):
    assert loaded(WHOLE.read_bytes(), tmp_path) is None
    assert loaded(contents(header()), tmp_path) is None
    halves = {  # a count is too large for half precision
        name: tensor if name.endswith("count") else tensor.half() for name, tensor in weights().items()
    }
    assert loaded(contents(header(), halves), tmp_path) is None


HOSTILE = {
    "width": (("config", "core", "width"), 20_000, "width: expected a size of some tensor"),
    "layers": (("config", "core", "num_layers"), 10**6, "num_layers: expected at most"),
    "positions": (
        ("config", "core", "num_positions"),
        10**8,
        "--num-positions: expected at most 1,000,000, got 100000000",
    ),
    "heads": (("config", "core", "num_heads"), 64, "tensor 'core.layers.0.positions'"),
    "cells": (("config", "observation", "image", "shape"), [20_000, 20_000, 3], "expected at most 195 values"),
    "picture": (
        ("config", "observation", "image"),
        {"kind": "picture", "shape": [8, 10**6, 1], "channels": "last"},
        "asks for",
    ),
    "large picture": (
        ("config", "observation", "image"),
        {"kind": "picture", "shape": [8, 10**9], "channels": "last"},
        "a shape",
    ),
    "no picture": (
        ("config", "observation", "image"),
        {"kind": "picture", "shape": [0, 9], "channels": "last"},
        "asks for",
    ),
    "words": (
        ("config", "observation", "image"),
        {"kind": "words", "shape": [10**7]},
        "expected at most 100,000 values",
    ),
    "negative": (("config", "observation", "image", "shape"), [-3, 3, 3], "a shape of whole numbers"),
    "actions": (("config", "actions"), {"kind": "discrete", "n": 10**12}, "asks for [1000000000000], the file has [4]"),
    "binary": (
        ("config", "actions"),
        {"kind": "multi_binary", "shape": [10**6, 10], "dtype": "int8"},
        "actions: expected at most",
    ),
    "baseline": (
        ("config",),
        {"observation": {"x": {"kind": "words", "shape": [10**9]}}, "actions": 4, "memory": "sb3-mlp", "width": 64},
        "a shape of whole numbers",
    ),
    "ramp": (("config", "memory_config", "ramp"), 10**400, "'ramp': expected a number up to 2,147,483,647, got 1000"),
    "not a number": (("config", "memory_config", "use_coef"), float("nan"), "'use_coef': expected a number up to"),
    "text": (("config", "memory_config", "ramp"), "\x1b[31m" * 30_000, "'ramp': expected a number, got \\x1b[31m"),
    "switch": (("config", "core", "gating"), "yes", "'gating': expected true or false, got yes"),
    "kind": (("config", "memory"), "\x1b]0;x\x07" * 10_000, "memory kind: expected one of"),
    "setting": (("config", "core", "a\nb\x1b" * 10_000), 1, "unexpected keyword argument"),
    "entry": (
        ("config", "observation", "\x1b" * 10_000),
        {"kind": "vector", "shape": []},
        "tensor 'encoder.project.weight'",
    ),
    "version": (("version",), ["\x1b"] * 10_000, "expected format version 2 or older"),
    "info": (("info",), [["env", 3]], "expected what the policy was trained in"),
    "format": (("format",), {}, "got another safetensors file"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_file_that_asks_for_too_much_is_refused_at_once(case, tmp_path):
    """Within 2 s, 300 MB and one line."""
    path, value, message = HOSTILE[case]
    assert message in (loaded(contents(changed(path, value)), tmp_path) or "taken")


def test_a_header_of_many_tensors_is_refused_at_once(tmp_path):
    many = weights() | {f"core.layers.{i}.x": torch.zeros(0) for i in range(50_000)}
    assert "expected at most 128, got" in loaded(
        contents(changed(("config", "core", "num_layers"), 40_000), many), tmp_path
    )
    assert "tensor 'core.layers.0.x'" in loaded(contents(header(), many), tmp_path)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e300])
def test_weights_that_are_not_finite_are_refused_by_name(bad, tmp_path):
    """1e300 is no float32."""
    for name, tensor in list(weights().items())[::6]:
        tensor = tensor.double().clone()
        tensor.view(-1)[-1] = bad
        message = loaded(contents(header(), {**weights(), name: tensor}), tmp_path)
        assert f"tensor {name!r}: expected finite numbers, got NaN or infinity" in message


def test_weights_of_another_type_are_refused_by_name(tmp_path):
    for dtype, name in ((torch.int32, "I32"), (torch.bool, "BOOL"), (torch.uint8, "U8"), (torch.complex64, "C64")):
        changed_weights = {**weights(), "value_head.bias": weights()["value_head.bias"].to(dtype)}
        assert f"tensor 'value_head.bias': expected one of F16, BF16, F32, F64, got {name}" in loaded(
            contents(header(), changed_weights), tmp_path
        )


def one(name: str = "a", dtype: str = "F32", shape: Any = (1,), offsets: Any = (0, 4)) -> bytes:
    tensor = f'{{"dtype":"{dtype}","shape":{json.dumps(list(shape))},"data_offsets":{json.dumps(list(offsets))}}}'
    return f'{{"{name}":{tensor}}}'.encode()


MALFORMED = {
    "huge header": (b"\xff" * 7 + b"\x7f" + b"{}", "a header of more than"),
    "header beyond the end": ((1000).to_bytes(8, "little") + b"{}", "could not read it"),
    "a long header": ((LONGEST_HEADER + 1).to_bytes(8, "little") + b"{}", "a header of more than"),
    "negative offsets": (with_header(one(offsets=(-4, 0)), b"0000"), "could not read it"),
    "offsets in the wrong order": (with_header(one(offsets=(4, 0)), b"0000"), "could not read it"),
    "offsets beyond the end": (with_header(one(offsets=(0, 8)), b"0000"), "could not read it"),
    "huge offsets": (with_header(one(offsets=(0, 2**64 - 1)), b"0000"), "could not read it"),
    "a shape that overflows": (with_header(one(shape=(2**62, 2**62)), b"0000"), "could not read it"),
    "a hole": (with_header(one(offsets=(4, 8)), b"00000000"), "could not read it"),
    "overlapping": (
        with_header(one("a")[:-1] + b"," + one("b", offsets=(2, 6))[1:], b"000000"),
        "could not read it",
    ),
    "an unknown type": (with_header(one(dtype="X9"), b"0000"), "could not read it"),
    "nested": (with_header(b"[" * 100_000), "could not read it"),
    "no object": (with_header(b"3"), "could not read it"),
    "no text": (with_header(b"\xff\xfe{}"), "could not read it"),
    "a name of escapes": (with_header(one("\\u001b[31m" * 5000, shape=(3,)), b"0000"), "could not read it"),
    "another's": (with_header(one(), b"0000"), "got another safetensors file"),
    "nested JSON": (
        with_header(b'{"__metadata__":{"policy":"' + b"[" * 100_000 + b'"}}'),
        "got another safetensors file",
    ),
    "a number of 10,000 digits": (with_header(b'{"__metadata__":{"policy":"' + b"9" * 10_000 + b'"}}'), "got another"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_what_is_no_whole_file_is_refused(case, tmp_path):
    data, message = MALFORMED[case]
    assert message in (loaded(data, tmp_path) or "taken")


VALUES = st.one_of(
    st.sampled_from([0, -1, 2, 3, 10**6, 10**9, 2**63, 10**30, 10**400, 0.5, 1e308, float("nan"), float("inf")]),
    st.none(), st.booleans(), st.text(max_size=20), st.sampled_from(["\x1b[2J" * 5000, "gru", "none", "F" * 10**5]),
    st.lists(st.integers(-1, 10**5), max_size=4), st.just([1] * 20_000),
    st.dictionaries(st.sampled_from(["kind", "shape", "n", "start"]), st.integers(-5, 10**9), max_size=3),
)  # fmt: skip


def paths(value: Any, before: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in JSON."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path for key, part in inner for path in [(*before, key), *paths(part, (*before, key))]]


PATHS = paths(header())


@SLOW
@given(st.lists(st.tuples(st.sampled_from(PATHS), VALUES), min_size=1, max_size=2))
def test_a_header_with_any_values_is_taken_or_refused_in_one_line(tmp_path, changes):
    whole: Any = header()
    for path, value in changes:
        inner = whole
        for key in path[:-1]:
            inner = inner[key] if isinstance(inner, dict) and key in inner else {}
        if isinstance(inner, dict):
            inner[path[-1]] = value
    message = loaded(contents(whole), tmp_path)
    assert message is None or message.startswith("/x.safetensors: expected ")


@SLOW
@given(st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), min_size=1, max_size=5), st.integers(0, 400_000))
def test_a_file_with_any_bytes_is_taken_or_refused_in_one_line(tmp_path, changes, length):
    data = bytearray(WHOLE.read_bytes())
    for place, byte in changes:
        data[place] = byte
    message = loaded(bytes(data[:length] if length % 2 else data), tmp_path)
    assert message is None or message.startswith("/x.safetensors: expected ")


# Environments that a file names

NAMED = {
    "a large room": (
        "MiniGrid-Empty-5x5-v0",
        {"size": 20_000},
        "expected numbers up to 128, got size=20000; to ask for more",
    ),
    "many rooms": (
        "MiniGrid-KeyCorridorS3R1-v0",
        {"room_size": 100, "num_rows": 100},
        "product is at most 4,096, got 10,000",
    ),
    "endless": (
        "Corridor-v0",
        {"max_steps": 10**18},
        "expected numbers up to 1,000,000, got max_steps=1000000000000000000",
    ),
    "infinite": ("Corridor-v0", {"max_length": float("inf")}, "expected numbers up to 1,000,000, got max_length=inf"),
    "stretched": ("Corridor-v0", {"wraps": ["stretch=1000000"] * 3}, "expected episodes of at most 1,000,001 times"),
    "wrapped": ("Corridor-v0", {"wraps": ["occlude=1"] * 500}, "wraps: expected at most 8, got 500"),
    "a large map": (
        "FrozenLake-v1",
        {"desc": ["S" + "F" * 2000 + "G"] * 20},
        "expected at most 10,000 characters of JSON",
    ),
    "no place left": (
        "MiniGrid-GoToObject-6x6-N2-v0",
        {"numObjs": 100},
        "expected an environment that begins within 2 seconds",
    ),
    "escapes": ("Corridor-v0", {"\x1b[31m" * 500: 1}, "unknown Corridor-v0 keyword '\\x1b[31m"),
    "a view": ("Corridor-v0", {"view_size": 33}, "view_size: expected a whole number from 3 to 31, got 33"),
    "no such": ("\x1b[31mX-v0" * 500, {}, "unknown environment '\\x1b[31mX-v0"),
    "a module": ("os:" + "X" * 5000, {}, "which a policy file cannot ask for"),
}


@pytest.mark.parametrize("case", NAMED)
def test_an_environment_of_a_file_is_bounded(case, tmp_path, monkeypatch, capsys):
    env, kwargs, message = NAMED[case]
    save_policy(load_policy(WHOLE)[0], tmp_path / "x.safetensors", {"env": env, "env_kwargs": kwargs, "agent": "ppo"})
    monkeypatch.chdir(tmp_path)
    assert call(evaluate, ["x.safetensors", "--episodes", "2"], monkeypatch) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and len(error) < 400 and error[:-1].isprintable()


def test_what_the_user_names_is_not_bounded():
    info = {"env": "Corridor-v0", "env_kwargs": {"max_length": 10**7, "min_length": 4, "vectorization": "async"}}
    with pytest.raises(ValueError, match="got max_length=10000000; to ask for more yourself, use --env-kwargs"):
        environment_of("", (), info, "x")
    given = {"max_length": 10**8}
    assert environment_of("", (), info, "x", given) == ("Corridor-v0", {"min_length": 4, "max_length": 10**8})


@pytest.mark.parametrize("named", ["meant_envs.py:Plate", "meant_envs:Plate", "meant_envs.py:Plate-v0"])
def test_an_environment_that_is_named_by_its_class_keeps_its_arguments(named, in_folder, monkeypatch):
    """Also where its id has the name of its module, since another id begins with that of the class."""
    Path("meant_envs.py").write_text(
        "import gymnasium as gym\nclass Plate(gym.Env):\n    pass\ngym.register('Plate-v0', entry_point=Plate)\n"
    )
    monkeypatch.setattr(sys, "path", [*sys.path])
    for memory in ("_imported", "_registered", "_classes"):  # what later tests would import in their own processes
        monkeypatch.setattr(naming, memory, dict(getattr(naming, memory)))
    info = {"env": named, "env_kwargs": {"delay": 50, "wraps": ["stretch=2"]}}
    expected = ("Plate-v0" if named.endswith("-v0") else "meant_envs/Plate", info["env_kwargs"])
    try:
        with pytest.raises(ValueError, match="which a policy file cannot ask for"):
            environment_of("", (), info, "x")
        assert environment_of(named, (), info, "x") == expected
        assert environment_of("", (), info, "x") == expected  # it is imported now
        assert environment_of("meant_envs.py:Plate", (), {**info, "env": "Other-v0"}, "x") == ("meant_envs/Plate", {})
    finally:
        sys.modules.pop("meant_envs", None)
        for id in [id for id in gym.registry if "Plate" in id]:
            del gym.registry[id]


@pytest.mark.parametrize(
    "env, kwargs", [("Corridor-v0", {}), ("Portal-v0", {"room_length": 100}), ("Switch-v0", {"passage_length": 100})]
)
def test_the_largest_view_is_made_within_two_seconds(env, kwargs):
    """All windows there are: 3,264 of 31 x 31 tiles in Corridor."""
    began = time.process_time()
    made = make_env(env, view_size=31, **kwargs)
    assert time.process_time() - began < SECONDS
    image = made.reset(seed=0)[0]["image"]
    assert (
        image[15, 15].tolist() == [1, 0, 0] and (image[:15, :14, 0] == 2).all()
    )  # an empty tile, walls to the north-west


def test_wraps_together_are_bounded():
    assert make_env("Corridor-v0", wraps=["stretch=1000000"]) is not None
    with pytest.raises(
        EnvError, match=r"^wraps: expected episodes of at most 1,000,001 times their length, got 2,000,002 times$"
    ):
        make_env("Corridor-v0", wraps=["stretch=1000000", "fresh_episodes=2"])


# Messages


@given(st.text(), st.integers(10, 200))
def test_text_in_a_message_is_short_and_printable(text, most):
    for made in (checks.shown(text, most), checks.quoted(text, most)):
        assert made.isprintable() and len(made) <= most + 5
    if text.isprintable() and len(text) <= most and " ".join(text.split()) == text:
        assert checks.shown(text, most) == text


def test_tables_take_text_as_it_is(run, monkeypatch, capsys):
    """Neither a name of a file nor its environment's is markup, and no escape reaches the terminal."""
    file = run.parent / "[red][" / "x]\x1b[31m:smile:.safetensors"
    file.parent.mkdir()
    file.write_bytes(WHOLE.read_bytes())
    assert policy_info(file)["env"] == "Corridor-v0"
    monkeypatch.chdir(run.parent)
    assert call(evaluate, [file.relative_to(run.parent), *QUICK], monkeypatch) == 0
    out = capsys.readouterr().out
    assert "[red][/x]\\x1b[31m:smile:" in out.replace("\n", "").replace(" ", "").replace("│", "") and "\x1b" not in out


# Checkpoints


@pytest.mark.parametrize(
    "figures, message",
    [
        ({"a": None}, "a: expected a number, got None"),
        ({"a": "x\x1b"}, "a: expected a number, got 'x\\\\x1b'"),
        ({"a": True}, "a: expected a number, got True"),
        ({"b": 3}, "b: expected an object, got 3"),
        ({"b": {"c": []}}, "c: expected true or false, got \\[\\]"),
        ({"d": [1, "x"]}, "d: expected a list of one kind of entries"),
        ({"e": "x"}, "e: expected a number or an object or nothing or true or false, got 'x'"),
        ([], "figures: expected an object, got \\[\\]"),
    ],
)
def test_figures_of_another_kind_are_refused(figures, message):
    fresh = {"a": 1, "b": {"c": False}, "d": [], "e": None}
    for whole in (
        {"a": 1.5, "b": {"c": True}, "d": [1, 2.5], "e": {"x": 1}, "more": "x"},
        {"e": 3},
        {"e": True},
        fresh,
    ):
        check_metadata(whole, fresh)
    with pytest.raises(ValueError, match=f"^{message}"):
        check_metadata(figures, fresh)


def test_a_state_that_adam_cannot_go_on_from_is_refused():
    """One entry missing, too many, of another shape, or of no parameter."""
    run = building.build(
        config.resolve(num_envs=2, num_steps=4, width=8, num_heads=2, num_minibatches=2, torch_threads=1)
    )
    run.trainer.update()
    tensors, known = run.trainer.agent.state()
    run.trainer.agent.load_state(tensors, known)
    own = "optimizer/3/exp_avg_sq"
    for other in (
        {name: tensor for name, tensor in tensors.items() if name != own},
        {**tensors, "optimizer/3/more": torch.zeros(())},
        {**tensors, own: tensors[own][:1]},
        {**tensors, "optimizer/900/step": torch.zeros(())},
    ):
        with pytest.raises(RuntimeError, match=r"^optimizer/(3|900): expected Adam's state of a parameter, got \{"):
            run.trainer.agent.load_state(other, known)
    run.trainer.close()
