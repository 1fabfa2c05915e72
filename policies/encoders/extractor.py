"""A features extractor of Stable-Baselines3 as the encoder of an environment's observation. N observations, C features.

It gets the space and the tensors that Stable-Baselines3 would give it: pictures as floats from 0 to 1, whole numbers one-hot
(`preprocess_obs`); the observation itself where it is a single entry, else a dict of entries by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gymnasium import spaces
from torch import Tensor, nn

from expire_span_rl.spaces import ADDED


class FeaturesExtractor(nn.Module):
    """`cls(space, **kwargs)`, a `stable_baselines3.common.torch_layers.BaseFeaturesExtractor`, and what it reads."""

    def __init__(self, observation: spaces.Dict, cls: type[nn.Module], kwargs: Mapping[str, Any]):
        """observation: the wrapped environment's. Raises TypeError, one line, for a class of another kind."""
        super().__init__()
        from stable_baselines3.common.torch_layers import BaseFeaturesExtractor  # a second, and only here

        if not (isinstance(cls, type) and issubclass(cls, BaseFeaturesExtractor)):
            raise TypeError(f"features_extractor_class: expected a subclass of BaseFeaturesExtractor, got {cls!r}")
        self.keys = [key for key in observation if key not in ADDED]
        own = spaces.Dict({key: observation[key] for key in self.keys})
        self.alone = self.keys[0] if len(self.keys) == 1 else None
        self.space: spaces.Space = own if self.alone is None else own[self.alone]
        self.network = cls(self.space, **kwargs)
        self.size = int(self.network.features_dim)  # pyright: ignore[reportArgumentType]

    def forward(self, observation: Mapping[str, Tensor]) -> Tensor:
        """Entries [N, ...] -> [N,C]."""
        from stable_baselines3.common.preprocessing import preprocess_obs

        own: Any = {key: observation[key] for key in self.keys}
        return self.network(preprocess_obs(own if self.alone is None else own[self.alone], self.space))
