"""What a run directory says of the run that is to go on, and what is refused."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from expire_span_rl.agents.schedules import whole_rollouts
from expire_span_rl.building import Run
from expire_span_rl.policies.actions.box import FAR_BOUNDS, has_far_bounds
from expire_span_rl.policies.io import PolicyFileError, policy_actions
from expire_span_rl.settings import length_flag


def config_of(path: Path) -> dict[str, Any]:
    """The contents of config.json; {} where it cannot be read, which the command line refuses earlier."""
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def schedules_of(config: Mapping[str, Any], run: Run) -> dict[str, Any]:
    """The schedules of a checkpoint that has none: those of the settings that the run had."""
    trainer = run.trainer
    state = trainer.schedules.state(trainer.total_timesteps)
    rate, total = config.get("learning_rate"), config.get("total_timesteps")
    if rate is not None:
        state = {**state, "learning_rate": rate, "starts": {**state["starts"], "learning_rate": rate}}
    if total is not None:
        state["total"] = whole_rollouts(int(total), trainer.rollout_size)
    return state


def check_actions(path: Path) -> None:
    """Raises ValueError, one line, for a run that would go on with another unit of its actions. Its policy tells: the
    checkpoint has weights only."""
    with contextlib.suppress(PolicyFileError):  # no policy: nothing was learned yet, or it will be written anew
        if has_far_bounds(policy_actions(path / "policy.safetensors")):
            raise ValueError(f"{path}: actions: {FAR_BOUNDS}; begin a new run")


def check_total(run: Run) -> None:
    """Raises ValueError, one line, if the run has been trained for more steps than its settings say."""
    trainer = run.trainer
    if trainer.total_timesteps < trainer.timesteps:
        name, size = length_flag(run.settings)
        unit = "steps" if size == 1 else "blocks"
        raise ValueError(
            f"{name}: expected more than the {trainer.timesteps // size:,} {unit} of the run so far, got "
            f"{run.settings.run.total_timesteps // size:,}"
        )
