"""The Python interface, in the shape of Stable-Baselines3's. `import expire_span_rl as es` has all of it.

An environment is given as an id ("Corridor-v0", "package:Id-v0", "path/to/my_envs.py:Id-v0"), as a function without
arguments that makes one (a class too), or as one that exists: a `gym.Env` or a Gymnasium `VectorEnv` in SAME_STEP
autoreset.
"""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from gymnasium import spaces
from gymnasium.vector import VectorEnv

from expire_span_rl.checks import EPISODE_SEED_BITS, SEED_BITS, shown
from expire_span_rl.devices import choose_device, random_numbers_of
from expire_span_rl.env_objects import (
    Environment,
    as_read,
    check_given,
    closing_ours,
    name_of,
    single_of,
    vector_of,
)
from expire_span_rl.environments import environment_of
from expire_span_rl.envs import make_env
from expire_span_rl.evaluation import Protocol, evaluate_in, vector_env
from expire_span_rl.files import last_name
from expire_span_rl.model import IMPALA, PPO, Model, playing_in
from expire_span_rl.policies import ActorCritic, check_spaces, load_policy
from expire_span_rl.policies.encoders.extractor import FeaturesExtractor
from expire_span_rl.policies.io import policy_info, policy_observation
from expire_span_rl.protocols import Policy
from expire_span_rl.settings import MAX_STEPS
from expire_span_rl.visualization import AUDITED, Showing, environment_for, show_in

__all__ = ["IMPALA", "PPO", "Model", "evaluate", "load", "show"]


def load(
    path: str | Path,
    device: str = "cpu",
    *,
    features_extractor_class: type | None = None,
    features_extractor_kwargs: Mapping[str, Any] | None = None,
    env: Environment | None = None,
) -> ActorCritic:
    """The policy in a file or a run directory, with `predict`. Its `info` is what the file says of it: `env`,
    `env_kwargs`, `agent` and so on. Raises ValueError, one line, for a file that is no policy.

    features_extractor_class, features_extractor_kwargs: as the policy was trained with, since a file brings no code.
    env: an environment whose observations it reads; None: the one that the policy was trained in.
    """
    device = choose_device(device).name
    extractor = None
    if features_extractor_class is not None:
        info = policy_info(path) if env is None else {}
        space = _observation_space(env, info, path)
        extractor = FeaturesExtractor(space, features_extractor_class, features_extractor_kwargs or {})
    policy, info = load_policy(path, device, extractor)
    cast(Any, policy).info = info
    return policy


def _observation_space(env: Environment | None, info: Mapping[str, Any], path: Any) -> spaces.Dict:
    """That of an environment as `make_env` wraps it, read as the policy at `path` reads it."""
    check_given(env, {})
    with playing_in(env):
        if isinstance(env, VectorEnv):
            vector = as_read(lambda encoder: vector_of(env, env.num_envs, encoder), policy_observation(path))
            return cast(spaces.Dict, vector.single_observation_space)
        if env is None or isinstance(env, str):
            name, kwargs = environment_of(env or "", (), info, path)
            single = make_env(name, **kwargs)
        else:
            single = as_read(lambda encoder: single_of(env, encoder), policy_observation(path))
        with closing_ours(env, single):
            return cast(spaces.Dict, single.observation_space)


def evaluate(
    policy: Policy | Model | str | Path,
    env: Environment | None = None,
    episodes: int = 1000,
    *,
    num_envs: int = 100,
    seed: int = 0,
    deterministic: bool = True,
    max_steps: int = MAX_STEPS,
    env_kwargs: Mapping[str, Any] | None = None,
    imports: Sequence[str] = (),
    device: str = "cpu",
) -> dict[str, Any]:
    """A policy's success, return, memory use and speed over `episodes` episodes: what evaluate.py writes of it as JSON.

    policy: the policy, a model, or the path of a policy file or a run directory. env: see the module; None: the one
    that the policy was trained in. env_kwargs: over those of its training. seed, num_envs: which episodes; every policy
    plays the same. In a Gymnasium VectorEnv, only the first episode of each environment is determined by the seed.
    Raises ValueError, one line, for a policy that cannot act there, and RuntimeError for an episode of more than
    `max_steps` steps.
    """
    _check_counts({"episodes": episodes, "num_envs": num_envs, "max_steps": max_steps})
    seed = _checked_seed(seed, SEED_BITS)
    actor, info, path = _find_policy(policy, choose_device(device).name)
    protocol = Protocol(episodes, seed, deterministic, max_steps)
    count = min(num_envs, episodes)
    check_given(env, {"env_kwargs": env_kwargs, "imports": imports})
    with playing_in(env):
        if env is None or isinstance(env, str):
            name, kwargs = environment_of(env or "", imports, info, path, env_kwargs)
            vector = vector_env(name, count, kwargs)
        else:
            name = name_of(env)
            vector = as_read(lambda encoder: vector_of(env, count, encoder), actor.config.observation)
        with closing_ours(env, vector):
            check_spaces(actor.config, vector.single_observation_space, vector.single_action_space, path, name)
            with random_numbers_of(seed, actor.device):
                result = evaluate_in(actor, vector, name, protocol)
    return {"path": path, "memory": actor.config.memory, "agent": info.get("agent"), **result}


def show(
    policy: ActorCritic | Model | str | Path,
    env: Environment | None = None,
    seed: int = 0,
    *,
    episodes: int = 1,
    deterministic: bool = True,
    max_steps: int = MAX_STEPS,
    audit: int = AUDITED,
    env_kwargs: Mapping[str, Any] | None = None,
    imports: Sequence[str] = (),
) -> Showing:
    """What a policy remembers in an episode, and whether that mattered: the viewer's page in a notebook; `save` writes
    it (.html), the figure (.png, .pdf, .svg), the film (.mp4) or all numbers (.json).

    policy, env, env_kwargs: as for `evaluate`, but no VectorEnv. seed: of the first episode; the next ones have seed +
    1, seed + 2 and so on; no training has those from 10^12 to 2 * 10^18. audit: at every decision, measures the effect
    of this many of the memories that are attended to most; 0: no measurement.
    Raises ValueError, one line, for a policy that cannot act there, and RuntimeError for an episode of more than
    `max_steps` steps.
    """
    _check_counts({"episodes": episodes, "max_steps": max_steps})
    _check_counts({"audit": audit}, least=0)
    seed = _checked_seed(seed, EPISODE_SEED_BITS)
    actor, info, path = _find_policy(policy, "cpu")
    if isinstance(env, VectorEnv):
        raise TypeError("env: expected an id, one environment, or a function that makes one, got a VectorEnv")
    check_given(env, {"env_kwargs": env_kwargs, "imports": imports})
    with playing_in(env):
        if env is None or isinstance(env, str):
            name, single = environment_for(
                actor, info, path, env=env or "", imports=imports, env_kwargs=dict(env_kwargs or {})
            )
        else:
            name = name_of(env)
            single = as_read(lambda encoder: single_of(env, encoder), actor.config.observation)
        with closing_ours(env, single):
            check_spaces(actor.config, single.observation_space, single.action_space, path, name)
            return show_in(
                actor,
                single,
                name,
                last_name(path),
                seed=seed,
                episodes=episodes,
                deterministic=deterministic,
                max_steps=max_steps,
                audit=audit,
            )


def _check_counts(counts: Mapping[str, Any], least: int = 1) -> None:
    """Raises ValueError, one line, for a number, by its name, that is no whole one or below `least`."""
    for name, count in counts.items():
        if not isinstance(count, numbers.Integral) or isinstance(count, bool) or count < least:
            raise ValueError(f"{name}: expected a whole number of at least {least}, got {count!r}")


def _checked_seed(seed: Any, bits: int) -> int:
    """The seed. Raises ValueError, one line, for what is no whole number from 0 to 2^bits - 1."""
    if isinstance(seed, numbers.Integral) and not isinstance(seed, bool) and 0 <= int(seed) < 2**bits:
        return int(seed)
    raise ValueError(f"seed: expected a whole number from 0 to 2^{bits} - 1, got {shown(repr(seed), 60)}")


def _find_policy(policy: Any, device: str) -> tuple[Any, dict[str, Any], str]:
    """(the policy, its info, its path or what messages call it). Raises TypeError for what is no policy."""
    if isinstance(policy, (str, Path)):
        return *load_policy(policy, device), str(policy)
    if isinstance(policy, Model):
        policy = policy.policy
    if not hasattr(policy, "config"):
        raise TypeError(f"policy: expected a policy, a model or the path of a policy file, got {policy!r}")
    return policy, getattr(policy, "info", {}), "policy"
