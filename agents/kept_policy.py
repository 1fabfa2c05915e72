"""The policy that a training keeps: the latest one that meets the constraint with about the fewest live memories."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from expire_span_rl.agents.forgetting import ForgettingController
from expire_span_rl.agents.rollout import select_prefix
from expire_span_rl.agents.score_record import Score
from expire_span_rl.protocols import LearningPolicy

MEMORY_TOLERANCE = 1.2
"""The kept policy is the latest one that meets the target and holds at most so many times the fewest live memories. The
policy with the very fewest is often a matter of chance: its rollout had short episodes, or its spans are too short and
success does not show it yet."""


@dataclass(frozen=True)
class Candidate:
    """What a training knows of its present policy."""

    score: Score
    live: float | None
    """Mean live memories per layer. None for a memory without slots."""
    is_live_measured: bool
    """Whether they were counted over whole episodes."""
    timesteps: int
    """Environment steps that it was trained for."""
    is_own: bool = False
    """Whether it played as many whole episodes as the score counts. Else earlier policies, which may have had longer
    spans, played a part of them."""
    trial: int = 0
    """Reviews until all episodes of its rollout have ended or taken long. 0: not known."""


@dataclass(frozen=True)
class KeptPolicy:
    """Weights, and what was known of the policy when it was kept. Fields other than the weights are saved as JSON."""

    score: float
    is_success: bool
    error: float
    live: float | None
    timesteps: int
    fewest: float
    """The fewest live memories of any kept policy since spans were released, or the memory budget if that is more."""
    released: bool
    """Whether spans had been released."""
    tested: bool
    """Whether the score is of new episodes, of an evaluation, or of a loss that every block has."""
    own: bool
    """`Candidate.is_own`."""
    weights: dict[str, Tensor]
    episodes: int = 0
    """How many episodes the score is of."""
    trial: int = 0
    """Reviews that are left of its trial (`Candidate.trial`)."""
    age: int = 0
    """Reviews of its trial so far, and so how many rollouts ago it played."""
    before: KeptPolicy | None = None
    """The policy that was kept before it, to go back to if it fails its trial. None after the trial."""


class PolicyKeeper:
    """Keeps a copy of the best weights that `policy` has had (`kept`), by the constraint of `controller`."""

    def __init__(self, policy: LearningPolicy, controller: ForgettingController):
        self.policy = policy
        self.controller = controller
        self.kept: KeptPolicy | None = None

    @property
    def best(self) -> KeptPolicy | None:
        """The kept policy. While that is on trial it is the one before it, unless only the spans of the new one are
        released: the other forgets nothing."""
        kept, before = self.kept, self.kept and self.kept.before
        return before if kept and before and before.released == kept.released else kept

    def review(
        self,
        now: Candidate,
        new_hard_episodes: int,
        *,
        is_harder: bool = False,
        running: Iterable[tuple[int, float]] = (),
    ) -> None:
        """Drops the kept policy if it no longer meets the target, or failed the first test or its trial. now: of the
        policy as it is; new_hard_episodes: how many hard episodes have ended since the last review; is_harder: one of
        them was harder than any before, so that the kept policy's score was of easier ones; running: of each hard
        episode that has come to take long since then, how many rollouts ago it began, and the score that it is expected
        to come to."""
        if self.kept is not None and self.kept.trial:
            self.kept = _tried(self.kept, running)
        self.kept = self._up_to_date(self.kept, now.score)
        if self.kept is not None and not self.kept.trial:
            self.kept = replace(self.kept, before=None)
        if self.kept is not None and is_harder:
            before = self.kept.before and replace(self.kept.before, own=False)
            self.kept = replace(self.kept, own=False, before=before)
        can_fail = self.controller.has_target(now.score.is_success) and self.controller.is_enough(now.score.episodes)
        if new_hard_episodes and can_fail:
            self._test(fails=not self.controller.holds(now.score))

    def _up_to_date(self, kept: KeptPolicy | None, now: Score) -> KeptPolicy | None:
        """The policy, or the one before it, if it still meets the target. Without success the target rises with the
        best return. A return does not meet a target of success, which the environment may report later only."""
        if kept is None:
            return None
        before = self._up_to_date(kept.before, now)
        score = now._replace(value=kept.score, is_success=kept.is_success, error=kept.error)
        misses_target = self.controller.has_target(now.is_success) and not self.controller.meets_target(score)
        return before if score.is_success != now.is_success or misses_target else replace(kept, before=before)

    def _test(self, *, fails: bool) -> None:
        """Drops a kept policy that no hard episode has tested yet if the constraint `fails` for the first that end
        after it. Where all episodes end at the same step, the score is otherwise that of policies of long ago, which
        had longer spans."""
        if self.kept is not None and not self.kept.tested:
            self.kept = self.kept.before if fails else replace(self.kept, tested=True)

    def keep(self, now: Candidate, *, is_tested: bool) -> None:
        """Keeps the present weights if the constraint holds and the live memories are within MEMORY_TOLERANCE of the
        fewest since spans were released. Without forgetting, keeps them whenever the constraint holds. While a policy
        is on trial no other is kept. is_tested: the score is of new episodes, or of an evaluation."""
        is_on_trial = self.kept is not None and self.kept.trial > 0 and now.trial > 0
        if is_on_trial or not self.controller.holds(now.score) or not now.is_live_measured:
            return
        cost = 0.0
        budget = self.controller.config.memory_budget
        if self.controller.config.forgetting and now.live is not None:
            cost = max(now.live, budget)  # within the budget, fewer memories are no better
        is_released = self.policy.unreleased_reach() is None
        if self._stays(now, is_released):
            return
        fewest = cost
        if self.kept is not None and self.kept.released == is_released:
            fewest = min(cost, self.kept.fewest)
        if cost > (MEMORY_TOLERANCE * fewest if fewest > budget else fewest):
            return
        self.kept = KeptPolicy(
            score=now.score.value,
            is_success=now.score.is_success,
            error=now.score.error,
            live=now.live,
            timesteps=now.timesteps,
            fewest=fewest,
            released=is_released,
            tested=is_tested,
            own=now.is_own,
            weights={key: value.detach().clone() for key, value in self.policy.state_dict().items()},
            episodes=now.score.episodes,
            trial=now.trial,
            before=self.kept if now.trial else None,
        )

    def _stays(self, now: Candidate, is_released: bool) -> bool:
        """Whether the kept policy stays, however few memories the present one has. is_released: its spans are.

        After a setback all spans are long again. The policy that was kept before it holds fewer memories, and stays if
        it was judged by its own episodes: what went wrong came later. For the same reason a mean return below the
        target, be it by chance, does not follow one that reached it: the setback may be beginning."""
        kept = self.kept
        if kept is None or not kept.released or not self.controller.config.forgetting:
            return False
        if not is_released:
            return kept.own
        target = self.controller.target(kept.is_success)
        return kept.score >= target > now.score.value

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
        """The weights of `kept` and of the policy before it by name, and JSON-able metadata; None for no policy."""
        if self.kept is None:
            return {}, None
        metadata = _metadata(self.kept)
        tensors = {f"best/{name}": tensor for name, tensor in self.kept.weights.items()}
        if self.kept.before is not None:
            metadata["before"] = _metadata(self.kept.before)
            tensors |= {f"best_before/{name}": tensor for name, tensor in self.kept.before.weights.items()}
        return tensors, metadata

    def load_state(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any] | None) -> None:
        """Continues from `state`. Raises TypeError, one line, for metadata that are no numbers."""
        self.kept = None
        if metadata is None:
            return
        kept = _from_metadata(metadata, select_prefix("best/", tensors))
        before = metadata.get("before")
        if before is not None:
            kept = replace(kept, before=_from_metadata(before, select_prefix("best_before/", tensors)))
        self.kept = kept


def _tried(kept: KeptPolicy, running: Iterable[tuple[int, float]]) -> KeptPolicy:
    """A policy after one more review of its trial. running: as of `PolicyKeeper.review`.

    An agent that gets stuck fails late. When it was kept, its stuck episodes had not ended, and its score was of the
    others. Those that began in its own rollout are added to the score once they have taken long."""
    age = kept.age + 1
    scores = [score for rollouts_ago, score in running if rollouts_ago == age]
    episodes = kept.episodes + len(scores)
    score = (kept.score * kept.episodes + sum(scores)) / episodes if scores else kept.score
    return replace(kept, age=age, trial=kept.trial - 1, score=score, episodes=episodes)


def _metadata(kept: KeptPolicy) -> dict[str, Any]:
    """Fields of a policy that are JSON-able."""
    return {name: value for name, value in vars(kept).items() if name not in ("weights", "before")}


def _from_metadata(metadata: Mapping[str, Any], weights: dict[str, Tensor]) -> KeptPolicy:
    """The policy of `_metadata` with these weights. Raises TypeError, one line, for metadata that are no numbers."""
    # Until 24 November 2026 the fewest were saved as the cost, and until the 27th all kept policies counted as tested.
    # Until the 30th nothing said whose episodes a score was of, and until 1 December there were no trials.
    entries = {"fewest": metadata.get("cost"), "tested": True, "is_success": True, "error": 0.0, "own": False}
    entries |= {"released": True, "episodes": 0, "trial": 0, "age": 0, **metadata}
    numbers = [entries[name] for name in ("fewest", "score", "error", "timesteps", "episodes", "trial", "age")]
    if not all(isinstance(number, (int, float)) for number in [*numbers, entries["live"] or 0.0]):
        raise TypeError(f"best: expected numbers, got {numbers}")
    names = KeptPolicy.__dataclass_fields__.keys() - {"weights", "before"}
    return KeptPolicy(**{name: entries[name] for name in names}, weights=weights)
