"""Text: the words of `spaces.word_numbers`, as a sum of vectors of words and a sum of vectors of successive words.

The vector of a word is the sum of four, one for each byte of its number (hash embeddings, Svenstrup et al., 2017, arXiv
1709.03933). This needs no vocabulary, and confuses only words with the same number. N texts, W words.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from expire_span_rl.policies.encoders.base import EntryEncoder

BYTES = 4  # of a word's number
WIDTH = 32  # of a word's vector, and of a pair's
PAIR = 0x9E3779B1  # an odd factor of the first number of a pair, before the second is added


def is_captured(value: Tensor) -> bool:
    """Whether a GPU records a step on this tensor to replay it, and can be asked for nothing."""
    return value.is_cuda and torch.cuda.is_current_stream_capturing()


class WordsEncoder(EntryEncoder):
    """int64 [W] numbers of words, 0 behind the end. Not predicted: a text names the task and does not change."""

    factors: Tensor

    def __init__(self, entry: Mapping[str, Any]):
        super().__init__(entry)
        self.size = 2 * WIDTH
        self.outputs = 0
        self.words = nn.Embedding(BYTES * 256, WIDTH)
        self.pairs = nn.Embedding(BYTES * 256, WIDTH)
        for embedding in (self.words, self.pairs):
            nn.init.normal_(embedding.weight, std=BYTES**-0.5)
        # Factors that follow a rule would give texts of the same words one hash.
        factors = np.random.default_rng(0).integers(2**63, size=entry["shape"][0]) | 1
        self.register_buffer("factors", torch.tensor(factors), persistent=False)

    @classmethod
    def spec_of(cls, space: spaces.Space) -> dict[str, Any] | None:
        if getattr(space, "encoder", None) == "words":
            return {"shape": list(space.shape or ())}
        return None

    @classmethod
    def bounds_of(cls, entry: Mapping[str, Any]) -> tuple[int, int]:
        return 0, 2**32

    def forward(self, value: Tensor, dtype: torch.dtype) -> Tensor:
        if is_captured(value):  # how many texts there are would have to be asked
            return self._columns(value).to(dtype)
        # Each different text is embedded once: a mission does not change within an episode.
        texts, index = self._distinct(value)
        return self._columns(texts).to(dtype)[index]

    def _distinct(self, texts: Tensor) -> tuple[Tensor, Tensor]:
        """[N,W] -> the different texts [M,W], and int64 [N]: which of them each text is. A hash groups them, since
        sorting texts takes ten times as long. Where two texts have one hash, they are sorted nevertheless."""
        hashes, index = torch.unique((texts * self.factors).sum(1), return_inverse=True)
        rows = torch.empty_like(hashes).scatter_(0, index, torch.arange(len(texts), device=texts.device))
        different = texts[rows]
        if not torch.equal(different[index], texts):
            different, index = torch.unique(texts, dim=0, return_inverse=True)
        return different, index

    def _columns(self, texts: Tensor) -> Tensor:
        """[N,W] -> [N,C]."""
        words = self._embed(self.words, texts, texts > 0)
        is_pair = (texts[:, 1:] > 0) & (texts[:, :-1] > 0)
        pairs = self._embed(self.pairs, (texts[:, :-1] * PAIR + texts[:, 1:]) % 2**32 + 1, is_pair)
        return torch.cat([words, pairs], 1)

    @staticmethod
    def _embed(embedding: nn.Embedding, numbers: Tensor, exists: Tensor) -> Tensor:
        """[N,WIDTH]: the sum of the vectors of numbers [N,W] that exist, bool [N,W], over the root of their count."""
        shifts = torch.arange(0, 8 * BYTES, 8, device=numbers.device)
        digits = ((numbers - 1)[..., None] >> shifts) & 255  # [N,W,BYTES]
        vectors = embedding(digits + 256 * torch.arange(BYTES, device=numbers.device)).sum(2)  # [N,W,WIDTH]
        count = exists.sum(1, keepdim=True).clamp(min=1)
        return (vectors * exists[..., None]).sum(1) / count.sqrt()

    def surprise(self, outputs: Tensor, value: Tensor) -> Tensor:
        return outputs.sum() * 0
