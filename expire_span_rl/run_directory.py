"""A run on disk: config.json, TensorBoard events, progress.csv, checkpoint.safetensors (the training's whole state, for
--resume), checkpoints/ (policies on the way) and policy.safetensors: of the policies that kept success the latest with about
the fewest live memories (the latest where nothing is forgotten), or the last one where none did.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import gymnasium as gym
from stable_baselines3.common.logger import CSVOutputFormat, Image, Logger, TensorBoardOutputFormat

from expire_span_rl.agents.checkpoint import checkpoint_bytes, load_checkpoint
from expire_span_rl.building import Run
from expire_span_rl.policies import ActorCritic, save_policy
from expire_span_rl.policies.io import write_atomically

IMAGE_SEED, IMAGE_STEPS = 3, 500  # of the episode whose memories are drawn: its seed, and steps at most


def check_run_dir(path: Path, resume: bool, overwrite: bool) -> None:
    """Raises ValueError, one line, unless a run can be written there: what is no run is never touched, and what is one only
    if it is resumed or overwritten."""
    exists = path.exists()
    if exists and not (path / "config.json").is_file() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"--run-dir: expected a new directory or one of a run, {path} is another: name another")
    if exists and not resume and not overwrite:
        raise ValueError(
            f"--run-dir: expected a new directory, {path} exists: continue it with --resume {path}, replace it "
            "with --overwrite, or name another"
        )


class RunDirectory:
    """What is written of a run, while it trains."""

    def __init__(self, path: Path, run: Run):
        """The log goes on after what an earlier part of the run wrote."""
        self.path, self.run = path, run
        self.saved = run.trainer.timesteps
        rows = _rows(path / "progress.csv", run.trainer.timesteps)
        table = CSVOutputFormat(str(path / "progress.csv"))
        for row in rows:
            table.write({key: float(value) for key, value in row.items() if value}, {})
        self._logger = Logger(str(path), [table, TensorBoardOutputFormat(str(path))])

    @classmethod
    def begin(cls, path: Path, run: Run) -> RunDirectory:
        """A new one, in the place of any that is there."""
        if path.exists():
            shutil.rmtree(path)
        (path / "checkpoints").mkdir(parents=True)
        _write_config(path, run)
        return cls(path, run)

    @classmethod
    def again(cls, path: Path, run: Run) -> RunDirectory:
        """The one in which `run` was trained before, with its config of now."""
        _write_config(path, run)
        return cls(path, run)

    @classmethod
    def resume(cls, path: Path, run: Run) -> tuple[RunDirectory, bool]:
        """The one that is there, its checkpoint loaded into `run`; and whether its episodes go on. Raises ValueError, one
        line, for a checkpoint that is damaged or of another config."""
        tensors, figures = load_checkpoint(path / "checkpoint.safetensors")
        try:
            goes_on = run.trainer.load_state(tensors, figures)
        except (KeyError, TypeError, RuntimeError) as error:
            message = " ".join(str(error).split())[:200]
            raise ValueError(f"{path}: expected config and checkpoint that belong together ({message})") from None
        return cls(path, run), goes_on

    def record(self, figures: Mapping[str, float]) -> None:
        """One row of the log: the figures of an update."""
        for key, value in figures.items():
            self._logger.record(key, value)
        trainer = self.run.trainer
        # Runs from before there was such a setting have none in their config. Baselines have no memories to look at.
        every = self.run.config.get("memory_image_every", 0) if isinstance(self.run.policy, ActorCritic) else 0
        make_env = self.run.make_env
        if every and make_env is not None and trainer.updates % every == 1 % every:
            self._record_memory(make_env())
        self._logger.dump(trainer.timesteps)
        if trainer.timesteps - self.saved >= self.run.config["checkpoint_every"] or trainer.done:
            self.save()

    def _record_memory(self, env: gym.Env) -> None:
        """A picture of what the policy remembers, always of the same episode, one that is not trained on. Closes `env`."""
        from expire_span_rl.viewer.snapshot import snapshot  # takes a second, and only who draws needs it

        title = f"{self.run.config['env']} after {self.run.trainer.timesteps:,} steps"
        picture = snapshot(self.run.policy, env, IMAGE_SEED, IMAGE_STEPS, title)
        env.close()
        if picture is not None:
            self._logger.record("memory/timeline", Image(picture, "HWC"), exclude=("csv",))

    def save(self) -> None:
        """Checkpoint, the policy as it is now, and the kept policy."""
        trainer = self.run.trainer
        self.saved = trainer.timesteps
        now = {**self.run.info, "timesteps": trainer.timesteps}
        save_policy(self.run.policy, self.path / "checkpoints" / f"policy_{trainer.timesteps:09d}.safetensors", now)
        save_best(self.run, self.path / "policy.safetensors")
        write_atomically(self.path / "checkpoint.safetensors", checkpoint_bytes(*trainer.state()))

    def close(self) -> None:
        """Finishes the log."""
        self._logger.close()


def _write_config(path: Path, run: Run) -> None:
    write_atomically(path / "config.json", (json.dumps(dict(run.config), indent=2) + "\n").encode())


def _rows(log: Path, timesteps: int) -> list[dict[str, str]]:
    """The rows of a progress.csv up to a step; none if it is not there."""
    if not log.is_file():
        return []
    with log.open(newline="") as file:
        return [row for row in csv.DictReader(file) if float(row["time/total_timesteps"]) <= timesteps]


def save_best(run: Run, path: str | Path) -> None:
    """Writes the policy of the trainer's `best`, or the one of now where there is none."""
    best = run.trainer.best
    if best is None:
        save_policy(run.policy, path, {**run.info, "timesteps": run.trainer.timesteps})
    else:
        figures = {name: best[name] for name in ("timesteps", "score", "live")}
        save_policy(run.policy, path, {**run.info, **figures}, best["weights"])
