"""Trains an agent: environments, policy and trainer from the settings, then update after update, into a run directory."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from expire_span_rl.agents.rollout import RolloutsEnded
from expire_span_rl.building import Run, build, run_dir_of
from expire_span_rl.envs import EnvironmentFailed, importable
from expire_span_rl.interrupts import Interrupted, finishing
from expire_span_rl.run_directory import RunDirectory, check_run_dir


def train(config: dict[str, Any]) -> Path:
    """Runs the training of `config` (`settings.resolve`) and returns its run directory. `config["resume"]` continues the run
    in that directory. Raises KeyboardInterrupt, RolloutsEnded and EnvironmentFailed after the checkpoint was written."""
    path, resuming = run_dir_of(config), bool(config["resume"])
    check_run_dir(path, resuming, config["overwrite"])
    if resuming and (names := [*config.get("imports", ()), *filter(None, [importable(config["env"])])]):
        say(f"imports {', '.join(names)}, as when the run began")
    run = build(config, say=say)
    try:
        _train(run, path, resuming)
    finally:
        run.trainer.close()
    return path


def _train(run: Run, path: Path, resuming: bool) -> None:
    """Trains what was built, and says so."""
    trainer, config = run.trainer, run.config
    if resuming:
        directory, goes_on = RunDirectory.resume(path, run)
        if not goes_on:
            say("the environments' state was not saved: they begin new episodes")
    else:
        directory = RunDirectory.begin(path, run)
    asked = config["total_timesteps"]
    if trainer.total_timesteps != asked:
        say(f"total timesteps rounded up from {asked:,} to {trainer.total_timesteps:,}, whole rollouts")
    size = sum(p.numel() for p in run.policy.parameters())
    say(f"{config['env']}, {config['memory']} memory, {config['agent']}, {size:,} parameters -> {path}")
    began = time.time()
    learn(run, directory, progress_bar=config["progress_bar"])
    say(f"trained {trainer.timesteps:,} steps in {(time.time() - began) / 60:.1f} minutes")
    best, file = trainer.best, path / "policy.safetensors"
    if best is None:
        say(f"{file}: the last policy")
        return
    live = "" if best["live"] is None else f" with {best['live']:.1f} live memories per layer"
    say(f"{file}: the policy of step {best['timesteps']:,}, {best['score']:.1%} on the hard episodes{live}")


def learn(
    run: Run,
    directory: RunDirectory | None = None,
    callback: Callable[[dict[str, float]], Any] | None = None,
    progress_bar: bool = False,
) -> None:
    """Updates until the trainer's total is reached, or `callback`, which gets each update's figures, returns False. What is
    unfinished is saved in `directory`. Raises KeyboardInterrupt, RolloutsEnded and EnvironmentFailed after that."""
    trainer = run.trainer
    ended: RuntimeError | None = None
    with finishing(trainer.stop) as asked, tqdm(
        total=trainer.total_timesteps, initial=trainer.timesteps, unit="step", unit_scale=True,
        disable=not progress_bar, dynamic_ncols=True, mininterval=1,
    ) as bar:  # fmt: skip
        going = True
        while going and not (trainer.done or trainer.stop.is_set()):
            try:
                figures = trainer.update()
            except (RolloutsEnded, EnvironmentFailed) as error:
                ended = error
                break
            if directory is not None:
                directory.record(figures)
            bar.update(trainer.rollout_size)
            bar.set_postfix_str(_short(figures))
            going = callback is None or callback(figures) is not False
        if directory is not None:
            if not trainer.done:
                directory.save()
                say(f"stopped after {trainer.timesteps:,} steps; --resume {directory.path} goes on")
            directory.close()
    if trainer.done:
        return
    if trainer.stop.is_set():
        raise Interrupted(asked.signum or signal.SIGINT)
    if ended is not None:
        raise ended


def say(text: str) -> None:
    """A line on stderr, above the progress bar."""
    tqdm.write(text, file=sys.stderr)


def _short(figures: Mapping[str, float]) -> str:
    """A few figures for the progress bar."""
    shown = {
        "success": "rollout/success_rate",
        "hard": "rollout/hard_score",
        "return": "rollout/ep_rew_mean",
        "live": "memory/live_mean",
        "pressure": "memory/pressure",
    }
    if "rollout/success_rate" in figures:
        del shown["return"]
    return " ".join(f"{name} {figures[key]:.3g}" for name, key in shown.items() if key in figures)
