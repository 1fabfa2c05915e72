"""The story of an episode in a sentence or two, and the moment at which the page opens. Both are computed from the
record.

An observation is named by the step at which it was written. It *mattered* at a decision if the agent would have acted
otherwise there without any memory of it in any layer (`total_removed` of the audit).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from expire_span_rl.viewer.effects import MIN_SHIFT, action_short, is_another
from expire_span_rl.viewer.naming import MAX_LETTERS, join_words

Record = Mapping[str, Any]
Row = Mapping[str, Any]  # of the audit's `memories`
NO_DECISION = "This episode came to no decision that depends on the past: the environment names none."
COMPASS = ("north", "east", "south", "west")


def story(record: Record) -> dict[str, Any]:
    """JSON-able: `headline` and `detail`, sentences; `step`, the moment at which the page opens; `written`, the
    observation that the headline is about, None for none; `matters`, the observations that mattered, in order."""
    rows = one_per_observation(record["audit"]["memories"])
    deciding = [row for row in rows if is_another(record, row["base"], row["total_removed"])]
    swapped = [row for row in rows if row["total_swapped"] and is_another(record, row["base"], row["total_swapped"])]
    row = _best_swapped(record, swapped) if swapped and not deciding else best_row(record, deciding or rows)
    step = opening_step(record) if row is None else row["step"]
    if not record["layers"]:
        headline = _without_slots(record, step)
    elif row is None:
        headline = _unmeasured(record)
    elif deciding:
        headline = _what_mattered(record, deciding, row)
    else:
        headline = _nothing_mattered(record, rows, row if swapped else None)
    return {
        "headline": headline,
        "detail": _detail(record, step),
        "step": step,
        "written": None if row is None else row["written"],
        "matters": sorted({row["written"] for row in deciding}),
    }


def one_per_observation(rows: Sequence[Row]) -> list[Row]:
    """One of the audit's rows for each decision and observation, the one with the most attention. The total effects of
    an observation are the same in every layer."""
    best: dict[tuple[int, int], Row] = {}
    for row in rows:
        key = row["step"], row["written"]
        if key not in best or row["attention"] > best[key]["attention"]:
            best[key] = row
    return list(best.values())


def first_forgetting(record: Record) -> int | None:
    """The first step at which some layer no longer sees an earlier observation. None if all layers see all of them to
    the end."""
    step = min((min(layer["end"]) for layer in record["layers"]), default=record["steps"])
    return step if step < record["steps"] else None


def best_row(record: Record, rows: Sequence[Row]) -> Row | None:
    """The row whose observation was kept for longest, at the decision with the largest effect. Decisions after
    something was forgotten come first. None without rows."""
    if not rows:
        return None
    forgetting = first_forgetting(record)
    later_rows = [row for row in rows if forgetting is not None and row["step"] >= forgetting]
    strongest = max(
        later_rows or rows, key=lambda row: (round(row["total_removed"]["shift"], 2), row["step"] - row["written"])
    )
    decision_rows = [row for row in rows if row["step"] == strongest["step"]]
    return min(decision_rows, key=lambda row: row["written"])


def _best_swapped(record: Record, rows: Sequence[Row]) -> Row:
    """The largest effect among the rows whose action changes with the fact. Rows of an observation that shows a fact
    come first."""
    facts = record.get("facts") or []
    return max(rows, key=lambda row: (bool(facts) and facts[row["written"]] >= 0, row["total_swapped"]["shift"]))


def opening_step(record: Record) -> int:
    """The step with the largest influence of memory as a whole, once something was forgotten. The last step if memory
    has no influence. Only decisions count where the environment names some. If memory has no slots, steps at which it
    changes the action come first."""
    influence = record["audit"]["influence"]
    forgetting = first_forgetting(record) or 0
    named = record["audit"]["decisions"] if record["audit"].get("decisions_named", False) else []
    steps = [step for step in named if step >= forgetting] or named or range(forgetting, record["steps"])
    deciding = [] if record["layers"] else [step for step in steps if empties_to_another_action(record, step)]
    best = max(deciding or steps, key=lambda step: influence[step] or 0)
    return best if (influence[best] or 0) >= MIN_SHIFT else record["steps"] - 1


def empties_to_another_action(record: Record, step: int) -> bool:
    """Whether the agent would act otherwise at the step with an empty memory, and noticeably so."""
    audit = record["audit"]
    return audit["changes_action"][step] and (audit["influence"][step] or 0) >= MIN_SHIFT


def is_without_decisions(record: Record) -> bool:
    """Whether the environment names decisions, but none in this episode."""
    return record["audit"].get("decisions_named", False) and not record["audit"]["decisions"]


def observation_name(record: Record, birth: int) -> str:
    """ "the blue ball of step 0", or "the observation of step 7" if its name is empty or long."""
    shows = record.get("shows")
    text = shows["texts"][shows["which"][birth]] if shows else ""
    return f"the {text if 0 < len(text) <= MAX_LETTERS else 'observation'} of step {birth}"


def would_have(record: Record, action: int | str) -> str:
    """What follows "the agent would have": "gone north", "chosen “pick up”"."""
    name = action_short(record, action)
    most_likely = "" if record.get("deterministic", True) else "most likely "
    return f"{most_likely}gone {name}" if name in COMPASS else f"{most_likely}chosen “{name}”"


def _what_mattered(record: Record, deciding: Sequence[Row], best: Row) -> str:
    """The headline where some memory decided. deciding: the rows whose action changes; best: the one to name."""
    name = observation_name(record, best["written"])
    duration = steps_text(best["step"] - best["written"])
    alternative = would_have(record, best["total_removed"]["action"])
    observations = len({row["written"] for row in deciding})
    if observations == 1:
        if is_kept_for_good(record, best["written"]):
            return (
                f"Kept {name} for good. {duration.capitalize()} later, without it, the agent would have {alternative}."
            )
        return f"Kept {name} for {duration}; without it the agent would have {alternative}."
    steps = len({row["step"] for row in deciding})
    total = len(record["audit"]["decisions"])
    where = f"at {steps} of {total} decisions" if total > 1 else "at its only decision"
    return (
        f"Needed {observations} earlier observations, {where}. It kept {name} for {duration}; "
        f"without it the agent would have {alternative} at step {best['step']}."
    )


def _without_slots(record: Record, step: int) -> str:
    """The headline of a memory that has no slot for each observation."""
    if not record["state_bytes"]:
        return "Has no memory: every action follows from what the agent sees at that step."
    text = f"Remembers in one state of {record['state_bytes']:,} bytes, in which observations cannot be told apart."
    if is_without_decisions(record):
        return f"{text} {NO_DECISION}"
    return f"{text} {_when_emptied(record, step)}"


def _when_emptied(record: Record, step: int) -> str:
    """What an empty memory would change: at the decisions where the environment names some, else at any step. step:
    the one to name, of `opening_step`."""
    audit, name = record["audit"], _distribution_name(record)
    is_named = audit.get("decisions_named", False)
    steps = audit["decisions"] if is_named else range(record["steps"])
    influence = audit["influence"][step] or 0
    if max(audit["influence"][t] or 0 for t in steps) < MIN_SHIFT:
        return f"Emptying this state would noticeably change no action{' at a decision' if is_named else ''}."
    count = sum(empties_to_another_action(record, t) for t in steps)
    if count:
        action = "action" if record.get("deterministic", True) else "most likely action"
        which = f"step {step}" if count == 1 else f"most at step {step}"
        places = f"at {count:,} of {len(steps):,} {'decisions' if is_named else 'steps'}, {which}"
        if len(steps) == 1:
            places = f"at its only {'decision' if is_named else 'step'}, step {step}"
        shift = f"where it shifts the {name} by {influence:.2f}"
        return f"Emptying this state would noticeably change the agent's {action} {places}, {shift}."
    where = "Of the decisions, it matters most at" if is_named else "It matters most at"
    return f"{where} step {step}: emptied, it shifts the {name} by {influence:.2f}, but the action stays the same."


def _unmeasured(record: Record) -> str:
    """The headline where the effect of no memory was measured."""
    audit = record["audit"]
    if audit["decisions"] and not audit.get("measured_per_decision", 1):
        return "Whether a memory mattered was not measured in this episode (--audit 0)."
    if audit["decisions"]:
        return "No decision of this episode had an earlier observation to attend to: nothing was measured."
    if is_without_decisions(record):
        return NO_DECISION
    largest = max((shift or 0 for shift in audit["influence"]), default=0)
    name = _distribution_name(record)
    return f"Memory decided nothing in this episode: without any, the {name} shift by {largest:.2f} at most."


def _nothing_mattered(record: Record, rows: Sequence[Row], swapped: Row | None) -> str:
    """The headline where removing any one of the measured memories changes no action. swapped: the row whose action
    changes with the fact, None for none."""
    largest = max(row["total_removed"]["shift"] for row in rows)
    count = len({row["written"] for row in rows})
    text = f"No single memory decided: without any one of the {count} measured, every action stays"
    if count == 1:
        text = "No memory decided: without the only one measured, every action stays"
    if swapped is None:
        return f"{text} (largest shift {largest:.2f})."
    name = _fact_name(record, swapped)
    alternative = would_have(record, swapped["total_swapped"]["action"])
    condition = f"But had it seen the opposite of {name}"
    return f"{text}. {condition}, the agent would have {alternative} at step {swapped['step']}."


def _fact_name(record: Record, row: Row) -> str:
    """The fact that a row's memory carries, by the observation that showed it last when the memory was written. Where
    that is another than the row's, which the page shows, both are named."""
    facts, written = record["facts"], row["written"]
    shown_at = max(step for step in range(written + 1) if facts[step] == row["fact"])
    name = observation_name(record, shown_at)
    return name if shown_at == written else f"{name}, which the memory of step {written} carries"


def _detail(record: Record, step: int) -> str:
    """How much was forgotten by step `step`, and how many memories were live at most."""
    layers = record["layers"]
    if not layers:
        return ""
    count = step + 1
    forgotten = [sum(end <= step for end in layer["end"][:count]) for layer in layers]
    max_live = max(max(layer["live"]) for layer in layers)
    if not any(forgotten):
        return f"By step {step} it had forgotten nothing: all {count:,} observations were still in memory."
    maximum = f"It never held more than {max_live:,} at a time{' in a layer' if len(layers) > 1 else ''}."
    if len(set(forgotten)) == 1:
        return f"By step {step} it had forgotten {forgotten[0]:,} of {count:,} observations. {maximum}"
    layer_counts = [f"{number:,} in layer {i + 1}" for i, number in enumerate(forgotten)]
    return f"By step {step} it had forgotten, of {count:,} observations, {join_words(layer_counts)}. {maximum}"


def is_kept_for_good(record: Record, birth: int) -> bool:
    """Whether some layer gave the observation a span without an end."""
    return any(layer["span"] is not None and layer["span"][birth] is None for layer in record["layers"])


def steps_text(count: int) -> str:
    """ "1 step", "139 steps"."""
    return f"{count:,} step{'s' * (count != 1)}"


def _distribution_name(record: Record) -> str:
    return "distribution of actions" if record.get("continuous") else "action probabilities"
