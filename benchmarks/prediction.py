"""A probe of prediction alone: how soon does a memory predict where a door of Portal-v0 leads that was tried before?

    python -m benchmarks.prediction --memory transformer_xl --window 256 --seed 1

Sequences have 128 steps through 6 rooms, with random doors and an empty memory at the start. Each optimiser step has 16
new ones. Only the next observation is learned (`policies.prediction`), with the optimiser of training. The metric is
the share of known doors that are predicted right: home is predicted behind the agent exactly if the door leads home.
The defaults of the memory and of the Transformer are those of training on Portal-v0. If this does not learn, a policy
cannot use its memory either.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from benchmarks.learning import split_arguments
from expire_span_rl import cli
from expire_span_rl.agents import Trainer
from expire_span_rl.building import build
from expire_span_rl.cli.settings import parse_config
from expire_span_rl.envs import make_vec_env
from expire_span_rl.envs.portal import HOME, Portal
from expire_span_rl.envs.tiles import EAST, NORTH, SOUTH
from expire_span_rl.policies import ActorCritic

ROOMS = 6
SEQUENCES = 16  # of each optimiser step
STEPS = 128  # of a sequence
BEHIND = 0, 1  # the tile west of the agent in its 3x3 window


@dataclass(frozen=True)
class ProbeConfig:
    optimiser_steps: int = 1500
    """Optimiser steps."""
    every: int = 100
    """Optimiser steps between two lines."""

    def __post_init__(self):
        cli.check_at_least(self, optimiser_steps=1, every=1)


@dataclass(frozen=True)
class Sequences:
    """T steps of B agents, and the next observation of each step."""

    observation: Mapping[str, Tensor]  # entries [T,B, ...]
    following: Mapping[str, Tensor]  # entries [T,B, ...]
    actions: Tensor  # int64 [T,B]
    starts: Tensor  # bool [T,B]: an episode begins
    continues: Tensor  # bool [T,B]: the next observation belongs to the same episode
    is_known: Tensor  # bool [T,B]: a door is taken in a room where one was taken in this episode and sequence


def sequences(env: Any, rng: np.random.Generator) -> Sequences:
    """New episodes, in which doors are chosen at random."""
    core: Portal = env.unwrapped.core
    rows = np.arange(env.num_envs)
    observations: list[Mapping[str, Tensor]] = []
    actions = []
    starts = [np.ones(env.num_envs, bool)]
    is_known = []
    has_tried = np.zeros((env.num_envs, ROOMS), bool)
    observation, _ = env.reset(seed=int(rng.integers(2**40)))
    for _ in range(STEPS):
        observations.append(_as_tensors(observation))
        doors = core.x == core.room_length - 1
        room = core.room.copy()
        actions.append(np.where(doors, rng.choice([NORTH, SOUTH], env.num_envs), EAST))
        is_known.append(doors & has_tried[rows, room])
        has_tried[rows, room] |= doors
        observation, _, terminated, truncated, _ = env.step(actions[-1])
        starts.append(terminated | truncated)
        has_tried[starts[-1]] = False
    observations.append(_as_tensors(observation))
    episode_starts = torch.as_tensor(np.array(starts))
    continues = ~episode_starts[1:]
    return Sequences(
        observation={key: torch.stack([step[key] for step in observations[:-1]]) for key in observations[0]},
        following={key: torch.stack([step[key] for step in observations[1:]]) for key in observations[0]},
        actions=torch.as_tensor(np.array(actions)),
        starts=episode_starts[:-1],
        continues=continues,
        is_known=torch.as_tensor(np.array(is_known)) & continues,
    )


def _as_tensors(observation: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """A copy, since environments use their arrays again."""
    return {key: torch.as_tensor(np.array(value)) for key, value in observation.items()}


def learn(policy: ActorCritic, learner: Any, seed: int, optimiser_steps: int) -> Iterator[tuple[float, float]]:
    """Yields after each optimiser step the loss, in nats per observation, and the share of known doors that were
    predicted right before it. learner: has the optimiser and the predictor."""
    rng = np.random.default_rng(seed)
    predictor = learner.predictor
    env = make_vec_env("Portal-v0", SEQUENCES, min_rooms=ROOMS, max_rooms=ROOMS, max_steps=10 * STEPS)
    parameters = [p for group in learner.optimizer.param_groups for p in group["params"]]
    for _ in range(optimiser_steps):
        batch = sequences(env, rng)
        features = policy.unroll(batch.observation, policy.initial_memory(SEQUENCES), batch.starts).features
        following = {key: value[batch.continues] for key, value in batch.following.items()}
        loss = predictor.loss(features[batch.continues], batch.actions[batch.continues], following)
        with torch.no_grad():
            objects = predictor.objects(features[batch.is_known], batch.actions[batch.is_known], "image", BEHIND)
        is_home = batch.following["image"][batch.is_known][:, BEHIND[0], BEHIND[1], 0] == HOME[0]
        learner.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, learner.config.max_grad_norm)
        learner.optimizer.step()
        yield float(loss.detach()), float(((objects == HOME[0]) == is_home).float().mean())
    env.close()


def main() -> None:
    benchmark_flags, training_flags = split_arguments(ProbeConfig, sys.argv[1:])
    config = cli.parse(ProbeConfig, benchmark_flags, "Prediction alone, on Portal-v0. Flags of train_rl.py may follow.")
    settings = parse_config(["--env", "Portal-v0", *training_flags])
    if getattr(settings.agent, "observation_prediction_coef", 0) == 0:
        raise cli.UsageError("--agent, --observation-prediction-coef: expected a policy of ours that learns to predict")
    run = build(settings.replace(torch_threads=1))
    trainer = cast(Trainer, run.trainer)
    policy = cast(ActorCritic, run.policy)
    metrics = []
    for count, step_metrics in enumerate(learn(policy, trainer.agent, settings.run.seed, config.optimiser_steps), 1):
        metrics.append(step_metrics)
        if count % config.every == 0 or count == config.optimiser_steps:
            loss, accuracy = np.nanmean(metrics, 0)
            print(f"{count:6,} optimiser steps: {loss:.2f} nats, known doors right {accuracy:.1%}", flush=True)
            metrics = []


if __name__ == "__main__":
    cli.run(main)
