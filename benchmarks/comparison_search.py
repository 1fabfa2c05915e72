"""The same small search for every memory kind of benchmarks.comparison: random choices of the learning rate, entropy
bonus and length of rollouts, which all kinds share trial by trial, and of gates or layer normalisation.

The first trial has the sweep's own settings. All trials are on a seed that no reported cell has, at the largest budget.
They are cells too, in the folder search/ of the sweep, with the number of the trial in place of the seed.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks.cells import csv_text
from benchmarks.comparison_cells import read_cells
from expire_span_rl.policies.io import write_atomically
from expire_span_rl.settings import Settings

FOLDER = "search"
SEARCH_SEED = 1001
RATES = (1.0, 0.5, 2.0, 4.0)
"""Factors on the learning rate."""
ENTROPIES: Sequence[Mapping[str, float]] = (
    {},
    {"ent_coef": 0.03, "final_ent_coef": 0.01},
    {"ent_coef": 0.003, "final_ent_coef": 0.001},
)
LENGTHS = (1, 2, 4)
"""Factors on the steps of a rollout. There are as many fewer environments, so that the number of updates stays."""
SWITCHES = ("gating", "layer_norm")
"""Settings that are tried both ways by the kinds that have them."""
COLUMNS = (
    "kind", "budget", "trial", "chosen", "settings", "success", "return", "live_mean", "training_minutes", "commit",
)  # fmt: skip


def trial_settings(settings: Settings, number: int) -> dict[str, Any]:
    """What trial `number`, from 1 on, changes of a kind's settings. The first changes nothing. Of one number all kinds
    get the same shared choices."""
    if number == 1:
        return {}
    flat = settings.flat()
    shared = list(itertools.product(RATES, ENTROPIES, LENGTHS))[1:]  # without the settings as they are
    random.Random(0).shuffle(shared)
    rate, entropy, length = shared[(number - 2) % len(shared)]
    changes: dict[str, Any] = {"learning_rate": flat["learning_rate"] * rate, **entropy}
    most = flat["num_envs"] // flat["num_minibatches"]  # a minibatch holds whole environments
    if length <= most:
        changes |= {"num_steps": flat["num_steps"] * length, "num_envs": flat["num_envs"] // length}
    own = random.Random(f"{settings.run.memory} {number}")
    changes |= {name: own.choice((False, True)) for name in SWITCHES if name in flat}
    return {name: value for name, value in changes.items() if value != flat[name]}


def chosen_settings(trials: Sequence[Mapping[str, Any]], settings: Mapping[str, Settings]) -> dict[str, dict[str, Any]]:
    """What the best of the trials changes of each kind's settings, by kind."""
    return {trial["kind"]: trial_settings(settings[trial["kind"]], trial["seed"]) for trial in best_trials(trials)}


def scores_of(trials: Sequence[Mapping[str, Any]]) -> list[float]:
    """The success of each trial, or the return where no episode of any trial reports success. Trials without any report
    then did not succeed."""
    if all(trial["figures"]["success"] is None for trial in trials):
        return [trial["figures"]["return"] for trial in trials]
    return [trial["figures"]["success"] or 0.0 for trial in trials]


def best_trials(trials: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The trial of each kind with the highest success, or return where no episode reports success. Of equal ones it is
    the one with the fewest live memories, then the first."""

    def rank(scored: tuple[float, Mapping[str, Any]]) -> tuple[float, float, int]:
        score, trial = scored
        return -round(score, 4), trial["figures"]["live_mean"] or 0.0, trial["seed"]

    scored = sorted(zip(scores_of(trials), trials, strict=True), key=lambda pair: pair[1]["kind"])
    return [min(group, key=rank)[1] for _, group in groupby(scored, lambda pair: pair[1]["kind"])]


def write_trials(out: Path) -> str:
    """Writes trials.csv of the sweep in `out`, a row for each trial. Returns what the table says of the search, empty
    if there was none."""
    trials = list(read_cells(out / FOLDER).values())
    if not trials:
        return ""
    first = {trial["kind"]: trial["config"] for trial in trials if trial["seed"] == 1}
    best = {(trial["kind"], trial["seed"]) for trial in best_trials(trials)}
    rows = []
    for trial in sorted(trials, key=lambda trial: (trial["kind"], trial["seed"])):
        base = first.get(trial["kind"], trial["config"])
        changes = {name: value for name, value in trial["config"].items() if value != base.get(name) and name != "seed"}
        chosen = (trial["kind"], trial["seed"]) in best
        row = {"trial": trial["seed"], "chosen": chosen, "settings": json.dumps(changes)}
        rows.append({**trial, **trial["figures"], **row, "budget": trial["budget"] or ""})
    write_atomically(out / "trials.csv", csv_text(COLUMNS, rows).encode())
    count = max(row["trial"] for row in rows)
    chosen = "; ".join(f"{row['kind']}: {_changes_text(row['settings'])}" for row in rows if row["chosen"])
    return f"Search: {count} trials of each kind on seed {SEARCH_SEED} (trials.csv). Chosen: {chosen}."


def _changes_text(settings: str) -> str:
    changes = json.loads(settings)
    return ", ".join(f"{name} {value:g}" for name, value in changes.items()) or "the settings as they are"
