"""What the learners share: settings, optimiser, schedules, minibatches, and the losses besides the policy's own.

T time steps, B environments, b of them in a minibatch, D features, P parameters of the action distribution, G outputs
of the reward head.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from expire_span_rl.agents.action_baseline import ActionBaseline, action_baseline
from expire_span_rl.agents.entries import REWARDS, AgentInputs
from expire_span_rl.agents.guard import Backup, NotFinite, check_modules, first_not_finite
from expire_span_rl.agents.novelty import NoveltyBonus
from expire_span_rl.agents.returns import td_errors
from expire_span_rl.agents.reward_scale import RewardScale
from expire_span_rl.agents.rollout import Rollout, RolloutSource, select_prefix
from expire_span_rl.agents.schedules import Schedules
from expire_span_rl.agents.settings import OptimizerConfig, with_default_entropy
from expire_span_rl.checks import shown
from expire_span_rl.protocols import HasState, LearningPolicy, StatefulModule

RESTING_RATE = 0.05
"""Learning rate of the span parameters without pressure, as a fraction of their rate at full pressure. Spans can then
follow the task, but cannot drift far on the noise of its gradient, which Adam scales up to full steps."""
REWARD_VARIANCE_FLOOR = 1e-3
"""Smallest variance of rewards by which the reward prediction loss is divided."""


@dataclass(frozen=True)
class LossWeights:
    """The weights of the losses of one update."""

    entropy: float
    """Weight of the entropy bonus."""
    log_barrier: float
    """Weight of the log barrier. 0: none."""
    reward_variance: float
    """Variance of the rollout's rewards, by which the reward prediction loss is divided."""
    pressure: float
    """The forgetting controller's pressure, in [-1, 1]."""


class Learner:
    """Learns a policy from rollouts, by `update`. A subclass implements `_learn`: the number of passes over a rollout,
    and the policy loss."""

    Config: ClassVar[type[OptimizerConfig]]
    learns_from: ClassVar[str] = REWARDS
    supports_action_baseline: ClassVar[bool] = False
    """Whether it learns from `_action_baseline`. Otherwise --action-baseline is refused."""

    def __init__(self, policy: LearningPolicy, config: Any, num_envs: int, seed: int, horizon: int | None = None):
        """config: a `Config`; horizon: steps for which the task's facts must be remembered, None if unknown. Raises
        ValueError if there are more minibatches than environments, and for --action-baseline where it is not used."""
        if config.num_minibatches > num_envs:
            raise ValueError(
                f"--num-minibatches: expected at most --num-envs ({num_envs}), since a minibatch is a set of "
                f"environments, got {shown(str(config.num_minibatches), 40)}"
            )
        if getattr(config, "action_baseline", False) and not self.supports_action_baseline:
            raise ValueError(
                f"--action-baseline: expected an agent that uses it (ppo, impala, or a class of your own with "
                f"supports_action_baseline = True), got {type(self).__name__}"
            )
        config = with_default_entropy(config, horizon)
        self.policy = policy
        self.config = config
        self.predictor = policy.observation_predictor() if config.observation_prediction_coef else None
        self.optimizer = self._make_optimizer()
        self.generator = torch.Generator().manual_seed(seed)
        self.check_deadline: Callable[[], None] = lambda: None
        """Called before each minibatch. If it raises, the update ends."""
        self.failure_rate = 1.0
        """Share of the latest hard episodes that failed, 1 where that is not known. The log barrier and the reward for
        new observations are multiplied by its square: where the agent succeeds, nothing else needs to be tried. They
        cause failures themselves, in proportion to their weight in a long episode. With the square, few failures become
        fewer; in proportion to the share, they could keep themselves alive."""
        starts = {"learning_rate": config.learning_rate, "ent_coef": config.ent_coef}
        ends = {"learning_rate": config.final_learning_rate, "ent_coef": config.final_ent_coef}
        log_barrier_coef = 0.0 if policy.actions.continuous else config.log_barrier_coef
        fading = {"novelty_coef": config.novelty_coef, "log_barrier_coef": log_barrier_coef}
        for name in (name for name, coef in fading.items() if coef):
            starts[name], ends[name] = fading[name], 0.0
        self.schedules = Schedules(starts, ends)
        self.reward_scale = RewardScale(config.gamma) if config.normalize_rewards else None
        self.novelty_bonus = NoveltyBonus()

    @property
    def needs_reward_outputs(self) -> bool:
        """Whether its rollouts must have what the reward head of the policy that acted put out, `reward_outputs`."""
        return bool(getattr(self.config, "uses_action_baseline", False))

    def make_source(self, inputs: AgentInputs) -> RolloutSource | None:
        """The source of its rollouts. None: the trainer collects them in its own process."""
        if not getattr(self.config, "distributed", False):
            return None
        return inputs.make_actors(self.policy, self.needs_reward_outputs)

    def _make_optimizer(self) -> torch.optim.Adam:
        """Adam over the policy's parameter groups and the predictor's parameters."""
        config = self.config
        groups = self.policy.parameter_groups(config.learning_rate)
        if self.predictor is not None:
            parameters = list(self.predictor.parameters())
            groups.append({"params": parameters, "lr": config.learning_rate, "scale": 1.0, "span_parameters": False})
        # A solved task has small gradients, mostly noise, which plain Adam would scale up to full steps. AMSGrad does
        # not. The span parameters learn by plain Adam, since AMSGrad's running maximum would suppress later, smaller
        # updates.
        groups = [{**group, "amsgrad": config.amsgrad and not group["span_parameters"]} for group in groups]
        betas = (0.9, config.adam_beta2)
        return torch.optim.Adam(groups, betas=betas, eps=config.adam_eps, fused=True)

    def update(self, rollout: Rollout, progress: float, pressure: float) -> dict[str, float]:
        """Learns from one rollout, and returns metrics for the log. progress: fraction of the schedules that is over;
        pressure: the forgetting controller's. Raises NotFinite, and whatever `check_deadline` raises. The update is
        then half done, and must be taken back (`backup`)."""
        settings = self._set_rates(progress, pressure)
        scale_metrics = {}
        if self.reward_scale is not None:
            rollout = self.reward_scale.apply(rollout)
            scale_metrics = {"train/reward_scale": self.reward_scale.value}
        failures = self.failure_rate**2
        if "novelty_coef" in settings:
            rollout, novelty_metrics = self.novelty_bonus.apply(rollout, failures * settings["novelty_coef"])
            scale_metrics |= novelty_metrics
        variance = float(rollout.rewards.var(correction=0).clamp(min=REWARD_VARIANCE_FLOOR))
        weights = LossWeights(
            entropy=settings["ent_coef"],
            log_barrier=failures * settings.get("log_barrier_coef", 0.0),
            reward_variance=variance,
            pressure=pressure,
        )
        return {
            **self._learn(rollout, weights),
            **scale_metrics,
            "train/learning_rate": settings["learning_rate"],
            "train/ent_coef": settings["ent_coef"],
        }

    def _set_rates(self, progress: float, pressure: float) -> dict[str, float]:
        """Sets the optimiser's learning rates. Returns the scheduled settings at `progress`."""
        settings = self.schedules.values(progress)
        # The span parameters have no schedule, so that a task that is learned late is forgotten as fast.
        span_rate = self.config.learning_rate * max(abs(pressure), RESTING_RATE)
        for group in self.optimizer.param_groups:
            group["lr"] = group["scale"] * (span_rate if group["span_parameters"] else settings["learning_rate"])
        return settings

    def backup(self) -> Backup:
        """A copy of what `update` changes: weights, statistics, and the optimiser's state."""
        return Backup({**self._modules, **self._statistics}, self.optimizer)

    def check_finite(self) -> None:
        """Raises NotFinite for weights that diverged and for statistics that are not finite."""
        check_modules(self._modules)

    @property
    def _statistics(self) -> Mapping[str, HasState]:
        """What is counted of rollouts, by name."""
        scale = {} if self.reward_scale is None else {"reward_scale": self.reward_scale}
        return {"novelty_bonus": self.novelty_bonus, **scale}

    @property
    def _modules(self) -> Mapping[str, StatefulModule]:
        return {"policy": self.policy} | ({} if self.predictor is None else {"predictor": self.predictor})

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The learner's state besides the policy, as tensors and JSON-able metadata."""
        tensors = {"generator": self.generator.get_state()}
        for index, entry in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{index}/{name}": torch.as_tensor(value) for name, value in entry.items()}
        if self.predictor is not None:
            tensors |= {f"predictor/{name}": tensor for name, tensor in self.predictor.state_dict().items()}
        for part, statistics in self._statistics.items():
            tensors |= {f"{part}/{name}": tensor for name, tensor in statistics.state_dict().items()}
        return tensors, {}

    def _check_optimizer(self, state: Mapping[int, Mapping[str, Tensor]]) -> None:
        """Raises RuntimeError, one line, for a saved state that Adam cannot continue from. Adam itself accepts any.
        state: tensors by the parameter's index and their name."""
        parameters = [(p, group["amsgrad"]) for group in self.optimizer.param_groups for p in group["params"]]
        for index, entries in state.items():
            parameter, amsgrad = parameters[index] if 0 <= index < len(parameters) else (None, False)
            shapes = {name: tuple(tensor.shape) for name, tensor in entries.items()}
            averages = ("exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if amsgrad else []))
            if parameter is None or shapes != {"step": (), **dict.fromkeys(averages, tuple(parameter.shape))}:
                raise RuntimeError(f"optimizer/{index}: expected Adam's state of a parameter, got {shapes}")

    def load_state(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
        """Continues from `state`. Raises RuntimeError, KeyError, TypeError or ValueError for anything else."""
        self.generator.set_state(tensors["generator"])
        optimizer_state = self.optimizer.state_dict()
        optimizer_state["state"] = {}
        for name, tensor in select_prefix("optimizer/", tensors).items():
            index, entry = name.split("/")
            optimizer_state["state"].setdefault(int(index), {})[entry] = tensor
        self._check_optimizer(optimizer_state["state"])
        self.optimizer.load_state_dict(optimizer_state)
        if self.predictor is not None:
            self.predictor.load_state_dict(select_prefix("predictor/", tensors))
        for part, statistics in self._statistics.items():
            saved = select_prefix(f"{part}/", tensors)
            if saved or statistics is self.reward_scale:  # checkpoints from before 29 November 2026 have no others
                statistics.load_state_dict(saved)

    def _learn(self, rollout: Rollout, weights: LossWeights) -> dict[str, float]:
        """Takes the optimiser steps of one rollout. Returns metrics."""
        raise NotImplementedError

    def _minibatches(self, rollout: Any) -> Iterator[Tensor]:
        """All environments once, in random order, as `num_minibatches` sets of indices, int64 [b] each."""
        order = torch.randperm(rollout.actions.shape[1], generator=self.generator).to(rollout.actions.device)
        for rows in order.tensor_split(self.config.num_minibatches):
            self.check_deadline()
            yield rows

    def _normalize_advantages(self, advantages: Tensor) -> tuple[Tensor, Tensor]:
        """(advantages minus their mean, divided by their standard deviation or its floor; the divisor)."""
        scale = advantages.std(correction=0).clamp(min=self.config.advantage_std_floor)
        return (advantages - advantages.mean()) / scale, scale

    def _action_baseline(
        self,
        part: Rollout,
        outputs: Tensor,
        logits: Tensor,
        values: Tensor,
        following: Tensor,
        weights: Tensor | None = None,
    ) -> ActionBaseline | None:
        """The action-dependent baseline of T steps of B environments, None if there is none. outputs [T,B,G] of the
        reward head, logits [T,B,P] and values [T,B]: of the policy whose baseline it is; following: [T,B] values of the
        next observations; weights: as for `action_baseline`."""
        if not self.config.uses_action_baseline:
            return None
        errors = td_errors(part.rewards, values, following, part.terminated, self.config.gamma)
        return action_baseline(self.policy, outputs, logits, part.actions, part.rewards, errors, weights)

    def _descend(
        self, part: Rollout, out: Any, policy_loss: Tensor, targets: Tensor, weights: LossWeights
    ) -> dict[str, Tensor]:
        """One optimiser step on the policy loss plus the losses of value, entropy, memory and reward prediction. part:
        a minibatch [T,b]; out: its unroll; targets: [T,b] of the values. Returns metrics, scalars each."""
        config = self.config
        value_loss = (out.values - targets).square().mean() / 2
        actions = self.policy.actions
        entropy = actions.entropy(out.logits).mean()
        predicted_rewards = self.policy.predicted_rewards(out.rewards, part.actions)  # [T,b]
        reward_loss = (predicted_rewards - part.rewards).square().mean() / (2 * weights.reward_variance)
        loss = policy_loss + config.vf_coef * value_loss - weights.entropy * entropy + out.memory_loss
        loss = loss + config.reward_prediction_coef * reward_loss
        metrics: dict[str, Tensor] = {}
        if weights.log_barrier:
            log_barrier = actions.log_barrier(out.logits).mean()
            loss = loss - weights.log_barrier * log_barrier
            metrics["train/log_barrier_loss"] = -log_barrier
        if self.predictor is not None:
            observation_loss = self._observation_loss(self.predictor, part, out)
            loss = loss + config.observation_prediction_coef * observation_loss
            metrics["train/observation_prediction_loss"] = observation_loss
        terms = {
            "rewards": part.rewards,
            "logits": out.logits,
            "values": out.values,
            "value targets": targets,
            "predicted rewards": predicted_rewards,
            "policy loss": policy_loss,
            "value loss": value_loss,
            "memory loss": out.memory_loss,
        }
        metrics |= {
            "train/policy_gradient_loss": policy_loss,
            "train/value_loss": value_loss,
            "train/entropy_loss": -entropy,
            "train/memory_loss": out.memory_loss,
            "train/reward_prediction_loss": reward_loss,
            "train/grad_norm": self._optimize(loss, part.observation, terms),
        }
        return {name: metric.detach() for name, metric in metrics.items()}

    def _optimize(self, loss: Tensor, observation: Mapping[str, Tensor], terms: Mapping[str, Tensor]) -> Tensor:
        """One optimiser step on `loss`. Returns the gradient norm of the first parameter group. observation, terms:
        what the loss was computed from, by name. Raises NotFinite with the first of them that is not finite."""
        # On a GPU these checks would be a wait. There `check_finite` after the update finds what is not finite.
        on_cpu = loss.device.type == "cpu"
        if on_cpu and not torch.isfinite(loss):
            self.check_finite()
            inputs = {f"observation {name!r}": entry for name, entry in observation.items()}
            raise NotFinite(first_not_finite({**inputs, **terms, "loss": loss}))
        self.optimizer.zero_grad()
        loss.backward()
        groups = [group["params"] for group in self.optimizer.param_groups]
        norms = [nn.utils.get_total_norm([p.grad for p in group if p.grad is not None]) for group in groups]
        if on_cpu and not all(math.isfinite(float(norm)) for norm in norms):
            gradients = {
                f"gradient of {name}": parameter.grad
                for module in self._modules.values()
                for name, parameter in module.named_parameters()
            }
            # Each number may be finite while the norm is not.
            raise NotFinite(first_not_finite(gradients) or "gradient norm: expected a finite number, got inf")
        for parameters, norm in zip(groups, norms, strict=True):  # after the check: one NaN would make all numbers NaN
            nn.utils.clip_grads_with_norm_(parameters, self.config.max_grad_norm, norm)
        self.optimizer.step()
        return norms[0]

    def _observation_loss(self, predictor: Any, part: Rollout, out: Any) -> Tensor:
        """Cross-entropy of the next observations, in nats. The first observation of an episode is not predicted."""
        is_continuing = ~part.episode_start[1:]  # [T-1,b]
        next_observation = {name: entry[1:][is_continuing] for name, entry in part.observation.items()}
        features = out.features[:-1][is_continuing]
        return predictor.loss(features, part.actions[:-1][is_continuing], next_observation)


def explained_variance(values: Tensor, targets: Tensor) -> Tensor:
    """The share of the targets' variance that the values explain, a scalar. NaN if the targets do not vary."""
    variance = targets.detach().var(correction=0)
    return 1 - (targets - values).detach().var(correction=0) / torch.where(variance > 0, variance, math.nan)


def means(steps: Sequence[Mapping[str, Tensor]]) -> dict[str, float]:
    """The mean of each metric over several optimiser steps, by name. steps: scalars by name, NaN where a step has no
    such metric. This is the only wait for a GPU in an update."""
    names = list(dict.fromkeys(name for step in steps for name in step))
    columns = [torch.stack([step[name] for step in steps if name in step]).double().nanmean() for name in names]
    return dict(zip(names, torch.stack(columns).tolist(), strict=True))
