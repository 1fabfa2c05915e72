"""The benchmarks as a user calls them, with small settings: what they write, that they continue, what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from script_cases import ROOT, call

from benchmarks import (
    chaos,
    coverage,
    generalisation,
    learning,
    scaling,
    sequence,
    throughput,
    throughput_kinds,
    training,
)
from expire_span_rl import cli
from expire_span_rl.evaluation import evaluate
from expire_span_rl.policies import load_policy

TINY = ["--num-envs", "8", "--num-steps", "16", "--num-minibatches", "2", "--total-timesteps", "512"]
TINY += ["--env-kwargs", '{"max_length": 5}', "--eval-every", "256", "--eval-episodes", "20", "--jobs", "1"]


def test_learning_reports_every_seed_and_continues(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert call(learning, [*TINY, "--seeds", "1", "--out", "x.json"], monkeypatch) == 0
    report = json.loads(Path("x.json").read_text())
    assert [result["seed"] for result in report["seeds"]] == [1]
    (result,) = report["seeds"]
    assert [entry["timesteps"] for entry in result["history"]] == [256, 512]
    assert result["last"]["hard"]["mean_episode_length"] >= 5  # the hard ones are the longest
    assert [row[0] for row in result["curve"]] == [512]
    assert call(learning, [*TINY, "--seeds", "2", "--out", "x.json", "--plot", "x.png"], monkeypatch) == 0
    both = json.loads(Path("x.json").read_text())
    assert [r["seed"] for r in both["seeds"]] == [1, 2]
    assert both["seeds"][0] == result
    assert Path("x.png").stat().st_size > 5_000
    capsys.readouterr()
    assert call(learning, [*TINY, "--gamma", "0.9", "--out", "x.json"], monkeypatch) == 2
    error = capsys.readouterr().err
    assert "x.json differs in gamma" in error and error.count("\n") == 1
    harder = ["--hard-env-kwargs", '{"min_length": 4}']
    for flags, name in ((harder, "hard"), (["--eval-episodes", "21"], "eval_episodes")):
        assert call(learning, [*TINY, *flags, "--out", "x.json"], monkeypatch) == 2
        assert f"x.json differs in {name}" in capsys.readouterr().err
    assert json.loads(Path("x.json").read_text()) == both
    one_panel = {
        **both,
        "seeds": [{**r, "curve": [[512, 1.0, *[None] * (len(r["curve"][0]) - 2)]]} for r in both["seeds"]],
    }
    learning.plot(one_panel, "one.png")
    assert Path("one.png").stat().st_size > 3_000
    assert call(learning, ["--replot", "--out", "x.json"], monkeypatch) == 0
    assert "steps to 95%" in capsys.readouterr().out


def test_training_times_a_shipped_policy(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    policy = ROOT / "pretrained" / "corridor-expire_span.safetensors"
    small = ["--updates", "2", "--warm-up", "1", "--num-envs", "8", "--torch-threads", "1"]
    assert call(training, [policy, *small], monkeypatch) == 0
    out = capsys.readouterr().out
    row = next(line for line in out.splitlines() if "corridor" in line or ".safetensors" in line)
    assert "resident" in out and row.count("│") == 10  # the agent and a number in each of the seven columns
    assert call(training, small, monkeypatch) == 2
    assert "expected at least one policy file" in capsys.readouterr().err


def test_throughput_says_what_each_kind_costs_and_reaches(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(throughput_kinds, "EPISODES", 20)
    monkeypatch.setattr(throughput_kinds, "RESIDENT_UPDATES", 1)
    paths = [str(ROOT / f"pretrained/corridor-{kind}.safetensors") for kind in ("expire_span", "none")]
    flags = ["--parts", "kinds", "--policies", *paths, "--updates", "1", "--warm-up", "1"]
    assert call(throughput, [*flags, "--out", str(tmp_path / "x.json")], monkeypatch) == 0
    rows = [row for row in json.loads((tmp_path / "x.json").read_text())["kinds"] if row["device"] == "cpu"]
    assert [row["memory"] for row in rows] == ["expire_span", "none"]
    for path, row in zip(paths, rows, strict=True):
        result = evaluate(load_policy(path)[0], "Corridor-v0", {}, 20)
        assert row["success"] == result["success_rate"]
        assert row["memory_kb"] == result["memory_bytes"] / 1000
        assert row["update_ms"] > 0 and row["acting_step_ms"] > 0 and row["peak_mb"] > 100
    assert rows[0]["live"] < 12 and rows[1]["live"] == 1
    assert "acting step ms" in capsys.readouterr().out


def test_the_table_shows_what_is_missing(capsys):
    """CartPole reports no success."""
    throughput._print_table("kinds", [{"task": "CartPole-v1", "success": None, "update_ms": 1234.5}])
    assert "│ CartPole-v1 │       - │" in capsys.readouterr().out


def test_scaling_measures_one_process_a_fed_learner_and_actors(tmp_path, monkeypatch, capsys):
    pytest.importorskip("ray")
    monkeypatch.chdir(tmp_path)
    policy = ROOT / "pretrained" / "corridor-expire_span.safetensors"
    small = ["--updates", "2", "--warm-up", "2", "--num-envs", "8", "--num-minibatches", "2", "--torch-threads", "1"]
    assert call(scaling, [policy, *small, "--actors", "1", "--out", "x.json", "--plot", "x.png"], monkeypatch) == 0
    metrics = json.loads(Path("x.json").read_text())
    actor = metrics["actors"]["1"]
    speeds = [metrics[name] for name in ("one_process", "learner_intake", "actor_output")]
    assert min(*speeds, actor["steps_per_second"]) > 0
    assert 0 <= actor["learner_idle"] < 1 and actor["lag"] >= 1 and metrics["rollout_bytes"] > 64 * 8 * 10
    assert "one learner can take in" in capsys.readouterr().out and Path("x.png").stat().st_size > 5_000
    assert call(scaling, [policy, "--actors", "0"], monkeypatch) == 2
    assert "--actors: expected at least 1, got 0" in capsys.readouterr().err


ROWS = {
    generalisation: generalisation.Row("gru", 1, 5, 4, 1.0, 1.0, 2.0, 2.0, 0.1, "abc"),
    coverage: coverage.Row("own", "Copy-v0", True, "", 1.0, 64, "abc"),
    chaos: chaos.Row("kills", 1, 2, "a training", True, "", 1.0, 3, "abc"),
}


@pytest.mark.parametrize("module", ROWS, ids=lambda module: module.__name__)
def test_a_damaged_csv_is_one_line(module, tmp_path):
    file = tmp_path / "results.csv"
    header = ",".join(vars(ROWS[module]))
    line = ",".join(str(value) for value in vars(ROWS[module]).values())
    file.write_text(f"{header}\n{line}\n")
    assert list(module.read_rows(file).values()) == [ROWS[module]]
    for text in (f"{header}\n{line[:9]}", f"{header}\n{line},more", f"a{header}\n{line}", f"{header}\n{line}\n\xff"):
        file.write_bytes(text.encode("latin-1"))
        with pytest.raises(cli.UsageError, match=f"results.csv: expected rows of {module.__name__}, could not read"):
            module.read_rows(file)


def test_damaged_results_are_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for text in ("{", "[]", '{"command": "x", "flags": {}, "seeds": [{"seed": 1}]}'):
        Path("x.json").write_text(text)
        assert call(learning, ["--replot", "--out", "x.json"], monkeypatch) == 2
        assert "x.json: expected results of benchmarks.learning, could not read" in capsys.readouterr().err
    assert call(learning, ["--replot", "--out", "y.json"], monkeypatch) == 2
    assert "y.json: expected results of benchmarks.learning, there is no such file" in capsys.readouterr().err
    Path("x/cells").mkdir(parents=True)
    Path("x/cells/a.json").write_bytes(b"\xff")
    assert call(sequence, ["--report", "--out", "x"], monkeypatch) == 2
    assert "x/cells/a.json: expected a cell of benchmarks.sequence" in capsys.readouterr().err
    Path("x/results.csv").write_text("kind,seed\ngru,1\n")
    assert call(generalisation, ["--report", "--out", "x"], monkeypatch) == 2
    error = capsys.readouterr().err
    assert "x/results.csv: expected rows of benchmarks.generalisation" in error and error.count("\n") == 1
