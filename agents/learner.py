"""What the learners share: settings, optimiser, schedules, minibatches, and the losses beside the policy's own.

T time steps, B environments; a minibatch is a set of b environments.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from expire_span_rl.agents.entries import REWARDS, AgentInputs
from expire_span_rl.agents.guard import Backup, NotFinite, check_modules, first_not_finite
from expire_span_rl.agents.reward_scale import RewardScale
from expire_span_rl.agents.rollout import Rollout, RolloutSource, under
from expire_span_rl.agents.schedules import Schedules
from expire_span_rl.agents.settings import OptimizerConfig, with_entropy_for
from expire_span_rl.checks import shown
from expire_span_rl.protocols import LearningPolicy, StatefulModule

RATE_AT_REST = 0.05
"""Learning rate of what the pressure acts on while there is none, as a fraction of that at full pressure: spans may
follow the task, but not run off on the noise of its gradient, which Adam scales up to full steps."""
REWARD_VARIANCE_FLOOR = 1e-3  # rewards that vary less are not scaled up further


@dataclass(frozen=True)
class Weights:
    """What weighs the losses of one update."""

    entropy: float
    reward_variance: float
    pressure: float


class Learner:
    """Learns a policy from rollouts: `update`. A subclass says in `_learn` how often and from which policy loss."""

    Config: ClassVar[type[OptimizerConfig]]
    learns_from: ClassVar[str] = REWARDS

    def __init__(self, policy: LearningPolicy, config: Any, num_envs: int, seed: int, horizon: int | None = None):
        """config: a `Config`; horizon: steps that facts of the task must last, None if it is not known. Raises
        ValueError if there are more minibatches than environments."""
        if config.num_minibatches > num_envs:
            raise ValueError(
                f"--num-minibatches: expected at most --num-envs ({num_envs}), since a minibatch is a set of "
                f"environments, got {shown(str(config.num_minibatches), 40)}"
            )
        config = with_entropy_for(config, horizon)
        self.policy, self.config = policy, config
        self.predictor = policy.observation_predictor() if config.observation_prediction_coef else None
        groups = policy.parameter_groups(config.learning_rate)
        if self.predictor is not None:
            network = list(self.predictor.parameters())
            groups.append({"params": network, "lr": config.learning_rate, "scale": 1.0, "span_parameters": False})
        # AMSGrad: a solved task has small gradients, mere noise, which plain Adam would scale up to full steps. Not for
        # what is pressed: there it would remember the largest defence for ever, beside which every charge is nothing.
        groups = [{**group, "amsgrad": config.amsgrad and not group["span_parameters"]} for group in groups]
        betas = 0.9, config.adam_beta2
        self.optimizer = torch.optim.Adam(groups, betas=betas, eps=config.adam_eps, fused=True)
        self.generator = torch.Generator().manual_seed(seed)
        self.check_deadline: Callable[[], None] = lambda: None
        """Called before each minibatch; what it raises ends the update."""
        self.schedules = Schedules(
            {"learning_rate": config.learning_rate, "ent_coef": config.ent_coef},
            {"learning_rate": config.final_learning_rate, "ent_coef": config.final_ent_coef},
        )
        self.reward_scale = RewardScale(config.gamma) if config.normalize_rewards else None

    def make_source(self, inputs: AgentInputs) -> RolloutSource | None:
        """Where its rollouts come from; None: the trainer collects them in its own process."""
        return inputs.make_actors(self.policy) if getattr(self.config, "distributed", False) else None

    def update(self, rollout: Rollout, progress: float, pressure: float) -> dict[str, float]:
        """Learns from one rollout. progress: fraction of the schedules that is over; pressure: of the forgetting.
        Returns figures for the log. Raises NotFinite, and whatever `check_deadline` raises, in the midst of it
        (`backup`)."""
        now = self._set_rates(progress, pressure)
        rate, entropy_coef = now["learning_rate"], now["ent_coef"]
        scale = {}
        if self.reward_scale is not None:
            rollout = self.reward_scale.scaled(rollout)
            scale = {"train/reward_scale": self.reward_scale.value}
        variance = float(rollout.rewards.var(correction=0).clamp(min=REWARD_VARIANCE_FLOOR))
        figures = self._learn(rollout, Weights(entropy_coef, variance, pressure))
        return {**figures, **scale, "train/learning_rate": rate, "train/ent_coef": entropy_coef}

    def _set_rates(self, progress: float, pressure: float) -> dict[str, float]:
        """Sets the optimiser's learning rates; returns what the schedules say at `progress`."""
        now = self.schedules.values(progress)
        # What is pressed has no schedule: a task that is learned late is forgotten as fast.
        pace = self.config.learning_rate * max(abs(pressure), RATE_AT_REST)
        for group in self.optimizer.param_groups:
            group["lr"] = group["scale"] * (pace if group["span_parameters"] else now["learning_rate"])
        return now

    def backup(self) -> Backup:
        """What `update` changes, to put it back: weights, statistics, the optimiser's state."""
        return Backup(self._modules, self.optimizer)

    def check_finite(self) -> None:
        """Raises NotFinite for weights and statistics that must not be saved."""
        check_modules(self._modules)

    @property
    def _modules(self) -> Mapping[str, StatefulModule]:
        return {"policy": self.policy} | ({} if self.predictor is None else {"predictor": self.predictor})

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The optimiser's state and the generator's, as tensors and JSON-able figures."""
        tensors = {"generator": self.generator.get_state()}
        for index, entry in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{index}/{name}": torch.as_tensor(value) for name, value in entry.items()}
        if self.predictor is not None:
            tensors |= {f"predictor/{name}": tensor for name, tensor in self.predictor.state_dict().items()}
        if self.reward_scale is not None:
            tensors |= {f"reward_scale/{name}": tensor for name, tensor in self.reward_scale.state().items()}
        return tensors, {}

    def _check_optimizer(self, state: Mapping[int, Mapping[str, Tensor]]) -> None:
        """Raises RuntimeError, one line, for a state of the optimiser, by parameter, that Adam cannot go on from: it
        takes any."""
        parameters = [(p, group["amsgrad"]) for group in self.optimizer.param_groups for p in group["params"]]
        for index, entries in state.items():
            parameter, amsgrad = parameters[index] if 0 <= index < len(parameters) else (None, False)
            shapes = {name: tuple(tensor.shape) for name, tensor in entries.items()}
            means = ("exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if amsgrad else []))
            if parameter is None or shapes != {"step": (), **dict.fromkeys(means, tuple(parameter.shape))}:
                raise RuntimeError(f"optimizer/{index}: expected Adam's state of a parameter, got {shapes}")

    def load_state(self, tensors: Mapping[str, Tensor], known: Mapping[str, Any]) -> None:
        """Continues from `state`. Raises RuntimeError, KeyError, TypeError or ValueError for what it cannot have
        given."""
        self.generator.set_state(tensors["generator"])
        full = self.optimizer.state_dict()
        full["state"] = {}
        for name, tensor in under("optimizer/", tensors).items():
            index, entry = name.split("/")
            full["state"].setdefault(int(index), {})[entry] = tensor
        self._check_optimizer(full["state"])
        self.optimizer.load_state_dict(full)
        if self.predictor is not None:
            self.predictor.load_state_dict(under("predictor/", tensors))
        if self.reward_scale is not None:
            self.reward_scale.load_state(under("reward_scale/", tensors))

    def _learn(self, rollout: Rollout, weights: Weights) -> dict[str, float]:
        """The optimiser steps of one rollout. Returns figures."""
        raise NotImplementedError

    def _minibatches(self, rollout: Any) -> Iterator[Tensor]:
        """All environments once, in random order, in `num_minibatches` sets int64 [b]."""
        order = torch.randperm(rollout.actions.shape[1], generator=self.generator).to(rollout.actions.device)
        for rows in order.tensor_split(self.config.num_minibatches):
            self.check_deadline()
            yield rows

    def _scaled(self, advantages: Tensor) -> tuple[Tensor, Tensor]:
        """(advantages around 0 over their standard deviation or its floor, what they were divided by)."""
        scale = advantages.std(correction=0).clamp(min=self.config.advantage_std_floor)
        return (advantages - advantages.mean()) / scale, scale

    def _descend(
        self, part: Rollout, out: Any, policy_loss: Tensor, targets: Tensor, weights: Weights
    ) -> dict[str, Tensor]:
        """One optimiser step on a minibatch [T,b] that was unrolled to `out`; targets: [T,b] of the values. Returns
        figures, scalars each."""
        config = self.config
        value_loss = (out.values - targets).square().mean() / 2
        entropy = self.policy.actions.entropy(out.logits).mean()
        predicted = self.policy.predicted_rewards(out.rewards, part.actions)  # [T,b]
        reward_loss = (predicted - part.rewards).square().mean() / (2 * weights.reward_variance)
        loss = policy_loss + config.vf_coef * value_loss - weights.entropy * entropy + out.memory_loss
        loss = loss + config.reward_prediction_coef * reward_loss
        figures: dict[str, Tensor] = {}
        if self.predictor is not None:
            observation_loss = self._observation_loss(self.predictor, part, out)
            loss = loss + config.observation_prediction_coef * observation_loss
            figures["train/observation_prediction_loss"] = observation_loss
        seen = {
            "rewards": part.rewards,
            "logits": out.logits,
            "values": out.values,
            "value targets": targets,
            "predicted rewards": predicted,
            "policy loss": policy_loss,
            "value loss": value_loss,
            "memory loss": out.memory_loss,
        }
        figures |= {
            "train/policy_gradient_loss": policy_loss,
            "train/value_loss": value_loss,
            "train/entropy_loss": -entropy,
            "train/memory_loss": out.memory_loss,
            "train/reward_prediction_loss": reward_loss,
            "train/grad_norm": self._step_down(loss, part.observation, seen),
        }
        return {name: figure.detach() for name, figure in figures.items()}

    def _step_down(self, loss: Tensor, observation: Mapping[str, Tensor], seen: Mapping[str, Tensor]) -> Tensor:
        """One optimiser step down the gradient of `loss`; the norm of the policy's. observation, seen: what the loss
        was made of, by name, in which a number that is not finite is looked for. Raises NotFinite."""
        # To ask a GPU would be to wait for it: there `check_finite` after the update finds what is not finite.
        asks = loss.device.type == "cpu"
        if asks and not torch.isfinite(loss):
            self.check_finite()
            inputs = {f"observation {name!r}": entry for name, entry in observation.items()}
            raise NotFinite(first_not_finite({**inputs, **seen, "loss": loss}))
        self.optimizer.zero_grad()
        loss.backward()
        parts = [g["params"] for g in self.optimizer.param_groups]
        norms = [nn.utils.get_total_norm([p.grad for p in part if p.grad is not None]) for part in parts]
        if asks and not all(math.isfinite(float(norm)) for norm in norms):
            gradients = {
                f"gradient of {name}": parameter.grad
                for module in self._modules.values()
                for name, parameter in module.named_parameters()
            }
            # Each number may be finite and their norm not.
            raise NotFinite(first_not_finite(gradients) or "gradient norm: expected a finite number, got inf")
        for parameters, norm in zip(parts, norms, strict=True):  # not before: one NaN would make all of them NaN
            nn.utils.clip_grads_with_norm_(parameters, self.config.max_grad_norm, norm)
        self.optimizer.step()
        return norms[0]

    def _observation_loss(self, predictor: Any, part: Rollout, out: Any) -> Tensor:
        """How badly the next observations were predicted, in nats. What follows an episode's end is left out."""
        on = ~part.episode_start[1:]  # [T-1,b]: the episode goes on
        following = {name: entry[1:][on] for name, entry in part.observation.items()}
        return predictor.loss(out.features[:-1][on], part.actions[:-1][on], following)


def explained_variance(values: Tensor, targets: Tensor) -> Tensor:
    """The share of the targets' variance that the values explain, a scalar; NaN if they do not vary."""
    variance = targets.detach().var(correction=0)
    return 1 - (targets - values).detach().var(correction=0) / torch.where(variance > 0, variance, math.nan)


def means(steps: Sequence[Mapping[str, Tensor]]) -> dict[str, float]:
    """The figures of several optimiser steps, scalars that are NaN where there is nothing to tell, averaged by name.
    This alone waits for a GPU."""
    names = list(dict.fromkeys(name for step in steps for name in step))
    columns = [torch.stack([step[name] for step in steps if name in step]).double().nanmean() for name in names]
    return dict(zip(names, torch.stack(columns).tolist(), strict=True))
