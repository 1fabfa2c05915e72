"""PPO (Schulman et al., 2017, arXiv 1707.06347) over whole sequences: a minibatch is a set of environments.

T time steps, B environments, A actions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from agents.returns import gae
from agents.rollout import Rollout

REWARD_VARIANCE_FLOOR = 1e-3  # rewards that vary less are not scaled up further


@dataclass(frozen=True)
class PPOConfig:
    num_steps: int = 64
    """Time steps per rollout and environment."""
    num_minibatches: int = 8
    """Minibatches per epoch, each a set of environments."""
    update_epochs: int = 2
    """Passes over a rollout."""
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
    gae_lambda: float = 0.9
    """Lambda of generalised advantage estimation."""
    clip_coef: float = 0.2
    """Clipping of the probability ratio."""
    ent_coef: float = 0.01
    """Entropy bonus at the start."""
    final_ent_coef: float = 0.003
    """Entropy bonus at the end; linear in between."""
    vf_coef: float = 0.5
    """Weight of the value loss."""
    reward_prediction_coef: float = 0.5
    """Weight of an auxiliary loss: predict the reward of the action taken (squared error over the rewards' variance)."""
    max_grad_norm: float = 0.5
    """Gradient norm to which each parameter group is clipped."""
    advantage_std_floor: float = 0.15
    """Advantages are divided by their standard deviation, but by no less than this: a solved task is not scaled up."""
    target_kl: float = 0.03
    """An update ends early when the approximate KL divergence from the acting policy exceeds this."""

    def __post_init__(self):
        for name in ("num_steps", "num_minibatches", "update_epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')}: expected at least 1, got {getattr(self, name)}")
        for name in ("gamma", "gae_lambda"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"--{name.replace('_', '-')}: expected 0 to 1, got {getattr(self, name)}")


class PPO:
    """Learns a policy from rollouts: `update`."""

    Config = PPOConfig
    network: ClassVar[None] = None  # it learns any of our policies; a baseline names the one that it brings

    def __init__(self, policy: Any, config: PPOConfig, num_envs: int, seed: int):
        """Raises ValueError if there are more minibatches than environments."""
        if config.num_minibatches > num_envs:
            raise ValueError(
                f"--num-minibatches: expected at most --num-envs ({num_envs}), since a minibatch is a set of "
                f"environments, got {config.num_minibatches}"
            )
        self.policy, self.config = policy, config
        # AMSGrad: a solved task has small gradients, mere noise, which plain Adam would scale up to full steps.
        self.optimizer = torch.optim.Adam(
            policy.parameter_groups(config.learning_rate),
            betas=(0.9, config.adam_beta2),
            eps=config.adam_eps,
            amsgrad=True,
        )
        self.generator = torch.Generator().manual_seed(seed)

    def update(self, rollout: Rollout, progress: float, pressure: float) -> dict[str, float]:
        """Some epochs over one rollout. progress: fraction of the training that is done; pressure: of the forgetting.
        Returns figures for the log."""
        config = self.config
        rate = _between(config.learning_rate, config.final_learning_rate, progress)
        entropy_coef = _between(config.ent_coef, config.final_ent_coef, progress)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        advantages, returns = gae(
            rollout.rewards,
            rollout.values,
            rollout.next_values,
            rollout.terminated,
            rollout.truncated,
            config.gamma,
            config.gae_lambda,
        )
        scale = advantages.std(correction=0).clamp(min=config.advantage_std_floor)
        advantages = (advantages - advantages.mean()) / scale
        log_probs = _log_prob(rollout.logits, rollout.actions)
        reward_variance = float(rollout.rewards.var(correction=0).clamp(min=REWARD_VARIANCE_FLOOR))
        figures: dict[str, list[float]] = {}
        epochs = 0
        for _ in range(config.update_epochs):
            order = torch.randperm(rollout.actions.shape[1], generator=self.generator).to(rollout.actions.device)
            kls = []
            for rows in order.tensor_split(config.num_minibatches):
                part = rollout.rows(rows)
                step = self._step(
                    part,
                    advantages[:, rows],
                    returns[:, rows],
                    log_probs[:, rows],
                    reward_variance,
                    entropy_coef,
                    pressure,
                )
                kls.append(step["train/approx_kl"])
                for name, value in step.items():
                    figures.setdefault(name, []).append(value)
            epochs += 1
            if sum(kls) / len(kls) > config.target_kl:
                break
        variance = returns.var(correction=0)
        explained = float(1 - (returns - rollout.values).var(correction=0) / variance) if variance > 0 else float("nan")
        return {
            **{name: sum(values) / len(values) for name, values in figures.items()},
            "train/learning_rate": rate,
            "train/ent_coef": entropy_coef,
            "train/epochs": epochs,
            "train/advantage_std": float(scale),
            "train/explained_variance": explained,
        }

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The optimiser's state and the generator's, as tensors and JSON-able figures."""
        tensors = {"generator": self.generator.get_state()}
        for index, entry in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{index}/{name}": torch.as_tensor(value) for name, value in entry.items()}
        return tensors, {}

    def load_state(self, tensors: Mapping[str, Tensor], known: Mapping[str, Any]) -> None:
        """Continues from `state`."""
        self.generator.set_state(tensors["generator"])
        full = self.optimizer.state_dict()
        full["state"] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimizer/"):
                _, index, entry = name.split("/")
                full["state"].setdefault(int(index), {})[entry] = tensor
        self.optimizer.load_state_dict(full)

    def _step(
        self,
        part: Rollout,
        advantages: Tensor,
        returns: Tensor,
        log_probs: Tensor,
        reward_variance: float,
        entropy_coef: float,
        pressure: float,
    ) -> dict[str, float]:
        """One optimiser step on a minibatch [T,b]."""
        config = self.config
        out = self.policy.unroll(part.observation, part.memory, part.episode_start, pressure=pressure)
        log_ratio = _log_prob(out.logits, part.actions) - log_probs  # [T,b]
        ratio = log_ratio.exp()
        clipped = ratio.clamp(1 - config.clip_coef, 1 + config.clip_coef)
        policy_loss = -torch.minimum(ratio * advantages, clipped * advantages).mean()
        value_loss = (out.values - returns).square().mean() / 2
        log_p = torch.log_softmax(out.logits, -1)
        entropy = -(log_p.exp() * log_p).sum(-1).mean()
        predicted = out.rewards.gather(-1, part.actions[..., None]).squeeze(-1)  # [T,b]
        reward_loss = (predicted - part.rewards).square().mean() / (2 * reward_variance)
        loss = policy_loss + config.vf_coef * value_loss - entropy_coef * entropy + out.memory_loss
        loss = loss + config.reward_prediction_coef * reward_loss
        if not torch.isfinite(loss):
            raise RuntimeError(f"loss: expected a finite number, got {float(loss)}: a lower --learning-rate may help")
        self.optimizer.zero_grad()
        loss.backward()
        norms = [nn.utils.clip_grad_norm_(g["params"], config.max_grad_norm) for g in self.optimizer.param_groups]
        self.optimizer.step()
        with torch.no_grad():
            return {
                "train/policy_gradient_loss": float(policy_loss),
                "train/value_loss": float(value_loss),
                "train/entropy_loss": float(-entropy),
                "train/memory_loss": float(out.memory_loss),
                "train/reward_prediction_loss": float(reward_loss),
                "train/approx_kl": float((ratio - 1 - log_ratio).mean()),
                "train/clip_fraction": float(((ratio - 1).abs() > config.clip_coef).float().mean()),
                "train/grad_norm": float(norms[0]),
            }


def _between(start: float, end: float, progress: float) -> float:
    return start + (end - start) * min(max(progress, 0.0), 1.0)


def _log_prob(logits: Tensor, actions: Tensor) -> Tensor:
    """[T,B,A], [T,B] -> [T,B]."""
    return torch.log_softmax(logits, -1).gather(-1, actions[..., None]).squeeze(-1)
