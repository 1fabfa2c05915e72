"""Settings of the learning algorithms and of forgetting. Their fields are command-line flags.

Nothing here imports torch, so that a command line answers at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from expire_span_rl.checks import check_above_zero, check_at_least, check_at_most, check_fractions

ENT_COEF = 0.01
"""Default weight of the entropy bonus at the start, where facts last ENT_HORIZON steps or less."""
FINAL_ENT_COEF = 0.003
"""The same at the end of the training."""
ENT_HORIZON = 200
"""Where facts last more steps than this, the default weights are smaller. The bonus comes at every step, but reward
only when a fact is used. The rarer that is, the more the bonus would outweigh the reward."""
MOST_EPOCHS = 10_000
"""Largest number of passes over a rollout."""
LARGEST_FLOAT = 1e37
"""Largest finite number of settings that PyTorch takes as float32, which ends at 3.4e38. Adam's first step is ten times
its learning rate."""


def _check_float32(config: Any, *names: str) -> None:
    """Raises ValueError, one line, for the first of the named settings above LARGEST_FLOAT and not infinite: the first
    update would end in an error of PyTorch's that does not name it."""
    check_at_most(config, **{name: LARGEST_FLOAT for name in names if getattr(config, name) != math.inf})


@dataclass(frozen=True)
class OptimizerConfig:
    """Settings of all learners."""

    num_steps: int = 64
    """Steps that each environment is played between two updates."""
    num_minibatches: int = 8
    """Minibatches per pass over a rollout. Each holds whole environments, so memories are never cut."""
    learning_rate: float = 1e-3
    """Adam's learning rate at the start."""
    final_learning_rate: float = 0.0
    """Adam's learning rate at the end of the training. It falls linearly in between."""
    adam_eps: float = 1e-8
    """Adam's epsilon. Attention weights have gradients near 1e-7 here, which the usual 1e-5 would drown."""
    adam_beta2: float = 0.99
    """Adam's decay rate of squared gradients. The usual 0.999 takes too large a step when gradients grow suddenly."""
    amsgrad: bool = False
    """Divide by the largest squared gradient so far (AMSGrad). Learning is slower after large gradients."""
    max_grad_norm: float = 0.5
    """Largest gradient norm of each parameter group. Longer gradients are scaled down to it."""

    def __post_init__(self):
        check_at_least(self, num_steps=1, num_minibatches=1, learning_rate=0, final_learning_rate=0)
        check_above_zero(self, "adam_eps", "max_grad_norm")
        if not 0 <= self.adam_beta2 < 1:
            raise ValueError(f"--adam-beta2: expected at least 0 and below 1, got {self.adam_beta2}")


@dataclass(frozen=True)
class LearnerConfig(OptimizerConfig):
    """Settings of learners from rewards."""

    gamma: float = 0.99
    """Discount factor of the rewards."""
    ent_coef: float | None = None
    """Weight of the entropy bonus at the start. None: 0.01. Where the environment says that something must be
    remembered for more than 200 steps, it is less in proportion."""
    final_ent_coef: float | None = None
    """Weight of the entropy bonus at the end of the training. It falls linearly in between. None: as for --ent-coef,
    from 0.003."""
    log_barrier_coef: float = 0.001
    """Weight of a second bonus: the mean logarithm of the probabilities of all actions, or of more than seven the sum
    over seven. It falls without end as an action becomes impossible, so that the actions of a rarely visited state are
    tried again. Its weight falls linearly to 0 at the end of the training, and is multiplied by the squared share of
    the hardest episodes that fail, where the environment reports success. Discrete actions only."""
    novelty_coef: float = 0.1
    """Intrinsic reward, in units of the typical discounted return, for steps that lead to an observation which their
    episode has not had: more the fewer of the latest episodes had it, and less what steps get on average. It lets an
    agent look around before it knows what for, and falls like --log-barrier-coef. Where episodes show so much that it
    would be worth more than eight typical returns, the weight is less. Observations are compared exactly: noise makes
    all of them new, and then nothing is added."""
    normalize_rewards: bool = True
    """Divide rewards by the size of the discounted returns so far, so that no setting depends on their scale."""
    time_aware_value: bool = True
    """Let the value function know how many steps ago the episode began. The policy does not: it acts in long episodes
    as in short ones."""
    vf_coef: float = 0.5
    """Weight of the value loss."""
    reward_prediction_coef: float = 0.5
    """Weight of an auxiliary loss: predict the reward of each action (squared error, divided by the variance of the
    rewards). 0: none."""
    action_baseline: bool = False
    """Learn from the rewards that are predicted of all actions instead of from the predicted part of the one reward
    that was got. The expected gradient is the same, with less noise where the prediction is good. Without
    --reward-prediction-coef nothing is predicted. An agent of your own that does not use it refuses it."""
    observation_prediction_coef: float = 0.0
    """Weight of an auxiliary loss: predict the observation that follows each action (cross-entropy, in nats). It
    teaches the memory which action led where, long before rewards do. 0: none."""
    advantage_std_floor: float = 0.15
    """Least standard deviation by which advantages are divided. Once a task is solved its advantages are mostly noise,
    which a smaller divisor would amplify."""

    def __post_init__(self):
        super().__post_init__()
        check_at_least(self, vf_coef=0, novelty_coef=0, log_barrier_coef=0)
        check_at_least(self, reward_prediction_coef=0, observation_prediction_coef=0)
        check_at_least(self, **{name: 0 for name in ("ent_coef", "final_ent_coef") if getattr(self, name) is not None})
        check_above_zero(self, "advantage_std_floor")
        _check_float32(self, "advantage_std_floor")
        check_fractions(self, "gamma")

    @property
    def uses_action_baseline(self) -> bool:
        """Whether there are predicted rewards to learn from."""
        return bool(self.action_baseline and self.reward_prediction_coef)


def with_default_entropy(config: Any, horizon: int | None) -> Any:
    """The config with default weights of the entropy bonus where it has none. horizon: steps for which the task's facts
    must be remembered, None if unknown. Beyond ENT_HORIZON the defaults are less in proportion."""
    scale = min(1.0, ENT_HORIZON / horizon) if horizon else 1.0
    defaults = {"ent_coef": scale * ENT_COEF, "final_ent_coef": scale * FINAL_ENT_COEF}
    return replace(config, **{name: value for name, value in defaults.items() if getattr(config, name) is None})


@dataclass(frozen=True)
class PPOConfig(LearnerConfig):
    """Settings of PPO."""

    update_epochs: int = 2
    """Passes over each rollout."""
    gae_lambda: float = 0.9
    """Lambda of generalised advantage estimation (GAE)."""
    adaptive_lambda: bool = True
    """Credit actions with a smaller lambda where the policy's gradient is then measured to be nearer to what it is
    expected to be with a lambda of 1, because there is less noise in it. The values still learn with --gae-lambda."""
    clip_coef: float = 0.2
    """PPO's clip range: how far the probability ratio may move from 1."""
    target_kl: float = 0.03
    """An update ends early once the approximate KL divergence from the policy that collected the rollout exceeds this.
    A step that leads to more than four times as much is taken back."""

    def __post_init__(self):
        super().__post_init__()
        check_at_least(self, update_epochs=1)
        check_at_most(self, update_epochs=MOST_EPOCHS)
        check_above_zero(self, "clip_coef", "target_kl")
        _check_float32(self, "clip_coef")
        check_fractions(self, "gae_lambda")


@dataclass(frozen=True)
class ImpalaConfig(LearnerConfig):
    """Settings of IMPALA and of its actors."""

    num_minibatches: int = 4
    """Minibatches of a rollout. Each holds whole environments and is used once."""
    learning_rate: float = 5e-4
    """Adam's learning rate at the start. Half of PPO's, since no clipping bounds an update: with 1e-3 and rollouts
    three updates old, a run lost half-way what it had learned."""
    trace_lambda: float = 0.9
    """Lambda of the V-trace targets (the paper's remark 2; its experiments use 1)."""
    rho_clip: float = 1.0
    """Largest importance weight rho of V-trace: it decides which policy's value function is learned."""
    c_clip: float = 1.0
    """Largest importance weight c of V-trace: it decides how far back a correction reaches."""
    num_actors: int = 0
    """Ray actors that play while the learner learns, each with --num-envs environments. Needs Ray: pip install
    "expire-span-rl[ray]". 0: one process plays and learns in turn, or with --ray-address one actor per free CPU."""
    ray_address: str = ""
    """Ray cluster to join: host:port, or auto. Default: Ray is started on this machine for the run."""
    refresh_memory: int = 0
    """With actors: steps before each rollout whose memories are computed again with the learner's newer weights,
    rounded up to whole rollouts. 0: none."""

    def __post_init__(self):
        super().__post_init__()
        check_fractions(self, "trace_lambda")
        check_at_least(self, num_actors=0, refresh_memory=0)
        if self.refresh_memory and not self.distributed:
            raise ValueError("--refresh-memory: expected --num-actors or --ray-address with it, got neither")
        check_above_zero(self, "c_clip")
        if not self.rho_clip >= self.c_clip:
            raise ValueError(f"--rho-clip: expected at least --c-clip ({self.c_clip}), got {self.rho_clip}")
        _check_float32(self, "rho_clip", "c_clip")

    @property
    def distributed(self) -> bool:
        """Whether rollouts come from actors."""
        return bool(self.num_actors or self.ray_address)


@dataclass(frozen=True)
class SupervisedConfig(OptimizerConfig):
    """Settings of supervised learning."""

    num_steps: int = 64
    """Steps of a block: the steps that every stream goes on between two updates."""
    num_minibatches: int = 8
    """Minibatches of a block. Each holds whole streams and is used once."""
    amsgrad: bool = False
    """Divide by the largest squared gradient so far (AMSGrad)."""
    rest_coef: float = 1.0
    """Weight of the loss at steps that ask for nothing, where silence is right."""

    # Settings that only learners from rewards need.
    gamma: ClassVar[float] = 1.0
    ent_coef: ClassVar[float] = 0.0
    final_ent_coef: ClassVar[float] = 0.0
    log_barrier_coef: ClassVar[float] = 0.0
    novelty_coef: ClassVar[float] = 0.0
    normalize_rewards: ClassVar[bool] = False
    time_aware_value: ClassVar[bool] = False
    observation_prediction_coef: ClassVar[float] = 0.0

    def __post_init__(self):
        super().__post_init__()
        check_at_least(self, rest_coef=0)


@dataclass(frozen=True)
class ForgettingConfig:
    """Settings of the forgetting controller."""

    forgetting: bool = True
    """Shorten memory spans once the task is solved, so that fewer memories stay live. --no-forgetting: spans are never
    penalised."""
    memory_budget: float = 0.0
    """Target for the mean number of live memories per layer, approached while success holds. 0: as few as success
    allows."""
    success_target: float = 0.98
    """Success rate on the hard episodes (the hardest quarter, or all where the environment names no difficulty_key)
    above which spans are penalised. In an environment that reports no success: the return, as a fraction of the way
    from the first to the best, less what may be chance."""
    success_slack: float = 0.03
    """Shortfall below the success target at which spans are lengthened at full strength. Less shortfall lengthens them
    less."""
    pressure_rise: float = 0.05
    """Increase of the pressure per update while success holds. Pressure, 0 to 1, is the strength with which spans are
    shortened. A training of N < 250 updates takes 250 / N times as much."""
    full_evidence: int = 5
    """Hard episodes that an update must bring for the full --pressure-rise. With fewer, the pressure rises in
    proportion: with long episodes, the effect of forgetting shows later."""
    fixed_pressure: float = 0.0
    """Pressure at every update, whatever success is. 0: the pressure follows success."""
    loss_tolerance: float = 0.0
    """Above 0, in supervised training: the constraint is the loss instead of success. The moving average of the bits
    per answer may exceed its best by at most this fraction. 0: the success target."""
    min_hard_episodes: int = 100
    """The success rate, or the mean return, is taken over so many of the latest hard episodes, or over all that the
    present policy played in the update if those are more. It is undefined until that many have ended."""

    def __post_init__(self):
        check_at_least(self, full_evidence=1, min_hard_episodes=1, memory_budget=0, loss_tolerance=0)
        check_above_zero(self, "success_slack", "pressure_rise")
        check_fractions(self, "fixed_pressure")
        if not 0 < self.success_target <= 1:
            raise ValueError(f"--success-target: expected a fraction up to 1, got {self.success_target}")


@dataclass(frozen=True)
class SB3Config:
    """Settings of the baselines, Stable-Baselines3's PPO and RecurrentPPO."""

    num_steps: int = 64
    """Steps that each environment is played between two updates (Stable-Baselines3's n_steps)."""
    batch_size: int = 1024
    """Steps in a minibatch."""
    n_epochs: int = 4
    """Passes over each rollout."""
    learning_rate: float = 1e-3
    """Adam's learning rate at the start. It falls linearly to 0."""
    gamma: float = 0.99
    """Discount factor of the rewards."""
    gae_lambda: float = 0.95
    """Lambda of generalised advantage estimation (GAE)."""
    clip_range: float = 0.2
    """PPO's clip range: how far the probability ratio may move from 1."""
    ent_coef: float = 0.01
    """Weight of the entropy bonus."""
    vf_coef: float = 0.5
    """Weight of the value loss."""
    max_grad_norm: float = 0.5
    """Largest gradient norm. Longer gradients are scaled down to it."""
    width: int = 64
    """Width of the encoder, of the hidden layers and of the LSTM."""

    def __post_init__(self):
        check_at_least(self, num_steps=1, n_epochs=1, width=1, learning_rate=0, ent_coef=0, vf_coef=0)
        check_above_zero(self, "clip_range", "max_grad_norm")
        check_fractions(self, "gamma", "gae_lambda")
        check_at_most(self, n_epochs=MOST_EPOCHS)
        check_at_least(self, batch_size=2)  # advantages are normalised over a minibatch
        _check_float32(self, "learning_rate", "clip_range")
