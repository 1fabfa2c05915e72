"""What a training will need and write, in one screenful, and warnings where its memory is too short for the task."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from gymnasium import spaces

from expire_span_rl.agents.checkpoint import checkpoint_bytes
from expire_span_rl.building import Run
from expire_span_rl.policies import ActorCritic
from expire_span_rl.policies.settings import BF16
from expire_span_rl.run_files import ALL_SNAPSHOTS, CHECKPOINTS, snapshot_spacing, thinned_count
from expire_span_rl.settings import Settings, tuned

SPEED_AFTER = 10.0  # seconds of training after which its speed is reported
SPEED_UPDATES = 3  # fewest updates; the first of them does not count, since it warms up
ROW_BYTES = 4000  # of progress.csv and of TensorBoard's events, for an update


def preflight(run: Run, path: Path) -> list[str]:
    """Lines about the run that begins, or continues, in `path`."""
    trainer, policy, settings = run.trainer, run.policy, run.settings.run
    weights = sum(p.numel() * p.element_size() for p in policy.parameters())
    parameters = sum(p.numel() for p in policy.parameters())
    threads = torch.get_num_threads()
    rows = {
        "policy": f"{parameters:,} parameters ({size(weights)})",
        "device": f"{run.device}, {_precision(run)}{threads} thread{'s' * (threads > 1)}",
        "memory": memory_line(run),
        "rollout": rollout_line(run),
        "on disk": _disk_line(run, path),
        "speed": "" if trainer.done else "follows the first updates",
    }
    head = f"{settings.env}, {settings.memory} memory, {settings.agent}, {trainer.total_timesteps:,} steps -> {path}"
    lines = [head, *(f"  {name:<8} {text}" for name, text in rows.items() if text)]
    return lines + [f"warning: {text}" for text in warnings_of(run)]


def _precision(run: Run) -> str:
    """What products are computed in, where that is not plain float32."""
    if run.settings.run.precision == BF16:
        return "products with weights in bfloat16, "
    return "products in TF32, " if run.device.name.startswith("cuda") else ""


def memory_line(run: Run) -> str:
    """Bytes of an environment's memory: at most, and expected before anything is forgotten."""
    policy = run.policy
    if not isinstance(policy, ActorCritic):
        return ""
    memory = policy.draw(policy.initial_memory(1), None)
    number = run.settings.run.num_envs
    if memory.state is not None or not memory.layers:
        each = int(memory.bytes())
        return f"{size(each)} per environment, a state of fixed size; {size(each * number)} for {number}"
    most, per_slot = most_memories(policy), sum(memory.slot_bytes())
    layers = f"{len(memory.layers)} layer{'s' * (len(memory.layers) > 1)}"
    expected = expected_memories(policy, most)
    if most is None and policy.unreleased_reach() is None:
        return f"{size(per_slot)} per step that is remembered in {layers}, of as many as are needed"
    if most is None and expected is not None:
        text = f"at most {expected:,} memories in {layers} until the task is learned"
        text += f", {size(expected * per_slot)} per environment"
        return f"{text}, {size(expected * per_slot * number)} for {number}; then as many as are needed"
    if most is None or expected is None:
        return f"{size(per_slot)} per step that is remembered in {layers}, of which the memory kind bounds no number"
    text = f"at most {most:,} memories in {layers}, {size(most * per_slot)} per environment"
    text += f", {size(most * per_slot * number)} for {number}"
    return text if expected == most else f"{text}; about {size(expected * per_slot)} each is expected at the start"


def most_memories(policy: ActorCritic) -> int | None:
    """The most live memories per layer, by the settings of the kind; None where they set no limit."""
    config = policy.config.memory_config
    if not getattr(policy.core.layers[0].kind, "stores", True):
        return 0
    if hasattr(config, "max_span"):
        return config.max_span + config.ramp if config.max_span else None
    if hasattr(config, "compressed_window"):
        return config.window + config.compression_rate + config.compressed_window
    return getattr(config, "window", None)


def reach(policy: ActorCritic) -> tuple[int | None, str]:
    """The largest age in steps of a memory while the task is being learned, and the flag that sets it. None: no limit,
    or an unknown one."""
    config = policy.config.memory_config
    if hasattr(config, "compressed_window"):
        return config.window + config.compression_rate * config.compressed_window, "--window"
    limit, longest = getattr(config, "initial_limit", 0), getattr(config, "max_span", 0)
    if limit and not 0 < longest <= limit:
        return limit, "--initial-limit"
    return (longest, "--max-span") if longest else (getattr(config, "window", None), "--window")


def expected_memories(policy: ActorCritic, most: int | None) -> int | None:
    """Live memories per layer in long episodes before anything is forgotten; None if unknown. most: as
    `most_memories`."""
    config = policy.config.memory_config
    if getattr(config, "initial_limit", 0):
        limit = config.initial_limit + config.ramp
        return limit if most is None else min(most, limit)
    if most is not None and hasattr(config, "initial_span"):
        return min(most, round(config.initial_span * config.max_span) + config.ramp)
    return most


def rollout_line(run: Run) -> str:
    """The size of a rollout."""
    number = run.settings.run.num_envs
    return f"{run.trainer.rollout_size // number} steps of {number} environments, {size(rollout_bytes(run))}"


def check_rollout_fits(run: Run) -> None:
    """Raises ValueError, one line, for rollouts that are larger than this machine's memory."""
    needed, memory = rollout_bytes(run), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        raise ValueError(
            f"--num-steps, --num-envs: expected rollouts that fit into the memory of this machine, {size(memory)}, got "
            f"{size(needed)}"
        )


def rollout_bytes(run: Run) -> int:
    """Bytes of a rollout: observations, and what acting computed for each step."""
    trainer = run.trainer
    space = getattr(trainer.env, "single_observation_space", getattr(trainer.env, "observation_space", None))
    each = _space_bytes(space) if isinstance(space, spaces.Dict) else 0
    outputs = run.policy.actions.num_outputs if isinstance(run.policy, ActorCritic) else 1
    each += 4 * (outputs + 4) + 8 + 3  # logits, values twice, reward, advantage; action; flags
    return each * trainer.rollout_size


def warnings_of(run: Run) -> list[str]:
    """Warnings where memories last for less than the environment says that its facts last."""
    horizon = getattr(run.trainer.env, "memory_horizon", None)
    if horizon is None or not isinstance(run.policy, ActorCritic):
        return []
    facts = f"{run.settings.run.env} needs facts for up to {horizon:,} steps"
    memory = run.policy.initial_memory(1)
    if memory.state is not None:
        steps = run.settings.agent.num_steps
        if steps >= horizon:
            return []
        return [
            f"{facts}, but nothing is learned across rollouts, of {steps} steps: --num-steps {horizon} would reach them"
        ]
    longest, name = reach(run.policy)
    if longest is None or longest >= horizon or _is_tuned(run.settings, name):
        return []
    return [f"{facts}, but memories last {longest:,} steps at most: a larger {name} would reach them"]


def _is_tuned(settings: Settings, flag: str) -> bool:
    """Whether a flag has the value that the environment's own defaults give it."""
    name = flag.removeprefix("--").replace("-", "_")
    own = tuned(settings.run.env, settings.run.agent)
    return name in own and settings.flat().get(name) == own[name]


def speed(callback_say: Callable[[str], None], run: Run) -> Callable[[Mapping[str, float]], None]:
    """A callback of the training that reports, once, how fast it is and how long it will take."""
    times: list[float] = []
    began = time.monotonic()

    def report(metrics: Mapping[str, float]) -> None:
        trainer = run.trainer
        if times and times[0] < 0:
            return
        times.append(time.monotonic())
        if trainer.done or len(times) <= SPEED_UPDATES or times[-1] - began < SPEED_AFTER:
            return
        rate = trainer.rollout_size * (len(times) - 1) / (times[-1] - times[0])
        seconds = (trainer.total_timesteps - trainer.timesteps) / rate
        live = metrics.get("memory/live_mean")
        memories = "" if live is None else f", {live:.1f} live memories per layer so far"
        callback_say(f"{rate:,.0f} steps per second: {_duration(seconds)} to go{memories}")
        times[:] = [-1.0]

    return report


def size(number: float) -> str:
    """A number of bytes with a unit, of three significant digits."""
    for unit in ("B", "kB", "MB", "GB"):
        rounded = f"{number:.3g}"
        if float(rounded) < 1000:
            return f"{rounded} {unit}"
        number /= 1000
    return f"{float(f'{number:.3g}'):,.0f} TB" if number >= 100 else f"{number:.3g} TB"


def _disk_line(run: Run, path: Path) -> str:
    """The size of checkpoints, snapshots and the log of the whole training, and the free space. The oldest checkpoint
    stays until a new one is complete, so that there is one more for a moment."""
    trainer, settings = run.trainer, run.settings.run
    snapshot = sum(p.numel() * p.element_size() for p in run.policy.state_dict().values())
    # Later it also holds Adam's three moments of every weight, the best policy, and memories.
    checkpoint = len(checkpoint_bytes(*trainer.state())) + (4 * snapshot if trainer.timesteps == 0 else 0)
    spacing = snapshot_spacing(settings.checkpoint_every, trainer.rollout_size)
    number = -(-trainer.total_timesteps // spacing)
    if settings.keep_snapshots != ALL_SNAPSHOTS:
        number = thinned_count(number)
    log = ROW_BYTES * trainer.total_timesteps // trainer.rollout_size
    copies = len(CHECKPOINTS)
    whole = (copies + 1) * checkpoint + (number + 1) * snapshot + log
    text = f"{copies} checkpoints of about {size(checkpoint)} and one more while it is written"
    text += f", {number} snapshot{'s' * (number > 1)} of {size(snapshot)}, about {size(whole)} in all"
    parent = next((folder for folder in (path, *path.absolute().parents) if folder.is_dir()), Path("/"))
    free = shutil.disk_usage(parent).free
    if settings.overwrite and path.is_dir():  # the old run makes room
        free += sum(file.lstat().st_size for file in path.rglob("*"))
    return f"{text}; {size(free)} free" + ("" if free > 2 * whole else ", which may not be enough")


def _space_bytes(space: spaces.Dict) -> int:
    """Bytes of one observation."""
    total = 0
    for entry in space.values():
        dtype = np.dtype(entry.dtype) if entry.dtype is not None else np.dtype(np.float32)
        total += int(np.prod(entry.shape or ())) * dtype.itemsize
    return total


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
