"""Trains an agent: config -> environments, policy, agent -> learn. See README.md, or --help.

A run directory holds config.json, TensorBoard events, progress.csv, checkpoint.safetensors (the training's whole state,
for --resume), checkpoints/ (policies on the way) and policy.safetensors: of the policies that kept success the
latest with about the fewest live memories (the latest where nothing is forgotten), or the last one where none did.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from stable_baselines3.common.logger import CSVOutputFormat, Image, Logger, TensorBoardOutputFormat
from tqdm import tqdm

import cli
from agents import AGENTS, ForgettingConfig, SB3Trainer, Trainer
from agents.checkpoint import checkpoint_bytes, load_checkpoint
from agents.rollout import RolloutsEnded
from envs import make_env, make_vec_env, training_kwargs, vec_env_maker
from policies import KINDS, ActorCritic, core_config, observation_spec, save_policy
from policies.io import write_atomically

IMAGE_SEED, IMAGE_STEPS = 3, 500  # of the episode whose memories are drawn: its seed, and steps at most
UNKNOWN_HORIZON = 256  # steps: where an environment does not say how long a fact must last

_PORTAL = {
    "shifted_heads": 2, "action_gain": 5.0, "observation_prediction_coef": 0.3, "final_ent_coef": 0.001,
    "span_dropout": True, "use_margin": 3.0,
}  # fmt: skip
TUNED: dict[tuple[str, str], dict[str, Any]] = {
    ("Portal-v0", "ppo"): {**_PORTAL, "learning_rate": 1.5e-3},
    ("Portal-v0", "impala"): {**_PORTAL, "learning_rate": 1e-3},
}
"""Defaults that an environment and an agent need instead of the flags' own (docs/results.md says what they are worth)."""


@dataclass(frozen=True)
class RunConfig:
    env: str = "Corridor-v0"
    """Environment id: Corridor-v0, Portal-v0, Switch-v0 or any Gymnasium id with Discrete actions."""
    env_kwargs: str = "{}"
    """Keyword arguments of the environment, a JSON object."""
    wrap: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Makes long trajectories of the episodes: stretch=10, episodes=4, fresh_episodes=4, occlude=5-9/20."""
    memory: str = "expire_span"
    """Memory kind."""
    agent: str = "ppo"
    """Learning algorithm."""
    total_timesteps: int = 3_000_000
    """Environment steps, rounded up to whole rollouts."""
    num_envs: int = 128
    """Environments stepped together."""
    seed: int = 1
    """Seed of weights, environments, actions and minibatches."""
    run_dir: str = ""
    """Where the run is written. Default: runs/<env>-<memory>-<agent>-<seed>."""
    overwrite: bool = False
    """Replace a run directory that exists."""
    resume: str = ""
    """Continue the run in this directory from its checkpoint; its config is used, other flags are refused."""
    checkpoint_every: int = 500_000
    """Environment steps between two checkpoints."""
    torch_threads: int = 2
    """CPU threads of PyTorch."""
    device: str = "auto"
    """cpu, cuda, or auto: a GPU where there is one."""
    memory_image_every: int = 50
    """Updates between two pictures, in TensorBoard, of what the policy remembers in an evaluation episode. 0: none."""
    progress_bar: bool = True
    """Show progress on stderr."""

    def __post_init__(self):
        cli.check_at_least(self, total_timesteps=1, num_envs=1, checkpoint_every=1, torch_threads=1)
        cli.check_at_least(self, memory_image_every=0)
        cli.check_seed(self)


def main() -> None:
    arguments = sys.argv[1:]
    resume = cli.value_of("resume", arguments)
    if resume is not None:
        extra = [a for a in arguments if a.startswith("--") and not a.startswith(("--resume", "--no-progress-bar"))]
        if extra:
            raise cli.UsageError(
                f"--resume: expected no other flags, since the run's own config is used, got {extra[0]}"
            )
        config = _resumed_config(Path(resume))
        config = {**config, "resume": resume, "run_dir": resume, "progress_bar": "--no-progress-bar" not in arguments}
    else:
        config = parse_config(arguments)
    train(config)


def parse_config(arguments: list[str]) -> dict[str, Any]:
    """All settings of a run, flat. The flags are those of the chosen memory kind and agent, and of what all runs share;
    beside them `training_kwargs`, what training sets differently from the environment's own defaults. Raises UsageError,
    one line."""
    config = _own_config(arguments)
    return {**config, "training_kwargs": training_kwargs(config["env"])}


def _own_config(arguments: list[str]) -> dict[str, Any]:
    """The flags alone."""
    given = {name: cli.value_of(name, arguments) for name in ("memory", "agent", "env")}
    memory, agent, env = (getattr(RunConfig, name) if value is None else value for name, value in given.items())
    cli.choice("--memory", memory, KINDS)
    cli.choice("--agent", agent, AGENTS)
    tuned = TUNED.get((env, agent))
    if AGENTS[agent].network is not None:
        return _baseline_config(agent, arguments, tuned)
    flags = cli.joined(*_parts(memory, agent), defaults=tuned)
    depends = f"--memory ({', '.join(KINDS)}) and --agent ({', '.join(AGENTS)}), their defaults on --env too"
    description = f"Trains a policy with {memory} memory by {agent} on {env}. Flags depend on {depends}."
    return dataclasses.asdict(cli.parse(flags, arguments, description))


def flag_names(memory: str | None = None) -> list[str]:
    """Every flag that some agent has with this memory kind, with any kind if None."""
    kinds = KINDS if memory is None else [memory]
    parts = dict.fromkeys(part for kind in kinds for agent in AGENTS for part in _parts(kind, agent))
    return list(dict.fromkeys(name for part in parts for name in cli.flag_names(part)))


def _parts(memory: str, agent: str) -> tuple[type, ...]:
    """The configs whose settings are a run's."""
    algorithm, kind = AGENTS[agent], KINDS[memory]
    if algorithm.network is not None:
        return (RunConfig, algorithm.Config)
    pressure = [ForgettingConfig] if kind.presses else []
    return (RunConfig, algorithm.Config, *pressure, kind.Config, core_config(memory))


def _baseline_config(agent: str, arguments: list[str], tuned: Mapping[str, Any] | None) -> dict[str, Any]:
    """`_own_config` for an agent that brings its own policy, whose name stands for the memory kind."""
    network = AGENTS[agent].network
    if (memory := cli.value_of("memory", arguments)) is not None:
        raise cli.UsageError(f"--memory: expected none, since {agent} brings its own policy, {network}, got {memory!r}")
    flags = cli.joined(*_parts(RunConfig.memory, agent), defaults=tuned)
    return {**dataclasses.asdict(cli.parse(flags, arguments, f"Trains the baseline {agent}.")), "memory": network}


def _resumed_config(run_dir: Path) -> dict[str, Any]:
    try:
        config = json.loads((run_dir / "config.json").read_text())
    except OSError:
        raise cli.UsageError(f"--resume: expected a run directory with config.json, found none in {run_dir}") from None
    except json.JSONDecodeError:
        raise cli.UsageError(f"--resume: expected JSON in {run_dir / 'config.json'}, could not read it") from None
    if not isinstance(config, dict) or not {"env", "memory", "agent"} <= config.keys():
        raise cli.UsageError(f"--resume: expected the settings of a run in {run_dir / 'config.json'}, got others")
    return config


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
    if AGENTS[config["agent"]].network is not None:
        return Run(*_baseline(config, env), info)
    kind = KINDS[config["memory"]]
    settings = dict(config)
    if settings.get("max_span") == 0:
        horizon = env.memory_horizon or UNKNOWN_HORIZON
        settings["max_span"] = 1 << (2 * horizon - 1).bit_length()  # the power of two that is at least twice as long
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
    # Seeds of environments of different runs must not overlap: environment i gets the seed + i.
    seed = config["seed"] * 1_000_003
    forgetting, source = cli.part(ForgettingConfig, config), None
    if config.get("num_actors") or config.get("ray_address"):
        maker = vec_env_maker(config["env"], config["num_envs"], **env_kwargs)
        source = _actors(config, maker, policy, seed)
    return Run(Trainer(env, policy, agent, forgetting, config["total_timesteps"], seed, source), policy, info)


def _actors(config: Mapping[str, Any], maker: Any, policy: Any, seed: int) -> Any:
    """The rollouts of Ray actors. Raises ValueError, one line, before any of them starts."""
    from agents.actors import ActorPool  # only here, since Ray may not be installed

    numbers = config["num_actors"], config["ray_address"], config["refresh_memory"]
    return ActorPool(maker, policy, config["num_steps"], seed, *numbers, _run_dir(config), _say)


def _baseline(config: Mapping[str, Any], env: Any) -> tuple[SB3Trainer, Any]:
    """Trainer and policy of a third-party agent. Raises ValueError, one line, if its package is not installed."""
    from envs.sb3_adapter import SB3VecEnv
    from policies.sb3 import FlatVecEnv, SB3Policy, SB3PolicyConfig, policy_class

    agent = AGENTS[config["agent"]]
    settings = cli.part(agent.Config, config)
    spec = observation_spec(env.single_observation_space)
    made = SB3PolicyConfig(spec, int(env.single_action_space.n), agent.network, settings.width)
    seeds = config["seed"], config["seed"] * 1_000_003
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
    from viewer.snapshot import snapshot  # takes a second, and only who draws needs it

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
