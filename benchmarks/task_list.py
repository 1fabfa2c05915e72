"""The tasks of `benchmarks.tasks`, third-party ones first, each with its steps and what counts as solved."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

SUCCESS = "success"
RETURN = "return"


@dataclass(frozen=True)
class BenchmarkTask:
    """One row group of the table."""

    env: str
    """Value of --env."""
    steps: int
    """Environment steps of a training. The target should be reached within them."""
    target: float | None
    """The measure that counts as solved. None where there is no common number."""
    measure: str = RETURN
    """What is compared with the target: the mean return or the success rate, of an evaluation or of the last training
    episodes."""
    floor: float = 0.0
    """The measure of a policy that achieves nothing. Its score is 0."""
    top: float | None = None
    """The measure at which the score is 1. None: the target."""
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of the environment."""
    wrap: tuple[str, ...] = ()
    """Values of --wrap."""
    published: float | None = None
    """The best mean of any memory in the paper of the task, where each training counts by the mean return of its best
    epoch."""
    package: str = ""
    """The package that must be installed for it. Empty if it needs none."""

    @property
    def is_missing(self) -> bool:
        """Whether its package is not installed."""
        return bool(self.package) and importlib.util.find_spec(self.package) is None

    def value(self, point: Sequence[float | None]) -> float | None:
        """The measure at a point of a learning curve, which is [environment steps, success, return]."""
        return point[1 if self.measure == SUCCESS else 2]

    def is_reached(self, point: Sequence[float | None]) -> bool:
        """Whether the target is reached at a point of a learning curve."""
        value = self.value(point)
        return self.target is not None and value is not None and value >= self.target

    def progress(self, points: Iterable[Sequence[float | None]]) -> dict[str, float | None]:
        """Of a training's learning curve: the highest measure, and the steps at which the target was first reached."""
        points = list(points)
        values = [value for point in points if (value := self.value(point)) is not None]
        steps = next((point[0] for point in points if self.is_reached(point)), None)
        return {"best": max(values, default=None), "steps_to_target": steps}

    def score(self, value: float) -> float:
        """The measure between floor and top, as a number from 0 to 1."""
        top = self.top if self.top is not None else self.target
        assert top is not None, "a task without a target has a top"
        return min(max((value - self.floor) / (top - self.floor), 0.0), 1.0)


def _minigrid(steps: float, target: float = 0.9) -> dict[str, Any]:
    """MiniGrid's reward is 1 - 0.9 * (share of the time limit that was used) for success, else 0."""
    return {"steps": int(steps), "target": target}


def _popgym(name: str, published: float, target: float | None = None) -> BenchmarkTask:
    """Returns lie between -1 and 1. There is a target where a memory gives nearly all of the return. published: of 13
    memories, three trainings of 15M steps each (Morad et al., 2023, arXiv 2303.01859, table 3 of the appendix, as
    others quote it)."""
    return BenchmarkTask(
        f"popgym:popgym-{name}-v0", 5_000_000, target, floor=-1.0, top=1.0, published=published, package="popgym"
    )


def _tmaze(length: int, steps: float) -> BenchmarkTask:
    """A perfect episode returns 1. The target is 0.99, since actions are sampled in training."""
    return BenchmarkTask("TMaze-v0", int(steps), 0.99, env_kwargs={"length": length})


TASKS: dict[str, BenchmarkTask] = {
    "CartPole-v1": BenchmarkTask("CartPole-v1", 150_000, 475.0),
    "Acrobot-v1": BenchmarkTask("Acrobot-v1", 300_000, -100.0, floor=-500.0),
    "Pendulum-v1": BenchmarkTask("Pendulum-v1", 500_000, -250.0, floor=-1600.0),
    # Velocities are hidden. RL Baselines3 Zoo (benchmark.md) has 500.0 and -217.9 for its RecurrentPPO, an LSTM, after
    # 100,000 steps: one run each, with the most likely actions.
    "CartPoleNoVel-v1": BenchmarkTask("CartPole-v1", 100_000, 475.0, wrap=("hide=1,3",)),
    "PendulumNoVel-v1": BenchmarkTask("Pendulum-v1", 100_000, -217.9, floor=-1600.0, wrap=("hide=2",)),
    "DoorKey-6x6": BenchmarkTask("MiniGrid-DoorKey-6x6-v0", **_minigrid(0.5e6)),
    "RedBlueDoors-6x6": BenchmarkTask("MiniGrid-RedBlueDoors-6x6-v0", **_minigrid(1.5e6)),
    "RedBlueDoors-8x8": BenchmarkTask("MiniGrid-RedBlueDoors-8x8-v0", **_minigrid(2e6)),
    # A return of 0.9 is success in about 95% of the episodes, which have some tens of steps.
    "MemoryS7": BenchmarkTask("MiniGrid-MemoryS7-v0", **_minigrid(1e6)),
    "MemoryS9": BenchmarkTask("MiniGrid-MemoryS9-v0", **_minigrid(2e6)),
    "MemoryS13": BenchmarkTask("MiniGrid-MemoryS13-v0", **_minigrid(3e6)),
    "MemoryS13Random": BenchmarkTask("MiniGrid-MemoryS13Random-v0", **_minigrid(5e6)),
    "MemoryS17Random": BenchmarkTask("MiniGrid-MemoryS17Random-v0", **_minigrid(8e6)),
    "TMaze-50": _tmaze(50, 1e6),
    "TMaze-500": _tmaze(500, 5e6),
    "TMaze-1500": _tmaze(1500, 10e6),
    "RepeatFirstEasy": _popgym("RepeatFirstEasy", 1.0, 0.9),
    "RepeatFirstHard": _popgym("RepeatFirstHard", 0.969, 0.9),
    "RepeatPreviousEasy": _popgym("RepeatPreviousEasy", 1.0, 0.9),
    "RepeatPreviousMedium": _popgym("RepeatPreviousMedium", 0.789, 0.9),
    "AutoencodeEasy": _popgym("AutoencodeEasy", -0.283),
    "CountRecallEasy": _popgym("CountRecallEasy", 0.509),
    "HigherLowerEasy": _popgym("HigherLowerEasy", 0.529),
    "Corridor-v0": BenchmarkTask("Corridor-v0", 1_000_000, 0.95, SUCCESS),
    "Portal-v0": BenchmarkTask("Portal-v0", 3_000_000, 0.95, SUCCESS),
    "Switch-v0": BenchmarkTask("Switch-v0", 3_000_000, 0.95, SUCCESS),
}
"""By name. The steps and targets of third-party tasks are goals of this project, not of a publication."""
