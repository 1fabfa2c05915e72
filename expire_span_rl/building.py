"""From the settings of a run (`settings.resolve`) to its environments, policy, agent and trainer."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from dataclasses import replace as replace_fields
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from gymnasium.vector import VectorEnv

from expire_span_rl.agents import AGENTS, REWARDS, AgentInputs, ForgettingConfig, Network, RolloutSource, TrainingLoop
from expire_span_rl.checks import env_keywords
from expire_span_rl.devices import (
    Device,
    Workload,
    allow_tf32,
    check_device,
    choose_device,
    kept_random_numbers,
    update_seconds,
)
from expire_span_rl.environments import named_environment, public_kwargs
from expire_span_rl.envs import make_env, training_kwargs, vec_env_maker
from expire_span_rl.envs.closing import closed_on_error
from expire_span_rl.messages import hear
from expire_span_rl.policies import ActorCritic, observation_spec
from expire_span_rl.policies.settings import FLOAT32
from expire_span_rl.protocols import LearningPolicy, Policy
from expire_span_rl.settings import Settings

FAR = 2**61  # beyond the seeds of every evaluation's environments
UNKNOWN_HORIZON = 256  # steps: where an environment does not say how long a fact must last
Extractor = tuple[type, dict[str, Any]]
"""The class of a Stable-Baselines3 BaseFeaturesExtractor, and its keyword arguments."""


@dataclass
class Run:
    """What `build` makes of settings."""

    settings: Settings
    trainer: TrainingLoop
    policy: Policy
    info: dict[str, Any]
    """What the policy's file says of it beside its config."""
    device: Device
    """Where the policy is trained, and why."""
    env_kwargs: Mapping[str, Any]
    """Of the environments of evaluations in this run. The policy's file lacks those that are private."""
    make_env: Callable[[], gym.Env] | None = None
    """Makes one environment as evaluation does; None where only those exist that are trained in."""
    env_id: str = ""
    """The registered id of its environments; "" where only those exist that are trained in. `info` has the name that
    the user gave, which may be that of a file in another folder."""


def build(
    settings: Settings,
    env: VectorEnv | None = None,
    features_extractor: Extractor | None = None,
    say: Callable[[str], None] = print,
    *,
    times_devices: bool = False,
) -> Run:
    """Environments, policy, agent and trainer.

    env: trains in these, wrapped as `make_vec_env` does, instead of in those that the settings name. Settings without a
    name for them ("") cannot make them again. features_extractor: reads the observations in place of our encoders.
    say: takes messages, in lines; times_devices: `--device auto` measures which device is faster, before a training;
    otherwise it takes a GPU if there is one. Raises ValueError, one line, before anything is written.
    """
    run = settings.run
    check_device(run.device)  # before anything large is made
    if run.precision != FLOAT32 and not AGENTS[run.agent].takes_memory_kind:
        raise ValueError(
            f"--precision: expected {FLOAT32}, since {run.agent} brings its own policy, got {run.precision}"
        )
    torch.set_num_threads(run.torch_threads)
    torch.manual_seed(run.seed)
    env_kwargs = _env_kwargs(settings)
    info = {"env": run.env, "env_kwargs": env_kwargs, "agent": run.agent, "seed": run.seed}
    if run.imports:
        info["imports"] = list(run.imports)
    if run.eval_every and env is not None:
        raise ValueError(
            "--eval-every: expected an environment id, from which evaluations can make their own, got environments"
        )
    if env is not None:
        return _Builder(settings, env, features_extractor, None, say, times_devices).build(info)
    name = named_environment(*settings.importable_names())
    # A run goes on as it began: its settings have what training set at its start (of runs since November 2026).
    usual = training_kwargs(name)
    training = usual if settings.training_kwargs is None else settings.training_kwargs
    kwargs = {**training, **env_kwargs, "vectorization": run.vectorization, "env_timeout": run.env_timeout}
    # What training sets differently stays in training, also where the user has set it.
    evaluation_kwargs = {key: value for key, value in env_kwargs.items() if key not in usual}
    info |= public_kwargs(name, evaluation_kwargs)
    make_envs = vec_env_maker(name, run.num_envs, **kwargs)
    made = make_envs()
    with closed_on_error([made]):
        built = _Builder(settings, made, features_extractor, make_envs, say, times_devices).build(info)
    built.env_kwargs = evaluation_kwargs
    built.env_id = name
    built.make_env = lambda: make_env(name, env_timeout=run.env_timeout, **evaluation_kwargs)
    return built


def _env_kwargs(settings: Settings) -> dict[str, Any]:
    """The keyword arguments of the environment that the user has set. Raises ValueError, one line."""
    run = settings.run
    kwargs = env_keywords(run)
    if run.encoder != "auto":
        kwargs["encoder"] = run.encoder
    return kwargs


@dataclass(frozen=True)
class _Builder:
    """Makes the parts of a run in environments that exist."""

    settings: Settings
    env: Any
    features_extractor: Extractor | None
    make_envs: Callable[[], VectorEnv] | None
    """Makes such environments in another process; None if only these exist."""
    say: Callable[[str], None]
    times_devices: bool = False

    def build(self, info: dict[str, Any]) -> Run:
        """Policy, agent and trainer. info: as `Run.info`."""
        settings, run = self.settings, self.settings.run
        left_out = getattr(self.env, "left_out", {})
        if left_out:
            parts = ", ".join(f"{name} ({why})" for name, why in left_out.items())
            self.say(f"{run.env}: not seen by the policy, since no encoder reads it: {parts}")
        chosen = self.choose_device()
        inputs = AgentInputs(
            env=self.env,
            config=settings.agent,
            forgetting=settings.forgetting or ForgettingConfig(),
            total_timesteps=run.total_timesteps,
            seed=run.seed,
            env_seed=environment_seed(run.seed),
            device=chosen.name,
            make_policy=partial(self.make_policy, chosen.name),
            make_actors=self.start_actors,
            make_network=self.make_network,
        )
        trainer, policy = AGENTS[run.agent].build(inputs)
        return Run(settings, trainer, policy, info, env_kwargs=info["env_kwargs"], device=chosen)

    def choose_device(self) -> Device:
        """The device of the settings. Which is the faster one can be measured where our own policies are trained."""
        measures = self.times_devices and AGENTS[self.settings.run.agent].takes_memory_kind
        return choose_device(self.settings.run.device, self.update_seconds if measures else None)

    def update_seconds(self, device: str) -> float:
        """About how many seconds an update takes on a device. Leaves random numbers as they are."""
        self.say(f"--device auto: an update is timed on {device}")
        with kept_random_numbers(device):
            policy = self.make_policy(device)
        return update_seconds(policy, self.env, self.workload())

    def workload(self) -> Workload:
        """What an update of the settings' agent does."""
        config = self.settings.agent
        return Workload(
            num_envs=self.env.num_envs,
            num_steps=config.num_steps,
            num_minibatches=config.num_minibatches,
            epochs=getattr(config, "update_epochs", 1),
            acts=AGENTS[self.settings.run.agent].learns_from == REWARDS and not getattr(config, "distributed", False),
        )

    def make_policy(self, device: str) -> ActorCritic:
        """A new policy with the memory kind of the settings, on a device."""
        settings, run = self.settings, self.settings.run
        allow_tf32(device)
        extractor = {} if self.features_extractor is None else {"features_extractor": self.features_extractor}
        policy = ActorCritic.for_spaces(
            self.env.single_observation_space,
            self.env.single_action_space,
            run.normalize_observations,
            getattr(settings.agent, "normalize_rewards", False),
            time_aware_value=getattr(settings.agent, "time_aware_value", False),
            normalize_cells=run.normalize_cells,
            impute_cells=run.impute_cells,
            memory=run.memory,
            memory_config=memory_config_for(self.env, settings.memory),
            core=settings.network,
            **extractor,
        ).to(device)
        policy.precision = run.precision
        return policy

    def start_actors(self, policy: LearningPolicy, reward_outputs: bool = False) -> RolloutSource:
        """The rollouts of Ray actors that play with `policy`. reward_outputs: as for `Collector`. Raises ValueError,
        one line, before any of them starts."""
        if self.make_envs is None:
            raise ValueError(
                "--num-actors: expected an environment id, from which actors can make their own, got environments"
            )
        from expire_span_rl.agents.ray_actors import ActorPool  # only here, since Ray may not be installed

        config = self.settings.agent
        return ActorPool(
            self.make_envs,
            policy,
            num_steps=config.num_steps,
            seed=environment_seed(self.settings.run.seed),
            num_actors=config.num_actors,
            address=config.ray_address,
            refresh=config.refresh_memory,
            novelty=config.novelty_coef > 0,
            reward_outputs=reward_outputs,
            say=self.say,
            log=hear,
        )

    def make_network(self, name: str) -> Network:
        """The policy of that name of another library, and these environments as that library takes them. Raises
        ValueError, one line, if its package is not installed."""
        run = self.settings.run
        if self.features_extractor is not None:
            raise ValueError(f"features_extractor_class: expected none, since {run.agent} brings its own policy")
        from expire_span_rl.envs.sb3_adapter import SB3VecEnv
        from expire_span_rl.policies import NETWORKS
        from expire_span_rl.policies.actions import action_spec
        from expire_span_rl.policies.sb3 import FlatVecEnv, SB3Policy, SB3PolicyConfig

        space = self.env.single_observation_space
        spec = observation_spec(
            space, run.normalize_observations, normalize_cells=run.normalize_cells, impute_cells=run.impute_cells
        )
        actions = action_spec(self.env.single_action_space)
        config = SB3PolicyConfig(spec, actions, name, self.settings.agent.width)
        return Network(
            env=FlatVecEnv(SB3VecEnv(self.env), spec, actions),
            policy_class=NETWORKS[name].load(),
            policy_kwargs=config.policy_kwargs,
            as_policy=lambda network: SB3Policy(config, network),
        )


def memory_config_for(env: Any, config: Any) -> Any:
    """A memory kind's config for an environment: spans that the settings leave open (0) are as long as the environment
    says that its facts last. Configs without `max_span` stay as they are."""
    if not hasattr(config, "max_span"):
        return config
    if getattr(config, "span_model", "") == "survival":
        limit = max(env.memory_horizon or 0, round(config.initial_span * twice_the_horizon(env)))
        return replace_fields(config, initial_limit=config.initial_limit or limit)
    return replace_fields(config, max_span=config.max_span or longest_span(env, config.ramp))


def twice_the_horizon(env: Any) -> int:
    """The power of two that is at least twice as many steps as the environment's facts last, since an untrained policy
    takes longer to reach the place of recall."""
    return 1 << (2 * (env.memory_horizon or UNKNOWN_HORIZON) - 1).bit_length()


def longest_span(env: Any, ramp: int) -> int:
    """L_max of a kind with bounded spans where no setting gives it, in steps: `twice_the_horizon`. Where older facts
    mislead, it is as long as facts last, plus the ramp."""
    horizon = env.memory_horizon or UNKNOWN_HORIZON
    return horizon + ramp if env.metadata.get("old_facts_mislead") else twice_the_horizon(env)


def environment_seed(seed: int) -> int:
    """The seed of a run's first environment; environment i gets the i-th seed from there. No two runs share a seed, and
    no run shares one with an evaluation (`evaluation.FIRST_SEED`)."""
    return seed * 1_000_003 + (FAR if seed >= 999_000 else 0)


def run_dir_of(settings: Settings) -> Path:
    """Where the run is written."""
    run = settings.run
    name = re.sub(r"[^\w.-]+", "-", run.env)
    return Path(run.run_dir or f"runs/{name}-{run.memory}-{run.agent}-{run.seed}")
