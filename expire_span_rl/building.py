"""From the settings of a run (`settings.resolve`) to its environments, policy, agent and trainer."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from gymnasium.vector import VectorEnv

from expire_span_rl.agents import AGENTS, ForgettingConfig, SB3Trainer, Trainer
from expire_span_rl.checks import json_object, quoted
from expire_span_rl.environments import named_environment, public_kwargs
from expire_span_rl.envs import make_env, training_kwargs, vec_env_maker
from expire_span_rl.policies import KINDS, ActorCritic, core_config, observation_spec
from expire_span_rl.saying import hear
from expire_span_rl.settings import check, part

FAR = 2**61  # beyond the seeds of every evaluation's environments
UNKNOWN_HORIZON = 256  # steps: where an environment does not say how long a fact must last


@dataclass
class Run:
    """What `build` makes of a config."""

    config: Mapping[str, Any]
    trainer: Trainer | SB3Trainer
    policy: Any
    info: dict[str, Any]
    """What the policy's file says of it beside its config."""
    env_kwargs: Mapping[str, Any]
    """Of the environments of evaluations in this run. The policy's file lacks those that are private."""
    make_env: Callable[[], gym.Env] | None = None
    """Makes one environment as evaluation does; None where only those exist that are trained in."""


def build(
    config: Mapping[str, Any],
    env: VectorEnv | None = None,
    features_extractor: tuple[type, dict[str, Any]] | None = None,
    say: Callable[[str], None] = print,
) -> Run:
    """Environments, policy, agent and trainer.

    env: trains in these, wrapped as `make_vec_env` does, instead of in those that the config names; of a config without
    a name for them ("") no later call can make them again. features_extractor: a Stable-Baselines3
    BaseFeaturesExtractor's class and arguments, which reads the observations. say: gets what happens, in lines. Raises
    ValueError, one line, before anything is written.
    """
    check(config)
    device(config["device"])  # before anything large is made
    torch.set_num_threads(config["torch_threads"])
    torch.manual_seed(config["seed"])
    own = json_object("--env-kwargs", config["env_kwargs"])
    if config.get("wrap"):
        own["wraps"] = list(config["wrap"])
    if config.get("encoder", "auto") != "auto":
        own["encoder"] = config["encoder"]
    info = {"env": config["env"], "env_kwargs": own, "agent": config["agent"], "seed": config["seed"]}
    if config.get("imports"):
        info["imports"] = list(config["imports"])
    if config.get("eval_every") and env is not None:
        raise ValueError(
            "--eval-every: expected an environment id, from which evaluations can make their own, got environments"
        )
    if env is not None:
        return _built(config, env, info, features_extractor, None, say)
    name = named_environment(config["env"], config.get("imports", ()))
    # A run goes on as it began: what training sets is in its config (of runs since November 2026).
    training = config.get("training_kwargs", training_kwargs(name))
    kwargs = {**training, **own, "vectorization": config.get("vectorization", "auto")}
    kwargs["env_timeout"] = config.get("env_timeout", 0.0)
    # What training sets differently stays in training, also where the user has set it.
    evaluation_kwargs = {key: value for key, value in own.items() if key not in training_kwargs(name)}
    info |= public_kwargs(name, evaluation_kwargs)
    maker = vec_env_maker(name, config["num_envs"], **kwargs)
    run = _built(config, maker(), info, features_extractor, maker, say)
    run.env_kwargs = evaluation_kwargs
    run.make_env = lambda: make_env(name, **evaluation_kwargs)
    return run


def _built(
    config: Mapping[str, Any],
    env: Any,
    info: dict[str, Any],
    features_extractor: tuple[type, dict[str, Any]] | None,
    maker: Callable[[], VectorEnv] | None,
    say: Callable[[str], None],
) -> Run:
    """Policy, agent and trainer for these environments. maker: makes such environments in another process."""
    left_out = getattr(env, "left_out", {})
    if left_out:
        parts = ", ".join(f"{name} ({why})" for name, why in left_out.items())
        say(f"{config['env']}: not seen by the policy, since no encoder reads it: {parts}")
    if AGENTS.describe(config["agent"]).network is not None:
        if features_extractor is not None:
            raise ValueError(f"features_extractor_class: expected none, since {config['agent']} brings its own policy")
        return Run(config, *_baseline(config, env), info, info["env_kwargs"])
    kind = KINDS.describe(config["memory"])
    settings, target = dict(config), device(config["device"])
    if "max_span" in settings:
        longest, is_survival = longest_span(env, settings["ramp"]), settings.get("span_model") == "survival"
        if is_survival and not settings["initial_limit"]:
            settings["initial_limit"] = max(env.memory_horizon or 0, round(settings["initial_span"] * longest))
        if not settings["max_span"] and (not is_survival or env.metadata.get("old_facts_mislead")):
            settings["max_span"] = longest
    extractor = {} if features_extractor is None else {"features_extractor": features_extractor}
    policy = ActorCritic.for_spaces(
        env.single_observation_space,
        env.single_action_space,
        _normalizes(config),
        config.get("normalize_rewards", False),
        memory=config["memory"],
        memory_config=part(kind.Config, settings),
        core=part(core_config(config["memory"]), settings),
        **extractor,
    ).to(target)
    algorithm = AGENTS[config["agent"]]
    numbers = config["num_envs"], config["seed"], env.memory_horizon
    agent = algorithm(policy, part(algorithm.Config, config), *numbers)
    seed = environment_seed(config["seed"])
    source = None
    if algorithm.supervised:
        source = algorithm.source(env, policy, config["num_steps"], seed)
    elif config.get("num_actors") or config.get("ray_address"):
        if maker is None:
            raise ValueError(
                "--num-actors: expected an environment id, from which actors can make their own, got environments"
            )
        source = _actors(config, maker, policy, seed, say)
    trainer = Trainer(env, policy, agent, part(ForgettingConfig, config), config["total_timesteps"], seed, source)
    return Run(config, trainer, policy, info, info["env_kwargs"])


def _normalizes(config: Mapping[str, Any]) -> bool:
    """Runs from before there was such a setting have none in their config, and did not."""
    return config.get("normalize_observations", False)


def longest_span(env: Any, ramp: int) -> int:
    """L_max where no setting gives it, in steps: the power of two that is at least twice as long as the environment's
    facts last, for the sake of whoever still errs and comes late; no more than they last, and the ramp, where older
    ones mislead."""
    horizon = env.memory_horizon or UNKNOWN_HORIZON
    if env.metadata.get("old_facts_mislead"):
        return horizon + ramp
    return 1 << (2 * horizon - 1).bit_length()


def environment_seed(seed: int) -> int:
    """Where the seeds of a run's environments begin, of which environment i gets the i-th: no two runs share one, nor
    does any run with an evaluation (`evaluation.FIRST_SEED`)."""
    return seed * 1_000_003 + (FAR if seed >= 999_000 else 0)


def run_dir_of(config: Mapping[str, Any]) -> Path:
    """Where the run is written."""
    name = re.sub(r"[^\w.-]+", "-", config["env"])
    return Path(config["run_dir"] or f"runs/{name}-{config['memory']}-{config['agent']}-{config['seed']}")


def device(name: str) -> str:
    """The device that --device names. Raises ValueError, one line, if it is not there."""
    gpu = torch.cuda.is_available()
    if name == "auto":
        return "cuda" if gpu else "cpu"
    if name != "cpu" and not (gpu and re.fullmatch(r"cuda(:\d+)?", name)):
        usable = "cpu, cuda or auto" if gpu else "cpu or auto (there is no GPU here)"
        raise ValueError(f"--device: expected {usable}, got {quoted(name, 60)}")
    return name


def _actors(config: Mapping[str, Any], maker: Any, policy: Any, seed: int, say: Callable[[str], None]) -> Any:
    """The rollouts of Ray actors. Raises ValueError, one line, before any of them starts."""
    from expire_span_rl.agents.actors import ActorPool  # only here, since Ray may not be installed

    numbers = config["num_actors"], config["ray_address"], config["refresh_memory"]
    return ActorPool(maker, policy, config["num_steps"], seed, *numbers, run_dir_of(config), say, hear)


def _baseline(config: Mapping[str, Any], env: Any) -> tuple[SB3Trainer, Any]:
    """Trainer and policy of a third-party agent. Raises ValueError, one line, if its package is not installed."""
    from expire_span_rl.envs.sb3_adapter import SB3VecEnv
    from expire_span_rl.policies.actions import action_spec
    from expire_span_rl.policies.sb3 import FlatVecEnv, SB3Policy, SB3PolicyConfig, policy_class

    agent = AGENTS[config["agent"]]
    settings = part(agent.Config, config)
    spec = observation_spec(env.single_observation_space, _normalizes(config))
    actions = action_spec(env.single_action_space)
    made = SB3PolicyConfig(spec, actions, agent.network, settings.width)
    seeds = config["seed"], environment_seed(config["seed"])
    flat, network = FlatVecEnv(SB3VecEnv(env), spec, actions), policy_class(agent.network)
    total = config["total_timesteps"]
    trainer = SB3Trainer(flat, agent, network, made.policy_kwargs, settings, total, seeds, device(config["device"]))
    return trainer, SB3Policy(made, trainer.algorithm.policy)
