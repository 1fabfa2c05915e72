"""Pictures: uint8 [height, width, channels] or [channels, height, width], by a small convolutional network."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from gymnasium import spaces
from torch import Tensor, nn

from expire_span_rl.policies.encoders.base import EntryEncoder, squared_error

LEAST_SIDE = 8  # pixels: what is smaller is no picture
SMALL = 36  # pixels: smaller pictures are convolved by 3x3 kernels only
PREDICTED = 8  # pixels of a side to which a picture is reduced where it is predicted


class PictureEncoder(EntryEncoder):
    """Frames stay uint8 until they are encoded, as numbers from 0 to 1. The network of Mnih et al. (2015) for pictures
    of at least SMALL pixels, else 3x3 kernels that halve the sides until they are at most 7."""

    def __init__(self, entry: Mapping[str, Any]):
        super().__init__(entry)
        self.channels_last = entry["channels"] == "last"
        shape = list(entry["shape"])
        channels = 1 if len(shape) == 2 else shape.pop(2 if self.channels_last else 0)
        self.gray = len(entry["shape"]) == 2
        height, width = shape
        layers: list[nn.Module] = []
        if min(height, width) >= SMALL:
            sizes = ((32, 8, 4, 0), (64, 4, 2, 0), (64, 3, 1, 0))  # channels, kernel, stride, padding
        else:
            halvings = max(1, math.ceil(math.log2(max(height, width) / 7)))
            sizes = tuple((16 if i == 0 else 32, 3, 2, 1) for i in range(halvings))
        before, sides = channels, [height, width]
        for after, kernel, stride, padding in sizes:
            convolution = nn.Conv2d(before, after, kernel, stride, padding)
            nn.init.orthogonal_(convolution.weight, 2**0.5)
            if convolution.bias is not None:
                nn.init.zeros_(convolution.bias)
            layers += [convolution, nn.ReLU()]
            before = after
            sides = [(side + 2 * padding - kernel) // stride + 1 for side in sides]
        self.network = nn.Sequential(*layers)
        self.size = before * sides[0] * sides[1]
        self.small = min(height, PREDICTED), min(width, PREDICTED)
        self.outputs = channels * self.small[0] * self.small[1]

    @classmethod
    def spec_of(cls, space: spaces.Space) -> dict[str, Any] | None:
        if not isinstance(space, spaces.Box) or space.dtype != np.uint8 or hasattr(space, "encoder"):
            return None
        shape = list(space.shape)
        if len(shape) == 2 and min(shape) >= LEAST_SIDE:
            return {"shape": shape, "channels": "last"}
        if len(shape) != 3:
            return None
        channels = "last" if shape[2] <= shape[0] else "first"
        sides = shape[:2] if channels == "last" else shape[1:]
        return {"shape": shape, "channels": channels} if min(sides) >= LEAST_SIDE else None

    def _pixels(self, value: Tensor, dtype: torch.dtype) -> Tensor:
        """[N, ...] -> [N, channels, height, width] in [0, 1]."""
        value = value[..., None] if self.gray else value
        return (value.permute(0, 3, 1, 2) if self.channels_last else value).to(dtype) / 255

    def forward(self, value: Tensor, dtype: torch.dtype) -> Tensor:
        return self.network(self._pixels(value, dtype)).flatten(1)

    def surprise(self, outputs: Tensor, value: Tensor) -> Tensor:
        """Squared error over twice the variance of the picture reduced to at most PREDICTED x PREDICTED pixels."""
        small = F.adaptive_avg_pool2d(self._pixels(value, outputs.dtype), self.small)
        return squared_error(outputs, small.flatten(1))
