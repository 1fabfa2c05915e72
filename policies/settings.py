"""Settings of policies: of the cores, and of the memory kinds. Their fields are command-line flags.

Nothing here imports torch, so that a command line answers at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from expire_span_rl.checks import check_at_least

UNKNOWN_MAX_SPAN = 512  # steps: the longest span where neither a flag nor the environment says how long facts must last


@dataclass(frozen=True)
class EncoderConfig:
    """Part of every core's config."""

    action_gain: float = 1.0
    """Initial weights of the previous action over those of one number of an image cell, of which a 3x3 window has 27: with
    about 5 both have the same say, and what an action led to is told apart from the start."""

    def __post_init__(self):
        if not 0 <= self.action_gain < math.inf:
            raise ValueError(f"--action-gain: expected a finite number of at least 0, got {self.action_gain}")


@dataclass(frozen=True)
class TransformerConfig(EncoderConfig):
    width: int = 64
    """Model width D."""
    num_layers: int = 2
    """Layers of attention, each with a memory of its own."""
    num_heads: int = 4
    """Attention heads H."""
    num_positions: int = 16
    """Relative positions P: a memory older than that is found by its content alone."""
    shifted_heads: int = 0
    """Heads of the first layer that look at the step before and nothing else, for good: what followed what can then be read from one
    memory. The heads of the layers above begin by looking for memories whose step before was like now."""
    gating: bool = False
    """Gates instead of sums where attention and feed-forward layers join the residual stream (GTrXL), which then does not grow:
    corridors are learned sooner and on more seeds, steps take a quarter longer (docs/results.md)."""

    def __post_init__(self):
        super().__post_init__()
        check_at_least(self, width=1, num_layers=1, num_heads=1, num_positions=1)
        if not 0 <= self.shifted_heads <= self.num_heads:
            raise ValueError(f"--shifted-heads: expected 0 to --num-heads ({self.num_heads}), got {self.shifted_heads}")
        if self.shifted_heads and self.num_positions < 2:
            raise ValueError(f"--shifted-heads: expected --num-positions of at least 2, got {self.num_positions}")
        if self.width % self.num_heads:
            raise ValueError(f"--width: expected a multiple of --num-heads ({self.num_heads}), got {self.width}")


@dataclass(frozen=True)
class RecurrentConfig(EncoderConfig):
    width: int = 64
    """Width D of the encoder and of the hidden state."""
    num_layers: int = 1
    """Recurrent layers, each fed by the one below it."""

    def __post_init__(self):
        super().__post_init__()
        check_at_least(self, width=1, num_layers=1)


def check_spans(config: Any) -> None:
    """Raises ValueError, one line, for a config of learned spans whose ramp, max_span or initial_span is out of range."""
    check_at_least(config, ramp=1, max_span=0, span_lr_scale=0, span_coef=0)
    if not 0 < config.initial_span < 1:
        raise ValueError(f"--initial-span: expected a fraction between 0 and 1, got {config.initial_span}")


@dataclass(frozen=True)
class ExpireSpanConfig:
    max_span: int = 0
    """Longest span L_max, in steps. 0: from the environment (at least twice as long as a fact must last; just as long, and the
    ramp, where older ones mislead)."""
    ramp: int = 8
    """Ramp R, in steps, over which an expiring memory fades out. Live memory can never be smaller."""
    initial_span: float = 0.95
    """Fraction f of max_span at which every span starts. It must exceed the delay that the task needs of whoever still errs."""
    span_dropout: bool = False
    """Clip spans to u * max_span in training, u ~ U(0,1) drawn once per rollout (paper, section 3.3)."""
    span_lr_scale: float = 1.5
    """Learning rate at full pressure of the span predictor's weights, which tell memories apart, as a multiple of the
    policy's."""
    span_bias_lr_scale: float = 15.0
    """Learning rate at full pressure of the span predictor's bias, which all spans share, as a multiple of the policy's."""
    use_lift: float = 8.0
    """A memory is used where some head gives it this many times the attention that it gives the others on average."""
    use_margin: float = 0.25
    """Spans are defended up to the age of last use plus this fraction of it."""
    use_coef: float = 100.0
    """Weight of the defence against the charge: spans settle where a use falls outside once in this many memories."""
    span_coef: float = 1.0
    """Weight alpha of the span loss. It sets how it stands to the task's gradient of the spans; charge and defence go with it."""

    def __post_init__(self):
        check_spans(self)
        check_at_least(self, span_bias_lr_scale=0, use_margin=0, use_coef=0)
        if not self.use_lift > 0:
            raise ValueError(f"--use-lift: expected more than 0, got {self.use_lift}")


@dataclass(frozen=True)
class TransformerXLConfig:
    window: int = 256
    """Steps that a memory stays visible: age <= window."""

    def __post_init__(self):
        if self.window < 1:
            raise ValueError(
                f"--window: expected at least 1, got {self.window} (for no memory at all use --memory none)"
            )


@dataclass(frozen=True)
class AdaptiveSpanConfig:
    max_span: int = 0
    """Longest span S_max, in steps. 0: from the environment (at least twice as long as a fact must last; just as long, and the
    ramp, where older ones mislead)."""
    ramp: int = 8
    """Ramp R, in steps, over which a head's view fades out. Live memory can never be smaller."""
    initial_span: float = 0.95
    """Fraction of max_span at which every head's span starts. It must exceed the delay that the task needs of whoever still errs."""
    span_lr_scale: float = 10.0
    """Learning rate of the spans at full pressure as a multiple of the policy's."""
    span_coef: float = 1.0
    """Weight alpha of the span loss at full pressure."""

    def __post_init__(self):
        check_spans(self)


@dataclass(frozen=True)
class CompressiveConfig:
    window: int = 64
    """Steps for which a memory stays as it is: age <= window. It stays longer until its block is complete."""
    compression_rate: int = 4
    """Memories c that become one: blocks of c steps, counted from the start of the episode."""
    compressed_window: int = 48
    """Compressed memories that are kept: the oldest goes when a new one comes."""

    def __post_init__(self):
        check_at_least(self, window=0, compression_rate=2, compressed_window=1)


@dataclass(frozen=True)
class GRUConfig:
    pass


@dataclass(frozen=True)
class NoMemoryConfig:
    pass
