"""Trains an agent: builds environments, policy and trainer from the settings, then runs update after update, and writes
a run directory."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from expire_span_rl.agents import AGENTS
from expire_span_rl.agents.guard import TrainingEnded
from expire_span_rl.building import Run, build, run_dir_of
from expire_span_rl.envs import importable
from expire_span_rl.interrupts import Interrupted, finishing
from expire_span_rl.locks import FileLock
from expire_span_rl.messages import listening, say
from expire_span_rl.periodic_evaluation import PeriodicEvaluation
from expire_span_rl.preflight import check_rollout_fits, preflight, speed
from expire_span_rl.run_directory import RunDirectory, take_lock
from expire_span_rl.run_files import MARKER, check_run_dir
from expire_span_rl.settings import Settings, length_flag


def train(settings: Settings, callback: Callable[[dict[str, float]], Any] | None = None) -> Path:
    """Runs a training and returns its run directory. `settings.run.resume` continues the run in that directory.
    `callback` gets the metrics of each update, and ends the training by returning False.

    Raises KeyboardInterrupt, TrainingEnded, EnvironmentFailed, DirectoryFailed, WeightsLost, and whatever else ends the
    training, such as what `callback` raises (SystemExit too), after saving what can be saved."""
    path, resuming = run_dir_of(settings), bool(settings.run.resume)
    check_run_dir(path, resuming, settings.run.overwrite)
    # An existing run is locked at once, so that a second process is refused before it builds everything.
    lock = take_lock(path) if resuming or (path / MARKER).is_file() else None
    lines: list[str] = []
    try:
        with listening(lines.append):
            if resuming and path.is_symlink():
                say(f"{path} is a link to {path.resolve()}, where the run goes on")
            env, imports = settings.importable_names()
            if resuming and (names := [*imports, *filter(None, [importable(env)])]):
                say(f"imports {', '.join(names)}, as when the run began")
            run = build(settings, say=say, times_devices=True)
        try:
            _train(run, path, resuming, lock, lines, callback)
        finally:
            run.trainer.close()
    finally:
        if lock is not None:
            lock.release()
    return path


def _train(
    run: Run,
    path: Path,
    resuming: bool,
    lock: FileLock | None,
    lines: list[str],
    callback: Callable[[dict[str, float]], Any] | None,
) -> None:
    """Trains what was built. lines: messages from before there was a directory."""
    trainer, settings = run.trainer, run.settings.run
    check_rollout_fits(run)  # before a run is replaced, as is whatever else can fail
    size_lines = [] if resuming or settings.quiet else preflight(run, path)
    with listening(lines.append):
        directory = _resume(path, run, lock) if resuming else RunDirectory.begin(path, run, lock)
    began, steps_before = time.time(), trainer.timesteps
    trainer.log_dir = path
    with directory.training(lines):
        requested = settings.total_timesteps
        if trainer.total_timesteps != requested:
            say(f"total timesteps rounded up from {requested:,} to {trainer.total_timesteps:,}, whole rollouts")
        if resuming and not settings.quiet:
            size_lines = preflight(run, path)
        for line in size_lines:
            say(line)
        if trainer.done:
            name, _ = length_flag(run.settings)
            where = " in train_sequence.py" if name == "--total-blocks" else ""
            say(f"{path} is trained for all its {trainer.timesteps:,} steps: {name} MORE trains on{where}")
        report_speed = None if settings.quiet else speed(say, run)

        def after_update(metrics: dict[str, float]) -> Any:
            if report_speed is not None:
                report_speed(metrics)
            return callback is None or callback(metrics)

        learn(run, directory, after_update, settings.progress_bar)
        if trainer.timesteps > steps_before:
            seconds = time.time() - began
            so_far = "" if not steps_before else f", {trainer.timesteps:,} so far"
            say(f"trained {trainer.timesteps - steps_before:,} steps in {seconds / 60:.1f} minutes{so_far}")
        _say_result(run, path)


def _resume(path: Path, run: Run, lock: FileLock | None) -> RunDirectory:
    """The directory of a run that goes on, and what has changed."""
    directory, goes_on = RunDirectory.resume(path, run, lock)
    for note in run.trainer.notes:
        say(note)
    if not goes_on:
        say("the environments' state was not saved: they begin new episodes")
    return directory


def _say_result(run: Run, path: Path) -> None:
    """Reports which policy the run has."""
    trainer = run.trainer
    unfinished = trainer.unfinished()
    if unfinished is not None:
        say(unfinished)
    best, file = trainer.best, path / "policy.safetensors"
    if best is None:
        settings = run.settings.run
        chooses = settings.eval_every and AGENTS[settings.agent].takes_memory_kind  # baselines keep their last policy
        why = ", since none meets the target in training and in an evaluation" if chooses else ""
        say(f"{file}: the last policy{why}")
        return
    live = "" if best.live is None else f" with {best.live:.1f} live memories per layer"
    forgetting = run.settings.forgetting
    episodes = "the latest hard episodes" if trainer.env.metadata.get("difficulty_key") else "the latest episodes"
    if best.is_success:
        score = f"{best.score:.1%} success in {episodes}"
    elif forgetting is not None and forgetting.loss_tolerance:
        score = f"{-best.score:.3g} bits per answer"
    else:
        score = f"a return of {best.score:.4g} in {episodes}"
    say(f"{file}: the policy of step {best.timesteps:,}, {score}{live}")


def learn(
    run: Run,
    directory: RunDirectory | None = None,
    callback: Callable[[dict[str, float]], Any] | None = None,
    progress_bar: bool = False,
) -> None:
    """Updates until the trainer's total is reached, or `callback`, which gets each update's metrics, returns False.

    Saves the state in `directory` at the end, also of a training that did not reach its total. Raises
    KeyboardInterrupt, TrainingEnded, EnvironmentFailed, DirectoryFailed, WeightsLost and whatever `callback` raises,
    SystemExit too, after that. A KeyboardInterrupt that is raised itself, as by the second Ctrl-C, saves nothing."""
    trainer, evaluation = run.trainer, PeriodicEvaluation(run, say)
    ended: Exception | SystemExit | None = None
    with finishing(trainer.stop) as request, tqdm(
        total=trainer.total_timesteps, initial=trainer.timesteps, unit="step", unit_scale=True,
        disable=not progress_bar, dynamic_ncols=True, mininterval=1,
    ) as bar:  # fmt: skip
        going = True
        try:
            metrics_before = _missing_evaluation(run, evaluation, directory)
            while going and not (trainer.done or trainer.stop.is_set()):
                metrics = metrics_before | trainer.update() | evaluation.metrics()
                metrics_before = {}
                if directory is not None:
                    directory.record(metrics)
                bar.update(trainer.rollout_size)
                bar.set_postfix_str(_summary(metrics))
                going = callback is None or callback(metrics) is not False
        # What a callback raises, also by sys.exit, must not cost what was learned. A second Ctrl-C ends it at once.
        except (Exception, SystemExit) as error:  # noqa: BLE001
            ended = error
        if directory is not None:
            ended = directory.end(ended)
    if ended is not None and not (trainer.stop.is_set() and isinstance(ended, TrainingEnded)):
        raise ended
    if trainer.stop.is_set() and (evaluation.was_stopped or not trainer.done):
        if directory is not None and evaluation.was_stopped:
            say(f"the evaluation after {trainer.timesteps:,} steps was given up: --resume {directory.path} makes it")
        raise Interrupted(request.signum or signal.SIGINT)


def _missing_evaluation(run: Run, evaluation: PeriodicEvaluation, directory: RunDirectory | None) -> dict[str, float]:
    """The metrics of the evaluation that was due when the run was stopped, in the middle of it. They go into the next
    row of the log; if there will be none, they are only reported, and the kept policy is saved."""
    if directory is None or not evaluation.is_due or directory.has_evaluation:
        return {}
    metrics = evaluation.metrics()
    if metrics and run.trainer.done:
        directory.save()
    return metrics


def _summary(metrics: Mapping[str, float]) -> str:
    """A few metrics for the progress bar."""
    keys = {
        "success": "rollout/success_rate",
        "hard": "rollout/hard_score",
        "eval": "eval/success_rate",
        "return": "rollout/ep_rew_mean",
        "live": "memory/live_mean",
        "pressure": "memory/pressure",
    }
    if "rollout/success_rate" in metrics:
        del keys["return"]
    return " ".join(f"{name} {metrics[key]:.3g}" for name, key in keys.items() if key in metrics)
