"""The two Gymnasium adapters of a batched core: `SingleEnv` (a gymnasium.Env, batch of one) and `BatchedVectorEnv`.

Names: B environments. Both adapters are generic. A task declares `class XEnv(SingleEnv, core=X)` and
`class XVectorEnv(BatchedVectorEnv, core=X)`. Environment i of a vector that is reset with seed s plays the same
episodes as a single environment that is reset with s + i (Gymnasium's convention).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from expire_span_rl.envs.core import EnvCore
from expire_span_rl.envs.errors import EnvError, expect_choice, expect_int

_SEED_MASK = 2**63 - 1  # seeds are stored as int64, which every file format supports


def _check_seed(seed: Any) -> int:
    """The seed as the core stores it. Raises EnvError for anything but a whole number of at least 0."""
    if isinstance(seed, (int, np.integer)) and not isinstance(seed, bool) and seed >= 0:
        return int(seed) & _SEED_MASK
    raise EnvError(f"seed: expected a whole number of at least 0, got {seed!r}")


class _CoreAdapter:
    """The common part of both adapters, which own a core."""

    core_class: ClassVar[type[EnvCore]]
    core: EnvCore
    _has_seed = False  # whether the core has a seed, from which the next episode follows

    def __init_subclass__(cls, core: type[EnvCore] | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if core is not None:
            cls.core_class = core
            cls.metadata = cls.adapter_metadata(core)

    @staticmethod
    def adapter_metadata(core: EnvCore | type[EnvCore]) -> dict[str, Any]:
        """The metadata of an adapter of `core`."""
        return dict(core.metadata)

    @property
    def memory_horizon(self) -> int | None:
        """The steps for which the longest-lived fact must be remembered in an efficient episode; None if unknown."""
        return self.core.memory_horizon

    @property
    def longest_episode(self) -> int | None:
        """The steps of the longest episode; None if unknown."""
        return self.core.longest_episode

    def target(self) -> np.ndarray | None:
        """The correct next actions, int64 [B]; None if the task does not say (`EnvCore.target`)."""
        return self.core.target()

    def decisions(self) -> np.ndarray | None:
        """Whether the next action depends on remembered facts, bool [B]; None if the task does not say."""
        return self.core.decisions()

    @property
    def left_out(self) -> dict[str, str]:
        """Parts of the observation that are not read: {name: reason}."""
        return dict(self.core.left_out)

    def state_dict(self) -> dict[str, np.ndarray]:
        """A copy of the whole state, arrays [B]."""
        return self.core.state_dict()

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Continues from a `state_dict`: the next steps are those that the saved environment would have taken."""
        self.core.load_state_dict(state)
        self._has_seed = True


class SingleEnv(_CoreAdapter, gym.Env):
    """One environment: the core with a batch of one.

    `info` is empty until the episode ends (`EnvCore.final_info`). If the core has shaping, `info` has `shaping` at
    every step: the part of the reward that only the learner may see."""

    def __init__(self, *, render_mode: str | None = None, **kwargs: Any) -> None:
        self._attach(self.core_class(1, **kwargs), render_mode)

    def _attach(self, core: EnvCore, render_mode: str | None) -> None:
        self.core = core
        self.render_mode = expect_choice("render_mode", render_mode, [None, *self.metadata["render_modes"]])
        self.observation_space = self.core.single_observation_space
        self.action_space = self.core.single_action_space
        self.cut_episode_info: dict[str, Any] = {}
        """`cut_info` of the episode before, when the last reset began. A vector resets before it can be asked."""
        self._window: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begins the first episode of `seed`. Without a seed it begins the next episode, or that of a random seed if
        there was none."""
        seed = None if seed is None else _check_seed(seed)
        super().reset(seed=seed)
        if seed is None and not self._has_seed:
            seed = int(self.np_random.integers(_SEED_MASK))
        self._has_seed = True
        self.cut_episode_info = self.cut_info() if hasattr(self, "core_class") else {}  # tasks can say it at any step
        self.core.reset(np.arange(1), None if seed is None else np.array([seed]))
        self._show()
        return _first_row(self.core.observe()), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if self.core.over[0]:
            raise ResetNeeded("expected reset() before step(): no episode has begun, or it is over")
        reward, terminated, truncated = self.core.step(_check_actions(np.asarray(action)[None], self.action_space, 1))
        self._show()
        info = self._final_info() if self.core.over[0] else {}
        if self.core.shaping is not None:
            info["shaping"] = self.core.shaping[0].item()
        return _first_row(self.core.observe()), float(reward[0]), bool(terminated[0]), bool(truncated[0]), info

    def cut_info(self) -> dict[str, Any]:
        """The info of the last step of an episode that somebody else ends, such as a time limit: what `final_info` says
        of it so far, and no success. {} if the episode is over by itself, since its last step had the info."""
        if self.core.over[0]:
            return {}
        info = self._final_info()
        return {**info, "is_success": False} if "is_success" in info else info

    def _final_info(self) -> dict[str, Any]:
        info = self.core.final_info()
        given = [key for key in info if not key.startswith("_") and info.get(f"_{key}", [True])[0]]
        return {key: info[key][0].item() for key in given}

    def render(self) -> np.ndarray | None:
        """The picture [height, width, 3] in `rgb_array` mode; None otherwise (in `human` mode, steps draw it)."""
        return self.core.render(0) if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        self.core.close()
        if self._window is not None:
            self._window.close()
            self._window = None

    def _show(self) -> None:
        if self.render_mode == "human":
            from expire_span_rl.envs.rendering import Window

            self._window = self._window or Window(self.core.metadata["render_fps"])
            self._window.draw(self.core.render(0))


class BatchedVectorEnv(_CoreAdapter, VectorEnv):
    """B environments in SAME_STEP autoreset: when an episode ends, the observation is the next episode's first.

    When episodes end, `infos` has Gymnasium's keys. They are batched, not one object per environment:

    - `final_obs`: structured as the batched observation.
    - `final_info`: a dict of arrays [B] and their masks `_key`.
    - `_final_obs` and `_final_info`: bool masks [B] of the episodes that ended. Other rows have no meaning.

    `infos` is empty if no episode ends, except for `shaping` and `_shaping` if the core has shaping. The shaping of an
    episode's last step is in `final_info`, where Gymnasium's vectors put everything about that step. All returned
    arrays are new: later steps do not write to them.
    """

    @staticmethod
    def adapter_metadata(core: EnvCore | type[EnvCore]) -> dict[str, Any]:
        return {**core.metadata, "render_modes": ["rgb_array"], "autoreset_mode": AutoresetMode.SAME_STEP}

    def __init__(self, num_envs: int = 1, *, render_mode: str | None = None, **kwargs: Any) -> None:
        self._attach(self.core_class(expect_int("num_envs", num_envs, 1), **kwargs), render_mode)

    def _attach(self, core: EnvCore, render_mode: str | None) -> None:
        self.core = core
        self.num_envs = core.num_envs
        self.render_mode = expect_choice("render_mode", render_mode, [None, *self.metadata["render_modes"]])
        self.single_observation_space = core.single_observation_space
        self.single_action_space = core.single_action_space
        self.observation_space = batch_space(self.single_observation_space, core.num_envs)
        self.action_space = batch_space(self.single_action_space, core.num_envs)

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begins new episodes.

        seed: an int gives environment i the seed `seed` + i, a list gives it `seed[i]`. With None each environment
        begins its next episode, or that of a random seed if there was none. `options["reset_mask"]`, bool [B], selects
        the environments to reset."""
        rows = self._rows_to_reset(options)
        seeds = None if seed is None else self._seeds(seed)
        super().reset(seed=int(seed) if isinstance(seed, (int, np.integer)) else None)
        if seeds is None and not self._has_seed:
            seeds = self.np_random.integers(_SEED_MASK, size=self.num_envs)
        self._has_seed = True
        self.core.reset(rows, None if seeds is None else seeds[rows])
        return self.core.observe(), {}

    def begin_next(self, rows: np.ndarray) -> Any:
        """Begins the next episodes of the environments `rows` [R], whatever became of the current ones. Returns their
        observations [R, ...]."""
        self.core.reset(rows)
        observation = self.core.observe()
        if isinstance(observation, dict):
            return {name: entry[rows] for name, entry in observation.items()}
        return observation[rows]

    def step(self, actions: np.ndarray) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """actions [B] or [B,N] -> observations, reward float64 [B], terminated [B], truncated [B], infos (see the
        class)."""
        core = self.core
        if core.over.any():
            raise ResetNeeded("expected reset() before step()")
        reward, terminated, truncated = core.step(_check_actions(actions, self.single_action_space, self.num_envs))
        observation = core.observe()
        done = core.over.copy()
        shaping = core.shaping
        infos: dict[str, Any] = {}
        if shaping is not None and not done.all():
            infos = {"shaping": np.where(done, 0.0, shaping), "_shaping": ~done}
        if not done.any():
            return observation, reward, terminated, truncated, infos
        # Report the last step of the episodes that ended, and begin the next ones.
        values = core.final_info() if shaping is None else {**core.final_info(), "shaping": shaping}
        final_info: dict[str, np.ndarray] = {}
        for key, array in values.items():
            given = values.get(f"_{key}")
            if key.startswith("_") or not (given is None or (done & given).any()):
                continue
            final_info[key] = array if given is None else array * given  # as in Gymnasium's vectors, 0 where none is
            final_info[f"_{key}"] = done if given is None else done & given
        infos |= {"final_obs": observation, "_final_obs": done, "final_info": final_info, "_final_info": done}
        core.reset(np.flatnonzero(done))
        return core.observe(), reward, terminated, truncated, infos

    def render(self) -> tuple[np.ndarray, ...] | None:
        """One picture per environment in `rgb_array` mode, otherwise None."""
        return tuple(self.core.render(row) for row in range(self.num_envs)) if self.render_mode else None

    def close_extras(self, **kwargs: Any) -> None:
        self.core.close()

    def _seeds(self, seed: int | Sequence[int]) -> np.ndarray:
        """The seed of each environment: int64 [B]."""
        if isinstance(seed, (int, np.integer)):
            seed = [_check_seed(seed) + i for i in range(self.num_envs)]
        if len(seed) != self.num_envs:
            raise EnvError(f"seed: expected {self.num_envs} seeds, one per environment, got {len(seed)}")
        return np.array([_check_seed(s) for s in seed], np.int64)

    def _rows_to_reset(self, options: Mapping[str, Any] | None) -> np.ndarray:
        """The environments that `options` asks to reset; all of them without a mask."""
        mask = (options or {}).get("reset_mask")
        if mask is None:
            return np.arange(self.num_envs)
        mask = np.asarray(mask)
        if mask.shape != (self.num_envs,) or mask.dtype != bool:
            raise EnvError(f"reset_mask: expected bool[{self.num_envs}], got {mask.dtype}{list(mask.shape)}")
        return np.flatnonzero(mask)


def _check_actions(actions: Any, space: gym.Space, num_envs: int) -> np.ndarray:
    """The actions as an array [B] or [B,N]. Raises EnvError for another shape or an action outside the space."""
    actions = np.asarray(actions)
    if not isinstance(space, gym.spaces.Discrete):
        if actions.shape != (num_envs, *(space.shape or ())):
            raise EnvError(f"actions: expected [{num_envs}, ...] of {space}, got {actions.dtype}{list(actions.shape)}")
        return actions
    if actions.shape != (num_envs,) or actions.dtype.kind not in "iu":
        raise EnvError(f"actions: expected int[{num_envs}], got {actions.dtype}{list(actions.shape)}")
    low = int(space.start)
    high = int(space.start + space.n - 1)
    if actions.min() < low or actions.max() > high:
        raise EnvError(f"actions: expected numbers from {low} to {high}, got {actions.min()} to {actions.max()}")
    return actions


def _first_row(observation: Any) -> Any:
    """The observation of a batch of one without its batch axis."""
    if isinstance(observation, dict):
        return {key: _first_row(value) for key, value in observation.items()}
    return observation[0]
