"""Trains an agent: environments, policy and trainer from the settings, then update after update, into a run
directory."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from expire_span_rl.agents.guard import TrainingEnded
from expire_span_rl.building import Run, build, run_dir_of
from expire_span_rl.envs import EnvironmentFailed, importable
from expire_span_rl.interrupts import Interrupted, finishing
from expire_span_rl.locks import FileLock
from expire_span_rl.periodic_evaluation import PeriodicEvaluation
from expire_span_rl.preflight import preflight, speed
from expire_span_rl.run_directory import DirectoryFailed, RunDirectory, WeightsLost, take_lock
from expire_span_rl.run_files import MARKER, check_run_dir
from expire_span_rl.saying import listening, say
from expire_span_rl.settings import length_flag


def train(config: dict[str, Any]) -> Path:
    """Runs the training of `config` (`settings.resolve`) and returns its run directory. `config["resume"]` continues
    the run in that directory. Raises KeyboardInterrupt, TrainingEnded, EnvironmentFailed, DirectoryFailed and
    WeightsLost after what can be saved was saved."""
    path, resuming = run_dir_of(config), bool(config["resume"])
    check_run_dir(path, resuming, config["overwrite"])
    # Of a run that is there the lock is taken at once: who comes second need not wait until everything is built.
    lock = take_lock(path) if resuming or (path / MARKER).is_file() else None
    lines: list[str] = []
    try:
        with listening(lines.append):
            if resuming and path.is_symlink():
                say(f"{path} is a link to {path.resolve()}, where the run goes on")
            if resuming and (names := [*config.get("imports", ()), *filter(None, [importable(config["env"])])]):
                say(f"imports {', '.join(names)}, as when the run began")
            run = build(config, say=say)
        try:
            _train(run, path, resuming, lock, lines)
        finally:
            run.trainer.close()
    finally:
        if lock is not None:
            lock.release()
    return path


def _train(run: Run, path: Path, resuming: bool, lock: FileLock | None, lines: list[str]) -> None:
    """Trains what was built, and says so. lines: what has been said before there was a directory."""
    trainer, config = run.trainer, run.config
    with listening(lines.append):
        if resuming:
            directory, goes_on = RunDirectory.resume(path, run, lock)
            for note in trainer.notes:
                say(note)
            if not goes_on:
                say("the environments' state was not saved: they begin new episodes")
        else:
            directory = RunDirectory.begin(path, run, lock)
    began, quiet = time.time(), config.get("quiet", False)
    with directory.training(lines):
        asked = config["total_timesteps"]
        if trainer.total_timesteps != asked:
            say(f"total timesteps rounded up from {asked:,} to {trainer.total_timesteps:,}, whole rollouts")
        if not quiet:
            for line in preflight(run, path):
                say(line)
        if trainer.done:
            name, _ = length_flag(config)
            say(f"{path} is trained for all its {trainer.timesteps:,} steps: {name} MORE trains on")
        learn(run, directory, None if quiet else speed(say, run), config["progress_bar"])
        _say_result(run, path, time.time() - began)


def _say_result(run: Run, path: Path, seconds: float) -> None:
    """What was trained, and which policy the run's is."""
    trainer = run.trainer
    say(f"trained {trainer.timesteps:,} steps in {seconds / 60:.1f} minutes")
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
    """Updates until the trainer's total is reached, or `callback`, which gets each update's figures, returns False.
    What is unfinished is saved in `directory`. Raises KeyboardInterrupt, TrainingEnded, EnvironmentFailed,
    DirectoryFailed and WeightsLost after that."""
    trainer, evaluation = run.trainer, PeriodicEvaluation(run, say)
    ended: Exception | None = None
    with finishing(trainer.stop) as asked, tqdm(
        total=trainer.total_timesteps, initial=trainer.timesteps, unit="step", unit_scale=True,
        disable=not progress_bar, dynamic_ncols=True, mininterval=1,
    ) as bar:  # fmt: skip
        going = True
        try:
            while going and not (trainer.done or trainer.stop.is_set()):
                figures = trainer.update()
                figures |= evaluation.metrics()
                if directory is not None:
                    directory.record(figures)
                bar.update(trainer.rollout_size)
                bar.set_postfix_str(_short(figures))
                going = callback is None or callback(figures) is not False
        except (TrainingEnded, EnvironmentFailed, DirectoryFailed, WeightsLost) as error:
            ended = error
        if directory is not None:
            ended = directory.end(ended)
    if ended is not None and not (trainer.stop.is_set() and isinstance(ended, TrainingEnded)):
        raise ended
    if trainer.stop.is_set() and not trainer.done:
        raise Interrupted(asked.signum or signal.SIGINT)


def _short(figures: Mapping[str, float]) -> str:
    """A few figures for the progress bar."""
    shown = {
        "success": "rollout/success_rate",
        "hard": "rollout/hard_score",
        "eval": "eval/success_rate",
        "return": "rollout/ep_rew_mean",
        "live": "memory/live_mean",
        "pressure": "memory/pressure",
    }
    if "rollout/success_rate" in figures:
        del shown["return"]
    return " ".join(f"{name} {figures[key]:.3g}" for name, key in shown.items() if key in figures)
