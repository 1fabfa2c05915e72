"""Over many episodes: which kinds of observation are kept and which are forgotten, and whether the audit and the
environment's own facts agree. Computed from the records.

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
from expire_span_rl.viewer.naming import MOST_NUMBERS
from expire_span_rl.viewer.story import one_per_observation

Record = Mapping[str, Any]
FEW_VALUES = 6  # of a real number, up to which they are told; above it is only said whether it is low, middle or high
SHOWN_KINDS = 10  # most kept and most forgotten, of a table


def summary(records: Sequence[Record]) -> dict[str, Any]:
    """JSON-able: `episodes`, `observations`, `kinds` (see `kinds_of`, the most kept first; [] for a memory without
    slots) and `agreement` (see `agreement_of`)."""
    return {
        "episodes": len(records),
        "observations": sum(record["steps"] for record in records),
        "kinds": kinds_of(records),
        "agreement": agreement_of(records),
    }


def kinds_of(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Per kind of observation: `shows`, what it is; `count`; `kept_for_good`, the part whose span has no end;
    `mean_span`, in steps, of the others (None if there are none); `mean_steps_live` within the episode; `measured` and
    `mattered`: pairs of a decision and an observation that the audit measured, and of these the ones where the agent
    would have acted otherwise without it."""
    words = _Words(records)
    lives: dict[str, list[tuple[float, int]]] = defaultdict(list)  # spans, infinite for good, and steps live
    measured: dict[str, list[bool]] = defaultdict(list)
    for number, record in enumerate(records):
        if not record["layers"]:
            continue
        for written, life in enumerate(_lives(record)):
            lives[words.of(number, written)].append(life)
        for row in one_per_observation(record["audit"]["memories"]):
            other = is_another(record, row["base"], row["total_removed"])
            measured[words.of(number, row["written"])].append(other)
    kinds = []
    for shows, some in lives.items():
        spans, live = np.array([span for span, _ in some]), np.array([steps for _, steps in some])
        ending = spans[np.isfinite(spans)]
        kinds.append(
            {
                "shows": shows,
                "count": len(some),
                "kept_for_good": round(1 - len(ending) / len(spans), 4),
                "mean_span": round(float(ending.mean()), 2) if len(ending) else None,
                "mean_steps_live": round(float(live.mean()), 2),
                "measured": len(measured[shows]),
                "mattered": sum(measured[shows]),
            }
        )
    return sorted(kinds, key=lambda kind: (-kind["kept_for_good"], -(kind["mean_span"] or 0), -kind["count"]))


def _lives(record: Record) -> list[tuple[float, int]]:
    """Per observation: its span, infinite if it is kept for good, and for how many steps it was live; in the layer that
    saw it longest."""
    layers = record["layers"]
    expires = zip(*(layer["expires"] for layer in layers), strict=True)
    ends = zip(*(layer["end"] for layer in layers), strict=True)
    return [
        (np.inf if None in steps else max(steps) - written, max(1, max(end) - written))
        for written, (steps, end) in enumerate(zip(expires, ends, strict=True))
    ]


class _Words:
    """What every observation shows, real numbers included: those have few values, or are low, middle or high among all
    that were seen."""

    def __init__(self, records: Sequence[Record]) -> None:
        self._records = records
        values: dict[str, list[float]] = defaultdict(list)
        self._labels = [list(self._numbers(record)) for record in records]
        for numbers in self._labels:
            for label, column in numbers:
                values[label] += [number for number in column if number is not None]
        self._levels = {label: self._thirds(np.array(some)) for label, some in values.items()}

    @staticmethod
    def _numbers(record: Record) -> Any:
        """(label, numbers [T]) of every real number that is told of."""
        for entry in record.get("entries", []):
            if entry["kind"] == "vector" and "values" in entry and len(entry["labels"]) <= 2 * MOST_NUMBERS:
                for i, label in enumerate(entry["labels"]):
                    yield label, [row[i] for row in entry["values"]]

    @staticmethod
    def _thirds(numbers: np.ndarray) -> np.ndarray | None:
        """The bounds of the middle third; None for few values."""
        return None if len(np.unique(numbers)) <= FEW_VALUES else np.quantile(numbers, [1 / 3, 2 / 3])

    def of(self, number: int, written: int) -> str:
        """The kind of an observation of record `number`."""
        shows = self._records[number]["shows"]
        parts = [shows["texts"][shows["which"][written]]]
        for label, column in self._labels[number]:
            value, bounds = column[written], self._levels.get(label)
            if value is None:
                parts.append(f"{label} unknown")
            elif bounds is None:
                parts.append(f"{label} {value:g}")
            else:
                parts.append(f"{label} {('low', 'middle', 'high')[int((value > bounds).sum())]}")
        return ", ".join(part for part in parts if part) or shows["unnamed"]


def agreement_of(records: Sequence[Record]) -> dict[str, Any] | None:
    """Of the audit with the environment's facts: among the `measured` pairs of a decision and an observation, how many
    matter and show a fact (`both`), matter only, show one only, or neither; `agree` is the part of both and neither.
    Among the `decisions` after a fact was seen: at how many an observation of the latest fact was still in memory
    (`fact_in_memory`), and at how many measured ones (`swaps_measured`) the agent would have acted otherwise had it seen
    the opposite fact (`follows_fact`). None if the environment tells no facts, or nothing was measured."""
    known = [record for record in records if record["facts"] is not None and record["layers"]]
    counts = {"both": 0, "audit_only": 0, "fact_only": 0, "neither": 0}
    decisions = fact_in_memory = swaps = follows = 0
    for record in known:
        rows = one_per_observation(record["audit"]["memories"])
        for row in rows:
            matters = is_another(record, row["base"], row["total_removed"])
            shows = record["facts"][row["written"]] >= 0
            counts[("neither", "fact_only", "audit_only", "both")[2 * matters + shows]] += 1
        swapped: dict[int, bool] = {}
        for row in rows:
            if row["total_swapped"] is not None:
                other = is_another(record, row["base"], row["total_swapped"])
                swapped[row["step"]] = swapped.get(row["step"], False) or other
        swaps, follows = swaps + len(swapped), follows + sum(swapped.values())
        held = [_holds_latest_fact(record, step) for step in record["audit"]["decisions"]]
        decisions += sum(one is not None for one in held)
        fact_in_memory += sum(bool(one) for one in held)
    total = sum(counts.values())
    if not total:
        return None
    return {
        "measured": total, **counts, "agree": round((counts["both"] + counts["neither"]) / total, 4),
        "decisions": decisions, "fact_in_memory": fact_in_memory, "swaps_measured": swaps, "follows_fact": follows,
    }  # fmt: skip


def _holds_latest_fact(record: Record, step: int) -> bool | None:
    """Whether an observation of the latest fact before `step` is live then, in some layer; None if no fact was seen."""
    facts = np.array(record["facts"][:step])
    seen = np.flatnonzero(facts >= 0)
    if not len(seen):
        return None
    same = np.flatnonzero(facts == facts[seen[-1]])
    return any(layer["end"][w] > step for layer in record["layers"] for w in same)


def kinds_table(told: Mapping[str, Any], title: str) -> Table:
    """The most kept and the most forgotten kinds of a `summary` for the terminal."""
    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, title=f"{title}: what is kept, over {told['episodes']:,} episodes"
    )
    table.add_column("observation")
    for name in ("seen", "kept\nfor good", "mean span\nof the others", "mean steps\nlive", "mattered"):
        table.add_column(name, justify="right")
    most, least = ends_of(told["kinds"])
    for kind in most:
        table.add_row(*_cells(kind))
    if least:
        table.add_section()
        for kind in least:
            table.add_row(*_cells(kind))
    table.caption = agreement_text(told["agreement"])
    return table


def ends_of(kinds: Sequence[Mapping[str, Any]]) -> tuple[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]]:
    """The most kept kinds and the most forgotten ones, none of them twice."""
    if len(kinds) <= 2 * SHOWN_KINDS:
        return kinds, []
    return kinds[:SHOWN_KINDS], kinds[-SHOWN_KINDS:]


def _cells(kind: Mapping[str, Any]) -> list[str]:
    span = "-" if kind["mean_span"] is None else f"{kind['mean_span']:,.1f}"
    mattered = f"{kind['mattered']:,} of {kind['measured']:,}" if kind["measured"] else "-"
    good = f"{100 * kind['kept_for_good']:.1f}%"
    return [kind["shows"], f"{kind['count']:,}", good, span, f"{kind['mean_steps_live']:,.1f}", mattered]


def agreement_text(told: Mapping[str, Any] | None) -> str | None:
    """One or two sentences; None if there is nothing to tell."""
    if told is None:
        return None
    text = (
        f"The audit and the environment's facts agree on {100 * told['agree']:.1f}% of {told['measured']:,} measured memories "
        f"({told['both']:,} show a fact and mattered, {told['neither']:,} neither, {told['fact_only']:,} show a fact only, "
        f"{told['audit_only']:,} mattered only)."
    )
    if told["decisions"]:
        text += (
            f" At {told['fact_in_memory']:,} of {told['decisions']:,} decisions the latest fact was still in memory."
        )
    if told["swaps_measured"]:
        swapped = f"{told['follows_fact']:,} of {told['swaps_measured']:,}"
        text += f" At {swapped} the agent would have acted otherwise had it seen the opposite fact."
    return text
