"""Did a memory matter? The policy is run again without the memory, or with what the memory would hold had the fact been
the opposite.

*Direct*: at a decision, one slot of one layer is removed or replaced. Only that step is run again.
*Total*: the whole episode is run again on the same actions, up to the decision.
*Removed* (total): the slots of the observation are removed from all layers right after it was written. Everything that
would have descended from them is computed anew. If a block is merged at that very moment, the block is removed too.
*Swapped* (total): every observation that shows the fact shows its counterpart instead.

A fact that was seen twice, or that a later memory copied into a higher layer, survives a direct removal. No trace of it
survives a total swap.

An observation is named by its *birth*, the step at which it was written (`written` in JSON). T steps, V variants at
once, P parameters of the actions' distribution, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from rich import box
from rich.table import Table
from torch import Tensor

from expire_span_rl.policies import ActorCritic, Memory
from expire_span_rl.spaces import PREVIOUS_ACTION, PREVIOUS_REWARD
from expire_span_rl.viewer.effects import action_short, is_another
from expire_span_rl.viewer.play import Episode, LayerLives, action_text, shifts, tensors_of
from expire_span_rl.viewer.record import distribution_key, round_nested
from expire_span_rl.viewer.replay import repeat_episode, replay

BATCH_SIZE = 32  # variants replayed together
MAX_PEAKS = 8  # decisions, where the environment names none
MIN_INFLUENCE = 0.1  # influence of memory that such a decision needs
MAX_ROWS = 30  # of the table on a terminal
EFFECTS = ("direct_removed", "direct_swapped", "total_removed", "total_swapped")
Swap = Callable[[np.ndarray], np.ndarray | None]
"""From what an environment shows to its counterpart; None if it has none."""


class Candidate(NamedTuple):
    """A memory whose effect on a decision is measured."""

    step: int  # of the decision
    layer: int
    birth: int  # the step at which the memory was written
    attention: float


@dataclass(frozen=True)
class Answer:
    """What the policy says at one step."""

    params: Tensor  # [P] of the actions' distribution
    value: float

    def compare(self, base: Answer, policy: ActorCritic, names: Sequence[str]) -> dict[str, Any]:
        """JSON-able: the answer and its distance from `base`.

        `action` is the most likely action: a number of `names` if it is one whole number, else a text. `shift` is the
        total variation of the actions' distributions, in [0, 1]. `value_change` is the difference of the values.
        """
        params = self.params.double()
        action = policy.actions.mode(params)
        return {
            distribution_key(policy): round_nested(policy.actions.marginals(params).cpu()),
            "value": round_nested(self.value),
            "action": int(action) if action.ndim == 0 else action_text(policy, action, names),
            "shift": round_nested(shifts(policy, params, base.params)),
            "value_change": round_nested(self.value - base.value),
        }


def _answers(params: Tensor, values: Tensor) -> list[Answer]:
    """params [V,P], values [V]."""
    return [Answer(row, float(value)) for row, value in zip(params, values, strict=True)]


def emptied(policy: ActorCritic, episode: Episode) -> Tensor:
    """The parameters of the actions' distribution at every step [T,P], had the episode begun with this observation."""
    steps = len(episode.actions)
    observations = {key: value[:, 0] for key, value in tensors_of(policy, episode.observations).items()}  # [T,...]
    acting = policy.begin(policy.initial_memory(steps), 1)
    return policy.step(observations, acting, torch.ones(steps, dtype=torch.bool, device=policy.device))[0]


def _changes_action(policy: ActorCritic, params: Tensor, base: Tensor) -> list[bool]:
    """Whether the most likely action differs between distributions with parameters [T,P]."""
    differs = policy.actions.mode(params.double()) != policy.actions.mode(base.double())
    return differs.reshape(len(base), -1).any(1).tolist()


def decisions(episode: Episode, influences: np.ndarray) -> list[int]:
    """The steps at which memory is audited, in order.

    These are the steps at which the environment says that facts decide. If it names none, they are the MAX_PEAKS
    largest local maxima of the influence of memory [T].
    """
    if episode.decisions is not None:
        return np.flatnonzero(episode.decisions).tolist()
    padded = np.pad(influences, 1, constant_values=-1)
    peaks = (influences >= padded[:-2]) & (influences > padded[2:]) & (influences >= MIN_INFLUENCE)
    steps = np.flatnonzero(peaks)
    return sorted(steps[np.argsort(-influences[steps], kind="stable")][:MAX_PEAKS].tolist())


def most_attended(lives: Sequence[LayerLives], step: int, count: int) -> list[tuple[int, int, float]]:
    """The `count` memories to which some head attends most at `step`, over all layers: (layer, birth, weight)."""
    ranking = [
        (-weight, layer, int(birth))
        for layer, life in enumerate(lives)
        for birth, weight in zip(life.attention[step][0], life.attention[step][1].max(0), strict=True)
        if birth < step
    ]
    return [(layer, birth, -weight) for weight, layer, birth in sorted(ranking)[:count]]


def audit(
    policy: ActorCritic,
    episode: Episode,
    lives: Sequence[LayerLives],
    count: int,
    *,
    swap: Swap | None,
    names: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Measures at each decision what the `count` most attended memories change. The result is JSON-able.

    `influence` [T] is the total variation between the actions' distribution and that of `emptied`. `decisions` are
    those of the function of that name; `decisions_named`: whether the environment names them. `changes_action` [T]:
    whether the most likely action is another one with an empty memory. `memories` has an entry for each memory and
    decision: what became of it under the EFFECTS. swap: what an environment shows -> its counterpart.
    """
    names = policy.actions.labels() if names is None else names
    params_emptied = emptied(policy, episode)
    influences = shifts(policy, params_emptied, episode.params)
    steps = decisions(episode, influences)
    report: dict[str, Any] = {
        "influence": round_nested(influences),
        "changes_action": _changes_action(policy, params_emptied, episode.params),
        "decisions": steps,
        "decisions_named": episode.decisions is not None,
        "measured_per_decision": count,
        "memories": [],
    }
    candidates = [
        Candidate(step=t, layer=layer, birth=birth, attention=weight)
        for t in (steps if count else ())
        for layer, birth, weight in most_attended(lives, t, count)
    ]
    if not candidates:
        return report
    base = [Answer(params, value) for params, value in zip(episode.params, episode.values, strict=True)]
    for candidate, effects in _measure(policy, episode, candidates, swap):
        base_answer = base[candidate.step]
        report["memories"].append(
            {
                "step": candidate.step,
                "layer": candidate.layer,
                "written": candidate.birth,
                "attention": round_nested(candidate.attention),
                "fact": _fact(episode, candidate.birth),
                "base": base_answer.compare(base_answer, policy, names),
                **_compare_effects(effects, base_answer, policy, names),
            }
        )
    return report


def _compare_effects(
    effects: Mapping[str, Answer | None], base_answer: Answer, policy: ActorCritic, names: Sequence[str]
) -> dict[str, Any]:
    """What each effect changes of the decision, by name. None for an effect that was not measured."""
    return {
        name: None if answer is None else answer.compare(base_answer, policy, names) for name, answer in effects.items()
    }


def _measure(
    policy: ActorCritic, episode: Episode, candidates: Sequence[Candidate], swap: Swap | None
) -> Iterator[tuple[Candidate, dict[str, Answer | None]]]:
    """Each candidate with its answers by the names of EFFECTS, None where there is none."""
    total_removed = _replay_removed(policy, episode, candidates)
    total_swapped, vectors = _replay_swapped(policy, episode, candidates, swap)
    steps = sorted({candidate.step for candidate in candidates})
    # The episode as it was played, which stops before each decision for the direct effects.
    begin, observations, memory = repeat_episode(policy, episode, 1, first_step=0, end_step=max(steps) + 1)
    for t, _, _, memory_before in replay(policy, observations, memory, begin, memories_before=steps):
        group = [candidate for candidate in candidates if candidate.step == t]
        if memory_before is None or not group:
            continue
        slots = [(candidate.layer, candidate.birth) for candidate in group]
        observation = {key: value[t] for key, value in observations.items()}
        direct_removed = _answer_direct(policy, observation, memory_before, slots, None)
        direct_swapped: list[Answer | None] = [None] * len(group)
        if vectors:
            direct_swapped = _answer_direct(policy, observation, memory_before, slots, vectors)
        for i, candidate in enumerate(group):
            fact = _fact(episode, candidate.birth)
            yield (
                candidate,
                {
                    "direct_removed": direct_removed[i],
                    "direct_swapped": direct_swapped[i],
                    "total_removed": total_removed[candidate.birth, t],
                    "total_swapped": None if fact is None else total_swapped.get((fact, t)),
                },
            )


def _answer_direct(
    policy: ActorCritic,
    observation: Mapping[str, Tensor],
    memory: Memory,
    slots: Sequence[tuple[int, int]],
    vectors: Mapping[tuple[int, int], Tensor] | None,
) -> list[Answer | None]:
    """The answers to one observation [1,...] on `memory` (of one environment), each with one of the slots (layer, step)
    changed.

    vectors: what the slots hold instead; None removes them. An observation that was merged is removed with the whole
    slot that it is a part of by now. It is not swapped. The answer is None for what cannot be changed.
    """
    count = len(slots)
    clock = memory.time[0]
    memory = memory.rows(torch.zeros(count, dtype=torch.int64, device=policy.device))
    is_changed = []
    for row, (layer, birth) in enumerate(slots):
        merging = policy.core.layers[layer].kind.merging
        is_merged = False
        slot_birth = birth
        if merging is not None and bool(clock >= merging.clock(torch.tensor(birth))):
            is_merged = True
            slot_birth = (birth // merging.size + 1) * merging.size - 1
        mask = memory.layers[layer].alive & (memory.layers[layer].birth == slot_birth)
        mask &= torch.arange(count, device=policy.device)[:, None] == row
        has_vector = vectors is None or (not is_merged and (layer, birth) in vectors)
        is_changed.append(bool(mask.any()) and has_vector)
        if not is_changed[-1]:
            continue
        if vectors is None:
            memory = memory.remove_slots(layer, mask)
        else:
            hidden = memory.layers[layer].hidden
            memory = memory.replace_slots(layer, mask, vectors[layer, birth].expand_as(hidden))
    repeated = {key: value.expand(count, *value.shape[1:]) for key, value in observation.items()}
    start = torch.zeros(count, dtype=torch.bool, device=policy.device)
    answers = _answers(*policy.step(repeated, policy.begin(memory, 1), start))
    return [answer if changed else None for answer, changed in zip(answers, is_changed, strict=True)]


def _fact(episode: Episode, birth: int) -> int | None:
    """The fact that a memory may carry: the latest one that was seen when it was written. None if none was seen."""
    if episode.facts is None:
        return None
    steps = np.flatnonzero(episode.facts[: birth + 1] >= 0)
    return int(episode.facts[steps[-1]]) if len(steps) else None


def _replay_removed(
    policy: ActorCritic, episode: Episode, candidates: Sequence[Candidate]
) -> dict[tuple[int, int], Answer]:
    """By (observation, decision): the answer when the observation leaves no memory."""
    last_decision = {candidate.birth: candidate.step for candidate in candidates}  # decisions ascend
    answers: dict[tuple[int, int], Answer] = {}
    for batch in _batches(sorted(last_decision)):
        end_step = max(last_decision[birth] for birth in batch) + 1
        begin, observations, memory = repeat_episode(
            policy, episode, len(batch), first_step=batch[0], end_step=end_step
        )
        for t, params, values, _ in replay(policy, observations, memory, begin, removals=batch):
            step_answers = zip(batch, _answers(params, values), strict=True)
            answers |= {(birth, t): answer for birth, answer in step_answers}
    return answers


def _replay_swapped(
    policy: ActorCritic, episode: Episode, candidates: Sequence[Candidate], swap: Swap | None
) -> tuple[dict[tuple[int, int], Answer], dict[tuple[int, int], Tensor]]:
    """What becomes of the episode when all observations of a fact show its counterpart.

    Gives the answers by (fact, decision), and by slot (layer, step) the hidden vector [D] that it gets then. Both are
    empty where there are no counterparts.
    """
    answers: dict[tuple[int, int], Answer] = {}
    vectors: dict[tuple[int, int], Tensor] = {}
    last_decision: dict[int, int] = {}  # by fact; decisions ascend
    for candidate in candidates:
        fact = _fact(episode, candidate.birth)
        if fact is not None:
            last_decision[fact] = candidate.step
    facts = episode.facts
    name = _own_entry(episode)
    if not last_decision or facts is None or swap is None or name is None:
        return answers, vectors
    if swap(episode.observations[0][name]) is None:
        return answers, vectors
    for batch in _batches(sorted(last_decision, key=lambda fact: int((facts == fact).argmax()))):
        begin, observations, memory = repeat_episode(
            policy,
            episode,
            len(batch),
            first_step=int((facts == batch[0]).argmax()),
            end_step=max(last_decision[fact] for fact in batch) + 1,
        )
        observations[name] = _swap_facts(observations[name], facts[begin:], batch, swap)
        slots = {(c.layer, c.birth) for c in candidates if _fact(episode, c.birth) in batch}
        steps_after = sorted({birth + 1 for _, birth in slots})
        for t, params, values, memory_before in replay(
            policy, observations, memory, begin, memories_before=steps_after
        ):
            answers |= {(fact, t): answer for fact, answer in zip(batch, _answers(params, values), strict=True)}
            if memory_before is None:
                continue
            for layer, birth in slots:
                row = batch.index(_fact(episode, birth))
                state = memory_before.layers[layer]
                slot = state.alive[row] & (state.birth[row] == t - 1)
                if birth == t - 1 and bool(slot.any()):
                    vectors[layer, birth] = state.hidden[row][slot][0]
    return answers, vectors


def _own_entry(episode: Episode) -> str | None:
    """The one entry of the observation that the environment itself shows. None if it shows several."""
    names = [name for name in episode.observations[0] if name not in (PREVIOUS_ACTION, PREVIOUS_REWARD)]
    return names[0] if len(names) == 1 else None


def _swap_facts(shown: Tensor, facts: np.ndarray, batch: Sequence[int], swap: Swap) -> Tensor:
    """Observations [t,V,...] in which each variant sees the counterpart of its own fact of `batch` [V]. facts: the fact
    that each step shows, for t steps or more."""
    step_facts = torch.as_tensor(facts[: len(shown)], device=shown.device)
    is_swapped = step_facts[:, None] == torch.tensor(batch, device=shown.device)  # [t,V]
    is_swapped = is_swapped.reshape(*is_swapped.shape, *[1] * (shown.ndim - 2))
    counterparts = torch.as_tensor(swap(shown.cpu().numpy()), device=shown.device)
    return torch.where(is_swapped, counterparts, shown)


def _batches(items: Sequence[int]) -> list[Sequence[int]]:
    return [items[i : i + BATCH_SIZE] for i in range(0, len(items), BATCH_SIZE)]


def table(record: Mapping[str, Any]) -> Table:
    """The audit of an episode's `record` for the terminal. A cell has the shift of the actions' probabilities. Where
    another action is taken instead, the cell names it."""
    memories = record["audit"]["memories"]
    title = f"Did it matter? {record['env']}, seed {record['seed']}"
    explanation = "shift of the action probabilities (0 to 1), and the action taken instead"
    effects = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=f"{title}: {explanation}")
    for name in ("step", "action", "memory", "layer", "att.", *EFFECTS):
        width = max(map(len, name.split("_")))
        effects.add_column(name.replace("_", "\n"), justify="right", no_wrap=name == "action", min_width=width)
    for row in memories[:MAX_ROWS]:
        cells = [f"{row['step']}", action_short(record, row["base"]["action"]), f"{row['written']}"]
        cells += [f"{row['layer'] + 1}", f"{row['attention']:.2f}"]
        effects.add_row(*cells, *(_effect_cell(record, row, name) for name in EFFECTS))
    if len(memories) > MAX_ROWS:
        effects.caption = f"{len(memories) - MAX_ROWS} more rows in the page and in --json"
    return effects


def _effect_cell(record: Mapping[str, Any], row: Mapping[str, Any], name: str) -> str:
    """The shift of one effect, and the action if it is another one."""
    effect = row[name]
    if effect is None:
        return "-"
    action = f" {action_short(record, effect['action'])}" if is_another(record, row["base"], effect) else ""
    return f"{effect['shift']:.2f}{action}"
