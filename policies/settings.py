"""Settings of the cores and of the memory kinds. Their fields are command-line flags.

Nothing here imports torch, so that a command line answers at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from expire_span_rl.checks import LARGEST_SETTING, check_above_zero, check_at_least, check_at_most, choice, flag

MAX_WIDTH = 2**16
MAX_LAYERS = 128
MAX_POSITIONS = 10**6
SPAN_MODELS = ("survival", "sigmoid")
FLOAT32, BF16 = "float32", "bf16"
PRECISIONS = (FLOAT32, BF16)
UNKNOWN_MAX_SPAN = 512  # steps: the longest span where neither a flag nor the environment says how long facts must last


@dataclass(frozen=True)
class EncoderConfig:
    """The part of a core's config that all cores share."""

    action_gain: float = 1.0
    """Factor on the initial weights of the previous action in the first layer. A 3x3 image of MiniGrid has 27 numbers
    per step. With about 5 the one action counts as much as all of them together."""

    def __post_init__(self):
        if not 0 <= self.action_gain < math.inf:
            raise ValueError(f"--action-gain: expected a finite number of at least 0, got {self.action_gain}")


@dataclass(frozen=True)
class TransformerConfig(EncoderConfig):
    EARLIER: ClassVar[dict[str, Any]] = {
        "qk_norm": False, "head_dropout": 0.0, "age_gain": 0.0, "age_values": 0.0, "uniform_heads": 0.0,
    }  # fmt: skip
    """Values of settings that are missing in policy files from before these settings existed."""

    width: int = 64
    """Width D of the Transformer's hidden vectors."""
    num_layers: int = 2
    """Transformer layers, each with a memory of its own."""
    num_heads: int = 4
    """Attention heads H of each layer."""
    num_positions: int = 64
    """Relative positions P. Attention knows the age of a memory up to P steps; older ones are found by their content
    alone."""
    age_gain: float = 10.0
    """Gain of what each head learns to add to the scores of memories by their age, up to P steps (a relative position
    bias: Raffel et al., 2020, arXiv 1910.10683). A head then soon finds what was seen N steps ago, whatever it shows.
    0: heads learn no such number."""
    age_values: float = 1.0
    """Gain of the vectors that each head learns to add to the values of memories by their age, up to P steps (Shaw et
    al., 2018, arXiv 1803.02155). A policy can then tell how long ago something was, and count. 0: no such vectors."""
    shifted_heads: int = 0
    """Heads of the first layer that always attend to the previous step only, so that one memory holds a step and what
    followed it. Heads of the higher layers start out looking for memories whose previous step resembles the current
    one."""
    sharpness: float = 5.0
    """Gain of the initial query and key weights. With 5 some head looks at the one odd memory from the start. With 2,
    where attention begins more evenly, a memory that must be looked up by its content is found sooner."""
    uniform_heads: float = 0.5
    """Share of each layer's heads, the last ones, that start out with nearly uniform attention, as with a sharpness of
    1. What must be counted, or is found by its age, is then found sooner. The others look at few memories each."""
    qk_norm: bool = True
    """Give all queries and keys of a head the same norm (QKNorm). Scores then depend on the angle between them only,
    and nothing matches a query better than what it looks for."""
    newest_first: float = 0.0
    """What every newer memory that matches a query equally well takes from a memory's score. With 4, the newest of
    equal memories gets 98% of their attention, so that a fact replaces earlier ones of its kind. With 0 all get the
    same."""
    sharpen_beyond: int = 0
    """Number of memories N beyond which attention gets sharper: a query that sees n > N memories has its scores
    multiplied by log(n) / log(N). Otherwise thousands of memories that do not match outweigh the one that does, which a
    policy trained on hundreds was never shown. 0: never."""
    head_dropout: float = 0.1
    """Chance that a head of a layer above the first is left out of a training rollout of an environment (DropHead).
    Every head then learns to find all of what a query looks for, instead of a part of it. 0 in the last tenth of the
    training."""
    position_dropout: float = 0.0
    """Chance that attention knows ages up to fewer than P steps in a training rollout of an environment. How many is
    drawn from 1 to P. What is older is then found by its content alone, so that a policy does not come to rely on facts
    being as recent as they are in training. It harms tasks that ask for what was seen N steps ago. 0 in the last tenth
    of the training."""
    gating: bool = False
    """Gated residual connections (GTrXL) instead of sums. Corridors are learned sooner and on more seeds, but a step
    takes a quarter longer (docs/results.md)."""

    def __post_init__(self):
        super().__post_init__()
        check_at_least(self, width=1, num_layers=1, num_heads=1, num_positions=1, newest_first=0)
        check_at_least(self, age_gain=0, age_values=0)
        check_above_zero(self, "sharpness")
        if self.sharpen_beyond < 0 or self.sharpen_beyond == 1:
            raise ValueError(f"--sharpen-beyond: expected 0 (never) or at least 2, got {self.sharpen_beyond}")
        check_at_most(self, sharpen_beyond=LARGEST_SETTING)
        check_at_most(self, width=MAX_WIDTH, num_layers=MAX_LAYERS, num_positions=MAX_POSITIONS)
        for name in ("head_dropout", "position_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{flag(name)}: expected a chance from 0 to below 1, got {getattr(self, name)}")
        if not 0 <= self.uniform_heads <= 1:
            raise ValueError(f"--uniform-heads: expected a share from 0 to 1, got {self.uniform_heads}")
        if not 0 <= self.shifted_heads <= self.num_heads:
            raise ValueError(f"--shifted-heads: expected 0 to --num-heads ({self.num_heads}), got {self.shifted_heads}")
        if self.shifted_heads and self.num_positions < 2:
            raise ValueError(f"--shifted-heads: expected --num-positions of at least 2, got {self.num_positions}")
        if self.width % self.num_heads:
            raise ValueError(f"--width: expected a multiple of --num-heads ({self.num_heads}), got {self.width}")


@dataclass(frozen=True)
class RecurrentConfig(EncoderConfig):
    width: int = 64
    """Width D of the encoder's output and of the hidden state."""
    num_layers: int = 1
    """Recurrent layers, each fed by the one below it."""

    def __post_init__(self):
        super().__post_init__()
        check_at_least(self, width=1, num_layers=1)
        check_at_most(self, width=MAX_WIDTH, num_layers=MAX_LAYERS)


@dataclass(frozen=True)
class LRUCoreConfig(RecurrentConfig):
    width: int = 64
    """Width D of the encoder's output and number of complex channels of each layer's state."""
    num_layers: int = 2
    """Layers of linear recurrent units, each fed by the one below it."""


def check_spans(config: Any) -> None:
    """Raises ValueError, one line, if a config of learned spans has a number that is out of range."""
    check_at_least(config, max_span=0, span_lr_scale=0, span_coef=0)
    if not 0 < config.initial_span < 1:
        raise ValueError(f"--initial-span: expected a fraction between 0 and 1, got {config.initial_span}")


@dataclass(frozen=True)
class ExpireSpanConfig:
    EARLIER: ClassVar[dict[str, Any]] = {
        "span_model": "sigmoid", "use_share": 0.0, "renew_every": 0, "time_skips": 0.0, "time_gaps": 0.0,
        "attention_cost": 0.0, "use_enough": 1.0, "min_use_coef": 0.0,
    }  # fmt: skip
    """Values of settings that are missing in policy files from before these settings existed."""

    span_model: str = "survival"
    """How spans are predicted. survival: from the chance that a memory is still needed, without a longest span.
    sigmoid: as a fraction of a longest span, as in the Expire-Span paper."""
    max_span: int = 0
    """Longest span L_max, in steps. 0 with --span-model survival: no limit. 0 with sigmoid: a power of two, at least
    twice as long as the environment says that something must be remembered. Where it says that older facts mislead:
    just that long, plus the ramp."""
    initial_limit: int = 0
    """With --span-model survival: spans of all memories, in steps, until the success target was met once and the needs
    of memories were observed. It must exceed the recall delay of an untrained policy. 0: --initial-span of twice the
    time that the environment says something must be remembered."""
    ramp: int = 8
    """Ramp R: steps over which an expiring memory fades out. A layer never has fewer live memories than that. 0, with
    --span-model survival: a memory is gone at once when its span is over."""
    initial_span: float = 0.95
    """Span of every memory at the start, as a fraction of twice the time that the environment says something must be
    remembered, or of --max-span with --span-model sigmoid. It must exceed the recall delay of an untrained policy."""
    span_dropout: bool = False
    """With --span-model sigmoid: in training, limit spans to a random fraction of --max-span, drawn uniformly once per
    rollout (section 3.3 of the Expire-Span paper)."""
    span_lr_scale: float = 1.5
    """Learning rate of the span predictor's weights, as a multiple of --learning-rate; twice that with --span-model
    survival. The weights make the spans of memories differ. The rate holds at full pressure."""
    span_bias_lr_scale: float = 15.0
    """Learning rate of the span predictor's bias, as a multiple of --learning-rate; twice that with --span-model
    survival. The bias shifts all spans together. The rate holds at full pressure."""
    use_lift: float = 8.0
    """A memory counts as used when some head gives it at least this many times the average attention of the others,
    and at least --use-share of all its attention, or --use-enough."""
    use_share: float = 0.1
    """The least share of a head's attention that counts as use. Among hundreds of memories eight times the average is
    little, and what gets so little changes nothing."""
    use_enough: float = 1.0
    """A share of a head's attention that counts as use whatever the others get. Among few memories eight times the
    average is a lot: where a query sees three, it is 80%. With a smaller share what gets less is kept, too. 1: none."""
    renew_every: int = 16
    """With --span-model survival: steps of the environment's clock after which spans are computed again, from the age
    at which each memory was last used. In training it happens at the start of each rollout instead. 0: never, a span
    then counts from the step that the memory was written at."""
    time_skips: float = 0.25
    """With --span-model survival: chance that time is skipped before a rollout of an environment, in training, up to
    four ramps of steps (four steps if there is no ramp). What was only just seen then has expired, so that the policy
    learns to act by what it keeps and what it sees. 0: never. 0 in the last tenth of the training."""
    time_gaps: float = 0.03
    """With --span-model survival: chance that in a training rollout of an environment every memory looks older to
    every query, by up to four ramps, as if so much time had been skipped right before it. Where that is more than a
    ramp, only what is kept for longer is in sight, for the whole rollout. 0: never. 0 in the last tenth of the
    training."""
    attention_cost: float = 0.0
    """With --span-model survival: weight of a loss that grows with the number of memories older than the ramp to which
    any head attends, under positive pressure. Heads then look at few memories, and those that have nothing to look for
    at what is recent: every memory that is looked at would be kept. 0: none."""
    use_margin: float = 0.25
    """Safety margin: a span should reach the age at which its memory was last used, plus this fraction of it."""
    use_coef: float = 100.0
    """Spans settle where one memory in this many expires before its last use. With --span-model sigmoid it is the
    weight of the retention hinge against the span penalty."""
    min_use_coef: float = 0.0
    """With --span-model survival: where --use-coef falls to while the target is met, in a quarter of the training at
    full pressure. It rises again while the target is missed. Of memories that tell the same, those that are used least
    often then expire, and the others are used instead. 0: it does not fall."""
    span_coef: float = 1.0
    """Weight alpha of the span loss. With --span-model sigmoid it stands against the gradients that the task has on
    spans."""

    def __post_init__(self):
        check_spans(self)
        check_at_least(self, ramp=0, attention_cost=0)
        check_at_least(self, span_bias_lr_scale=0, use_margin=0, use_coef=0, initial_limit=0, renew_every=0)
        check_at_most(self, renew_every=LARGEST_SETTING)
        choice("--span-model", self.span_model, SPAN_MODELS)
        if self.span_model == "survival":
            self._check_survival()
        else:
            self._check_sigmoid()
        for name in ("time_skips", "time_gaps"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{flag(name)}: expected a chance from 0 to 1, got {getattr(self, name)}")
        if not self.use_lift > 0:
            raise ValueError(f"--use-lift: expected more than 0, got {self.use_lift}")
        if not 0 <= self.use_share < 1:
            raise ValueError(f"--use-share: expected at least 0 and less than 1, got {self.use_share}")
        if not self.use_share <= self.use_enough <= 1:
            raise ValueError(
                f"--use-enough: expected a share from --use-share ({self.use_share}) to 1, got {self.use_enough}"
            )

    def _check_survival(self) -> None:
        if not self.use_coef > 1:
            raise ValueError(f"--use-coef: expected more than 1 with --span-model survival, got {self.use_coef}")
        if self.span_dropout:
            raise ValueError(
                "--span-dropout: expected --span-model sigmoid with it, since it is a fraction of --max-span"
            )
        if self.min_use_coef and not 1 < self.min_use_coef <= self.use_coef:
            raise ValueError(
                f"--min-use-coef: expected 0, or more than 1 and at most --use-coef ({self.use_coef:g}), "
                f"got {self.min_use_coef:g}"
            )

    def _check_sigmoid(self) -> None:
        if self.ramp == 0:
            raise ValueError("--ramp: expected at least 1 with --span-model sigmoid, got 0")
        for name in ("attention_cost", "min_use_coef"):
            if getattr(self, name):
                raise ValueError(f"{flag(name)}: expected --span-model survival with it")


def check_used(config: Any) -> None:
    """Raises ValueError, one line, for a setting that does nothing with bounded spans, other than 0 and its default.
    config: of a memory kind, for a new run. Saved policies and runs may have earlier defaults."""
    if getattr(config, "span_model", "survival") == "survival":
        return
    usual = {field.name: field.default for field in fields(config)}
    for name in ("renew_every", "time_skips", "time_gaps"):
        if getattr(config, name) not in (0, usual[name]):
            raise ValueError(f"{flag(name)}: expected --span-model survival with it")


@dataclass(frozen=True)
class TransformerXLConfig:
    window: int = 256
    """Steps for which a memory stays visible."""

    def __post_init__(self):
        if self.window < 1:
            raise ValueError(
                f"--window: expected at least 1, got {self.window} (for no memory at all use --memory none)"
            )


@dataclass(frozen=True)
class AdaptiveSpanConfig:
    max_span: int = 0
    """Longest span S_max, in steps. 0: a power of two, at least twice as long as the environment says that something
    must be remembered. Where it says that older facts mislead: just that long, plus the ramp."""
    ramp: int = 8
    """Ramp R: steps over which a head's view fades out. A layer never has fewer live memories than that."""
    initial_span: float = 0.95
    """Span of every head at the start, as a fraction of --max-span. It must exceed the recall delay of an untrained
    policy."""
    span_lr_scale: float = 10.0
    """Learning rate of the spans at full pressure, as a multiple of --learning-rate."""
    span_coef: float = 1.0
    """Weight alpha of the span loss at full pressure."""

    def __post_init__(self):
        check_spans(self)
        check_at_least(self, ramp=1)


@dataclass(frozen=True)
class CompressiveConfig:
    window: int = 64
    """Steps for which a memory stays uncompressed. It stays a little longer if its block is not complete yet."""
    compression_rate: int = 4
    """Memories that are compressed into one. Blocks of so many steps are counted from the start of the episode."""
    compressed_window: int = 48
    """Number of compressed memories. A new one replaces the oldest."""

    def __post_init__(self):
        check_at_least(self, window=0, compression_rate=2, compressed_window=1)


@dataclass(frozen=True)
class GRUConfig:
    layer_norm: bool = False
    """Apply layer normalisation to the input of each recurrent layer, and of the policy and value heads."""


@dataclass(frozen=True)
class LSTMConfig:
    layer_norm: bool = True
    """Apply layer normalisation to the input of each recurrent layer, and of the policy and value heads."""


@dataclass(frozen=True)
class LRUConfig:
    min_radius: float = 0.9
    """Smallest absolute value r of the eigenvalues at the start. A state fades to a third in 1 / (1 - r) steps."""
    max_radius: float = 0.999
    """Largest absolute value of the eigenvalues at the start, below 1."""
    max_phase: float = 0.314
    """Largest phase of the eigenvalues at the start, in radians per step, at most 2 pi. Small phases suit long
    memory."""

    def __post_init__(self):
        if not 0 < self.min_radius < self.max_radius < 1:
            raise ValueError(
                "--min-radius: expected 0 < --min-radius < --max-radius < 1, "
                f"got {self.min_radius} and {self.max_radius}"
            )
        if not 0 < self.max_phase <= 2 * math.pi:
            raise ValueError(f"--max-phase: expected more than 0 and at most 2 pi, got {self.max_phase}")


@dataclass(frozen=True)
class NoMemoryConfig:
    pass
