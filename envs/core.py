"""The base class of every batched task: one NumPy core holds the rules for B environments at once.

Names: B environments, R of them selected by `rows`. A task subclasses `EnvCore`. `envs.core_adapters` turns the core
into a `gymnasium.Env` (B = 1) and a `VectorEnv` (any B).

Random numbers are counter-based: draw d of episode k of an environment seeded with s is `hash(s, k, d)`. An episode
therefore depends only on its seed and its number. It does not depend on B, on the other rows, or on earlier draws.
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
"""The largest step limit of an episode. A larger one would never be reached, and int64 holds multiples of this one."""
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(z: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele et al., 2014): a bijection of uint64. Each input bit affects all output
    bits."""
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


def draw_integers(u: np.ndarray, low: int, high: int, distribution: str) -> np.ndarray:
    """Turns uniform draws u in [0, 1) into whole numbers from low to high, both included.

    distribution: "uniform" or "log_uniform", P(n) ~ log((n + 1) / n)."""
    if distribution == "uniform":
        return low + (u * (high - low + 1)).astype(np.int64)
    log_low = np.log(low)
    log_high = np.log(high + 1)
    # Rounding may carry exp(log(n)) past the ends.
    return np.exp(log_low + u * (log_high - log_low)).astype(np.int64).clip(low, high)


class EnvCore(ABC):
    """The rules of a task for B environments.

    A subclass sets the two spaces and `memory_horizon` before `super().__init__(num_envs)`. It creates its own arrays,
    batch first, and names them in `state_fields`. These arrays and the four of this class are the whole state:
    `seed` and `episode` (the number of the current episode), `steps` (actions taken in it) and `over` (the episode has
    ended, or none has begun).
    """

    metadata: Mapping[str, Any] = {"render_modes": ["human", "rgb_array"], "render_fps": 10}
    """A task adds `difficulty_key`: the entry of `final_info` that says how hard an episode is for memory. Three keys
    are optional:

    - `ratios`: metrics over many episodes, {name: (numerator, denominator)}. Both are entries of `final_info`. Their
      sums over the episodes are divided. A metric with several values is {name: {label: (numerator, denominator)}}.
    - `old_facts_mislead`: True if a memory older than `memory_horizon` is out of date but looks like a current one.
    - `hides_previous_action`: True if observations leave out the previous action. A supervised learner (`target`) would
      see right answers there, which an evaluation does not have."""
    state_fields: ClassVar[tuple[str, ...]] = ()

    single_observation_space: spaces.Space
    single_action_space: spaces.Space
    memory_horizon: int | None
    """About how many steps the longest-lived fact must be remembered in an efficient episode (Portal: in expectation);
    None if unknown."""
    longest_episode: int | None = None
    """Steps of the longest episode; None if unknown."""
    left_out: Mapping[str, str] = {}
    """Parts of the observation that are not read: {name: reason} (`envs.gym_core`)."""
    shaping: np.ndarray | None = None
    """The part of the last step's reward that only the learner may see: a new array, float64 [B]; None if there is
    none. The adapters report it as `shaping` in their infos. `envs.env_wrappers` excludes it from the previous
    reward."""

    def __init__(self, num_envs: int) -> None:
        self.num_envs = num_envs
        self.seed = np.zeros(num_envs, np.int64)
        self.episode = np.zeros(num_envs, np.int64)
        self.steps = np.zeros(num_envs, np.int64)
        self.over = np.ones(num_envs, bool)

    # Methods that a task must define.

    @abstractmethod
    def begin(self, rows: np.ndarray) -> None:
        """Draws a new episode for the environments `rows` [R], by `self.uniform`, and sets their state."""

    @abstractmethod
    def advance(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """One step of all environments: actions [B] -> reward float64 [B], terminated [B], truncated [B]."""

    @abstractmethod
    def observe(self) -> Any:
        """The observations: an array or a dict of arrays, batch first. They are new: later steps do not change
        them."""

    @abstractmethod
    def final_info(self) -> dict[str, np.ndarray]:
        """The info of an episode's last step: new arrays [B]. They include `is_success` (bool) and the difficulty.
        `_NAME`, bool [B], says for which environments the entry `NAME` is given. Without it, for all."""

    def render(self, row: int) -> np.ndarray:
        """A picture of environment `row`: uint8 [height, width, 3], the same size for every step and episode. The
        default draws `strip`; a task without one overrides this method."""
        strip = self.strip(row)
        if strip is None:
            raise NotImplementedError(f"{type(self).__name__}.render")
        return strip.picture()

    # Optional methods, for the viewer and for learning without rewards. None: the task does not say.

    def strip(self, row: int) -> Strip | None:
        """The world of environment `row` in tiles, as `render` draws it."""
        return None

    def place(self, row: int) -> Place | None:
        """The position of environment `row`'s agent in the picture that `render` draws."""
        strip = self.strip(row)
        return None if strip is None else strip.place()

    def decisions(self) -> np.ndarray | None:
        """bool [B]: whether the next action depends on remembered facts."""
        return None

    def target(self) -> np.ndarray | None:
        """int64 [B]: the correct next action, a target for supervised learning. `decisions` says where it matters."""
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
        """A copy of observations [..., ...] that show the opposite fact (a blue ball for a red one): the counterpart of
        the observation."""
        return None

    # Methods that all tasks share.

    def uniform(self, rows: np.ndarray, count: int, first: int | np.ndarray = 0) -> np.ndarray:
        """Draws `first` .. `first + count - 1` of the current episodes of `rows` [R]: float64 [count, R] in [0, 1).

        `begin` uses the low numbers. A task that draws within an episode continues after them, for example by step.
        """
        draws = np.arange(count)[:, None] + first  # [count, R or 1]
        return counter_uniform(self.seed[rows], self.episode[rows], draws)

    def reset(self, rows: np.ndarray, seeds: np.ndarray | None = None) -> None:
        """Begins an episode in `rows` [R]: the first one of `seeds`, int64 [R]; with None, each row's next one."""
        if seeds is None:
            self.start(rows, self.seed[rows], self.episode[rows] + 1)
        else:
            self.start(rows, seeds, np.zeros_like(seeds))

    def start(self, rows: np.ndarray, seeds: np.ndarray, episodes: np.ndarray) -> None:
        """Begins episode number `episodes` of `seeds` in `rows`: int64 [R] each. Equal numbers give equal episodes."""
        self.seed[rows] = seeds
        self.episode[rows] = episodes
        self.steps[rows] = 0
        self.over[rows] = False
        self.begin(rows)

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`advance`, and the step counts and ends of episodes. No episode may be over: call `reset` first."""
        self.steps += 1
        reward, terminated, truncated = self.advance(actions)
        np.logical_or(terminated, truncated, out=self.over)
        return reward, terminated, truncated

    def step_some(self, actions: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`step` for the environments of `mask`, bool [B]. The others keep their state, get reward 0 and do not end."""
        if mask.all():
            return self.step(actions)
        if not mask.any():
            self.shaping = None if self.shaping is None else np.zeros(self.num_envs)
            return np.zeros(self.num_envs), mask.copy(), mask.copy()
        saved_state = self.state_dict()
        reward, terminated, truncated = self.step(actions)
        for name, array in self._arrays().items():
            row_mask = mask.reshape(-1, *[1] * (array.ndim - 1))  # [B, 1, ...]
            np.copyto(array, saved_state[name], where=~row_mask)
        self.shaping = None if self.shaping is None else self.shaping * mask
        return reward * mask, terminated & mask, truncated & mask

    def close(self) -> None:
        """Releases resources other than arrays, such as the environments of another package."""

    def state_dict(self) -> dict[str, np.ndarray]:
        """A copy of the whole state: arrays [B, ...], from which `load_state_dict` continues identically."""
        return {name: array.copy() for name, array in self._arrays().items()}

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Restores the state of a core of the same task and size. Raises EnvError for any other, and then changes
        nothing."""
        state = self.complete_state(state)
        targets = self._arrays()
        if sorted(targets) != sorted(state):
            raise EnvError(f"environment state: expected the fields {sorted(targets)}, got {sorted(state)}")
        arrays = {name: np.asarray(state[name]) for name in sorted(targets)}
        for name, array in arrays.items():
            target = targets[name]
            if (array.shape, array.dtype) != (target.shape, target.dtype):
                expected = f"{target.dtype}{list(target.shape)}"
                raise EnvError(f"environment state {name!r}: expected {expected}, got {array.dtype}{list(array.shape)}")
        self.check_state(arrays)
        for name, array in arrays.items():
            targets[name][...] = array

    def complete_state(self, state: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """A saved state with the fields that those of earlier versions lack."""
        return state

    def check_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Raises EnvError, one line, for a state with the right fields that this core cannot go on from."""

    def _arrays(self) -> dict[str, np.ndarray]:
        """The arrays of the state themselves, by name; no copies."""
        return {name: getattr(self, name) for name in ("seed", "episode", "steps", "over", *self.state_fields)}


class MaskedCore(EnvCore):
    """A core that implements stepping a part of its environments."""

    @abstractmethod
    def advance_some(self, actions: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`advance` for the environments of `mask`, bool [B]. The others keep their state, get reward 0 and do not
        end."""

    def advance(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.advance_some(actions, np.ones(self.num_envs, bool))

    def step_some(self, actions: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        self.steps += mask
        reward, terminated, truncated = self.advance_some(actions, mask)
        np.logical_or(terminated, truncated, out=self.over)
        return reward, terminated, truncated
