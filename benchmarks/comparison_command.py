"""The command line that continues a comparison, from the settings of its cells."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.comparison_cells import IMMATERIAL, read_cells, read_plan
from benchmarks.comparison_search import FOLDER
from benchmarks.comparison_sizes import SIZE_SETTINGS
from expire_span_rl.cli.settings import parse_config
from expire_span_rl.settings import RunConfig

SWEEP_FLAGS = {"memory", "seed", "run_dir", "resume", "overwrite", "torch_threads", "progress_bar"}
"""Settings of train_rl.py that the sweep sets itself, beside those of SIZES."""


def command(cells: Sequence[Mapping[str, Any]], out: Path) -> str:
    """The command line that continues the sweep of these cells until none is missing."""
    plan = read_plan(out, cells)
    words = ["python", "-m", "benchmarks.comparison", "--kinds", *plan["kinds"]]
    words += ["--budgets", *map(str, plan["budgets"])] if plan["budgets"] else []
    words += ["--seeds", str(plan["seeds"]), "--eval-episodes", str(cells[0]["eval_episodes"])]
    words += [] if cells[0]["eval_stochastic"] else ["--no-eval-stochastic"]
    trials = list(read_cells(out / FOLDER).values())
    if trials:  # the first ones have the settings that the search changes
        words += ["--search", str(max(trial["seed"] for trial in trials))]
        cells = [trial for trial in trials if trial["seed"] == 1]
    for flag, values in _changed_flags(cells).items():
        words += [word for value in values for word in (flag, value)] if values else [flag]
    config = cells[0]["config"]
    for name in ("env", "agent"):
        words += [] if config[name] == getattr(RunConfig, name) else [f"--{name}", config[name]]
    path = out.absolute()
    path = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else out
    return shlex.join([*words, "--out", str(path)])


def _changed_flags(cells: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """The flags of train_rl.py that these cells have beside the defaults, each with its values. A switch has none."""
    flags = {}
    for kind, config in {cell["kind"]: cell["config"] for cell in cells}.items():
        defaults = run_defaults(kind, config["env"], config["agent"])
        names = config.keys() & defaults.keys() - SWEEP_FLAGS - SIZE_SETTINGS - IMMATERIAL - {"training_kwargs"}
        for name in sorted(names):
            flag = f"--{name.replace('_', '-')}"
            value = config[name]
            if _as_list(value) == _as_list(defaults[name]):
                continue
            if isinstance(value, bool):
                flags[flag if value else flag.replace("--", "--no-", 1)] = []
            else:
                flags[flag] = [str(part) for part in _as_list(value)]
    return flags


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


@cache
def run_defaults(kind: str, env: str, agent: str) -> Mapping[str, Any]:
    """The settings of train_rl.py without further flags."""
    return parse_config(["--memory", kind, "--env", env, "--agent", agent]).flat()
