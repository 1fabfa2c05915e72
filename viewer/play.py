"""One episode of a saved policy, as it was played, and the lives of its memories.

T steps of the episode, t of them at once, A actions, N numbers of an action, P parameters of the actions' distribution,
M numbers that are shown of it, L layers, H heads, C slots of a layer. An observation is named by the step at which it
was written; *live* means visible to the query of that step, itself included.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import pairwise
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from expire_span_rl.envs.core import Core
from expire_span_rl.policies import ActorCritic, Memory, as_tensors
from expire_span_rl.spaces import find_entry, word_numbers

CHUNK = 256  # steps inspected at once; what is shown does not depend on it
ATTENDED = 64  # observations per step and layer whose attention is kept,
FAINTEST = 0.005  # if some head gives one at least this much


@dataclass(frozen=True)
class Episode:
    """One episode as it was played."""

    observations: list[dict[str, np.ndarray]]  # T, without batch axis
    actions: np.ndarray  # canonical: int64 [T] or [T,N], counted from 0, or float32 [T,N]
    rewards: np.ndarray  # float64 [T]
    memories: dict[int, Memory]  # by step: what was remembered before it; pieces to inspect begin at these steps
    ended: str  # "terminated", "truncated" or "stopped" (at max_steps)
    info: dict[str, Any]  # what the environment said at the last step
    values: np.ndarray = field(default_factory=lambda: np.zeros(0))  # float64 [T] the policy's, before each action
    params: Tensor = field(default_factory=lambda: torch.zeros(0, 0))  # float64 [T,P] of the actions' distribution
    marginals: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    """float64 [T,M]: the probability of every action, or of every value of an action's numbers one number after the
    other; of real numbers their means, in the environment's units."""
    decisions: np.ndarray | None = None  # bool [T]: the action must be chosen by remembered facts; None: not known
    facts: np.ndarray | None = None  # int64 [T]: the number of the fact that the observation shows, -1 for none
    texts: list[dict[str, str]] = field(default_factory=list)  # T: what the entries of words say, where that is known
    descriptions: list[str] = field(default_factory=list)  # T: what each observation shows, where the environment says


@dataclass(frozen=True)
class Forgetting:
    """What a policy is made to forget: the observation of step `written` right after it is written, in every layer; or,
    if that is None, all of its memory before it acts at `step`."""

    step: int  # the decision, before which nothing else is changed
    written: int | None

    def apply(self, t: int, policy: ActorCritic, acting: Any, chunk: int) -> Any:
        """`acting` as it is before step t."""
        if self.written is None or t != self.written + 1:
            return acting
        memory = acting.memory()
        for i, layer in enumerate(memory.layers):
            memory = memory.without(i, layer.birth == self.written)
        return policy.begin(memory, chunk)


def play(
    policy: ActorCritic,
    env: gym.Env,
    seed: int,
    max_steps: int,
    deterministic: bool,
    chunk: int = CHUNK,
    watch: Callable[[gym.Env], None] = lambda env: None,
    script: Sequence[np.ndarray] | np.ndarray = (),
    forgetting: Forgetting | None = None,
) -> Episode:
    """Plays the episode of `seed`, or its first `max_steps` steps. `watch` is called before each action. script: the
    canonical actions of the first steps, which are taken instead of the policy's; forgetting: what it is made to
    forget."""
    generator = torch.Generator(policy.device).manual_seed(seed)
    core = core_of(env)
    observations, actions, rewards, values, given = [], [], [], [], []
    decisions, facts, texts = [], [], []
    descriptions: list[str] = []
    memories = {0: policy.initial_memory(1)}
    observation, info = env.reset(seed=seed)
    acting, ended = policy.begin(memories[0], chunk), "stopped"
    while ended == "stopped" and len(actions) < max_steps:
        if acting.full:
            memories[len(actions)] = acting.memory()
            acting = policy.begin(memories[len(actions)], chunk)
        t, emptied = len(actions), False
        if forgetting is not None:
            acting = forgetting.apply(t, policy, acting, chunk)
            emptied = forgetting.written is None and t == forgetting.step
        observations.append({key: np.array(observation[key]) for key in policy.config.observation})
        texts.append(_texts(policy, env, observations[-1]))
        watch(env)
        decisions.append(None if core is None else core.decisions())
        facts.append(None if core is None else core.facts())
        description = None if core is None else core.describe(0)
        descriptions += [] if description is None else [description]
        now = {key: value[0] for key, value in tensors_of(policy, observations[-1:]).items()}
        params, value = policy.step(now, acting, torch.tensor([t == 0 or emptied], device=policy.device))
        action = policy.actions.mode(params) if deterministic else policy.actions.sample(params, generator)
        if t < len(script):
            action = torch.as_tensor(script[t], device=action.device, dtype=action.dtype)[None]
        actions.append(action[0].cpu().numpy())
        values.append(float(value))
        given.append(params.double())
        observation, reward, terminated, truncated, info = env.step(policy.actions.to_env(action)[0])
        rewards.append(float(reward))
        ended = "terminated" if terminated else "truncated" if truncated else "stopped"
    params = torch.cat(given)
    return Episode(
        observations, np.stack(actions), np.array(rewards), memories, ended, dict(info), np.array(values), params,
        policy.actions.marginals(params).cpu().numpy(), _told(decisions), _told(facts), texts,
        descriptions if len(descriptions) == len(actions) else [],
    )  # fmt: skip


def core_of(env: gym.Env) -> Core | None:
    """The core of one of our tasks, which can tell more than an environment need; None for any other environment."""
    core = getattr(env.unwrapped, "core", None)
    return core if isinstance(core, Core) else None


def _texts(policy: ActorCritic, env: gym.Env, observation: Mapping[str, np.ndarray]) -> dict[str, str]:
    """What the entries of words say, which are numbers by now: by name, where the environment can still be asked."""
    names = [key for key, entry in policy.config.observation.items() if entry["kind"] == "words"]
    own = env.get_wrapper_attr("own_observation") if names and env.has_wrapper_attr("own_observation") else None
    told = {}
    for name in names:
        try:
            text = find_entry(own, name) if isinstance(own, (Mapping, tuple)) else own
        except KeyError:
            continue
        if isinstance(text, str) and np.array_equal(word_numbers(text, len(observation[name])), observation[name]):
            told[name] = text
    return told


def _told(rows: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """What a core of one environment told at each step, [T]; None where it does not say."""
    told = [row for row in rows if row is not None]
    return np.concatenate(told) if told else None


def tensors_of(policy: ActorCritic, observations: Sequence[Mapping[str, np.ndarray]]) -> dict[str, Tensor]:
    """Observations of t steps as tensors [t,1,...]."""
    stacked = {key: np.stack([o[key] for o in observations])[:, None] for key in policy.config.observation}
    return as_tensors(stacked, policy.device)


def shifts(policy: ActorCritic, params: Tensor, others: Tensor) -> np.ndarray:
    """float64 [...] in [0, 1]: the total variation between distributions of actions with parameters [...,P]."""
    return policy.actions.distance(params.double(), others.double()).clamp(0, 1).cpu().numpy()


def outcome(episode: Episode) -> str:
    """What happened, in a few words."""
    steps = len(episode.actions)
    told = f"return {episode.rewards.sum():.4g} in {steps} step{'s' * (steps != 1)}"
    success = plain(episode.info.get("is_success"))
    if isinstance(success, (bool, int, float)) and episode.ended != "stopped":
        told = f"{'success' if success else 'failure'}, {told}"
    return told + {"truncated": ", time limit reached", "stopped": ", stopped before its end"}.get(episode.ended, "")


def plain(value: Any) -> str | int | float | bool | None:
    """A value of an info as Python has it; None for what is no text, no flag and no finite number."""
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.item() if value.ndim == 0 else None
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, (str, int, float, bool)) else None


def action_names(env: gym.Env, policy: ActorCritic) -> list[str]:
    """A name for each number that is shown of the actions' distribution: the environment's (`metadata["action_names"]`,
    or MiniGrid's enum) where it has as many, else "action 0", ... (`policies.actions`)."""
    labels, enum = policy.actions.labels(), getattr(env.unwrapped, "actions", None)
    names = (env.unwrapped.metadata or {}).get("action_names")
    if not names and isinstance(enum, type) and issubclass(enum, Enum):
        names = [action.name for action in enum]
    if isinstance(names, (list, tuple)) and len(names) == len(labels):
        return [str(name) for name in names]
    return labels


def action_text(policy: ActorCritic, action: np.ndarray | Tensor, names: Sequence[str]) -> str:
    """A canonical action, [] or [N], as one reads it: "north", "0: 2, 1: 0", or "0.31 -0.80" in the environment's
    units.
    names: `action_names`."""
    action = torch.as_tensor(action)
    if policy.actions.continuous:
        return " ".join(_number(number) for number in policy.actions.to_env(action[None])[0].ravel().tolist())
    return ", ".join(names[i] for i in taken(policy, action))


def taken(policy: ActorCritic, action: np.ndarray | Tensor) -> list[int]:
    """Which of the probabilities that are shown are those of an action of whole numbers: one of each number."""
    return torch.nonzero(policy.actions.encode(torch.as_tensor(action)))[:, 0].tolist()


def _number(number: float) -> str:
    """Two digits after the point, or three that count."""
    return f"{number:.2f}" if number == 0 or 0.1 <= abs(number) < 1000 else f"{number:.3g}"


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
            np.add.at(lives[i].decision.T, written, attention[:, -1].T)
            lives[i].attention += [strongest(weights, written) for weights in attention.transpose(1, 0, 2)]
            span = lives[i].span
            if span is not None and layer.described is not None:
                span[written] = layer.described[0, held].cpu().numpy()[column]
    return lives


def strongest(weights: np.ndarray, written: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of a step's weights [H,C], slots written at steps `written` [C]: the steps worth keeping, ascending, and their
    weights [H,n]; those written at the same step are added up."""
    steps, column = np.unique(written, return_inverse=True)
    total = np.zeros((len(weights), len(steps)))
    np.add.at(total.T, column, weights.T)
    best = total.max(0)
    kept = np.sort(np.argsort(-best, kind="stable")[:ATTENDED])
    kept = kept[best[kept] >= FAINTEST]
    return steps[kept], total[:, kept]
