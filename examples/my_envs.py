"""An environment of one's own, in one file: a suit that is shown at the first step is asked for at the last.

python train_rl.py --env examples/my_envs.py:Recall-v0 --total-timesteps 2e5 --run-dir runs/recall
python evaluate.py runs/recall --env examples/my_envs.py:Recall-v0
python visualize.py runs/recall --env examples/my_envs.py:Recall-v0 --out memory.html
"""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium import spaces

SUITS = ("clubs", "diamonds", "hearts", "spades")
NO_SUIT = 4


class Recall(gym.Env):
    """The first observation shows one of four suits, all later ones show no suit. A random rank is always shown. After
    `delay` steps the environment asks for the suit. Reward: 1 for the right answer, else 0. Chance is one in four."""

    metadata: ClassVar[dict[str, Any]] = {
        "render_modes": [],
        # optional: names for the page that shows what was remembered
        "observation_names": {"card/suit": [*SUITS, "none"], "asked": ["asked for the suit"]},
        "action_names": SUITS,
    }

    def __init__(self, delay: int = 20):
        self.delay = delay
        self.memory_horizon = delay  # optional: for how many steps a fact must be remembered
        card = spaces.Dict({"suit": spaces.Discrete(5), "rank": spaces.Discrete(13)})
        self.observation_space = spaces.Dict({"card": card, "asked": spaces.MultiBinary(1)})
        self.action_space = spaces.Discrete(4)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)  # makes self.np_random, the only source of chance
        self.suit = int(self.np_random.integers(4))
        self.time = 0
        return self._observation(), {}

    def step(self, action: int):
        asked = self.time == self.delay
        right = bool(asked and action == self.suit)
        self.time += 1
        # The success rate of training and evaluation is made of `is_success` in the last info of each episode.
        info = {"is_success": right} if asked else {}
        return self._observation(), float(right), asked, False, info

    def _observation(self) -> dict[str, Any]:
        suit = self.suit if self.time == 0 else NO_SUIT
        card = {"suit": suit, "rank": int(self.np_random.integers(13))}
        return {"card": card, "asked": np.array([self.time == self.delay], np.int8)}


gym.register("Recall-v0", entry_point=Recall)
