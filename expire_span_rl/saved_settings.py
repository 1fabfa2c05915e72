"""Settings of runs that were saved, by this version or an earlier one.

Nothing here imports torch, so that a command line answers at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from expire_span_rl.agents import AGENTS
from expire_span_rl.checks import shown
from expire_span_rl.messages import say
from expire_span_rl.setting_values import LONGEST_SHOWN, converted, field_types
from expire_span_rl.settings import run_parts

LATER: dict[str, Any] = {
    "imports": (), "wrap": (), "encoder": "auto", "normalize_observations": False, "normalize_cells": False,
    "impute_cells": False, "vectorization": "auto",
    "checkpoint_minutes": 5.0, "keep_snapshots": "all", "memory_image_every": 0, "quiet": False,
    "adam_beta2": None, "reward_prediction_coef": None, "observation_prediction_coef": None, "full_evidence": None,
    "span_bias_lr_scale": None, "use_lift": None, "action_gain": None, "shifted_heads": None, "gating": None,
    "num_actors": None, "ray_address": None, "refresh_memory": None, "trace_lambda": None, "env_timeout": None,
    "normalize_rewards": False, "amsgrad": True, "span_model": "sigmoid", "initial_limit": None,
    "eval_every": 0, "n_eval_episodes": None, "layer_norm": False, "sharpness": None, "rest_coef": None,
    "fixed_pressure": None, "loss_tolerance": None, "min_radius": None, "max_radius": None, "max_phase": None,
    "newest_first": None, "use_share": 0.0, "renew_every": 0, "sharpen_beyond": None, "time_skips": 0.0,
    "time_gaps": 0.0, "qk_norm": False, "head_dropout": 0.0, "position_dropout": 0.0, "time_aware_value": False,
    "novelty_coef": 0.0, "log_barrier_coef": 0.0, "age_gain": 0.0, "precision": "float32", "action_baseline": False,
    "age_values": 0.0, "adaptive_lambda": False, "uniform_heads": 0.0, "attention_cost": 0.0, "use_enough": 1.0,
    "min_use_coef": 0.0, "preset": "none",
}  # fmt: skip
"""Settings that were added after the first version, with what runs without them did; None: the field's default."""


def complete(config: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The flat settings of a saved run (`Settings.from_flat`), with those that were added since.

    config: what its config.json has; source: what messages call that file. Raises ValueError, one line, for a setting
    that is missing or of a wrong type.
    """
    flat = dict(config)
    for part in run_parts(config["memory"], config["agent"]):
        types = field_types(part)
        for field in dataclasses.fields(part):
            name = field.name
            if name in config:
                flat[name] = _converted(name, config[name], types[name], source)
            elif name in LATER:
                flat[name] = field.default if LATER[name] is None else LATER[name]
            else:
                raise ValueError(f"{source}: expected {name!r} among the settings of the run, which is missing")
    _leave_out_ignored(flat, source)
    training_kwargs = config.get("training_kwargs", {})
    if not isinstance(training_kwargs, dict):
        got = shown(repr(training_kwargs), LONGEST_SHOWN)
        raise ValueError(f"{source}: training_kwargs: expected an object, got {got}")  # noqa: TRY004, as for all settings
    return flat


def _leave_out_ignored(flat: dict[str, Any], source: str) -> None:
    """Takes back settings that did nothing in runs from before 30 November 2026, and would be refused today."""
    if flat.get("wrap") and flat.get("vectorization") == "async":
        flat["vectorization"] = "auto"
    agent = AGENTS[flat["agent"]]
    if not flat.get("action_baseline") or agent.is_builtin:  # a user's own class exists already: nothing is imported
        return
    if not getattr(agent.load(), "supports_action_baseline", False):
        say(f"{source}: --action-baseline is ignored, since {agent.class_name} has no supports_action_baseline = True")
        flat["action_baseline"] = False


def _converted(name: str, value: Any, expected: Any, source: str) -> Any:
    """`setting_values.converted`, whose message names the file."""
    try:
        return converted(name, value, expected)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
