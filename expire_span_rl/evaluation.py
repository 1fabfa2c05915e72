"""Evaluates policies on the same episodes: success, return, memory use and speed.

Every environment plays a fixed number of episodes, so that short ones are not over-represented, and every policy plays
the same ones: environment i of a batch has the seed + i, which no training has (`building.environment_seed`).
B environments, L layers.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from expire_span_rl.agents.episodes import quotients, ratio_parts
from expire_span_rl.environments import environment_of, soon
from expire_span_rl.envs import env_ids, import_modules, make_vec_env
from expire_span_rl.policies import as_tensors, check_spaces, load_policy
from expire_span_rl.settings import MAX_STEPS

HORIZON = 32  # steps between two compactions of the memory; results do not depend on it
FIRST_SEED = 10**12  # evaluation seeds begin here; training's are below, or beyond 2^61
BUCKETS = 4  # episodes are also reported by quarters of the largest difficulty


class EndlessEpisode(RuntimeError):
    """An episode of an evaluation that does not end. One line."""


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
    env: str,
    imports: Sequence[str],
    env_kwargs: Mapping[str, Any],
    protocol: Protocol,
    num_envs: int = 100,
    device: str = "cpu",
) -> dict[str, Any]:
    """Evaluates the policies of files or run directories on the same episodes, with a progress bar on stderr. What
    evaluate.py writes: `env`, `env_kwargs`, `seed` and, under `policies`, the figures of each.

    env, imports: what the user named, as `environments.environment_of` has it for the first policy; env_kwargs: over
    those of its training. Raises ValueError, one line, before anything is played, for a policy that cannot act there.
    """
    import_modules(imports)  # before the policies are read, whose memory kind one may register
    loaded = [load_policy(path, device) for path in paths]
    env_id, kwargs = environment_of(env, imports, loaded[0][1], paths[0], env_kwargs)
    with soon(env, paths[0]):
        first = vector_env(env_id, 1, kwargs)
        first.reset(seed=FIRST_SEED + protocol.seed * 1_000_003)
    first.close()
    for path, (policy, _) in zip(paths, loaded):
        check_spaces(policy.config, first.single_observation_space, first.single_action_space, str(path), env_id)
    results = []
    for path, (policy, info) in zip(paths, loaded):
        torch.manual_seed(protocol.seed)  # each policy's actions are its own, whatever stands before it
        with tqdm(total=protocol.episodes, unit="episode", desc=str(path), leave=False, disable=None) as bar:
            vector = vector_env(env_id, min(num_envs, protocol.episodes), kwargs)
            try:
                result = evaluate_in(policy, vector, env_id, protocol, bar.update)
            finally:
                vector.close()
        results.append({"path": str(path), "memory": policy.config.memory, "agent": info.get("agent"), **result})
    fill_missing_success(results)
    return {"env": env_id, "env_kwargs": kwargs, "seed": protocol.seed, "policies": results}


def vector_env(env: Any, num_envs: int, env_kwargs: Mapping[str, Any]) -> Any:
    """Environments to evaluate in, by id or by the function that makes one. Episode k of environment i is the same
    whatever was played before, of which only our own batched tasks and environments that are stepped one by one can be
    sure."""
    vectorization = "auto" if env in env_ids() else "sync"
    return make_vec_env(env, num_envs, **{"vectorization": vectorization, **env_kwargs})


def evaluate(
    policy: Any,
    env_id: str,
    env_kwargs: Mapping[str, Any],
    episodes: int,
    num_envs: int = 100,
    seed: int = 0,
    deterministic: bool = True,
    progress: Callable[[int], Any] = lambda count: None,
    max_steps: int = MAX_STEPS,
    check: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Plays `episodes` episodes and returns their figures, JSON-able, with the keys that
    docs/getting_started.md lists, and what the environment itself counts (`metadata["ratios"]`).

    progress: is called with 1 for every finished episode; check: before every step, and what it raises ends the
    evaluation. Raises EndlessEpisode for an episode of more than `max_steps` steps.
    Figures of live memories are means (and maxima) over all steps of these episodes, the step's own memory included.
    """
    env = vector_env(env_id, min(num_envs, episodes), env_kwargs)
    try:
        return evaluate_in(policy, env, env_id, Protocol(episodes, seed, deterministic, max_steps), progress, check)
    finally:
        env.close()


def evaluate_in(
    policy: Any,
    env: Any,
    name: str,
    protocol: Protocol,
    progress: Callable[[int], Any] = lambda count: None,
    check: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """`evaluate` in a vector environment that is there (of `make_vec_env`), called `name` in errors; it is not
    closed."""
    key, ratios = env.metadata.get("difficulty_key"), {"memory_efficiency": None, **env.metadata.get("ratios", {})}
    session = _Session(np.zeros(env.num_envs))
    _play(policy, env, name, protocol, progress, check, session)
    played, stores = session.episodes, session.live is not None
    for episode in played:
        info = episode.pop("info")
        episode["ratio_parts"] = {part: _number(info, part) or 0 for part in ratio_parts(ratios)}
        success, difficulty = _number(info, "is_success"), _number(info, key) if key else None
        episode["success"] = None if success is None else bool(success)
        episode["difficulty"] = float(episode["steps"] if difficulty is None else difficulty)
    if any(episode["success"] is not None for episode in played):  # where some tell, the others did not succeed
        for episode in played:
            episode["success"] = bool(episode["success"])
    live = session.live_sum / session.steps if stores else np.zeros(0)
    return {
        "parameters": sum(p.numel() for p in policy.parameters()),
        **_figures(played, stores, ratios),
        "live_memories_mean": live.tolist(),
        "live_memories_max": session.live_max.tolist() if stores else [],
        "memory_bytes": float(live @ session.memory.slot_bytes()) if stores else float(session.memory.bytes()[0]),
        "acting_steps_per_second": session.acted / session.seconds,
        "buckets": _buckets(played, stores, ratios, key or "steps"),
    }


@dataclass
class _Session:
    """What an evaluation has seen so far."""

    episode_live: np.ndarray
    """[B] live memories of the episode under way: the mean over layers, summed over steps."""
    episodes: list[dict[str, Any]] = field(default_factory=list)
    live: np.ndarray | None = None
    """[B,L] at the latest step; None for a memory without slots."""
    live_sum: Any = 0.0
    """[L] over the steps of all episodes that count."""
    live_max: Any = 0
    """[L]"""
    steps: int = 0
    """Of all episodes that count."""
    acted: int = 0
    """Actions, those of episodes that do not count too,"""
    seconds: float = 0.0
    """and the time that it took to choose them."""
    memory: Any = None
    """At the end."""
    asked: np.ndarray | None = None
    """[B] right actions that the environment asked for in the episode under way; None where it does not say them."""
    surprise: Any = 0.0
    """[B] -log p of these, in nats."""

    def count_answers(self, policy: Any, params: torch.Tensor, env: Any) -> None:
        """Counts how probable the policy finds the actions that are right now, where the environment says them. params:
        of the actions' distribution [B,P]."""
        right = getattr(env.unwrapped, "target", lambda: None)()
        if right is None or not hasattr(policy.actions, "log_prob"):
            return
        asked = env.unwrapped.decisions()
        log_prob = policy.actions.log_prob(params, torch.as_tensor(right, device=params.device))
        self.surprise = self.surprise - np.where(asked, log_prob.double().cpu().numpy(), 0.0)
        self.asked = asked.astype(np.int64) if self.asked is None else self.asked + asked

    def count(self, live: torch.Tensor | None, active: np.ndarray) -> None:
        """Counts the memories of a step. live: int64 [B,L]; active: bool [B], the environments whose episodes count."""
        self.steps += int(active.sum())
        if live is not None:
            self.live = live.cpu().numpy()
            self.live_sum = self.live_sum + self.live[active].sum(0)
            self.live_max = np.maximum(self.live_max, self.live[active].max(0))
            self.episode_live += self.live.mean(1)


@torch.no_grad()
def _play(
    policy: Any,
    env: Any,
    name: str,
    protocol: Protocol,
    progress: Callable[[int], Any],
    check: Callable[[], None],
    session: _Session,
) -> None:
    """Plays the protocol's episodes into the session."""
    batch = env.num_envs
    quota = np.full(batch, protocol.episodes // batch)
    quota[: protocol.episodes % batch] += 1
    observation, _ = env.reset(seed=FIRST_SEED + protocol.seed * 1_000_003)
    acting = policy.begin(policy.initial_memory(batch), HORIZON)
    start = np.ones(batch, bool)
    returns, lengths = np.zeros(batch), np.zeros(batch, np.int64)
    while quota.any():
        check()
        began = time.perf_counter()
        if acting.full:
            acting = policy.begin(acting.memory(), HORIZON, acting)
        params, _ = policy.step(
            as_tensors(observation, policy.device), acting, torch.as_tensor(start, device=policy.device)
        )
        choose = policy.actions.mode if protocol.deterministic else policy.actions.sample
        actions = policy.actions.to_env(choose(params))
        session.seconds += time.perf_counter() - began
        session.acted += batch
        active = quota > 0
        session.count(acting.live, active)
        session.count_answers(policy, params, env)
        observation, reward, terminated, truncated, infos = env.step(actions)
        returns, lengths = returns + reward, lengths + 1
        start = terminated | truncated
        for row in np.flatnonzero(start & active):
            episode = {"return": returns[row], "steps": int(lengths[row]), "info": _final_info(infos, int(row))}
            if session.live is not None:
                episode["live"] = session.episode_live[row] / lengths[row]
                episode["live_last"] = session.live[row].mean()
            if session.asked is not None:
                episode["asked"], episode["surprise"] = int(session.asked[row]), float(session.surprise[row])
            session.episodes.append(episode)
            progress(1)
        quota[start & active] -= 1
        returns[start], lengths[start], session.episode_live[start] = 0, 0, 0
        if session.asked is not None:
            session.asked[start], session.surprise[start] = 0, 0
        endless = np.flatnonzero((quota > 0) & (lengths >= protocol.max_steps))
        if len(endless):
            raise EndlessEpisode(
                f"{name}, environment {endless[0]}: expected an episode of at most {protocol.max_steps:,} steps, it goes on; "
                "--max-steps allows longer ones, and many environments take a time limit: "
                """--env-kwargs '{"max_episode_steps": 1000}'"""
            )
    session.memory = acting.memory()


def _final_info(infos: Mapping[str, Any], row: int) -> dict[str, Any]:
    """What the environment said at the end of a row's episode, by name; nothing of what it said of others only."""
    said = infos.get("final_info", {})
    return {
        name: values[row]
        for name, values in said.items()
        if not name.startswith("_") and isinstance(values, np.ndarray) and said.get(f"_{name}", np.ones(row + 1))[row]
    }


def _number(info: Mapping[str, Any], name: str) -> float | None:
    """An entry of an info as a number; None if it is not there, or is something else: a text, a list, None."""
    value = np.asarray(info.get(name))
    return value.item() if value.ndim == 0 and value.dtype.kind in "biuf" else None


def _buckets(
    played: Sequence[Mapping[str, Any]], stores: bool, ratios: Mapping[str, Any], by: str
) -> list[dict[str, Any]]:
    """Figures of the episodes by quarters of the largest difficulty, those without an episode left out."""
    largest = max(e["difficulty"] for e in played)
    buckets = []
    for low, high in itertools.pairwise(largest * i / BUCKETS for i in range(BUCKETS + 1)):
        inside = [e for e in played if low < e["difficulty"] <= high]
        if inside:
            bounds = {"by": by, "low": math.floor(low) + 1, "high": math.floor(high)}
            buckets.append({**bounds, **_figures(inside, stores, ratios)})
    return buckets


def _figures(played: Sequence[Mapping[str, Any]], stores: bool, ratios: Mapping[str, Any]) -> dict[str, Any]:
    """Figures of some episodes. live_memories_at_end: mean over layers at the last step of an episode."""
    out: dict[str, Any] = {"episodes": len(played), "success_rate": None, "success_rate_ci95": None}
    if played[0]["success"] is not None:
        successes = sum(e["success"] for e in played)
        out["success_rate"] = successes / len(played)
        out["success_rate_ci95"] = list(wilson(successes, len(played)))
    out["mean_return"] = float(np.mean([e["return"] for e in played]))
    out["mean_episode_length"] = float(np.mean([e["steps"] for e in played]))
    out |= quotients([e["ratio_parts"] for e in played], ratios)
    if "asked" in played[0]:
        asked = sum(e["asked"] for e in played)
        out["bits"] = sum(e["surprise"] for e in played) / asked / math.log(2) if asked else None
    if stores:
        out["live_memories_per_episode"] = float(np.mean([e["live"] for e in played]))
        out["live_memories_at_end"] = float(np.mean([e["live_last"] for e in played]))
    return out


def fill_missing_success(results: Iterable[dict[str, Any]]) -> None:
    """Where an environment told some policies' episodes of success, in place, the others' did not succeed."""
    every = [figures for result in results for figures in (result, *result["buckets"])]
    if any(figures["success_rate"] is not None for figures in every):
        for figures in every:
            if figures["success_rate"] is None:
                figures |= {"success_rate": 0.0, "success_rate_ci95": list(wilson(0, figures["episodes"]))}


def wilson(successes: int, trials: int, z: float = 1.96) -> tuple[float, float]:
    """The Wilson score interval (Wilson, 1927) of a proportion; 95% for z = 1.96."""
    p = successes / trials
    centre = (p + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(p * (1 - p) / trials + z * z / (4 * trials * trials))
    # Where all or none succeeded one end is exactly the rate itself, whatever rounding does.
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == trials else centre + half)
