"""Policies and what trains them, for the Python interface (`api`): `PPO` and `IMPALA`."""

from __future__ import annotations

import contextlib
import math
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import gymnasium as gym
from gymnasium.vector import SyncVectorEnv, VectorEnv

from expire_span_rl import training
from expire_span_rl.building import build
from expire_span_rl.checks import is_number, quoted
from expire_span_rl.env_objects import (
    Environment,
    check_given,
    exists,
    maker_of,
    name_of,
    reference,
    single_of,
    vector_of,
)
from expire_span_rl.envs.closing import closed_on_error
from expire_span_rl.policies import ActorCritic, save_policy
from expire_span_rl.run_directory import RunDirectory, save_best
from expire_span_rl.run_files import check_run_dir, is_of_a_run
from expire_span_rl.settings import RunConfig, resolve

_LEARN_ARGUMENTS = ("total_timesteps", "progress_bar", "run_dir")
_COMMAND_LINE_SETTINGS = {
    "resume": "python train_rl.py --resume RUN continues a run",
    "agent": "the agent is the class: es.PPO, es.IMPALA",
}


class Model:
    """A policy and what trains it: the base of `PPO` and `IMPALA`."""

    agent: ClassVar[str]

    def __init__(
        self,
        memory: str = RunConfig.memory,
        env: Environment = RunConfig.env,
        *,
        features_extractor_class: type | None = None,
        features_extractor_kwargs: Mapping[str, Any] | None = None,
        **settings: Any,
    ):
        """memory: a memory kind: expire_span, transformer_xl, adaptive_span, compressive, gru, lstm, lru or none.
        env: see the module `api`. A `gym.Env` that exists cannot be copied and needs `num_envs=1`. When `evaluate`,
        `show` or another model has played in it, or in a VectorEnv, the next `learn` begins new episodes.
        features_extractor_class, features_extractor_kwargs: a Stable-Baselines3 BaseFeaturesExtractor that reads
        observations in place of our encoders, and its arguments.
        settings: the flags of train_rl.py (`python train_rl.py --help --memory KIND --agent AGENT`) with underscores,
        such as `num_envs`, `learning_rate`, `memory_budget`, `seed`; `env_kwargs` may be a dict. Without `num_envs`
        there are 128 environments: how long the training is, by which train_rl.py chooses, only `learn` is told.

        Raises ValueError, one line, for settings or an environment that cannot be used.
        """
        for name in settings:
            if name in _LEARN_ARGUMENTS:
                raise ValueError(f"{name}: expected as an argument of learn, got it here")
            if name in _COMMAND_LINE_SETTINGS:
                raise ValueError(f"{name}: expected no such setting ({_COMMAND_LINE_SETTINGS[name]})")
        if features_extractor_kwargs is not None and features_extractor_class is None:
            raise ValueError("features_extractor_class: expected one with features_extractor_kwargs, got none")
        extractor = None
        if features_extractor_class is not None:
            extractor = (features_extractor_class, dict(features_extractor_kwargs or {}))
        name, settings = _name_and_settings(env, settings)
        resolved = resolve(memory, name, self.agent, **settings)
        run = resolved.run
        if "num_minibatches" not in settings:  # each has an environment at least
            resolved = resolved.replace(num_minibatches=min(resolved.agent.num_minibatches, run.num_envs))
        if isinstance(env, str):
            self._run = build(resolved, None, extractor, training.say, times_devices=True)
        else:
            with playing_in(env):
                vector = vector_of(env, run.num_envs, run.encoder, run.vectorization, run.env_timeout)
                with closed_on_error([] if exists(env) else [vector]):
                    self._run = build(resolved, vector, extractor, training.say, times_devices=True)
            self._run.info |= reference(env, run.encoder)
            if not exists(env):
                self._run.make_env = lambda: single_of(env, run.encoder, run.env_timeout)
        self._set_info()
        self._given_env = None if isinstance(env, str) else env
        _MODELS.add(self)
        self._directory: Path | None = None
        self.metrics: dict[str, float] = {}

    def learn(
        self,
        total_timesteps: int,
        callback: Callable[[Self], Any] | None = None,
        progress_bar: bool = False,
        run_dir: str | Path | None = None,
    ) -> Self:
        """Trains for `total_timesteps` environment steps, rounded up to whole rollouts, and returns the model.

        A second call trains for so many more steps. Schedules (learning rate, entropy) run over all steps since the
        first call, so a second call of equal length begins in the middle of them. The last tenth of each call is
        without training noise.
        callback: is called with the model after every update; returns False to end the training. What it raises is
        raised once the run directory has a checkpoint.
        run_dir: writes what train_rl.py writes: log, checkpoints, policy.safetensors. The directory must be new, or
        that of the last call. Raises KeyboardInterrupt after Ctrl-C, once the current update is finished. A second
        Ctrl-C interrupts at once.
        """
        if not is_number(total_timesteps) or not 1 <= total_timesteps < math.inf:
            raise ValueError(f"total_timesteps: expected a number of at least 1, got {total_timesteps!r}")
        if run_dir == "":
            raise ValueError("run_dir: expected the name of a folder, got ''")
        run, trainer = self._run, self._run.trainer
        path = None if run_dir is None else Path(run_dir)
        place = None if path is None else path.resolve()  # the same folder may have several names
        if path is not None and place != self._directory:
            check_run_dir(path, resume=False, overwrite=run.settings.run.overwrite)
        trainer.stop.clear()
        trainer.go_on(int(total_timesteps))
        run.settings = run.settings.replace(total_timesteps=trainer.total_timesteps, run_dir=str(run_dir or ""))
        files = None
        if path is not None:
            files = RunDirectory.again(path, run) if place == self._directory else RunDirectory.begin(path, run)
            self._directory = trainer.log_dir = place

        def report(metrics: dict[str, float]) -> Any:
            self.metrics = metrics
            return None if callback is None else callback(self)

        recording = files.training() if files is not None else contextlib.nullcontext()
        with recording, playing_in(self._given_env, by=self):
            training.learn(run, files, report, progress_bar)
        self._set_info()
        return self

    @property
    def policy(self) -> ActorCritic:
        """The policy as it is now, with `predict`."""
        return cast(ActorCritic, self._run.policy)

    @property
    def num_timesteps(self) -> int:
        """Environment steps trained so far."""
        return self._run.trainer.timesteps

    def save(self, path: str | Path, best: bool = False) -> None:
        """Writes the policy, a safetensors file that `load`, evaluate.py and visualize.py read.

        best: not the latest policy, but the latest that meets the success target and holds at most 20% more memories
        than the smallest, if there is one. Raises ValueError, one line, for a file that a run writes itself."""
        if is_of_a_run(Path(path)):
            raise ValueError(f"path: expected another file than a run's own, got {quoted(path)}")
        self._set_info()
        if best:
            save_best(self._run, path)
        else:
            save_policy(self.policy, path, cast(Any, self.policy).info)

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,
        reward: Any = None,
        *,
        action_masks: Any = None,
    ) -> tuple[Any, Any]:
        """Actions and the next state: `policy.predict`, whose first arguments are Stable-Baselines3's."""
        return self.policy.predict(observation, state, episode_start, deterministic, reward, action_masks=action_masks)

    def close(self) -> None:
        """Closes the environments."""
        self._run.trainer.close()

    def _trains_in(self, env: Any) -> bool:
        """Whether an environment that exists, in whatever wrappers, is the one that it trains in, is in a vector with
        it, or is such a vector."""
        given = self._given_env
        return exists(given) and not _played_in(cast(Any, given)).isdisjoint(_played_in(env))

    def _set_info(self) -> None:
        """Sets what the policy's file will say of it."""
        cast(Any, self.policy).info = {**self._run.info, "timesteps": self.num_timesteps}


def _played_in(env: gym.Env | VectorEnv) -> set[int]:
    """The objects that are played in where `env` is, by their identities: without wrappers, `env` itself and, of a
    SyncVectorEnv, the environments that it steps."""
    inner = env.unwrapped
    singles = inner.envs if isinstance(inner, SyncVectorEnv) else ()
    return {id(inner), *(id(single.unwrapped) for single in singles)}


_MODELS: weakref.WeakSet[Model] = weakref.WeakSet()


@contextlib.contextmanager
def playing_in(env: Any, by: Model | None = None) -> Iterator[None]:
    """Around what plays in `env`. Other models that train in it, or in a part of it, begin new episodes in their next
    rollout."""
    try:
        yield
    finally:
        if exists(env):
            for model in _MODELS:
                if model is not by and model._trains_in(env):
                    cast(Any, model._run.trainer).begin_new_episodes()


class PPO(Model):
    """Proximal policy optimisation (Schulman et al., 2017) over whole sequences."""

    agent = "ppo"


class IMPALA(Model):
    """IMPALA (Espeholt et al., 2018): one pass over each rollout, corrected by V-trace."""

    agent = "impala"


def _name_and_settings(env: Any, settings: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The name of the environment and the settings, with the number of environments of a VectorEnv. Raises TypeError
    for what is no environment, and ValueError, one line, for settings that do not go with it."""
    if isinstance(env, str):
        return env, dict(settings)
    check_given(env, {name: settings.get(name) for name in ("env_kwargs", "wrap", "imports")})
    number = settings.get("num_envs")
    if isinstance(env, VectorEnv) and number not in (None, env.num_envs):
        raise ValueError(f"num_envs: expected {env.num_envs}, as the VectorEnv has, or none, got {number}")
    if isinstance(env, gym.Env) and number != 1:
        raise ValueError(
            f"env: expected a function that makes one, such as {maker_of(env)}, for {number or RunConfig.num_envs} "
            "environments, got one that exists and cannot be copied (num_envs=1 trains in it alone)"
        )
    return name_of(env), {**settings, "num_envs": env.num_envs} if isinstance(env, VectorEnv) else dict(settings)
