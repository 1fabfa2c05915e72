"""benchmarks.generalisation: trainings, episodes of each length, continuation, and the figure."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from doc_commands import PAGES, blocks, commands
from script_cases import log

from benchmarks import generalisation
from benchmarks.generalisation_report import write_rows
from expire_span_rl import cli

TINY = ["--num-envs", "8", "--num-steps", "8", "--total-timesteps", "128", "--width", "16", "--num-heads", "2"]


def call(arguments: list[str], monkeypatch) -> int:
    monkeypatch.setattr(sys, "argv", ["generalisation", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.run(generalisation.main)
        sys.exit(0)
    return int(stop.value.code or 0)


def test_each_kind_is_trained_once_and_played_at_every_length(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = ["--env", "TMaze-v0", "--seeds", "1", "--episodes", "4", "--out", "out", *TINY]
    assert call([*flags, "--kinds", "expire_span", "--lengths", "5", "9"], monkeypatch) == 0
    rows = generalisation.read_rows(tmp_path / "out" / "results.csv")
    assert list(rows) == [("expire_span", 1, 5), ("expire_span", 1, 9)]
    assert all(0 <= row.success <= 1 and row.live_mean > 1 and row.ms_per_step > 0 for row in rows.values())
    assert (tmp_path / "out" / "generalisation.png").stat().st_size > 10_000
    policy = tmp_path / "runs/generalisation/TMaze-v0-expire_span-1/policy.safetensors"
    training_time = policy.stat().st_mtime_ns
    assert call([*flags, "--kinds", "expire_span", "none", "--lengths", "5", "12"], monkeypatch) == 0
    new_rows = generalisation.read_rows(tmp_path / "out" / "results.csv")
    assert list(new_rows) == [("expire_span", 1, length) for length in (5, 9, 12)] + [("none", 1, 5), ("none", 1, 12)]
    assert new_rows["expire_span", 1, 5] == rows["expire_span", 1, 5]
    assert policy.stat().st_mtime_ns == training_time
    assert "12" in capsys.readouterr().out


def test_a_stop_loses_the_length_at_hand_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = ["--env", "TMaze-v0", "--seeds", "1", "--episodes", "4", "--out", "out", *TINY, "--lengths", "5", "9"]
    config = generalisation.GeneralisationConfig(env="TMaze-v0", lengths=(5, 9), episodes=4)
    played = generalisation.evaluate
    monkeypatch.setattr(generalisation, "evaluate", lambda *a, **kw: {5: played, 9: _stop}[a[2]["length"]](*a, **kw))
    with pytest.raises(KeyboardInterrupt):
        generalisation.train_and_play((config, "expire_span", 1, TINY, [5, 9]))
    kept = generalisation.kept_rows(config, "expire_span", 1)
    assert list(kept) == [("expire_span", 1, 5)]
    assert call(flags, monkeypatch) == 0
    rows = generalisation.read_rows(tmp_path / "out" / "results.csv")
    assert list(rows) == [("expire_span", 1, 5), ("expire_span", 1, 9)]
    assert rows["expire_span", 1, 5] == kept["expire_span", 1, 5]
    os.utime(tmp_path / "runs/generalisation/TMaze-v0-expire_span-1/policy.safetensors")  # a new policy
    assert generalisation.kept_rows(config, "expire_span", 1) == {}


def test_a_training_that_was_interrupted_goes_on_first(tmp_path, monkeypatch):
    """Though its run has a policy, from the middle of the training. One that is over is left as it is."""
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "runs/generalisation/TMaze-v0-expire_span-1"
    script = str(generalisation.ROOT / "train_rl.py")
    flags = ["--env", "TMaze-v0", "--seed", "1", "--run-dir", str(run), *TINY, "--total-timesteps", "64"]
    subprocess.run([sys.executable, script, "--no-progress-bar", *flags], check=True)
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "total_timesteps": 256}))
    for _ in range(2):
        job = (generalisation.GeneralisationConfig(env="TMaze-v0", episodes=4), "expire_span", 1, TINY, [5])
        generalisation.train_and_play(job)
        rows = log(run)
        assert [int(row["time/total_timesteps"]) for row in rows] == [64, 128, 192, 256]
        kept = generalisation.kept_rows(job[0], "expire_span", 1)
        assert list(kept) == [("expire_span", 1, 5)]


def test_rows_and_runs_of_other_flags_are_refused(tmp_path, monkeypatch, capsys):
    """In one line, before anything is trained. Rows of before flags were noted count."""
    monkeypatch.chdir(tmp_path)
    flags = ["--env", "TMaze-v0", "--seeds", "1", "--episodes", "4", "--out", "out", "--lengths", "5", *TINY]
    assert call(flags, monkeypatch) == 0
    capsys.readouterr()
    assert call([*flags, "--gamma", "0.5"], monkeypatch) == 2
    error = capsys.readouterr().err
    assert "as in its row of expire_span, seed 1" in error and "--gamma 0.5" in error and error.count("\n") == 1
    generalisation.kept_file(tmp_path / "runs/generalisation/TMaze-v0-expire_span-1").unlink()
    assert call([*flags, "--gamma", "0.5", "--out", "other"], monkeypatch) == 2
    assert "expected --gamma 0.99 as in its cell TMaze-v0-expire_span-1, got 0.5" in capsys.readouterr().err
    (row,) = generalisation.read_rows(tmp_path / "out/results.csv").values()
    config = generalisation.GeneralisationConfig(env="TMaze-v0", lengths=(5,), episodes=4)
    for flags_of_row, missing in ((row.flags, []), (generalisation.UNKNOWN, []), ("--gamma 0.5", [5])):
        rows = {("expire_span", 1, 5): dataclasses.replace(row, flags=flags_of_row)}
        assert generalisation._missing_lengths([5], rows, ("expire_span", 1), config, TINY) == missing
    os.utime(tmp_path / "runs/generalisation/TMaze-v0-expire_span-1/policy.safetensors")  # a new policy
    assert generalisation.finished_rows(config, tmp_path / "out/results.csv") == {}


def test_no_row_joins_those_of_a_policy_that_is_gone(tmp_path, monkeypatch, capsys):
    """In one line, before anything is trained. Nothing that is there is lost, and what is there is still shown."""
    monkeypatch.chdir(tmp_path)
    row = generalisation.Row("expire_span", 1, 5, 4, 1.0, 1.0, 2.0, 2.0, 0.1, "abc", shlex.join(TINY))
    write_rows(tmp_path / "out/results.csv", [row])
    before = (tmp_path / "out/results.csv").read_bytes()
    flags = ["--env", "TMaze-v0", "--seeds", "1", "--episodes", "4", "--out", "out", *TINY, "--lengths", "5"]
    assert call([*flags, "9"], monkeypatch) == 2
    error = capsys.readouterr().err
    assert (
        "out/results.csv: expected the policy of its rows of expire_span, seed 1, to play 4 episodes of length 9"
        in error
    )
    assert "name another --out to train anew" in error and error.count("\n") == 1
    assert (tmp_path / "out/results.csv").read_bytes() == before and not (tmp_path / "runs").exists()
    monkeypatch.setattr(generalisation, "results_of", lambda function, jobs, *rest: iter(jobs and _stop()))
    assert call(flags, monkeypatch) == 0 and "100.0%" in capsys.readouterr().out
    assert (tmp_path / "out/results.csv").read_bytes() == before


def test_rows_that_do_not_say_their_flags_count_and_get_no_other_seeds(tmp_path, monkeypatch, capsys):
    """As those in the repository: they are shown as they are, and a line says so."""
    monkeypatch.chdir(tmp_path)
    row = generalisation.Row("expire_span", 1, 5, 4, 1.0, 1.0, 2.0, 2.0, float("nan"), "abc")
    write_rows(tmp_path / "out/results.csv", [row])
    text = "\n".join(line.rsplit(",", 1)[0] for line in (tmp_path / "out/results.csv").read_text().splitlines())
    (tmp_path / "out/results.csv").write_text(text)  # without the column
    flags = ["--env", "TMaze-v0", "--episodes", "4", "--out", "out", "--lengths", "5", *TINY]
    assert call([*flags, "--seeds", "1"], monkeypatch) == 0
    output, error = capsys.readouterr()
    assert "100.0%" in output and "rows of expire_span do not say their flags" in error
    for changed, message in (
        (["--seeds", "2"], "expected flags of train_rl.py in its rows of expire_span, to put seed 2 beside them"),
        (["--seeds", "1", "--episodes", "5"], "seed 1, to play 5 episodes of length 5, runs/generalisation/"),
    ):
        assert call([*flags, *changed], monkeypatch) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert (tmp_path / "out/results.csv").read_text() == text and not (tmp_path / "runs").exists()


DOCUMENTED = [
    (page, command)
    for page in PAGES
    for block in blocks(page)
    if block.language == "sh"
    for command in commands(block.text)
    if command.startswith("python -m benchmarks.generalisation ")
]


@pytest.mark.parametrize("page, command", DOCUMENTED, ids=[command[-40:] for _, command in DOCUMENTED])
def test_a_documented_command_begins_in_a_fresh_clone(page, command, tmp_path, monkeypatch, capsys):
    """It trains into a folder of its own, or shows rows of the repository and trains nothing."""
    shutil.copytree(generalisation.ROOT / "benchmarks/results", tmp_path / "benchmarks/results", ignore=_not_rows)
    monkeypatch.chdir(tmp_path)
    jobs = []
    monkeypatch.setattr(generalisation, "results_of", lambda function, work, *rest: jobs.extend(work) or [])
    monkeypatch.setattr(generalisation, "plot", lambda *arguments: None)
    arguments = shlex.split(command, comments=True)[3:]
    assert call(arguments, monkeypatch) == 0
    assert bool(jobs) == ("--out" in arguments)
    assert ("do not say their flags" in capsys.readouterr().err) != bool(jobs)


def _not_rows(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if Path(folder).name == "results" and not name.startswith("generalisation-")]


def test_only_the_length_differs_from_training(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    calls = []
    played = generalisation.evaluate
    monkeypatch.setattr(generalisation, "evaluate", lambda *a, **kw: calls.append(a[2]) or played(*a, **kw))
    config = generalisation.GeneralisationConfig(env="Portal-v0", kinds=("none",), episodes=4, lengths=(2,))
    assert dataclasses.replace(config, lengths=()).lengths == (10, 20, 50)
    flags = ["--env-kwargs", '{"room_length": 4, "max_rooms": 3}', "--wrap", "stretch=2", *TINY[:6]]
    generalisation.train_and_play((config, "none", 1, flags, [2]))
    assert calls == [{"room_length": 4, "min_rooms": 2, "max_rooms": 2, "wraps": ["stretch=2"]}]


def test_a_length_that_the_task_does_not_have_is_told_before_training(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert call(["--env", "Portal-v0", "--lengths", "20", "51"], monkeypatch) == 2
    assert "expected a whole number from 1 to 50, got 51" in capsys.readouterr().err and list(tmp_path.iterdir()) == []


def _stop(*args, **kwargs):
    raise KeyboardInterrupt


def test_a_memory_without_slots_is_drawn_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = ["--env", "TMaze-v0", "--seeds", "1", "--episodes", "4", "--out", "out", *TINY[:6], "--kinds", "gru"]
    assert call([*flags, "--lengths", "100"], monkeypatch) == 0
    assert (tmp_path / "out" / "generalisation.png").stat().st_size > 5_000


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--env", "CartPole-v1"], "--env: expected one of"),
        (["--kinds", "expire_spam"], "--kinds: expected one of"),
        (["--lengths", "0"], "--lengths: expected lengths of at least 1, got (0,)"),
        (
            ["--agent", "impala", "--num-actors", "2", "--ray-address", "auto"],
            "--num-actors: expected 0 with --ray-address, where each training has one CPU",
        ),
        (["--episodes", "0"], "--episodes: expected at least 1, got 0"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_file(flags, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert call(flags, monkeypatch) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and list(tmp_path.iterdir()) == []
