"""Batches as vector environments of other packages give them: their columns and rows. B environments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


def as_array(values: Any) -> np.ndarray:
    """The values as an array; one of objects if they have no common shape."""
    try:
        return np.asarray(values)
    except ValueError:
        return np.array(None)


def holds_objects(column: Any) -> bool:
    """Whether the values of a column may be of any type."""
    return not isinstance(column, np.ndarray) or column.dtype == object


def as_column(values: Any, num_envs: int) -> np.ndarray | None:
    """An entry of infos as an array [B], of objects if it is a list; None if it has no value for each environment."""
    if isinstance(values, (list, tuple)) and len(values) == num_envs:
        column = np.empty(num_envs, object)
        for row, value in enumerate(values):
            column[row] = value
        return column
    return values if isinstance(values, np.ndarray) and values.shape == (num_envs,) else None


def split_rows(observation: Any, count: int) -> list[Any]:
    """The observations of a batch one by one; [] if it is not a batch."""
    try:
        return [take_rows(observation, row) for row in range(count)]
    except (IndexError, TypeError, KeyError):
        return []


def take_rows(observation: Any, rows: Any) -> Any:
    """The rows of a batch, which consists of arrays, texts, dicts and tuples."""
    if isinstance(observation, Mapping):
        return {key: take_rows(part, rows) for key, part in observation.items()}
    if isinstance(observation, tuple):
        if observation and all(isinstance(part, str) for part in observation):  # texts of a batch
            return tuple(observation[row] for row in rows) if isinstance(rows, np.ndarray) else observation[rows]
        return tuple(take_rows(part, rows) for part in observation)
    return observation[rows]


def as_batch_of_one(observation: Any) -> Any:
    """The observation with a batch axis in front of every part."""
    if isinstance(observation, Mapping):
        return {key: as_batch_of_one(part) for key, part in observation.items()}
    if isinstance(observation, tuple):
        return tuple(as_batch_of_one(part) for part in observation)
    return (observation,) if isinstance(observation, str) else np.asarray(observation)[None]
