"""Long trajectories from any task: where does a saved policy's memory fail?

    make_vec_env("Portal-v0", 64, wraps=["stretch=10", "episodes=4"])     --wrap stretch=10 --wrap episodes=4

wrap                what it does                                        what the agent must remember
stretch=N           N steps of distraction after every real step:       the same facts, N + 1 times as long, among
                    random floor tiles; actions have no effect          N times as many observations that are not
                    and the reward is 0                                 worth keeping
episodes=N          N episodes of the same draw (the same colours,      what it learned in earlier episodes, so that
                    doors, lengths) in one trajectory, as in RL²        it need not try again
                    (Duan et al., arXiv 1611.02779)
fresh_episodes=N    N episodes of different draws in one trajectory     nothing from earlier episodes: their facts
                                                                        look current but are out of date
occlude=A-B,C-D/P   hides the observations of steps A..B, and those     what it saw before, and where it is (a fact
                    of steps C..D of every P steps (the first           shown in hidden steps only cannot be known)
                    observation is step 0)
hide=I,J            hides numbers I and J of the vector that is          what they follow from: CartPole-v1 with
                    observed, from 0 on                                 hide=1,3 shows positions without velocities

Wraps apply in the order given; the first wraps the task itself. Each is an `EnvCore` around another core. The adapters
of `envs.core_adapters` make its single and vector forms, which therefore agree. Episode k of seed s wraps episode k of
seed s of the inner task (with `fresh_episodes=N`, episodes k * N to k * N + N - 1).

Names: B environments, R rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium import spaces
from minigrid.core.constants import COLOR_TO_IDX, OBJECT_TO_IDX

from expire_span_rl.checks import shown
from expire_span_rl.envs.core import EnvCore, MaskedCore, counter_uniform
from expire_span_rl.envs.core_adapters import BatchedVectorEnv, SingleEnv
from expire_span_rl.envs.errors import NAME, EnvError
from expire_span_rl.envs.tiles import LARGEST_VIEW
from expire_span_rl.spaces import Cells, Mask, Words

if TYPE_CHECKING:
    from expire_span_rl.envs.rendering import Place

DISTRACTIONS = 256
"""The number of different distracting observations."""
_INNER = "inner."
"""What the names of an inner core's arrays begin with in the state of a wrap."""
_DRAW_OFFSET = 1 << 40
"""The distance between the draws of a wrap and those of its inner core. A task never has as many draws."""


class CoreWrapper(MaskedCore):
    """A core around another core, `inner`. This base class changes nothing."""

    def __init__(self, inner: EnvCore) -> None:
        self.inner = inner
        self.metadata: dict[str, Any] = dict(inner.metadata)
        self.single_observation_space = inner.single_observation_space
        self.single_action_space = inner.single_action_space
        self.memory_horizon = inner.memory_horizon
        self.longest_episode = inner.longest_episode
        self.left_out = inner.left_out
        self._first_draw = getattr(inner, "_first_draw", 0) + _DRAW_OFFSET
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
        return self._replace_hidden(self.inner.decisions(), False)

    def facts(self) -> np.ndarray | None:
        return self._replace_hidden(self.inner.facts(), -1)

    def describe(self, row: int) -> str | None:
        text = self.inner.describe(row)
        return text if text is None or not self.hidden()[row] else ""

    def _replace_hidden(self, values: np.ndarray | None, default: Any) -> np.ndarray | None:
        """The inner core's values [B], with `default` where the inner observation is hidden."""
        return None if values is None else np.where(self.hidden(), default, values)

    def hidden(self) -> np.ndarray:
        """bool [B]: whether the inner observation is hidden."""
        return np.zeros(self.num_envs, bool)

    def swap_observation(self, observation: Any) -> Any | None:
        return self.inner.swap_observation(observation)

    def close(self) -> None:
        self.inner.close()

    def complete_state(self, state: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        inner = self.inner.complete_state(_inner_state(state))
        return {**state, **{_INNER + name: array for name, array in inner.items()}}

    def check_state(self, state: Mapping[str, np.ndarray]) -> None:
        self.inner.check_state(_inner_state(state))

    def _arrays(self) -> dict[str, np.ndarray]:
        """Those of the inner core are named "inner.NAME". Empty if the inner core cannot save its state."""
        inner_arrays = {_INNER + name: array for name, array in self.inner._arrays().items()}
        return {**super()._arrays(), **inner_arrays} if inner_arrays else {}


def _inner_state(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inner core's part of the state of a wrap."""
    return {name.removeprefix(_INNER): array for name, array in state.items() if name.startswith(_INNER)}


class Stretch(CoreWrapper):
    """`steps` steps of distraction after every real step. The observation that follows a real action comes after them.
    Its reward, and the end of an episode, come at once."""

    state_fields = ("wait",)

    def __init__(self, inner: EnvCore, steps: int) -> None:
        super().__init__(inner)
        self.distraction_steps = steps
        if inner.memory_horizon is not None:
            self.memory_horizon = inner.memory_horizon * (steps + 1)
        if inner.longest_episode is not None:
            self.longest_episode = inner.longest_episode * (steps + 1)
        self.wait = np.zeros(self.num_envs, np.int64)  # distracting observations until the next real one
        self._distractions = _make_distractions(self.single_observation_space)

    def begin(self, rows: np.ndarray) -> None:
        super().begin(rows)
        self.wait[rows] = 0

    def advance_some(self, actions: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        is_real = self.wait == 0
        reward, terminated, truncated = super().advance_some(actions, mask & is_real)
        self.wait = np.where(mask, np.where(is_real, self.distraction_steps, self.wait - 1), self.wait)
        self.wait[terminated | truncated] = 0
        return reward, terminated, truncated

    def hidden(self) -> np.ndarray:
        return self.wait > 0

    def observe(self) -> Any:
        rows = np.flatnonzero(self.wait)
        if len(rows) == 0:
            return self.inner.observe()
        (draw,) = self.uniform(rows, 1, first=self._first_draw + self.steps[rows])
        return _overwrite(self.inner.observe(), rows, self._distractions, (draw * DISTRACTIONS).astype(np.int64))

    def render(self, row: int) -> np.ndarray:
        """The inner picture, darkened during distraction."""
        picture = self.inner.render(row)
        return picture // 4 if self.wait[row] else picture


class Episodes(CoreWrapper):
    """`count` episodes, of the same draw or of fresh draws, as one trajectory.

    When an inner episode ends, the observation is the next one's first. `final_info` is that of the last episode, with
    two differences: `is_success` means that all episodes succeeded, and `success_1`, `success_2`, ... report each one
    (in evaluations: `success_by_episode`). An episode that says nothing of its success does not fail, and does not
    count there: `trajectories_1`, `trajectories_2`, ... are 1 for episodes that count, 0 for others. Episodes that were
    not played, since somebody else ended the trajectory, count."""

    state_fields = ("played", "succeeded", "reported")

    def __init__(self, inner: EnvCore, count: int, fresh: bool) -> None:
        super().__init__(inner)
        self.count = count
        self.fresh = fresh
        if inner.memory_horizon is not None and not fresh:
            self.memory_horizon = inner.memory_horizon * count
        if inner.longest_episode is not None:
            self.longest_episode = inner.longest_episode * count
        self.played = np.zeros(self.num_envs, np.int64)
        self.succeeded = np.zeros((self.num_envs, count), bool)
        self.reported = np.zeros((self.num_envs, count), bool)  # whether an episode said if it succeeded
        self._has_success = "is_success" in inner.final_info()
        if self._has_success:
            by_episode = {str(i + 1): (f"success_{i + 1}", f"trajectories_{i + 1}") for i in range(count)}
            self.metadata["ratios"] = {**self.metadata.get("ratios", {}), "success_by_episode": by_episode}

    def begin(self, rows: np.ndarray) -> None:
        self.played[rows] = 0
        self.succeeded[rows] = False
        self.reported[rows] = False
        self._start_inner(rows)

    def _start_inner(self, rows: np.ndarray) -> None:
        """Begins the next inner episode of the trajectories `rows` [R]."""
        number = self.episode[rows] * self.count + self.played[rows] if self.fresh else self.episode[rows]
        self.inner.start(rows, self.seed[rows], number)

    def advance_some(self, actions: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        reward, terminated, truncated = super().advance_some(actions, mask)
        rows = np.flatnonzero(terminated | truncated)
        if len(rows) == 0:
            return reward, terminated, truncated
        if self._has_success:
            info = self.inner.final_info()
            reported = info["_is_success"][rows] if "_is_success" in info else np.ones(len(rows), bool)
            self.succeeded[rows, self.played[rows]] = info["is_success"][rows].astype(bool) | ~reported
            self.reported[rows, self.played[rows]] = reported
        self.played[rows] += 1
        is_complete = self.played == self.count
        self._start_inner(rows[~is_complete[rows]])
        return reward, terminated & is_complete, truncated & is_complete

    def complete_state(self, state: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """Those of earlier versions lack `reported`, or have one flag for all episodes of a trajectory."""
        state = super().complete_state(state)
        if "succeeded" not in state:
            return state
        reported = np.asarray(state.get("reported", np.ones(self.num_envs, bool)))
        if reported.shape == (self.num_envs,):
            reported = np.repeat(reported[:, None], self.count, 1)
        return {**state, "reported": reported}

    def facts(self) -> np.ndarray | None:
        """Facts of fresh episodes get different numbers in each episode."""
        facts = self.inner.facts()
        return facts if facts is None or not self.fresh else np.where(facts < 0, -1, facts + (self.played << 32))

    def place(self, row: int) -> Place | None:
        """Columns of fresh episodes get different numbers in each episode: each has a world of its own."""
        place = self.inner.place(row)
        if place is None or not self.fresh:
            return place
        first = int(self.played[row]) << 32
        columns = [None if column is None else column + first for column in place.columns]
        return replace(place, agent=(place.agent[0] + first, place.agent[1]), columns=columns)

    def final_info(self) -> dict[str, np.ndarray]:
        info = self.inner.final_info()
        if self._has_success:
            info["is_success"] = np.asarray(self.succeeded.all(1))
            if "_is_success" in info:
                info["_is_success"] = np.asarray(self.reported.any(1))
            counts = self.reported | (np.arange(self.count) >= self.played[:, None])
            info |= {f"success_{i + 1}": self.succeeded[:, i] & counts[:, i] for i in range(self.count)}
            info |= {f"trajectories_{i + 1}": counts[:, i].astype(np.int64) for i in range(self.count)}
        return info


class Occlude(CoreWrapper):
    """Hides the observations of some steps.

    intervals: [(first step, last step, period)], both steps included; with period None the interval does not repeat."""

    def __init__(self, inner: EnvCore, intervals: list[tuple[int, int, int | None]]) -> None:
        super().__init__(inner)
        self.intervals = intervals
        self._blank = _blank_observation(self.single_observation_space)

    def hidden(self) -> np.ndarray:
        hidden = np.zeros(self.num_envs, bool)
        for start, end, period in self.intervals:
            step = self.steps if period is None else self.steps % period
            hidden |= (start <= step) & (step <= end)
        return hidden

    def observe(self) -> Any:
        rows = np.flatnonzero(self.hidden())
        return _overwrite(self.inner.observe(), rows, self._blank, np.zeros(len(rows), np.int64))

    def render(self, row: int) -> np.ndarray:
        """The inner picture, darkened while the observation is hidden."""
        picture = self.inner.render(row)
        return picture // 4 if self.hidden()[row] else picture


class Hide(CoreWrapper):
    """Hides numbers of the one vector in the observation."""

    def __init__(self, inner: EnvCore, indices: list[int]) -> None:
        """Raises EnvError, one line, unless there is one vector, which has such numbers."""
        super().__init__(inner)
        space = self.single_observation_space
        entries: dict[Any, Any] = dict(space.spaces) if isinstance(space, spaces.Dict) else {None: space}
        boxes = {key: entry for key, entry in entries.items() if isinstance(entry, spaces.Box)}
        boxes = {key: box for key, box in boxes.items() if not isinstance(box, (Mask, Words))}
        vectors = [key for key, box in boxes.items() if len(box.shape) == 1]
        if len(vectors) != 1:
            found = ", ".join(f"{key or 'observation'} {list(box.shape)}" for key, box in boxes.items())
            raise EnvError(f"wrap hide: expected an observation with one vector, got {shown(found, NAME) or 'no Box'}")
        self._key = vectors[0]
        size = boxes[self._key].shape[0]
        if max(indices) >= size:
            raise EnvError(f"wrap hide: expected numbers from 0 to {size - 1} of the vector, got {max(indices)}")
        self.indices = indices
        self._blank = _blank_observation(boxes[self._key])[0, indices]

    def observe(self) -> Any:
        return self._hide(self.inner.observe())

    def swap_observation(self, observation: Any) -> Any | None:
        swapped = self.inner.swap_observation(observation)
        return None if swapped is None else self._hide(swapped)

    def _hide(self, observation: Any) -> Any:
        """Overwrites the hidden numbers, and returns the observation."""
        vector = observation if self._key is None else observation[self._key]
        vector[..., self.indices] = self._blank
        return observation


def _blank_observation(space: spaces.Space) -> Any:
    """An observation that shows nothing, [1, ...] per entry. A Box shows zeros, clipped to its bounds (in MiniGrid's
    cells they are unseen tiles). Other spaces show their least value. None for a mask, which is never hidden."""
    if isinstance(space, spaces.Dict):
        return {key: _blank_observation(sub) for key, sub in space.items()}
    if isinstance(space, Mask):
        return None
    if isinstance(space, spaces.Box):
        return np.clip(np.zeros(space.shape, space.dtype), space.low, space.high)[None]
    return np.broadcast_to(getattr(space, "start", 0), space.shape or ()).astype(space.dtype)[None]


def _make_distractions(space: spaces.Space) -> Any:
    """Observations without meaning, [DISTRACTIONS, ...] per entry. MiniGrid's cells show floor tiles, which no task
    has, of random colours. All other entries are blank."""
    if isinstance(space, spaces.Dict):
        return {key: _make_distractions(sub) for key, sub in space.items()}
    if not isinstance(space, Cells) or max(space.shape) > LARGEST_VIEW:
        return _blank_observation(space)
    tiles = np.zeros((DISTRACTIONS, *space.shape), np.uint8)
    draws = counter_uniform(np.zeros(1, np.int64), np.zeros(1, np.int64), np.arange(tiles[..., 0].size))
    tiles[..., 0] = OBJECT_TO_IDX["floor"]
    tiles[..., 1] = (draws * len(COLOR_TO_IDX)).astype(np.uint8).reshape(tiles.shape[:-1])
    return tiles


def _overwrite(observation: Any, rows: np.ndarray, replacements: Any, index: np.ndarray) -> Any:
    """Overwrites the rows [R] of a batched observation by the replacements number `index` [R]. Returns the
    observation."""
    if isinstance(observation, dict):
        for key, value in observation.items():
            _overwrite(value, rows, replacements[key], index)
    elif replacements is not None:
        observation[rows] = replacements[index % len(replacements)]
    return observation


class LongTrajectoryEnv(SingleEnv):
    """The single form of an existing core with a batch of one."""

    def __init__(self, core: EnvCore, render_mode: str | None = None) -> None:
        self.metadata = self.adapter_metadata(core)
        self._attach(core, render_mode)


class LongTrajectoryVectorEnv(BatchedVectorEnv):
    """The vector form of an existing core."""

    metadata: dict[str, Any] = {}  # noqa: RUF012, an instance's own (Gymnasium declares it so)

    def __init__(self, core: EnvCore, render_mode: str | None = None) -> None:
        self.metadata = self.adapter_metadata(core)
        self._attach(core, render_mode)
