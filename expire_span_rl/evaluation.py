"""Evaluates policies on the same episodes: success, return, memory use and speed.

Every environment plays a fixed number of episodes, so that short ones are not over-represented. Every policy plays the
same episodes: environment i of a batch has the seed + i, which no training has (`building.environment_seed`).
B environments, L layers.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from tqdm import tqdm

from expire_span_rl.agents.episodes import asks_nothing, ratio_parts
from expire_span_rl.devices import random_numbers_of
from expire_span_rl.environments import environment_of, soon
from expire_span_rl.envs import env_ids, import_modules, make_vec_env
from expire_span_rl.envs.core_adapters import BatchedVectorEnv
from expire_span_rl.evaluation_metrics import buckets_of, fill_missing_success, metrics_of
from expire_span_rl.policies import as_tensors, check_spaces, load_policy
from expire_span_rl.protocols import Acting, Memory, Policy
from expire_span_rl.settings import MAX_STEPS
from expire_span_rl.spaces import EPISODE_LOST

HORIZON = 32  # steps between two compactions of the memory; results do not depend on it
FIRST_SEED = 10**12  # evaluation seeds begin here; training's are below, or beyond 2^61


class EndlessEpisode(RuntimeError):
    """An episode of an evaluation that does not end. One line: the problem, and what may help."""

    def __init__(self, problem: str, advice: str):
        super().__init__(f"{problem}; {advice}")
        self.problem = problem
        self.advice = advice

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        """For a benchmark's process, which sends its error to another one."""
        return type(self), (self.problem, self.advice)


def endless(name: str, problem: str) -> EndlessEpisode:
    """The error for an episode that is too long. name: of the environment, which the problem follows."""
    limit = """, and many environments take a time limit: --env-kwargs '{"max_episode_steps": 1000}'"""
    advice = f"--max-steps allows longer ones (max_steps in Python){limit if name not in env_ids() else ''}"
    return EndlessEpisode(f"{name}{problem}", advice)


@dataclass(frozen=True)
class Protocol:
    """How an evaluation is played."""

    episodes: int = 1000
    seed: int = 0
    """Which episodes."""
    deterministic: bool = True
    """Take the most likely actions instead of drawing them."""
    max_steps: int = MAX_STEPS
    """The longest episode."""


def compare(
    paths: Sequence[str],
    protocol: Protocol,
    *,
    env: str = "",
    imports: Sequence[str] = (),
    env_kwargs: Mapping[str, Any],
    num_envs: int = 100,
    device: str = "cpu",
    on_stop: Callable[[dict[str, Any]], Any] = lambda report: None,
) -> dict[str, Any]:
    """Evaluates the policies of files or run directories on the same episodes, with a progress bar on stderr. Returns
    what evaluate.py writes: `env`, `env_kwargs`, what else the episodes depend on (`seed`, `num_envs`, `deterministic`)
    and, under `policies`, the metrics of each.

    env, imports: what the user named, as `environments.environment_of` takes it for the first policy; env_kwargs:
    replace those of its training. on_stop: is called with the report of the policies that are finished and `stopped`,
    True, if there are some, before an error or a signal ends the evaluation. Raises ValueError, one line, before
    anything is played, for a policy that cannot act there.
    """
    import_modules(imports)  # before the policies are read, since a module may register their memory kind
    loaded = [load_policy(path, device) for path in paths]
    env_id, kwargs = environment_of(env, imports, loaded[0][1], paths[0], env_kwargs)
    with soon(env, paths[0]):
        sample = vector_env(env_id, 1, kwargs)
        with contextlib.closing(sample):
            sample.reset(seed=FIRST_SEED + protocol.seed * 1_000_003)
    for path, (policy, _) in zip(paths, loaded, strict=True):
        check_spaces(policy.config, sample.single_observation_space, sample.single_action_space, str(path), env_id)
    report: dict[str, Any] = {
        "env": env_id,
        "env_kwargs": kwargs,
        "seed": protocol.seed,
        "num_envs": min(num_envs, protocol.episodes),
        "deterministic": protocol.deterministic,
        "policies": [],
    }
    try:
        for path, (policy, info) in zip(paths, loaded, strict=True):
            result = _compared(policy, path, report, protocol, device)
            about = {"path": str(path), "memory": policy.config.memory, "agent": info.get("agent")}
            report["policies"].append({**about, **result})
    except BaseException:
        if report["policies"]:
            fill_missing_success(report["policies"])
            on_stop({**report, "stopped": True})
        raise
    fill_missing_success(report["policies"])
    return report


def _compared(policy: Policy, path: str, report: Mapping[str, Any], protocol: Protocol, device: str) -> dict[str, Any]:
    """The metrics of one of the policies that are compared, in environments of its own. report: what `compare` begins
    with."""
    bar = tqdm(total=protocol.episodes, unit="episode", desc=str(path), leave=False, disable=None)
    with (
        bar,
        random_numbers_of(protocol.seed, device),  # so that actions do not depend on policies before it
        contextlib.closing(vector_env(report["env"], report["num_envs"], report["env_kwargs"])) as vector,
    ):
        return evaluate_in(policy, vector, report["env"], protocol, progress=bar.update)


def vector_env(env: Any, num_envs: int, env_kwargs: Mapping[str, Any]) -> VectorEnv:
    """Environments to evaluate in, by id or by the function that makes one.

    Episode k of environment i must be the same whatever was played before. Only our own batched tasks and environments
    that are stepped one by one guarantee that."""
    vectorization = "auto" if env in env_ids() else "sync"
    return make_vec_env(env, num_envs, **{"vectorization": vectorization, **env_kwargs})


def evaluate(
    policy: Policy,
    env_id: str,
    env_kwargs: Mapping[str, Any],
    episodes: int,
    *,
    num_envs: int = 100,
    seed: int = 0,
    deterministic: bool = True,
    progress: Callable[[int], Any] = lambda count: None,
    max_steps: int = MAX_STEPS,
    check: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Plays `episodes` episodes and returns their metrics, JSON-able, with the keys that docs/getting_started.md lists,
    and what the environment itself counts (`metadata["ratios"]`).

    progress: is called with 1 for every finished episode; check: is called before every step, and what it raises ends
    the evaluation. Raises EndlessEpisode for an episode of more than `max_steps` steps.
    Live memories are means (and maxima) over all steps of these episodes, the step's own memory included.
    """
    protocol = Protocol(episodes, seed, deterministic, max_steps)
    with contextlib.closing(vector_env(env_id, min(num_envs, episodes), env_kwargs)) as env:
        return evaluate_in(policy, env, env_id, protocol, progress=progress, check=check)


def evaluate_in(
    policy: Policy,
    env: VectorEnv,
    name: str,
    protocol: Protocol,
    *,
    progress: Callable[[int], Any] = lambda count: None,
    check: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """`evaluate` in an existing vector environment (of `make_vec_env`), which is not closed. name: for messages."""
    key = env.metadata.get("difficulty_key")
    ratios = {"memory_efficiency": None, **env.metadata.get("ratios", {})}
    session = _Session()
    _Player(policy, env, name, protocol).play(session, progress, check)
    episodes = session.episodes
    stores = session.live is not None
    for episode in episodes:
        _read_info(episode, ratios, key)
    if any(episode["success"] is not None for episode in episodes):
        # An episode without the entry did not succeed, unless nothing was asked in it.
        for episode in episodes:
            if episode["success"] is None and not asks_nothing(episode["ratio_parts"], ratios):
                episode["success"] = 0.0
    live = session.live_sum / session.steps if stores else np.zeros(0)
    memory = cast(Memory, session.memory)
    return {
        "parameters": sum(p.numel() for p in policy.parameters()),
        **metrics_of(episodes, stores, ratios),
        "live_memories_mean": live.tolist(),
        "live_memories_max": session.live_max.tolist() if stores else [],
        "memory_bytes": float(live @ memory.slot_bytes()) if stores else float(memory.bytes()[0]),
        "acting_steps_per_second": session.acted / session.seconds,
        "buckets": buckets_of(episodes, stores, ratios, key or "steps"),
    }


def _read_info(episode: dict[str, Any], ratios: Mapping[str, Any], key: str | None) -> None:
    """Replaces the `info` of an episode by what is counted of it. key: the entry that has its difficulty."""
    info = episode.pop("info")
    episode["ratio_parts"] = {part: _number(info, part) or 0 for part in ratio_parts(ratios)}
    success = _number(info, "is_success")
    difficulty = _number(info, key) if key else None
    episode["success"] = success if success is None else float(success)
    episode["difficulty"] = float(episode["steps"] if difficulty is None else difficulty)


@dataclass
class _Session:
    """The state of an evaluation."""

    episodes: list[dict[str, Any]] = field(default_factory=list)
    live: np.ndarray | None = None
    """[B,L] at the latest step; None for a memory without slots."""
    episode_sum: np.ndarray | None = None
    """[B,L] live memories of the current episode, summed over its steps."""
    episode_max: np.ndarray | None = None
    """[B,L]"""
    live_sum: Any = 0
    """[L] over the steps of all episodes that count."""
    live_max: Any = 0
    """[L]"""
    steps: int = 0
    """Of all episodes that count."""
    acted: int = 0
    """Actions, including those of episodes that do not count."""
    seconds: float = 0.0
    """The time that it took to choose them."""
    memory: Memory | None = None
    """At the end."""
    asked: np.ndarray | None = None
    """[B] answers that the environment asked for in the current episode; None if it does not say what is right."""
    surprise: np.ndarray | None = None
    """[B] -log p of the right answers to them, in nats, summed."""

    def count_answers(self, policy: Policy, params: torch.Tensor, env: Any) -> None:
        """Counts how probable the policy finds the right actions, if the environment says which they are. params: of
        the actions' distribution [B,P]."""
        streams = env.unwrapped
        if not isinstance(streams, BatchedVectorEnv) or not hasattr(policy.actions, "log_prob"):
            return
        right = streams.target()
        asked = None if right is None else streams.decisions()
        if asked is None:
            return
        log_prob = policy.actions.log_prob(params, torch.as_tensor(right, device=params.device)).double().cpu().numpy()
        if self.asked is None or self.surprise is None:
            self.asked = np.zeros(len(asked), np.int64)
            self.surprise = np.zeros(len(asked))
        self.asked += asked
        self.surprise -= np.where(asked, log_prob, 0.0)

    def count(self, live: torch.Tensor | None) -> None:
        """Counts the memories of a step. live: int64 [B,L]. What they are part of counts when its episode ends."""
        if live is None:
            return
        self.live = live.cpu().numpy()
        if self.episode_sum is None or self.episode_max is None:
            self.episode_sum, self.episode_max = np.zeros_like(self.live), np.zeros_like(self.live)
        self.episode_sum += self.live
        np.maximum(self.episode_max, self.live, out=self.episode_max)

    def end_episode(self, row: int, episode_return: float, steps: int, info: Mapping[str, Any]) -> None:
        """Adds the episode that ended in a row."""
        episode = {"return": episode_return, "steps": int(steps), "info": dict(info)}
        self.steps += int(steps)
        if self.live is not None and self.episode_sum is not None and self.episode_max is not None:
            self.live_sum = self.live_sum + self.episode_sum[row]
            self.live_max = np.maximum(self.live_max, self.episode_max[row])
            episode["live"] = self.episode_sum[row].mean() / steps
            episode["live_last"] = self.live[row].mean()
            episode["held"] = (self.live[row] - 1) / steps
        if self.asked is not None and self.surprise is not None:
            episode["asked"] = int(self.asked[row])
            episode["surprise"] = float(self.surprise[row])
        self.episodes.append(episode)

    def begin_episodes(self, start: np.ndarray) -> None:
        """Forgets what was counted of the episodes that ended. start: bool [B], where others begin."""
        for totals in (self.episode_sum, self.episode_max, self.asked, self.surprise):
            if totals is not None:
                totals[start] = 0


@dataclass(frozen=True)
class _Player:
    """Plays a protocol's episodes."""

    policy: Policy
    env: VectorEnv
    name: str
    """What messages call the environment."""
    protocol: Protocol

    @torch.inference_mode()
    def play(self, session: _Session, progress: Callable[[int], Any], check: Callable[[], None]) -> None:
        """Plays all episodes into the session. progress, check: as for `evaluate`."""
        policy, protocol, batch = self.policy, self.protocol, self.env.num_envs
        quota = np.full(batch, protocol.episodes // batch)
        quota[: protocol.episodes % batch] += 1
        observation, _ = self.env.reset(seed=FIRST_SEED + protocol.seed * 1_000_003)
        acting = policy.begin(policy.initial_memory(batch), HORIZON)
        start = np.ones(batch, bool)
        returns = np.zeros(batch)
        lengths = np.zeros(batch, np.int64)
        while quota.any():
            check()
            began = time.perf_counter()
            if acting.full:
                acting = policy.begin(acting.memory(), HORIZON, acting)
            params = self._step(observation, acting, start)
            actions = self._choose(params)
            session.seconds += time.perf_counter() - began
            session.acted += batch
            active = quota > 0
            session.count(acting.live)
            session.count_answers(policy, params, self.env)
            observation, reward, terminated, truncated, infos = self.env.step(actions)
            returns = returns + reward
            lengths = lengths + 1
            start = terminated | truncated
            for row in np.flatnonzero(start & active):
                final_info = _final_info(infos, int(row))
                if final_info.get(EPISODE_LOST):  # counts nowhere: the row plays another
                    continue
                session.end_episode(int(row), returns[row], lengths[row], final_info)
                progress(1)
                quota[row] -= 1
            returns[start] = lengths[start] = 0
            session.begin_episodes(start)
            self._check_lengths(lengths, quota)
        session.memory = acting.memory()

    def _step(self, observation: Mapping[str, np.ndarray], acting: Acting, start: np.ndarray) -> torch.Tensor:
        """The parameters [B,P] of the actions' distribution for one time step. start: bool [B], where an episode
        begins."""
        policy = self.policy
        entries = as_tensors(observation, policy.device)
        return policy.step(entries, acting, torch.as_tensor(start, device=policy.device))[0]

    def _choose(self, params: torch.Tensor) -> np.ndarray:
        """Actions of a distribution, as the environment takes them."""
        actions = self.policy.actions
        choose = actions.mode if self.protocol.deterministic else actions.sample
        return actions.to_env(choose(params))

    def _check_lengths(self, lengths: np.ndarray, quota: np.ndarray) -> None:
        """Raises EndlessEpisode for an episode that counts and is too long. lengths, quota: [B]."""
        most = self.protocol.max_steps
        rows = np.flatnonzero((quota > 0) & (lengths >= most))
        if len(rows):
            raise endless(
                self.name, f", environment {rows[0]}: expected an episode of at most {most:,} steps, it goes on"
            )


def _final_info(infos: Mapping[str, Any], row: int) -> dict[str, Any]:
    """The info at the end of a row's episode, by name, without entries that are other rows' only."""
    final = infos.get("final_info", {})
    return {
        name: values[row]
        for name, values in final.items()
        if not name.startswith("_") and isinstance(values, np.ndarray) and final.get(f"_{name}", np.ones(row + 1))[row]
    }


def _number(info: Mapping[str, Any], name: str) -> float | None:
    """An entry of an info as a number; None if it is missing or no number (a text, a list, None)."""
    value = np.asarray(info.get(name))
    return value.item() if value.ndim == 0 and value.dtype.kind in "biuf" else None
