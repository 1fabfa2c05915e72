"""The scripts' command lines, called in this process, and small settings for them."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

import pytest

from expire_span_rl import cli
from expire_span_rl.agents import Trainer
from expire_span_rl.agents.episodes import MOST_ROLLOUTS
from expire_span_rl.building import build
from expire_span_rl.periodic_evaluation import PeriodicEvaluation
from expire_span_rl.settings import Settings

ROOT = Path(__file__).parents[1]
SMALL = ["--num-envs", "8", "--num-steps", "16", "--num-minibatches", "2", "--torch-threads", "1", "--no-progress-bar"]
SHORT = ["--env-kwargs", '{"max_length": 6}']
FORGETFUL = ["--min-hard-episodes", "1", "--success-target", "0.01"]
"""With these a run forgets, and keeps a policy, from its first updates on."""


def call(script: ModuleType, arguments: Iterable[object], monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit code of a script's command line."""
    monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.run(script.main)
    return int(stop.value.code or 0)


def log(run_dir: Path) -> list[dict[str, str]]:
    """The rows of a run's progress.csv."""
    return csv_rows(run_dir / "progress.csv")


def csv_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file with a header."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def before_an_evaluation(settings: Settings, score: float, *, reports_success: bool) -> Trainer:
    """A trainer after its first update, whose policy is kept if it passes an evaluation. score: of 1,000 hard
    episodes."""
    run = build(settings)
    PeriodicEvaluation(run, print)
    trainer = run.trainer
    trainer.update()
    trainer.window.hard_score = lambda: (score, 1000)
    trainer.window.reports_success = reports_success
    trainer.window.live.extend([5.0] * MOST_ROLLOUTS)
    return trainer
