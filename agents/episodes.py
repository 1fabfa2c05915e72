"""Statistics of finished episodes: success overall, on the hardest episodes, and by the labels that the environment
reports.

An episode is a dict. It has `return`, `steps`, and the entries of the environment's `final_info`, such as `is_success`.
Its difficulty is the entry that the environment names (`metadata["difficulty_key"]`). Without one every episode counts
as hard: how long an episode was says how well the agent did, not how hard it was. In one task it ends when the agent
succeeds, in another when it fails.

An episode that still runs and has taken long is reported, too, once (`agents.long_episodes`).
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from expire_span_rl.agents.guard import TrainingEnded
from expire_span_rl.agents.long_episodes import COUNTED, RUNNING, LongEpisodes, long_after, success_of
from expire_span_rl.checks import is_difficulty, is_number, is_share, shown
from expire_span_rl.spaces import EPISODE_LOST

MEAN_EPISODES = 100
"""Episodes over which returns and lengths are averaged, as Stable-Baselines3 does under the same names."""
ACCURACY = "accuracy"
"""The entry of `metadata["ratios"]` for right answers by answers."""
IS_CONTROL = "is_control"
"""The entry of an episode that says whether its environment is a control (`protocols.CONTROL_EVERY`)."""
MAX_LABELS = 20
"""Success is reported by the texts of an entry if there are at most so many."""
MOST_ROLLOUTS = 256
"""Rollouts of an actor over which live memories are averaged, at most."""
HARD_FRACTION = 0.75
"""Episodes are hard from this fraction of the largest difficulty so far: the hardest quarter."""
QUARTERS = 4
"""Number of ranges of difficulty by which success is reported."""


def finished_episodes(infos: Mapping[str, Any], returns: np.ndarray, lengths: np.ndarray) -> dict[int, dict[str, Any]]:
    """The episodes that ended in a step of a vector environment, by the environment's row. Those that were lost with
    their process are left out. returns, lengths: [B] at that step. Raises TrainingEnded for a success that is no flag
    and no number from 0 to 1."""
    rows = np.flatnonzero(infos["_final_obs"])
    final_info = infos.get("final_info", {})
    names = [key for key in final_info if not key.startswith("_") and np.ndim(final_info[key]) == 1]
    episodes = {}
    for row in rows.tolist():
        present = [key for key in names if final_info.get(f"_{key}", infos["_final_obs"])[row]]
        entries = {key: plain(final_info[key][row]) for key in present}
        if entries.pop(EPISODE_LOST, False):
            continue
        success = entries.get("is_success")
        if success is not None and not is_share(success):
            got = shown(repr(success), 40)
            raise TrainingEnded(f"environment {row}, is_success: expected a flag or a number from 0 to 1, got {got}")
        # The measured entries replace entries of the same names.
        measured = {"return": float(returns[row]), "steps": int(lengths[row])}
        episodes[row] = {**{key: value for key, value in entries.items() if value is not None}, **measured}
    return episodes


def plain(value: Any) -> Any:
    """A number, a flag or a text as a Python value. None for anything else, since no statistic can be made of it."""
    value = value.item() if isinstance(value, np.generic) else value
    return value if isinstance(value, (bool, int, float, str)) else None


def ratio_parts(ratios: Mapping[str, Any]) -> list[str]:
    """The entries of an episode that `quotients` needs. ratios: {name: (numerator, denominator)}. Instead of a pair
    there may be pairs by label, or None."""
    parts: list[str] = []
    for ratio in ratios.values():
        parts += ratio_parts(ratio) if isinstance(ratio, Mapping) else ratio or ()
    return parts


def quotients(episodes: Sequence[Mapping[str, Any]], ratios: Mapping[str, Any]) -> dict[str, Any]:
    """The quotients that an environment's `metadata["ratios"]` name: sums over the episodes, divided. The result has
    the structure of `ratios`, with None where the denominator is 0 or there is no pair."""
    results: dict[str, Any] = {}
    for name, ratio in ratios.items():
        if isinstance(ratio, Mapping):
            results[name] = quotients(episodes, ratio)
        else:
            numerator, denominator = (sum(episode[part] for episode in episodes) for part in ratio) if ratio else (0, 0)
            results[name] = numerator / denominator if denominator else None
    return results


def asks_nothing(episode: Mapping[str, Any], ratios: Mapping[str, Any]) -> bool:
    """Whether the environment names the share of right answers, `ACCURACY`, and says that the episode had no answers.
    Where it has no success either, it then is neither right nor wrong."""
    ratio = ratios.get(ACCURACY)
    return bool(ratio) and not isinstance(ratio, Mapping) and episode.get(ratio[1]) == 0


class EpisodeWindow:
    """The latest episodes and, separately, the latest hard ones. Otherwise many easy episodes would hide the hard ones
    in a mean. There are `hard_size` hard ones, or all that the present policy played in the latest rollout if those are
    more: they tell more precisely how good it is. Of both kinds there are at most `size`.

    Where success is reported, an episode that reports none failed. One that asked nothing did not: it has a return and
    a length, but counts neither as a success nor as a failure, and is no hard one.

    Every episode counts once among the hard ones: when it ends or, with the result that it is expected to come to, as
    soon as it has taken long."""

    def __init__(
        self,
        difficulty_key: str | None,
        size: int = 1000,
        hard_size: int = 100,
        num_actors: int = 1,
        ratios: Mapping[str, Any] | None = None,
    ):
        """difficulty_key: the entry that says how hard an episode is. None: all are hard, and the log's quarters are of
        the number of steps. num_actors: as of the `RolloutSource`; ratios: the environment's `metadata["ratios"]`."""
        self.hard_size = hard_size
        self.ratios = ratios or {}
        self.num_actors = num_actors
        self.has_difficulty = difficulty_key is not None
        self.hard_fraction = HARD_FRACTION if self.has_difficulty else 0.0
        self.difficulty_key = difficulty_key or "steps"
        self.hardest = 0.0
        self.reports_success = False
        """Whether any episode so far reported success. Those that report nothing then did not succeed, unless they
        asked nothing."""
        self.recent: deque[dict[str, Any]] = deque(maxlen=size)
        self.hard: deque[dict[str, Any]] = deque(maxlen=max(size, hard_size))
        self.long = LongEpisodes()
        self.running: list[dict[str, Any]] = []
        """The episodes of the latest rollout that still run and count as hard."""
        self.live: deque[float] = deque(maxlen=MOST_ROLLOUTS * num_actors)
        """Live memories per layer in the latest rollouts."""

    def add(self, episodes: Iterable[dict[str, Any]], older: int | None = None) -> int:
        """Adds the episodes of a rollout, and returns how many of them are hard. A harder episode than any before
        raises the limit. Episodes below the new limit are dropped from the hard ones. older: earlier policies may have
        played a part of so many of them. None: of all. Raises TrainingEnded for an episode that does not say how hard
        it was."""
        episodes = list(episodes)
        ended = [episode for episode in episodes if RUNNING not in episode]
        for episode in ended:
            self._add_ended(episode)
            if COUNTED in episode:
                if self.has_score(episode):
                    self.long.ended.append(episode)
            elif self._is_hard(episode):
                self.hard.append(episode)
        self.running = self._counted([episode for episode in episodes if RUNNING in episode])
        self.hard.extend(self.running)
        new = sum(self._is_hard(episode) for episode in [*ended, *self.running] if COUNTED not in episode)
        own = 0 if older is None else new - older
        while len(self.hard) > max(self.hard_size, own):
            self.hard.popleft()
        return new

    def _counted(self, running: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Those of the running episodes that count as hard, with the result that they are expected to come to."""
        share = self._hard_share() if running else 0.0
        counted = [episode for episode in running if self.long.is_counted(share)]
        difficulty = {self.difficulty_key: self.hardest} if self.has_difficulty else {}
        return [{**self.long.foreseen(e, has_success=self.reports_success), **difficulty} for e in counted]

    def _hard_share(self) -> float:
        """The share of the latest episodes that were hard."""
        return float(np.mean([self._is_hard(e) for e in self.recent])) if self.has_difficulty and self.recent else 1.0

    def _add_ended(self, episode: dict[str, Any]) -> None:
        """Adds an episode that has ended to `recent`, and raises the limit of hard ones. See `add`."""
        given = episode.get(self.difficulty_key)
        if not is_difficulty(given):
            raise TrainingEnded(
                f"the environment's metadata['difficulty_key']: expected a number of at least 0 as "
                f"{self.difficulty_key!r} in the info of an episode's last step, got {shown(repr(given), 60)}"
            )
        self.recent.append(episode)
        is_first_success = "is_success" in episode and not self.reports_success
        self.reports_success |= is_first_success
        difficulty = float(episode[self.difficulty_key])
        if difficulty > self.hardest or is_first_success:
            self.hardest = max(difficulty, self.hardest)
            still_hard = [e for e in self.hard if self._is_hard(e)]
            self.hard.clear()
            self.hard.extend(still_hard)

    def long_after(self) -> float:
        """After how many steps an episode has taken long. Infinity before MEAN_EPISODES have ended."""
        return long_after(self._latest_steps()) if len(self.recent) >= MEAN_EPISODES else math.inf

    def _latest_steps(self) -> list[int]:
        """The steps of the latest MEAN_EPISODES episodes, the newest first."""
        return [episode["steps"] for episode in itertools.islice(reversed(self.recent), MEAN_EPISODES)]

    def _is_hard(self, episode: Mapping[str, Any]) -> bool:
        return self.has_score(episode) and episode[self.difficulty_key] >= self.hard_fraction * self.hardest

    def has_score(self, episode: Mapping[str, Any]) -> bool:
        """Whether an episode counts in `scores`. Of success, one that reports none and asked nothing does not."""
        is_neither = "is_success" not in episode and asks_nothing(episode, self.ratios)
        return not (self.reports_success and is_neither)

    def scores(self, episodes: Iterable[Mapping[str, Any]]) -> np.ndarray:
        """The success of each episode (that `has_score`) if the environment reports it, else the return."""
        has_success = self.reports_success
        return np.array([success_of(e) if has_success else e["return"] for e in episodes], float)

    def hard_score(self) -> tuple[float, int]:
        """(mean score, number) of the hard episodes in the window. (nan, 0) if there are none."""
        return (float(self.scores(self.hard).mean()), len(self.hard)) if self.hard else (float("nan"), 0)

    def hard_error(self) -> float:
        """Standard error of the mean return of the hard episodes. 0 of success, which has a target of its own, and of
        fewer than two episodes."""
        if self.reports_success or len(self.hard) < 2:
            return 0.0
        return float(self.scores(self.hard).std(ddof=1) / len(self.hard) ** 0.5)

    def mean_live(self, num_steps: int) -> float | None:
        """Live memories per layer over as many of the latest rollouts of each actor as the mean episode is long. None
        for a memory without slots. num_steps: of a rollout.

        Where all episodes end at the same step, a rollout at their start has few memories whatever is forgotten.
        """
        if not self.live:
            return None
        return float(np.mean(list(self.live)[-self.rollouts_of_an_episode(num_steps) :]))

    def rollouts_of_an_episode(self, num_steps: int) -> int:
        """The rollouts, of `num_steps` steps each, that the mean of the latest episodes is long: at most MOST_ROLLOUTS
        of each actor, 1 before any episode has ended. Consecutive rollouts are those of different actors."""
        latest = self._latest_steps()
        of_each_actor = min(math.ceil(np.mean(latest) / num_steps), MOST_ROLLOUTS) if latest else 1
        return of_each_actor * self.num_actors

    def is_live_measured(self, num_steps: int, *, spans_released: bool, queue: int) -> bool:
        """Whether live memories were counted over a whole episode since they were last cleared. spans_released: spans
        have been released since, so that the episode must have begun afterwards; queue: as of the `RolloutSource`,
        rollouts with older spans that came in first."""
        needed = self.rollouts_of_an_episode(num_steps) * (2 if spans_released else 1) + queue * self.num_actors
        return len(self.live) >= min(needed, MOST_ROLLOUTS * self.num_actors)

    def summary(self) -> dict[str, float]:
        """Metrics for the log, under Stable-Baselines3's names where it has one. They include success by the episodes'
        labels and by quarters of the difficulty."""
        if not self.recent:
            return {}
        recent = list(self.recent)
        latest = recent[-MEAN_EPISODES:]
        metrics = {
            "rollout/ep_rew_mean": float(np.mean([e["return"] for e in latest])),
            "rollout/ep_len_mean": float(np.mean([e["steps"] for e in latest])),
        }
        if self.hard:
            metrics["rollout/hard_score"] = self.hard_score()[0]
        scored = [episode for episode in recent if self.has_score(episode)]
        if not self.reports_success or not scored:
            return metrics
        success = self.scores(scored)
        metrics["rollout/success_rate"] = float(success.mean())
        return metrics | self._success_by_label(scored, success) | self._success_by_difficulty(scored, success)

    def _success_by_label(self, episodes: Sequence[Mapping[str, Any]], success: np.ndarray) -> dict[str, float]:
        """Mean success for each text of each entry that has few texts, and for each pair of the first two entries'
        texts. One pair can be lost while each text alone looks well."""
        metrics: dict[str, float] = {}
        text_keys = {key for e in episodes for key, value in e.items() if isinstance(value, str)}
        label_keys = [key for key in episodes[0] if key in text_keys and self._has_few_labels(episodes, key)]
        for key in label_keys:
            for label in sorted({e[key] for e in episodes if key in e}):
                metrics[f"success/{key}_{label}"] = float(success[[e.get(key) == label for e in episodes]].mean())
        if len(label_keys) > 1:
            key_a, key_b = label_keys[:2]
            for pair in sorted({(e[key_a], e[key_b]) for e in episodes if key_a in e and key_b in e}):
                has_pair = [(e.get(key_a), e.get(key_b)) == pair for e in episodes]
                metrics[f"success/{pair[0]}_{pair[1]}"] = float(success[has_pair].mean())
        return metrics

    def _success_by_difficulty(self, episodes: Sequence[Mapping[str, Any]], success: np.ndarray) -> dict[str, float]:
        """Mean success for each quarter of the range of difficulties."""
        metrics: dict[str, float] = {}
        difficulty = np.array([e[self.difficulty_key] for e in episodes], float)
        for i in range(QUARTERS):
            low = self.hardest * i / QUARTERS if i else -math.inf
            high = self.hardest * (i + 1) / QUARTERS
            in_quarter = (difficulty > low) & (difficulty <= high)
            if in_quarter.any():
                metrics[f"success/{self.difficulty_key}_quarter_{i + 1}"] = float(success[in_quarter].mean())
        return metrics

    @staticmethod
    def _has_few_labels(episodes: Iterable[Mapping[str, Any]], key: str) -> bool:
        """Whether the entry is a text in all episodes that have it, and has few different texts."""
        values = {e[key] for e in episodes if key in e}
        return len(values) <= MAX_LABELS and all(isinstance(value, str) for value in values)

    def state_dict(self) -> dict[str, Any]:
        """The window's state, JSON-able."""
        return {
            "hardest": self.hardest,
            "reports_success": self.reports_success,
            "recent": list(self.recent),
            "hard": list(self.hard),
            "live": list(self.live),
            "long": self.long.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from `state_dict`. Raises ValueError, one line, for an episode without the entries that the
        statistics need, or live memories that are no numbers."""
        live = state.get("live", [])  # older checkpoints have none
        if not isinstance(live, list) or not all(is_number(number) for number in live):
            raise ValueError(f"live: expected numbers, got {shown(repr(live), 60)}")
        self.live.clear()
        self.live.extend(live)
        long = state.get("long", {"ended": [], "share": 0.0})
        for episode in itertools.chain(state["recent"], state["hard"], long["ended"]):
            self._check(episode)
        self.long.load_state_dict(long)
        self.hardest = state["hardest"]
        kept = itertools.chain(state["recent"], state["hard"])
        self.reports_success = bool(state.get("reports_success")) or any("is_success" in episode for episode in kept)
        self.recent.clear()
        self.recent.extend(state["recent"])
        self.hard.clear()
        self.hard.extend(filter(self.has_score, state["hard"]))  # earlier versions counted those that asked nothing

    def _check(self, episode: Any) -> None:
        names = ("return", "steps", self.difficulty_key)
        if (
            not isinstance(episode, dict)
            or not all(is_number(episode.get(name)) for name in names)
            or not all(plain(value) is not None for value in episode.values())
        ):
            expected = f"numbers under {', '.join(dict.fromkeys(names))}, and plain values"
            raise ValueError(f"episode: expected {expected}, got {shown(repr(episode), 60)}")
