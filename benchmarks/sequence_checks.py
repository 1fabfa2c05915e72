"""What benchmarks.sequence refuses before it trains: cells and checkpoints that were made with other settings, and
evaluations that cannot be."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.cells import check_settings
from expire_span_rl import cli
from expire_span_rl.agents.checkpoint import load_checkpoint
from expire_span_rl.envs import EnvError, make_vec_env
from expire_span_rl.evaluation import FIRST_SEED
from expire_span_rl.policies import check_spaces
from expire_span_rl.saved_settings import complete

IMMATERIAL = {"run_dir", "torch_threads", "progress_bar", "total_timesteps", "quiet", "checkpoint_every"}
"""Settings that change nothing of a cell."""
OTHER = "--variant or --out"
"""The flags that make room for other settings."""


def check_cell(
    out: Path,
    cell: Any,
    data: Mapping[str, Any],
    settings: Mapping[str, Any],
    seconds: Mapping[str, float],
    evaluations: Sequence[Mapping[str, Any]],
) -> None:
    """Raises UsageError, one line, if a finished cell, which has `data`, was made with other settings, for other
    seconds, or evaluated otherwise. seconds: those of its training, by the name of their setting."""
    _check_settings(out, cell, data["config"], settings, other=OTHER)
    [(name, requested)] = seconds.items()
    if not is_trained_for(data, requested):
        saved = data.get("requested_seconds", f"about {data['seconds']:.3g}")
        check_settings(out, cell, {name: saved}, seconds, names=[name], other=OTHER)
    done = data["evaluations"]
    if len(evaluations) != len(done) or not all(map(_is_same_evaluation, evaluations, done)):
        raise cli.UsageError(
            f"{out}: expected the evaluations of its cell {cell}, got others (--delays, --streams, --eval-steps or "
            f"--eval-kwargs): name another {OTHER} for them"
        )


def is_trained_for(data: Mapping[str, Any], seconds: float) -> bool:
    """Whether a finished cell was trained for so many seconds. Cells of before 30 November 2026 do not say what was
    requested: the last of their updates then passed it, and the curve says how long before it they were below it."""
    if "requested_seconds" in data:
        return data["requested_seconds"] == seconds
    trained = data["seconds"]
    times = [point[0] for point in data.get("curve", ())]
    since = times[-2] if len(times) > 1 else 0.0
    return abs(trained - seconds) <= trained - since  # saving counts as time, so that it may have ended just below


def check_checkpoint(
    out: Path, cell: Any, file: Path, settings: Mapping[str, Any], seconds: Mapping[str, float]
) -> str:
    """Returns a remark, one line, on the checkpoint of a cell that is not finished; empty if there is none to make.

    seconds: as in `check_cell`. Raises UsageError, one line, if it is of other settings or seconds, and
    CheckpointError if it cannot be read."""
    if not file.is_file():
        return ""
    _, metadata = load_checkpoint(file)
    other = f"{OTHER}, or delete {file},"
    [(name, requested)] = seconds.items()
    try:
        trained, request = metadata["progress"]["seconds"], metadata.get("request")
        if request is not None:
            _check_settings(out, cell, request["settings"], settings, other=other)
            check_settings(out, cell, {name: request["seconds"]}, seconds, names=[name], other=other)
            return ""
    except (KeyError, TypeError, AttributeError):
        raise cli.UsageError(f"{file}: expected a checkpoint of benchmarks.sequence, got another: delete it") from None
    if trained - requested > 0.1 * requested:
        check_settings(out, cell, {name: f"at least {trained:.3g}"}, seconds, names=[name], other=other)
    return f"{file}: of an earlier version, which did not save its settings; continued as if they were these"


def check_environment(policy: Any, env_id: str, env_kwargs: Mapping[str, Any], flag: str) -> None:
    """Raises UsageError, one line that begins with the flag, unless these are keyword arguments of the environment, in
    which the policy can act."""
    try:
        env = make_vec_env(env_id, 1, **env_kwargs)
    except EnvError as error:
        raise cli.UsageError(f"{flag}: {error}") from None
    env.close()
    check_spaces(policy.config, env.single_observation_space, env.single_action_space, flag, env_id)


def check_is_asked(env_id: str, env_kwargs: Mapping[str, Any], streams: int, steps: int) -> None:
    """Raises UsageError, one line, unless an evaluation of so many steps of these streams asks for an answer."""
    env = make_vec_env(env_id, streams, **env_kwargs)
    env.reset(seed=FIRST_SEED)
    core: Any = env.unwrapped
    is_asked = core.decisions().any()
    for _ in range(steps - 1):
        if is_asked:
            break
        env.step(core.target())
        is_asked = core.decisions().any()
    env.close()
    if not is_asked:
        raise cli.UsageError(
            f"--eval-steps: expected so many that an answer is asked for, got {steps:,}, in which there is none"
        )


def _check_settings(out: Path, cell: Any, saved: Mapping[str, Any], current: Mapping[str, Any], *, other: str) -> None:
    """Raises UsageError, one line, unless all settings that matter are the same. A setting that `saved` lacks is
    younger than it, and had the effect that `saved_settings.LATER` names."""
    current = json.loads(json.dumps(current))  # as they are read from a file
    # These two first: they say which settings there are.
    check_settings(out, cell, saved, current, names=["memory", "agent"], other=other)
    saved = json.loads(json.dumps(complete(saved, f"{out}: cell {cell}")))
    check_settings(out, cell, saved, current, names=sorted((saved.keys() | current.keys()) - IMMATERIAL), other=other)


def _is_same_evaluation(planned: Mapping[str, Any], done: Mapping[str, Any]) -> bool:
    """Whether an evaluation of a cell is one that is planned. `done` has more keyword arguments, those of training."""
    is_same_size = all(planned[name] == done[name] for name in ("streams", "steps"))
    return is_same_size and all(done["env_kwargs"].get(name) == value for name, value in planned["env_kwargs"].items())
