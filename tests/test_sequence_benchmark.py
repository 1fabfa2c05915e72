"""benchmarks.sequence as a user calls it, in small: what it writes, that it goes on where it was, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from script_cases import ROOT, call, csv_rows

from benchmarks import sequence, sequence_cells, sequence_speed
from benchmarks.sequence_cells import Cell, evaluate_blocks, read_cells, train_for
from benchmarks.sequence_checks import is_trained_for
from benchmarks.sequence_report import results_csv, summary
from benchmarks.sequence_search import best_trial, trial_settings
from expire_span_rl.agents.checkpoint import checkpoint_bytes, load_checkpoint
from expire_span_rl.building import build
from expire_span_rl.cli.train_sequence import parse_sequence
from expire_span_rl.evaluation import evaluate
from expire_span_rl.policies import save_policy

SMALL = ["--num-envs", "8", "--num-steps", "16", "--num-minibatches", "2", "--width", "16"]
SMALL += ["--delay", "6", "--length", "3", "--vocabulary", "3"]
TINY = [*SMALL, "--seconds", "0.2", "--search-seconds", "0.1", "--streams", "4", "--delays", "5", "40", "--out", "x"]
SILENT = ["--task", "collision", "--kinds", "gru", "--eval-kwargs", '{"question_share": 0}']
TWO = ["--kinds", "expire_span", "transformer_xl", "--set", "transformer_xl.window=30"]


@pytest.fixture
def in_benchmark(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for module in (sequence, sequence_speed):  # tests/test_workers.py has processes; here they would only cost time
        monkeypatch.setattr(module, "in_processes", lambda function, work, jobs: map(function, work))
    monkeypatch.setattr(sequence_speed, "WARM_UP", 1)
    monkeypatch.setattr(sequence_speed, "BLOCKS", 2)
    return tmp_path


def test_cells_are_written_once_and_the_table_grows(in_benchmark, monkeypatch, capsys):
    assert call(sequence, [*TINY, *TWO, "--seeds", "1", "--search", "2"], monkeypatch) == 0
    cells = read_cells(Path("x"))
    trials = [Cell(kind, f"trial-default-{i}", 1001) for i in (1, 2) for kind in ("expire_span", "transformer_xl")]
    seeds = [Cell(kind, "default", 1) for kind in ("expire_span", "transformer_xl")]
    assert set(cells) == {*trials, *seeds}
    xl = cells[seeds[1]]
    assert xl["config"]["window"] == 30 and xl["given"]["window"] == "30" and xl["given"]["delay"] == "6"
    assert [e["env_kwargs"]["delay"] for e in xl["evaluations"]] == [5, 40]
    assert [e["steps"] for e in xl["evaluations"]] == [11, 46] and [e["asked"] for e in xl["evaluations"]] == [12, 12]
    assert xl["seconds"] >= 0.2 and xl["timesteps"] == 128 * xl["blocks"] and xl["ms_per_block"] > 0
    assert xl["peak_memory"] > 10**8
    chosen = best_trial([cells[trial] for trial in trials[1::2]], lower_is_better=False)["chosen"]
    assert xl["chosen"] == chosen and xl["config"]["learning_rate"] == chosen.get("learning_rate", 1e-3)
    rows = csv_rows(Path("x/results.csv"))
    assert len(rows) == 4 + 2 * 2 and {row["evaluated"] for row in rows} == {"5", "6", "40"}
    row = next(r for r in rows if (r["kind"], r["variant"], r["evaluated"]) == ("transformer_xl", "default", "40"))
    assert float(row["accuracy"]) == pytest.approx(xl["evaluations"][1]["accuracy"], rel=1e-5)
    live = [float(number) for number in row["live_by_layer"].split()]
    assert live == pytest.approx(xl["evaluations"][1]["live_mean"], rel=1e-4)
    assert json.loads(row["settings"])["window"] == "30"
    table = Path("x/table.md").read_text()
    assert table.count("\n| transformer_xl | default |") == 2 and "trial" not in table
    assert Path("x/memory.png").stat().st_size > 5_000
    before = Path("x/cells/expire_span-default-1.json").stat().st_mtime_ns
    assert call(sequence, [*TINY, *TWO, "--seeds", "2", "--search", "2"], monkeypatch) == 0
    assert len(read_cells(Path("x"))) == 8 and Path("x/cells/expire_span-default-1.json").stat().st_mtime_ns == before
    assert call(sequence, ["--report", "--out", "x"], monkeypatch) == 0
    assert call(sequence, [*TINY, *TWO, "--seeds", "2", "--search", "2", "--width", "32"], monkeypatch) == 2
    error = capsys.readouterr().err
    assert "x: expected --width 16 as in its cell" in error and "name another --variant or --out" in error
    for flags, setting in (
        (["--seconds", "0.4"], "--seconds 0.2"),
        (["--search-seconds", "9"], "--search-seconds 0.1"),
    ):
        assert call(sequence, [*TINY, *TWO, "--seeds", "2", "--search", "2", *flags], monkeypatch) == 2
        error = capsys.readouterr().err
        assert f"x: expected {setting} as in its cell" in error and error.count("\n") == 1
    assert call(sequence, ["--speed-at", "5", *TWO[:3], "--out", "x"], monkeypatch) == 0
    speed = Path("x/speed.csv").read_text().splitlines()
    assert [line.split(",")[:3] for line in speed[1:]] == [
        ["expire_span", "default", "5"],
        ["transformer_xl", "default", "5"],
    ]


def test_a_training_that_was_stopped_goes_on_with_its_time(tmp_path):
    """What is in the file is the whole state: a second call trains for what is left, with the schedule's end there."""
    config = parse_sequence(SMALL)
    first = build(config).trainer
    half = train_for(first, 0.3, tmp_path / "state")
    second = build(config).trainer
    whole = train_for(second, 0.6, tmp_path / "state")
    assert whole["blocks"] > half["blocks"] and whole["seconds"] > 0.55
    assert whole["curve"][-1][1] == whole["timesteps"] and second.agent.schedules.progress(0, 1) == 1.0
    third = build(config).trainer
    again = train_for(third, 0.6, tmp_path / "state")
    assert again["blocks"] == whole["blocks"] and again["ms_per_block"] == whole["ms_per_block"]
    ours, theirs = third.policy.state_dict(), second.policy.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_an_evaluation_has_a_length_of_its_own(in_benchmark, monkeypatch):
    """Longer strings than in training are asked for to their end."""
    flags = [*TINY, "--kinds", "gru", "--seeds", "1", "--no-place", "--eval-kwargs", '{"length": 9}']
    assert call(sequence, flags, monkeypatch) == 0
    (cell,) = read_cells(Path("x")).values()
    assert [(e["steps"], e["asked"]) for e in cell["evaluations"]] == [(23, 36), (58, 36)]
    assert all(0 <= e["accuracy"] <= 1 for e in cell["evaluations"])


def test_a_checkpoint_of_other_settings_is_refused(in_benchmark, monkeypatch, capsys):
    """The training was stopped. Only its own command goes on with it."""
    flags = [*TINY, "--kinds", "gru", "--seeds", "1"]
    with monkeypatch.context() as stopped:
        stopped.setattr(sequence_cells, "evaluate_blocks", interrupt)
        assert call(sequence, flags, stopped) == 130
    file = Path("x/runs/gru-default-1.safetensors")
    assert file.is_file() and read_cells(Path("x")) == {}
    capsys.readouterr()
    for changed, setting in ((["--width", "32"], "--width 16"), (["--seconds", "0.4"], "--seconds 0.2")):
        assert call(sequence, [*flags, *changed], monkeypatch) == 2
        error = capsys.readouterr().err
        assert f"x: expected {setting} as in its cell gru-default-1, got" in error
        assert f"or delete {file}, for other settings" in error and error.count("\n") == 1
    tensors, metadata = load_checkpoint(file)
    del metadata["request"]  # as in earlier versions
    metadata["progress"]["seconds"] = 0.2  # its last update may have taken longer on a busy machine
    file.write_bytes(checkpoint_bytes(tensors, metadata))
    assert call(sequence, [*flags, "--seconds", "0.01"], monkeypatch) == 2
    assert "expected --seconds at least 0." in capsys.readouterr().err
    assert call(sequence, flags, monkeypatch) == 0
    assert f"{file}: of an earlier version, which did not save its settings" in capsys.readouterr().err
    (cell,) = read_cells(Path("x")).values()
    assert cell["requested_seconds"] == 0.2
    (Path("x/cells") / "gru-default-1.json").unlink()
    file.write_bytes(checkpoint_bytes(tensors, {"counters": {}}))
    assert call(sequence, flags, monkeypatch) == 2
    assert f"{file}: expected a checkpoint of benchmarks.sequence" in capsys.readouterr().err


def test_a_setting_that_an_old_cell_lacks_counts_as_without_it(in_benchmark, monkeypatch, capsys):
    """Not as today's default, and the message says what the cell had."""
    flags = [*TINY, "--kinds", "transformer_xl", "--seeds", "1"]
    assert call(sequence, flags, monkeypatch) == 0
    file = Path("x/cells/transformer_xl-default-1.json")
    data = json.loads(file.read_text())
    del data["config"]["precision"], data["config"]["qk_norm"]
    file.write_text(json.dumps(data))
    capsys.readouterr()
    assert call(sequence, flags, monkeypatch) == 2
    error = capsys.readouterr().err
    assert "x: expected --qk-norm False as in its cell transformer_xl-default-1, got True: name another" in error
    assert error.count("\n") == 1
    before = file.read_bytes()
    assert call(sequence, [*flags, "--no-qk-norm"], monkeypatch) == 0
    assert file.read_bytes() == before


def interrupt(*arguments):
    raise KeyboardInterrupt


@pytest.mark.parametrize("name", ["Copy-v0", "Text-v0"])
def test_cells_that_do_not_name_their_seconds_are_judged_by_their_last_updates(name):
    """The committed ones, which had whole tens of them."""
    for cell in read_cells(ROOT / f"benchmarks/results/sequence-{name}").values():
        requested = round(cell["seconds"], -1)
        accepted = [is_trained_for(cell, factor * requested) for factor in (0.9, 1.0, 1.1)]
        assert "requested_seconds" not in cell and accepted == [False, True, False]
    assert is_trained_for({"seconds": 60.04, "curve": [[59.0], [60.04]]}, 60.0)
    assert is_trained_for({"seconds": 59.99, "curve": [[59.0], [59.99]]}, 60.0)  # saving took what was left


def test_the_last_tenth_of_the_time_is_without_noise(monkeypatch):
    """However many steps the settings name. The clock goes on by 0.25 s per block here."""
    trainer = build(parse_sequence([*SMALL, "--total-blocks", "2"])).trainer
    collect, noise, seconds = trainer.collector.collect, [], [0.0]
    monkeypatch.setattr(sequence_cells.Clock, "seconds", lambda clock: seconds[0])

    def timed_collect(num_noisy):
        noise.append(num_noisy > 0)
        seconds[0] += 0.25
        return collect(num_noisy)

    monkeypatch.setattr(trainer.collector, "collect", timed_collect)
    train_for(trainer, limit=5.0)
    assert noise == [True] * 18 + [False] * 2


def test_speed_is_measured_without_noise(tmp_path, monkeypatch):
    run = build(parse_sequence([*SMALL, "--head-dropout", "0.5"]))
    save_policy(run.policy, tmp_path / "policy.safetensors", run.info)
    trainer = sequence_speed.trainer_at(tmp_path / "policy.safetensors", run.settings.flat(), 5)
    trainer.update()
    head_weights = trainer.collector.block.memory.noise[:, :4]
    assert head_weights.shape == (8, 4) and bool((head_weights == 1).all())


def test_blocks_are_answered_as_an_evaluation_answers():
    """Where every action is right the policy's own actions are the right ones, so both see the same streams."""
    trainer = build(parse_sequence(["--delay", "4", "--length", "2", "--vocabulary", "2", "--num-steps", "32"])).trainer
    for _ in range(300):
        trainer.update()
        if trainer.window.hard_score() == (1.0, 100):
            break
    kwargs = {"delay": 4, "length": 2, "vocabulary": 2}
    blocks = evaluate_blocks(trainer.policy, "Copy-v0", kwargs, streams=20, steps=8, num_steps=3)
    steps = evaluate(trainer.policy, "Copy-v0", kwargs, episodes=20, num_envs=20)
    assert blocks["asked"] == 40 and blocks["flawless"] == blocks["accuracy"] == steps["accuracy"] == 1.0
    assert blocks["bits"] < 0.5 and blocks["live_max"] == [7, 7]


def test_a_policy_that_knows_nothing_is_at_chance():
    policy = build(parse_sequence(["--vocabulary", "4", "--width", "16"])).policy
    result = evaluate_blocks(policy, "Copy-v0", {"delay": 50, "vocabulary": 4}, streams=50, steps=90)
    assert result["asked"] == 1000 and result["flawless"] == 0.0
    assert result["bits"] == pytest.approx(2.32, abs=0.2)  # log2 of 5 actions


def test_evaluations_have_no_training_noise():
    """The same weights answer alike, whether heads are left out in training or not."""
    dropouts = [["--head-dropout", "0.5"], ["--head-dropout", "0"]]
    noisy, plain = (build(parse_sequence([*SMALL, "--num-layers", "3", *flags])).policy for flags in dropouts)
    torch.nn.init.normal_(plain.policy_head.weight)  # it begins as 0, which hides all heads
    noisy.load_state_dict(plain.state_dict())
    kwargs = {"delay": 6, "length": 3, "vocabulary": 3}
    results = [evaluate_blocks(policy, "Copy-v0", kwargs, streams=20, steps=60) for policy in (noisy, plain)]
    assert results[0]["bits"] == pytest.approx(results[1]["bits"], rel=1e-4)


def test_trials_are_the_same_for_all_kinds_and_the_best_one_is_chosen():
    kinds = ("expire_span", "transformer_xl", "adaptive_span", "compressive")
    assert all(trial_settings(kind, 1) == {} for kind in kinds)
    for number in range(2, 6):
        shared = [{k: trial_settings(kind, number)[k] for k in ("learning_rate", "sharpness")} for kind in kinds]
        assert shared[0] == shared[1] == shared[2] == shared[3]
    assert set(trial_settings("adaptive_span", 3)) == {"learning_rate", "sharpness", "span_coef", "initial_span"}

    def trial(accuracy: float, live: float) -> dict:
        return {"evaluations": [{"accuracy": 0.0}, {"accuracy": accuracy, "bits": accuracy, "live_mean": [live]}]}

    trials = [trial(0.9, 3), trial(0.99, 9), trial(0.9901, 5)]
    assert best_trial(trials, lower_is_better=False) is trials[2]
    assert best_trial(trials, lower_is_better=True) is trials[0]


def test_a_row_is_the_mean_over_seeds_with_its_range(tmp_path):
    def cell(seed: int, accuracy: float, delay: int = 64) -> dict:
        evaluation = {
            "env_kwargs": {"delay": delay},
            "streams": 2,
            "steps": 104,
            "asked": 40,
            "accuracy": accuracy,
            "bits": 1.0,
        }
        evaluation |= {"flawless": 0.5, "live_mean": [10.0, 20.0], "live_max": [11, 21], "memory_bytes": 100.0}
        made = {"kind": "expire_span", "variant": "default", "seed": seed, "evaluations": [evaluation], "given": {}}
        made |= {"ms_per_block": 2.0 * seed, "peak_memory": 3_000_000, "seconds": 1.5, "blocks": 7, "timesteps": 900}
        return {**made, "parameters": 5, "commit": "abc"}

    cells = [cell(1, 0.5), cell(2, 1.0)]
    (row,) = summary(cells, bits=False)
    assert row["score"] == (0.75, 0.5, 1.0) and row["layers"] == [10.0, 20.0] and row["live"] == (15.0, 15.0, 15.0)
    (same,) = summary([cell(1, 0.1), cell(2, 0.1), cell(3, 0.1)], bits=False)
    assert same["score"] == (0.1, 0.1, 0.1)  # their mean is 0.10000000000000002, which is no place within a range
    others = summary([cell(1, 0.5), cell(2, 1.0, delay=512), cell(3, 0.7)], bits=False)
    assert [(r["evaluated"], r["seeds"]) for r in others] == [("64", 2), ("512", 1)]  # not one mean of both
    assert row["ms_per_block"] == (3.0, 2.0, 4.0) and row["seeds"] == 2 and row["evaluated"] == "64"
    (tmp_path / "x.csv").write_text(results_csv(cells))
    rows = csv_rows(tmp_path / "x.csv")
    assert [r["accuracy"] for r in rows] == ["0.5", "1"] and rows[0]["live_max_by_layer"] == "11 21"
    assert rows[1]["peak_memory_mb"] == "3" and rows[1]["seed"] == "2" and rows[0]["settings"] == "{}"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--task", "cpoy"], "--task: expected one of"),
        (["--kinds", "gur"], "--kinds: expected one of"),
        (["--seconds", "0"], "--seconds: expected more than 0, got 0"),
        (["--delays", "0"], "--delays: expected some of at least 1, got [0]"),
        (["--seed", "2"], "--seed: expected only flags that the benchmark leaves open"),
        (["--widht", "2"], "unknown flag --widht"),
        (["--set", "transformer_xl.window"], "--set: expected KIND.SETTING=VALUE"),
        (
            ["--kinds", "gru", "--set", "transformer_xl.window=9"],
            "--set: expected KIND.SETTING=VALUE with one of --kinds",
        ),
        (["--set", "transformer_xl.windo=9"], "unknown flag --windo"),
        (["--variant", "a/b"], "--variant: expected a name"),
        (["--kinds", "gru", "--eval-kwargs", "[1]"], "--eval-kwargs: expected a JSON object"),
        (["--kinds", "gru", "--eval-kwargs", '{"lenght": 2}'], "--eval-kwargs: unknown Copy-v0 keyword 'lenght'"),
        (["--kinds", "gru", "--eval-kwargs", '{"length": "x"}'], "--eval-kwargs: length: expected a whole number"),
        (["--kinds", "gru", "--eval-kwargs", '{"length": 9}'], "--eval-kwargs: expected an environment with obs"),
        (["--kinds", "gru", "--eval-kwargs", '{"delay": 9}'], "--eval-kwargs: expected no 'delay', since --delays"),
        (["--kinds", "gru", "--delays", "9999999999"], "--delays: delay: expected a whole number from 1 to"),
        ([*SILENT, "--streams", "2", "--eval-steps", "9"], "--eval-steps: expected so many that an answer is asked"),
        (["--report"], "--report: expected a directory with finished cells"),
        (["--speed-at", "64"], "--speed-at: expected a directory with finished cells"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line_and_nothing_is_written(
    arguments, message, in_benchmark, monkeypatch, capsys
):
    assert call(sequence, arguments, monkeypatch) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert list(in_benchmark.iterdir()) == []


def test_a_directory_of_something_else_is_refused(in_benchmark, monkeypatch, capsys):
    Path("x").mkdir()
    Path("x/mine.txt").write_text("mine")
    assert call(sequence, TINY, monkeypatch) == 2
    assert "--out: expected a new directory or one of this benchmark" in capsys.readouterr().err
    Path("x/mine.txt").unlink()
    Path("x/cells").mkdir()
    Path("x/cells/a.json").write_text(json.dumps({"kind": "gru"}))
    assert call(sequence, TINY, monkeypatch) == 2
    assert "x/cells/a.json: expected a cell of benchmarks.sequence" in capsys.readouterr().err
