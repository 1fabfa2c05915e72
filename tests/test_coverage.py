"""benchmarks.coverage: which environments it measures, its result for one, and how it continues."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks import coverage
from expire_span_rl import cli

RUNS = "CartPole-v1"
"""An environment of Gymnasium that needs no further package."""
REFUSED = "GymV21Environment-v0"
"""An id that only says what to install."""


def run(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit code of the benchmark's command line."""
    monkeypatch.setattr(sys, "argv", ["coverage.py", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.run(coverage.main)
    return int(stop.value.code or 0)


def test_a_family_is_all_that_its_package_registers():
    gymnasium = coverage.environments("gymnasium")
    assert {RUNS, REFUSED, "Blackjack-v1", "Ant-v5", "phys2d/CartPole-v1"} <= set(gymnasium)
    minigrid, babyai = coverage.environments("minigrid"), coverage.environments("babyai")
    assert "MiniGrid-MemoryS17Random-v0" in minigrid and "BabyAI-GoToObj-v0" in babyai
    assert not set(gymnasium) & set(minigrid) and not set(minigrid) & set(babyai)
    assert (len(minigrid), len(babyai)) == (82, 96)  # of minigrid 3.2.0


def test_it_trains_evaluates_and_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    """One id runs and one does not, with its reason. Ids with a row are measured again only with --redo or --ids."""
    out = tmp_path / "coverage.csv"
    flags = ["--timesteps", "512", "--out", str(out), "--families", "gymnasium"]
    monkeypatch.setattr(coverage, "environments", lambda family: [RUNS, REFUSED])
    assert run(flags, monkeypatch) == 0
    rows = coverage.read_rows(out)
    assert list(rows) == [RUNS, REFUSED]
    assert rows[RUNS].runs and rows[RUNS].why_not == "" and rows[RUNS].timesteps == 512
    assert rows[RUNS].commit == coverage.current_commit()
    assert not rows[REFUSED].runs
    assert rows[REFUSED].why_not.startswith("train_rl: ") and "shimmy" in rows[REFUSED].why_not
    assert "traceback" not in rows[REFUSED].why_not and "\n" not in rows[REFUSED].why_not
    out_text = capsys.readouterr().out
    assert "yes" in out_text and "shimmy" in out_text

    measured_ids = []

    def measure(family, id_, config, commit):
        measured_ids.append(id_)
        return coverage.Row(
            family=family, id=id_, runs=True, why_not="", seconds=1.0, timesteps=config.timesteps, commit="later"
        )

    monkeypatch.setattr(coverage, "measure", measure)
    assert run(flags, monkeypatch) == 0 and measured_ids == []
    assert run([*flags, "--redo", "failed"], monkeypatch) == 0 and measured_ids == [REFUSED]
    new_rows = coverage.read_rows(out)
    assert new_rows[RUNS] == rows[RUNS] and new_rows[REFUSED].runs and new_rows[REFUSED].commit == "later"
    assert run([*flags, "--ids", RUNS], monkeypatch) == 0 and measured_ids == [REFUSED, RUNS]


@pytest.mark.parametrize(
    ("script", "failure"),
    [
        ("import time; time.sleep(60)", "broken: no end within 2 seconds"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "broken: ended by SIGKILL: nothing was printed"),
        ("def main(): raise ValueError('--env: no')", "broken: --env: no"),
        ("def main(): raise KeyError('x')", "broken: traceback: KeyError: 'x'"),
        ("def main(): print('done')", ""),
    ],
)
def test_the_failure_of_a_command_is_one_line(script, failure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "broken.py").write_text(script)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert coverage._run_script("broken", [], tmp_path, 2 if "no end" in failure else 60) == failure


def test_ids_are_measured_without_packages_of_others():
    config = coverage.CoverageConfig(ids=("CartPole-v1", "popgym:popgym-Autoencode-v0", "BabyAI-GoToObj-v0", "a.py:B"))
    families = [family for family, _ in coverage._missing_ids(config, {})]
    assert families == ["gymnasium", "popgym", "babyai", "other"]
