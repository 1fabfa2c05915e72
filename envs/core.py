"""What every batched task shares: one NumPy core holds the rules for B environments at once.

Names: B environments, R of them chosen by `rows`. A task subclasses `Core`; `envs.faces` turns it into a
`gymnasium.Env` (B = 1) and a `VectorEnv` (B = any).

Randomness is counter-based: draw d of episode k of an environment seeded with s is `hash(s, k, d)`. An episode
therefore depends on nothing but its seed and its number: not on B, not on the neighbours, not on what was drawn before.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from gymnasium import spaces

from expire_span_rl.envs.errors import EnvError

if TYPE_CHECKING:
    from expire_span_rl.envs.rendering import Place, Strip

MOST_STEPS = 10**9
"""Of an episode: a limit beyond that is none, and arrays of int64 hold its multiples."""
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(z: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele et al., 2014): a bijection of uint64 in which every bit counts for all."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def counter_uniform(seed: np.ndarray, episode: np.ndarray, draw: np.ndarray) -> np.ndarray:
    """Uniform float64 in [0, 1) for each (seed, episode, draw): int64 arrays that broadcast together."""
    bits = np.atleast_1d(seed).astype(np.uint64)
    for counter in (episode, draw):
        bits = _mix(bits + np.atleast_1d(counter).astype(np.uint64) * _GOLDEN + _GOLDEN)
    return (_mix(bits) >> np.uint64(11)) * 2.0**-53


DISTRIBUTIONS = ("uniform", "log_uniform")


def drawn_between(u: np.ndarray, low: int, high: int, distribution: str) -> np.ndarray:
    """Whole numbers from low to high, both included, for uniform draws u in [0, 1). distribution: "uniform" or
    "log_uniform", P(n) ~ log((n + 1) / n)."""
    if distribution == "uniform":
        return low + (u * (high - low + 1)).astype(np.int64)
    first, last = np.log(low), np.log(high + 1)
    # Rounding may carry exp(log(n)) past the ends.
    return np.exp(first + u * (last - first)).astype(np.int64).clip(low, high)


class Core(ABC):
    """The rules of a task for B environments.

    A subclass sets the two spaces and `memory_horizon` before `super().__init__(num_envs)`, creates its own arrays
    (batch first) and names them in `state_fields`; together with the four below they are the whole state:
    `seed` and `episode` (which episode this is), `steps` (actions taken in it) and `over` (it ended, or none began).
    """

    metadata: Mapping[str, Any] = {"render_modes": ["human", "rgb_array"], "render_fps": 10}
    """A task adds `difficulty_key`: which entry of `final_info` says how hard an episode is for memory. It may add
    `ratios`: figures of many episodes, {name: (numerator, denominator)}, two entries of `final_info` whose sums over
    the episodes are divided, or {name: {label: (numerator, denominator)}} for a figure with several values;
    `old_facts_mislead`: that a memory older than `memory_horizon` is out of date and like one that is not; and
    `hides_previous_action`: that the previous action is no part of the observation, since learning from what is right
    (`target`) would show right answers there that an evaluation does not have."""
    state_fields: ClassVar[tuple[str, ...]] = ()

    single_observation_space: spaces.Space
    single_action_space: spaces.Space
    memory_horizon: int | None
    """For about how many steps the longest-lived fact must survive in an efficient episode (Portal: in expectation);
    None if not known."""
    left_out: Mapping[str, str] = {}
    """By name, why a part of the observation is not read (`envs.foreign`)."""
    shaping: np.ndarray | None = None
    """The part of the last step's reward that only the learner may see, float64 [B] and new; None if there is none.
    The faces tell it as `shaping` in their infos, and `envs.wrappers` keeps it out of the previous reward."""

    def __init__(self, num_envs: int) -> None:
        self.num_envs = num_envs
        self.seed = np.zeros(num_envs, np.int64)
        self.episode = np.zeros(num_envs, np.int64)
        self.steps = np.zeros(num_envs, np.int64)
        self.over = np.ones(num_envs, bool)

    # What a task defines.

    @abstractmethod
    def begin(self, rows: np.ndarray) -> None:
        """Draws a new episode for the environments `rows` [R] with `self.uniform` and sets their state."""

    @abstractmethod
    def advance(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """One step of all environments: actions [B] -> reward float64 [B], terminated [B], truncated [B]."""

    @abstractmethod
    def observe(self) -> Any:
        """The observations, an array or a dict of arrays, batch first and new: nothing writes to them later."""

    @abstractmethod
    def final_info(self) -> dict[str, np.ndarray]:
        """What is told when an episode ends: new arrays [B], `is_success` (bool) and the difficulty among them."""

    def render(self, row: int) -> np.ndarray:
        """A picture of environment `row`: uint8 [height, width, 3], the same size for every step and episode. A task
        whose world is a `strip` has it already."""
        strip = self.strip(row)
        if strip is None:
            raise NotImplementedError(f"{type(self).__name__}.render")
        return strip.picture()

    # What a task may tell to those who look at a policy (`viewer`); None where it does not say.

    def strip(self, row: int) -> Strip | None:
        """What `render` draws of environment `row`, in tiles."""
        return None

    def place(self, row: int) -> Place | None:
        """Where the agent of environment `row` is in the picture that `render` draws."""
        strip = self.strip(row)
        return None if strip is None else strip.place()

    def decisions(self) -> np.ndarray | None:
        """bool [B]: is the next action one that must be chosen by remembered facts?"""
        return None

    def target(self) -> np.ndarray | None:
        """int64 [B]: the action that is right now, from which one may learn without rewards (`decisions` says where it
        matters); None where the task does not say."""
        return None

    def facts(self) -> np.ndarray | None:
        """int64 [B]: the number of the fact that the observation shows, -1 for none. All observations of an episode
        with the same number show the same fact."""
        return None

    def describe(self, row: int) -> str | None:
        """What the observation of environment `row` shows, in a few words."""
        return None

    @staticmethod
    def swap_observation(observation: Any) -> Any | None:
        """A copy of observations [..., ...] in which the fact that they show is the other way round: its
        counterpart."""
        return None

    # What all tasks share.

    def uniform(self, rows: np.ndarray, count: int, first: int | np.ndarray = 0) -> np.ndarray:
        """Draws `first` .. `first + count - 1` of the current episodes of `rows` [R]: float64 [count, R] in [0, 1).

        `begin` uses the low numbers; a task that draws within an episode goes on from there, for instance by step.
        """
        draws = np.arange(count)[:, None] + first  # [count, R or 1]
        return counter_uniform(self.seed[rows], self.episode[rows], draws)

    def reset(self, rows: np.ndarray, seeds: np.ndarray | None = None) -> None:
        """Begins an episode in `rows` [R]: the first one of `seeds` int64 [R], or the next one for None."""
        if seeds is None:
            self.start(rows, self.seed[rows], self.episode[rows] + 1)
        else:
            self.start(rows, seeds, np.zeros_like(seeds))

    def start(self, rows: np.ndarray, seeds: np.ndarray, episodes: np.ndarray) -> None:
        """Begins episode number `episodes` of `seeds` in `rows`: int64 [R] each. The same numbers, the same episode."""
        self.seed[rows] = seeds
        self.episode[rows] = episodes
        self.steps[rows] = 0
        self.over[rows] = False
        self.begin(rows)

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`advance` with the bookkeeping around it. No episode may be over: `reset` those first."""
        self.steps += 1
        reward, terminated, truncated = self.advance(actions)
        np.logical_or(terminated, truncated, out=self.over)
        return reward, terminated, truncated

    def step_some(self, actions: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`step` for the environments of `mask` bool [B]. The others stand still: reward 0, no end, the same state."""
        if mask.all():
            return self.step(actions)
        if not mask.any():
            self.shaping = None if self.shaping is None else np.zeros(self.num_envs)
            return np.zeros(self.num_envs), mask.copy(), mask.copy()
        before = self.state_dict()
        reward, terminated, truncated = self.step(actions)
        for name, array in self._arrays().items():
            np.copyto(array, before[name], where=~mask.reshape(-1, *[1] * (array.ndim - 1)))
        self.shaping = None if self.shaping is None else self.shaping * mask
        return reward * mask, terminated & mask, truncated & mask

    def close(self) -> None:
        """Gives back what is held besides arrays."""

    def state_dict(self) -> dict[str, np.ndarray]:
        """A copy of the whole state: arrays [B, ...], from which `load_state_dict` continues identically."""
        return {name: array.copy() for name, array in self._arrays().items()}

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Takes the state of a core of the same task and size. Raises EnvError, changing nothing, if it differs."""
        own = self._arrays()
        expected, given = sorted(own), sorted(state)
        if expected != given:
            raise EnvError(f"environment state: expected the fields {expected}, got {given}")
        arrays = {name: np.asarray(state[name]) for name in expected}
        for name, array in arrays.items():
            if (array.shape, array.dtype) != (own[name].shape, own[name].dtype):
                expected, given = (f"{a.dtype}{list(a.shape)}" for a in (own[name], array))
                raise EnvError(f"environment state {name!r}: expected {expected}, got {given}")
        for name, array in arrays.items():
            own[name][...] = array

    def _arrays(self) -> dict[str, np.ndarray]:
        """The state itself, by name."""
        return {name: getattr(self, name) for name in ("seed", "episode", "steps", "over", *self.state_fields)}


class MaskedCore(Core):
    """A core that can step some of its environments by itself."""

    @abstractmethod
    def advance_some(self, actions: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`advance` for the environments of `mask` bool [B]: the others keep their state, get 0 and do not end."""

    def advance(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.advance_some(actions, np.ones(self.num_envs, bool))

    def step_some(self, actions: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        self.steps += mask
        reward, terminated, truncated = self.advance_some(actions, mask)
        np.logical_or(terminated, truncated, out=self.over)
        return reward, terminated, truncated
