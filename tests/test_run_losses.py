"""That no run loses what it has: when another takes its place, when something raises, and when the disk is full."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from script_cases import FORGETFUL, SHORT, SMALL, call, log

import expire_span_rl as es
import train_rl
from expire_span_rl import training
from expire_span_rl.agents import Trainer
from expire_span_rl.agents.checkpoint import checkpoint_bytes, load_checkpoint
from expire_span_rl.building import build, environment_seed
from expire_span_rl.cli.settings import parse_config, resumed_config
from expire_span_rl.memory_picture import IMAGE_SEED
from expire_span_rl.preflight import preflight
from expire_span_rl.run_checkpoints import write_checkpoint
from expire_span_rl.run_directory import RunDirectory
from expire_span_rl.run_files import CHECKPOINTS, snapshot_steps, superfluous, thinned_count

TRAIN = [*SMALL, *SHORT, *FORGETFUL, "--memory-image-every", "0", "--run-dir", "x"]


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch) -> None:
    """Nothing here cuts the power, and flushing to the disk takes most of the time."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def run(in_folder, monkeypatch, capsys) -> Iterator[Path]:
    """A run of two updates, of 128 steps each."""
    assert call(train_rl, [*TRAIN, "--quiet", "--total-timesteps", "256"], monkeypatch) == 0
    capsys.readouterr()
    return Path("x")


@pytest.fixture
def model(in_folder) -> Iterator[es.PPO]:
    """A model that was not trained."""
    model = es.PPO("gru", num_envs=8, num_steps=16, num_minibatches=2, env_kwargs={"max_length": 6})
    yield model
    model.close()


def contents(run: Path) -> dict[str, bytes]:
    """Every file of a run, by its path."""
    return {str(file.relative_to(run)): file.read_bytes() for file in run.rglob("*") if file.is_file()}


# Another run takes its place


@pytest.mark.parametrize("spacing", [1, 500_000])
def test_snapshots_that_stay_are_counted_as_thinning_leaves_them(spacing):
    for number in range(1, 200):
        steps = range(spacing, (number + 1) * spacing, spacing)
        assert thinned_count(number) == number - len(superfluous(steps, spacing))


@pytest.mark.parametrize("keep", ["thinned", "all"])
def test_the_longest_training_begins_at_once(keep):
    """Counting its snapshots took minutes, and the machine's memory."""
    flags = [*TRAIN, "--total-timesteps", "1e18", "--checkpoint-every", "128", "--keep-snapshots", keep]
    run = build(parse_config(flags))
    run.trainer.close()
    lines = preflight(run, Path("x"))
    number = thinned_count(10**18 // 128) if keep == "thinned" else 10**18 // 128
    assert any("3 checkpoints of about" in line and f", {number} snapshots of " in line for line in lines)


def test_room_is_counted_for_the_checkpoint_that_is_written_beside_the_others(monkeypatch):
    """Each of 1 GB: nothing else of this run is of that size."""
    monkeypatch.setattr("expire_span_rl.preflight.checkpoint_bytes", lambda *state: range(10**9))
    run = build(parse_config([*TRAIN, "--total-timesteps", "256"]))
    run.trainer.close()
    line = next(line for line in preflight(run, Path("x")) if "on disk" in line)
    assert "3 checkpoints of about 1 GB and one more while it is written, 1 snapshot of" in line
    assert ", about 4.0" in line and " GB in all" in line


@pytest.mark.parametrize("broken", ["preflight", "state"])
def test_a_training_that_cannot_begin_replaces_no_run(broken, run, monkeypatch):
    def fails(*arguments):
        raise MemoryError(broken)

    monkeypatch.setattr(training if broken == "preflight" else Trainer, broken, fails)
    before = contents(run)
    quiet = ["--quiet"] if broken == "state" else []
    with pytest.raises(MemoryError):
        training.train(parse_config([*TRAIN, *quiet, "--overwrite"]))
    assert contents(run) == before


# It is trained on


def test_a_second_learn_that_dies_at_once_is_resumed_with_its_own_schedules(model, monkeypatch):
    """As if the process were killed in its first update."""
    model.learn(256, run_dir="x")

    def dies(trainer):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", dies)
        with pytest.raises(KeyboardInterrupt):
            model.learn(256, run_dir="x")
    assert call(train_rl, ["--resume", "x", "--no-progress-bar", "--quiet"], monkeypatch) == 0
    rates = [float(row["train/learning_rate"]) for row in log(Path("x"))]
    assert rates == pytest.approx([1e-3, 5e-4, 5e-4, 2.5e-4])  # over all 512 steps since the first call
    assert load_checkpoint("x/checkpoint.safetensors")[1]["schedules"]["begun"] == 0


# It is stopped


def test_a_run_that_was_stopped_often_has_the_snapshots_of_one_that_never_was(in_folder, monkeypatch):
    """Every second update, here; the last is the end of the training."""
    flags = [*TRAIN, "--quiet", "--total-timesteps", "1920", "--checkpoint-every", "256"]
    assert call(train_rl, [*flags, "--run-dir", "whole"], monkeypatch) == 0
    settings = parse_config(flags)
    for stop in (3, 5, 8, 11, 15):
        training.train(settings, callback=lambda metrics, stop=stop: metrics["time/total_timesteps"] < 128 * stop)
        settings = resumed_config("x", ["--resume", "x", "--no-progress-bar", "--quiet"])
    assert snapshot_steps(Path("x")) == snapshot_steps(Path("whole")) == [256, 1024, 1280, 1536, 1792, 1920]


# Something raises


class Pruned(Exception):
    """As a callback of a search raises it."""


def prune(model: es.Model, error: type[BaseException] = Pruned) -> None:
    """A callback that raises after the second update."""
    if model.num_timesteps == 256:
        raise error("of little promise")


@pytest.mark.parametrize("error", [Pruned, SystemExit])
def test_a_callback_that_raises_costs_nothing(error, model, monkeypatch):
    with pytest.raises(error, match="of little promise"):
        model.learn(1024, run_dir="x", callback=partial(prune, error=error))
    assert load_checkpoint("x/checkpoint.safetensors")[1]["counters"]["timesteps"] == 256
    assert call(train_rl, ["--resume", "x", "--no-progress-bar", "--quiet"], monkeypatch) == 0
    assert len(log(Path("x"))) == 8


def test_an_error_of_saving_does_not_hide_what_a_callback_raised(model, monkeypatch, capsys):
    def fails(directory):
        raise MemoryError("for a checkpoint")

    def prune_when_memory_is_full(model):
        monkeypatch.setattr(RunDirectory, "checkpoint", fails)
        prune(model)

    with pytest.raises(Pruned, match="of little promise"):
        model.learn(1024, run_dir="x", callback=prune_when_memory_is_full)
    message = "not saved (MemoryError: for a checkpoint): the checkpoint of step 0 stays; --resume x goes on from there"
    assert message in capsys.readouterr().err and message in Path("x/run.log").read_text()


def test_a_state_in_the_middle_of_an_update_is_not_saved(model, monkeypatch, capsys):
    def fails(*arguments):
        raise MemoryError("of an update")

    trainer = model._run.trainer
    model.learn(256, run_dir="x")
    monkeypatch.setattr(trainer.agent, "update", fails)
    monkeypatch.setattr(trainer.collector, "restore", fails)
    with pytest.raises(MemoryError, match="of an update"):
        model.learn(256, run_dir="x")
    message = "not saved, since an update could not be undone: the checkpoint of step 256 stays; --resume x goes on"
    assert message in capsys.readouterr().err
    assert load_checkpoint("x/checkpoint.safetensors")[1]["counters"]["timesteps"] == 256


# The disk is full


def test_checkpoints_that_cannot_be_written_cost_none_of_the_older_ones(tmp_path, monkeypatch):
    def steps() -> list[int]:
        return [load_checkpoint(tmp_path / name)[1]["step"] for name in CHECKPOINTS]

    def fails(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for step in range(3):
        write_checkpoint(tmp_path, {"x": torch.ones(2)}, {"step": step})
    assert steps() == [2, 1, 0]
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fails)
        for step in (3, 4):
            with pytest.raises(OSError, match="No space"):
                write_checkpoint(tmp_path, {"x": torch.ones(2)}, {"step": step})
    assert steps() == [2, 1, 0]
    write_checkpoint(tmp_path, {"x": torch.ones(2)}, {"step": 5})
    assert steps() == [5, 2, 1] and len(list(tmp_path.iterdir())) == 3


# What training does not have


@pytest.mark.parametrize("seed", [0, 1, 998_999, 999_000, 2**31 - 1])
def test_the_picture_is_of_an_episode_that_no_training_begins_with(seed):
    first = environment_seed(seed)
    assert not first <= IMAGE_SEED < first + 1_000_003


def test_what_was_read_from_a_checkpoint_does_not_change_with_its_file(tmp_path):
    """The tensors are no views of the file. A kept policy's weights stay in use for as long as the training runs."""
    file = tmp_path / "checkpoint.safetensors"
    file.write_bytes(checkpoint_bytes({"best/weights": torch.ones(10_000)}, {}))
    tensors, _ = load_checkpoint(file)
    with open(file, "r+b") as same:
        same.write(bytes(file.stat().st_size))
    assert (tensors["best/weights"] == 1).all()
