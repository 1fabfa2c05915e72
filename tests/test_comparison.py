"""The comparison of memory kinds: budgets that are kept, statistics with known values, a sweep that resumes and refuses."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest

import cli
import evaluate
import train_rl
from benchmarks import comparison
from benchmarks.comparison import SIZES, Cell
from benchmarks.comparison_report import highest, summary
from benchmarks.statistics import iqm, iqm_interval
from policies import KINDS, ActorCritic, core_config
from policies.encoders import observation_spec

TINY = ["--kinds", "transformer_xl", "expire_span", "none", "--budgets", "8", "--seeds", "1", "--eval-episodes", "8"]
TINY += ["--jobs", "1", "--out", "sweep", "--env-kwargs", '{"max_length": 6}', "--total-timesteps", "256"]
TINY += ["--num-envs", "8", "--num-steps", "16", "--num-minibatches", "2", "--checkpoint-every", "128"]


def sweep(arguments, monkeypatch) -> int:
    """The exit code of the command line, in this process."""
    monkeypatch.setattr(sys, "argv", ["comparison.py", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.run(comparison.main)
    return int(stop.value.code or 0)


@pytest.fixture
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


# Statistics


@pytest.mark.parametrize(
    "scores, mean",
    [
        ([3.0], 3),
        ([1, 2, 6], 3),  # int(0.75) = 0: nothing goes
        ([0, 1, 3, 100], 2),
        ([9, 1, 5, 3, 1000, 7, -50, 2], 4.25),  # 2, 3, 5, 7 stay
        ([0, 0, 1, 2, 3], 1),  # one of five at either end
    ],
)
def test_interquartile_mean_is_a_trimmed_mean(scores, mean):
    """Values by hand; scipy.stats.trim_mean(scores, 0.25) gives the same."""
    assert iqm(np.array(scores, float)) == pytest.approx(mean)


def test_the_interval_of_scores_that_agree_is_a_point():
    assert iqm_interval([[0.5, 0.5, 0.5]]) == (0.5, 0.5, 0.5)


def test_the_interval_of_two_runs_is_all_that_can_be_drawn():
    """0 and 1: the means 0, 1/2, 1 come with probabilities 1/4, 1/2, 1/4."""
    assert iqm_interval([[0, 1]]) == (0.5, 0, 1)


def test_each_stratum_is_drawn_on_its_own():
    """Two tasks, each without variance: drawn together, the mean of the mixture would vary."""
    assert iqm_interval([[0, 0], [1, 1]]) == (0.5, 0.5, 0.5)
    assert iqm_interval([[0, 0, 1, 1]])[1:] != (0.5, 0.5)


def test_the_interval_is_about_what_theory_says():
    """Of many normal scores: the standard error of the 25% trimmed mean is about 1.09 / sqrt(N)."""
    scores = np.random.default_rng(0).normal(size=400)
    mean, low, high = iqm_interval([list(scores)])
    assert (mean - low, high - mean) == (pytest.approx(1.96 * 1.09 / 20, rel=0.15),) * 2


def test_a_stratum_without_runs_is_refused():
    with pytest.raises(ValueError, match="at least one score"):
        iqm_interval([[1.0], []])


# Budgets


def test_every_kind_with_slots_has_a_size():
    assert SIZES.keys() == {name for name, kind in KINDS.items() if kind.stores}


@pytest.mark.parametrize("budget", [8, 16, 32, 61])
@pytest.mark.parametrize("kind", ["transformer_xl", "compressive"])
def test_a_window_holds_just_its_budget_at_its_peak(kind, budget):
    """Counted by evaluate.py over episodes long enough to fill it."""
    config = train_rl.parse_config(["--memory", kind])
    config |= SIZES[kind](budget)
    env = evaluate.make_vec_env("Corridor-v0", 1)
    space = env.single_observation_space
    memory = cli.part(KINDS[kind].Config, config)
    core = core_config(kind)(width=16, num_layers=1, num_heads=1)
    policy = ActorCritic.for_spaces(space, env.single_action_space, memory=kind, memory_config=memory, core=core)
    assert policy.config.observation == observation_spec(space)
    played = evaluate.evaluate(policy, "Corridor-v0", {"min_length": 200, "max_length": 200}, 2)
    assert played["live_memories_max"] == [budget]


@pytest.mark.parametrize("kind", ["expire_span", "adaptive_span"])
def test_a_ramp_takes_at_most_a_quarter(kind):
    assert [SIZES[kind](budget)["ramp"] for budget in (8, 16, 32, 128)] == [2, 4, 8, 8]
    assert SIZES[kind](16)["memory_budget"] == 16 * comparison.SPAN_SHARE <= 16


# A sweep


def test_a_sweep_reports_resumes_and_refuses(in_folder, monkeypatch, capsys):
    """Killed in the middle of its second cell; continued from that cell's checkpoint; the first is not trained again."""
    trained = []
    train, save = train_rl.train, train_rl._save

    def counted(config):
        trained.append((config["memory"], bool(config["resume"])))
        return train(config)

    def killed(run_dir, run):
        save(run_dir, run)
        if len(trained) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(train_rl, "train", counted)
    monkeypatch.setattr(train_rl, "_save", killed)
    assert sweep(TINY, monkeypatch) == 130
    assert [file.name for file in Path("sweep/cells").glob("*.json")] == ["transformer_xl-8-1.json"]
    assert Path("sweep/results.csv").read_text().count("\n") == 2
    before = Path("sweep/cells/transformer_xl-8-1.json").read_bytes()
    monkeypatch.setattr(train_rl, "_save", save)
    capsys.readouterr()

    for other, told in (
        (["--total-timesteps", "512"], "expected --total-timesteps 256"),
        (["--gamma", "0.5"], "expected --gamma 0.99"),
    ):
        assert sweep([*TINY, *other], monkeypatch) == 2
        error = capsys.readouterr().err
        assert f"sweep: {told} as in its cell" in error and error.count("\n") == 1
    assert sweep([a if a != "8" else "9" for a in TINY], monkeypatch) == 2  # budget and evaluation
    assert "expected --eval-episodes 8 as in its cell transformer_xl-8-1, got 9" in capsys.readouterr().err
    assert len(trained) == 2

    assert sweep(TINY, monkeypatch) == 0
    assert trained == [("transformer_xl", False), ("expire_span", False), ("expire_span", True), ("none", False)]
    assert Path("sweep/cells/transformer_xl-8-1.json").read_bytes() == before
    out = capsys.readouterr().out
    assert "| transformer_xl | 8 | 1 |" in out and "| none | - | 1 |" in out
    with Path("sweep/results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["kind"], r["budget"], r["seed"]) for r in rows] == [
        ("expire_span", "8", "1"),
        ("transformer_xl", "8", "1"),
        ("none", "", "1"),
    ]
    for row in rows:
        assert 0 <= float(row["success"]) <= 1 and float(row["training_minutes"]) > 0
        assert float(row["training_steps_per_second"]) > 0 and float(row["acting_steps_per_second"]) > 0
        assert row["memory_efficiency"] == ""  # Corridor has no oracle
    assert 0 < float(rows[1]["live_mean"]) <= float(rows[1]["live_peak"]) <= 8
    assert Path("sweep/success.png").stat().st_size > 10_000
    cell = json.loads(before)
    assert cell["config"]["window"] == 7 and cell["config"]["total_timesteps"] == 256
    assert cell["evaluation"]["episodes"] == 8

    # Nothing is left to do; and a sweep may grow, by processes of their own.
    assert sweep(TINY, monkeypatch) == 0
    assert len(trained) == 4
    grown = [*TINY, "--kinds", "gru", "--seeds", "2", "--jobs", "2"]
    assert sweep(grown, monkeypatch) == 0
    assert len(list(Path("sweep/cells").glob("*.json"))) == 5
    assert "| gru | - | 2 |" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["--kinds", "expire-span"], "--kinds: expected one of"),
        (["--budgets", "4"], "budgets of at least 8"),
        (["--seeds", "0"], "--seeds: expected at least 1"),
        (["--memory", "gru"], "--memory: expected only flags that the sweep leaves open"),
        (["--kinds", "transformer_xl", "--window", "9"], "it sets --window itself"),
        (["--env", "Coridor-v0"], "did you mean 'Corridor-v0'"),
        (["--env-kwargs", '{"max_length": 1}'], "max_length: expected a whole number"),
        (["--kinds", "gru", "--num-heads", "4"], "unknown flag --num-heads"),
        (["--total-timesteps", "0"], "--total-timesteps: expected at least 1"),
    ],
)
def test_bad_input_is_told_in_one_line_and_leaves_nothing(arguments, told, in_folder, monkeypatch, capsys):
    assert sweep(["--jobs", "1", *arguments], monkeypatch) == 2
    error = capsys.readouterr().err
    assert told in error and error.startswith("error: ") and error.count("\n") == 1
    assert list(in_folder.iterdir()) == []


def test_there_is_no_report_of_nothing(in_folder, monkeypatch, capsys):
    assert sweep([*TINY, "--report"], monkeypatch) == 2
    assert "expected a sweep with finished cells, sweep has none" in capsys.readouterr().err


def test_a_folder_that_is_no_sweep_is_refused_and_kept(in_folder, monkeypatch, capsys):
    Path("sweep").mkdir()
    Path("sweep/mine.txt").write_text("mine")
    assert sweep(TINY, monkeypatch) == 2
    assert "expected a new directory or one of a sweep" in capsys.readouterr().err
    assert [file.name for file in Path("sweep").iterdir()] == ["mine.txt"]


def test_who_is_ahead_must_keep_to_the_budget():
    """The higher success of a kind whose memories were not within the budget does not count there."""
    none = dict.fromkeys(("return", "memory_efficiency", "live_peak", "bytes", "training_minutes"))
    none |= dict.fromkeys(("training_steps_per_second", "acting_steps_per_second"))

    def cell(kind, budget, success, live):
        return {**Cell(kind, budget, 1)._asdict(), "figures": {**none, "success": success, "live_mean": live}}

    rows = summary([cell("a", 8, 0.9, 7.5), cell("a", 16, 0.9, 9), cell("b", 8, 1.0, 8.5), cell("b", 16, 0.9, 16)])
    assert highest(rows) == {8: ["a"], 16: ["a", "b"]}
