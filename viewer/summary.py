"""Over many episodes: which kinds of observation are kept and which are forgotten, and whether the audit and the
environment's own facts agree. All of it is computed from the records.

Observations of the same description are of one kind. The *span* of an observation is the number of steps for which it
would be seen if the episode went on for ever, in the layer that sees it longest.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from expire_span_rl.viewer.effects import is_another
from expire_span_rl.viewer.naming import MAX_NUMBERS
from expire_span_rl.viewer.story import one_per_observation

Record = Mapping[str, Any]
Kind = Mapping[str, Any]  # of observation, as `kinds_of` gives it
MAX_VALUES = 6  # of a real number; with more values, a kind has only its third: low, middle or high
TABLE_KINDS = 10  # of the most kept and of the most forgotten, in a table


def summary(records: Sequence[Record]) -> dict[str, Any]:
    """JSON-able: `episodes`, `observations`, `kinds` (see `kinds_of`) and `agreement` (see `agreement_of`)."""
    return {
        "episodes": len(records),
        "observations": sum(record["steps"] for record in records),
        "kinds": kinds_of(records),
        "agreement": agreement_of(records),
    }


def kinds_of(records: Sequence[Record]) -> list[dict[str, Any]]:
    """A dict for each kind of observation, the most kept first. Empty for a memory without slots.

    `shows` is what the kind is, and `count` how many observations it has. `kept_for_good` is the share whose span has
    no end, and `mean_span` the mean of the others in steps (None if there are none). `mean_steps_live` is within the
    episode. `measured` counts the pairs of a decision and an observation that the audit measured. `mattered` counts
    those where the agent would have acted otherwise without the observation.
    """
    descriptions = _Descriptions(records)
    lives: dict[str, list[tuple[float, int]]] = defaultdict(list)  # span, infinite for good, and steps live
    mattered: dict[str, list[bool]] = defaultdict(list)
    for number, record in enumerate(records):
        if not record["layers"]:
            continue
        for birth, life in enumerate(_lives(record)):
            lives[descriptions.of(number, birth)].append(life)
        for row in one_per_observation(record["audit"]["memories"]):
            is_decisive = is_another(record, row["base"], row["total_removed"])
            mattered[descriptions.of(number, row["written"])].append(is_decisive)
    kinds = []
    for description, kind_lives in lives.items():
        spans = np.array([span for span, _ in kind_lives])
        steps_live = np.array([steps for _, steps in kind_lives])
        finite_spans = spans[np.isfinite(spans)]
        kinds.append(
            {
                "shows": description,
                "count": len(kind_lives),
                "kept_for_good": round(1 - len(finite_spans) / len(spans), 4),
                "mean_span": round(float(finite_spans.mean()), 2) if len(finite_spans) else None,
                "mean_steps_live": round(float(steps_live.mean()), 2),
                "measured": len(mattered[description]),
                "mattered": sum(mattered[description]),
            }
        )
    return sorted(kinds, key=lambda kind: (-kind["kept_for_good"], -(kind["mean_span"] or 0), -kind["count"]))


def _lives(record: Record) -> list[tuple[float, int]]:
    """For each observation its span, infinite if it is kept for good, and for how many steps it was live. Both are of
    the layer that saw it longest."""
    layers = record["layers"]
    expires = zip(*(layer["expires"] for layer in layers), strict=True)
    ends = zip(*(layer["end"] for layer in layers), strict=True)
    return [
        (np.inf if None in steps else max(steps) - birth, max(1, max(end) - birth))
        for birth, (steps, end) in enumerate(zip(expires, ends, strict=True))
    ]


class _Descriptions:
    """What every observation shows, real numbers included. A number with few values is described by its value. Any
    other is described as low, middle or high among all of the records."""

    def __init__(self, records: Sequence[Record]) -> None:
        self._records = records
        values: dict[str, list[float]] = defaultdict(list)
        self._labels = [list(self._numbers(record)) for record in records]
        for numbers in self._labels:
            for label, column in numbers:
                values[label] += [number for number in column if number is not None]
        self._bounds = {label: self._thirds(np.array(numbers)) for label, numbers in values.items()}

    @staticmethod
    def _numbers(record: Record) -> Any:
        """(label, numbers [T]) of every real number of the record's entries, if an entry has few."""
        for entry in record.get("entries", []):
            if entry["kind"] == "vector" and "values" in entry and len(entry["labels"]) <= 2 * MAX_NUMBERS:
                for i, label in enumerate(entry["labels"]):
                    yield label, [row[i] for row in entry["values"]]

    @staticmethod
    def _thirds(numbers: np.ndarray) -> np.ndarray | None:
        """The bounds of the middle third. None for few values."""
        return None if len(np.unique(numbers)) <= MAX_VALUES else np.quantile(numbers, [1 / 3, 2 / 3])

    def of(self, number: int, birth: int) -> str:
        """The kind of an observation of record `number`."""
        shows = self._records[number]["shows"]
        parts = [shows["texts"][shows["which"][birth]]]
        for label, column in self._labels[number]:
            value = column[birth]
            bounds = self._bounds.get(label)
            if value is None:
                parts.append(f"{label} unknown")
            elif bounds is None:
                parts.append(f"{label} {value:g}")
            else:
                parts.append(f"{label} {('low', 'middle', 'high')[int((value > bounds).sum())]}")
        return ", ".join(part for part in parts if part) or shows["unnamed"]


def agreement_of(records: Sequence[Record]) -> dict[str, Any] | None:
    """How well the audit agrees with the environment's facts. None if it has no facts, or nothing was measured.

    Of the `measured` pairs of a decision and an observation: how many matter and show a fact (`both`), matter only
    (`audit_only`), show a fact only (`fact_only`), or do `neither`. `agree` is the share of both and neither.
    Of the `decisions` after a fact was seen: at how many an observation of the latest fact was still in memory
    (`fact_in_memory`). Of those with a measured swap (`swaps_measured`): at how many the agent would have acted
    otherwise had it seen the opposite fact (`follows_fact`).
    """
    pairs = {"both": 0, "audit_only": 0, "fact_only": 0, "neither": 0}
    decisions = {"decisions": 0, "fact_in_memory": 0, "swaps_measured": 0, "follows_fact": 0}
    for record in records:
        if record["facts"] is None or not record["layers"]:
            continue
        rows = one_per_observation(record["audit"]["memories"])
        for row in rows:
            matters = is_another(record, row["base"], row["total_removed"])
            shows_fact = record["facts"][row["written"]] >= 0
            pairs[("neither", "fact_only", "audit_only", "both")[2 * matters + shows_fact]] += 1
        is_flipped: dict[int, bool] = {}  # by decision
        for row in rows:
            if row["total_swapped"] is not None:
                flips = is_another(record, row["base"], row["total_swapped"])
                is_flipped[row["step"]] = is_flipped.get(row["step"], False) or flips
        decisions["swaps_measured"] += len(is_flipped)
        decisions["follows_fact"] += sum(is_flipped.values())
        in_memory = [_holds_latest_fact(record, step) for step in record["audit"]["decisions"]]
        decisions["decisions"] += sum(holds is not None for holds in in_memory)
        decisions["fact_in_memory"] += sum(bool(holds) for holds in in_memory)
    total = sum(pairs.values())
    if not total:
        return None
    return {"measured": total, **pairs, "agree": round((pairs["both"] + pairs["neither"]) / total, 4), **decisions}


def _holds_latest_fact(record: Record, step: int) -> bool | None:
    """Whether an observation of the latest fact before `step` is live then, in some layer. None if no fact was seen."""
    facts = np.array(record["facts"][:step])
    fact_steps = np.flatnonzero(facts >= 0)
    if not len(fact_steps):
        return None
    observations = np.flatnonzero(facts == facts[fact_steps[-1]])
    return any(layer["end"][birth] > step for layer in record["layers"] for birth in observations)


def kinds_table(summary: Mapping[str, Any], title: str) -> Table:
    """The most kept and the most forgotten kinds of a `summary` for the terminal."""
    heading = f"{title}: what is kept, over {summary['episodes']:,} episodes"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=heading)
    table.add_column("observation")
    for name in ("seen", "kept\nfor good", "mean span\nof the others", "mean steps\nlive", "mattered"):
        table.add_column(name, justify="right")
    kept, forgotten = extreme_kinds(summary["kinds"])
    for kind in kept:
        table.add_row(*_cells(kind))
    if forgotten:
        table.add_section()
        for kind in forgotten:
            table.add_row(*_cells(kind))
    table.caption = agreement_text(summary["agreement"])
    return table


def extreme_kinds(kinds: Sequence[Kind]) -> tuple[Sequence[Kind], Sequence[Kind]]:
    """The most kept kinds and the most forgotten ones, none of them twice."""
    if len(kinds) <= 2 * TABLE_KINDS:
        return kinds, []
    return kinds[:TABLE_KINDS], kinds[-TABLE_KINDS:]


def _cells(kind: Mapping[str, Any]) -> list[str]:
    span = "-" if kind["mean_span"] is None else f"{kind['mean_span']:,.1f}"
    mattered = f"{kind['mattered']:,} of {kind['measured']:,}" if kind["measured"] else "-"
    kept_for_good = f"{100 * kind['kept_for_good']:.1f}%"
    return [kind["shows"], f"{kind['count']:,}", kept_for_good, span, f"{kind['mean_steps_live']:,.1f}", mattered]


def agreement_text(agreement: Mapping[str, Any] | None) -> str | None:
    """The result of `agreement_of` in one to four sentences. None for None."""
    if agreement is None:
        return None
    count = {key: f"{number:,}" for key, number in agreement.items()}
    text = (
        f"The audit and the environment's facts agree on {100 * agreement['agree']:.1f}% of "
        f"{count['measured']} measured memories ({count['both']} show a fact and mattered, {count['neither']} neither, "
        f"{count['fact_only']} show a fact only, {count['audit_only']} mattered only)."
    )
    if agreement["fact_only"]:
        text += " Without those that show a fact only the agent would have acted the same."
    if agreement["decisions"]:
        text += f" At {count['fact_in_memory']} of {count['decisions']} decisions the latest fact was still in memory."
    if agreement["swaps_measured"]:
        flips = f"{count['follows_fact']} of {count['swaps_measured']}"
        text += f" At {flips} the agent would have acted otherwise had it seen the opposite fact."
    return text
