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
from expire_span_rl.policies.encoders.integers import MultiDiscreteEncoder

MIN_SIDE = 8  # pixels: smaller arrays are not read as pictures
SMALL = 36  # pixels: pictures with a smaller side are convolved by 3x3 kernels only
PREDICTED_SIDE = 8  # pixels: predicted pictures are reduced to at most this side
BRIGHTEST = 255  # the largest number of a picture, unless its space says less


class PictureEncoder(EntryEncoder):
    """A convolutional network. Frames stay uint8 until they are encoded, as numbers from 0 to 1: divided by the largest
    that their space allows.

    Small arrays whose space allows less than BRIGHTEST have codes, such as the objects of a grid, and are read as
    integers.

    Pictures whose sides have at least SMALL pixels use the network of Mnih et al. (2015). Smaller ones use 3x3 kernels
    that halve the sides until they are at most 7.
    """

    def __init__(self, entry: Mapping[str, Any]):
        super().__init__(entry)
        self.channels_last = entry["channels"] == "last"
        self.brightest = int(entry.get("brightest", BRIGHTEST))
        shape = list(entry["shape"])
        channels = 1 if len(shape) == 2 else shape.pop(2 if self.channels_last else 0)
        self.gray = len(entry["shape"]) == 2
        height, width = shape
        layers: list[nn.Module] = []
        in_channels = channels
        sides = [height, width]
        for out_channels, kernel, stride, padding in _convolutions(height, width):
            convolution = nn.Conv2d(in_channels, out_channels, kernel, stride, padding)
            nn.init.orthogonal_(convolution.weight, 2**0.5)
            if convolution.bias is not None:
                nn.init.zeros_(convolution.bias)
            layers += [convolution, nn.ReLU()]
            in_channels = out_channels
            sides = [(side + 2 * padding - kernel) // stride + 1 for side in sides]
        self.network = nn.Sequential(*layers)
        self.size = in_channels * sides[0] * sides[1]
        self.small = min(height, PREDICTED_SIDE), min(width, PREDICTED_SIDE)
        self.outputs = channels * self.small[0] * self.small[1]

    @classmethod
    def spec_of(cls, space: spaces.Space) -> dict[str, Any] | None:
        if not isinstance(space, spaces.Box) or space.dtype != np.uint8 or hasattr(space, "encoder"):
            return None
        shape = list(space.shape)
        if len(shape) not in (2, 3):
            return None
        channels = "last" if len(shape) == 2 or shape[2] <= shape[0] else "first"
        sides = shape[:2] if channels == "last" else shape[1:]
        if min(sides) < MIN_SIDE:
            return None
        brightest = int(space.high.max(initial=1))
        if brightest == BRIGHTEST:
            return {"shape": shape, "channels": channels}
        has_codes = MultiDiscreteEncoder.spec_of(space) is not None
        return None if has_codes else {"shape": shape, "channels": channels, "brightest": brightest}

    @classmethod
    def bounds_of(cls, entry: Mapping[str, Any]) -> tuple[int, int]:
        return 0, int(entry.get("brightest", BRIGHTEST))

    def _pixels(self, value: Tensor, dtype: torch.dtype) -> Tensor:
        """[N, ...] -> [N, channels, height, width] in [0, 1]."""
        value = value[..., None] if self.gray else value
        return (value.permute(0, 3, 1, 2) if self.channels_last else value).to(dtype) / self.brightest

    def forward(self, value: Tensor, dtype: torch.dtype) -> Tensor:
        return self.network(self._pixels(value, dtype)).flatten(1)

    def surprise(self, outputs: Tensor, value: Tensor) -> Tensor:
        """The squared error over twice the variance, of the picture reduced to at most PREDICTED_SIDE pixels a side."""
        small = F.adaptive_avg_pool2d(self._pixels(value, outputs.dtype), self.small)
        return squared_error(outputs, small.flatten(1))


def _convolutions(height: int, width: int) -> tuple[tuple[int, int, int, int], ...]:
    """Output channels, kernel, stride and padding of each convolution."""
    if min(height, width) >= SMALL:
        return (32, 8, 4, 0), (64, 4, 2, 0), (64, 3, 1, 0)
    halvings = max(1, math.ceil(math.log2(max(height, width) / 7)))
    return tuple((16 if i == 0 else 32, 3, 2, 1) for i in range(halvings))
