"""Settings of the learning algorithms and of forgetting. Their fields are command-line flags.

Nothing here imports torch, so that a command line answers at once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from expire_span_rl.checks import check_above_zero, check_at_least, check_fractions

ENT_COEF, FINAL_ENT_COEF = 0.01, 0.003  # entropy bonus per step where none is set and facts last ENT_HORIZON or less
ENT_HORIZON = 200  # steps. The bonus comes at every step, reward only when a fact was used: the rarer, the more the bonus outweighs it


@dataclass(frozen=True)
class LearnerConfig:
    num_steps: int = 64
    """Time steps per rollout and environment."""
    num_minibatches: int = 8
    """Minibatches per pass over a rollout, each a set of environments."""
    learning_rate: float = 1e-3
    """Adam's learning rate at the start."""
    final_learning_rate: float = 0.0
    """Adam's learning rate at the end; linear in between."""
    adam_eps: float = 1e-8
    """Adam's epsilon. Gradients of attention weights are near 1e-7 here: the usual 1e-5 would freeze them."""
    adam_beta2: float = 0.99
    """Adam's decay of squared gradients. Below 0.999 so that after a quiet spell a sudden gradient makes no leap."""
    gamma: float = 0.99
    """Discount."""
    ent_coef: float | None = None
    """Entropy bonus per step at the start. None: 0.01, and less where a fact must last more than 200 steps, in proportion."""
    final_ent_coef: float | None = None
    """Entropy bonus at the end; linear in between. None: 0.003, and less where a fact must last more than 200 steps."""
    vf_coef: float = 0.5
    """Weight of the value loss."""
    reward_prediction_coef: float = 0.5
    """Weight of an auxiliary loss: predict the reward of the action taken (squared error over the rewards' variance)."""
    observation_prediction_coef: float = 0.0
    """Weight of an auxiliary loss: predict the observation that follows the action taken (nats). It teaches memory what led
    where, long before reward does; 0: none."""
    max_grad_norm: float = 0.5
    """Gradient norm to which each parameter group is clipped."""
    advantage_std_floor: float = 0.15
    """Advantages are divided by their standard deviation, but by no less than this: a solved task is not scaled up."""

    def __post_init__(self):
        check_at_least(self, num_steps=1, num_minibatches=1, learning_rate=0, final_learning_rate=0, vf_coef=0)
        check_at_least(self, reward_prediction_coef=0, observation_prediction_coef=0)
        check_at_least(self, **{name: 0 for name in ("ent_coef", "final_ent_coef") if getattr(self, name) is not None})
        check_above_zero(self, "adam_eps", "max_grad_norm", "advantage_std_floor")
        check_fractions(self, "gamma")
        if not 0 <= self.adam_beta2 < 1:
            raise ValueError(f"--adam-beta2: expected at least 0 and below 1, got {self.adam_beta2}")


def with_entropy_for(config: Any, horizon: int | None) -> Any:
    """The config with entropy bonuses where none are set: the usual ones for tasks whose facts must last `horizon` steps
    up to ENT_HORIZON (None: unknown), less in proportion beyond."""
    scale = min(1.0, ENT_HORIZON / horizon) if horizon else 1.0
    usual = {"ent_coef": scale * ENT_COEF, "final_ent_coef": scale * FINAL_ENT_COEF}
    return replace(config, **{name: value for name, value in usual.items() if getattr(config, name) is None})


@dataclass(frozen=True)
class PPOConfig(LearnerConfig):
    update_epochs: int = 2
    """Passes over a rollout."""
    gae_lambda: float = 0.9
    """Lambda of generalised advantage estimation."""
    clip_coef: float = 0.2
    """Clipping of the probability ratio."""
    target_kl: float = 0.03
    """An update ends early when the approximate KL divergence from the acting policy exceeds this."""

    def __post_init__(self):
        super().__post_init__()
        check_at_least(self, update_epochs=1)
        check_above_zero(self, "clip_coef", "target_kl")
        check_fractions(self, "gae_lambda")


@dataclass(frozen=True)
class ImpalaConfig(LearnerConfig):
    num_minibatches: int = 4
    """Minibatches of a rollout, each a set of environments that is used once."""
    learning_rate: float = 5e-4
    """Adam's learning rate at the start. Half of PPO's: nothing here holds a step back, and with a policy lag of three
    updates 1e-3 forgot in the middle of a run what it had learned."""
    trace_lambda: float = 0.9
    """Lambda of the V-trace targets (remark 2 of the paper, which has 1)."""
    rho_clip: float = 1.0
    """Clipping of the importance weights that decide whose values are learned."""
    c_clip: float = 1.0
    """Clipping of the importance weights that decide how far back corrections reach."""
    num_actors: int = 0
    """Ray actors, each with --num-envs environments, that act while the learner learns (pip install -r
    requirements-ray.txt). 0: act and learn in turn in one process; with --ray-address one actor per free CPU."""
    ray_address: str = ""
    """A Ray cluster to join, host:port or auto. Default: Ray is started on this machine for the run."""
    refresh_memory: int = 0
    """With actors: steps, in whole rollouts, over which memories are computed anew by the learner's weights."""

    def __post_init__(self):
        super().__post_init__()
        check_fractions(self, "trace_lambda")
        check_at_least(self, num_actors=0, refresh_memory=0)
        if self.refresh_memory and not self.distributed:
            raise ValueError("--refresh-memory: expected --num-actors or --ray-address with it, got neither")
        check_above_zero(self, "c_clip")
        if not self.rho_clip >= self.c_clip:
            raise ValueError(f"--rho-clip: expected at least --c-clip ({self.c_clip}), got {self.rho_clip}")

    @property
    def distributed(self) -> bool:
        """Whether rollouts come from actors."""
        return bool(self.num_actors or self.ray_address)


@dataclass(frozen=True)
class ForgettingConfig:
    forgetting: bool = True
    """Bring live memories down once the task is solved. --no-forgetting: never any pressure."""
    memory_budget: float = 0.0
    """Mean live memories per layer to come down to while success holds. 0: as few as success allows."""
    success_target: float = 0.98
    """Success on the hard episodes (the longest quarter) above which memories are pressed. Without success: the
    fraction of the way from the first to the best return."""
    success_slack: float = 0.03
    """How far below the target success may fall before spans are lengthened at full strength."""
    pressure_rise: float = 0.05
    """Increase of the pressure per update while success holds, where each brings `full_evidence` hard episodes."""
    full_evidence: int = 5
    """Hard episodes per update from which on the pressure goes its full way; with fewer it goes less, in proportion: where
    episodes are long, what forgetting does to success is seen later."""
    min_hard_episodes: int = 100
    """The latest hard episodes, by whose success the target is judged; before there were so many it is not known."""

    def __post_init__(self):
        check_at_least(self, full_evidence=1, min_hard_episodes=1, memory_budget=0)
        check_above_zero(self, "success_slack", "pressure_rise")
        if not 0 < self.success_target <= 1:
            raise ValueError(f"--success-target: expected a fraction up to 1, got {self.success_target}")


@dataclass(frozen=True)
class SB3Config:
    num_steps: int = 64
    """Time steps per rollout and environment (Stable-Baselines3: n_steps)."""
    batch_size: int = 1024
    """Steps of a minibatch."""
    n_epochs: int = 4
    """Passes over a rollout."""
    learning_rate: float = 1e-3
    """Adam's learning rate at the start; it falls linearly to 0."""
    gamma: float = 0.99
    """Discount."""
    gae_lambda: float = 0.95
    """Lambda of generalised advantage estimation."""
    clip_range: float = 0.2
    """Clipping of the probability ratio."""
    ent_coef: float = 0.01
    """Entropy bonus."""
    vf_coef: float = 0.5
    """Weight of the value loss."""
    max_grad_norm: float = 0.5
    """Gradient norm to which gradients are clipped."""
    width: int = 64
    """Width of the encoder, of the hidden layers and of the LSTM."""

    def __post_init__(self):
        check_at_least(self, num_steps=1, n_epochs=1, width=1, learning_rate=0, ent_coef=0, vf_coef=0)
        check_above_zero(self, "clip_range", "max_grad_norm")
        check_fractions(self, "gamma", "gae_lambda")
        check_at_least(self, batch_size=2)  # advantages are normalised over a minibatch
