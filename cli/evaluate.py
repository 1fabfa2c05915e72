"""The command line of evaluate.py. See README.md, or --help."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from expire_span_rl import cli
from expire_span_rl.checks import (
    MOST_THREADS,
    check_at_least,
    check_at_most,
    check_seed,
    check_wraps,
    env_keywords,
    quoted,
    shown,
)
from expire_span_rl.cli.notices import plain_warnings
from expire_span_rl.files import is_stdout
from expire_span_rl.outputs import check_outputs, safe_when_stopped, write_output
from expire_span_rl.settings import MAX_STEPS

_DESCRIPTION = """
Lets saved policies play the same episodes, which no training has seen, and compares them: success, return, live
memories and speed, as tables, JSON or a plot.
"""
_EXAMPLES = (
    "runs/Corridor-v0-expire_span-ppo-1",
    "runs/a runs/b --episodes 1e4 --plot comparison.png",
    "runs/a --env-kwargs '{\"max_length\": 200}' --json results.json",
)


@dataclass(frozen=True)
class EvaluateConfig:
    policies: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Policy files or run directories."""
    env: str = ""
    """Environment id, package:Id or path/to/file.py:Id. Default: the one that the first policy was trained in."""
    imports: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(name="import")] = ()
    """Python module, or path of a file, to import first since it registers environments or memory kinds."""
    env_kwargs: str = "{}"
    """Keyword arguments of the environment, as a JSON object. They replace those of the first policy's training, name
    by name."""
    wrap: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Makes episodes longer (stretch=10, episodes=4 or fresh_episodes=4), or hides steps of them (occlude=5-9/20) or
    numbers of the observation (hide=1,3). Default: as in the first policy's training. none, alone: no wrap."""
    episodes: int = 1000
    """Episodes that each policy plays."""
    max_steps: int = MAX_STEPS
    """Most steps of an episode. The evaluation stops with an error if one is longer."""
    num_envs: int = 100
    """Environments that are stepped together. Which episodes are played depends on it."""
    seed: int = 0
    """Seed of the episodes, which are the same for every policy."""
    stochastic: bool = False
    """Sample actions from the policy instead of taking the most likely one."""
    json: str = ""
    """Write the results to this file."""
    plot: str = ""
    """Draw the results into this file (.png, .svg or .pdf)."""
    torch_threads: int = 1
    """CPU threads that PyTorch uses."""
    device: str = "cpu"
    """Where policies run: cpu, cuda, or auto (a GPU if there is one)."""

    def __post_init__(self):
        if not self.policies:
            raise ValueError("policies: expected at least one policy file or run directory, got none")
        check_at_least(self, episodes=1, num_envs=1, torch_threads=1, max_steps=1)
        check_at_most(self, torch_threads=MOST_THREADS)
        check_seed(self)
        if self.plot and Path(self.plot).suffix.lower() not in (".png", ".svg", ".pdf"):
            raise ValueError(f"--plot: expected a name that ends in .png, .svg or .pdf, got {quoted(self.plot)}")
        read = [*self.policies, *self.imports, self.env.partition(":")[0]]
        check_outputs({"--json": self.json, "--plot": self.plot}, read, kinds={"--json": ".json"})


def main() -> None:
    config = cli.parse(EvaluateConfig, sys.argv[1:], _DESCRIPTION, _EXAMPLES)
    check_wraps(config)
    kwargs = env_keywords(config)

    # Only now: importing torch takes a second, and a misspelled flag is answered without it.
    import torch

    from expire_span_rl.devices import choose_device
    from expire_span_rl.evaluation import Protocol, compare

    torch.set_num_threads(config.torch_threads)
    protocol = Protocol(config.episodes, config.seed, not config.stochastic, config.max_steps)
    with plain_warnings():
        report = compare(
            config.policies,
            protocol,
            env=config.env,
            imports=config.imports,
            env_kwargs=kwargs,
            num_envs=config.num_envs,
            device=choose_device(config.device).name,
            on_stop=lambda report: _report(config, report),
        )
    _report(config, report)


def _report(config: EvaluateConfig, report: Mapping[str, Any]) -> None:
    """Writes the files that were asked for, and prints the tables: where a file is stdout itself, on stderr."""
    from expire_span_rl.reporting import plot, print_tables

    outputs = {name: path for name, path in (("results", config.json), ("plot", config.plot)) if path}
    if report.get("stopped"):
        count = f"the first {len(report['policies'])} of {len(config.policies)} policies"
        written, line = safe_when_stopped(outputs.values(), count)
        outputs = {name: path for name, path in outputs.items() if path in written}
        print(line, file=sys.stderr)
    # Files first: whoever reads the tables may close the pipe early.
    with plain_warnings():
        if "results" in outputs:
            write_output(config.json, (json.dumps(report, indent=2) + "\n").encode())
        if "plot" in outputs:
            write_output(config.plot, plot(report, Path(config.plot).suffix[1:]))
    out = sys.stderr if any(is_stdout(path) for path in outputs.values()) else sys.stdout
    print_tables(report, out)
    for name, path in outputs.items():
        print(f"{name}: {shown(path)}", file=out)
