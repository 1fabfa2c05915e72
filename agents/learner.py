"""What the learners share: settings, optimiser, schedules, minibatches, and the losses beside the policy's own.

T time steps, B environments, A actions; a minibatch is a set of b environments.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from agents.rollout import Rollout, under

ENT_COEF, FINAL_ENT_COEF = 0.01, 0.003  # entropy bonus per step where none is set and facts last ENT_HORIZON or less
ENT_HORIZON = 200  # steps. The bonus comes at every step, reward only when a fact was used: the rarer, the more the bonus outweighs it
RATE_AT_REST = 0.05
"""Learning rate of what the pressure acts on while there is none, as a fraction of that at full pressure: spans may follow the
task, but not run off on the noise of its gradient, which Adam scales up to full steps."""
REWARD_VARIANCE_FLOOR = 1e-3  # rewards that vary less are not scaled up further


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


def check_at_least(config: Any, **least: int) -> None:
    """Raises ValueError, one line, for the first of the named settings that is below its least, or no finite number."""
    for name, low in least.items():
        value = getattr(config, name)
        if not low <= value < math.inf:
            wanted = f"a finite number of at least {low}" if value == math.inf else f"at least {low}"
            raise ValueError(f"--{name.replace('_', '-')}: expected {wanted}, got {value}")


def check_above_zero(config: Any, *names: str) -> None:
    """Raises ValueError, one line, for a setting that is not above 0, or no finite number."""
    for name in names:
        value = getattr(config, name)
        if not 0 < value < math.inf:
            wanted = "a finite number" if value == math.inf else "more than 0"
            raise ValueError(f"--{name.replace('_', '-')}: expected {wanted}, got {value}")


def check_fractions(config: Any, *names: str) -> None:
    """Raises ValueError, one line, for a setting outside 0 to 1."""
    for name in names:
        if not 0 <= getattr(config, name) <= 1:
            raise ValueError(f"--{name.replace('_', '-')}: expected 0 to 1, got {getattr(config, name)}")


@dataclass(frozen=True)
class Weights:
    """What weighs the losses of one update."""

    entropy: float
    reward_variance: float
    pressure: float


class Learner:
    """Learns a policy from rollouts: `update`. A subclass says in `_learn` how often and from which policy loss."""

    Config: ClassVar[type[LearnerConfig]]
    network: ClassVar[None] = None  # it learns any of our policies; a baseline names the one that it brings

    def __init__(self, policy: Any, config: Any, num_envs: int, seed: int, horizon: int | None = None):
        """config: a `Config`; horizon: steps that facts of the task must last, None if it is not known. Raises ValueError if
        there are more minibatches than environments."""
        if config.num_minibatches > num_envs:
            raise ValueError(
                f"--num-minibatches: expected at most --num-envs ({num_envs}), since a minibatch is a set of "
                f"environments, got {config.num_minibatches}"
            )
        config = with_entropy_for(config, horizon)
        self.policy, self.config = policy, config
        self.predictor = policy.observation_predictor() if config.observation_prediction_coef else None
        groups = policy.parameter_groups(config.learning_rate)
        if self.predictor is not None:
            network = list(self.predictor.parameters())
            groups.append({"params": network, "lr": config.learning_rate, "scale": 1.0, "pressed": False})
        # AMSGrad: a solved task has small gradients, mere noise, which plain Adam would scale up to full steps. Not for
        # what is pressed: there it would remember the largest defence for ever, beside which every charge is nothing.
        groups = [{**group, "amsgrad": not group["pressed"]} for group in groups]
        self.optimizer = torch.optim.Adam(groups, betas=(0.9, config.adam_beta2), eps=config.adam_eps)
        self.generator = torch.Generator().manual_seed(seed)

    def update(self, rollout: Rollout, progress: float, pressure: float) -> dict[str, float]:
        """Learns from one rollout. progress: fraction of the training that is done; pressure: of the forgetting.
        Returns figures for the log."""
        config = self.config
        rate = _between(config.learning_rate, config.final_learning_rate, progress)
        entropy_coef = _between(config.ent_coef, config.final_ent_coef, progress)
        # What is pressed has no schedule: a task that is learned late is forgotten as fast.
        pace = config.learning_rate * max(abs(pressure), RATE_AT_REST)
        for group in self.optimizer.param_groups:
            group["lr"] = group["scale"] * (pace if group["pressed"] else rate)
        variance = float(rollout.rewards.var(correction=0).clamp(min=REWARD_VARIANCE_FLOOR))
        figures = self._learn(rollout, Weights(entropy_coef, variance, pressure))
        return {**figures, "train/learning_rate": rate, "train/ent_coef": entropy_coef}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The optimiser's state and the generator's, as tensors and JSON-able figures."""
        tensors = {"generator": self.generator.get_state()}
        for index, entry in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{index}/{name}": torch.as_tensor(value) for name, value in entry.items()}
        if self.predictor is not None:
            tensors |= {f"predictor/{name}": tensor for name, tensor in self.predictor.state_dict().items()}
        return tensors, {}

    def load_state(self, tensors: Mapping[str, Tensor], known: Mapping[str, Any]) -> None:
        """Continues from `state`."""
        self.generator.set_state(tensors["generator"])
        full = self.optimizer.state_dict()
        full["state"] = {}
        for name, tensor in under("optimizer/", tensors).items():
            index, entry = name.split("/")
            full["state"].setdefault(int(index), {})[entry] = tensor
        self.optimizer.load_state_dict(full)
        if self.predictor is not None:
            self.predictor.load_state_dict(under("predictor/", tensors))

    def _learn(self, rollout: Rollout, weights: Weights) -> dict[str, float]:
        """The optimiser steps of one rollout. Returns figures."""
        raise NotImplementedError

    def _minibatches(self, rollout: Rollout) -> Iterator[Tensor]:
        """All environments once, in random order, in `num_minibatches` sets int64 [b]."""
        order = torch.randperm(rollout.actions.shape[1], generator=self.generator).to(rollout.actions.device)
        yield from order.tensor_split(self.config.num_minibatches)

    def _scaled(self, advantages: Tensor) -> tuple[Tensor, Tensor]:
        """(advantages around 0 over their standard deviation or its floor, what they were divided by)."""
        scale = advantages.std(correction=0).clamp(min=self.config.advantage_std_floor)
        return (advantages - advantages.mean()) / scale, scale

    def _descend(
        self, part: Rollout, out: Any, policy_loss: Tensor, targets: Tensor, weights: Weights
    ) -> dict[str, float]:
        """One optimiser step on a minibatch [T,b] that was unrolled to `out`; targets: [T,b] of the values."""
        config = self.config
        value_loss = (out.values - targets).square().mean() / 2
        log_p = torch.log_softmax(out.logits, -1)
        entropy = -(log_p.exp() * log_p).sum(-1).mean()
        predicted = out.rewards.gather(-1, part.actions[..., None]).squeeze(-1)  # [T,b]
        reward_loss = (predicted - part.rewards).square().mean() / (2 * weights.reward_variance)
        loss = policy_loss + config.vf_coef * value_loss - weights.entropy * entropy + out.memory_loss
        loss = loss + config.reward_prediction_coef * reward_loss
        figures: dict[str, float] = {}
        if self.predictor is not None:
            observation_loss = self._observation_loss(part, out)
            loss = loss + config.observation_prediction_coef * observation_loss
            figures["train/observation_prediction_loss"] = float(observation_loss.detach())
        if not torch.isfinite(loss):
            raise RuntimeError(
                f"loss: expected a finite number, got {float(loss.detach())}: a lower --learning-rate may help"
            )
        self.optimizer.zero_grad()
        loss.backward()
        norms = [nn.utils.clip_grad_norm_(g["params"], config.max_grad_norm) for g in self.optimizer.param_groups]
        self.optimizer.step()
        with torch.no_grad():
            return figures | {
                "train/policy_gradient_loss": float(policy_loss),
                "train/value_loss": float(value_loss),
                "train/entropy_loss": float(-entropy),
                "train/memory_loss": float(out.memory_loss),
                "train/reward_prediction_loss": float(reward_loss),
                "train/grad_norm": float(norms[0]),
            }

    def _observation_loss(self, part: Rollout, out: Any) -> Tensor:
        """How badly the next observations were predicted, in nats. What follows an episode's end is left out."""
        on = ~part.episode_start[1:]  # [T-1,b]: the episode goes on
        following = {name: entry[1:][on] for name, entry in part.observation.items()}
        return self.predictor.loss(out.features[:-1][on], part.actions[:-1][on], following)


def log_prob(logits: Tensor, actions: Tensor) -> Tensor:
    """Of the actions taken: [T,B,A], [T,B] -> [T,B]."""
    return torch.log_softmax(logits, -1).gather(-1, actions[..., None]).squeeze(-1)


def explained_variance(values: Tensor, targets: Tensor) -> float:
    """The share of the targets' variance that the values explain; NaN if they do not vary."""
    variance = targets.var(correction=0)
    return float(1 - (targets - values).var(correction=0) / variance) if variance > 0 else float("nan")


def means(steps: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The figures of several optimiser steps, averaged by name over those that have it."""
    gathered: dict[str, list[float]] = {}
    for step in steps:
        for name, value in step.items():
            gathered.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in gathered.items()}


def _between(start: float, end: float, progress: float) -> float:
    return start + (end - start) * min(max(progress, 0.0), 1.0)
