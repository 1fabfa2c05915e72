"""Adapts a vector environment of another package, which steps a batch by itself.

It does for B environments what `envs.gym_adapter` does for one: flat observations, checked values, plain infos. The
vector environment chooses the seeds of later episodes itself. Only the first episode of each environment is therefore
determined by its seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, cast

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space, create_empty_array

from expire_span_rl.envs.batches import as_array, as_batch_of_one, as_column, holds_objects, split_rows, take_rows
from expire_span_rl.envs.cells import ENCODERS, fits_cells, forced_cells
from expire_span_rl.envs.errors import EnvError, EnvironmentFailed, expect_choice
from expire_span_rl.envs.gym_adapter import (
    LARGEST_REWARD,
    check_horizon,
    check_reset_result,
    describe_error,
    episode_seed,
    failure,
    sample_action,
    type_name,
    warn_outside,
)
from expire_span_rl.envs.infos import last_info_problem, plain_column, plain_info
from expire_span_rl.envs.inner_envs import (
    cells_inside,
    complete_final_info,
    find_horizon,
    has_tasks,
    have_attribute,
)
from expire_span_rl.envs.masks import (
    BY_METHOD,
    IN_INFO,
    IN_OBSERVATION,
    METHOD,
    ActionMasks,
    late_mask_problem,
    remove_mask,
)
from expire_span_rl.envs.timeout import call_within
from expire_span_rl.spaces import ACTION_MASK, Flattener, SpaceError, previous_action_space


class AdaptedVectorEnv(VectorWrapper):
    """A vector environment in SAME_STEP autoreset. The constructor checks everything in one reset and one step.

    `infos["final_obs"]` is one batch, structured as the observation. Rows outside `_final_obs` have no meaning.
    Raises EnvError, one line, if the environment is invalid or not supported, and EnvironmentFailed if it fails
    later."""

    def __init__(self, env: VectorEnv, name: str | None = None, encoder: str = "auto", timeout: float = 0.0) -> None:
        """timeout: the limit of a reset or a step of the whole batch, in seconds; 0: none."""
        super().__init__(env)
        spec = getattr(env, "spec", None)
        self._name = name or (spec.id if spec is not None else type(env.unwrapped).__name__)
        if env.metadata.get("autoreset_mode") != AutoresetMode.SAME_STEP:
            raise EnvError(
                f"{self._name}: autoreset_mode: expected SAME_STEP, got {env.metadata.get('autoreset_mode')}"
            )
        self.encoder = expect_choice("encoder", encoder, ENCODERS)
        self._steps = 0
        self._timeout = timeout
        try:
            self._try(*self._study(env, encoder))
        except EnvironmentFailed as error:
            raise EnvError(f"{self._name}: {getattr(error, 'problem', error)}") from error
        except (SpaceError, EnvError) as error:
            raise EnvError(f"{self._name}: {error}") from error

    def _study(self, env: VectorEnv, encoder: str) -> tuple[Any, Mapping[str, Any]]:
        """Sets the spaces and the source of masks, from the environment's spaces and one reset. Returns the reset's
        observation and infos."""
        space, has_mask = remove_mask(env.single_observation_space)
        previous_action_space(env.single_action_space)  # raises SpaceError for actions that no policy supports
        observation, infos = check_reset_result(self._call(lambda: env.reset(seed=0, options=None)))
        self._flatten = Flattener(space, self._find_cells(env, encoder, observation))
        self._outside_count = 0  # entries that were reported as outside their bounds
        self.left_out = self._flatten.left_out
        self._has_tasks = self._call(lambda: has_tasks(env))
        self.memory_horizon = check_horizon(self._call(lambda: find_horizon(env)))
        entries = dict(self._flatten.space.spaces)
        self._mask_source = self._find_mask_source(has_mask, infos)
        self._masks: ActionMasks | None = None
        if self._mask_source is not None:
            self._masks = ActionMasks(env.single_action_space)
            entries[ACTION_MASK] = self._masks.space
        self.single_observation_space = spaces.Dict(entries)
        self.observation_space = batch_space(self.single_observation_space, env.num_envs)
        return observation, infos

    def _find_cells(self, env: VectorEnv, encoder: str, observation: Any) -> dict[str, spaces.Space]:
        """{"image": Cells} if the image of the environments holds cells, else {}. observation: of a reset."""
        if encoder == "cells":
            return forced_cells(env.single_observation_space)
        cells = self._call(lambda: cells_inside(env)) if encoder == "auto" else {}
        return cells if cells and fits_cells(observation) else {}

    def _try(self, observation: Any, infos: Mapping[str, Any]) -> None:
        """Checks what a reset gave, and one step."""
        self._is_trial = True  # a trial accepts a bad reward: the run reports it
        entries = self._read_observation(observation, infos)
        self._plain_infos(infos)
        self.step(self._trial_actions(entries))
        self._is_trial = False

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Begins new episodes. A seed that is too large for simulators is replaced by its hash."""
        self._steps = 0
        if isinstance(seed, Sequence):
            seed = [None if row_seed is None else episode_seed(row_seed, 0) for row_seed in seed]
        elif seed is not None and seed + self.num_envs > 2**31:
            seed = episode_seed(seed, 0) // 2
        result = self._call(lambda: cast(Any, self.env).reset(seed=seed, options=options))
        try:
            observation, infos = check_reset_result(result)
        except SpaceError as error:
            self._fail(None, str(error))
        return self._read_observation(observation, infos), self._plain_infos(infos)

    def step(
        self, actions: np.ndarray
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        self._steps += 1
        result = self._call(lambda: self.env.step(np.array(actions)))
        if not (isinstance(result, tuple) and len(result) == 5):
            self._fail(None, f"step: expected five values, got {type_name(result)}")
        observation, reward, terminated, truncated, infos = result
        if not isinstance(infos, Mapping):
            self._fail(None, f"step: expected infos as a dict, got {type_name(infos)}")
        reward = self._check_rewards(reward)
        terminated = self._check_flags(terminated)
        truncated = self._check_flags(truncated)
        done = terminated | truncated
        plain_infos = self._plain_infos(infos)
        if done.any():
            rows = np.flatnonzero(done)
            if infos.get("final_obs") is None:
                self._fail(int(rows[0]), "expected its last observation in infos['final_obs'], got none")
            final_info = self._read_final_info(infos.get("final_info"), rows)
            plain_infos["final_obs"] = self._read_final(infos["final_obs"], final_info, rows)
            plain_infos["final_info"] = self._plain_infos(final_info)
            self._check_last_infos(final_info, rows)
            plain_infos["_final_obs"] = plain_infos["_final_info"] = done
        return self._read_observation(observation, infos), reward, terminated, truncated, plain_infos

    def _call(self, call: Any) -> Any:
        """The result of `call`. Raises EnvironmentFailed for any error, and after the time limit."""
        try:
            return call_within(self._timeout, call)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001, a stranger's code may raise anything
            self._fail(None, describe_error(error), error)

    def _find_mask_source(self, has_mask: bool, infos: Mapping[str, Any]) -> str | None:
        """`masks.IN_OBSERVATION`, BY_METHOD, IN_INFO, or None if there are no masks. Raises SpaceError if the single
        environments have the method and nothing else gives their masks. has_mask: whether the observation has one."""
        if has_mask:
            return IN_OBSERVATION
        if callable(getattr(self.env.unwrapped, METHOD, None)):
            return BY_METHOD
        if ACTION_MASK in infos:
            return IN_INFO
        if self._call(lambda: have_attribute(self.env, METHOD)):
            raise SpaceError(
                f"{METHOD}: expected a function that makes one environment, or an id: a vector that exists does not "
                "ask its environments for their masks"
            )
        return None

    def _trial_actions(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        """Allowed actions for the step of the trial."""
        if self._masks is None:
            return sample_action(self.env.action_space)
        return np.array([self._masks.allowed_action(mask) for mask in observation[ACTION_MASK]])

    def _read_observation(self, observation: Any, infos: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The entries of a batched observation."""
        rows = np.arange(self.num_envs)
        entries = self._flatten_rows(observation, rows)
        if self._masks is not None:
            raw_masks = self._find_masks(observation, infos, is_final=False)
            entries[ACTION_MASK] = self._read_masks(self._masks, raw_masks, rows, is_final=False)
        if len(self._flatten.outside) > self._outside_count:
            self._outside_count = len(self._flatten.outside)
            warn_outside(self._name, self._flatten.outside)
        return entries

    def _flatten_rows(self, observation: Any, rows: np.ndarray) -> dict[str, np.ndarray]:
        """The entries of a batched observation of the environments `rows` [R]. An error names the environment."""
        try:
            return self._flatten.batched(observation, len(rows))
        except SpaceError as error:
            for row, row_observation in zip(rows, split_rows(observation, len(rows)), strict=False):
                try:
                    self._flatten(row_observation)
                except SpaceError as row_error:
                    self._fail(int(row), str(row_error), row_error)
            self._fail(None, str(error), error)

    def _read_final_info(self, final_info: Any, rows: np.ndarray) -> Mapping[str, Any]:
        """The infos of the last steps of the environments `rows` [R], by name; empty if there are none."""
        if final_info is not None and not isinstance(final_info, Mapping):
            self._fail(
                int(rows[0]),
                f"infos['final_info']: expected a dict of columns with {self.num_envs} values each, "
                f"got {type_name(final_info)}",
            )
        if self._has_tasks:
            return self._call(lambda: complete_final_info(self.env, final_info, rows))
        return final_info or {}

    def _read_final(self, final: Any, info: Mapping[str, Any], rows: np.ndarray) -> dict[str, np.ndarray]:
        """Final observations of the environments `rows` [R], as a batch of B."""
        if isinstance(final, np.ndarray) and final.dtype == object:  # one object per row, as in Gymnasium's own vectors
            batches = [self._take_final(final, row, rows) for row in rows]
            parts = [self._flatten_rows(batch, np.array([row])) for batch, row in zip(batches, rows, strict=True)]
            entries = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            dicts = {row: cast(Any, final[row]) for row in rows if isinstance(final[row], Mapping)}
            final = {ACTION_MASK: {row: observation.get(ACTION_MASK) for row, observation in dicts.items()}}
        else:
            entries = self._flatten_rows(self._take_final(final, rows, rows), rows)
        if self._masks is not None:
            raw_masks = self._find_masks(final, info, is_final=True)
            entries[ACTION_MASK] = self._read_masks(self._masks, raw_masks, rows, is_final=True)
        batch = create_empty_array(self.single_observation_space, self.num_envs, fn=np.zeros)
        batch = cast(dict[str, np.ndarray], batch)
        for name, values in entries.items():
            batch[name][rows] = values
        return batch

    def _take_final(self, final: Any, which: Any, rows: np.ndarray) -> Any:
        """Final observations as a batch: of the rows `which`, or of one row that is an object of its own. rows: the
        environments whose episodes ended."""
        try:
            return take_rows(final, which) if isinstance(which, np.ndarray) else as_batch_of_one(final[which])
        except (IndexError, TypeError, KeyError, ValueError):
            expected = f"one batch of {self.num_envs} observations, or an array of so many objects"
            self._fail(int(rows[0]), f"infos['final_obs']: expected {expected}, got {type_name(final)}")

    def _find_masks(self, observation: Any, infos: Mapping[str, Any], is_final: bool) -> Any:
        """The masks as the environment gives them, indexed by row; None if it gives none. is_final: the episodes have
        ended, so a method of the environment cannot answer for them."""
        if self._mask_source == BY_METHOD:
            return None if is_final else self._call(getattr(self.env.unwrapped, METHOD))
        source = infos if self._mask_source == IN_INFO else observation
        return source.get(ACTION_MASK) if isinstance(source, Mapping) else None

    def _read_masks(self, masks: ActionMasks, raw_masks: Any, rows: np.ndarray, is_final: bool) -> np.ndarray:
        """The masks of the environments `rows` [R]: int8 [R, size]. is_final: their episodes have ended."""
        row_masks = []
        for row in rows:
            try:
                row_masks.append(masks(None if raw_masks is None else raw_masks[row], is_final))
            except SpaceError as error:
                self._fail(int(row), str(error), error)
            except (IndexError, TypeError, KeyError):
                expected = f"a mask for each of {self.num_envs} environments"
                self._fail(int(row), f"{ACTION_MASK}: expected {expected}, got {type_name(raw_masks)}")
        return np.array(row_masks)

    def _check_rewards(self, values: Any) -> np.ndarray:
        """The rewards as float64 [B]."""
        reward = as_array(values)
        if reward.shape != (self.num_envs,) or reward.dtype.kind not in "biuf":
            self._fail(None, f"reward: expected {self.num_envs} numbers, got {reward.dtype}{list(reward.shape)}")
        reward = reward.astype(np.float64)
        is_invalid = ~(np.abs(reward) <= LARGEST_REWARD)  # also NaN
        if is_invalid.any() and not self._is_trial:
            row = int(np.flatnonzero(is_invalid)[0])
            self._fail(row, f"reward: expected a finite number that float32 can hold, got {reward[row]}")
        return reward

    def _check_flags(self, values: Any) -> np.ndarray:
        """The flags as bool [B]."""
        flags = as_array(values)
        if flags.shape != (self.num_envs,) or flags.dtype.kind not in "biu":
            self._fail(None, f"step: expected {self.num_envs} flags, got {flags.dtype}{list(flags.shape)}")
        return flags.astype(bool)

    def _plain_infos(self, infos: Mapping[str, Any]) -> dict[str, Any]:
        """The numbers, flags and texts of infos: arrays [B] with their masks."""
        if self._is_trial and self._masks is None and (problem := late_mask_problem(infos, self.single_action_space)):
            self._fail(None, problem)
        plain: dict[str, Any] = {}
        for key, value in infos.items():
            column = as_column(value, self.num_envs)
            if column is None or not plain_info({key: 0}, self._has_tasks):
                continue
            mask = self._mask(infos, key)
            column, mask = plain_column(column, mask) if column.dtype == object else (column.copy(), mask)
            if column.dtype.kind in "biufUO" and (mask.any() or not holds_objects(value)):
                plain[key], plain[f"_{key}"] = column, mask
        return plain

    def _mask(self, infos: Mapping[str, Any], key: str) -> np.ndarray:
        """The environments of which infos have the entry `key`: bool [B]."""
        given = infos.get(f"_{key}")
        mask = np.ones(self.num_envs) if given is None else as_array(given)
        if mask.shape != (self.num_envs,) or mask.dtype.kind not in "biuf":
            self._fail(None, f"infos['_{key}']: expected {self.num_envs} flags, got {mask.dtype}{list(mask.shape)}")
        return mask.astype(bool)

    def _check_last_infos(self, final_info: Mapping[str, Any], rows: np.ndarray) -> None:
        """Fails if one of the episodes that ended, those of `rows`, has a success or a difficulty that cannot be
        counted."""
        key = self.metadata.get("difficulty_key")
        names = [name for name in ("is_success", key) if name is not None and name in final_info]
        for name in names:
            values = final_info[name]
            is_column = isinstance(values, (list, tuple)) or (isinstance(values, np.ndarray) and values.ndim > 0)
            if not is_column or len(values) != self.num_envs:
                expected = f"a list or an array with a value for each of {self.num_envs} environments"
                self._fail(int(rows[0]), f"infos['final_info'][{name!r}]: expected {expected}, got {type_name(values)}")
        masks = {name: self._mask(final_info, name) for name in names}
        for row in rows.tolist():
            problem = last_info_problem({name: final_info[name][row] for name in names if masks[name][row]}, key)
            if problem and not self._is_trial:
                self._fail(row, problem)

    def _fail(self, index: int | None, problem: str, cause: BaseException | None = None) -> NoReturn:
        """Raises EnvironmentFailed with the step. index: the environment's number; None if unknown."""
        location = f"step {self._steps} after the reset" if self._steps else "reset"
        raise failure(self._name, index, location, problem) from cause
