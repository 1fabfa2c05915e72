"""Observation -> one vector. N observations, D model width."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expire_span_rl.policies.encoders import EntryEncoder, make_entry
from expire_span_rl.policies.precision import Linear
from expire_span_rl.spaces import PREVIOUS_ACTION

if TYPE_CHECKING:
    from expire_span_rl.policies.encoders.extractor import FeaturesExtractor


class Encoder(nn.Module):
    """Observation -> [N,D]. Every entry becomes columns. The sum of their embeddings passes one more layer.

    The embeddings are a product of the columns with one matrix: on a CPU that is faster than a look-up, also for
    one-hot columns.
    """

    def __init__(
        self,
        spec: Mapping[str, Mapping[str, Any]],
        width: int,
        action_gain: float = 1.0,
        extractor: FeaturesExtractor | None = None,
    ):
        """action_gain: as in `EncoderConfig`; extractor: replaces the entries' own encoders, except those of the
        previous action, the previous reward and the action mask (`policies.encoders.extractor`)."""
        super().__init__()
        self.spec = {key: dict(entry) for key, entry in spec.items()}
        self.extractor = extractor
        entries = [make_entry(entry) for entry in self.spec.values()]
        self.keys = [key for key in self.spec if extractor is None or key not in extractor.keys]
        parts = [part for key, part in zip(self.spec, entries, strict=True) if key in self.keys]
        self.parts = cast(Sequence[EntryEncoder], nn.ModuleList(parts))
        sizes = [part.size for part in self.parts]
        self.project = Linear(sum(sizes) + (extractor.size if extractor is not None else 0), width)
        self.mix = Linear(width, width)
        for linear in (self.project, self.mix):  # PyTorch's default biases would drown the differences of observations
            nn.init.orthogonal_(linear.weight, 2**0.5)
            nn.init.zeros_(linear.bias)
        columns = self.project.weight.detach().split([*sizes, self.project.in_features - sum(sizes)], 1)
        for key, weight in zip(self.keys, columns[: len(sizes)], strict=True):
            if key == PREVIOUS_ACTION:
                weight.mul_(action_gain)

    def entries(self) -> Iterator[tuple[str, EntryEncoder]]:
        """(name, encoder) of every entry that has an encoder of its own."""
        yield from zip(self.keys, self.parts, strict=True)

    def entry(self, key: str) -> EntryEncoder | None:
        """The encoder of an entry; None for an entry that has none of its own."""
        return dict(self.entries()).get(key)

    def forward(self, observation: Mapping[str, Tensor]) -> Tensor:
        """observation: tensors [N, ...] -> [N,D]."""
        dtype = self.project.weight.dtype
        columns = [part(observation[key], dtype) for key, part in self.entries()]
        if self.extractor is not None:
            columns.append(self.extractor(observation).to(dtype))
        return self.mix(F.relu(self.project(torch.cat(columns, -1))))

    def observe(self, observation: Mapping[str, Tensor], axes: int) -> None:
        """Updates the statistics by which numbers are normalised. axes: number of leading axes of the entries."""
        for key, part in self.entries():
            if part.learns_statistics and len(observation[key]):
                part.observe(observation[key].flatten(0, axes - 1))
