"""The table of tasks: cells of several tasks in one directory, rows of cells, and what is refused."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
from functools import partial
from pathlib import Path

import pytest
from script_cases import ROOT, call, csv_rows

from benchmarks import comparison_cells, task_list, tasks
from benchmarks.task_list import TASKS
from benchmarks.tasks import EndAfter
from benchmarks.tasks_report import overall, plot, rows_of, summary, write_report
from expire_span_rl import training
from expire_span_rl.agents.checkpoint import checkpoint_bytes

TINY = ["--tasks", "CartPole-v1", "Corridor-v0", "--kinds", "lstm", "none", "--seeds", "1", "--eval-episodes", "8"]
TINY += ["--jobs", "1", "--out", "table", "--num-envs", "8", "--num-steps", "16", "--num-minibatches", "2"]
TINY += ["--total-timesteps", "256"]

table = partial(call, tasks)


def test_a_table_is_interrupted_continued_and_extended(in_folder, monkeypatch, capsys):
    """It is interrupted in its third cell, and the two finished cells are not trained again. Then a task, a kind and a
    seed are added."""
    trainings = []
    train = training.train

    def interrupted_train(settings, callback):
        run = settings.run
        trainings.append((run.env, run.memory, run.seed))
        if len(trainings) == 3:
            raise KeyboardInterrupt
        return train(settings, callback)

    monkeypatch.setattr(training, "train", interrupted_train)
    assert table(TINY, monkeypatch) == 130
    assert Path("table/results.csv").read_text().count("\n") == 3
    assert table(TINY, monkeypatch) == 0
    order = [(env, kind, 1) for env in ("CartPole-v1", "Corridor-v0") for kind in ("lstm", "none")]
    assert trainings == [*order[:3], *order[2:]]
    out = capsys.readouterr().out
    assert "| CartPole-v1 | 0.00M | return 475 | lstm | 1 |" in out and "probability that lstm scores higher" in out
    before = Path("table/CartPole-v1/cells/lstm-any-1.json").read_bytes()
    larger = ["--tasks", "CartPole-v1", "TMaze-50", "--kinds", "lru", "lstm", "--seeds", "2", *TINY[8:]]
    assert table([*larger, "--jobs", "2"], monkeypatch) == 0
    assert Path("table/CartPole-v1/cells/lstm-any-1.json").read_bytes() == before
    rows = csv_rows(Path("table/results.csv"))
    assert [(r["task"], r["kind"], r["seed"]) for r in rows] == [
        *(("CartPole-v1", kind, seed) for kind, seed in (("lstm", "1"), ("lstm", "2"), ("lru", "1"), ("lru", "2"))),
        ("CartPole-v1", "none", "1"),
        *(("TMaze-50", kind, seed) for kind in ("lstm", "lru") for seed in "12"),
        *(("Corridor-v0", kind, "1") for kind in ("lstm", "none")),
    ]
    assert Path("table/tasks.png").stat().st_size > 10_000
    cell = json.loads(before)
    assert cell["config"]["env"] == "CartPole-v1" and cell["config"]["normalize_rewards"] is True  # its own default
    tmaze = json.loads(Path("table/TMaze-50/cells/lru-any-2.json").read_text())
    assert json.loads(tmaze["config"]["env_kwargs"]) == {"length": 50} and tmaze["config"]["seed"] == 2

    trainings.clear()
    assert table([*TINY, "--tasks", "CartPole-v1", "--kinds", "none", "--first-seed", "3"], monkeypatch) == 0
    assert trainings == [("CartPole-v1", "none", 3)]

    capsys.readouterr()
    assert table([*TINY, "--gamma", "0.5"], monkeypatch) == 2
    error = capsys.readouterr().err
    assert "table/CartPole-v1: expected --gamma 0.99 as in its cell" in error and error.count("\n") == 1
    assert table(["--report", "--out", "table"], monkeypatch) == 0
    assert "| TMaze-50 |" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--tasks", "CartPole"], "--tasks: expected one of CartPole-v1"),
        (["--tasks"], "--tasks: expected some of CartPole-v1"),
        (["--kinds", "lstmm"], "did you mean 'lstm'?"),
        (["--env", "Corridor-v0"], "--env: expected only flags that tasks leave open, a task sets --env itself"),
        (["--first-seed", "0"], "--first-seed: expected at least 1, got 0"),
        (["--end-after", "0.5"], "--end-after: expected 0, or 1 or more, got 0.5"),
        (["--env-kwargs={}"], "--env-kwargs: expected only flags that tasks leave open"),
        (["--wrap", "episodes=2"], "--wrap: expected only flags that tasks leave open"),
        (["--memory", "gru"], "--memory: expected only flags that the sweep leaves open"),
        (["--seed", "2"], "--seed: expected only flags that the sweep leaves open"),
        (["--total-timestep", "1"], "did you mean --total-timesteps?"),
        (["--report", "--out", "nowhere"], "--report: expected a directory with finished cells, nowhere has none"),
    ],
)
def test_bad_input_is_refused(arguments, message, in_folder, monkeypatch, capsys):
    """In one line, before anything is written."""
    assert table(arguments, monkeypatch) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert list(Path().iterdir()) == []


def test_a_training_ends_after_its_target(in_folder, monkeypatch, capsys):
    """The target, a return of 1, is reached as soon as enough episodes have ended, and the training goes on for twice
    as long. Its cell says so. A training that does not reach its target has all of its steps."""
    monkeypatch.setitem(TASKS, "CartPole-v1", dataclasses.replace(TASKS["CartPole-v1"], target=1.0))
    flags = ["--kinds", "none", "--end-after", "2", "--total-timesteps", "20000"]
    assert table(["--tasks", "CartPole-v1", "TMaze-50", *TINY[3:-2], *flags], monkeypatch) == 0
    output = capsys.readouterr().out
    assert "| CartPole-v1 | 0.02M | return 1 | none | 1 * |" in output
    assert "| TMaze-50 | 0.02M | return 0.99 | none | 1 |" in output
    cartpole, tmaze = csv_rows(Path("table/results.csv"))
    run = Path("table/CartPole-v1/runs/none-any-1/progress.csv")
    before = run.read_bytes()
    Path("table/CartPole-v1/cells/none-any-1.json").unlink()  # as if it was killed while it evaluated
    assert table(["--tasks", "CartPole-v1", *TINY[3:-2], *flags], monkeypatch) == 0
    assert run.read_bytes() == before
    steps_to_target = float(cartpole["steps_to_target"])
    assert 128 < steps_to_target < 9_000 and float(cartpole["trained_timesteps"]) == 2 * steps_to_target
    assert float(tmaze["trained_timesteps"]) == float(tmaze["timesteps"]) == 20_000


def test_when_a_training_ends(tmp_path):
    """One and a half times the steps at which the mean of enough episodes was at the target. A resumed training knows
    from its log that it was."""

    def metrics(steps: int, mean_return: float | str, episodes: int = 100) -> dict:
        return {"time/total_timesteps": steps, "time/episodes": episodes, "rollout/ep_rew_mean": mean_return}

    task = TASKS["CartPole-v1"]
    goes_on = EndAfter(task, 1.5, tmp_path)
    updates = [(100, 480.0, 99), (200, 470.0), (300, 480.0), (400, 10.0), (450, 10.0)]
    assert [goes_on(metrics(*update)) for update in updates] == [True, True, True, True, False]
    assert EndAfter(task, 1.5, tmp_path)(metrics(600, 10.0))

    (tmp_path / "progress.csv").write_text(
        "time/total_timesteps,time/episodes,rollout/success_rate,rollout/ep_rew_mean\n"
        "100,,,\n200,100,,475\n400,100,,1\n"
    )
    assert EndAfter(task, 1.5, tmp_path)(metrics(600, 10.0))  # of a training that begins anew
    checkpoint = tmp_path / "checkpoint.safetensors"
    checkpoint.write_bytes(checkpoint_bytes({}, {"counters": {"timesteps": 200}}))
    goes_on = EndAfter(task, 1.5, tmp_path)
    assert goes_on(metrics(250, 10.0)) and not goes_on.has_ended and not goes_on(metrics(300, 10.0))
    assert goes_on.has_ended
    checkpoint.write_bytes(checkpoint_bytes({}, {"counters": {"timesteps": 400}}))
    assert EndAfter(task, 1.5, tmp_path).has_ended
    checkpoint.write_bytes(b"damaged")
    assert not EndAfter(task, 1.5, tmp_path).has_ended


def test_another_directory_is_left_alone(in_folder, monkeypatch, capsys):
    Path("table").mkdir()
    Path("table/thesis.tex").write_text("x")
    assert table(TINY, monkeypatch) == 2
    assert "--out: expected a new directory or one of this benchmark, table is another" in capsys.readouterr().err
    assert [path.name for path in Path("table").iterdir()] == ["thesis.tex"]


def test_a_task_whose_package_is_missing_is_left_out(in_folder, monkeypatch, capsys):
    """One line says so. Without any other task there is nothing to do."""
    task = task_list.BenchmarkTask("no_such_package:X-v0", 100, None, top=1.0, package="no_such_package")
    monkeypatch.setitem(TASKS, "CountRecallEasy", task)
    assert table(["--tasks", "CountRecallEasy", *TINY[3:]], monkeypatch) == 2
    missing, error = capsys.readouterr().err.splitlines()
    assert missing.startswith(
        "no_such_package is not installed (pip install no_such_package): left out are CountRecallEasy"
    )
    assert "expected at least one whose package is installed" in error


def cell(kind: str, seed: int, value: float, curve: list, **metrics: float) -> dict:
    """A finished cell in which success and return are `value`."""
    defaults = {
        "live_mean": None,
        "live_peak": None,
        "bytes": 1.0,
        "training_minutes": 2.0,
        "training_steps_per_second": 3.0,
    }
    return {
        "kind": kind,
        "seed": seed,
        "figures": {**defaults, "success": value, "return": value, **metrics},
        "curve": curve,
        "config": {"total_timesteps": 100},
        "commit": "abc",
    }


def test_a_row_of_a_cell():
    """Values by hand: the final value of the evaluation, the best point of the training and the first at the target.
    The score lies between the task's floor and its target."""
    curve = [[10, None, 20.0], [20, None, 480.0], [30, None, 490.0], [40, None, 300.0]]
    (row,) = rows_of({"CartPole-v1": [cell("lstm", 1, 237.5, curve)]})
    assert (row["final"], row["best"], row["steps_to_target"], row["score"]) == (237.5, 490.0, 20, 0.5)
    (row,) = rows_of({"Corridor-v0": [cell("lstm", 1, 0.5, [[10, 0.9, 0.99], [20, 0.94, 1.0]])]})
    assert (row["measure"], row["best"], row["steps_to_target"]) == ("success", 0.94, None)
    (row,) = rows_of({"Corridor-v0": [cell("lstm", 1, 0.5, [], success=None)]})  # no episode succeeded
    assert (row["final"], row["best"], row["score"]) == (0, None, 0)
    (row,) = rows_of({"CountRecallEasy": [cell("lstm", 1, 0.5, [[10, None, 0.9]])]})  # no target: between -1 and 1
    assert (row["target"], row["steps_to_target"], row["score"]) == (None, None, 0.75)
    assert [TASKS["Acrobot-v1"].score(value) for value in (-600, -500, -300, -50)] == [0, 0, 0.5, 1]


def test_the_summary_of_rows():
    """Values by hand: three seeds of one kind, of which two reach the target, and the tasks that both kinds have."""
    curves = [[[10, None, 480.0]], [[30, None, 480.0]], [[10, None, 50.0]]]
    rows = rows_of(
        {
            "CartPole-v1": [
                *(cell("lstm", i, value, curves[i], live_mean=4.0 + i) for i, value in enumerate((475, 475, 0))),
                cell("none", 1, 475, []),
            ],
            "MemoryS7": [cell("lstm", 1, 0.9, [])],  # without the kind "none"
            "Corridor-v0": [cell("lstm", 1, 0.95, []), cell("none", 1, 0.475, [])],
        }
    )
    lstm, none, *_ = summary(rows)
    assert (lstm["seeds"], lstm["reached"], lstm["steps_to_target"]) == (3, 2, 20)
    assert lstm["live_mean"][0] == 5 and lstm["final"][0] == pytest.approx(950 / 3)  # of three nothing is trimmed
    assert (none["seeds"], none["reached"], none["steps_to_target"], none["best"]) == (1, 0, None, None)
    tasks, kinds = overall(rows)
    assert tasks == ["CartPole-v1", "Corridor-v0"] and [row["kind"] for row in kinds] == ["lstm", "none"]
    assert kinds[0]["score"][0] == 1 and kinds[0]["probability"] is None  # 1, 1, 1, 0 without the ends
    assert kinds[1]["score"][0] == pytest.approx(0.75)
    assert kinds[1]["probability"][0] == pytest.approx((1 / 3 + 1) / 2)  # two ties and a loss; a win
    assert overall([row for row in rows if row["task"] == "MemoryS7" or row["kind"] == "none"]) == ([], [])
    assert overall([row for row in rows if row["task"] != "Corridor-v0"]) == ([], [])  # one common task of two
    assert overall([row for row in rows if row["task"] == "CartPole-v1"])[0] == ["CartPole-v1"]


@pytest.mark.parametrize("kind, code", [("expire_span", 0), ("gru", 2)])
def test_a_kind_is_not_mixed_with_cells_of_other_defaults(kind, code, in_folder, monkeypatch, capsys):
    """The committed cells of the GRU are from before lambda was adaptive. Those of other kinds are left alone."""
    shutil.copytree(ROOT / "benchmarks/results/tasks/MemoryS7", "out/MemoryS7")
    monkeypatch.setattr(tasks, "run", lambda sweeps, config: None)
    assert call(tasks, ["--tasks", "MemoryS7", "--kinds", kind, "--seeds", "9", "--out", "out"], monkeypatch) == code
    error = capsys.readouterr().err
    assert ("expected --adaptive-lambda False as in its cell gru-any-1" in error) == (code == 2)


def test_steps_to_the_target_are_those_of_every_update(tmp_path):
    """The curve of a cell has up to 250 points of a training. What is noted of all updates counts."""
    coarse = cell("lstm", 1, 475, [[10, None, 470.0], [30, None, 480.0]])
    (row,) = rows_of({"CartPole-v1": [coarse]})
    assert (row["steps_to_target"], row["best"]) == (30, 480)
    coarse["figures"] |= TASKS["CartPole-v1"].progress([[10, None, 470.0], [20, None, 490.0], [30, None, 480.0]])
    (row,) = rows_of({"CartPole-v1": [coarse]})
    assert (row["steps_to_target"], row["best"]) == (20, 490)


def test_kinds_are_compared_with_the_first_in_their_order():
    """Though the first task has no cell of it."""
    cells = {
        "CartPole-v1": [cell("gru", 1, 475, [])],
        "Acrobot-v1": [cell("expire_span", 1, -90, []), cell("gru", 1, -90, [])],
    }
    cells["CartPole-v1"].append(cell("expire_span", 1, 475, []))
    _, kinds = overall(rows_of(cells))
    assert [row["kind"] for row in kinds] == ["expire_span", "gru"] and kinds[0]["probability"] is None


def test_the_table_of_what_is_solved(tmp_path):
    """Of the first kind: two of three seeds came to the target, after 10 and 30 steps."""
    curves = [[[10, None, 480.0]], [[30, None, 480.0], [100, None, 9.0]], [[100, None, 50.0]]]
    cells = [cell("lstm", i, value, curve) for i, (value, curve) in enumerate(zip((475, 480, 20), curves, strict=True))]
    cells[2]["commit"] = "def"
    tasks = {"CartPole-v1": [*cells, cell("none", 1, 9, [])], "CountRecallEasy": [cell("lstm", 1, 0.1, [])]}
    write_report(tmp_path, tasks, "command")
    lines = (tmp_path / "table.md").read_text().splitlines()
    begin = lines.index("| task | steps | target | solved | after | final | live | commit |")
    assert lines[begin + 2 : begin + 4] == [
        "| CartPole-v1 * | 0.0001M | return 475 | 2 of 3 | 0.00M | 325 | - | abc, def |",
        "",
    ]


def test_the_readme_shows_the_table_as_it_is():
    """Each row of its table of others' tasks is one of the report."""
    folder = ROOT / "benchmarks/results/tasks"
    report = set((folder / "table.md").read_text().splitlines())
    readme = (ROOT / "README.md").read_text()
    lines = readme[readme.index("## Others' tasks") :].splitlines()
    begin = next(i for i, line in enumerate(lines) if line.startswith("|"))
    rows = list(itertools.takewhile(lambda line: line.startswith("|"), lines[begin:]))
    assert len(rows) > 10
    assert [row for row in rows if row not in report] == []


def test_published_figures_stand_beside_the_best_epochs(tmp_path):
    """Two of three seeds came to the published mean, which has three decimals. The epochs of the fourth, an old cell,
    are not known. Tasks and kinds without such figures are left out."""
    epochs = (0.5084, 0.5086, 0.8)
    cells = [cell("lstm", i, 0.1, [], best_epoch=value) for i, value in enumerate(epochs)]
    tasks = {"CountRecallEasy": [*cells, cell("lstm", 4, 0.1, []), cell("none", 1, 0.1, [])]}
    write_report(tmp_path, {**tasks, "CartPole-v1": [cell("lstm", 1, 475, [], best_epoch=475.0)]}, "command")
    table = (tmp_path / "table.md").read_text()
    rows = table[table.index("| task | memory | seeds | best epoch |") :].splitlines()[2:]
    assert rows[0].startswith("| CountRecallEasy | lstm | 3 | 0.606 [") and rows[0].endswith("| 0.509 | 2 of 3 |")
    assert rows[1] == "" and rows[2].startswith("Last call:")
    assert TASKS["CartPole-v1"].published is None
    write_report(tmp_path, {"CountRecallEasy": [cell("lstm", 4, 0.1, [])]}, "command")
    assert "best epoch |" not in (tmp_path / "table.md").read_text()


@pytest.mark.parametrize(("task", "panels"), [("CartPole-v1", 2), ("Corridor-v0", 1)])
def test_the_figure_compares_kinds_only_over_tasks_that_all_have(task, panels, tmp_path, monkeypatch):
    """The right panel would be empty otherwise."""
    from matplotlib.figure import Figure

    counts = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (counts.append(len(self.axes)), save(self, *a, **k)))
    cells = {"CartPole-v1": [cell("lstm", 1, 475, [])]}
    cells.setdefault(task, []).append(cell("none", 1, 0.9, []))
    plot(rows_of(cells), tmp_path / "figure.png")
    assert counts == [panels]
    assert (tmp_path / "figure.png").stat().st_size


def test_a_learning_curve_is_thinned_and_begins_with_enough_episodes(tmp_path, monkeypatch):
    """Every second of five updates with enough episodes, from the last one back."""
    lines = ["time/total_timesteps,time/episodes,rollout/success_rate,rollout/ep_rew_mean"]
    lines += [f"{100 * i},{40 * i},{'' if i < 5 else 0.5},{i / 3}" for i in range(1, 8)]
    (tmp_path / "progress.csv").write_text("\n".join(lines) + "\n")
    monkeypatch.setattr(comparison_cells, "CURVE_POINTS", 3)
    curve = comparison_cells.thinned(comparison_cells.curve_points(tmp_path))
    assert curve == [[300, None, 1.0], [500, 0.5, 1.6667], [700, 0.5, 2.3333]]
