"""What may happen to a run and its directory: kills, damaged and foreign files, second trainings, full disks, other
settings."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from script_cases import FORGETFUL, ROOT, SHORT, SMALL, call, log
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train_rl
from expire_span_rl import run_files
from expire_span_rl.agents import AGENTS, Trainer
from expire_span_rl.agents.checkpoint import CheckpointError, checkpoint_bytes, load_checkpoint, not_finite
from expire_span_rl.agents.schedules import Schedules
from expire_span_rl.building import build
from expire_span_rl.cli.settings import parse_config, resumed_config, saved_config
from expire_span_rl.locks import FileLock, is_taken, remove_abandoned
from expire_span_rl.policies import KINDS
from expire_span_rl.preflight import preflight, reach, size, warnings_of
from expire_span_rl.progress import STEP, ProgressTable
from expire_span_rl.run_directory import RunDirectory
from expire_span_rl.run_files import CHECKPOINTS, MARKER, remember_output, superfluous, thin
from expire_span_rl.saved_settings import LATER, complete
from expire_span_rl.settings import resolve, run_parts

TRAIN = [*SMALL, *SHORT, *FORGETFUL, "--quiet", "--memory-image-every", "0"]
FEW = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(autouse=True, scope="module")
def quick_disk():
    """Nothing here cuts the power, and flushing to the disk takes most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run of 512 steps, four updates, a checkpoint after each."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        flags = [*TRAIN, "--total-timesteps", "512", "--checkpoint-every", "128", "--run-dir", "x"]
        assert call(train_rl, flags, patch) == 0
    return folder / "x"


@pytest.fixture(scope="module")
def longer(tmp_path_factory, trained) -> Path:
    """The same run, trained on for two updates without anything going wrong."""
    folder = tmp_path_factory.mktemp("longer") / "x"
    shutil.copytree(trained, folder)
    with pytest.MonkeyPatch.context() as patch:
        assert call(train_rl, resume(folder), patch) == 0
    return folder


@pytest.fixture
def run(tmp_path, trained, monkeypatch) -> Path:
    """A copy of the trained run, in the working directory."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained, "x")
    return Path("x")


def resume(run: Path, *flags: object) -> list[object]:
    return ["--resume", run, "--no-progress-bar", "--quiet", *(flags or ("--total-timesteps", "768"))]


def tree(folder: Path) -> dict[str, bytes | str]:
    """Every file below a folder with its contents, and every link with its target."""
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


def one_error(capsys: pytest.CaptureFixture) -> str:
    """The error on stderr, which is one line."""
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("error: ") and len(error) < 1000, error
    return error


def steps_of(run: Path) -> list[int]:
    return [int(float(row[STEP])) for row in log(run)]


def same_state(first: Path, second: Path) -> None:
    """Asserts that two checkpoints hold the same training, bit by bit."""
    (ours, our_figures), (theirs, their_figures) = (load_checkpoint(file / CHECKPOINTS[0]) for file in (first, second))
    assert ours.keys() == theirs.keys() and our_figures == their_figures
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


# Overwriting


FOREIGN: dict[str, Callable[[Path], object]] = {
    "file": lambda run: (run / "thesis.txt").write_text("mine"),
    "hidden": lambda run: (run / ".notes.tmp").write_text("mine"),
    "model": lambda run: (run / "model.safetensors").write_bytes(b"mine"),
    "folder": lambda run: (run / "chapters").mkdir(),
    "link": lambda run: (run / "run2.log").symlink_to(run / "run.log"),
    "link by our name": lambda run: ((run / "run.log").unlink(), (run / "run.log").symlink_to("/etc/hostname")),
    "folder by our name": lambda run: ((run / "policy.safetensors").unlink(), (run / "policy.safetensors").mkdir()),
    "among snapshots": lambda run: (run / "checkpoints" / "mine.txt").write_text("mine"),
    "linked snapshot": lambda run: (run / "checkpoints" / "policy_000000001.safetensors").symlink_to("/etc/hostname"),
    "linked snapshots": lambda run: (
        shutil.move(run / "checkpoints", "elsewhere"),
        (run / "checkpoints").symlink_to("../elsewhere"),
    ),
    "among Ray's logs": lambda run: ((run / "ray").mkdir(), (run / "ray" / "weights.pkl").write_bytes(b"mine")),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_overwrite_refuses_a_run_directory_with_anything_else_in_it(what, run, monkeypatch, capsys):
    FOREIGN[what](run)
    before = tree(Path())
    assert call(train_rl, [*TRAIN, "--run-dir", run, "--overwrite"], monkeypatch) == 2
    assert "--overwrite: expected a run directory with nothing in it but what a run writes, x/" in one_error(capsys)
    assert tree(Path()) == before


@pytest.mark.parametrize(
    "config", ['{"architectures": ["Bert"], "model_type": "bert"}', "{}", "[]", "no JSON", '{"env": "x"}']
)
def test_overwrite_refuses_what_has_a_config_of_somebody_else(config, in_folder, monkeypatch, capsys):
    Path("bert").mkdir()
    Path("bert/config.json").write_text(config)
    before = tree(in_folder)
    assert call(train_rl, [*TRAIN, "--run-dir", "bert", "--overwrite"], monkeypatch) == 2
    assert "--run-dir: expected a new directory or one of a run, bert is another" in one_error(capsys)
    assert tree(in_folder) == before


@pytest.mark.parametrize("marked", [True, False])
def test_overwrite_replaces_a_run_whole(marked, run, monkeypatch):
    """Also one from before there was a marker, and with what evaluate.py wrote into it while that is as it was
    written."""
    (run / "ray").mkdir()
    (run / "ray" / "raylet.out").write_text("")
    (run / ".checkpoint.safetensors.0123abcd.tmp").write_text("torn")
    (run / "evaluation.json").write_text("{}")
    if marked:
        remember_output(run / "evaluation.json")
    else:
        (run / MARKER).unlink()
        (run / "evaluation.json").unlink()
    flags = [*TRAIN, "--total-timesteps", "128", "--run-dir", run, "--overwrite", "--seed", "2"]
    assert call(train_rl, flags, monkeypatch) == 0
    assert steps_of(run) == [128] and json.loads((run / "config.json").read_text())["seed"] == 2
    names = {path.name for path in run.iterdir() if not path.name.startswith("events")}
    assert names == {
        MARKER,
        "config.json",
        "run.log",
        "progress.csv",
        "policy.safetensors",
        "checkpoints",
        *CHECKPOINTS[:2],
    }
    assert len(list(run.glob("events*"))) == 1 and len(list((run / "checkpoints").iterdir())) == 1


def test_an_output_that_was_changed_is_not_ours_any_more(run, monkeypatch, capsys):
    (run / "evaluation.json").write_text("{}")
    remember_output(run / "evaluation.json")
    (run / "evaluation.json").write_text('{"my": "notes"}')
    assert call(train_rl, [*TRAIN, "--run-dir", run, "--overwrite"], monkeypatch) == 2
    assert "x/evaluation.json is something else" in one_error(capsys)


def test_an_empty_directory_is_as_good_as_none(in_folder, monkeypatch):
    Path("x").mkdir()
    assert call(train_rl, [*TRAIN, "--total-timesteps", "128", "--run-dir", "x"], monkeypatch) == 0
    assert steps_of(Path("x")) == [128]


@pytest.mark.parametrize("target", ["run", "empty", "nowhere"])
@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
def test_a_link_as_run_directory_is_refused_in_one_line(target, overwrite, run, monkeypatch, capsys):
    Path("empty").mkdir()
    Path("link").symlink_to("x" if target == "run" else target)
    before = tree(Path())
    assert call(train_rl, [*TRAIN, "--run-dir", "link", *overwrite], monkeypatch) == 2
    assert "--run-dir: expected a directory, link is a link to /" in one_error(capsys)
    assert tree(Path()) == before


def test_a_run_is_resumed_through_a_link_and_that_is_said(run, monkeypatch, capsys):
    Path("link").symlink_to("x")
    assert call(train_rl, resume(Path("link")), monkeypatch) == 0
    assert "link is a link to " in capsys.readouterr().err
    assert steps_of(run)[-1] == 768


# Checkpoints


def test_the_first_checkpoint_is_written_before_the_first_update(in_folder, monkeypatch):
    """From it the run goes on to what it would have been."""
    flags = [*TRAIN, "--total-timesteps", "256", "--checkpoint-every", "1000"]
    assert call(train_rl, [*flags, "--run-dir", "whole"], monkeypatch) == 0
    update = Trainer.update

    def killed(trainer):
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "update", killed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunDirectory, "end", lambda directory, error: error)  # as if the process were gone
        assert call(train_rl, [*flags, "--run-dir", "killed"], patch) == 130
    assert load_checkpoint("killed/checkpoint.safetensors")[1]["counters"]["timesteps"] == 0
    monkeypatch.setattr(Trainer, "update", update)
    assert call(train_rl, ["--resume", "killed", "--no-progress-bar"], monkeypatch) == 0
    same_state(Path("whole"), Path("killed"))
    assert steps_of(Path("killed")) == [128, 256]


def test_a_checkpoint_is_written_after_some_minutes_whatever_the_steps(in_folder, monkeypatch):
    flags = [*TRAIN, "--total-timesteps", "512", "--run-dir", "x", "--checkpoint-minutes"]
    written: list[int] = []
    original = RunDirectory.checkpoint

    def noted(directory, *arguments, **named):
        written.append(directory.run.trainer.timesteps)
        original(directory, *arguments, **named)

    monkeypatch.setattr(RunDirectory, "checkpoint", noted)
    assert call(train_rl, [*flags, "1e-9"], monkeypatch) == 0
    assert written == [0, 128, 256, 384, 512]
    assert [path.name for path in Path("x/checkpoints").iterdir()] == ["policy_000000512.safetensors"]
    written.clear()
    assert call(train_rl, [*flags, "60", "--overwrite"], monkeypatch) == 0
    assert written == [0, 512]


def test_the_last_three_checkpoints_are_there(trained):
    steps = [load_checkpoint(trained / name)[1]["counters"]["timesteps"] for name in CHECKPOINTS]
    assert steps == [512, 384, 256]


@pytest.fixture(scope="module")
def small_checkpoint() -> bytes:
    tensors = {
        "policy/weight": torch.arange(24, dtype=torch.float32).reshape(4, 6),
        "agent/flags": torch.tensor([True, False]),
        "agent/step": torch.tensor(3.0),
        "collector/generator": torch.arange(16, dtype=torch.uint8),
        "empty": torch.zeros(0, 3),
        "half": torch.ones(3, dtype=torch.bfloat16),
        "time": torch.tensor([2**40, -1]),
    }
    return checkpoint_bytes(
        tensors, {"counters": {"timesteps": 1280}, "note": "größer", "nothing": None, "score": math.nan}
    )


def damage(data: bytes) -> st.SearchStrategy[bytes]:
    """What may become of a file: cut, flipped bits, zeros, foreign contents."""
    place = st.integers(0, len(data) - 1)

    def flipped(bits: list[int]) -> bytes:
        out = bytearray(data)
        for bit in bits:
            out[bit // 8] ^= 1 << bit % 8
        return bytes(out)

    def zeroed(start: int, length: int) -> bytes:
        return data[:start] + b"\0" * len(data[start : start + length]) + data[start + length :]

    return st.one_of(
        place.map(lambda n: data[:n]),
        st.lists(st.integers(0, 8 * len(data) - 1), min_size=1, max_size=3, unique=True).map(flipped),
        st.builds(zeroed, place, st.integers(1, 4096)),
        st.binary(max_size=300).map(lambda more: data + more),
        st.binary(max_size=300),
        st.tuples(place, st.binary(max_size=50)).map(lambda pair: data[: pair[0]] + pair[1] + data[pair[0] :]),
    )


@settings(FEW, max_examples=300)
@given(data=st.data())
def test_a_damaged_checkpoint_is_never_taken_for_a_whole_one(data, small_checkpoint, tmp_path_factory):
    file = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    file.write_bytes(small_checkpoint)
    tensors, figures = load_checkpoint(file)
    damaged = data.draw(damage(small_checkpoint))
    file.write_bytes(damaged)
    try:
        loaded, read = load_checkpoint(file)
    except CheckpointError as error:
        assert str(error).startswith(f"{file}: expected ") and "\n" not in str(error) and len(str(error)) < 500
        return
    # A change that changes nothing: of a name in the file's header that nobody reads, or of the padding.
    assert {name: (t.dtype, t.tolist()) for name, t in loaded.items()} == {
        n: (t.dtype, t.tolist()) for n, t in tensors.items()
    }
    assert json.dumps(read) == json.dumps(figures)


def test_a_checkpoint_from_before_there_was_a_checksum_loads(tmp_path):
    header = {"training": json.dumps({"format": "expire-span-rl/training", "version": 1, "figures": {"a": 1}})}
    (tmp_path / "old").write_bytes(save({"x": torch.ones(2)}, header))
    tensors, figures = load_checkpoint(tmp_path / "old")
    assert tensors["x"].tolist() == [1, 1] and figures == {"a": 1}


def test_a_newer_checkpoint_is_not_passed_over_for_an_older_one(run, monkeypatch, capsys):
    header = {"training": json.dumps({"format": "expire-span-rl/training", "version": 9, "figures": {}})}
    (run / CHECKPOINTS[0]).write_bytes(save({"x": torch.ones(2)}, header))
    assert call(train_rl, resume(run), monkeypatch) == 2
    assert "expected format version 2 or older, got 9: update the toolkit" in one_error(capsys)


WAYS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "torn": lambda data: data[: 2 * len(data) // 3],
    "zeros at the end": lambda data: data[:-4096] + b"\0" * min(len(data), 4096),
    "all zeros": lambda data: b"\0" * len(data),
    "one flipped bit": lambda data: (
        data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 4]) + data[len(data) // 2 + 1 :]
    ),
    "foreign": lambda data: b"\x89PNG\r\n\x1a\n something else, \xff\xfe\n",
}


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("way", WAYS)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(way, number, run, longer, monkeypatch, capsys):
    """The run then ends as one to which nothing happened; of its checkpoints all are whole again."""
    for name in CHECKPOINTS[:number]:
        (run / name).write_bytes(WAYS[way]((run / name).read_bytes()))
    # The schedules of `longer` began anew at step 512: so they are told here by the checkpoint that is older.
    assert call(train_rl, resume(run), monkeypatch) == 0
    lines = capsys.readouterr().err.splitlines()
    named = [line for line in lines if line.startswith("x/checkpoint")]
    assert [line.split(":")[0] for line in named] == [f"x/{name}" for name in CHECKPOINTS[:number]]
    assert all(line.endswith(f": the checkpoint before it, of step {512 - 128 * number:,}, is used") for line in named)
    assert steps_of(run) == steps_of(longer)
    steps = [load_checkpoint(run / name)[1]["counters"]["timesteps"] for name in CHECKPOINTS]
    assert steps == [768, 640, 512]


def test_with_no_whole_checkpoint_that_is_said_and_nothing_changes(run, monkeypatch, capsys):
    for name in CHECKPOINTS:
        (run / name).write_bytes(b"")
    before = tree(run)
    assert call(train_rl, resume(run), monkeypatch) == 2
    assert "x/checkpoint.safetensors: expected a whole checkpoint" in one_error(capsys)
    assert tree(run) == before
    for name in CHECKPOINTS:
        (run / name).unlink()
    assert call(train_rl, resume(run), monkeypatch) == 2
    assert "x: expected a run directory with a checkpoint, found none there" in one_error(capsys)


@pytest.mark.parametrize("way", WAYS)
def test_no_other_damaged_file_stops_a_resume(way, run, longer, monkeypatch, capsys):
    """Nor do all of them together change what is learned."""
    snapshot = run / "checkpoints" / "policy_000000512.safetensors"
    files = [run / name for name in ("progress.csv", "run.log", "policy.safetensors", MARKER)]
    for file in (*files, next(run.glob("events*")), snapshot):
        file.write_bytes(WAYS[way](file.read_bytes()))
    assert call(train_rl, resume(run), monkeypatch) == 0
    assert "Traceback" not in capsys.readouterr().err
    same_state(run, longer)
    assert steps_of(run)[-2:] == [640, 768]


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
def test_weights_that_are_lost_are_never_saved(value, run, monkeypatch, capsys):
    """The checkpoint and the policy of before stay, one line says which weight it was, and the run can be resumed."""
    before = tree(run)
    update = Trainer.update

    def blown_up(trainer):
        figures = update(trainer)
        trainer.policy.value_head.weight.data[0, 3] = value
        return figures

    monkeypatch.setattr(Trainer, "update", blown_up)
    assert call(train_rl, resume(run), monkeypatch) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: weight value_head.weight") and "the checkpoint of step 512 stays" in error
    after = tree(run)
    kept = {name for name in before if name.endswith(".safetensors")}
    assert {name for name in after if name.endswith(".safetensors")} == kept
    assert all(after[name] == before[name] for name in kept)
    monkeypatch.setattr(Trainer, "update", update)
    assert call(train_rl, resume(run), monkeypatch) == 0


def test_an_optimizer_that_is_lost_is_not_saved_either(run, monkeypatch, capsys):
    update = Trainer.update

    def blown_up(trainer):
        figures = update(trainer)
        state = next(iter(trainer.agent.optimizer.state.values()))
        state["exp_avg"].fill_(math.inf)
        return figures

    monkeypatch.setattr(Trainer, "update", blown_up)
    assert call(train_rl, resume(run), monkeypatch) == 1
    assert (
        "agent/optimizer/0/exp_avg: expected finite numbers, got inf after 640 steps, which is not saved"
        in capsys.readouterr().err
    )
    assert not_finite(load_checkpoint(run / CHECKPOINTS[0])[0]) is None


def test_a_checkpoint_whose_weights_are_lost_is_passed_over(run, monkeypatch, capsys):
    tensors, figures = load_checkpoint(run / CHECKPOINTS[0])
    tensors["policy/value_head.weight"] = torch.full_like(tensors["policy/value_head.weight"], math.nan)
    (run / CHECKPOINTS[0]).write_bytes(checkpoint_bytes(tensors, figures))
    assert call(train_rl, resume(run), monkeypatch) == 0
    assert (
        "x/checkpoint.safetensors: policy/value_head.weight: expected finite numbers, got nan: the checkpoint before it"
        in capsys.readouterr().err
    )


def test_temporary_files_of_a_kill_are_swept_and_nothing_else(run, monkeypatch):
    torn = [
        ".checkpoint.safetensors.0123abcd.tmp",
        ".config.json.k3_x9abc",
        "checkpoints/.policy_000000512.safetensors.89abcdef.tmp",
    ]
    for name in [*torn, ".mine.tmp", "mine.tmp"]:
        (run / name).write_text("torn")
    assert call(train_rl, resume(run), monkeypatch) == 0
    assert not any((run / name).exists() for name in torn)
    assert (run / ".mine.tmp").exists() and (run / "mine.tmp").exists()


# Snapshots


@pytest.mark.parametrize("spacing", [1, 64, 500_000])
def test_snapshots_are_thinned_as_they_come_to_the_last_five_and_doubling_distances(spacing):
    """After n snapshots about 5 + log2(n) are there, the first among them, no gap longer than thrice what lies behind
    it."""
    there: list[int] = []
    for n in range(1, 300):
        there.append(n * spacing)
        for step in superfluous(there, spacing):
            there.remove(step)
        assert there[-5:] == [(n - i) * spacing for i in reversed(range(min(n, 5)))] and there[0] == spacing
        assert len(there) <= 5 + math.log2(n) + 1
        for before, after in itertools.pairwise(there):
            assert after - before <= max(3 * (there[-1] - after), spacing)


@pytest.mark.parametrize("which, left", [("all", 9), ("thinned", 7)])
def test_which_snapshots_stay_is_said_by_a_flag(which, left, in_folder, monkeypatch):
    flags = ["--total-timesteps", "1152", "--checkpoint-every", "128", "--keep-snapshots", which, "--run-dir", "x"]
    assert call(train_rl, [*TRAIN, *flags], monkeypatch) == 0
    steps = run_files.snapshot_steps(Path("x"))
    assert len(steps) == left and steps[0] == 128 and steps[-5:] == [640, 768, 896, 1024, 1152]


def test_thinning_removes_snapshots_only(run):
    (run / "checkpoints" / "policy_000000001.txt").write_text("mine")
    for step in range(1, 100):
        run_files.snapshot_path(run, step).write_text("")
    thin(run, 99, 1)
    assert (run / "checkpoints" / "policy_000000001.txt").exists()
    assert run_files.snapshot_steps(run)[-1] == 512  # what is later than the run is left


# Settings


def test_a_setting_that_is_missing_is_named(run, monkeypatch, capsys):
    """Every one of them; those that early runs did not have are as they were then."""
    config = json.loads((run / "config.json").read_text())
    for name in config:
        rest = {key: value for key, value in config.items() if key != name}
        (run / "config.json").write_text(json.dumps(rest))
        if name in LATER or name in ("training_kwargs", "folder"):
            full = complete(saved_config(run), "config.json")
            assert name in ("training_kwargs", "folder") or full[name] == (
                config[name] if LATER[name] is None else LATER[name]
            )
            continue
        before = tree(run)
        assert call(train_rl, resume(run), monkeypatch) == 2, name
        assert f"x/config.json: expected {name!r} among the settings of the run, which is missing" in one_error(capsys)
        assert tree(run) == before


@settings(FEW, max_examples=150)
@given(data=st.data())
def test_a_damaged_config_is_read_or_refused_in_one_line(data, trained, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "damaged config"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_bytes(data.draw(damage((trained / "config.json").read_bytes())))
    try:
        settings = resumed_config(str(folder), ["--resume", str(folder)])
    except (ValueError, ImportError) as error:
        assert "\n" not in str(error) and len(str(error)) < 1000
    else:
        assert settings.run.resume == str(folder) and isinstance(settings.run.num_envs, int)


FIRST_SETTINGS = set(
    """
    env env_kwargs memory agent total_timesteps num_envs seed run_dir overwrite resume checkpoint_every
    torch_threads device progress_bar num_steps num_minibatches learning_rate final_learning_rate adam_eps gamma
    ent_coef final_ent_coef vf_coef max_grad_norm advantage_std_floor update_epochs gae_lambda clip_coef target_kl
    forgetting memory_budget success_target success_slack pressure_rise min_hard_episodes max_span ramp
    initial_span span_dropout span_lr_scale use_margin use_coef span_coef width num_layers num_heads num_positions
    window rho_clip c_clip compression_rate compressed_window batch_size n_epochs clip_range
    """.split()  # noqa: SIM905, one word a setting
)
"""Those that every run has had. What is added since must be in LATER, or older runs could not be resumed."""


def test_runs_of_the_first_version_can_be_resumed():
    parts = {part for memory in KINDS for agent in AGENTS for part in run_parts(memory, agent)}
    names = {field.name for part in parts for field in dataclasses.fields(part)}
    assert names - LATER.keys() == FIRST_SETTINGS
    first = {name: value for name, value in parse_config([]).flat().items() if name in FIRST_SETTINGS}
    full = complete(first, "config.json")
    assert full.keys() >= first.keys() | {"checkpoint_minutes", "keep_snapshots"}
    assert (full["normalize_observations"], full["keep_snapshots"], full["memory_image_every"]) == (False, "all", 0)


FOREIGN_VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just([]), st.just({})
)


@settings(FEW, max_examples=200)
@given(data=st.data())
def test_a_setting_of_another_type_is_refused_in_one_line(data, trained, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "foreign config"
    folder.mkdir(exist_ok=True)
    config = json.loads((trained / "config.json").read_text())
    name = data.draw(st.sampled_from(sorted(config.keys() - {"imports", "env"})))
    (folder / "config.json").write_text(json.dumps({**config, name: data.draw(FOREIGN_VALUES)}))
    try:
        resumed_config(str(folder), ["--resume", str(folder)])
    except ValueError as error:
        assert "\n" not in str(error) and (name in str(error) or name.replace("_", "-") in str(error))


# progress.csv


COLUMNS = ["rollout/ep_rew_mean", STEP, "success/goal_red, big", "train/loss"]


def table_of(path: Path, steps: int) -> bytes:
    table = ProgressTable(path, 0)
    for step in range(1, steps + 1):
        table.write({"train/loss": 1 / step, STEP: 128 * step, "rollout/ep_rew_mean": math.nan})
        table.write({STEP: 128 * step + 64, "success/goal_red, big": 0.5})
    table.close()
    return path.read_bytes()


def test_a_row_with_new_columns_widens_those_before_it(tmp_path):
    table_of(tmp_path / "progress.csv", 2)
    rows = log(tmp_path)
    assert list(rows[0]) == sorted([COLUMNS[0], STEP, COLUMNS[3]]) + [COLUMNS[2]]
    assert [row[STEP] for row in rows] == ["128", "192", "256", "320"]
    assert [row["success/goal_red, big"] for row in rows] == ["", "0.5", "", "0.5"]
    assert [row["train/loss"] for row in rows] == ["1.0", "", "0.5", ""] and rows[0]["rollout/ep_rew_mean"] == "nan"


def test_names_that_do_not_print_are_escaped_and_the_log_stays_whole(tmp_path):
    """They come from texts in the infos of an environment."""
    table = ProgressTable(tmp_path / "progress.csv", 0)
    for step in range(1, 4):
        table.write({STEP: 64 * step, "success/go\u200bto": 0.5, **({"train/loss": 1.0} if step == 3 else {})})
    table.close()
    rows = log(tmp_path)
    assert [row[STEP] for row in rows] == ["64", "128", "192"]
    assert [row[r"success/go\u200bto"] for row in rows] == ["0.5"] * 3
    assert ProgressTable(tmp_path / "progress.csv", 192).note == ""


@pytest.fixture(scope="module")
def whole_log(tmp_path_factory) -> bytes:
    """Rows of the steps 128, 192, ..., 832."""
    return table_of(tmp_path_factory.mktemp("log") / "progress.csv", 6)


def mended(folder: Path, data: bytes) -> tuple[str, list[dict[str, str]]]:
    """The note and the rows when `data` is gone on from at step 512, and a row of step 640 is written."""
    folder.mkdir(exist_ok=True)
    (folder / "progress.csv").write_bytes(data)
    table = ProgressTable(folder / "progress.csv", 512)
    note = table.note
    table.write({STEP: 640, "train/loss": 2.0, "train/new": 1.0})
    table.close()
    return note, log(folder)


@settings(FEW, max_examples=150)
@given(data=st.data())
def test_a_damaged_log_is_mended(data, whole_log, tmp_path_factory):
    """What remains are rows whose steps rise up to the checkpoint's. (That a flipped bit made a digit another one
    cannot be told.)"""
    note, rows = mended(tmp_path_factory.getbasetemp() / "mended", data.draw(damage(whole_log)))
    steps = [float(row[STEP]) for row in rows]
    assert steps == sorted(set(steps)) and steps[-1] == 640 and all(step <= 512 for step in steps[:-1])
    assert rows[-1]["train/loss"] == "2.0" and rows[-1]["train/new"] == "1.0" and "\n" not in note
    assert [float(value) for row in rows for value in row.values() if value]  # nothing but numbers


@pytest.mark.parametrize("tail", [b"", b"\0" * 64, b"0.5,,\n", b"garbage", b"\xff\xfe,1,2,3\n"])
def test_a_torn_log_keeps_every_whole_row(tail, whole_log, tmp_path):
    """Wherever it is torn."""
    lines = whole_log.splitlines(keepends=True)
    for cut in range(0, len(whole_log), 7):
        complete_rows = max(sum(len(b"".join(lines[: i + 1])) <= cut for i in range(len(lines))) - 1, 0)
        note, rows = mended(tmp_path, whole_log[:cut] + tail)
        steps = [float(row[STEP]) for row in rows]
        expected = [64.0 * (i + 2) for i in range(complete_rows) if 64 * (i + 2) <= 512]
        # The row at the cut may be whole but for its end of line, or be made another number's by what follows.
        assert steps[: len(expected)] == expected and steps[-1] == 640 and len(steps) - len(expected) <= 2
        assert note or expected[-1:] == [512] or len(steps) - len(expected) == 2


def test_a_foreign_log_is_kept_beside(run, monkeypatch, capsys):
    (run / "progress.csv").write_text("my,own\n1,2\n")
    assert call(train_rl, resume(run), monkeypatch) == 0
    assert (
        "x/progress.csv: could not be read as a run's log and is kept beside it; the log goes on from step 512"
        in capsys.readouterr().err
    )
    assert (run / "progress.damaged.csv").read_text() == "my,own\n1,2\n" and steps_of(run) == [640, 768]


@pytest.mark.parametrize("made", [Path.mkdir, lambda path: path.symlink_to("/nowhere")])
def test_a_log_that_is_no_file_stops_no_resume(made, run, monkeypatch):
    (run / "progress.csv").unlink()
    made(run / "progress.csv")
    assert call(train_rl, resume(run), monkeypatch) == 0
    assert steps_of(run) == [640, 768]


def test_a_kill_while_the_log_is_rewritten_loses_no_row(run, monkeypatch):
    """Whatever the moment: it is written beside, and renamed."""
    replace = os.replace

    def killed(source, target):
        if Path(target).name == "progress.csv":
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    before = (run / "progress.csv").read_bytes()
    with pytest.raises(KeyboardInterrupt):
        ProgressTable(run / "progress.csv", 512)
    assert (run / "progress.csv").read_bytes() == before


def test_tensorboard_has_each_step_once_after_a_kill(run, monkeypatch):
    """The checkpoint is two updates older than the last that was logged."""
    for name in CHECKPOINTS[:2]:
        (run / name).unlink()
    assert call(train_rl, resume(run), monkeypatch) == 0
    events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    assert [event.step for event in events.Scalars("time/fps")] == [128, 256, 384, 512, 640, 768] == steps_of(run)


# Going on with other settings


@pytest.mark.parametrize("by", ["flag", "config.json"])
def test_a_run_is_trained_on_and_the_rates_do_not_leap(by, run, monkeypatch, capsys):
    flags = ["--total-timesteps", "1024"]
    if by == "config.json":
        config = json.loads((run / "config.json").read_text())
        (run / "config.json").write_text(json.dumps({**config, "total_timesteps": 1024}))
        flags = ["--device", "cpu"]
    assert call(train_rl, resume(run, *flags), monkeypatch) == 0
    assert (
        "512 steps remain, over which the learning rate goes from 0.00025 to 0, the entropy bonus"
        in capsys.readouterr().err
    )
    rates = [float(row["train/learning_rate"]) for row in log(run)]
    assert rates == pytest.approx([1e-3, 7.5e-4, 5e-4, 2.5e-4, 2.5e-4, 1.875e-4, 1.25e-4, 6.25e-5])
    assert json.loads((run / "config.json").read_text())["total_timesteps"] == 1024
    same = steps_of(run)
    assert call(train_rl, resume(run, "--device", "cpu"), monkeypatch) == 0  # nothing is left to do, which is said
    assert "x is trained for all its 1,024 steps: --total-timesteps MORE trains on" in capsys.readouterr().err
    assert steps_of(run) == same


def test_a_run_that_is_trained_on_can_be_interrupted_and_ends_the_same(run, monkeypatch):
    """The schedules of after are in the checkpoint."""
    shutil.copytree(run, "whole")
    assert call(train_rl, resume(Path("whole"), "--total-timesteps", "1024"), monkeypatch) == 0
    update = Trainer.update

    def killed(trainer):
        if trainer.timesteps == 768:
            raise KeyboardInterrupt
        return update(trainer)

    monkeypatch.setattr(Trainer, "update", killed)
    assert call(train_rl, resume(run, "--total-timesteps", "1024"), monkeypatch) == 130
    monkeypatch.setattr(Trainer, "update", update)
    assert call(train_rl, resume(run, "--device", "cpu"), monkeypatch) == 0
    same_state(run, Path("whole"))


def test_another_learning_rate_is_said_and_kept(run, monkeypatch, capsys):
    assert call(train_rl, resume(run, "--learning-rate", "1e-4", "--total-timesteps", "768"), monkeypatch) == 0
    assert "the learning rate goes from 0.0001 to 0" in capsys.readouterr().err
    assert [float(row["train/learning_rate"]) for row in log(run)][-2:] == pytest.approx([1e-4, 5e-5])
    assert json.loads((run / "config.json").read_text())["learning_rate"] == 1e-4
    assert "the learning rate goes from 0.0001 to 0" in (run / "run.log").read_text()


def test_a_checkpoint_without_schedules_goes_on_by_the_runs_config(run, monkeypatch, capsys):
    """As those of before November 2026."""
    for name in CHECKPOINTS:
        tensors, figures = load_checkpoint(run / name)
        del figures["schedules"]
        (run / name).write_bytes(checkpoint_bytes(tensors, figures))
    assert call(train_rl, resume(run, "--total-timesteps", "1024"), monkeypatch) == 0
    assert "the learning rate goes from 0.00025 to 0" in capsys.readouterr().err


def test_fewer_steps_than_were_trained_are_refused(run, monkeypatch, capsys):
    before = tree(run)
    assert call(train_rl, resume(run, "--total-timesteps", "256"), monkeypatch) == 2
    assert "--total-timesteps: expected more than the 512 steps of the run so far, got 256" in one_error(capsys)
    assert tree(run) == before


@settings(FEW)
@given(st.integers(1, 50), st.integers(1, 50), st.integers(1, 50), st.floats(1e-5, 1), st.floats(0, 1))
def test_schedules_never_leap(done, before, more, start, end):
    """Whatever the totals: from one update to the next a rate changes by no more than the steeper of the two slopes has
    it."""
    done = min(done, before)
    first, second = (Schedules({"learning_rate": start}, {"learning_rate": end}) for _ in range(2))
    total = done + more
    second.load_state(first.state(before), done, done - 1, total)
    last = first.values(first.progress(done - 1, before))["learning_rate"]
    following = second.values(second.progress(done, total))["learning_rate"]
    assert abs(following - last) <= abs(start - end) / before + 1e-12
    assert second.values(second.progress(total, total))["learning_rate"] == pytest.approx(end)


@pytest.mark.parametrize(
    "flags, said",
    [
        (
            ["--seed", "2"],
            "--resume: expected no other flags than --device, --torch-threads, --num-actors, --progress-bar",
        ),
        (["--memory=gru"], "expected no other flags"),
        (["--overwrite"], "expected no other flags"),
        (["--device", "tpu"], "--device: expected"),
        (["--torch-threads", "0"], "--torch-threads: expected at least 1"),
        (["--num-actors", "2"], "--num-actors"),  # of PPO, which has none
        (["--learning-rate", "-1"], "--learning-rate: expected at least 0"),
        (["--totl-timesteps", "9"], "did you mean --total-timesteps"),
        (["stray"], "arguments: expected only flags"),
    ],
)
def test_what_does_not_go_with_resume_is_told_in_one_line(flags, said, run, monkeypatch, capsys):
    before = tree(run)
    assert call(train_rl, ["--resume", run, *flags], monkeypatch) == 2
    assert said in one_error(capsys)
    assert {name: data for name, data in tree(run).items() if name != MARKER} == {
        n: d for n, d in before.items() if n != MARKER
    }


def test_help_of_resume_lists_what_goes_with_it(run, monkeypatch, capsys):
    assert call(train_rl, ["--resume", run, "--help"], monkeypatch) == 0
    text = capsys.readouterr().out
    for flag in ("--device", "--torch-threads", "--no-progress-bar", "--quiet", "--total-timesteps", "--learning-rate"):
        assert flag in text
    assert "--num-envs" not in text and "--num-actors" not in text and max(map(len, text.splitlines())) <= 80


def test_threads_and_device_are_of_this_start_only(run, monkeypatch):
    threads: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)  # two would wait for each other on a busy machine
    assert (
        call(train_rl, resume(run, "--torch-threads", "2", "--device", "cpu", "--total-timesteps", "640"), monkeypatch)
        == 0
    )
    assert threads == [2]
    config = json.loads((run / "config.json").read_text())
    assert config["torch_threads"] == 1 and config["device"] == "auto" and config["total_timesteps"] == 640


def test_an_impala_run_takes_actors_when_it_is_resumed(in_folder):
    Path("x").mkdir()
    Path("x/config.json").write_text(json.dumps(parse_config(["--agent", "impala"]).flat()))
    assert resumed_config("x", ["--resume", "x", "--num-actors", "2"]).agent.num_actors == 2


def test_a_run_goes_on_on_another_device_and_says_that_draws_differ(run, monkeypatch, capsys):
    """CUDA's generator has a state of 16 bytes, the CPU's 5,056."""
    for name in CHECKPOINTS:
        tensors, figures = load_checkpoint(run / name)
        tensors["collector/generator"] = torch.arange(16, dtype=torch.uint8)
        (run / name).write_bytes(checkpoint_bytes(tensors, figures))
    assert call(train_rl, resume(run), monkeypatch) == 0
    assert (
        "the run was on another device, which draws random numbers differently: from here on it differs"
        in capsys.readouterr().err
    )
    assert steps_of(run)[-1] == 768


class Seeded(gym.Env):
    """Tells in its observation from which seed its episode comes, and by how many episodes after it."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gym.spaces.Discrete(2)
    seen: ClassVar[list[float]] = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps, self.number = 0, self.np_random.random()
        Seeded.seen.append(self.number)
        return np.array([self.number, 0]), {}

    def step(self, action):
        self.steps += 1
        return np.array([self.number, self.steps]), 1.0, self.steps == 5, False, {}


def test_environments_that_cannot_be_saved_begin_episodes_that_the_run_has_not_seen(in_folder, monkeypatch, capsys):
    """However often it is interrupted."""
    gym.register("Seeded-v0", Seeded)
    try:
        flags = ["--env", "Seeded-v0", "--run-dir", "x", "--total-timesteps", "256"]
        assert call(train_rl, [*SMALL, "--quiet", *flags], monkeypatch) == 0
        parts = [set(Seeded.seen)]
        for total in (512, 768):
            Seeded.seen.clear()
            assert call(train_rl, resume(Path("x"), "--total-timesteps", total), monkeypatch) == 0
            assert "the environments' state was not saved: they begin new episodes" in capsys.readouterr().err
            parts.append(set(Seeded.seen))
    finally:
        del gym.registry["Seeded-v0"]
    # Before it resumes, the collector has begun the first episode of each environment, which nobody plays.
    begun = parts[0] & parts[1]
    assert all(len(part) > 24 for part in parts) and len(begun) <= 2 * 8
    assert parts[1] & parts[2] == begun and len(parts[0] & parts[2]) == len(begun)


# Two at once


def test_a_directory_in_which_something_trains_is_refused(run, monkeypatch, capsys):
    before = tree(run)
    lock = FileLock.take(run / MARKER)
    assert lock is not None and is_taken(run / MARKER)
    for flags in (resume(run), [*TRAIN, "--run-dir", run, "--overwrite"]):
        assert call(train_rl, flags, monkeypatch) == 2
        assert "run directory: expected one in which nothing trains, in x another process does" in one_error(capsys)
    assert tree(run) == before
    lock.release()
    assert not is_taken(run / MARKER)
    assert call(train_rl, resume(run), monkeypatch) == 0


def test_a_second_training_into_the_directory_of_one_that_began_meanwhile_is_refused(in_folder, monkeypatch, capsys):
    """Both have found nothing there; the second has built everything when it comes to the directory."""
    flags = [*TRAIN, "--run-dir", "x", "--total-timesteps", "128"]
    begin = RunDirectory.begin.__func__

    def late(cls, path, run, lock=None):
        monkeypatch.setattr(RunDirectory, "begin", classmethod(begin))
        assert call(train_rl, flags, monkeypatch) == 0
        return begin(cls, path, run, lock)

    monkeypatch.setattr(RunDirectory, "begin", classmethod(late))
    assert call(train_rl, flags, monkeypatch) == 2
    assert "x exists: continue it with --resume x" in capsys.readouterr().err.splitlines()[-1]
    assert steps_of(Path("x")) == [128]


def test_a_lock_is_released_when_its_process_is_killed(tmp_path):
    code = f"import sys, time; sys.path.insert(0, {str(ROOT)!r})\nfrom expire_span_rl.locks import FileLock\n"
    code += "lock = FileLock.take(sys.argv[1]); print('taken', flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "lock")], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "taken\n"
    assert FileLock.take(tmp_path / "lock") is None and is_taken(tmp_path / "lock")
    process.send_signal(signal.SIGKILL)
    process.wait()
    lock = FileLock.take(tmp_path / "lock")
    assert lock is not None
    lock.release()


def test_folders_that_killed_processes_have_left_are_removed_and_no_others(tmp_path):
    """Ray's of an earlier training, by the lock in them."""
    for name in ("ray-left", "ray-new", "ray-used", "ray-theirs", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "session").write_text("")
        if name != "ray-theirs":
            (tmp_path / name / "lock").write_text("")
        if name not in ("ray-new", "ray-theirs"):
            os.utime(tmp_path / name / "lock", (0, 0))
    (tmp_path / "ray-link").symlink_to(tmp_path / "other")
    lock = FileLock.take(tmp_path / "ray-used" / "lock")
    assert remove_abandoned(tmp_path, "ray-*", "lock") == [tmp_path / "ray-left"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "other",
        "ray-link",
        "ray-new",
        "ray-theirs",
        "ray-used",
    ]
    assert lock is not None
    lock.release()


def test_a_lock_follows_no_link(tmp_path):
    (tmp_path / "theirs").write_text("theirs")
    (tmp_path / "lock").symlink_to(tmp_path / "theirs")
    with pytest.raises(OSError):
        FileLock.take(tmp_path / "lock", "ours")
    assert (tmp_path / "theirs").read_text() == "theirs"


# The disk


def during(update_number: int, happens: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes something happen at the end of an update of the training to come."""
    update = Trainer.update

    def updated(trainer):
        figures = update(trainer)
        if trainer.updates == update_number:
            happens()
        return figures

    monkeypatch.setattr(Trainer, "update", updated)


@pytest.mark.parametrize("replaced", [False, True])
def test_a_directory_that_is_removed_ends_the_training_and_it_is_saved_beside(replaced, in_folder, monkeypatch, capsys):
    def happens():
        shutil.rmtree("x")
        if replaced:
            Path("x").mkdir()
            Path("x/mine.txt").write_text("mine")

    flags = [*TRAIN, "--total-timesteps", "512", "--run-dir", "x"]
    with pytest.MonkeyPatch.context() as patch:
        during(3, happens, patch)
        assert call(train_rl, flags, patch) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[-2] == "stopped after 384 steps; saved in x-saved: --resume x-saved goes on"
    assert lines[-1] == "error: x: the run directory was removed or replaced while training, after 384 steps"
    assert not Path("x").exists() or tree(Path("x")) == {"mine.txt": b"mine"}
    assert call(train_rl, ["--resume", "x-saved", "--no-progress-bar"], monkeypatch) == 0
    shutil.rmtree("x", ignore_errors=True)
    assert call(train_rl, flags, monkeypatch) == 0
    same_state(Path("x"), Path("x-saved"))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
@pytest.mark.parametrize("where", ["log", "checkpoint"])
def test_a_disk_that_fails_ends_the_training_in_one_line_and_the_last_checkpoint_stays(
    where, number, run, monkeypatch, capsys
):
    """It can be resumed when the disk is well again, and ends as if nothing had happened."""
    shutil.copytree(run, "whole")
    assert call(train_rl, resume(Path("whole"), "--total-timesteps", "1024"), monkeypatch) == 0
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:

        def fails(*arguments):
            raise OSError(number, os.strerror(number))

        def happens():
            patch.setattr("os.fsync", fails)
            if where == "log":
                patch.setattr(ProgressTable, "write", fails)

        during(6, happens, patch)
        assert call(train_rl, resume(run, "--total-timesteps", "1024"), patch) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == f"error: x: could not be written after 768 steps ({os.strerror(number)})"
    assert lines[-2].startswith("stopped after 768 steps; the checkpoint of step 640 is whole: --resume x goes on")
    assert not [path for path in run.rglob(".*") if path.name != MARKER]
    assert call(train_rl, resume(run, "--device", "cpu"), monkeypatch) == 0
    same_state(run, Path("whole"))


@pytest.mark.skipif(not hasattr(os, "statvfs"), reason="limits on a file's size are POSIX's")
@pytest.mark.parametrize("most", [100, 400_000])
def test_a_file_that_may_not_grow_ends_the_training_in_one_line(most, run):
    """The kernel's own refusal, at any size: in the middle of the log, of a policy or of a checkpoint."""
    code = f"import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({most}, {most}))\n"
    code += f"sys.path.insert(0, {str(ROOT)!r}); sys.argv[0] = 'train_rl.py'\nimport runpy\n"
    code += f"runpy.run_path({str(ROOT / 'train_rl.py')!r}, run_name='__main__')"
    command = [sys.executable, "-c", code, *map(str, resume(run))]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode in (1, 2), done.stderr
    assert "Traceback" not in done.stderr and done.stderr.splitlines()[-1].startswith("error: ")
    assert load_checkpoint(run / CHECKPOINTS[0])[1]["counters"]["timesteps"] >= 512


# What is said


def test_run_log_has_command_versions_device_and_every_line(run, monkeypatch, capsys):
    before = (run / "run.log").read_text()
    assert call(train_rl, resume(run), monkeypatch) == 0
    said = capsys.readouterr().err.splitlines()
    text = (run / "run.log").read_text()
    assert text.startswith(before)
    part = text[len(before) :]
    for line in said:
        assert line in part
    assert (
        " started\n" in part
        and "--resume x --no-progress-bar" in part
        and f"torch {torch.__version__.split('+')[0]}" in part
    )
    assert "device: cpu, 1 PyTorch thread(s)" in part and f"process: {os.getpid()} on " in part


def test_run_log_has_the_traceback_of_what_ended_the_training(run, monkeypatch):
    def fails():
        raise RuntimeError("something unforeseen")

    during(5, fails, monkeypatch)
    assert call(train_rl, resume(run), monkeypatch) == 1
    text = (run / "run.log").read_text()
    assert "ended by\nTraceback (most recent call last):" in text and "RuntimeError: something unforeseen" in text
    assert not is_taken(run / MARKER)


def test_sizes_have_the_unit_of_what_they_are_rounded_to():
    shown = [size(number) for number in (0, 999.4, 999.7, 999_600, 1.5e9, 1.2346e15)]
    assert shown == ["0 B", "999 B", "1 kB", "1 MB", "1.5 GB", "1,230 TB"]


def test_preflight_says_what_the_run_takes(in_folder, monkeypatch, capsys):
    flags = [
        *SMALL,
        *SHORT,
        "--total-timesteps",
        "128",
        "--run-dir",
        "x",
        "--memory",
        "transformer_xl",
        "--window",
        "32",
    ]
    assert call(train_rl, flags, monkeypatch) == 0
    said = capsys.readouterr().err
    run = build(parse_config(list(map(str, flags))).replace(run_dir="y"))
    number = sum(p.numel() for p in run.policy.parameters())
    per_slot = 2 * (4 * 64 + 8 + 1)  # two layers: a vector of 64 float32, the birth, and that it lives
    births = run.policy.initial_memory(1).layers[0].birth.element_size()
    per_slot = 2 * (4 * 64 + births + 1)
    assert f"policy   {number:,} parameters ({size(4 * number)})" in said
    assert f"device   {run.device}, 1 thread" in said
    sizes = f"{size(32 * per_slot)} per environment, {size(8 * 32 * per_slot)} for 8"
    assert f"memory   at most 32 memories in 2 layers, {sizes}" in said
    assert "rollout  16 steps of 8 environments" in said and "3 checkpoints of about" in said and " free" in said
    assert len(said.splitlines()) < 15
    assert call(train_rl, [*flags, "--overwrite", "--quiet"], monkeypatch) == 0
    assert "parameters" not in capsys.readouterr().err


def test_the_environments_own_defaults_are_not_warned_of():
    settings = {"width": 16, "num_envs": 8, "num_steps": 16, "num_minibatches": 2}
    assert warnings_of(build(resolve(env="Text-v0", agent="supervised", **settings))) == []
    shorter = build(resolve(env="Text-v0", agent="supervised", initial_limit=64, **settings))
    assert "a larger --initial-limit would reach them" in warnings_of(shorter)[0]


@pytest.mark.parametrize(
    "flags, warned",
    [
        (
            ["--memory", "transformer_xl", "--window", "32"],
            "needs facts for up to 200 steps, but memories last 32 steps at most: a larger --window",
        ),
        (["--memory", "expire_span", "--max-span", "64"], "but memories last 64 steps at most: a larger --max-span"),
        (["--memory", "expire_span", "--initial-limit", "64"], "last 64 steps at most: a larger --initial-limit"),
        (["--memory", "adaptive_span", "--max-span", "64"], "but memories last 64 steps at most: a larger --max-span"),
        (
            ["--memory", "compressive", "--window", "8", "--compressed-window", "8"],
            "but memories last 40 steps at most",
        ),
        (["--memory", "gru"], "but nothing is learned across rollouts, of 16 steps: --num-steps 200 would reach them"),
        (["--memory", "transformer_xl", "--window", "200"], ""),
        (["--memory", "expire_span"], ""),
        (["--memory", "none"], ""),
        (["--env", "CartPole-v1", "--memory", "transformer_xl", "--window", "1"], ""),
    ],
)
def test_a_memory_that_is_too_short_for_the_task_is_warned_of(flags, warned, in_folder):
    run = build(parse_config([*SMALL, *flags]))
    found = warnings_of(run)
    run.trainer.close()
    assert len(found) == bool(warned) and all(warned in text for text in found)
    assert warned == "" or "gru" in flags or (reach(run.policy)[0] or 0) < 200


@pytest.mark.parametrize("memory", ["expire_span", "adaptive_span", "compressive", "transformer_xl", "gru", "none"])
@pytest.mark.parametrize("agent", ["ppo", "impala"])
def test_the_memory_is_never_larger_than_preflight_says(memory, agent, in_folder):
    flags = {"transformer_xl": ["--window", "12"], "compressive": ["--window", "8", "--compressed-window", "3"]}.get(
        memory, []
    )
    flags += ["--max-span", "16"] if memory.endswith("span") else []
    run = build(
        parse_config([*SMALL, "--env-kwargs", '{"max_length": 64}', "--memory", memory, "--agent", agent, *flags])
    )
    (line,) = [line for line in preflight(run, Path("x")) if line.startswith("  memory")]
    run.trainer.total_timesteps = 10**9
    most = 0
    for _ in range(6):
        run.trainer.update()
        most = max(most, int(run.trainer.collector.memory.bytes().max()))
    run.trainer.close()
    number, unit = line.split(" per environment")[0].split()[-2:]
    stated = float(number) * {"B": 1, "kB": 1e3, "MB": 1e6}[unit]
    assert most <= 1.01 * stated
    if memory in ("transformer_xl", "gru", "compressive"):  # those that fill up
        assert most >= 0.8 * stated


def test_the_speed_is_said_once_after_the_first_updates(in_folder, monkeypatch, capsys):
    monkeypatch.setattr("expire_span_rl.preflight.SPEED_AFTER", 0.0)
    flags = [flag for flag in TRAIN if flag != "--quiet"]
    assert call(train_rl, [*flags, "--total-timesteps", "1280", "--run-dir", "x"], monkeypatch) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "steps per second" in line]
    assert len(lines) == 1 and lines[0].endswith("live memories per layer so far") and "seconds to go" in lines[0]


def test_reading_a_long_log_takes_no_time(tmp_path):
    """3,000 rows of 60 columns."""
    names = [STEP, *(f"train/{i}" for i in range(59))]
    lines = [",".join(names), *(",".join([str(128 * (i + 1)), *["0.123456789"] * 59]) for i in range(3000))]
    (tmp_path / "progress.csv").write_text("\n".join(lines) + "\n")
    began = time.perf_counter()
    table = ProgressTable(tmp_path / "progress.csv", 128 * 2500)
    assert time.perf_counter() - began < 2 and table.note == ""
    table.close()
    assert len(log(tmp_path)) == 2500


def test_rollouts_larger_than_the_machine_replace_no_run(tmp_path, monkeypatch, capsys):
    flags = [*SMALL, *SHORT, "--total-timesteps", "128", "--run-dir", tmp_path / "x"]
    assert call(train_rl, flags, monkeypatch) == 0
    before = (tmp_path / "x" / "policy.safetensors").read_bytes()
    capsys.readouterr()
    assert call(train_rl, [*flags, "--overwrite", "--num-steps", "1e10"], monkeypatch) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --num-steps, --num-envs: expected rollouts that fit into")
    assert error.count("\n") == 1
    assert (tmp_path / "x" / "policy.safetensors").read_bytes() == before
