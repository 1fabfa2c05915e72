"""Vector environments of other packages, which step a batch by themselves, as ours want them.

What `envs.gym_adapter` does for one environment, done for B at once: flat observations, checked values, plain infos. Their
episodes begin as they please, so that only the first of each environment is that of its seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, cast

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space, create_empty_array

from expire_span_rl.envs.cells import ENCODERS, forced_cells
from expire_span_rl.envs.errors import EnvError, EnvironmentFailed, expect_choice
from expire_span_rl.envs.gym_adapter import (
    LARGEST_REWARD,
    episode_seed,
    failure,
    plain_info,
    raised,
    sample_action,
    tell_outside,
)
from expire_span_rl.envs.masks import BY_METHOD, IN_INFO, IN_OBSERVATION, METHOD, ActionMasks, without_mask
from expire_span_rl.envs.timeout import call_within
from expire_span_rl.spaces import ACTION_MASK, Flattener, SpaceError, previous_action_space


class AdaptedVectorEnv(VectorWrapper):
    """A vector environment in SAME_STEP autoreset, after one reset and one step in which everything is checked.

    `infos["final_obs"]` is one batch, structured as the observation. Rows outside `_final_obs` mean nothing.
    Raises EnvError, one line, for what it does wrong or what is not supported; EnvironmentFailed once it runs."""

    def __init__(self, env: VectorEnv, name: str | None = None, encoder: str = "auto", timeout: float = 0.0) -> None:
        """timeout: seconds that a reset or a step of all may take; 0: any."""
        super().__init__(env)
        spec = getattr(env, "spec", None)
        self._name = name or (spec.id if spec is not None else type(env.unwrapped).__name__)
        if env.metadata.get("autoreset_mode") != AutoresetMode.SAME_STEP:
            raise EnvError(
                f"{self._name}: autoreset_mode: expected SAME_STEP, got {env.metadata.get('autoreset_mode')}"
            )
        expect_choice("encoder", encoder, ENCODERS)
        self._steps, self._masks, self._masks_by, self._timeout = 0, None, None, timeout
        try:
            space, has_mask = without_mask(env.single_observation_space)
            previous_action_space(env.single_action_space)
            replaced = forced_cells(env.single_observation_space) if encoder == "cells" else {}
            self._flatten = Flattener(space, replaced)
            self._outside = 0
            self.left_out = self._flatten.left_out
            entries = dict(self._flatten.space.spaces)
            _, infos = self._called(lambda: env.reset(seed=0))
            self._masks_by = self._where_masks(has_mask, infos)
            if self._masks_by is not None:
                self._masks = ActionMasks(env.single_action_space)
                entries[ACTION_MASK] = self._masks.space
            self.single_observation_space = spaces.Dict(entries)
            self.observation_space = batch_space(self.single_observation_space, env.num_envs)
            self._tried = True  # a bad reward is left for the run to tell
            observation, _ = self.reset(seed=0)
            self.step(self._first_actions(observation))
            self._tried = False
        except EnvironmentFailed as error:
            raise EnvError(f"{self._name}: {getattr(error, 'what', error)}") from error
        except (SpaceError, EnvError) as error:
            raise EnvError(f"{self._name}: {error}") from error

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Begins new episodes. Seeds that are too large for simulators are replaced by hashes of them."""
        self._steps = 0
        if isinstance(seed, Sequence):
            seed = [None if one is None else episode_seed(one, 0) for one in seed]
        elif seed is not None and seed + self.num_envs > 2**31:
            seed = episode_seed(seed, 0) // 2
        observation, infos = self._called(lambda: cast(Any, self.env).reset(seed=seed, options=options))
        return self._observed(observation, infos), self._plain(infos)

    def step(
        self, actions: np.ndarray
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        self._steps += 1
        result = self._called(lambda: self.env.step(np.array(actions)))
        if not (isinstance(result, tuple) and len(result) == 5):
            self._fail(None, "step: expected five values")
        observation, reward, terminated, truncated, infos = result
        reward = self._rewards(reward)
        terminated, truncated = (self._flags(flags) for flags in (terminated, truncated))
        ended = terminated | truncated
        out = self._plain(infos)
        if ended.any():
            rows = np.flatnonzero(ended)
            if infos.get("final_obs") is None:
                self._fail(int(rows[0]), "expected its last observation in infos['final_obs'], got none")
            final_info = infos.get("final_info")
            out["final_obs"] = self._final(infos["final_obs"], final_info, rows)
            out["final_info"] = self._plain(final_info) if isinstance(final_info, Mapping) else {}
            out["_final_obs"] = out["_final_info"] = ended
        return self._observed(observation, infos), reward, terminated, truncated, out

    def _called(self, call: Any) -> Any:
        try:
            return call_within(self._timeout, call)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001, whatever a stranger's code does
            self._fail(None, raised(error), error)

    def _where_masks(self, has_mask: bool, infos: Mapping[str, Any]) -> str | None:
        if has_mask:
            return IN_OBSERVATION
        if callable(getattr(self.env.unwrapped, METHOD, None)):
            return BY_METHOD
        singles: Sequence[gym.Env] = getattr(self.env.unwrapped, "envs", ())  # of Gymnasium's SyncVectorEnv
        if any(env.has_wrapper_attr(METHOD) for env in singles[:1]):
            raise SpaceError(
                f"{METHOD}: expected a function that makes one environment, or an id: a vector that exists does not ask its "
                "environments for their masks"
            )
        return IN_INFO if ACTION_MASK in infos else None

    def _first_actions(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        if self._masks is None:
            return sample_action(self.env.action_space)
        return np.array([self._masks.allowed_action(mask) for mask in observation[ACTION_MASK]])

    def _observed(self, observation: Any, infos: Mapping[str, Any]) -> dict[str, np.ndarray]:
        entries = self._flattened(observation, np.arange(self.num_envs))
        if self._masks is not None:
            entries[ACTION_MASK] = self._mask_rows(self._masks, observation, infos, np.arange(self.num_envs), False)
        if len(self._flatten.outside) > self._outside:
            self._outside = len(self._flatten.outside)
            tell_outside(self._name, self._flatten.outside)
        return entries

    def _flattened(self, observation: Any, rows: np.ndarray) -> dict[str, np.ndarray]:
        """The entries of a batch whose rows are the environments `rows` [R]."""
        try:
            return self._flatten.batched(observation, len(rows))
        except SpaceError as error:
            for row, one in zip(rows, _rows_of(observation, len(rows)), strict=False):
                try:
                    self._flatten(one)
                except SpaceError as its_error:
                    self._fail(int(row), str(its_error), its_error)
            self._fail(None, str(error), error)

    def _final(self, final: Any, info: Any, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Final observations of `rows`, as a batch of B."""
        info = info if isinstance(info, Mapping) else {}
        if isinstance(final, np.ndarray) and final.dtype == object:  # one observation each, as Gymnasium's own vectors
            parts = [self._flattened(_as_batch_of_one(final[row]), np.array([row])) for row in rows]
            entries = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            each = {row: cast(Any, final[row]) for row in rows}
            final = {ACTION_MASK: {row: one.get(ACTION_MASK) for row, one in each.items() if isinstance(one, Mapping)}}
        else:
            entries = self._flattened(_taken(final, rows), rows)
        if self._masks is not None:
            entries[ACTION_MASK] = self._mask_rows(self._masks, final, info, rows, True)
        batch = create_empty_array(self.single_observation_space, self.num_envs, fn=np.zeros)
        batch = cast(dict[str, np.ndarray], batch)
        for name, values in entries.items():
            batch[name][rows] = values
        return batch

    def _mask_rows(
        self, mask_of: ActionMasks, observation: Any, infos: Mapping[str, Any], rows: np.ndarray, over: bool
    ) -> np.ndarray:
        """The masks of `rows` [R]. over: their episodes have ended."""
        if self._masks_by == BY_METHOD:
            given = None if over else self._called(getattr(self.env.unwrapped, METHOD))
        else:
            source = infos if self._masks_by == IN_INFO else observation
            given = source.get(ACTION_MASK) if isinstance(source, Mapping) else None
        masks = []
        for row in rows:
            try:
                masks.append(mask_of(None if given is None else given[row], over))
            except SpaceError as error:
                self._fail(int(row), str(error), error)
        return np.array(masks)

    def _rewards(self, given: Any) -> np.ndarray:
        """Rewards as float64 [B]."""
        reward = np.asarray(given)
        if reward.shape != (self.num_envs,) or reward.dtype.kind not in "biuf":
            self._fail(None, f"reward: expected {self.num_envs} numbers, got {reward.dtype}{list(reward.shape)}")
        reward = reward.astype(np.float64)
        if (wrong := ~(np.abs(reward) <= LARGEST_REWARD)).any() and not self._tried:
            row = int(np.flatnonzero(wrong)[0])
            self._fail(row, f"reward: expected a finite number that float32 can hold, got {reward[row]}")
        return reward

    def _flags(self, given: Any) -> np.ndarray:
        flags = np.asarray(given)
        if flags.shape != (self.num_envs,) or flags.dtype.kind not in "biu":
            self._fail(None, f"step: expected {self.num_envs} flags, got {flags.dtype}{list(flags.shape)}")
        return flags.astype(bool)

    def _plain(self, infos: Mapping[str, Any]) -> dict[str, Any]:
        """The numbers, flags and texts of infos: arrays [B] with their masks."""
        out: dict[str, Any] = {}
        for key, value in infos.items():
            is_column = (
                isinstance(value, np.ndarray) and value.shape == (self.num_envs,) and value.dtype.kind in "biufU"
            )
            if is_column and plain_info({key: 0}):
                out[key] = value.copy()
                mask = infos.get(f"_{key}")
                out[f"_{key}"] = np.ones(self.num_envs, bool) if mask is None else np.array(mask, bool)
        return out

    def _fail(self, index: int | None, what: str, cause: BaseException | None = None) -> NoReturn:
        where = f"step {self._steps} after the reset" if self._steps else "reset"
        raise failure(self._name, index, where, what) from cause


def _rows_of(observation: Any, count: int) -> list[Any]:
    """The observations of a batch one by one; [] if it is no batch."""
    try:
        return [_taken(observation, row) for row in range(count)]
    except (IndexError, TypeError, KeyError):
        return []


def _taken(observation: Any, rows: Any) -> Any:
    """Rows of a batch: of arrays, dicts and tuples of them."""
    if isinstance(observation, Mapping):
        return {key: _taken(part, rows) for key, part in observation.items()}
    if isinstance(observation, tuple):
        if observation and all(isinstance(part, str) for part in observation):  # texts of a batch
            return tuple(observation[row] for row in rows) if isinstance(rows, np.ndarray) else observation[rows]
        return tuple(_taken(part, rows) for part in observation)
    return observation[rows]


def _as_batch_of_one(observation: Any) -> Any:
    if isinstance(observation, Mapping):
        return {key: _as_batch_of_one(part) for key, part in observation.items()}
    if isinstance(observation, tuple):
        return tuple(_as_batch_of_one(part) for part in observation)
    return (observation,) if isinstance(observation, str) else np.asarray(observation)[None]
