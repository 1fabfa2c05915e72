"""The comparison of memory kinds: sweeps that resume and refuse other settings, reports of cells, the highest score."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from script_cases import call, csv_rows

from benchmarks import comparison, comparison_cells
from benchmarks.comparison_cells import Cell
from benchmarks.comparison_report import highest, summary, write_report
from benchmarks.comparison_search import SEARCH_SEED, SWITCHES, best_trials, trial_settings
from expire_span_rl import evaluation, training
from expire_span_rl.run_directory import RunDirectory
from expire_span_rl.settings import resolve

TINY = ["--kinds", "transformer_xl", "expire_span", "none", "--budgets", "8", "--seeds", "1", "--eval-episodes", "8"]
TINY += ["--jobs", "1", "--out", "sweep", "--env-kwargs", '{"max_length": 6}', "--total-timesteps", "256"]
TINY += ["--num-envs", "8", "--num-steps", "16", "--num-minibatches", "2", "--checkpoint-every", "128"]


sweep = partial(call, comparison)


@pytest.fixture
def trainings(monkeypatch) -> list[tuple[str, bool]]:
    """(memory kind, whether it was resumed) of every training that begins."""
    result = []
    train = training.train

    def counting_train(settings, callback=None):
        result.append((settings.run.memory, bool(settings.run.resume)))
        return train(settings, callback)

    monkeypatch.setattr(training, "train", counting_train)
    return result


def interrupt_second_cell(trainings: list[tuple[str, bool]], monkeypatch) -> None:
    """Runs the sweep, which is interrupted at the first checkpoint of its second cell."""
    save = RunDirectory.save

    def save_and_interrupt(directory):
        save(directory)
        if len(trainings) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(RunDirectory, "save", save_and_interrupt)
        assert sweep(TINY, monkeypatch) == 130


def continuing_command() -> list[str]:
    """The command line in the table of the sweep."""
    return shlex.split(Path("sweep/table.md").read_text().partition("Continued by `")[2].partition("`")[0])


def test_a_sweep_is_interrupted_continued_and_extended(in_folder, trainings, monkeypatch, capsys):
    """It is continued from the checkpoint of its second cell. The first cell is not trained again."""
    interrupt_second_cell(trainings, monkeypatch)
    assert [file.name for file in Path("sweep/cells").glob("*.json")] == ["transformer_xl-8-1.json"]
    assert Path("sweep/results.csv").read_text().count("\n") == 2
    command = continuing_command()
    assert command[3:7] == ["--kinds", "expire_span", "transformer_xl", "none"]  # with the missing ones
    before = Path("sweep/cells/transformer_xl-8-1.json").read_bytes()
    capsys.readouterr()

    assert sweep(command[3:] + ["--jobs", "1"], monkeypatch) == 0
    assert trainings == [("transformer_xl", False), ("expire_span", False), ("expire_span", True), ("none", False)]
    assert Path("sweep/cells/transformer_xl-8-1.json").read_bytes() == before
    out = capsys.readouterr().out
    assert "| transformer_xl | 8 | 1 |" in out and "| none | - | 1 |" in out
    check_results()

    # Nothing is left to do. A larger sweep trains in processes of its own.
    assert sweep(TINY, monkeypatch) == 0
    assert len(trainings) == 4
    assert sweep([*TINY, "--kinds", "gru", "--seeds", "2", "--jobs", "2"], monkeypatch) == 0
    assert len(list(Path("sweep/cells").glob("*.json"))) == 5
    assert "| gru | - | 2 |" in capsys.readouterr().out


def check_results() -> None:
    """The rows and cells of the sweep with the settings TINY."""
    rows = csv_rows(Path("sweep/results.csv"))
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
    cell = json.loads(Path("sweep/cells/transformer_xl-8-1.json").read_text())
    assert cell["config"]["window"] == 7 and cell["config"]["total_timesteps"] == 256
    assert cell["evaluation"]["episodes"] == 8
    assert cell["evaluation"]["buckets"][-1]["high"] <= 6  # the environment that it was trained in


def test_a_sweep_refuses_other_settings(in_folder, trainings, monkeypatch, capsys):
    """In one line, for finished cells, for cells that have begun, and for kinds that are not there yet."""
    interrupt_second_cell(trainings, monkeypatch)
    capsys.readouterr()
    for flags, message in (
        (["--total-timesteps", "512"], "expected --total-timesteps 256"),
        (["--gamma", "0.5"], "expected --gamma 0.99"),
        (["--no-eval-stochastic"], "expected --eval-stochastic True"),
    ):
        assert sweep([*TINY, *flags], monkeypatch) == 2
        error = capsys.readouterr().err
        assert f"sweep: {message} as in its cell" in error and error.count("\n") == 1
    assert sweep([word if word != "8" else "9" for word in TINY], monkeypatch) == 2  # budget and evaluation
    assert "expected --eval-episodes 8 as in its cell transformer_xl-8-1, got 9" in capsys.readouterr().err
    for flags, message in (
        (["--env", "Portal-v0", "--env-kwargs", "{}"], "expected --env Corridor-v0 as in its cell transformer_xl-8-1"),
        (["--gating"], "expected --gating False as in its cell transformer_xl-8-1"),
    ):
        assert sweep([*TINY, "--kinds", "gru", *flags], monkeypatch) == 2
        assert message in capsys.readouterr().err
    file = Path("sweep/cells/transformer_xl-8-1.json")
    made = json.loads(file.read_text())
    del made["config"]["adaptive_lambda"]  # of before there was one: it had none
    file.write_text(json.dumps(made))
    assert sweep(TINY, monkeypatch) == 2
    assert "expected --adaptive-lambda False as in its cell transformer_xl-8-1, got True" in capsys.readouterr().err
    file.unlink()
    assert sweep([*TINY, "--kinds", "expire_span", "--gamma", "0.5"], monkeypatch) == 2
    assert "expected --gamma 0.99 as in its cell expire_span-8-1" in capsys.readouterr().err
    assert len(trainings) == 2


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--kinds", "expire-span"], "--kinds: expected one of"),
        (["--budgets", "4"], "--budgets: expected some of at least 8, got [4]"),
        (["--kinds"], "--kinds: expected some of expire_span"),
        (["--budget", "8"], "unknown flag --budget: did you mean --budgets?"),
        (["--eval-episode", "8"], "did you mean --eval-episodes?"),
        (["--eval_episodes", "0"], "--eval-episodes: expected at least 1"),
        (["--quick", "--env", "Switch-v0", "--eval-episodes", "0"], "--eval-episodes: expected at least 1"),
        (["--agent", "sb3-ppo"], "--agent: expected one that learns with any memory kind (ppo, impala), got 'sb3-ppo'"),
        (["--seeds", "0"], "--seeds: expected at least 1"),
        (
            ["--agent", "impala", "--num-actors", "2", "--ray-address", "auto"],
            "--num-actors: expected 0 with --ray-address, where each training has one CPU",
        ),
        (["--memory", "gru"], "--memory: expected only flags that the sweep leaves open"),
        (["--kinds", "transformer_xl", "--window", "9"], "it sets --window itself"),
        (["--env", "Coridor-v0"], "did you mean 'Corridor-v0'"),
        (["--env-kwargs", '{"max_length": 1}'], "max_length: expected a whole number"),
        (["--kinds", "gru", "--num-heads", "4"], "unknown flag --num-heads"),
        (["--total-timesteps", "0"], "--total-timesteps: expected at least 1"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_file(arguments, message, in_folder, monkeypatch, capsys):
    assert sweep(["--jobs", "1", *arguments], monkeypatch) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1
    assert list(in_folder.iterdir()) == []


def test_there_is_no_report_of_nothing(in_folder, monkeypatch, capsys):
    assert sweep([*TINY, "--report"], monkeypatch) == 2
    assert "expected a sweep with finished cells, sweep has none" in capsys.readouterr().err
    assert list(in_folder.iterdir()) == []


def test_a_sweep_is_one_process_alone(in_folder, monkeypatch, capsys):
    Path("sweep/runs").mkdir(parents=True)
    Path("sweep/cells").mkdir()
    with Path("sweep/runs/.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert sweep(TINY, monkeypatch) == 2
    assert "a sweep runs in sweep" in capsys.readouterr().err
    assert not list(Path("sweep/cells").iterdir())


ONE = ["--kinds", "none", *TINY[4:]]


def test_what_is_named_twice_is_trained_once(in_folder):
    config = comparison.ComparisonConfig(kinds=("none", "transformer_xl", "none"), budgets=(8, 16, 8), seeds=1)
    cells = comparison.Sweep(config, ["--total-timesteps", "256", "--num-envs", "8"], Path("sweep")).cells()
    assert [str(cell) for cell in cells] == ["none-any-1", "transformer_xl-8-1", "transformer_xl-16-1"]


def test_a_budget_sets_what_an_environment_would_set_otherwise():
    """Portal sets a margin of 3 and span dropout. With a budget, memories that the margin keeps would count."""
    config = comparison.ComparisonConfig(kinds=("expire_span",), budgets=(16,))
    sweep = comparison.Sweep(config, ["--env", "Portal-v0"], Path("nowhere"))
    settings = sweep.run_settings(Cell("expire_span", 16, 1))
    assert settings.memory.use_margin == 0.25 and settings.memory.span_dropout is False
    assert settings.network.shifted_heads == 2


def test_a_report_needs_the_cells_only(in_folder, monkeypatch, capsys):
    """A report needs no other flag than --out, and its command continues the sweep. An old cell without some flag still
    counts. JSON that is no cell is named."""
    assert sweep(ONE, monkeypatch) == 0
    table = Path("sweep/table.md").read_text()
    command = continuing_command()
    assert command[:3] == ["python", "-m", "benchmarks.comparison"]
    assert "--env-kwargs" in command and "--num-envs" in command
    file = Path("sweep/cells/none-any-1.json")
    cell = json.loads(file.read_text())
    assert cell["config"].pop("observation_prediction_coef") == 0
    cell["config"]["env_kwargs"] = '{"max_length":6}'
    file.write_text(json.dumps(cell))
    monkeypatch.setattr(training, "train", None)  # nothing is to be trained
    assert sweep(command[3:], monkeypatch) == 0
    Path("sweep/table.md").unlink()
    file.write_text(json.dumps({**cell, "config": {**cell["config"], "env_kwargs": '{"max_length": 6}'}}))
    assert sweep(["--report", "--out", "sweep"], monkeypatch) == 0
    assert Path("sweep/table.md").read_text() == table
    assert sweep([*ONE, "--report"], monkeypatch) == 0
    capsys.readouterr()
    for flag, message in (
        ("--gamma=0.5", "expected --gamma 0.99"),
        ("--gamma=x", "--gamma"),
        ("--gama=1", "did you mean"),
    ):
        assert sweep([*ONE, "--report", flag], monkeypatch) == 2
        assert message in capsys.readouterr().err
    assert sweep([*ONE, "--observation-prediction-coef", "0.5"], monkeypatch) == 2
    assert "expected --observation-prediction-coef 0.0 as in its cell" in capsys.readouterr().err
    # Old cells were evaluated with the most likely actions. The command continues them in the same way.
    file.write_text(json.dumps({name: value for name, value in cell.items() if name != "eval_stochastic"}))
    assert sweep(ONE, monkeypatch) == 2
    assert "expected --eval-stochastic False as in its cell" in capsys.readouterr().err
    assert sweep(["--report", "--out", "sweep"], monkeypatch) == 0
    assert "--eval-episodes 8 --no-eval-stochastic" in Path("sweep/table.md").read_text()
    for broken in ("{", "[]", json.dumps({**cell, "kind": "lstn"}), json.dumps({**cell, "config": None})):
        file.write_text(broken)
        assert sweep(ONE, monkeypatch) == 2
        error = capsys.readouterr().err
        assert "none-any-1.json: expected a cell of a sweep" in error and error.count("\n") == 1
    file.write_text(json.dumps(cell))
    for broken in ("{", "[]", '{"kinds": ["none"], "budgets": [], "seeds": null}'):
        Path("sweep/plan.json").write_text(broken)
        assert sweep(ONE, monkeypatch) == 2
        error = capsys.readouterr().err
        assert "plan.json: expected the plan of a sweep" in error and error.count("\n") == 1
        assert Path("sweep/plan.json").read_text() == broken


def test_an_interrupted_sweep_of_several_processes_writes_checkpoints(in_folder):
    """The signal goes to the sweep, as with Ctrl-C, and the sweep ends its workers."""
    length = ["--total-timesteps", "100_000_000", "--checkpoint-every", "100_000_000"]
    command = [sys.executable, "-m", "benchmarks.comparison", *ONE, "--jobs", "2", "--seeds", "2", *length]
    path = {**os.environ, "PYTHONPATH": str(Path(comparison.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    # Tests that a shell starts in the background ignore SIGINT, and so would the sweep.
    accept_interrupt = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        env=path,
        preexec_fn=accept_interrupt,  # noqa: PLW1509, there are no threads here
    )
    logs = [Path(f"sweep/runs/none-any-{seed}/progress.csv") for seed in (1, 2)]
    deadline = time.time() + 60
    try:
        while not all(log.is_file() and log.stat().st_size for log in logs):
            assert time.time() < deadline and process.poll() is None
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        error = process.communicate(timeout=60)[1]
    finally:
        process.kill()  # its workers end with it
    assert process.returncode == 130
    assert "Traceback" not in error and error.rstrip().endswith("error: interrupted")
    assert all(log.with_name("checkpoint.safetensors").is_file() for log in logs)


def test_a_flag_goes_to_the_kinds_that_have_it(in_folder, monkeypatch, capsys):
    """The command in the table has it too, and the agent."""
    kinds = ["--kinds", "transformer_xl", "gru", *TINY[4:], "--gating", "--agent", "impala"]
    assert sweep(kinds, monkeypatch) == 0
    cells = {
        name: json.loads(Path(f"sweep/cells/{name}-1.json").read_text()) for name in ("transformer_xl-8", "gru-any")
    }
    assert cells["transformer_xl-8"]["config"]["gating"] is True and "gating" not in cells["gru-any"]["config"]
    command = continuing_command()
    assert "--gating" in command and command[command.index("--agent") + 1] == "impala"
    monkeypatch.setattr(training, "train", None)  # nothing is to be trained
    assert sweep(command[3:], monkeypatch) == 0
    assert sweep(["--kinds", "transformer_xl", "gru", *TINY[4:], "--agent", "impala"], monkeypatch) == 2
    assert "expected --gating True as in its cell transformer_xl-8-1" in capsys.readouterr().err


def test_every_kind_gets_the_same_search_and_the_settings_of_its_best_trial(in_folder, trainings, monkeypatch, capsys):
    """Trials are trained once, all are in trials.csv, and the command in the table continues the sweep."""
    search = ["--kinds", "transformer_xl", "gru", *TINY[4:], "--search", "3"]
    assert sweep(search, monkeypatch) == 0
    assert [kind for kind, _ in trainings] == ["transformer_xl", "gru"] * 4
    trials = csv_rows(Path("sweep/trials.csv"))
    assert [(trial["kind"], trial["budget"], trial["trial"]) for trial in trials] == [
        *(("gru", "", str(number)) for number in (1, 2, 3)),
        *(("transformer_xl", "8", str(number)) for number in (1, 2, 3)),
    ]
    changes = {(trial["kind"], int(trial["trial"])): json.loads(trial["settings"]) for trial in trials}
    assert changes["gru", 1] == changes["transformer_xl", 1] == {}
    for number in (2, 3):
        shared = [
            {name: value for name, value in changes[kind, number].items() if name not in SWITCHES}
            for kind in ("gru", "transformer_xl")
        ]
        assert shared[0] == shared[1] != {}
    for kind, budget in (("gru", ""), ("transformer_xl", "8")):
        (chosen,) = [trial for trial in trials if trial["kind"] == kind and trial["chosen"] == "True"]
        best = max((float(trial["success"]), -int(trial["trial"])) for trial in trials if trial["kind"] == kind)
        assert float(chosen["success"]) == best[0]
        cell = json.loads(Path(f"sweep/cells/{kind}-{budget or 'any'}-1.json").read_text())["config"]
        assert cell["seed"] == 1
        assert changes[kind, int(chosen["trial"])].items() <= cell.items()
        trial = json.loads(Path(f"sweep/search/cells/{kind}-{budget or 'any'}-{chosen['trial']}.json").read_text())
        assert trial["config"] == {**cell, "seed": SEARCH_SEED}
    assert "Search: 3 trials of each kind" in Path("sweep/table.md").read_text()
    command = continuing_command()
    assert command[command.index("--search") + 1] == "3" and "--learning-rate" not in command
    monkeypatch.setattr(training, "train", None)  # nothing is to be trained
    assert sweep(command[3:], monkeypatch) == 0
    assert sweep([*search, "--report"], monkeypatch) == 0
    assert sweep(["--report", "--out", "sweep"], monkeypatch) == 0
    capsys.readouterr()
    assert sweep([*search, "--gamma", "0.5"], monkeypatch) == 2
    assert "expected --gamma 0.99 as in its cell" in capsys.readouterr().err


def test_trials_keep_the_number_of_updates_and_whole_minibatches():
    """All kinds get the same learning rate, entropy bonus and length of rollouts, and each a switch of its own."""
    kinds = ("expire_span", "lstm", "lru", "none")
    seen: dict[str, set] = {}
    for number in range(1, 40):
        shared = []
        for kind in kinds:
            settings = resolve(kind, "Switch-v0")
            changed = settings.replace(**trial_settings(settings, number))
            assert changed.agent.num_steps * changed.run.num_envs == 64 * 128
            assert changed.run.num_envs % changed.agent.num_minibatches == 0
            flat = changed.flat()
            shared.append([flat[name] for name in ("learning_rate", "ent_coef", "final_ent_coef", "num_steps")])
            for name in SWITCHES:
                seen.setdefault(f"{kind} {name}", set()).add(flat.get(name))
        assert shared == [shared[0]] * len(kinds)
        seen.setdefault("rates", set()).add(shared[0][0])
    assert seen["rates"] == {5e-4, 1e-3, 2e-3, 4e-3}
    assert seen["expire_span gating"] == seen["lstm layer_norm"] == {False, True}
    assert seen["lru layer_norm"] == {None}
    few = resolve("gru", num_envs=4, num_minibatches=4)
    assert all("num_envs" not in trial_settings(few, number) for number in range(1, 40))


@pytest.mark.parametrize("stochastic", [True, False])
def test_a_cell_is_evaluated_with_the_chosen_kind_of_actions(stochastic, in_folder, monkeypatch):
    calls = []
    evaluate = evaluation.evaluate

    def recording_evaluate(*arguments, deterministic, **kwargs):
        calls.append(deterministic)
        return evaluate(*arguments, deterministic=deterministic, **kwargs)

    monkeypatch.setattr(evaluation, "evaluate", recording_evaluate)
    assert sweep([*ONE, *([] if stochastic else ["--no-eval-stochastic"])], monkeypatch) == 0
    assert calls == [not stochastic]
    assert json.loads(Path("sweep/cells/none-any-1.json").read_text())["eval_stochastic"] is stochastic


def test_metrics_of_an_evaluation():
    result = {
        "success_rate": 0.5, "mean_return": 2.0, "memory_efficiency": None, "live_memories_mean": [3.0, 5.0],
        "live_memories_max": [7, 9], "memory_bytes": 11.0, "acting_steps_per_second": 13.0,
    }  # fmt: skip
    assert comparison_cells.evaluation_metrics(result) == {
        "success": 0.5, "return": 2.0, "memory_efficiency": None, "live_mean": 4.0, "live_peak": 9, "bytes": 11.0,
        "acting_steps_per_second": 13.0,
    }  # fmt: skip
    without = comparison_cells.evaluation_metrics({**result, "live_memories_mean": [], "live_memories_max": []})
    assert without["live_mean"] is without["live_peak"] is None


def test_training_minutes_are_those_of_the_log_without_pauses(tmp_path):
    (tmp_path / "progress.csv").write_text("time/fps,time/total_timesteps,time/episodes\n2,120,1\n1,240,2\n")
    metrics = comparison_cells.training_metrics(tmp_path, resolve(num_steps=12, num_envs=10))
    speed = pytest.approx(240 / 180)
    assert metrics == {"training_minutes": 3.0, "training_steps_per_second": speed, "best_epoch": None}


def test_the_best_epoch_is_the_best_mean_of_65536_steps(tmp_path):
    """By hand: points up to 65,536 belong to the first epoch, that one included. The third has not ended."""
    first, second = [[30_000, None, 0.5], [65_536, None, 0.7]], [[65_537, None, 0.9], [131_072, None, 0.1]]
    third = [[140_000, None, 3.0]]
    assert comparison_cells.best_epoch([*first, *second, *third]) == pytest.approx(0.6)
    assert comparison_cells.best_epoch(first) == pytest.approx(0.6)
    assert comparison_cells.best_epoch(third) is comparison_cells.best_epoch([]) is None
    assert comparison_cells.best_epoch([[65_536, 0.5, None]]) is None  # no returns
    header = "time/fps,time/total_timesteps,time/episodes,rollout/ep_rew_mean\n"
    (tmp_path / "progress.csv").write_text(header + "1,32768,99,5\n1,65536,100,0.25\n")  # too few episodes at first
    assert comparison_cells.training_metrics(tmp_path, resolve())["best_epoch"] == 0.25


def test_a_folder_that_is_no_sweep_is_refused_and_kept(in_folder, monkeypatch, capsys):
    Path("sweep").mkdir()
    Path("sweep/notes.txt").write_text("notes")
    assert sweep(TINY, monkeypatch) == 2
    assert "expected a new directory or one of a sweep" in capsys.readouterr().err
    assert [file.name for file in Path("sweep").iterdir()] == ["notes.txt"]


def scored_cell(kind, budget, success, live, seed=1):
    """A finished cell with these figures only. live: mean over the two layers."""
    none = dict.fromkeys(("return", "memory_efficiency", "live_peak", "bytes", "training_minutes"))
    none |= dict.fromkeys(("training_steps_per_second", "acting_steps_per_second"))
    metrics = {**none, "success": success, "live_mean": live}
    evaluation = {"live_memories_mean": [live - 1, live + 1]}
    return {**Cell(kind, budget, seed)._asdict(), "figures": metrics, "evaluation": evaluation}


def test_there_is_no_figure_where_no_kind_has_a_size(tmp_path):
    """An older figure goes, too."""
    sized = scored_cell("a", 8, 0.9, 4) | {"policy_timesteps": 10}
    sized["figures"]["live_peak"] = 5
    write_report(tmp_path, "Corridor-v0", [sized], "command")
    assert (tmp_path / "success.png").stat().st_size > 10_000
    write_report(tmp_path, "Corridor-v0", [{**sized, "budget": None}], "command")
    assert not (tmp_path / "success.png").exists() and "| a |" in (tmp_path / "table.md").read_text()


def test_the_highest_score_must_be_within_the_budget():
    """A kind whose live memories exceed a budget does not count there, even if its success is higher."""
    cell = scored_cell
    rows = summary([cell("a", 8, 0.9, 7.5), cell("a", 16, 0.9, 9), cell("b", 8, 1.0, 8.5), cell("b", 16, 0.9, 16)])
    assert highest(rows) == {8: ["a"], 16: ["a", "b"]}
    assert [row["layers"] for row in rows] == [[6.5, 8.5], [8, 10], [7.5, 9.5], [15, 17]]
    # Every seed must be within the budget. Kinds whose intervals overlap are listed together, the highest first.
    rows = summary([cell("a", 8, 1, 4), cell("a", 8, 1, 9, 2), cell("b", 8, 0.5, 4), cell("b", 8, 0.7, 4, 2)])
    assert highest(rows) == {8: ["b"]}
    seeds = [
        (kind, success, i)
        for kind, both in (("a", (0.6, 0.8)), ("b", (0.7, 0.9)), ("c", (0.1, 0.2)))
        for i, success in enumerate(both)
    ]
    assert highest(summary([cell(kind, 8, success, 4, i) for kind, success, i in seeds])) == {8: ["b", "a"]}
    # A cell without a success rate counts as 0, if others have one.
    mean, low, high = summary([cell("a", 8, 0.9, 4), cell("a", 8, None, 4, 2)])[0]["success"]
    assert (mean, low, high) == (pytest.approx(0.45), 0, 0.9)


def trial_of(number: int, success: float | None, value: float) -> dict:
    return {"kind": "gru", "seed": number, "figures": {"success": success, "return": value, "live_mean": None}}


def test_a_trial_that_never_succeeded_is_not_ranked_by_its_return():
    """The environment reports success only where there is one."""
    trials = [trial_of(1, None, 12.0), trial_of(2, 0.95, 20.0), trial_of(3, 0.5, 30.0)]
    assert [each["seed"] for each in best_trials(trials)] == [2]
    assert [each["seed"] for each in best_trials([trial_of(1, None, 12.0), trial_of(2, None, 20.0)])] == [2]
