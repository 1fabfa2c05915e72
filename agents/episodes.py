"""What is known about finished episodes: success overall, on the hardest ones, and by what the environment reports.

An episode is a dict: `return`, `steps`, and whatever the environment's `final_info` says of it, such as
`is_success`. Its difficulty is the entry that the environment names (`metadata["difficulty_key"]`), else its number of
steps.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from expire_span_rl.checks import is_number, shown

LATEST = 100  # episodes over which returns and lengths are averaged, as Stable-Baselines3 does under the same names
MOST_LABELS = 20  # different texts of one entry by which success is told apart
HARD = 0.75
"""Episodes are hard from this fraction of the largest difficulty seen: the longest quarter."""


def finished(infos: Mapping[str, Any], returns: np.ndarray, lengths: np.ndarray) -> list[dict[str, Any]]:
    """The episodes that ended in a step of a vector environment; returns, lengths: [B] at that step."""
    rows = np.flatnonzero(infos["_final_obs"])
    said = infos.get("final_info", {})
    names = [key for key in said if not key.startswith("_") and np.ndim(said[key]) == 1]
    episodes = []
    for row in rows:
        given = (key for key in names if said.get(f"_{key}", infos["_final_obs"])[row])
        entries = {key: plain(said[key][row]) for key in given}
        # What was measured here goes before entries of the same names.
        measured = {"return": float(returns[row]), "steps": int(lengths[row])}
        episodes.append({**{key: value for key, value in entries.items() if value is not None}, **measured})
    return episodes


def plain(value: Any) -> Any:
    """A number, a flag or a text as Python has it; None for anything else, which no figure can be made of."""
    value = value.item() if isinstance(value, np.generic) else value
    return value if isinstance(value, (bool, int, float, str)) else None


def _success(episode: Mapping[str, Any]) -> float:
    """1 or 0, or what is between them; 0 where the episode does not say, or says something else than a number."""
    value = episode.get("is_success", 0.0)
    return float(value) if isinstance(value, (bool, int, float)) else 0.0


def ratio_parts(ratios: Mapping[str, Any]) -> list[str]:
    """The entries of an episode that `ratios` divide: {name: (numerator, denominator), or such by label, or None}."""
    parts: list[str] = []
    for ratio in ratios.values():
        parts += ratio_parts(ratio) if isinstance(ratio, Mapping) else ratio or ()
    return parts


def quotients(episodes: Sequence[Mapping[str, Any]], ratios: Mapping[str, Any]) -> dict[str, Any]:
    """The figures that an environment's `metadata["ratios"]` name: sums over the episodes, divided. Structured as
    `ratios`; None where there is nothing to divide by."""
    figures: dict[str, Any] = {}
    for name, ratio in ratios.items():
        if isinstance(ratio, Mapping):
            figures[name] = quotients(episodes, ratio)
        else:
            above, below = (sum(episode[part] for episode in episodes) for part in ratio) if ratio else (0, 0)
            figures[name] = above / below if below else None
    return figures


class EpisodeWindow:
    """The latest episodes, and apart from them the latest hard ones, so that a mean over many easy ones hides
    nothing."""

    def __init__(self, difficulty_key: str | None, size: int = 1000, hard_size: int = 100):
        self.difficulty_key = difficulty_key or "steps"
        self.hardest = 0.0
        self.recent: deque[dict[str, Any]] = deque(maxlen=size)
        self.hard: deque[dict[str, Any]] = deque(maxlen=hard_size)

    def add(self, episodes: Iterable[dict[str, Any]]) -> int:
        """Takes the episodes in. When a harder one moves the limit, those that are hard no longer are dropped. Returns
        how many of them are hard."""
        episodes = list(episodes)
        for episode in episodes:
            self.recent.append(episode)
            difficulty = float(episode[self.difficulty_key])
            if difficulty > self.hardest:
                self.hardest = difficulty
                kept = [e for e in self.hard if e[self.difficulty_key] >= HARD * difficulty]
                self.hard.clear()
                self.hard.extend(kept)
            if difficulty >= HARD * self.hardest:
                self.hard.append(episode)
        return sum(episode[self.difficulty_key] >= HARD * self.hardest for episode in episodes)

    @property
    def tells_success(self) -> bool:
        """Whether any episode in the window says so of itself; those that then say nothing did not succeed."""
        return any("is_success" in episode for episode in itertools.chain(self.recent, self.hard))

    def _scores(self, episodes: Iterable[dict[str, Any]]) -> np.ndarray:
        """Success (1 or 0) where the environment reports it, else the return."""
        told = self.tells_success
        return np.array([_success(e) if told else e["return"] for e in episodes], float)

    def hard_score(self) -> tuple[float, int]:
        """(mean score, number) of the hard episodes in the window; (nan, 0) if there are none."""
        return (float(self._scores(self.hard).mean()), len(self.hard)) if self.hard else (float("nan"), 0)

    def summary(self) -> dict[str, float]:
        """Figures for the log: Stable-Baselines3's names where it has one, success by every label episodes carry."""
        if not self.recent:
            return {}
        recent = list(self.recent)
        latest = recent[-LATEST:]
        out = {
            "rollout/ep_rew_mean": float(np.mean([e["return"] for e in latest])),
            "rollout/ep_len_mean": float(np.mean([e["steps"] for e in latest])),
        }
        if self.hard:
            out["rollout/hard_score"] = self.hard_score()[0]
        if not self.tells_success:
            return out
        success = self._scores(recent)
        out["rollout/success_rate"] = float(success.mean())
        texts = {key for e in recent for key, value in e.items() if isinstance(value, str)}
        labels = [key for key in recent[0] if key in texts and self._few_labels(recent, key)]
        for key in labels:
            for label in sorted({e[key] for e in recent if key in e}):
                out[f"success/{key}_{label}"] = float(success[[e.get(key) == label for e in recent]].mean())
        for first in labels[:1]:  # one of the combinations can be lost while each label looks well
            for second in labels[1:2]:
                for pair in sorted({(e[first], e[second]) for e in recent if first in e and second in e}):
                    chosen = [(e.get(first), e.get(second)) == pair for e in recent]
                    out[f"success/{pair[0]}_{pair[1]}"] = float(success[chosen].mean())
        difficulty = np.array([e[self.difficulty_key] for e in recent], float)
        for i in range(4):
            inside = (difficulty > self.hardest * i / 4) & (difficulty <= self.hardest * (i + 1) / 4)
            if inside.any():
                out[f"success/{self.difficulty_key}_quarter_{i + 1}"] = float(success[inside].mean())
        return out

    @staticmethod
    def _few_labels(episodes: Iterable[Mapping[str, Any]], key: str) -> bool:
        """Whether the entry is a text in all episodes that have it, and one of a few: success is then told by each."""
        values = {e[key] for e in episodes if key in e}
        return len(values) <= MOST_LABELS and all(isinstance(value, str) for value in values)

    def state_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {"hardest": self.hardest, "recent": list(self.recent), "hard": list(self.hard)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises ValueError, one line, for an episode of which no figures could be made."""
        for episode in itertools.chain(state["recent"], state["hard"]):
            self._check(episode)
        self.hardest = state["hardest"]
        for name in ("recent", "hard"):
            window = getattr(self, name)
            window.clear()
            window.extend(state[name])

    def _check(self, episode: Any) -> None:
        measured = ("return", "steps", self.difficulty_key)
        if (
            not isinstance(episode, dict)
            or not all(is_number(episode.get(name)) for name in measured)
            or not all(plain(value) is not None for value in episode.values())
        ):
            wanted = f"numbers under {', '.join(dict.fromkeys(measured))}, and plain values"
            raise ValueError(f"episode: expected {wanted}, got {shown(repr(episode), 60)}")
