"""The story of an episode in a sentence or two, and the moment at which the page opens. Computed from the record.

An observation is named by the step at which it was written. It *mattered* at a decision if the agent would have acted
otherwise there had the observation left no memory in any layer (`total_removed` of the audit).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from expire_span_rl.viewer.effects import LEAST_SHIFT, action_short, is_another
from expire_span_rl.viewer.naming import MOST_LETTERS, listed

Record = Mapping[str, Any]
Row = Mapping[str, Any]  # of the audit's `memories`
COMPASS = ("north", "east", "south", "west")


def story(record: Record) -> dict[str, Any]:
    """JSON-able: `headline` and `detail`, sentences; `step`, the moment to open the page at; `written`, the observation
    that the headline is about, None for none; `matters`, the observations that mattered, in order."""
    rows = one_per_observation(record["audit"]["memories"])
    deciding = [row for row in rows if is_another(record, row["base"], row["total_removed"])]
    swapped = [row for row in rows if row["total_swapped"] and is_another(record, row["base"], row["total_swapped"])]
    first = _best_swapped(record, swapped) if swapped and not deciding else best_row(record, deciding or rows)
    step = opening_step(record) if first is None else first["step"]
    return {
        "headline": _headline(record, rows, deciding, swapped, first, step),
        "detail": _detail(record, step),
        "step": step,
        "written": None if first is None else first["written"],
        "matters": sorted({row["written"] for row in deciding}),
    }


def one_per_observation(rows: Sequence[Row]) -> list[Row]:
    """Of the audit's rows the one with the most attention per decision and observation: the total effects of an
    observation are the same in every layer."""
    best: dict[tuple[int, int], Row] = {}
    for row in rows:
        key = row["step"], row["written"]
        if key not in best or row["attention"] > best[key]["attention"]:
            best[key] = row
    return list(best.values())


def first_forgetting(record: Record) -> int | None:
    """The first step at which some layer does not see an earlier observation any more; None if all see all to the
    end."""
    gone = min((min(layer["end"]) for layer in record["layers"]), default=record["steps"])
    return gone if gone < record["steps"] else None


def best_row(record: Record, rows: Sequence[Row]) -> Row | None:
    """Of the decision with the largest effect (after something was forgotten, if there is one), the row whose
    observation was kept for longest. None of no rows."""
    if not rows:
        return None
    forgetting = first_forgetting(record)
    later = [row for row in rows if forgetting is not None and row["step"] >= forgetting]
    strongest = max(
        later or rows, key=lambda row: (round(row["total_removed"]["shift"], 2), row["step"] - row["written"])
    )
    same = [row for row in rows if row["step"] == strongest["step"]]
    return min(same, key=lambda row: row["written"])


def _best_swapped(record: Record, rows: Sequence[Row]) -> Row:
    """Of the rows whose action changes with the fact the largest effect, of an observation that shows a fact if
    possible."""
    facts = record.get("facts") or []
    return max(rows, key=lambda row: (bool(facts) and facts[row["written"]] >= 0, row["total_swapped"]["shift"]))


def opening_step(record: Record) -> int:
    """The step of the largest influence of memory as a whole, after something was forgotten if it was; the last step
    where memory has no influence."""
    influence, forgetting = record["audit"]["influence"], first_forgetting(record)
    steps = range(forgetting or 0, record["steps"])
    best = max(steps, key=lambda step: influence[step] or 0)
    return best if (influence[best] or 0) >= LEAST_SHIFT else record["steps"] - 1


def observation_name(record: Record, written: int) -> str:
    """ "the blue ball of step 0"; "the observation of step 7" for what has no name, or a long one."""
    shows = record.get("shows")
    text = shows["texts"][shows["which"][written]] if shows else ""
    return f"the {text if 0 < len(text) <= MOST_LETTERS else 'observation'} of step {written}"


def would_have(record: Record, action: int | str) -> str:
    """What the agent "would have" done: "gone north", "chosen “pick up”"."""
    name = action_short(record, action)
    most_likely = "" if record.get("deterministic", True) else "most likely "
    return f"{most_likely}gone {name}" if name in COMPASS else f"{most_likely}chosen “{name}”"


def _headline(
    record: Record, rows: Sequence[Row], deciding: Sequence[Row], swapped: Sequence[Row], best: Row | None, step: int
) -> str:
    if not record["layers"]:
        return _without_slots(record, step)
    if best is None:
        return _unmeasured(record)
    if not deciding:
        return _nothing_mattered(record, rows, best if swapped else None)
    name, kept = observation_name(record, best["written"]), steps_text(best["step"] - best["written"])
    instead = would_have(record, best["total_removed"]["action"])
    if len({row["written"] for row in deciding}) == 1:
        if is_kept_for_good(record, best["written"]):
            return f"Kept {name} for good. {kept.capitalize()} later, without it, the agent would have {instead}."
        return f"Kept {name} for {kept}; without it the agent would have {instead}."
    used, at = len({row["written"] for row in deciding}), len({row["step"] for row in deciding})
    many = len(record["audit"]["decisions"])
    where = f"at {at} of {many} decisions" if many > 1 else "at its only decision"
    return (
        f"Needed {used} earlier observations, {where}. It kept {name} for {kept}; "
        f"without it the agent would have {instead} at step {best['step']}."
    )


def _without_slots(record: Record, step: int) -> str:
    """The headline of a memory that is no list of observations."""
    if not record["state_bytes"]:
        return "Has no memory: every action follows from what the agent sees at that step."
    text = f"Remembers in one state of {record['state_bytes']:,} bytes, in which observations cannot be told apart."
    influence = record["audit"]["influence"][step] or 0
    if influence < LEAST_SHIFT:
        return f"{text} Emptied, it would change no action noticeably."
    return f"{text} It matters most at step {step}: emptied, it shifts the {_moved(record)} by {influence:.2f}."


def _unmeasured(record: Record) -> str:
    audit = record["audit"]
    if audit["decisions"] and not audit.get("measured_per_decision", 1):
        return "Whether a memory mattered was not measured in this episode (--audit 0)."
    if audit["decisions"]:
        return "No decision of this episode had an earlier observation to attend to: nothing was measured."
    if audit.get("decisions_named", False):
        return "This episode came to no decision that depends on the past: the environment names none."
    largest = max((shift or 0 for shift in audit["influence"]), default=0)
    return f"Memory decided nothing in this episode: without any, the {_moved(record)} shift by {largest:.2f} at most."


def _nothing_mattered(record: Record, rows: Sequence[Row], swapped: Row | None) -> str:
    """The headline where every action stays without any one of the measured memories. swapped: the row whose action
    changes with the fact, None for none."""
    largest = max(row["total_removed"]["shift"] for row in rows)
    count = len({row["written"] for row in rows})
    text = f"No single memory decided: without any one of the {count} measured, every action stays"
    if count == 1:
        text = "No memory decided: without the only one measured, every action stays"
    if swapped is None:
        return f"{text} (largest shift {largest:.2f})."
    name = observation_name(record, record["facts"].index(swapped["fact"]))
    instead = would_have(record, swapped["total_swapped"]["action"])
    return f"{text}. But had it seen the opposite of {name}, the agent would have {instead} at step {swapped['step']}."


def _detail(record: Record, step: int) -> str:
    """How much was forgotten by then, and the most that was held."""
    layers = record["layers"]
    if not layers:
        return ""
    seen = step + 1
    forgotten = [sum(end <= step for end in layer["end"][:seen]) for layer in layers]
    most = max(max(layer["live"]) for layer in layers)
    if not any(forgotten):
        return f"By step {step} it had forgotten nothing: all {seen:,} observations were still in memory."
    held = f"It never held more than {most:,} at a time{' in a layer' if len(layers) > 1 else ''}."
    if len(set(forgotten)) == 1:
        return f"By step {step} it had forgotten {forgotten[0]:,} of {seen:,} observations. {held}"
    counts = [f"{count:,} in layer {i + 1}" for i, count in enumerate(forgotten)]
    return f"By step {step} it had forgotten, of {seen:,} observations, {listed(counts)}. {held}"


def is_kept_for_good(record: Record, written: int) -> bool:
    """Whether some layer gave the observation a span without an end."""
    return any(layer["span"] is not None and layer["span"][written] is None for layer in record["layers"])


def steps_text(count: int) -> str:
    """ "1 step", "139 steps"."""
    return f"{count:,} step{'s' * (count != 1)}"


def _moved(record: Record) -> str:
    return "distribution of actions" if record.get("continuous") else "action probabilities"
