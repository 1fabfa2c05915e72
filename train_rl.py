"""Trains an agent: config -> environments, policy, agent -> learn. See README.md, or --help.

A run directory holds config.json, TensorBoard events, progress.csv, checkpoint.safetensors (the training's whole state,
for --resume), checkpoints/ (policies on the way) and policy.safetensors: of the policies that kept success the
latest with about the fewest live memories (the latest where nothing is forgotten), or the last one where none did.
"""

from __future__ import annotations

import csv
import json
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from stable_baselines3.common.logger import CSVOutputFormat, Image, Logger, TensorBoardOutputFormat
from tqdm import tqdm

from expire_span_rl import cli
from expire_span_rl.agents import AGENTS, ForgettingConfig, SB3Trainer, Trainer
from expire_span_rl.agents.checkpoint import checkpoint_bytes, load_checkpoint
from expire_span_rl.agents.rollout import RolloutsEnded
from expire_span_rl.cli.settings import RunConfig, parse_config, saved_config
from expire_span_rl.envs import make_env, make_vec_env, training_kwargs, vec_env_maker
from expire_span_rl.policies import KINDS, ActorCritic, core_config, observation_spec, save_policy
from expire_span_rl.policies.io import write_atomically

IMAGE_SEED, IMAGE_STEPS = 3, 500  # of the episode whose memories are drawn: its seed, and steps at most
FAR = 2**61  # beyond the seeds of every evaluation's environments
UNKNOWN_HORIZON = 256  # steps: where an environment does not say how long a fact must last


def main() -> None:
    arguments = sys.argv[1:]
    resume = cli.value_of("resume", arguments)
    if resume is not None:
        extra = [a for a in arguments if a.startswith("--") and not a.startswith(("--resume", "--no-progress-bar"))]
        if extra:
            raise cli.UsageError(
                f"--resume: expected no other flags, since the run's own config is used, got {extra[0]}"
            )
        config = saved_config(Path(resume))
        config = {**config, "resume": resume, "run_dir": resume, "progress_bar": "--no-progress-bar" not in arguments}
    else:
        config = parse_config(arguments)
    train(config)


@dataclass
class Run:
    """What `build` makes of a config."""

    trainer: Trainer | SB3Trainer
    policy: Any
    info: dict[str, Any]


def build(config: Mapping[str, Any]) -> Run:
    """Environments, policy, agent and trainer. Raises ValueError, one line, before anything is written."""
    cli.part(RunConfig, config)
    budget, ramp = config.get("memory_budget", 0), config.get("ramp", 0)
    if 0 < budget <= ramp:
        raise cli.UsageError(
            f"--memory-budget: expected more than --ramp ({ramp}), below which live memory cannot fall, got {budget}"
        )
    torch.set_num_threads(config["torch_threads"])
    torch.manual_seed(config["seed"])
    own = cli.json_object("--env-kwargs", config["env_kwargs"])
    if config.get("wrap"):
        own["wraps"] = list(config["wrap"])
    # A run goes on as it began: what training sets is in its config (of runs since November 2026).
    env_kwargs = {**config.get("training_kwargs", training_kwargs(config["env"])), **own}
    env = make_vec_env(config["env"], config["num_envs"], **env_kwargs)
    # What training sets differently stays in training, also where the user has set it.
    lasting = {name: value for name, value in own.items() if name not in training_kwargs(config["env"])}
    info = {"env": config["env"], "env_kwargs": lasting, "agent": config["agent"], "seed": config["seed"]}
    if AGENTS.describe(config["agent"]).network is not None:
        return Run(*_baseline(config, env), info)
    kind = KINDS.describe(config["memory"])
    settings = dict(config)
    if settings.get("max_span") == 0:
        settings["max_span"] = longest_span(env, settings["ramp"])
    policy = ActorCritic.for_spaces(
        env.single_observation_space,
        env.single_action_space,
        memory=config["memory"],
        memory_config=cli.part(kind.Config, settings),
        core=cli.part(core_config(config["memory"]), settings),
    ).to(cli.device(config["device"]))
    algorithm = AGENTS[config["agent"]]
    numbers = config["num_envs"], config["seed"], env.memory_horizon
    agent = algorithm(policy, cli.part(algorithm.Config, config), *numbers)
    seed = environment_seed(config["seed"])
    forgetting, source = cli.part(ForgettingConfig, config), None
    if config.get("num_actors") or config.get("ray_address"):
        maker = vec_env_maker(config["env"], config["num_envs"], **env_kwargs)
        source = _actors(config, maker, policy, seed)
    return Run(Trainer(env, policy, agent, forgetting, config["total_timesteps"], seed, source), policy, info)


def longest_span(env: Any, ramp: int) -> int:
    """L_max where no flag gives it, in steps: the power of two that is at least twice as long as the environment's facts last,
    for the sake of whoever still errs and comes late; no more than they last, and the ramp, where older ones mislead."""
    horizon = env.memory_horizon or UNKNOWN_HORIZON
    if env.metadata.get("old_facts_mislead"):
        return horizon + ramp
    return 1 << (2 * horizon - 1).bit_length()


def environment_seed(seed: int) -> int:
    """Where the seeds of a run's environments begin, of which environment i gets the i-th: no two runs share one, nor does any
    run with an evaluation (evaluate.py's begin at 10^12)."""
    return seed * 1_000_003 + (FAR if seed >= 999_000 else 0)


def _actors(config: Mapping[str, Any], maker: Any, policy: Any, seed: int) -> Any:
    """The rollouts of Ray actors. Raises ValueError, one line, before any of them starts."""
    from expire_span_rl.agents.actors import ActorPool  # only here, since Ray may not be installed

    numbers = config["num_actors"], config["ray_address"], config["refresh_memory"]
    return ActorPool(maker, policy, config["num_steps"], seed, *numbers, _run_dir(config), _say)


def _baseline(config: Mapping[str, Any], env: Any) -> tuple[SB3Trainer, Any]:
    """Trainer and policy of a third-party agent. Raises ValueError, one line, if its package is not installed."""
    from expire_span_rl.envs.sb3_adapter import SB3VecEnv
    from expire_span_rl.policies.sb3 import FlatVecEnv, SB3Policy, SB3PolicyConfig, policy_class

    agent = AGENTS[config["agent"]]
    settings = cli.part(agent.Config, config)
    spec = observation_spec(env.single_observation_space)
    made = SB3PolicyConfig(spec, int(env.single_action_space.n), agent.network, settings.width)
    seeds = config["seed"], environment_seed(config["seed"])
    flat, network, device = FlatVecEnv(SB3VecEnv(env), spec), policy_class(agent.network), cli.device(config["device"])
    total = config["total_timesteps"]
    trainer = SB3Trainer(flat, agent, network, made.policy_kwargs, settings, total, seeds, device)
    return trainer, SB3Policy(made, trainer.algorithm.policy)


def _run_dir(config: Mapping[str, Any]) -> Path:
    name = f"{config['env'].replace('/', '-')}-{config['memory']}-{config['agent']}-{config['seed']}"
    return Path(config["run_dir"] or f"runs/{name}")


def train(config: dict[str, Any]) -> Path:
    """Runs the training of `config` and returns its run directory. Raises RolloutsEnded and KeyboardInterrupt after the
    checkpoint was written."""
    run_dir = _run_dir(config)
    resuming = bool(config["resume"])
    exists = run_dir.exists()
    if exists and not (run_dir / "config.json").is_file() and (not run_dir.is_dir() or any(run_dir.iterdir())):
        raise cli.UsageError(f"--run-dir: expected a new directory or one of a run, {run_dir} is another: name another")
    if exists and not resuming and not config["overwrite"]:
        raise cli.UsageError(
            f"--run-dir: expected a new directory, {run_dir} exists: continue it with --resume {run_dir}, replace it "
            "with --overwrite, or name another"
        )
    run = build(config)
    try:
        _learn(config, run, run_dir)
    finally:
        run.trainer.close()
    return run_dir


def _learn(config: dict[str, Any], run: Run, run_dir: Path) -> None:
    """Trains what was built."""
    trainer, resuming = run.trainer, bool(config["resume"])
    rows: list[dict[str, str]] = []
    if resuming:
        rows = _resume(run_dir, trainer)
    else:
        if run_dir.exists():
            shutil.rmtree(run_dir)
        (run_dir / "checkpoints").mkdir(parents=True)
        write_atomically(run_dir / "config.json", (json.dumps(config, indent=2) + "\n").encode())
    logger = _logger(run_dir, rows)
    asked = config["total_timesteps"]
    if trainer.total_timesteps != asked:
        _say(f"total timesteps rounded up from {asked:,} to {trainer.total_timesteps:,}, whole rollouts")
    size = sum(p.numel() for p in run.policy.parameters())
    _say(f"{config['env']}, {config['memory']} memory, {config['agent']}, {size:,} parameters -> {run_dir}")
    began = time.time()
    saved = trainer.timesteps
    ended: RolloutsEnded | None = None
    # Runs from before there was such a flag have none in their config. Baselines have no memories to look at.
    every = config.get("memory_image_every", 0) if isinstance(run.policy, ActorCritic) else 0
    with cli.interruptible(trainer.stop), tqdm(
        total=trainer.total_timesteps, initial=trainer.timesteps, unit="step", unit_scale=True,
        disable=not config["progress_bar"], dynamic_ncols=True, mininterval=1,
    ) as bar:  # fmt: skip
        while not (trainer.done or trainer.stop.is_set()):
            try:
                figures = trainer.update()
            except RolloutsEnded as error:
                ended = error
                break
            for key, value in figures.items():
                logger.record(key, value)
            if every and trainer.updates % every == 1 % every:
                _record_memory(logger, config, run)
            logger.dump(trainer.timesteps)
            bar.update(trainer.rollout_size)
            bar.set_postfix_str(_short(figures))
            if trainer.timesteps - saved >= config["checkpoint_every"] or trainer.done:
                saved = trainer.timesteps
                _save(run_dir, run)
        if not trainer.done:
            _save(run_dir, run)
            _say(f"stopped after {trainer.timesteps:,} steps; --resume {run_dir} goes on")
    logger.close()
    if not trainer.done:
        raise KeyboardInterrupt if trainer.stop.is_set() or ended is None else ended
    kept = trainer.best
    _say(f"trained {trainer.timesteps:,} steps in {(time.time() - began) / 60:.1f} minutes")
    if kept:
        told = f"{kept['score']:.1%} on the hard episodes"
        if kept["live"] is not None:
            told += f" with {kept['live']:.1f} live memories per layer"
        _say(f"{run_dir / 'policy.safetensors'}: the policy of step {kept['timesteps']:,}, {told}")
    else:
        _say(f"{run_dir / 'policy.safetensors'}: the last policy")


def _resume(run_dir: Path, trainer: Trainer | SB3Trainer) -> list[dict[str, str]]:
    """Loads the checkpoint and returns the rows of the log up to it."""
    tensors, figures = load_checkpoint(run_dir / "checkpoint.safetensors")
    try:
        if not trainer.load_state(tensors, figures):
            _say("the environments' state was not saved: they begin new episodes")
    except (KeyError, TypeError, RuntimeError) as error:
        told = " ".join(str(error).split())[:200]
        raise cli.UsageError(f"{run_dir}: expected config and checkpoint that belong together ({told})") from None
    log = run_dir / "progress.csv"
    if not log.is_file():
        return []
    with log.open(newline="") as file:
        return [row for row in csv.DictReader(file) if float(row["time/total_timesteps"]) <= trainer.timesteps]


def _logger(run_dir: Path, rows: list[dict[str, str]]) -> Logger:
    """TensorBoard and CSV; the CSV begins with `rows`, what an earlier part of the run wrote."""
    table = CSVOutputFormat(str(run_dir / "progress.csv"))
    for row in rows:
        table.write({key: float(value) for key, value in row.items() if value}, {})
    return Logger(str(run_dir), [table, TensorBoardOutputFormat(str(run_dir))])


def _record_memory(logger: Logger, config: Mapping[str, Any], run: Run) -> None:
    """A picture of what the policy remembers, always of the same episode, one that is not trained on."""
    from expire_span_rl.viewer.snapshot import snapshot  # takes a second, and only who draws needs it

    env = make_env(config["env"], **run.info["env_kwargs"])
    title = f"{config['env']} after {run.trainer.timesteps:,} steps"
    picture = snapshot(run.policy, env, IMAGE_SEED, IMAGE_STEPS, title)
    env.close()
    if picture is not None:
        logger.record("memory/timeline", Image(picture, "HWC"), exclude=("csv",))


def _save(run_dir: Path, run: Run) -> None:
    """Checkpoint, the policy as it is now, and the kept policy."""
    trainer = run.trainer
    here = {**run.info, "timesteps": trainer.timesteps}
    save_policy(run.policy, run_dir / "checkpoints" / f"policy_{trainer.timesteps:09d}.safetensors", here)
    if trainer.best is None:
        save_policy(run.policy, run_dir / "policy.safetensors", here)
    else:
        told = {name: trainer.best[name] for name in ("timesteps", "score", "live")}
        save_policy(run.policy, run_dir / "policy.safetensors", {**run.info, **told}, trainer.best["weights"])
    write_atomically(run_dir / "checkpoint.safetensors", checkpoint_bytes(*trainer.state()))


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


def _say(text: str) -> None:
    tqdm.write(text, file=sys.stderr)


if __name__ == "__main__":
    cli.run(main)
