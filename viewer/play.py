"""One episode of a saved policy, as it was played, and the lives of its memories.

T steps of the episode, t of them at once, A actions, N numbers of an action, P parameters of the actions' distribution,
M numbers that are shown of it, L layers, H heads, C slots of a layer. An observation is named by the step at which it
was written. At a step, a memory is *live* if it is visible to that step's query. That includes the step's own.
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

from expire_span_rl.envs.core import EnvCore
from expire_span_rl.policies import ActorCritic, Memory, as_tensors
from expire_span_rl.spaces import find_entry, word_numbers

CHUNK = 256  # steps inspected at once; what is shown does not depend on it
MAX_ATTENDED = 64  # observations per step and layer whose attention is kept


@dataclass(frozen=True)
class Episode:
    """One episode as it was played."""

    observations: list[dict[str, np.ndarray]]  # T, without batch axis
    actions: np.ndarray  # canonical: int64 [T] or [T,N], counted from 0, or float32 [T,N]
    rewards: np.ndarray  # float64 [T]
    memories: dict[int, Memory]  # by step, the memory before it; pieces to inspect begin at these steps
    ended: str  # "terminated", "truncated" or "stopped" (at max_steps)
    info: dict[str, Any]  # the environment's, of the last step
    values: np.ndarray = field(default_factory=lambda: np.zeros(0))  # float64 [T], the policy's before each action
    params: Tensor = field(default_factory=lambda: torch.zeros(0, 0))  # float64 [T,P] of the actions' distribution
    marginals: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    """float64 [T,M]: the probability of every action. If an action has several whole numbers, it is that of every value
    of the first number, then of the second, and so on. If it has real numbers, their means in the environment's
    units."""
    decisions: np.ndarray | None = None  # bool [T]: facts in memory must decide the action; None: the env does not say
    facts: np.ndarray | None = None  # int64 [T]: the number of the fact that the observation shows, -1 for none
    texts: list[dict[str, str]] = field(default_factory=list)  # T: the texts of words, where the env can be asked
    descriptions: list[str] = field(default_factory=list)  # T: what each observation shows, where the env says it


@dataclass(frozen=True)
class Forgetting:
    """What a policy is made to forget: the observation of step `birth` right after it is written, in every layer. If
    that is None, it forgets all of its memory before it acts at `step`."""

    step: int  # the decision; nothing else is changed before it
    birth: int | None

    def apply(self, t: int, policy: ActorCritic, acting: Any, chunk: int) -> Any:
        """`acting` as it is before step t. Emptying the whole memory is left to the caller."""
        if self.birth is None or t != self.birth + 1:
            return acting
        memory = acting.memory()
        for i, layer in enumerate(memory.layers):
            memory = memory.remove_slots(i, layer.birth == self.birth)
        return policy.begin(memory, chunk)


def play(
    policy: ActorCritic,
    env: gym.Env,
    seed: int,
    max_steps: int,
    deterministic: bool,
    *,
    chunk: int = CHUNK,
    watch: Callable[[gym.Env], None] = lambda env: None,
    script: Sequence[np.ndarray] | np.ndarray = (),
    forgetting: Forgetting | None = None,
) -> Episode:
    """Plays the episode of `seed`, or its first `max_steps` steps.

    watch: is called before each action. script: the canonical actions of the first steps, which are taken instead of
    the policy's. forgetting: what the policy is made to forget.
    """
    generator = torch.Generator(policy.device).manual_seed(seed)
    core = core_of(env)
    log = _Log()
    memories = {0: policy.initial_memory(1)}
    observation, info = env.reset(seed=seed)
    acting = policy.begin(memories[0], chunk)
    renew_every = policy.renew_every or chunk
    ended = "stopped"
    while ended == "stopped" and len(log.actions) < max_steps:
        t = len(log.actions)
        # The memory, compacted. An unroll is inspected from here on, so spans must not be renewed before the next time.
        if t and (t % chunk == 0 or t % renew_every == 0):
            memories[t] = acting.memory()
            acting = policy.begin(memories[t], chunk, acting)
        is_empty = t == 0
        if forgetting is not None:
            acting = forgetting.apply(t, policy, acting, chunk)
            is_empty = is_empty or (forgetting.birth is None and t == forgetting.step)
        # What is seen before the action.
        log.see(policy, env, observation)
        watch(env)
        log.ask(core)
        # The action.
        inputs = {key: value[0] for key, value in tensors_of(policy, log.observations[-1:]).items()}
        params, value = policy.step(inputs, acting, torch.tensor([is_empty], device=policy.device))
        action = policy.actions.mode(params) if deterministic else policy.actions.sample(params, generator)
        if t < len(script):
            action = torch.as_tensor(script[t], device=action.device, dtype=action.dtype)[None]
        log.act(params, value, action)
        observation, reward, terminated, truncated, info = env.step(policy.actions.to_env(action)[0])
        log.rewards.append(float(reward))
        ended = "terminated" if terminated else "truncated" if truncated else "stopped"
    return log.episode(policy, memories, ended, dict(info))


@dataclass
class _Log:
    """What is noted at each step of an episode."""

    observations: list[dict[str, np.ndarray]] = field(default_factory=list)
    texts: list[dict[str, str]] = field(default_factory=list)
    decisions: list[np.ndarray | None] = field(default_factory=list)
    facts: list[np.ndarray | None] = field(default_factory=list)
    descriptions: list[str] = field(default_factory=list)
    actions: list[np.ndarray] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    params: list[Tensor] = field(default_factory=list)

    def see(self, policy: ActorCritic, env: gym.Env, observation: Mapping[str, Any]) -> None:
        """Notes a copy of the observation, and its texts."""
        self.observations.append({key: np.array(observation[key]) for key in policy.config.observation})
        self.texts.append(_texts(policy, env, self.observations[-1]))

    def ask(self, core: EnvCore | None) -> None:
        """Notes what the environment says of the observation. core: None if it can say nothing."""
        self.decisions.append(None if core is None else core.decisions())
        self.facts.append(None if core is None else core.facts())
        description = None if core is None else core.describe(0)
        self.descriptions += [] if description is None else [description]

    def act(self, params: Tensor, value: Tensor, action: Tensor) -> None:
        """Notes what the policy computed [1,P], [1] and the action that is taken [1] or [1,N]."""
        self.actions.append(action[0].cpu().numpy())
        self.values.append(float(value))
        self.params.append(params.double())

    def episode(self, policy: ActorCritic, memories: dict[int, Memory], ended: str, info: dict[str, Any]) -> Episode:
        """The lists as arrays."""
        params = torch.cat(self.params)
        return Episode(
            observations=self.observations,
            actions=np.stack(self.actions),
            rewards=np.array(self.rewards),
            memories=memories,
            ended=ended,
            info=info,
            values=np.array(self.values),
            params=params,
            marginals=policy.actions.marginals(params).cpu().numpy(),
            decisions=_concatenate(self.decisions),
            facts=_concatenate(self.facts),
            texts=self.texts,
            descriptions=self.descriptions if len(self.descriptions) == len(self.actions) else [],
        )


def core_of(env: gym.Env) -> EnvCore | None:
    """The core of one of our tasks, which says more than an environment has to. None for any other environment."""
    core = getattr(env.unwrapped, "core", None)
    return core if isinstance(core, EnvCore) else None


def _texts(policy: ActorCritic, env: gym.Env, observation: Mapping[str, np.ndarray]) -> dict[str, str]:
    """The texts of the entries of words, by name. The policy sees them as numbers, so the environment is asked for
    them; they are left out where it cannot be asked."""
    names = [key for key, entry in policy.config.observation.items() if entry["kind"] == "words"]
    env_observation = (
        env.get_wrapper_attr("own_observation") if names and env.has_wrapper_attr("own_observation") else None
    )
    texts = {}
    for name in names:
        try:
            text = (
                find_entry(env_observation, name) if isinstance(env_observation, (Mapping, tuple)) else env_observation
            )
        except KeyError:
            continue
        if isinstance(text, str) and np.array_equal(word_numbers(text, len(observation[name])), observation[name]):
            texts[name] = text
    return texts


def _concatenate(rows: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """The answers of a core of one environment at each step, [T]. None if it gives none."""
    answers = [row for row in rows if row is not None]
    return np.concatenate(answers) if answers else None


def tensors_of(policy: ActorCritic, observations: Sequence[Mapping[str, np.ndarray]]) -> dict[str, Tensor]:
    """Observations of t steps as tensors [t,1,...]."""
    stacked = {key: np.stack([o[key] for o in observations])[:, None] for key in policy.config.observation}
    return as_tensors(stacked, policy.device)


def shifts(policy: ActorCritic, params: Tensor, base: Tensor) -> np.ndarray:
    """float64 [...] in [0, 1]: the total variation between distributions of actions with parameters [...,P]."""
    return policy.actions.distance(params.double(), base.double()).clamp(0, 1).cpu().numpy()


def outcome(episode: Episode) -> str:
    """What happened, in a few words."""
    steps = len(episode.actions)
    text = f"return {episode.rewards.sum():.4g} in {steps} step{'s' * (steps != 1)}"
    success = plain_value(episode.info.get("is_success"))
    if isinstance(success, (bool, int, float)) and episode.ended != "stopped":
        words = "failure" if success == 0 else "success" if success == 1 else f"success {success:.4g}"
        text = f"{words}, {text}"
    return text + {"truncated": ", time limit reached", "stopped": ", stopped before its end"}.get(episode.ended, "")


def plain_value(value: Any) -> str | int | float | bool | None:
    """A value of an info as a plain Python value; None for what is no text, no flag and no finite number."""
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.item() if value.ndim == 0 else None
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, (str, int, float, bool)) else None


def action_names(env: gym.Env, policy: ActorCritic) -> list[str]:
    """A name for each number that is shown of the actions' distribution.

    These are the environment's names (`metadata["action_names"]`, or MiniGrid's enum) if their count fits, else
    "action 0" and so on (`policies.actions`).
    """
    labels = policy.actions.labels()
    enum = getattr(env.unwrapped, "actions", None)
    names = (env.unwrapped.metadata or {}).get("action_names")
    if not names and isinstance(enum, type) and issubclass(enum, Enum):
        names = [action.name for action in enum]
    if isinstance(names, (list, tuple)) and len(names) == len(labels):
        return [str(name) for name in names]
    return labels


def action_text(policy: ActorCritic, action: np.ndarray | Tensor, names: Sequence[str]) -> str:
    """A canonical action, [] or [N], as a text: "north", "0: 2, 1: 0", or "0.31 -0.80" in the environment's units.
    names: `action_names`."""
    action = torch.as_tensor(action)
    if policy.actions.continuous:
        return " ".join(_number_text(number) for number in policy.actions.to_env(action[None])[0].ravel().tolist())
    return ", ".join(names[i] for i in action_places(policy, action))


def action_places(policy: ActorCritic, action: np.ndarray | Tensor) -> list[int]:
    """The places of an action of whole numbers among the probabilities that are shown, one for each number."""
    return torch.nonzero(policy.actions.encode(torch.as_tensor(action)))[:, 0].tolist()


def _number_text(number: float) -> str:
    """Two digits after the point, or three significant ones."""
    return f"{number:.2f}" if number == 0 or 0.1 <= abs(number) < 1000 else f"{number:.3g}"


@dataclass
class LayerLives:
    """What one layer did with the T observations of an episode."""

    end: np.ndarray  # int64 [T]: first step whose query no longer sees the observation; T: live at the last step
    peak: np.ndarray  # float64 [T]: largest attention weight, of any head, that a later step gave it (see `look`)
    decision: np.ndarray  # float64 [H,T]: attention weights of the last step
    live: np.ndarray  # int64 [T]: memories that were live at each step
    span: np.ndarray | None  # float64 [T]: its span in steps, as last renewed; None for kinds without spans
    attention: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    """For each step the observations it attended to most, int64 [n], and their weights, float64 [H,n] (see `look`)."""


def end_steps(visible: np.ndarray) -> np.ndarray:
    """visible bool [t,C] -> int64 [C]: the number of the last query that sees the slot, plus one. 0 if none sees it."""
    return np.where(visible.any(0), len(visible) - visible[::-1].argmax(0), 0)


def look(policy: ActorCritic, episode: Episode, count: int = MAX_ATTENDED) -> list[LayerLives]:
    """The lives of the episode's observations in each layer. Empty for a kind whose memory has no slots.

    Where a memory stands for several observations (Compressive-Transformer), each of them lives in it and gets an equal
    share of its attention. Of each step the `count` observations with the largest weights are kept.
    """
    lives: list[LayerLives] = []
    steps = len(episode.actions)
    for begin, end in pairwise([*episode.memories, steps]):
        observations = tensors_of(policy, episode.observations[begin:end])
        episode_start = torch.arange(begin, end, device=policy.device)[:, None] == 0  # [t,1]
        for i, layer in enumerate(policy.inspect(observations, episode.memories[begin], episode_start)[2]):
            if begin == 0:
                lives.append(
                    LayerLives(
                        end=np.zeros(steps, int),
                        peak=np.zeros(steps),
                        decision=np.zeros((layer.attention.shape[1], steps)),
                        live=np.zeros(steps, int),
                        span=None if layer.slot_features is None else np.zeros(steps),
                    )
                )
            _note_lives(lives[i], layer, begin, end, count)
    return lives


def _note_lives(lives: LayerLives, layer: Any, begin: int, end: int, count: int) -> None:
    """Adds to `lives` what the inspection of a layer says of the steps from `begin` to `end`. count: as in `look`."""
    exists = torch.isfinite(layer.coordinate[0])  # the rest is padding
    lives.live[begin:end] = layer.visible[0][:, exists].sum(1).cpu().numpy()
    # A slot that stands for several steps becomes as many columns, each with its share of the attention.
    covers = layer.covers[0, exists].cpu().numpy()
    column = np.repeat(np.arange(len(covers)), covers)  # [C]
    birth = layer.coordinate[0, exists].round().long().cpu().numpy()[column] + begin
    birth -= np.concatenate([np.arange(n)[::-1] for n in covers])
    visible = layer.visible[0][:, exists].cpu().numpy()[:, column]
    attention = layer.attention[0][:, :, exists].cpu().numpy()[:, :, column] / covers[column]  # [H,t,C]
    # How long each is live, and how much it is attended to.
    ends = end_steps(visible)
    np.maximum.at(lives.end, birth, np.where(ends > 0, begin + ends, 0))
    later_attention = attention.max(0) * (np.arange(begin, end)[:, None] > birth)  # [t,C]
    np.maximum.at(lives.peak, birth, later_attention.max(0))
    lives.decision[:] = 0
    np.add.at(lives.decision.T, birth, attention[:, -1].T)
    lives.attention += [strongest(weights, birth, count) for weights in attention.transpose(1, 0, 2)]
    if lives.span is not None and layer.slot_features is not None:
        lives.span[birth] = layer.slot_features[0, exists].cpu().numpy()[column]


def strongest(weights: np.ndarray, birth: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The `count` observations with the largest attention: their steps, ascending, and their weights [H,n]. Those
    without any attention are left out.

    weights: [H,C] of one step; birth: [C], the step at which each slot was written. The weights of slots that were
    written at the same step are added up.
    """
    steps, column = np.unique(birth, return_inverse=True)
    total = np.zeros((len(weights), len(steps)))
    np.add.at(total.T, column, weights.T)
    best = total.max(0)
    selection = np.sort(np.argsort(-best, kind="stable")[:count])
    selection = selection[best[selection] > 0]
    return steps[selection], total[:, selection]
