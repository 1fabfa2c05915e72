"""What is passed on of the infos of others' environments: numbers, flags and texts. A vector joins those of its B
environments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from expire_span_rl.checks import is_difficulty, is_share, shown
from expire_span_rl.spaces import ACTION_MASK

_RESERVED = {"final_obs", "final_info", "final_observation", ACTION_MASK}
_PLAIN = {bool, int, float, str}


def plain_info(info: Mapping[str, Any], shaping: bool = False) -> dict[str, Any]:
    """The numbers, flags and texts of an info, without everything else.

    shaping: whether to pass on `shaping`. The key has a meaning in this toolkit (`envs.core`) and may have another one
    in other packages."""
    plain = {}
    for key, value in info.items():
        if type(value) not in _PLAIN:
            value = plain_value(value)
            if value is None:
                continue
        is_reserved = key in _RESERVED or (key == "shaping" and not shaping)
        if isinstance(key, str) and not is_reserved and not key.startswith("_"):
            plain[key] = value
    return plain


def plain_value(value: Any) -> bool | int | float | str | None:
    """The value as Python's own type; None if it is no number, flag or text."""
    if isinstance(value, np.ndarray) and value.ndim == 0 or isinstance(value, np.generic):
        value = value.item()
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    return None


def plain_column(values: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A column of objects as numbers, flags or texts, and the mask of the rows that have one. Numbers and texts
    together stay objects."""
    plain = [plain_value(value) if is_given else None for value, is_given in zip(values, mask, strict=True)]
    mask = np.array([value is not None for value in plain])
    present = [value for value in plain if value is not None]
    has_texts = {isinstance(value, str) for value in present}
    array = np.array(present, object if len(has_texts) == 2 else None)
    column = np.zeros(len(values), array.dtype)
    column[mask] = array
    return column, mask


def last_info_problem(info: Mapping[str, Any], difficulty_key: str | None) -> str:
    """What is wrong with the success or the difficulty in the info of an episode's last step, "" if nothing is. Without
    a success, the return is reported."""
    success = info.get("is_success")
    if success is not None and not is_share(plain_value(success)):
        return f"is_success: expected a flag or a number from 0 to 1, got {shown(repr(success), 40)}"
    if difficulty_key is not None and not is_difficulty(plain_value(info.get(difficulty_key))):
        return (
            f"info of the last step: expected a number of at least 0 as {difficulty_key!r}, which metadata["
            f"'difficulty_key'] names, got {shown(repr(info.get(difficulty_key)), 40)}"
        )
    return ""


class JoinedInfos:
    """Collects the infos of B environments in arrays whose types fit the entries of all environments."""

    num_envs: int

    def _add_info(self, vector_infos: dict[str, Any], env_info: dict[str, Any], env_num: int) -> dict[str, Any]:
        """Adds an environment's info. In Gymnasium's method the first environment with an entry sets the array's type;
        here the type changes when a later entry needs it."""
        for key, value in env_info.items():
            if isinstance(value, dict) and key != "final_obs":
                vector_infos[key] = self._add_info(vector_infos.get(key, {}), value, env_num)
            else:
                vector_infos[key] = self._set_entry(vector_infos.get(key), value, env_num)
            mask = vector_infos.setdefault(f"_{key}", np.zeros(self.num_envs, bool))
            mask[env_num] = True
        return vector_infos

    def _set_entry(self, array: np.ndarray | None, value: Any, env_num: int) -> np.ndarray:
        """An array [B] with the entry of one environment set, of a type that fits all entries. array: the entries so
        far; None if there are none."""
        dtype = _DTYPES.get(type(value), object)
        if array is None:
            array = np.zeros(self.num_envs, dtype) if dtype is not object else np.full(self.num_envs, None, object)
        elif array.dtype != dtype:
            # Flags and numbers become numbers. Anything together with a text becomes an object.
            array = array.astype(np.result_type(array.dtype, dtype) if object not in (array.dtype, dtype) else object)
        try:
            array[env_num] = value
        except OverflowError:  # a whole number beyond 64 bits
            array = array.astype(np.float64)
            array[env_num] = float(value)
        return array


_DTYPES = {bool: np.dtype(bool), int: np.dtype(np.int64), float: np.dtype(np.float64)}
