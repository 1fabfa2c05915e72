"""Did a memory matter? The policy is run again with the memory gone, or with what it would have been had the fact been
the other way round.

*Direct*: at a decision, one slot of one layer is taken away or exchanged; only that step is run again.
*Total*: the whole episode is run again on the same actions, up to the decision. *Removed*: the observation's slots go
from all layers right after it was written, and all that would have descended from them is computed anew without them
(where a block is merged at that very moment, it goes with them).
*Swapped*: every observation that shows the fact shows its counterpart instead. A fact that was seen twice, or that
later memories copied into a higher layer, survives a direct removal; of a total swap nothing survives.

T steps, V variants at once, P parameters of the actions' distribution, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich import box
from rich.table import Table
from torch import Tensor

from expire_span_rl.policies import ActorCritic, Memory
from expire_span_rl.viewer.effects import action_short, is_another
from expire_span_rl.viewer.play import CHUNK, Episode, LayerLives, action_text, shifts, tensors_of
from expire_span_rl.viewer.record import rounded, shown_as

AT_ONCE = 32  # variants replayed together
MOST_SUGGESTED = 8  # decisions, where the environment names none,
LEAST_INFLUENCE = 0.1  # with at least this much influence of memory
MOST_ROWS = 30  # of the table on a terminal
Asked = tuple[int, int, int, float]  # decision, layer, step at which the memory was written, attention
EFFECTS = ("direct_removed", "direct_swapped", "total_removed", "total_swapped")


@dataclass(frozen=True)
class Answer:
    """What the policy says at one step."""

    params: Tensor  # [P] of the actions' distribution
    value: float

    def against(self, base: Answer, policy: ActorCritic, names: Sequence[str]) -> dict[str, Any]:
        """JSON-able: itself, its most likely action (a number of `names` if that is one whole number, else as text),
        and how far it is from `base`: `shift`, the total variation of the actions' distributions, in [0, 1], and
        `value_change`."""
        params = self.params.double()
        action = policy.actions.mode(params)
        return {
            shown_as(policy): rounded(policy.actions.marginals(params).cpu()),
            "value": rounded(self.value),
            "action": int(action) if action.ndim == 0 else action_text(policy, action, names),
            "shift": rounded(shifts(policy, params, base.params)),
            "value_change": rounded(self.value - base.value),
        }


def _answers(params: Tensor, values: Tensor) -> list[Answer]:
    """params [V,P], values [V]."""
    return [Answer(one, float(value)) for one, value in zip(params, values, strict=True)]


@torch.no_grad()
def replay(
    policy: ActorCritic,
    observations: Mapping[str, Tensor],
    memory: Memory | None = None,
    first: int = 0,
    removed: Sequence[int] | None = None,
    memories_before: Sequence[int] = (),
) -> Iterator[tuple[int, Tensor, Tensor, Memory | None]]:
    """Runs the policy again over observations [t,V,...] of V episodes from step `first` on, which begins with `memory`
    (None: the episodes' start): yields each step's number, parameters [V,P] and values [V], and for the steps of
    `memories_before` the memory that the step began with.

    removed: per variant the step whose observation leaves no memory, in any layer, -1 for none.
    """
    steps, count = next(iter(observations.values())).shape[:2]
    gone = torch.full((count,), -1) if removed is None else torch.as_tensor(removed)
    gone = gone.to(policy.device)
    pauses = {*memories_before, *(gone + 1).tolist()}
    memory = policy.initial_memory(count) if memory is None else memory
    acting = policy.begin(memory, CHUNK)
    for t in range(first, first + steps):
        if t > first and (acting.full or t in pauses):
            memory = acting.memory()
            for i, layer in enumerate(memory.layers):
                # Only now: what these slots are merged into later bears the number of the last of them.
                memory = memory.remove_slots(i, (layer.birth == t - 1) & (gone == t - 1)[:, None])
            acting = policy.begin(memory, CHUNK)
        start = torch.full((count,), t == 0, device=policy.device)
        params, values = policy.step({key: value[t - first] for key, value in observations.items()}, acting, start)
        yield t, params, values, memory if t in memories_before else None


def _repeated(
    policy: ActorCritic, episode: Episode, count: int, first: int, past: int
) -> tuple[int, dict[str, Tensor], Memory]:
    """`count` variants of an episode, still all alike, up to step `past`: where to begin so that step `first` is in it,
    the observations [t,count,...] from there on, and the memory then."""
    begin = max(step for step in episode.memories if step <= first)
    observations = tensors_of(policy, episode.observations[begin:past])
    wide = {key: value.expand(-1, count, *value.shape[2:]) for key, value in observations.items()}
    return begin, wide, episode.memories[begin].rows(torch.zeros(count, dtype=torch.int64, device=policy.device))


def influence(policy: ActorCritic, episode: Episode) -> np.ndarray:
    """How much memory as a whole decides: [T], the total variation between the actions' distribution and that of the
    same policy had the episode just begun with this observation."""
    steps = len(episode.actions)
    alone = {key: value[:, 0] for key, value in tensors_of(policy, episode.observations).items()}  # [T,...]
    acting = policy.begin(policy.initial_memory(steps), 1)
    params, _ = policy.step(alone, acting, torch.ones(steps, dtype=torch.bool, device=policy.device))
    return shifts(policy, params, episode.params)


def decisions(episode: Episode, influence: np.ndarray) -> list[int]:
    """The steps at which memory is to be audited: where the environment says that facts decide, else the local maxima
    of the influence of memory, the largest first, in order."""
    if episode.decisions is not None:
        return np.flatnonzero(episode.decisions).tolist()
    padded = np.pad(influence, 1, constant_values=-1)
    peaks = (influence >= padded[:-2]) & (influence > padded[2:]) & (influence >= LEAST_INFLUENCE)
    steps = np.flatnonzero(peaks)
    return sorted(steps[np.argsort(-influence[steps], kind="stable")][:MOST_SUGGESTED].tolist())


def most_attended(lives: Sequence[LayerLives], step: int, count: int) -> list[tuple[int, int, float]]:
    """The memories to which some head attends most at `step`, over all layers: (layer, step it was written, weight)."""
    found = [
        (-weight, layer, int(written))
        for layer, life in enumerate(lives)
        for written, weight in zip(life.attention[step][0], life.attention[step][1].max(0), strict=True)
        if written < step
    ]
    return [(layer, written, -weight) for weight, layer, written in sorted(found)[:count]]


def audit(
    policy: ActorCritic,
    episode: Episode,
    lives: Sequence[LayerLives],
    count: int,
    swap: Callable[[np.ndarray], np.ndarray | None] | None,
    names: Sequence[str] | None = None,
) -> dict[str, Any]:
    """JSON-able: `influence` [T], `decisions`, whether the environment names them (`decisions_named`), and `memories`, a
    list of the `count` (`measured_per_decision`) memories attended to most at each of them, with what became of the
    decision. swap: from an environment's image to its counterpart, None for none;
    names:
    `action_names`, by default the labels of the policy's actions."""
    names = policy.actions.labels() if names is None else names
    whole = influence(policy, episode)
    chosen = decisions(episode, whole)
    told: dict[str, Any] = {
        "influence": rounded(whole), "decisions": chosen, "decisions_named": episode.decisions is not None,
        "measured_per_decision": count, "memories": [],
    }  # fmt: skip
    asked = [(t, *memory) for t in chosen for memory in most_attended(lives, t, count)] if count else []
    if not asked:
        return told
    base = [Answer(p, v) for p, v in zip(episode.params, episode.values, strict=True)]
    gone = _removed(policy, episode, asked)
    other, held = _swapped(policy, episode, asked, swap)
    begin, real, memory = _repeated(policy, episode, 1, 0, max(chosen) + 1)
    for t, _, _, before in replay(policy, real, memory, begin, memories_before=chosen):
        mine = [one for one in asked if one[0] == t]
        if before is None or not mine:
            continue
        slots = [(layer, written) for _, layer, written, _ in mine]
        now = {key: value[t] for key, value in real.items()}
        without = _direct(policy, now, before, slots, None)
        exchanged = _direct(policy, now, before, slots, held) if held else [None] * len(mine)
        for (_, layer, written, weight), *direct in zip(mine, without, exchanged, strict=True):
            fact = _fact(episode, written)
            swapped = None if fact is None else other.get((fact, t))
            effects = zip(EFFECTS, (*direct, gone[written, t], swapped), strict=True)
            told["memories"].append(
                {
                    "step": t, "layer": layer, "written": written, "attention": rounded(weight), "fact": fact,
                    "base": base[t].against(base[t], policy, names),
                    **{
                        name: None if answer is None else answer.against(base[t], policy, names)
                        for name, answer in effects
                    },
                }
            )  # fmt: skip
    return told


def _direct(
    policy: ActorCritic,
    now: Mapping[str, Tensor],
    memory: Memory,
    slots: Sequence[tuple[int, int]],
    held: Mapping[tuple[int, int], Tensor] | None,
) -> list[Answer | None]:
    """The answers to one observation `now` [1,...] on `memory` (of one environment) when one of the slots (layer, step)
    is removed, or, if given, holds the vector in `held` instead. What was merged goes with the whole slot that it is a
    part of by now, and is not exchanged. None for what is not exchanged."""
    count, clock = len(slots), memory.time[0]
    memory = memory.rows(torch.zeros(count, dtype=torch.int64, device=policy.device))
    there = []
    for row, (layer, written) in enumerate(slots):
        merging = policy.core.layers[layer].kind.merging
        birth, merged = written, False
        if merging is not None and bool(clock >= merging.clock(torch.tensor(written))):
            birth, merged = (written // merging.size + 1) * merging.size - 1, True
        mask = memory.layers[layer].alive & (memory.layers[layer].birth == birth)
        mask &= torch.arange(count, device=policy.device)[:, None] == row
        there.append(bool(mask.any()) and (held is None or (not merged and (layer, written) in held)))
        if not there[-1]:
            continue
        if held is None:
            memory = memory.remove_slots(layer, mask)
        else:
            hidden = memory.layers[layer].hidden
            memory = memory.replace_slots(layer, mask, held[layer, written].expand_as(hidden))
    observation = {key: value.expand(count, *value.shape[1:]) for key, value in now.items()}
    start = torch.zeros(count, dtype=torch.bool, device=policy.device)
    answers = _answers(*policy.step(observation, policy.begin(memory, 1), start))
    return [answer if known else None for answer, known in zip(answers, there, strict=True)]


def _fact(episode: Episode, written: int) -> int | None:
    """The fact that a memory may carry: the latest that was seen when it was written; None if none was."""
    if episode.facts is None:
        return None
    seen = np.flatnonzero(episode.facts[: written + 1] >= 0)
    return int(episode.facts[seen[-1]]) if len(seen) else None


def _removed(policy: ActorCritic, episode: Episode, asked: Sequence[Asked]) -> dict[tuple[int, int], Answer]:
    """By (observation, decision): the answer when the observation leaves no memory."""
    last = {written: t for t, _, written, _ in asked}  # decisions ascend
    answers: dict[tuple[int, int], Answer] = {}
    for some in _batches(sorted(last)):
        begin, observations, memory = _repeated(policy, episode, len(some), some[0], max(last[w] for w in some) + 1)
        for t, params, values, _ in replay(policy, observations, memory, begin, some):
            answers |= {(w, t): answer for w, answer in zip(some, _answers(params, values), strict=True)}
    return answers


def _swapped(
    policy: ActorCritic,
    episode: Episode,
    asked: Sequence[Asked],
    swap: Callable[[np.ndarray], np.ndarray | None] | None,
) -> tuple[dict[tuple[int, int], Answer], dict[tuple[int, int], Tensor]]:
    """By (fact, decision): the answer when all observations of the fact show its counterpart; and by slot (layer,
    step): the hidden vector [D] that it gets then. Both empty where there are no counterparts."""
    last = {fact: t for t, _, written, _ in asked if (fact := _fact(episode, written)) is not None}
    answers: dict[tuple[int, int], Answer] = {}
    held: dict[tuple[int, int], Tensor] = {}
    facts = episode.facts
    if not last or facts is None or swap is None or "image" not in episode.observations[0]:
        return answers, held
    if swap(episode.observations[0]["image"]) is None:
        return answers, held
    for some in _batches(sorted(last, key=lambda fact: int((facts == fact).argmax()))):
        first = int((facts == some[0]).argmax())
        begin, observations, memory = _repeated(policy, episode, len(some), first, max(last[f] for f in some) + 1)
        image = observations["image"]
        shown = torch.as_tensor(facts[begin : begin + len(image)], device=policy.device)
        exchanged = shown[:, None] == torch.tensor(some, device=policy.device)  # [t,V]
        exchanged = exchanged.reshape(*exchanged.shape, *[1] * (image.ndim - 2))
        other = torch.as_tensor(swap(image.cpu().numpy()), device=policy.device)
        observations["image"] = torch.where(exchanged, other, image)
        mine = {(layer, written) for _, layer, written, _ in asked if _fact(episode, written) in some}
        after = sorted({written + 1 for _, written in mine})
        for t, params, values, before in replay(policy, observations, memory, begin, memories_before=after):
            answers |= {(f, t): answer for f, answer in zip(some, _answers(params, values), strict=True)}
            if before is None:
                continue
            for layer, written in mine:
                row = some.index(_fact(episode, written))
                found = before.layers[layer].alive[row] & (before.layers[layer].birth[row] == t - 1)
                if written == t - 1 and bool(found.any()):
                    held[layer, written] = before.layers[layer].hidden[row][found][0]
    return answers, held


def _batches(items: Sequence[int]) -> list[Sequence[int]]:
    return [items[i : i + AT_ONCE] for i in range(0, len(items), AT_ONCE)]


def table(record: Mapping[str, Any]) -> Table:
    """The audit of an episode's `record` for the terminal. A cell has the shift of the actions' probabilities, and the
    action that is taken instead where it is another."""
    told = record["audit"]["memories"]
    where = f"{record['env']}, seed {record['seed']}"
    shown = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        title=f"Did it matter? {where}: shift of the action probabilities (0 to 1), and the action taken instead",
    )
    for name in ("step", "action", "memory", "layer", "att.", *EFFECTS):
        shown.add_column(name.replace("_", "\n"), justify="right", no_wrap=name == "action")
    for row in told[:MOST_ROWS]:
        cells = [f"{row['step']}", action_short(record, row["base"]["action"]), f"{row['written']}"]
        cells += [f"{row['layer'] + 1}", f"{row['attention']:.2f}"]
        for name in EFFECTS:
            effect = row[name]
            if effect is None:
                cells.append("-")
                continue
            other = f" {action_short(record, effect['action'])}" if is_another(record, row["base"], effect) else ""
            cells.append(f"{effect['shift']:.2f}{other}")
        shown.add_row(*cells)
    if len(told) > MOST_ROWS:
        shown.caption = f"{len(told) - MOST_ROWS} more rows in the page and in --json"
    return shown
