"""A run on disk.

config.json has the settings, run.log the messages, TensorBoard's events and progress.csv the metrics.
checkpoint.safetensors is the training's whole state, for --resume; the two before it stay beside it. checkpoints/ has
policies on the way. policy.safetensors is the latest policy that meets the success target and holds at most 20% more
memories than the smallest, or the last one where none meets it.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from expire_span_rl.agents.checkpoint import check_metadata, not_finite
from expire_span_rl.agents.guard import NotFinite, check_modules
from expire_span_rl.building import Run
from expire_span_rl.checks import shown
from expire_span_rl.events import EventLog
from expire_span_rl.files import OutputError, write_atomically
from expire_span_rl.locks import FileLock
from expire_span_rl.memory_picture import memory_picture
from expire_span_rl.messages import listening, say
from expire_span_rl.policies import ActorCritic, save_policy
from expire_span_rl.progress import ProgressTable
from expire_span_rl.resuming import check_actions, check_total, config_of, schedules_of
from expire_span_rl.run_checkpoints import newest_checkpoint, write_checkpoint
from expire_span_rl.run_files import (
    ALL_SNAPSHOTS,
    CANNOT_BE_MADE,
    MARKER,
    MARKER_CONTENT,
    check_run_dir,
    clear,
    snapshot_path,
    snapshot_spacing,
    sweep,
    thin,
)
from expire_span_rl.run_log import RunLog


class DirectoryFailed(RuntimeError):
    """The run directory cannot be written any more: it is gone, read-only, or its disk is full. One line."""


class WeightsLost(RuntimeError):
    """Weights are not finite, or too large, so they were not saved. One line."""


class RunDirectory:
    """What is written of a run, while it trains. Its lock is held until `close`."""

    def __init__(self, path: Path, run: Run, lock: FileLock):
        """The log continues what an earlier part of the run wrote."""
        self.path, self.run, self._lock = path, run, lock
        self.saved = run.trainer.timesteps
        self._saved_at = time.monotonic()
        self._damaged: set[str] = set()  # checkpoints that could not be used, by name
        self.log = RunLog(path / "run.log")
        self._table = ProgressTable(path / "progress.csv", run.trainer.timesteps)
        # What earlier parts wrote of later steps will be done again.
        again = any(path.glob("events.out.tfevents.*"))
        self._events = EventLog(path, run.trainer.timesteps + 1 if again else None)
        if self._table.note:
            say(self._table.note)

    @classmethod
    def begin(cls, path: Path, run: Run, lock: FileLock | None = None) -> RunDirectory:
        """A new run directory, with a checkpoint of the beginning. It replaces an existing run if the settings say
        `overwrite`. lock: its lock, if it is taken already. Raises ValueError, one line, for a directory that another
        process trains in, or that is no run's."""
        overwrite = run.settings.run.overwrite
        check_run_dir(path, False, overwrite)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(CANNOT_BE_MADE.format(shown(path), error.strerror or error)) from None
        lock = lock or take_lock(path)
        try:
            check_run_dir(path, False, overwrite)  # again: another process may have been quicker
            run.trainer.state()  # what cannot be saved replaces no run
            clear(path)
            (path / "checkpoints").mkdir()
            _write_config(path, run.settings.flat())
            directory = cls(path, run, lock)
            directory.checkpoint(with_policy=False)
            return directory
        except BaseException:
            lock.release()
            raise

    @classmethod
    def again(cls, path: Path, run: Run) -> RunDirectory:
        """The directory in which `run` was trained before, with its settings of now, and a checkpoint that has them:
        otherwise a training that dies before its first one would be resumed with new schedules. Raises ValueError,
        DirectoryFailed and WeightsLost, one line."""
        lock = take_lock(path)
        try:
            directory = cls(path, run, lock)
            directory.checkpoint(with_policy=False)
            _write_config(path, run.settings.flat())
            return directory
        except BaseException:
            lock.release()
            raise

    @classmethod
    def resume(cls, path: Path, run: Run, lock: FileLock | None = None) -> tuple[RunDirectory, bool]:
        """An existing run directory, whose newest whole checkpoint is loaded into `run`; and whether its episodes go
        on. lock: its lock, if it is taken already. Raises ValueError, one line, where no checkpoint is whole, or where
        they do not belong to the config, and for a run whose actions had another unit."""
        lock = lock or take_lock(path)
        try:
            check_actions(path)
            sweep(path)
            before = config_of(path)
            newest = newest_checkpoint(path)
            metadata = {"schedules": schedules_of(before, run), **newest.metadata}
            try:
                check_metadata(metadata, run.trainer.state()[1])
                goes_on = run.trainer.load_state(newest.tensors, metadata)
            except (ArithmeticError, LookupError, TypeError, RuntimeError, ValueError, AttributeError) as error:
                message = shown(error, 150)
                raise ValueError(f"{path}: expected config and checkpoint that belong together ({message})") from None
            check_total(run)
            for error in newest.damaged.values():
                say(f"{error}: the checkpoint before it, of step {run.trainer.timesteps:,}, is used")
            flat = run.settings.flat()
            changed = {name: flat[name] for name in ("total_timesteps", "learning_rate") if name in flat}
            if any(before.get(name) != value for name, value in changed.items()):
                _write_config(path, {**before, **changed})
            directory = cls(path, run, lock)
            directory._damaged = set(newest.damaged)
            return directory, goes_on
        except BaseException:
            lock.release()
            raise

    def record(self, metrics: Mapping[str, float]) -> None:
        """Writes the metrics of an update as a row of the log, and a checkpoint if one is due. Raises DirectoryFailed
        and WeightsLost."""
        trainer, settings = self.run.trainer, self.run.settings.run
        policy, make_env, every = self.run.policy, self.run.make_env, settings.memory_image_every
        picture = None
        # Baselines have no memories to look at.
        if every and make_env is not None and isinstance(policy, ActorCritic) and trainer.updates % every == 1 % every:
            picture = memory_picture(self.run, policy, make_env)
        with self._writing():
            self._table.write(metrics)
            self._events.write(metrics, trainer.timesteps, picture)
        if self._has_snapshot:
            self.save()
        elif time.monotonic() - self._saved_at >= 60 * settings.checkpoint_minutes:
            self.checkpoint()

    @property
    def has_evaluation(self) -> bool:
        """Whether the log has an evaluation after the latest update."""
        return self._table.has_last(self.run.trainer.timesteps, "eval/mean_reward")

    @property
    def _spacing(self) -> int:
        """Steps between two snapshots."""
        return snapshot_spacing(self.run.settings.run.checkpoint_every, self.run.trainer.rollout_size)

    @property
    def _has_snapshot(self) -> bool:
        """Whether there is a snapshot of the step that the training is at, wherever it is stopped."""
        trainer = self.run.trainer
        return trainer.done or (trainer.timesteps > 0 and trainer.timesteps % self._spacing == 0)

    def save(self) -> None:
        """Writes checkpoint, snapshot of the policy, and the run's policy. Raises DirectoryFailed and WeightsLost."""
        trainer, settings = self.run.trainer, self.run.settings.run
        self._check_weights()
        with self._writing():
            info = {**self.run.info, "timesteps": trainer.timesteps}
            save_policy(self.run.policy, snapshot_path(self.path, trainer.timesteps), info)
            if settings.keep_snapshots != ALL_SNAPSHOTS:
                thin(self.path, trainer.timesteps, self._spacing)
        self.checkpoint()

    def checkpoint(self, with_policy: bool = True) -> None:
        """Writes the training's state, and the run's policy. The checkpoint before stays beside it. Raises
        DirectoryFailed and WeightsLost."""
        trainer = self.run.trainer
        self._check_weights()
        tensors, metadata = trainer.state()
        if (problem := not_finite(tensors)) is not None:
            raise self._lost(problem)
        with self._writing():
            if with_policy:
                save_best(self.run, self.path / "policy.safetensors")
            write_checkpoint(self.path, tensors, metadata, self._damaged)
        self._damaged.clear()
        self.saved = trainer.timesteps
        self._saved_at = time.monotonic()

    def end(self, error: Exception | SystemExit | None) -> Exception | SystemExit | None:
        """Saves the state of a training that ends before its total, and reports it.

        error: what ended the training; None if nothing went wrong. Returns that error, or the error of saving if there
        was none. An error of saving that it hides is a message."""
        trainer = self.run.trainer
        if isinstance(error, WeightsLost) or (trainer.done and error is None):
            return error
        if not trainer.is_whole:
            say(f"not saved, since an update could not be undone: {self._goes_on_from_last}")
            return error
        try:
            self.save() if self._has_snapshot else self.checkpoint()
        except WeightsLost as lost:
            if error is None or isinstance(error, DirectoryFailed):
                return lost
            say(str(lost))
            return error
        except DirectoryFailed as failed:
            elsewhere = None if self._lock.is_in_place else self._save_elsewhere()
            if elsewhere is not None:
                say(f"stopped after {trainer.timesteps:,} steps; saved in {elsewhere}: --resume {elsewhere} goes on")
            elif self._lock.is_in_place:
                say(
                    f"stopped after {trainer.timesteps:,} steps; the checkpoint of step {self.saved:,} is whole: "
                    f"--resume {self.path} goes on once there is room, and a copy of the folder can be resumed "
                    "elsewhere"
                )
            return failed if error is None else error
        except Exception as failed:
            if error is None:
                raise
            say(f"not saved ({type(failed).__name__}: {shown(failed)}): {self._goes_on_from_last}")
            return error
        say(f"stopped after {trainer.timesteps:,} steps; --resume {self.path} goes on")
        return error

    @property
    def _goes_on_from_last(self) -> str:
        """What can be resumed after a training whose end is not saved."""
        return f"the checkpoint of step {self.saved:,} stays; --resume {self.path} goes on from there"

    @contextlib.contextmanager
    def training(self, lines: Iterable[str] = ()) -> Iterator[None]:
        """Within, run.log gets every message, and the error that ends the training with its traceback. Closes the
        directory at the end. lines: messages from before."""
        try:
            self.log.begin(self.run.settings.run.torch_threads, next(self.run.policy.parameters()).device, lines)
            with listening(self.log.write):
                yield
        except BaseException as error:
            self.log.failed(error)
            raise
        finally:
            self.close()

    def close(self) -> None:
        """Closes the log, and releases the directory."""
        for part in (self._table, self._events, self.log):
            with contextlib.suppress(OSError):
                part.close()
        self._lock.release()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Within, errors of the disk become a DirectoryFailed."""
        trainer = self.run.trainer
        if not self._lock.is_in_place:
            raise DirectoryFailed(
                f"{self.path}: the run directory was removed or replaced while training, after "
                f"{trainer.timesteps:,} steps"
            )
        try:
            yield
        except (OSError, OutputError) as error:
            reason = getattr(error, "strerror", None) or shown(error)
            raise DirectoryFailed(
                f"{self.path}: could not be written after {trainer.timesteps:,} steps ({reason})"
            ) from error

    def _save_elsewhere(self) -> Path | None:
        """Writes settings, state and policy into a new directory beside the one that is gone. Returns its path, or None
        if that fails too."""
        names = (f"{self.path}-saved", *(f"{self.path}-saved-{i}" for i in range(2, 100)))
        path = next((Path(name) for name in names if not os.path.lexists(name)), None)
        if path is None:
            return None
        try:
            (path / "checkpoints").mkdir(parents=True)
            (path / MARKER).write_text(MARKER_CONTENT)
            _write_config(path, self.run.settings.flat())
            write_checkpoint(path, *self.run.trainer.state())
            save_best(self.run, path / "policy.safetensors")
        except OSError:
            return None
        return path

    def _check_weights(self) -> None:
        """Raises WeightsLost for the first weight that must not be saved."""
        try:
            check_modules({"policy": self.run.policy})
        except NotFinite as error:
            raise self._lost(str(error)) from None

    def _lost(self, problem: str) -> WeightsLost:
        trainer = self.run.trainer
        return WeightsLost(
            f"{problem} after {trainer.timesteps:,} steps, which is not saved: the checkpoint of step {self.saved:,} "
            f"stays; --resume {self.path} --learning-rate LOWER goes on from there"
        )


def take_lock(path: Path) -> FileLock:
    """The lock of an existing run directory. Raises ValueError, one line, if another process trains in it, or it cannot
    be written."""
    try:
        lock = FileLock.take(path / MARKER, MARKER_CONTENT)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ValueError(f"run directory: expected one that can be written, got {shown(path)} ({reason})") from None
    if lock is None:
        raise ValueError(f"run directory: expected one in which nothing trains, in {shown(path)} another process does")
    return lock


def save_best(run: Run, path: str | Path) -> None:
    """Writes the policy of the trainer's `best`, or the current one where there is none."""
    best = run.trainer.best
    if best is None:
        save_policy(run.policy, path, {**run.info, "timesteps": run.trainer.timesteps})
    else:
        info = {"timesteps": best.timesteps, "score": best.score, "live": best.live}
        save_policy(run.policy, path, {**run.info, **info}, best.weights)


def _write_config(path: Path, config: Mapping[str, Any]) -> None:
    write_atomically(path / "config.json", (json.dumps({"folder": os.getcwd(), **config}, indent=2) + "\n").encode())
