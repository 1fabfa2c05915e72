"""What those who run a training ask of a trainer. `Trainer` and `SB3Trainer` answer alike."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from torch import Tensor

if TYPE_CHECKING:
    from expire_span_rl.agents.kept_policy import KeptPolicy
    from expire_span_rl.agents.schedules import Schedules


@runtime_checkable
class TrainingLoop(Protocol):
    """Trains a policy, one rollout per `update()`."""

    env: Any
    """The environments that it trains in."""
    rollout_size: int
    """Environment steps of an update."""
    total_timesteps: int
    """Environment steps of the whole training, a multiple of `rollout_size`."""
    updates: int
    is_whole: bool
    """Whether the state is the one between two updates. False after an update that failed and could not be undone."""
    keeps_evaluated: bool
    """Keep a policy only where `keep_evaluated` reports an evaluation that passed."""
    log_dir: Path | None
    """The run directory, to which the logs of actors are copied at the end. None: they are copied nowhere."""
    notes: list[str]
    """What the last `load_state` has to report, in lines."""

    @property
    def best(self) -> KeptPolicy | None:
        """The best policy that met the success target; None if there is none."""
        ...

    @property
    def timesteps(self) -> int:
        """Environment steps trained so far."""
        ...

    @property
    def done(self) -> bool:
        """Whether the total is reached."""
        ...

    @property
    def stop(self) -> threading.Event:
        """Set it to end the training."""
        ...

    @property
    def schedules(self) -> Schedules:
        """The schedules of the agent's settings."""
        ...

    def go_on(self, timesteps: int) -> None:
        """Makes this a training of so many steps more, rounded up to whole rollouts."""
        ...

    def update(self) -> dict[str, float]:
        """One rollout and what is learned from it. Returns metrics for the log. Raises TrainingEnded."""
        ...

    def keep_evaluated(self, result: Mapping[str, Any]) -> None:
        """Keeps the policy as it is now if an evaluation with this result meets the target."""
        ...

    def unfinished(self) -> str | None:
        """What the training has been too short for, in a line; None for nothing."""
        ...

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The whole state of the training: tensors by name, and JSON-able metadata."""
        ...

    def load_state(self, tensors: Mapping[str, Tensor], figures: Mapping[str, Any], /) -> bool:
        """Continues from `state`. Returns False if the environments begin new episodes."""
        ...

    def close(self) -> None:
        """Closes environments and ends actors."""
        ...
