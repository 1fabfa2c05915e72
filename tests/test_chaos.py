"""benchmarks.chaos: changes depend only on the random numbers, rows resume, and differences are found."""

from __future__ import annotations

import json
import random
import shutil
import sys
from pathlib import Path

import pytest
from file_cases import WHOLE, contents, header

from benchmarks import chaos, chaos_mutations, chaos_runs, chaos_trial
from expire_span_rl import cli


def run(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit code of the benchmark's command line."""
    monkeypatch.setattr(sys, "argv", ["chaos.py", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.run(chaos.main)
    return int(stop.value.code or 0)


def test_rows_continue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    """A trial that has a row is not tried again unless it failed. A trial that raises an error does not end the
    others."""
    trials = []

    def try_kills(trial: chaos_trial.Trial) -> chaos_trial.Outcome:
        trials.append((trial.number, trial.random.random()))
        if trial.number == 1:
            raise KeyError("x")
        return chaos_trial.Outcome("case", "" if trial.number else "lost\nall", trial.trials)

    monkeypatch.setitem(chaos.PARTS, "kills", (3, try_kills))
    flags = ["--parts", "kills", "--out", str(tmp_path)]
    assert run([*flags, "--kills", "8"], monkeypatch) == 0
    rows = chaos.read_rows(tmp_path / "trials.csv")
    assert {number: (row.trials, row.held, row.why_not) for (_, number), row in rows.items()} == {
        0: (3, False, "lost all"),
        1: (3, False, "the trial itself failed: KeyError: 'x'"),
        2: (2, True, ""),
    }
    assert "kills 0 (case): lost all" in capsys.readouterr().out
    summary = json.loads((tmp_path / "summary.json").read_text())["kills"]
    assert (summary["trials"], summary["rows"], summary["rows that did not hold"]) == (8, 3, 2)
    first_trials = list(trials)
    trials.clear()
    assert run([*flags, "--kills", "12", "--redo", "failed"], monkeypatch) == 0
    assert [number for number, _ in trials] == [0, 1, 2, 3]  # the third had 2 trials only
    assert trials[:3] == first_trials  # with the same random numbers
    trials.clear()
    assert run([*flags, "--kills", "12"], monkeypatch) == 0 and not trials


def test_every_kind_agent_and_task_is_killed():
    names = [case.name for case in chaos_runs.cases()]
    assert len(set(names)) == len(names) == 5 * (2 * 8 + 2) + 8
    assert {chaos_runs.case_of(i).name for i in range(len(names))} == set(names)
    words = [chaos_runs.case_of(i).name.split() for i in range(34)]  # of 100 kills, three in each training
    assert [len(set(column)) for column in zip(*words, strict=True)] == [6, 10, 5]


def test_lines_that_a_terminal_cannot_show_are_found():
    assert chaos_trial.line_problem("a\tb\n" + "x" * 300) == ""
    assert chaos_trial.line_problem("x" * 301).startswith("a line of 301 characters")
    assert chaos_trial.line_problem("\x1b[31m").startswith("a line that a terminal would act on")
    assert chaos_trial.line_problem("Traceback (most recent call last):\n  x\nKeyError: 3") == "traceback: KeyError: 3"


def test_a_process_is_ended_and_its_files_are_limited(tmp_path: Path):
    """A script that is not there, one that writes too much."""
    (tmp_path / "big.py").write_text("open('big', 'wb').write(b'x' * 100_000)")
    script = str(tmp_path / "big.py")
    assert chaos_trial.run([], tmp_path, script).code == 0 and (tmp_path / "big").stat().st_size == 100_000
    result = chaos_trial.run([], tmp_path, str(tmp_path / "none.py"))
    assert result.problem(0).startswith("exit code 2 instead of 0: ")
    (tmp_path / "slow.py").write_text("import time; time.sleep(60)")
    assert chaos_trial.run([], tmp_path, str(tmp_path / "slow.py"), limit=1).code == -9


@pytest.fixture
def two_runs(run_dir: Path, tmp_path: Path) -> tuple[Path, Path]:
    """The same run twice."""
    for name in ("a", "b"):
        shutil.copytree(run_dir, tmp_path / name)
    return tmp_path / "a", tmp_path / "b"


def test_differences_between_two_runs_are_found(two_runs):
    run_dir, reference_dir = two_runs
    assert chaos_runs.difference(run_dir, reference_dir) == ""
    log = (run_dir / "progress.csv").read_text()
    (run_dir / "progress.csv").write_text(log[: log.rindex("\n", 0, -1) + 1])
    assert chaos_runs.difference(run_dir, reference_dir).startswith("the log has ")
    (run_dir / "progress.csv").write_text(log)
    policy = run_dir / "policy.safetensors"
    policy.write_bytes(contents(header()))
    assert chaos_runs.difference(run_dir, reference_dir) == "policy.safetensors differs"
    shutil.copy(reference_dir / "policy.safetensors", policy)
    shutil.copy(run_dir / "checkpoint-1.safetensors", run_dir / "checkpoint.safetensors")
    assert chaos_runs.difference(run_dir, reference_dir).endswith(("of the checkpoint differs", "only once"))
    (run_dir / "notes.txt").write_text("mine")
    assert chaos_runs.difference(run_dir, reference_dir) == "notes.txt was left"


@pytest.mark.parametrize("change", [*chaos_mutations.BYTES, "header", "table", "tensor"])
def test_changes_depend_only_on_the_random_numbers(change, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The same random numbers give the same bytes, which differ from the file's. Every kind of change occurs."""
    contents_seen = set()
    for seed in range(400):
        results = []
        for name in ("a", "b"):
            folder = tmp_path / f"{seed}{name}"
            (folder / "run").mkdir(parents=True)
            (folder / "run" / "policy.safetensors").write_bytes(WHOLE.read_bytes())
            rng = random.Random(seed)
            monkeypatch.setattr(rng, "choices", lambda *arguments: ["policy.safetensors"])
            results.append(chaos_mutations.change_file(rng, folder))
            if not results[0][2].endswith(f": {change}"):
                break
        if len(results) == 2:
            files = [(tmp_path / f"{seed}{name}" / "run" / "policy.safetensors").read_bytes() for name in ("a", "b")]
            assert files[0] == files[1] and results[0] == results[1]
            contents_seen.add(files[0])
        if len(contents_seen) > 1:
            assert WHOLE.read_bytes() not in contents_seen
            return
    pytest.fail("this change was never drawn")


def test_command_lines_depend_only_on_the_random_numbers(tmp_path: Path):
    draws = [chaos_mutations.change_command(random.Random(seed), tmp_path) for seed in range(300)]
    assert draws == [chaos_mutations.change_command(random.Random(seed), tmp_path) for seed in range(300)]
    assert len({(script, tuple(words)) for script, words, _ in draws}) > 280
    assert {script for script, _, _ in draws} == {"train_rl", "evaluate", "visualize"}
    assert not any(word == ".." for _, words, _ in draws for word in words)
