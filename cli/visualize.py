"""The command line of visualize.py. See README.md, or --help."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from expire_span_rl import cli
from expire_span_rl.checks import (
    EPISODE_SEED_BITS,
    check_at_least,
    check_seed,
    check_wraps,
    env_keywords,
    quoted,
    shown,
)
from expire_span_rl.cli.notices import plain_warnings
from expire_span_rl.files import last_name
from expire_span_rl.outputs import check_outputs, safe_when_stopped
from expire_span_rl.settings import MAX_STEPS

if TYPE_CHECKING:
    from expire_span_rl.visualization import Showing

PICTURES = (".png", ".pdf", ".svg")
MOST_TABLES = 10  # episodes of which each has its own table on the terminal

_DESCRIPTION = """
Lets a saved policy play an episode and shows what it saw, did and remembered, and whether that mattered: as a page
for the browser, a figure or a film.
"""
_EXAMPLES = (
    "runs/Corridor-v0-expire_span-ppo-1",
    "policy.safetensors --seed 3 --out memory.png",
    "runs/a --episodes 5 --video episode.mp4 --json memory.json",
)


@dataclass(frozen=True)
class VisualizeConfig:
    path: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PATH")]
    """Policy file or run directory."""
    env: str = ""
    """Environment id, package:Id or path/to/file.py:Id. Default: the one the policy was trained in."""
    imports: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(name="import")] = ()
    """Python module, or path of a file, to import first since it registers environments or memory kinds."""
    env_kwargs: str = "{}"
    """Keyword arguments of the environment, as a JSON object. In the policy's own environment they replace those of its
    training, name by name."""
    wrap: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Makes episodes longer (stretch=10, episodes=4 or fresh_episodes=4), or hides steps of them (occlude=5-9/20) or
    numbers of the observation (hide=1,3). Default: as in the policy's training. none, alone: no wrap."""
    seed: int = 0
    """Seed of the first episode. The next ones have seed + 1, seed + 2 and so on. A training with --seed 0 begins
    with the same seeds. No training has those from 1e12 to 2e18."""
    episodes: int = 1
    """Episodes in --json and in the table of what is kept. The page has the first 50, figure and film the first."""
    stochastic: bool = False
    """Sample actions from the policy instead of taking the most likely one."""
    max_steps: int = MAX_STEPS
    """Most steps of an episode. The command stops with an error if one is longer."""
    audit: int = 3
    """At every decision, measure whether it changes without each of the most attended memories: this many of them. 0:
    no measurement."""
    out: str = "memory.html"
    """File to write: the page (.html), or the figure (.png, .pdf, .svg)."""
    png: str = ""
    """Also write the figure to this file (.png, .pdf or .svg)."""
    video: str = ""
    """Also write the episode as a film to this file (.mp4)."""
    json: str = ""
    """Also write every number of the page to this file (.json)."""

    def __post_init__(self):
        check_seed(self, bits=EPISODE_SEED_BITS)
        check_at_least(self, max_steps=1, episodes=1, audit=0)
        _check_ending("--out", self.out, (".html", *PICTURES))
        for flag, endings in (("png", PICTURES), ("video", (".mp4",)), ("json", (".json",))):
            if getattr(self, flag):
                _check_ending(f"--{flag}", getattr(self, flag), endings)
        outputs = {f"--{flag}": getattr(self, flag) for flag in ("out", "png", "video", "json")}
        check_outputs(outputs, [self.path, *self.imports, self.env.partition(":")[0]])

    def outputs(self) -> list[str]:
        """All files that are written."""
        return [path for path in (self.out, self.png, self.video, self.json) if path]


def _check_ending(flag: str, path: str, endings: tuple[str, ...]) -> None:
    """Raises ValueError unless `path` ends in one of these."""
    if Path(path).suffix.lower() not in endings:
        raise ValueError(f"{flag}: expected a file name that ends in {' or '.join(endings)}, got {quoted(path)}")


def main() -> None:
    config = cli.parse(VisualizeConfig, sys.argv[1:], _DESCRIPTION, _EXAMPLES)
    check_wraps(config)
    kwargs = env_keywords(config)

    # Only now: importing torch takes a second, and a misspelled flag is answered without it.
    import torch
    from rich.console import Console
    from rich.progress import Progress

    from expire_span_rl.envs import import_modules
    from expire_span_rl.policies import load_policy
    from expire_span_rl.viewer.video import check_video
    from expire_span_rl.visualization import environment_for, show_in

    if config.video:
        check_video()
    os.environ.setdefault("XDG_RUNTIME_DIR", tempfile.gettempdir())  # SDL, which draws some environments, asks for it
    torch.set_num_threads(1)  # the fastest for a batch of one
    import_modules(config.imports)  # before the policy is read, whose memory kind one may register
    policy, info = load_policy(config.path)
    options: dict[str, Any] = {
        "deterministic": not config.stochastic,
        "max_steps": config.max_steps,
        "audit": config.audit,
    }
    few = config.episodes <= MOST_TABLES
    with plain_warnings(), Progress(console=Console(stderr=True), transient=True, disable=few) as progress:
        name, env = environment_for(
            policy, info, config.path, env=config.env, imports=config.imports, env_kwargs=kwargs
        )
        task = progress.add_task("episodes", total=config.episodes)
        options["after_episode"] = lambda: progress.advance(task)

        def stopped(showing: Showing) -> None:
            progress.stop()
            count = f"the first {len(showing.episodes)} of {config.episodes} episodes"
            paths, line = safe_when_stopped(config.outputs(), count)
            print(line, file=sys.stderr)
            _report(config, name, showing, paths)

        options["on_stop"] = stopped
        label = last_name(config.path)
        showing = show_in(policy, env, name, label, seed=config.seed, episodes=config.episodes, **options)
    env.close()
    _report(config, name, showing, config.outputs())


def _report(config: VisualizeConfig, name: str, showing: Showing, paths: Sequence[str]) -> None:
    """Writes the files at `paths`, and prints the tables. name: of the environment."""
    from expire_span_rl.reporting import console
    from expire_span_rl.viewer.audit import table
    from expire_span_rl.viewer.summary import kinds_table

    with plain_warnings():
        for path in paths:
            showing.save(path)
    out = console()
    for trouble in sorted({played.film.trouble for played in showing.episodes if played.film.trouble}):
        print(f"{name}: the world is not shown ({shown(trouble)})", file=sys.stderr)
    for played in showing.episodes if config.episodes <= MOST_TABLES else ():
        if played.record["audit"]["memories"]:
            out.print(table(played.record))
    summary = showing.summary
    if config.episodes > 1 and summary["kinds"]:
        out.print(kinds_table(summary, name))
    where = f" -> {', '.join(shown(path) for path in paths)}" if paths else ""
    print(f"{shown(showing.title)}{where}")
