"""Text: the words of `spaces.word_numbers`, as a sum of vectors of words and a sum of vectors of successive words.

The vector of a word is the sum of four, one for each byte of its number (hash embeddings, Svenstrup et al., 2017, arXiv
1709.03933). This needs no vocabulary, and confuses only words with the same number. N texts, W words.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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

    def __init__(self, entry: Mapping[str, Any]):
        super().__init__(entry)
        self.size = 2 * WIDTH
        self.outputs = 0
        self.words = nn.Embedding(BYTES * 256, WIDTH)
        self.pairs = nn.Embedding(BYTES * 256, WIDTH)
        for embedding in (self.words, self.pairs):
            nn.init.normal_(embedding.weight, std=BYTES**-0.5)

    @classmethod
    def spec_of(cls, space: spaces.Space) -> dict[str, Any] | None:
        if getattr(space, "encoder", None) == "words":
            return {"shape": list(space.shape or ())}
        return None

    def forward(self, value: Tensor, dtype: torch.dtype) -> Tensor:
        if is_captured(value):  # how many texts there are would have to be asked
            return self._columns(value).to(dtype)
        # Each different text is embedded once: a mission does not change within an episode. A hash identifies a text.
        factors = torch.arange(1, 2 * value.shape[1], 2, device=value.device) * PAIR
        hashes, index = torch.unique((value * factors).sum(1), return_inverse=True)
        rows = torch.empty_like(hashes).scatter_(0, index, torch.arange(len(value), device=value.device))
        return self._columns(value[rows]).to(dtype)[index]

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
