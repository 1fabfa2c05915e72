"""One episode of a saved policy, as it was played, and the lives of its memories.

T steps of the episode, t of them at once, A actions, L layers, H heads, C slots of a layer. An observation is named by
the step at which it was written; *live* means visible to the query of that step, itself included.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from expire_span_rl.policies import ActorCritic, Memory, as_tensors, sample

CHUNK = 256  # steps inspected at once; what is shown does not depend on it
ATTENDED = 64  # observations per step and layer whose attention is kept,
FAINTEST = 0.005  # if some head gives one at least this much


@dataclass(frozen=True)
class Episode:
    """One episode as it was played."""

    observations: list[dict[str, np.ndarray]]  # T, without batch axis
    actions: np.ndarray  # int64 [T], counted from 0
    rewards: np.ndarray  # float64 [T]
    memories: dict[int, Memory]  # by step: what was remembered before it; pieces to inspect begin at these steps
    ended: str  # "terminated", "truncated" or "stopped" (at max_steps)
    info: dict[str, Any]  # what the environment said at the last step
    values: np.ndarray = field(default_factory=lambda: np.zeros(0))  # float64 [T] the policy's, before each action
    probabilities: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))  # float64 [T,A] of the actions
    decisions: np.ndarray | None = None  # bool [T]: the action must be chosen by remembered facts; None: not known
    facts: np.ndarray | None = None  # int64 [T]: the number of the fact that the observation shows, -1 for none


def play(
    policy: ActorCritic,
    env: gym.Env,
    seed: int,
    max_steps: int,
    deterministic: bool,
    chunk: int = CHUNK,
    watch: Callable[[gym.Env], None] = lambda env: None,
) -> Episode:
    """Plays the episode of `seed`, or its first `max_steps` steps. `watch` is called before each action."""
    generator = torch.Generator().manual_seed(seed)
    core = getattr(env.unwrapped, "core", None)
    observations, actions, rewards, values, chances = [], [], [], [], []
    decisions, facts = [], []
    memories = {0: policy.initial_memory(1)}
    observation, info = env.reset(seed=seed)
    acting, ended = policy.begin(memories[0], chunk), "stopped"
    while ended == "stopped" and len(actions) < max_steps:
        if acting.full:
            memories[len(actions)] = acting.memory()
            acting = policy.begin(memories[len(actions)], chunk)
        observations.append({key: np.array(observation[key]) for key in policy.config.observation})
        watch(env)
        decisions.append(None if core is None else core.decisions())
        facts.append(None if core is None else core.facts())
        now = {key: value[0] for key, value in tensors_of(policy, observations[-1:]).items()}
        logits, value = policy.step(now, acting, torch.tensor([not actions], device=policy.device))
        actions.append(int(logits.argmax(-1) if deterministic else sample(logits, generator)))
        values.append(float(value))
        chances.append(torch.softmax(logits[0].double(), -1).cpu().numpy())
        observation, reward, terminated, truncated, info = env.step(actions[-1] + int(env.action_space.start))
        rewards.append(float(reward))
        ended = "terminated" if terminated else "truncated" if truncated else "stopped"
    return Episode(
        observations, np.array(actions), np.array(rewards), memories, ended, dict(info),
        np.array(values), np.stack(chances), _told(decisions), _told(facts),
    )  # fmt: skip


def _told(rows: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """What a core of one environment told at each step, [T]; None where it does not say."""
    return None if rows[0] is None else np.concatenate(rows)


def tensors_of(policy: ActorCritic, observations: Sequence[Mapping[str, np.ndarray]]) -> dict[str, Tensor]:
    """Observations of t steps as tensors [t,1,...]."""
    stacked = {key: np.stack([o[key] for o in observations])[:, None] for key in policy.config.observation}
    return as_tensors(stacked, policy.device)


def outcome(episode: Episode) -> str:
    """What happened, in a few words."""
    steps = len(episode.actions)
    told = f"return {episode.rewards.sum():.4g} in {steps} step{'s' * (steps != 1)}"
    if "is_success" in episode.info and episode.ended != "stopped":
        told = f"{'success' if episode.info['is_success'] else 'failure'}, {told}"
    return told + {"truncated": ", time limit reached", "stopped": ", stopped before its end"}.get(episode.ended, "")


def action_names(env: gym.Env) -> list[str]:
    """A name per action: the environment's (`metadata["action_names"]`, or MiniGrid's enum), else "action 0", ..."""
    count, enum = int(env.action_space.n), getattr(env.unwrapped, "actions", None)
    names = env.unwrapped.metadata.get("action_names") or [a.name for a in enum or () if hasattr(a, "name")]
    return [str(name) for name in names] if len(names) == count else [f"action {i}" for i in range(count)]


@dataclass
class LayerLives:
    """What one layer did with the T observations of an episode."""

    end: np.ndarray  # int64 [T] first step whose query no longer sees the observation; T: live to the last
    peak: np.ndarray  # float64 [T] largest attention weight, of any head, that a later step gave it (see `look`)
    decision: np.ndarray  # float64 [H,T] attention weights of the last step
    live: np.ndarray  # int64 [T] memories that were live at each step
    span: np.ndarray | None  # float64 [T] the span it was written with, in steps; None for kinds without
    attention: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    """Per step: the observations it attended to most, int64 [n], and their weights, float64 [H,n] (see `look`)."""


def ends(visible: np.ndarray) -> np.ndarray:
    """visible bool [t,C] -> int64 [C]: the first query after the last that sees the slot; 0 if none sees it."""
    return np.where(visible.any(0), len(visible) - visible[::-1].argmax(0), 0)


def look(policy: ActorCritic, episode: Episode) -> list[LayerLives]:
    """The lives of the episode's observations, per layer; [] for a kind without memories to look at.

    Where a memory stands for several observations (Compressive-Transformer), each of them lives in it and gets an equal
    share of its attention. Kept per step: at most ATTENDED observations, those with a weight of FAINTEST or more.
    """
    lives: list[LayerLives] = []
    steps = len(episode.actions)
    for first, past in pairwise([*episode.memories, steps]):
        part = tensors_of(policy, episode.observations[first:past])
        fresh = torch.arange(first, past, device=policy.device)[:, None] == 0  # [t,1]
        for i, layer in enumerate(policy.inspect(part, episode.memories[first], fresh)[2]):
            if first == 0:
                span = None if layer.described is None else np.zeros(steps)
                heads = np.zeros((layer.attention.shape[1], steps))
                empty = np.zeros(steps, int), np.zeros(steps), heads, np.zeros(steps, int), span
                lives.append(LayerLives(*empty))
            held = torch.isfinite(layer.coordinate[0])  # the others are padding
            lives[i].live[first:past] = layer.visible[0][:, held].sum(1).cpu().numpy()
            # A slot that stands for several steps becomes as many columns, each with its share of the attention.
            covers = layer.covers[0, held].cpu().numpy()
            column = np.repeat(np.arange(len(covers)), covers)  # [C]
            written = layer.coordinate[0, held].round().long().cpu().numpy()[column] + first
            written -= np.concatenate([np.arange(n)[::-1] for n in covers])
            visible = layer.visible[0][:, held].cpu().numpy()[:, column]
            attention = layer.attention[0][:, :, held].cpu().numpy()[:, :, column] / covers[column]  # [H,t,C]
            seen = ends(visible)
            np.maximum.at(lives[i].end, written, np.where(seen > 0, first + seen, 0))
            later = attention.max(0) * (np.arange(first, past)[:, None] > written)  # [t,C]
            np.maximum.at(lives[i].peak, written, later.max(0))
            lives[i].decision[:] = 0
            np.add.at(lives[i].decision, (slice(None), written), attention[:, -1])
            lives[i].attention += [strongest(weights, written) for weights in attention.transpose(1, 0, 2)]
            if lives[i].span is not None:
                lives[i].span[written] = layer.described[0, held].cpu().numpy()[column]
    return lives


def strongest(weights: np.ndarray, written: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of a step's weights [H,C], slots written at steps `written` [C]: the steps worth keeping, ascending, and their
    weights [H,n]; those written at the same step are added up."""
    steps, column = np.unique(written, return_inverse=True)
    total = np.zeros((len(weights), len(steps)))
    np.add.at(total, (slice(None), column), weights)
    best = total.max(0)
    kept = np.sort(np.argsort(-best, kind="stable")[:ATTENDED])
    kept = kept[best[kept] >= FAINTEST]
    return steps[kept], total[:, kept]
