"""Long trajectories out of any task: where does a saved policy's memory break?

    make_vec_env("Portal-v0", 64, wraps=["stretch=10", "episodes=4"])     --wrap stretch=10 --wrap episodes=4

wrap                   what happens                                      what the agent must remember
stretch=N              after every real step N steps of distraction:     the same facts, N + 1 times as long, in the midst
                       random floor tiles, actions do nothing, reward 0  of N times as many observations that
                                                                         are not worth keeping
episodes=N             N episodes of the same draw (the same colours,    what it found out in the episodes before, which
                       doors, lengths) in one trajectory, as in RL²      now saves it from finding out again
                       (Duan et al., arXiv 1611.02779)
fresh_episodes=N       N episodes of different draws in one trajectory   nothing of the episodes before: their facts look
                                                                         like this one's and are out of date
occlude=A-B,C-D/P      the observations of steps A..B are hidden, and    what it saw before, and where it is, while it
                       those of steps C..D of every P (the first         sees nothing (what is shown in hidden steps only,
                       observation is step 0)                            it cannot know)

Wraps apply in the order given, the first to the task itself. Each is a `Core` over another one, so that the faces of
`envs.faces` make single and vector form of it, which agree; episode k of seed s is episode k of seed s of the task
beneath (`fresh_episodes=N`: k * N to k * N + N - 1).

Names: B environments, R rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium import spaces
from minigrid.core.constants import COLOR_TO_IDX, OBJECT_TO_IDX

from expire_span_rl.envs.core import Core, MaskedCore, counter_uniform
from expire_span_rl.envs.faces import BatchedVectorEnv, SingleEnv
from expire_span_rl.envs.tiles import LARGEST_VIEW
from expire_span_rl.spaces import Cells, Mask

if TYPE_CHECKING:
    from expire_span_rl.envs.rendering import Place

DISTRACTIONS = 256  # different observations of distraction
_SALT = 1 << 40  # draws of the wraps begin here, one range for each, far above a task's own


class Wrap(MaskedCore):
    """A core over another, `inner`. By itself it changes nothing."""

    def __init__(self, inner: Core) -> None:
        self.inner = inner
        self.metadata: dict[str, Any] = dict(inner.metadata)
        self.single_observation_space = inner.single_observation_space
        self.single_action_space = inner.single_action_space
        self.memory_horizon = inner.memory_horizon
        self.left_out = inner.left_out
        self._first_draw = getattr(inner, "_first_draw", 0) + _SALT
        super().__init__(inner.num_envs)

    def begin(self, rows: np.ndarray) -> None:
        self.inner.start(rows, self.seed[rows], self.episode[rows])

    def advance_some(self, actions: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        outcome = self.inner.step_some(actions, mask)
        self.shaping = self.inner.shaping
        return outcome

    def observe(self) -> Any:
        return self.inner.observe()

    def final_info(self) -> dict[str, np.ndarray]:
        return self.inner.final_info()

    def render(self, row: int) -> np.ndarray:
        return self.inner.render(row)

    def place(self, row: int) -> Place | None:
        return self.inner.place(row)

    def decisions(self) -> np.ndarray | None:
        return self._where_real(self.inner.decisions(), False)

    def facts(self) -> np.ndarray | None:
        return self._where_real(self.inner.facts(), -1)

    def describe(self, row: int) -> str | None:
        text = self.inner.describe(row)
        return text if text is None or not self.hidden()[row] else ""

    def _where_real(self, told: np.ndarray | None, otherwise: Any) -> np.ndarray | None:
        """What is told [B] of those whose observation is the inner one, `otherwise` of the others."""
        return None if told is None else np.where(self.hidden(), otherwise, told)

    def hidden(self) -> np.ndarray:
        """bool [B]: whose observation is not the inner one."""
        return np.zeros(self.num_envs, bool)

    def swap_observation(self, observation: Any) -> Any | None:
        return self.inner.swap_observation(observation)

    def close(self) -> None:
        self.inner.close()

    def _arrays(self) -> dict[str, np.ndarray]:
        """Empty where the environments beneath cannot save theirs."""
        beneath = self.inner._arrays()
        return {**super()._arrays(), **{f"inner.{name}": array for name, array in beneath.items()}} if beneath else {}


class Stretch(Wrap):
    """`steps` steps of distraction after every real one. What the last real action led to is seen after them, its
    reward at once; the end of an episode too."""

    state_fields = ("wait",)

    def __init__(self, inner: Core, steps: int) -> None:
        super().__init__(inner)
        self.between = steps
        if inner.memory_horizon is not None:
            self.memory_horizon = inner.memory_horizon * (steps + 1)
        self.wait = np.zeros(self.num_envs, np.int64)  # so many observations of distraction come before a real one
        self._shown = _distractions(self.single_observation_space)

    def begin(self, rows: np.ndarray) -> None:
        super().begin(rows)
        self.wait[rows] = 0

    def advance_some(self, actions: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        real = self.wait == 0
        reward, terminated, truncated = super().advance_some(actions, mask & real)
        self.wait = np.where(mask, np.where(real, self.between, self.wait - 1), self.wait)
        self.wait[terminated | truncated] = 0
        return reward, terminated, truncated

    def hidden(self) -> np.ndarray:
        return self.wait > 0

    def observe(self) -> Any:
        rows = np.flatnonzero(self.wait)
        if len(rows) == 0:
            return self.inner.observe()
        (draw,) = self.uniform(rows, 1, first=self._first_draw + self.steps[rows])
        return _overwritten(self.inner.observe(), rows, self._shown, (draw * DISTRACTIONS).astype(np.int64))

    def render(self, row: int) -> np.ndarray:
        """The picture beneath, darkened during distraction."""
        picture = self.inner.render(row)
        return picture // 4 if self.wait[row] else picture


class Episodes(Wrap):
    """`count` episodes, of the same draw or of fresh ones, as one. In between, the observation after an ending is the
    next episode's first. `final_info` is the last episode's, but for `is_success`: all of them succeeded; `success_1`,
    `success_2`, ... tell each (evaluation: `success_by_episode`)."""

    state_fields = ("played", "succeeded")

    def __init__(self, inner: Core, count: int, fresh: bool) -> None:
        super().__init__(inner)
        self.count, self.fresh = count, fresh
        if inner.memory_horizon is not None and not fresh:
            self.memory_horizon = inner.memory_horizon * count
        self.played = np.zeros(self.num_envs, np.int64)
        self.succeeded = np.zeros((self.num_envs, count), bool)
        self._judged = "is_success" in inner.final_info()
        if self._judged:
            by_episode = {str(i + 1): (f"success_{i + 1}", "trajectories") for i in range(count)}
            self.metadata["ratios"] = {**self.metadata.get("ratios", {}), "success_by_episode": by_episode}

    def begin(self, rows: np.ndarray) -> None:
        self.played[rows] = 0
        self.succeeded[rows] = False
        self._next(rows)

    def _next(self, rows: np.ndarray) -> None:
        number = self.episode[rows] * self.count + self.played[rows] if self.fresh else self.episode[rows]
        self.inner.start(rows, self.seed[rows], number)

    def advance_some(self, actions: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        reward, terminated, truncated = super().advance_some(actions, mask)
        ended = np.flatnonzero(terminated | truncated)
        if len(ended) == 0:
            return reward, terminated, truncated
        if self._judged:
            self.succeeded[ended, self.played[ended]] = self.inner.final_info()["is_success"][ended]
        self.played[ended] += 1
        over = self.played == self.count
        self._next(ended[~over[ended]])
        return reward, terminated & over, truncated & over

    def facts(self) -> np.ndarray | None:
        """Those of fresh episodes are others."""
        facts = self.inner.facts()
        return facts if facts is None or not self.fresh else np.where(facts < 0, -1, facts + (self.played << 32))

    def final_info(self) -> dict[str, np.ndarray]:
        told = self.inner.final_info()
        if self._judged:
            told["is_success"] = np.asarray(self.succeeded.all(1))
            told["trajectories"] = np.ones(self.num_envs, np.int64)
            told |= {f"success_{i + 1}": self.succeeded[:, i].copy() for i in range(self.count)}
        return told


class Occlude(Wrap):
    """Hides the observations of chosen steps: [(first, last, period)], both included; period None for once."""

    def __init__(self, inner: Core, intervals: list[tuple[int, int, int | None]]) -> None:
        super().__init__(inner)
        self.intervals = intervals
        self._shown = _blank(self.single_observation_space)

    def hidden(self) -> np.ndarray:
        hidden = np.zeros(self.num_envs, bool)
        for first, last, period in self.intervals:
            step = self.steps if period is None else self.steps % period
            hidden |= (first <= step) & (step <= last)
        return hidden

    def observe(self) -> Any:
        rows = np.flatnonzero(self.hidden())
        return _overwritten(self.inner.observe(), rows, self._shown, np.zeros(len(rows), np.int64))

    def render(self, row: int) -> np.ndarray:
        """The picture beneath, darkened while it is hidden."""
        picture = self.inner.render(row)
        return picture // 4 if self.hidden()[row] else picture


def _blank(space: spaces.Space) -> Any:
    """An observation that shows nothing (zeros are MiniGrid's unseen tiles), with an axis of 1 in front, per entry.
    None for a mask, which is no part of what is shown."""
    if isinstance(space, spaces.Dict):
        return {key: _blank(sub) for key, sub in space.items()}
    if isinstance(space, Mask):
        return None
    if isinstance(space, spaces.Box):
        return np.clip(np.zeros(space.shape, space.dtype), space.low, space.high)[None]
    return np.broadcast_to(getattr(space, "start", 0), space.shape or ()).astype(space.dtype)[None]


def _distractions(space: spaces.Space) -> Any:
    """Observations that mean nothing, [DISTRACTIONS, ...] per entry: floor tiles, which no task has, of random colours
    for MiniGrid's cells; what is no such image shows nothing."""
    if isinstance(space, spaces.Dict):
        return {key: _distractions(sub) for key, sub in space.items()}
    if not isinstance(space, Cells) or max(space.shape) > LARGEST_VIEW:
        return _blank(space)
    tiles = np.zeros((DISTRACTIONS, *space.shape), np.uint8)
    draws = counter_uniform(np.zeros(1, np.int64), np.zeros(1, np.int64), np.arange(tiles[..., 0].size))
    tiles[..., 0] = OBJECT_TO_IDX["floor"]
    tiles[..., 1] = (draws * len(COLOR_TO_IDX)).astype(np.uint8).reshape(tiles.shape[:-1])
    return tiles


def _overwritten(observation: Any, rows: np.ndarray, shown: Any, number: np.ndarray) -> Any:
    """The observation, of which `rows` [R] now show number `number` [R] of `shown`."""
    if isinstance(observation, dict):
        for key, part in observation.items():
            _overwritten(part, rows, shown[key], number)
    elif shown is not None:
        observation[rows] = shown[number % len(shown)]
    return observation


class LongEnv(SingleEnv):
    """One environment: the face of a core that is there already, of batch 1."""

    def __init__(self, core: Core, render_mode: str | None = None) -> None:
        self.metadata = self.face_metadata(core)
        self._wear(core, render_mode)


class LongVectorEnv(BatchedVectorEnv):
    """B environments: the face of a core that is there already."""

    metadata: dict[str, Any] = {}  # noqa: RUF012, an instance's own (Gymnasium declares it so)

    def __init__(self, core: Core, render_mode: str | None = None) -> None:
        self.metadata = self.face_metadata(core)
        self._wear(core, render_mode)
