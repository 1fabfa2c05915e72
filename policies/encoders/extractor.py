"""A features extractor of Stable-Baselines3 as the encoder of an environment's observation. N observations, C features.

It gets the space and the tensors that Stable-Baselines3 would give it (`preprocess_obs`): pictures from 0 to 1 with
their channels first, whole numbers one-hot. An observation of a single entry comes as it is, others as a dict by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
from gymnasium import spaces
from torch import Tensor, nn

from expire_span_rl.spaces import ADDED


class FeaturesExtractor(nn.Module):
    """`cls(space, **kwargs)`, a `stable_baselines3.common.torch_layers.BaseFeaturesExtractor`, and the entries that it
    reads."""

    def __init__(self, observation: spaces.Dict, cls: type[nn.Module], kwargs: Mapping[str, Any]):
        """observation: the wrapped environment's space. Raises TypeError, one line, for a class that is no features
        extractor, and ValueError for one that cannot read these observations."""
        super().__init__()
        from stable_baselines3.common.torch_layers import BaseFeaturesExtractor  # takes a second to import

        if not (isinstance(cls, type) and issubclass(cls, BaseFeaturesExtractor)):
            raise TypeError(f"features_extractor_class: expected a subclass of BaseFeaturesExtractor, got {cls!r}")
        self.keys = [key for key in observation if key not in ADDED]
        self.transposed = {key for key in self.keys if _is_channels_last(observation[key])}
        spaces_read = spaces.Dict({key: self._space(key, observation[key]) for key in self.keys})
        self.single_key = self.keys[0] if len(self.keys) == 1 else None
        self.space: spaces.Space = spaces_read if self.single_key is None else spaces_read[self.single_key]
        try:
            self.network = cls(self.space, **kwargs)
        except Exception as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise ValueError(f"features_extractor_class: {cls.__name__} cannot read {self.space} ({reason})") from error
        self.size = int(self.network.features_dim)  # pyright: ignore[reportArgumentType]

    def forward(self, observation: Mapping[str, Tensor]) -> Tensor:
        """Entries [N, ...] -> [N,C]."""
        from stable_baselines3.common.preprocessing import preprocess_obs

        entries: Any = {key: self._channels_first(key, observation[key]) for key in self.keys}
        value = entries if self.single_key is None else entries[self.single_key]
        return self.network(preprocess_obs(value, self.space))

    def _space(self, key: str, space: spaces.Space) -> spaces.Space:
        """The space of a picture with its channels first, as Stable-Baselines3's VecTransposeImage makes it. Other
        spaces stay as they are."""
        if key not in self.transposed or not isinstance(space, spaces.Box):
            return space
        return spaces.Box(space.low.transpose(2, 0, 1), space.high.transpose(2, 0, 1), dtype=np.uint8)

    def _channels_first(self, key: str, value: Tensor) -> Tensor:
        return value.permute(0, 3, 1, 2) if key in self.transposed else value


def _is_channels_last(space: spaces.Space) -> bool:
    """Whether Stable-Baselines3 reads the space as a picture [height, width, channels]."""
    from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first

    return is_image_space(space) and not is_image_space_channels_first(cast(spaces.Box, space))
